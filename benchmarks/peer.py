"""The published FedOps strategy as an aggregator of this project, driven in its own process and environment."""

from __future__ import annotations

import contextlib
import json
import math
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import numpy as np

from benchmarks.make_peer_venv import python_of
from fedmap.aggregators.base import ServerState, in_client_order
from fedmap.aggregators.fedavg import FedAvg
from fedmap.errors import FederationError
from fedmap.records import Broadcast, ClientUpdate, RoundReport
from fedmap.weights import Array, Layout, Weights

DRIVER = Path(__file__).with_name("peer_driver.py")
PeerJudge = Callable[[Weights], tuple[float, float]]


class PeerProcess:
    """The process in the peer's environment; one after the other, it serves any number of federations.

    Args:
        log: where its messages go.

    Raises:
        FederationError: the environment is missing or the process ended.
    """

    def __init__(self, log: IO[bytes] | int = subprocess.DEVNULL) -> None:
        python = python_of()
        if not python.is_file():
            raise FederationError(f"{python} is missing: the peer has no environment; make it with python -m benchmarks.make_peer_venv")
        self._folder = tempfile.TemporaryDirectory()
        variables = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
        variables |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "FLWR_TELEMETRY_ENABLED": "0"}
        self._child = subprocess.Popen(
            [str(python), str(DRIVER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=variables, cwd=self._folder.name
        )
        self._shapes: dict[str, tuple[int, ...]] = {}
        self.versions: dict[str, str] = {}

    def start(self, weights: Weights, trials: int, seed: int, *, processor: bool) -> None:
        """A new federation: a new strategy with a new student, timed by the processor's or by the wall's clock."""
        self._shapes = {name: array.shape for name, array in weights.items()}
        other = [name for name, array in weights.items() if array.dtype != np.float32]
        assert not other, f"the pipe carries float32 alone, not {other[:3]}"
        student = Path(self._folder.name) / "aggregator_mlp.pth"
        student.unlink(missing_ok=True)
        options = {"n_trials_per_round": trials, "aggregator_path": str(student)}
        settings = {"options": options, "seed": seed, "threads": 1, "processor": processor}
        self.send({"do": "start", "shapes": list(self._shapes.values()), **settings})
        self.versions = {key: value for key, value in self.receive().items() if key != "do"}

    def send(self, header: dict[str, Any], models: Sequence[Weights] = ()) -> None:
        """A message with any number of models."""
        stream = self._child.stdin
        assert stream is not None
        try:
            stream.write(json.dumps(header).encode() + b"\n")
            for model in models:
                for name in self._shapes:
                    stream.write(np.ascontiguousarray(model[name]).tobytes())
            stream.flush()
        except BrokenPipeError as error:
            raise FederationError(f"the peer's process ended with status {self._child.wait()}") from error

    def receive(self) -> dict[str, Any]:
        """A message without its model, which `receive_weights` reads."""
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        if not line:
            raise FederationError(f"the peer's process ended with status {self._child.wait()}")
        message: dict[str, Any] = json.loads(line)
        return message

    def receive_weights(self) -> dict[str, Array]:
        """The model that follows a message."""
        assert self._child.stdout is not None
        weights: dict[str, Array] = {}
        for name, shape in self._shapes.items():
            weights[name] = np.frombuffer(self._child.stdout.read(4 * math.prod(shape)), dtype=np.float32).reshape(shape)
        return weights

    def close(self) -> None:
        """End the process."""
        for stream in (self._child.stdin, self._child.stdout):
            assert stream is not None
            with contextlib.suppress(BrokenPipeError):
                stream.close()
        self._child.wait(timeout=30)
        self._folder.cleanup()


class Peer:
    """`fedops.server.fedmap.strategy.ModalityAwareAggregation`, as installed by `benchmarks.make_peer_venv`.

    Its clients train as FedAvg's do. It gets every signal its `aggregate_fit` reads, measured honestly (its own client sends
    neither diversity nor true modality flags), and its evaluation function is the caller's.

    Attributes:
        seconds: of each aggregation, search and evaluations included, the pipe excluded.
        evaluations: how many models each aggregation had scored.
    """

    def __init__(self, process: PeerProcess, judge: PeerJudge, trials: int, seed: int, *, processor: bool = False) -> None:
        """Join a process.

        Args:
            process: where the strategy runs.
            judge: macro-F1 and loss of a model on the server's validation split.
            trials: `n_trials_per_round`.
            seed: of its student and of its studies.
            processor: count the seconds that both processes compute, and not those on the wall.
        """
        self._processor, self._clock = processor, time.process_time if processor else time.perf_counter
        self._process, self._judge, self._trials, self._seed = process, judge, trials, seed
        self.seconds: list[float] = []
        self.evaluations: list[int] = []

    def init(self, weights: Weights, layout: Layout | None = None) -> ServerState:
        """The state before the first round; the strategy starts anew."""
        self._process.start(weights, self._trials, self._seed, processor=self._processor)
        return FedAvg().init(weights, layout)

    def broadcast(self, state: ServerState) -> Broadcast:
        """The global model, trained locally without any correction."""
        return FedAvg().broadcast(state)

    def aggregate(self, state: ServerState, updates: Sequence[ClientUpdate]) -> tuple[ServerState, RoundReport]:
        """One `aggregate_fit` of the strategy."""
        ordered = in_client_order(updates)
        done = state.round_index + 1
        clients = [{"num_examples": update.num_examples, "metrics": metrics_of(update)} for update in ordered]
        self._process.send({"do": "round", "round_index": done, "clients": clients}, [update.weights for update in ordered])
        evaluating, evaluations = 0.0, 0
        while (message := self._process.receive())["do"] == "evaluate":
            candidate = self._process.receive_weights()
            started = self._clock()
            score, loss = self._judge(candidate)
            evaluating += self._clock() - started
            evaluations += 1
            self._process.send({"score": score, "loss": loss})
        self.seconds.append(float(message["seconds"]) + evaluating)
        self.evaluations.append(evaluations)
        return replace(state, weights=self._process.receive_weights(), round_index=done), RoundReport(round_index=done)


def metrics_of(update: ClientUpdate) -> dict[str, float]:
    """The metrics that the strategy's `aggregate_fit` reads, by its names; what was not measured is left out."""
    signals = update.signals
    known = {
        "p_k": signals.f1_after,
        "c_k": None if signals.f1_after is None or signals.f1_before is None else signals.f1_after - signals.f1_before,
        "m_img": float(signals.modality_shares.get("image", 0.0) > 0),
        "m_txt": float(signals.modality_shares.get("text", 0.0) > 0),
        "diversity": signals.diversity,
        "val_loss": signals.validation_loss,
        "grad_norm": signals.gradient_norm,
        "imbalance_ratio": signals.label_imbalance,
    }
    return {name: float(value) for name, value in known.items() if value is not None}
