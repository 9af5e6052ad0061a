"""Flower's own strategies as aggregators: its server optimisers and its robust means, unchanged.

    state -> a fresh strategy object with the remembered moments -> configure_train, aggregate_train -> new state

Flower's strategies keep their moments inside; here they live in the frozen state, so that a run can be saved, resumed and
replayed. What a strategy sees are messages with float64 arrays, sorted by client, so that neither rounding in its sums
nor the order of arrival matters; its result is rounded once to the model's dtypes.

Float buffers (BatchNorm statistics) are averaged by examples beside a server optimiser, whose steps could make a variance
negative, and go through a robust strategy together with the parameters. Integer buffers take the maximum. Clients whose
arrays are not finite are left out with a note.
"""

from __future__ import annotations

import gc
import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
from flwr.app import Array as FlowerArray
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, Metadata, MetricRecord, RecordDict
from flwr.app.exception import AppExitException
from flwr.serverapp.strategy import Strategy

from fedmap.aggregators.base import ServerState, check_number, example_shares, in_client_order, mean_weights
from fedmap.errors import ConfigError, UpdateError
from fedmap.records import Broadcast, ClientUpdate, RoundReport
from fedmap.weights import Array, Layout, Weights, all_finite, is_float

_CURRENT = "current_arrays"  # where Flower's server optimisers keep the model they step from

# the ranges that the papers give to the options of Flower's strategies, which Flower itself does not check
_RANGES: Mapping[str, Mapping[str, Any]] = {
    "eta": {"above": 0},
    "tau": {"above": 0},
    "beta_1": {"least": 0, "most": 0.9999},
    "beta_2": {"least": 0, "most": 0.9999},
    "server_learning_rate": {"above": 0},
    "server_momentum": {"least": 0, "most": 0.9999},
    "num_malicious_nodes": {"least": 0},
    "num_nodes_to_select": {"least": 1},
}

_BY_COORDINATE = ("FedMedian", "FedTrimmedAvg", "Bulyan")

# how many clients the proofs ask for when f of them are malicious
_LEAST_CLIENTS: Mapping[str, Callable[[int], int]] = {
    "Krum": lambda f: 2 * f + 3,
    "MultiKrum": lambda f: 2 * f + 3,
    "Bulyan": lambda f: 4 * f + 3,
}


