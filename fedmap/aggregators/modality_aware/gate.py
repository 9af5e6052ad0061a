"""Who leads a round: the teacher's search, or the student that learnt from it. Decisions come with their reasons."""

from __future__ import annotations

from dataclasses import dataclass, replace

from fedmap.aggregators.modality_aware.objective import Verdict


@dataclass(frozen=True)
class Gate:
    """Whether the student leads, and its record.

    Attributes:
        leads: whether the student chooses the weights of the next round.
        matches: rounds in a row in which the student, trained on the rounds before, did as well as the teacher.
        led: rounds that it has led since the teacher last looked.
    """

    leads: bool = False
    matches: int = 0
    led: int = 0


def after_teacher(
    gate: Gate,
    student: Verdict | None,
    teacher: Verdict,
    sized: Verdict,
    *,
    decisive: bool,
    outdone: bool,
    tolerance: float,
    patience: int,
) -> tuple[Gate, str]:
    """The gate after a round that the teacher searched; the round was held out from the student's training.

    A round in which the teacher fell back on the mix by examples proves nothing: there a student that knows nothing ties.

    Args:
        gate: before the round.
        student: how the student's mix did; None if there was none yet.
        teacher: how the teacher's did.
        sized: how the mix by examples did.
        decisive: whether the teacher's mix differs from the one by examples.
        outdone: whether the teacher's mix is clearly better than the student's, however close their scores are.
        tolerance: how far below the teacher's score still counts as matched.
        patience: matched rounds in a row after which the student leads.
    """
    if student is None:
        return Gate(), ""
    if not decisive:
        return replace(gate, led=0), ""
    if outdone or student.score < max(teacher.score - tolerance, sized.score):
        why = f"the student scored {student.score:.3f}, the teacher {teacher.score:.3f}"
        return Gate(), f"the teacher is back: {why}" if gate.leads else ""
    matches = gate.matches + 1
    if gate.leads or matches < patience:
        return Gate(gate.leads, matches, 0), ""
    return Gate(True, matches, 0), f"the student leads from the next round on: it matched the teacher in {matches} held-out rounds in a row"


def after_student(gate: Gate, student: Verdict, sized: Verdict) -> tuple[Gate, str]:
    """The gate after looking at the student's mix in a round that it leads; if it no longer leads, the teacher searches at once."""
    if student.score < sized.score:
        why = f"the student scored {student.score:.3f}, the mean by examples {sized.score:.3f}"
        return Gate(), f"the teacher is back: {why}"
    return replace(gate, led=gate.led + 1), "the student chose the weights; the teacher's search was skipped"
