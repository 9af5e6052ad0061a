"""What a federation is compared with: the same model trained centrally, by each client alone, not at all, and no model.

Central and individual training are federations of one client: the same loop, budget (num_rounds times num_epochs), model
selection (highest macro-F1 on a validation split) and thresholds as the federated run. Nothing here sees the test split
before the model has been chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from statistics import fmean

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from fedmap.aggregators.fedavg import FedAvg
from fedmap.build import build_data, build_model, cache_dir, prepare_split, training_options
from fedmap.config import RunConfig
from fedmap.data.base import Batch, Split
from fedmap.history import FinalResults, Scores, preference
from fedmap.local.client import LocalClient
from fedmap.local.tensors import get_weights, layout_of, set_weights
from fedmap.local.training import Evaluation, TrainingOptions, evaluate
from fedmap.metrics import MultilabelCounts
from fedmap.scoring import final_results, label_results, round_scores
from fedmap.simulation import Round, simulate
from fedmap.weights import Weights

Splits = Mapping[str, Split]


class PooledSplit:
    """The rows of several splits as one; batches are padded to the widest part."""

    def __init__(self, parts: Sequence[Split]) -> None:
        self._parts = [part for part in parts if len(part)]
        assert self._parts, "at least one part must have rows"
        self.labels = np.concatenate([part.labels for part in self._parts])
        self.modalities = np.concatenate([part.modalities for part in self._parts])
        self.row_ids: Sequence[str] = [row for part in self._parts for row in part.row_ids]
        self._starts = np.cumsum([0, *(len(part) for part in self._parts)])

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, rows: npt.NDArray[np.int64]) -> Batch:
        """See `Split`."""
        owner = np.searchsorted(self._starts, rows, side="right") - 1
        places = [np.flatnonzero(owner == part) for part in range(len(self._parts))]
        batches = [self._parts[part].batch(rows[place] - self._starts[part]) for part, place in enumerate(places) if len(place)]
        back = torch.from_numpy(np.argsort(np.concatenate(places), kind="stable"))
        return {name: _joined([batch[name] for batch in batches])[back] for name in batches[0]}


class MaskedSplit:
    """A split of movies whose rows keep one modality alone."""

    def __init__(self, split: Split, keep: str, names: Sequence[str]) -> None:
        self._split, self._dropped = split, [name for name in names if name != keep]
        self.labels, self.row_ids = split.labels, split.row_ids
        self.modalities = split.modalities & np.array([name == keep for name in names])

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, rows: npt.NDArray[np.int64]) -> Batch:
        """See `Split`."""
        batch = self._split.batch(rows)
        return batch | {f"has_{name}": torch.zeros_like(batch[f"has_{name}"]) for name in self._dropped}


def _joined(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    if parts[0].ndim == 2:
        width = max(part.shape[1] for part in parts)
        parts = [nn.functional.pad(part, (0, width - part.shape[1])) for part in parts]
    return torch.cat(list(parts))


@dataclass(frozen=True)
class Arena:
    """One configuration's model and prepared data: the ground on which methods are compared.

    Attributes:
        config: the run's configuration.
        label_names: the C labels.
        modality_names: of the data.
        model: one model; every method starts from the same initial weights.
        clients: each client's prepared splits.
        server: the server's prepared "val" and "test" splits.
        options: how clients train.
    """

    config: RunConfig
    label_names: Sequence[str]
    modality_names: Sequence[str]
    model: nn.Module
    clients: Mapping[int, Splits]
    server: Splits
    options: TrainingOptions

    @staticmethod
    def of(config: RunConfig) -> Arena:
        """Read the data, build the model and prepare every split once."""
        torch.set_num_threads(config.runtime.threads)  # sums depend on it, so that it must be the federation's number
        data = build_data(config)
        model = build_model(config, data)
        cache = cache_dir(config)

        def ready(splits: Splits) -> dict[str, Split]:
            return {name: prepare_split(model, split, cache) for name, split in splits.items()}

        clients = {client_id: ready(data.client(client_id)) for client_id in data.client_ids()}
        names = (tuple(data.label_names), tuple(data.modality_names))
        return Arena(config, *names, model, clients, ready(data.server()), training_options(config))

    def only(self, modality: str) -> Arena:
        """The same ground with one modality alone, in training and in testing."""

        def masked(splits: Splits) -> dict[str, Split]:
            return {name: MaskedSplit(split, modality, self.modality_names) for name, split in splits.items()}

        return replace(self, clients={k: masked(splits) for k, splits in self.clients.items()}, server=masked(self.server))

    def federated(self) -> FinalResults:
        """FedAvg over all clients, in this process."""
        return self._train(self.clients, self.server["val"], score_clients=True)

    def central(self) -> FinalResults:
        """One model on all clients' training rows together."""
        pooled: dict[str, Split] = {
            name: PooledSplit([splits[name] for splits in self.clients.values()]) for name in ("train", "val", "test")
        }
        return self._train({0: pooled}, self.server["val"])

    def individual(self) -> list[FinalResults]:
        """Each client's own model on the server's test split and on the client's own test rows.

        It is chosen and its thresholds are tuned on the server's validation split like the others', which flatters it: a client on
        its own would have only its few validation rows for that.
        """
        return [self._train({k: splits}, self.server["val"], score_clients=True) for k, splits in self.clients.items()]

    def untrained(self) -> FinalResults:
        """The initial model, with thresholds tuned on the validation split like any other."""
        return self._score(0, self.server["val"], {})

    def most_frequent(self) -> FinalResults:
        """For every row the k most frequent labels of the training rows, k being their mean number of labels per row."""
        labels = np.concatenate([splits["train"].labels for splits in self.clients.values()])
        often = np.argsort(-labels.sum(axis=0, dtype=np.int64), kind="stable")[: max(1, round(float(labels.sum(axis=1).mean())))]

        def counts(split: Split) -> MultilabelCounts:
            predicted = np.zeros(split.labels.shape, dtype=bool)
            predicted[:, often] = True
            return MultilabelCounts.of(predicted, split.labels)

        test = counts(self.server["test"])
        return FinalResults(
            chosen_round=0,
            validation=Scores.of(counts(self.server["val"])),
            test=Scores.of(test),
            test_tuned=Scores.of(test),
            labels=label_results(self.label_names, test),
        )

    def _train(self, clients: Mapping[int, Splits], validation: Split, *, score_clients: bool = False) -> FinalResults:
        initial = get_weights(self.model)
        members = [
            LocalClient(client_id, self.model, splits, self.options, self.config.random_seed, self.modality_names)
            for client_id, splits in clients.items()
        ]
        best: tuple[tuple[float, float, int], int, Weights] = ((-2.0, 0.0, 0), 0, initial)

        def choose(done: Round) -> None:
            nonlocal best
            set_weights(self.model, done.state.weights)
            scores = round_scores(evaluate(self.model, validation, self.options), model=self.model)
            wish = preference(scores["validation"], scores["validation_tuned"], done.state.round_index)
            if wish > best[0]:
                best = (wish, done.state.round_index, done.state.weights)

        aggregator = FedAvg()
        state = aggregator.init(initial, layout_of(self.model))
        simulate(aggregator, state, members, self.config.num_rounds, seed=self.config.random_seed, on_round=choose)
        set_weights(self.model, best[2])
        result = self._score(best[1], validation, clients if score_clients else {})
        set_weights(self.model, initial)
        return result

    def _score(self, chosen_round: int, validation: Split, clients: Mapping[int, Splits]) -> FinalResults:
        def run(split: Split) -> Evaluation:
            return evaluate(self.model, split, self.options)

        own = {client_id: run(splits["test"]).counts for client_id, splits in clients.items()}
        return final_results(chosen_round, self.label_names, run(validation), run(self.server["test"]), own, model=self.model)


def mean_results(results: Sequence[FinalResults]) -> FinalResults:
    """The plain mean of several models' scores, e.g. over the clients' own models."""
    return FinalResults(
        chosen_round=round(fmean(result.chosen_round for result in results)),
        validation=_mean([result.validation for result in results]),
        test=_mean([result.test for result in results]),
        test_tuned=_mean([result.test_tuned for result in results]),
        clients={client_id: scores for result in results for client_id, scores in result.clients.items()},
    )


def _mean(scores: Sequence[Scores | None]) -> Scores | None:
    known = [one for one in scores if one is not None]
    if not known:
        return None
    names = [field.name for field in fields(Scores) if field.name not in ("num_samples", "loss")]
    return Scores(**{name: fmean(getattr(one, name) for one in known) for name in names}, num_samples=known[0].num_samples)


def compare(arena: Arena, note: Callable[[str], None]) -> dict[str, FinalResults]:
    """Every baseline that the demo shows, by name.

    Args:
        arena: model and data.
        note: told what comes next.
    """
    note("the same model trained centrally, on all clients' rows together")
    central = arena.central()
    return {"central": central, "untrained": arena.untrained(), "most frequent": arena.most_frequent()}
