"""The ladder: what every update has to pass before it may touch the model. Each step has a code of `fedmap.reasons`.

As an answer comes in (`Ladder.admit`): its client, the round, names, shapes and types of numbers, finite numbers, the
strategy's numbers, num_examples, num_steps. When all are in (`Ladder.settle`), against the others and the rounds before: the
size of the change, replays, its direction. The size in bytes is checked before the bytes are read (`fedmap.guard.form`).
A signal that cannot be believed marks an update, and so does being scaled down; everything else refuses it.

Pure: what must survive a round is in `GuardState`. The order of arrival changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace

from fedmap.errors import UpdateError
from fedmap.guard import comparing
from fedmap.guard.form import Form, Kind, check_groups, check_kind, check_kinds
from fedmap.guard.measuring import Measured, digest_of, measure
from fedmap.guard.options import Defence
from fedmap.guard.signals import problems_of
from fedmap.guard.state import GuardState
from fedmap.reasons import Reason
from fedmap.records import Broadcast, ClientUpdate

_MOST_NAMES, _LONGEST_NAME = 256, 128  # of a client's own numbers


@dataclass(frozen=True)
class Refusal:
    """An update that is not used."""

    update: ClientUpdate
    code: str
    reason: str


@dataclass(frozen=True)
class Settled:
    """A round's updates after the last step.

    Attributes:
        updates: those that may be aggregated, in the order of their clients; some scaled down.
        refused: those that `settle` refused.
        remarks: by client and code, what was found of an update that is used all the same.
        state: for the next round, if these updates are aggregated.
    """

    updates: tuple[ClientUpdate, ...]
    refused: tuple[Refusal, ...]
    remarks: Mapping[int, Mapping[str, str]]
    state: GuardState


@dataclass
class Ladder:
    """One round's ladder.

    Attributes:
        defence: how strict it is.
        broadcast: what the clients were sent.
        form: what their answers have to look like.
        buffers: names of the arrays that are not trained.
        state: what is known from the rounds before.
        rows: by client, the training rows that it said it has when it joined; a client that is not in it may say anything.
    """

    defence: Defence
    broadcast: Broadcast
    form: Form
    buffers: Collection[str] = ()
    state: GuardState = field(default_factory=GuardState)
    rows: Mapping[int, int] = field(default_factory=dict)
    _updates: dict[int, ClientUpdate] = field(default_factory=dict, init=False)
    _measured: dict[int, dict[str, Measured]] = field(default_factory=dict, init=False)
    _remarks: dict[int, dict[str, str]] = field(default_factory=dict, init=False)

    def admit(self, update: ClientUpdate) -> None:
        """Check one update for itself, and keep it for `settle`.

        Raises:
            UpdateError: with the code of the step that it does not pass.
        """
        who, client_id = f"client {update.client_id}", update.client_id
        if client_id in self._updates:
            raise UpdateError(f"{who} has answered in round {self.broadcast.round_index} already; one answer counts", Reason.DUPLICATE)
        if update.round_index != self.broadcast.round_index:
            raise UpdateError(f"{who} answered round {update.round_index}, expected round {self.broadcast.round_index}", Reason.ROUND)
        check_groups(who, update.extras, self.form.extras)
        groups = {"": (who, update.weights), **{name: (f"{who}, {name}", arrays) for name, arrays in update.extras.items()}}
        for group, (whose, arrays) in groups.items():
            kinds = self.form.groups[group]
            check_kinds(whose, arrays, kinds)
            for name, kind in kinds.items():
                check_kind(whose, name, Kind.of(arrays[name]), kind)
        measured = {
            group: measure(whose, arrays, None if group else self.broadcast.weights, self.buffers)
            for group, (whose, arrays) in groups.items()
        }
        _check_names(who, update)
        self._check_scalars(who, update)
        self._check_examples(who, update)
        self._check_steps(who, update)
        if problems := list(problems_of(update)):
            self._remarks.setdefault(client_id, {})[Reason.SIGNAL] = "; ".join(problems)
        self._updates[client_id], self._measured[client_id] = update, measured

    def settle(self, keep: Callable[[ClientUpdate], ClientUpdate] = lambda update: update) -> Settled:
        """Compare the updates that were admitted with one another and with those of the rounds before.

        Args:
            keep: puts away what has been scaled down, one after the other, and returns it.
        """
        left = {client_id: self._updates[client_id] for client_id in sorted(self._updates)}
        refused: list[Refusal] = []
        remarks = {client_id: dict(own) for client_id, own in self._remarks.items()}

        def refuse(found: Iterable[tuple[int, str]], code: Reason) -> None:
            for client_id, sentence in list(found):  # all are found before any is taken out
                refused.append(Refusal(left.pop(client_id), code, sentence))
                remarks.pop(client_id, None)

        norms = {client_id: self._norms(client_id) for client_id in left}
        usual = comparing.reference_norms(norms.values(), self.state.norms)
        large = comparing.too_large(norms, usual, self.broadcast.weights, self.defence)
        refuse(((k, found.sentence) for k, found in large.items() if found.refused), Reason.NORM)
        received = digest_of(self.broadcast.weights)
        changed = {k: self._measured[k][""].digest for k in left if not self._measured[k][""].unchanged}
        if self.defence.replay == "reject":
            refuse(comparing.replays(changed, left, received, self.state, own_start=self.form.own_start), Reason.REPLAY)
        standing: dict[int, float] = {}
        if self.defence.direction == "reject" and not self.form.own_start:
            parameters = [name for name in self.form.weights if name not in self.buffers]
            lengths = [norms[client_id][""] for client_id in left]
            standing = comparing.directions(left, self.broadcast.weights, parameters, self.state.directions, lengths)
            refuse(comparing.against_the_others(standing, self.defence.direction_limit), Reason.DIRECTION)
        for client_id, found in large.items():
            if client_id in left:
                left[client_id] = keep(comparing.scaled(left[client_id], found.scales, self.broadcast.weights, self.buffers))
                remarks.setdefault(client_id, {})[Reason.NORM] = found.sentence
        state = self.state.after(
            self.broadcast.round_index,
            received,
            {client_id: changed[client_id] for client_id in left if client_id in changed},
            comparing.usual_norms(norms[client_id] for client_id in left),
            {client_id: self.rows.get(client_id, update.num_examples) for client_id, update in left.items()},
            standing,
        )
        return Settled(tuple(left.values()), tuple(refused), {k: own for k, own in remarks.items() if own}, state)

    def _norms(self, client_id: int) -> dict[str, float]:
        measured = self._measured[client_id]
        norms = {"": measured[""].norm, "buffers": measured[""].buffer_norm}
        return norms | {f"extra.{group}": found.norm for group, found in measured.items() if group}

    def _check_scalars(self, who: str, update: ClientUpdate) -> None:
        for name, value in update.scalars.items():
            if not math.isfinite(value):
                raise UpdateError(f"{who}: scalar {name!r} is {value}", Reason.FINITE)
        for name, (least, most) in self.form.scalars.items():
            if name not in update.scalars:
                raise UpdateError(
                    f"{who} did not send the number {name!r}, which its weight is made of; let the clients train by the rule that the "
                    "broadcast names, and keep its scalars in an after_round hook",
                    Reason.SCALAR,
                )
            if not least <= update.scalars[name] <= most:
                raise UpdateError(f"{who}: {name}={update.scalars[name]:g} is outside [{least:g}, {most:g}]", Reason.SCALAR)

    def _check_examples(self, who: str, update: ClientUpdate) -> None:
        examples, has = update.num_examples, self.rows.get(update.client_id)
        if examples > self.defence.max_examples:
            raise UpdateError(
                f"{who} says that it trained on {examples} rows, expected at most defence.max_examples={self.defence.max_examples}",
                Reason.EXAMPLES,
            )
        if has is not None and examples > has:
            raise UpdateError(f"{who} says that it trained on {examples} rows, and it joined with {has}", Reason.EXAMPLES)
        first = self.state.rows.get(update.client_id)
        if first is not None and examples > self.defence.examples_growth * first:
            raise UpdateError(
                f"{who} says that it trained on {examples} rows, and it had {first} at first; expected at most "
                f"{self.defence.examples_growth:g} times as many (defence.examples_growth)",
                Reason.EXAMPLES,
            )

    def _check_steps(self, who: str, update: ClientUpdate) -> None:
        most = self.defence.max_passes * update.num_examples
        if update.num_steps > most:
            raise UpdateError(
                f"{who} says that it took {update.num_steps} steps on {update.num_examples} rows, expected at most "
                f"{self.defence.max_passes:g} a row (defence.max_passes)",
                Reason.STEPS,
            )


def _check_names(who: str, update: ClientUpdate) -> None:
    """Whatever a client names becomes a column of tables and a line of pages."""
    named = (update.scalars, update.seconds, update.counts, update.signals.custom, update.signals.modality_shares)
    names = [name for values in named for name in values]
    longest = max(map(len, names), default=0)
    if len(names) > _MOST_NAMES or longest > _LONGEST_NAME:
        raise UpdateError(
            f"{who} sent {len(names)} named numbers, the longest name having {longest} letters; expected at most {_MOST_NAMES} with "
            f"{_LONGEST_NAME} letters",
            Reason.SIZE,
        )


def climb(ladder: Ladder, updates: Iterable[ClientUpdate]) -> Settled:
    """All steps for updates that are all there; the refusals are in the order of the steps."""
    early = []
    for update in updates:
        try:
            ladder.admit(update)
        except UpdateError as error:
            early.append(Refusal(update, error.code, str(error)))
    settled = ladder.settle()
    return replace(settled, refused=(*early, *settled.refused))