@dataclass(frozen=True)
class FlowerState(ServerState):
    """The global model and what the strategy remembers.

    Attributes:
        memory: the strategy's array attributes by their names, e.g. "m_t" and "v_t" of FedAdam, float64.
    """

    memory: Mapping[str, Weights | tuple[Array, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class FlowerAggregator:
    """One of Flower's strategies.

    Attributes:
        strategy: a class of flwr.serverapp.strategy by name, e.g. "FedAdam", or the dotted path of one of your own.
        options: its keyword arguments, e.g. {"eta": 0.01}.
    """

    strategy: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, value in self.options.items():
            if name in _RANGES:
                check_number(f"options.{name}", value, **_RANGES[name])
        self._make()

    @property
    def compares_coordinates(self) -> bool:
        """Whether the strategy compares the clients number by number, so that a change that was not sent would count as none."""
        return self.strategy in _BY_COORDINATE

    def init(self, weights: Weights, layout: Layout | None = None) -> FlowerState:
        """The initial model and no moments."""
        return FlowerState(weights=weights, layout=layout or Layout.of(weights))

    def broadcast(self, state: FlowerState) -> Broadcast:
        """The global model, trained plainly."""
        return Broadcast(round_index=state.round_index + 1, weights=state.weights, rule="plain")

    def aggregate(self, state: FlowerState, updates: Sequence[ClientUpdate]) -> tuple[FlowerState, RoundReport]:
        """One call of the strategy's `aggregate_train`.

        Raises:
            UpdateError: too few clients for the strategy, or it gave no usable result.
        """
        ordered, notes = _finite(in_client_order(updates))
        strategy = self._make()
        self._check_count(len(ordered))
        optimises = hasattr(strategy, _CURRENT)
        apart = [n for n, array in state.weights.items() if not is_float(array) or (optimises and n in state.layout.buffers)]
        names = [name for name in state.weights if name not in apart]
        shares = example_shares(ordered)
        coefficients = [shares[update.client_id] for update in ordered]
        buffers = mean_weights(ordered, coefficients, apart)
        for name, value in state.memory.items():
            setattr(strategy, name, [a.copy() for a in value] if isinstance(value, tuple) else {n: a.copy() for n, a in value.items()})
        if optimises and "." not in self.strategy:  # Flower's own step from the clients' mean, so that one message with it is enough
            total = sum(update.num_examples for update in ordered)
            mean = mean_weights(ordered, coefficients, names, np.float64)
            ordered = [replace(ordered[0], weights=mean, num_examples=total, extras={})]
        stepped = self._call(strategy, state, ordered, names)
        done = state.round_index + 1
        weights = {name: stepped[name] if name in stepped else buffers[name] for name in state.weights}
        report = RoundReport(round_index=done, client_weights=shares if optimises else {}, notes=notes)
        return replace(state, weights=weights, memory=_memory_of(strategy), round_index=done), report

    def _make(self) -> Strategy:
        module, _, name = self.strategy.rpartition(".")
        try:
            made = getattr(importlib.import_module(module or "flwr.serverapp.strategy"), name)(**self.options)
        except (ImportError, AttributeError, TypeError, ValueError) as error:
            raise ConfigError(
                f"Flower's strategy {self.strategy!r} cannot be made with the options {dict(self.options)}: {error}"
            ) from error
        if not isinstance(made, Strategy):
            raise ConfigError(f"{self.strategy!r} is not a flwr.serverapp.strategy.Strategy")
        return made

    def _check_count(self, num_clients: int) -> None:
        name = self.strategy.rpartition(".")[2]
        malicious = int(self.options.get("num_malicious_nodes", 0))
        needed = _LEAST_CLIENTS[name](malicious) if name in _LEAST_CLIENTS else 1
        if num_clients < needed:
            raise UpdateError(
                f"{name} with num_malicious_nodes={malicious} needs at least {needed} clients, got {num_clients}; "
                "raise clients_per_round or lower server.strategy.options.num_malicious_nodes"
            )

    def _call(self, strategy: Strategy, state: FlowerState, ordered: Sequence[ClientUpdate], names: Sequence[str]) -> dict[str, Array]:
        done = state.round_index + 1
        # with no client to train, configure_train does nothing but remember the model, and needs no connection
        strategy.fraction_train = 0.0  # type: ignore[attr-defined]
        strategy.configure_train(done, _record(state.weights, names), ConfigRecord(), cast(Any, None))
        replies = [_reply(update, names) for update in ordered]
        gc.freeze()  # some strategies collect garbage once per array, which takes minutes unless what is here now is left out
        try:
            arrays, _ = strategy.aggregate_train(done, replies)
        except (AppExitException, ValueError) as error:
            raise UpdateError(f"Flower's strategy {self.strategy!r} could not aggregate: {error}") from error
        finally:
            gc.unfreeze()
        if arrays is None or set(arrays) != set(names):
            raise UpdateError(f"Flower's strategy {self.strategy!r} gave no model; see its log")
        stepped = {name: np.asarray(arrays[name].numpy()).astype(state.weights[name].dtype) for name in names}
        for name, array in stepped.items():
            if array.shape != state.weights[name].shape or not np.isfinite(array).all():
                raise UpdateError(f"Flower's strategy {self.strategy!r} gave an unusable {name}; lower its learning rate")
        return stepped


def _finite(updates: Sequence[ClientUpdate]) -> tuple[list[ClientUpdate], tuple[str, ...]]:
    finite = [all_finite(update.weights) for update in updates]
    good = [update for update, fits in zip(updates, finite, strict=True) if fits]
    out = [update.client_id for update, fits in zip(updates, finite, strict=True) if not fits]
    if not good:
        raise UpdateError("no client sent a finite model; lower the learning rate or check the data")
    return good, tuple(f"client {client} was left out: its model holds NaN or infinite numbers" for client in out)


def _record(weights: Weights, names: Sequence[str]) -> ArrayRecord:
    return ArrayRecord({name: FlowerArray(weights[name].astype(np.float64)) for name in names})


def _reply(update: ClientUpdate, names: Sequence[str]) -> Message:
    missing = [name for name in names if name not in update.weights]
    if missing:
        raise UpdateError(f"client {update.client_id} did not send {len(missing)} of the expected arrays, first {missing[:3]}")
    content = RecordDict({"arrays": _record(update.weights, names), "metrics": MetricRecord({"num-examples": update.num_examples})})
    # a message made without metadata belongs to the run of this process, and there may be none
    metadata = Metadata(
        run_id=0,
        message_id="",
        src_node_id=update.client_id + 1,
        dst_node_id=0,
        reply_to_message_id="",
        group_id=str(update.round_index),
        created_at=0.0,
        ttl=1.0,
        message_type=MessageType.TRAIN,
    )
    return Message(content=content, metadata=metadata)  # type: ignore[call-overload, no-any-return]


def _memory_of(strategy: Strategy) -> dict[str, Weights | tuple[Array, ...]]:
    """The strategy's attributes that are mappings or lists of arrays, apart from the model it stepped from."""
    memory: dict[str, Weights | tuple[Array, ...]] = {}
    for name, value in vars(strategy).items():
        if name == _CURRENT or not value:
            continue
        if isinstance(value, dict) and all(isinstance(item, np.ndarray) for item in value.values()):
            memory[name] = {key: np.asarray(item) for key, item in value.items()}
        elif isinstance(value, list) and all(isinstance(item, np.ndarray) for item in value):
            memory[name] = tuple(np.asarray(item) for item in value)
    return memory
