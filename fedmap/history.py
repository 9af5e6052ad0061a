"""What a run leaves behind: one record per round, and the final results. Frozen; to plain values and back.

The test split is reported in every record and never chooses anything: the best round is the one with the highest
macro-F1 on the server's validation split, at the thresholds tuned there, since those are saved with the model.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypedDict, overload

import numpy as np

from fedmap.files import plain, typed
from fedmap.metrics import MultilabelCounts, pooled
from fedmap.packing import PackedTexts
from fedmap.records import ClientSignals, ClientUpdate, RoundReport
from fedmap.weights import Array

OK, FAILED, REJECTED = "ok", "failed", "rejected"


@dataclass(frozen=True)
class Scores:
    """A model on a split: the four F1 averages in [0, 1], the mean loss (None where not measured), and the rows scored."""

    micro_f1: float
    macro_f1: float
    weighted_f1: float
    samples_f1: float
    num_samples: int
    loss: float | None = None

    @staticmethod
    def of(counts: MultilabelCounts, loss: float | None = None) -> Scores | None:
        """The scores of pooled counts; None if nothing was counted."""
        if counts.num_samples == 0:
            return None
        return Scores(**counts.scores(), num_samples=counts.num_samples, loss=loss)


@dataclass(frozen=True)
class ClientRecord:
    """One client in one round.

    Attributes:
        client_id: the client's stable number.
        status: "ok"; "failed" where no valid answer came; "rejected" where the answer was not used.
        reason: why it failed or was rejected, in a sentence.
        code: the same as one of `fedmap.reasons.Reason`; "" where it is ok.
        remarks: by code, what was found of an update that was used all the same, e.g. that it was scaled down.
        weight: its share in the aggregate, in [0, 1]; None where the notion does not apply.
        num_examples: rows trained on.
        num_steps: optimiser steps taken.
        signals: what the client measured about itself.
        scores: by split and moment, e.g. "val-before" and "val-after".
        scalars: the rule's numbers.
        seconds: by phase on the client, e.g. "train" and "evaluate".
        bytes_up: from client to server.
        bytes_down: from server to client.
    """

    client_id: int
    status: str = OK
    reason: str = ""
    weight: float | None = None
    num_examples: int | None = None
    num_steps: int | None = None
    signals: ClientSignals = field(default_factory=ClientSignals)
    scores: Mapping[str, Scores] = field(default_factory=dict)
    scalars: Mapping[str, float] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    bytes_up: int | None = None
    bytes_down: int | None = None
    code: str = ""
    remarks: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        assert self.status in (OK, FAILED, REJECTED), self.status

    @staticmethod
    def of(
        update: ClientUpdate,
        *,
        weight: float | None = None,
        status: str = OK,
        reason: str = "",
        bytes_up: int | None = None,
        bytes_down: int | None = None,
        code: str = "",
        remarks: Mapping[str, str] | None = None,
    ) -> ClientRecord:
        """The record of a client that answered, without its weights."""
        scores = {name: Scores.of(counts) for name, counts in update.counts.items()}
        return ClientRecord(
            client_id=update.client_id,
            status=status,
            reason=reason,
            weight=weight,
            num_examples=update.num_examples,
            num_steps=update.num_steps,
            signals=update.signals,
            scores={name: value for name, value in scores.items() if value is not None},
            scalars=dict(update.scalars),
            seconds=dict(update.seconds),
            bytes_up=bytes_up,
            bytes_down=bytes_down,
            code=code,
            remarks=dict(remarks or {}),
        )


class RoundScores(TypedDict):
    """The global model's scores after a round, as keywords of `RoundRecord.of`."""

    validation: Scores | None
    validation_tuned: Scores | None
    test: Scores | None
    label_f1: tuple[float, ...]


