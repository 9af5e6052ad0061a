"""The student in a file (safetensors, whatever the name's ending): parameters, normalisation, version, and the rounds it learnt from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fedmap.aggregators.modality_aware.student import Lesson, Student
from fedmap.checkpoint import load_state, save_state
from fedmap.errors import CheckpointError, ConfigError

VERSION = 1


@dataclass(frozen=True)
class StoredStudent:
    """What the file holds."""

    version: int
    student: Student
    lessons: tuple[Lesson, ...] = ()


def save_student(path: Path, student: Student, lessons: tuple[Lesson, ...]) -> None:
    """Write the student atomically: after a crash the file holds the old one or the new one."""
    save_state(path, StoredStudent(VERSION, student, lessons))


def load_student(path: Path, input_dim: int, hidden_dim: int) -> StoredStudent | None:
    """The student in the file, to be trained on; None if there is no file yet.

    Raises:
        ConfigError: the file is damaged, of another version, or its student has another shape than configured.
    """
    if not path.exists():
        return None
    advice = "delete the file or choose another aggregator_path"
    try:
        stored = load_state(path, StoredStudent)
    except CheckpointError as error:
        raise ConfigError(f"aggregator_path={path}: {error}; {advice}") from error
    if stored.version != VERSION:
        raise ConfigError(f"aggregator_path={path}: the student is of version {stored.version}, expected {VERSION}; {advice}")
    if not stored.student.is_sound:
        raise ConfigError(f"aggregator_path={path}: the student's arrays do not fit one another; {advice}")
    if stored.student.shape != (input_dim, hidden_dim):
        inputs, hidden = stored.student.shape
        raise ConfigError(
            f"aggregator_path={path}: the student has input_dim={inputs} and hidden_dim={hidden}, configured are input_dim={input_dim} and "
            f"hidden_dim={hidden_dim}; {advice}"
        )
    return stored