@dataclass(frozen=True)
class RoundRecord:
    """One round, as the server saw it.

    Attributes:
        round_index: counted from 1; 0 is the initial model, if it was scored.
        seconds: wall clock by phase, e.g. "train" (waiting for the clients), "aggregate", "evaluate".
        validation: the global model on the server's validation split.
        test: the same on the server's test split; reported, never used to choose.
        validation_tuned: the validation split at thresholds tuned on itself. It chooses the round; as a figure it flatters.
        label_f1: each label's F1 on the validation split in the order of the label names, at the tuned thresholds where there are some.
        clients_validation: the clients' models after training on their own validation rows, counts pooled.
        clients: every client that was asked, in the order of their numbers.
        diagnostics: the aggregator's own numbers.
        notes: sentences for the user.
    """

    round_index: int
    seconds: Mapping[str, float] = field(default_factory=dict)
    validation: Scores | None = None
    test: Scores | None = None
    validation_tuned: Scores | None = None
    clients_validation: Scores | None = None
    clients: tuple[ClientRecord, ...] = ()
    diagnostics: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    label_f1: tuple[float, ...] = ()

    @staticmethod
    def of(
        report: RoundReport,
        updates: Sequence[ClientUpdate],
        *,
        validation: Scores | None = None,
        test: Scores | None = None,
        validation_tuned: Scores | None = None,
        label_f1: Sequence[float] = (),
        seconds: Mapping[str, float] | None = None,
        lost: Sequence[ClientRecord] = (),
        bytes_up: Mapping[int, int] | None = None,
        bytes_down: Mapping[int, int] | None = None,
        remarks: Mapping[int, Mapping[str, str]] | None = None,
    ) -> RoundRecord:
        """The record of an aggregated round.

        Args:
            report: what the aggregator said.
            updates: the updates it was given.
            validation: the new global model on the server's validation split.
            test: the same on the server's test split.
            validation_tuned: the validation split at thresholds tuned on itself.
            label_f1: each label's F1 on the validation split.
            seconds: wall clock by phase.
            lost: the clients that were asked and whose answer did not come or was refused.
            bytes_up: by client, where measured.
            bytes_down: by client, where measured.
            remarks: by client and code, what was found of updates that were used all the same.
        """
        answered = [
            ClientRecord.of(
                update,
                weight=report.client_weights.get(update.client_id),
                bytes_up=(bytes_up or {}).get(update.client_id),
                bytes_down=(bytes_down or {}).get(update.client_id),
                remarks=(remarks or {}).get(update.client_id),
            )
            for update in updates
        ]
        after = [update.counts["val-after"] for update in updates if "val-after" in update.counts]
        return RoundRecord(
            round_index=report.round_index,
            seconds=dict(seconds or {}),
            validation=validation,
            test=test,
            validation_tuned=validation_tuned,
            clients_validation=Scores.of(pooled(after, len(after[0].tp))) if after else None,
            clients=tuple(sorted([*answered, *lost], key=lambda client: client.client_id)),
            diagnostics=dict(report.diagnostics),
            notes=tuple(report.notes),
            label_f1=tuple(label_f1),
        )

    @property
    def num_ok(self) -> int:
        """How many clients' updates were used."""
        return sum(client.status == OK for client in self.clients)

    @property
    def train_loss(self) -> float | None:
        """The clients' mean training loss, weighted by their rows; None if none was reported."""
        known = [
            (loss, client.num_examples)
            for client in self.clients
            if client.status == OK and client.num_examples and (loss := client.signals.train_loss) is not None and math.isfinite(loss)
        ]
        total = sum(rows for _, rows in known)
        return sum(loss * rows for loss, rows in known) / total if total else None


@dataclass(frozen=True)
class LabelResult:
    """One label on the server's test split: its support, and precision, recall and F1 in [0, 1] at its threshold."""

    label: str
    support: int
    precision: float
    recall: float
    f1: float
    threshold: float | None


@dataclass(frozen=True)
class FinalResults:
    """The chosen model's results.

    Attributes:
        chosen_round: the round whose model was chosen on the server's validation split; 0 is the initial model.
        validation: at the model's own decision (threshold 0.5).
        test: the same on the test split.
        test_tuned: on the test split at the thresholds tuned on the validation split; None where no threshold applies.
        thresholds: by label, tuned on the validation split.
        labels: per label on the test split, at the tuned thresholds where there are some.
        clients: the test scores of each client's own rows, with the model that the client uses.
    """

    chosen_round: int
    validation: Scores | None = None
    test: Scores | None = None
    test_tuned: Scores | None = None
    thresholds: Mapping[str, float] = field(default_factory=dict)
    labels: tuple[LabelResult, ...] = ()
    clients: Mapping[int, Scores] = field(default_factory=dict)

    @property
    def mean_client_macro_f1(self) -> float | None:
        """The plain mean of the clients' test macro-F1."""
        values = [scores.macro_f1 for scores in self.clients.values()]
        return sum(values) / len(values) if values else None

    @property
    def worst_client(self) -> int | None:
        """The client with the lowest test macro-F1."""
        return min(self.clients, key=lambda k: (self.clients[k].macro_f1, k)) if self.clients else None


def _no_indexes() -> Array:
    return np.zeros(0, dtype=np.int64)


def _no_preferences() -> Array:
    return np.zeros((0, 2), dtype=np.float64)


@dataclass(frozen=True, eq=False)
class PackedRounds(Sequence[RoundRecord]):
    """Rounds as a server keeps them: a hundredth of the memory, unpacked when they are looked at. Equal to a tuple of the same rounds.

    A number that is not finite comes back as results.json tells it: NaN, or None where that is allowed.

    Attributes:
        texts: one JSON object per round.
        indexes: int64 [n], ascending.
        preferences: float64 [n, 2], what the best round maximises, see `preference`; NaN where no validation was scored.
    """

    texts: PackedTexts = field(default_factory=PackedTexts)
    indexes: Array = field(default_factory=_no_indexes)
    preferences: Array = field(default_factory=_no_preferences)

    @staticmethod
    def of(rounds: Iterable[RoundRecord]) -> PackedRounds:
        """Rounds in order, packed."""
        packed = PackedRounds()
        for record in rounds:
            packed = packed.with_round(record)
        return packed

    def __len__(self) -> int:
        return len(self.indexes)

    @overload
    def __getitem__(self, index: int) -> RoundRecord: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[RoundRecord, ...]: ...

    def __getitem__(self, index: int | slice) -> RoundRecord | tuple[RoundRecord, ...]:
        if isinstance(index, slice):
            return tuple(self[i] for i in range(*index.indices(len(self))))
        return typed(RoundRecord, json.loads(self.texts[index]), "round")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, (tuple, PackedRounds)) and tuple(self) == tuple(other)

    __hash__ = None  # type: ignore[assignment]

    def with_round(self, record: RoundRecord) -> PackedRounds:
        """The rounds before this one, and this one."""
        kept = int(np.searchsorted(self.indexes, record.round_index))
        texts = self.texts if kept == len(self) else self.texts.first(kept)
        value = (math.nan, math.nan) if record.validation is None else preference(record.validation, record.validation_tuned, 0)[:2]
        return PackedRounds(
            texts.with_text(json.dumps(plain(record), allow_nan=False, ensure_ascii=False)),
            np.append(self.indexes[:kept], record.round_index),
            np.concatenate([self.preferences[:kept], [value]]),
        )

    def best_index(self, until: int | None = None) -> int | None:
        """Where in this sequence the best round up to a round stands: of equals the earliest; without scores the last."""
        count = len(self) if until is None else int(np.searchsorted(self.indexes, until, side="right"))
        scored = [i for i in range(count) if not np.isnan(self.preferences[i, 0])]
        if not scored:
            return count - 1 if count else None
        return max(scored, key=lambda i: (*self.preferences[i].tolist(), -i))


@dataclass(frozen=True)
class RunHistory:
    """A run so far: its rounds in order, and the final results once it has ended.

    Attributes:
        label_names: the C labels in the order of the model's outputs.
        rounds: in order, each round once.
        final: None until the run has ended.
        status: "running" (also what a killed run leaves), "finished" or "failed".
        reason: why it failed.
    """

    label_names: tuple[str, ...] = ()
    rounds: tuple[RoundRecord, ...] | PackedRounds = ()
    final: FinalResults | None = None
    status: str = "running"
    reason: str = ""

    def with_round(self, record: RoundRecord) -> RunHistory:
        """The history with one more round; a round that is recorded again (after a resume) replaces what followed."""
        if isinstance(self.rounds, PackedRounds):
            return replace(self, rounds=self.rounds.with_round(record))
        kept = tuple(old for old in self.rounds if old.round_index < record.round_index)
        return replace(self, rounds=(*kept, record))

    def packed(self) -> RunHistory:
        """The same with its rounds packed."""
        return self if isinstance(self.rounds, PackedRounds) else replace(self, rounds=PackedRounds.of(self.rounds))

    @property
    def best(self) -> RoundRecord | None:
        """The round with the highest validation macro-F1; of equals the lowest validation loss, then the earliest. The last round
        where no validation was scored.
        """
        at = self._best_at(None)
        return None if at is None else self.rounds[at]

    def best_round(self, until: int | None = None) -> int | None:
        """The number of the best of the rounds up to this one; None if there are none."""
        at = self._best_at(until)
        if at is None:
            return None
        return int(self.rounds.indexes[at]) if isinstance(self.rounds, PackedRounds) else self.rounds[at].round_index

    def _best_at(self, until: int | None) -> int | None:
        if isinstance(self.rounds, PackedRounds):
            return self.rounds.best_index(until)
        count = sum(until is None or record.round_index <= until for record in self.rounds)
        scored = [i for i in range(count) if self.rounds[i].validation is not None]
        if not scored:
            return count - 1 if count else None
        return max(scored, key=lambda i: preference(self.rounds[i].validation, self.rounds[i].validation_tuned, i))


def preference(validation: Scores | None, tuned: Scores | None, round_index: int) -> tuple[float, float, int]:
    """What the chosen round maximises.

    Macro-F1 at tuned thresholds where there are some: at 0.5 it prefers overconfident, overfitted rounds. The loss decides
    between equals, e.g. while no probability has passed 0.5.
    """
    if validation is None:
        return -1.0, -math.inf, -round_index
    return (tuned or validation).macro_f1, -math.inf if validation.loss is None else -validation.loss, -round_index
