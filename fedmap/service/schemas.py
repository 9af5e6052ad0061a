"""What the server's front answers."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Status = Literal["waiting", "running", "finished", "failed", "interrupted"]


class Problem(BaseModel):
    """An error: what is wrong, what was expected and how to mend it."""

    detail: str


class Health(BaseModel):
    """That the front is there."""

    status: Literal["alive", "ready"]


class RunSummary(BaseModel):
    """A run in the list of runs."""

    id: str = Field(description="the run's folder below outputs/, with ~ for /", examples=["2026-11-21~10-00-00"])
    status: Status
    current: bool = Field(description="whether this server runs it")
    strategy: str
    model: str
    dataset: str
    started: float | None = Field(description="unix seconds")
    rounds_done: int
    num_rounds: int
    best_round: int | None
    validation_macro_f1: float | None = Field(description="of the best round, at tuned thresholds where there are some")
    test_macro_f1: float | None = Field(description="of the chosen model, or of the best round so far")


class Standing(RunSummary):
    """How far a run is."""

    round: int = Field(description="that runs or has ended last")
    phase: Literal["waiting", "training", "evaluating", "finishing", "ended"]
    joined: list[int] = Field(description="clients that had joined before the first round")
    expected: int = Field(description="clients that were waited for; 0 while unknown")
    waiting_for: list[int] = Field(description="clients of this round that have not answered")
    seconds_left: float | None = Field(description="until the last round will have ended, from the rounds so far")
    notice: str = Field(description="the newest sentence for people")
    reason: str = Field(description="why the run failed")
    last_event: float | None = Field(description="unix seconds")
    lines: int = Field(description="lines of events.jsonl that are in this answer; the later ones follow from /events?after=lines")


class Run(Standing):
    """results.json (see `fedmap/outputs.py`) with how far the run is."""

    model_config = ConfigDict(extra="allow")

    label_names: list[str]
    rounds: list[dict[str, Any]]
    final: dict[str, Any] | None
    config: dict[str, Any] = Field(description="with *** for secrets")
    versions: dict[str, Any]


class FileEntry(BaseModel):
    """A file that can be downloaded from /api/runs/{id}/files/{name}."""

    name: str
    bytes: int


class Rounds(BaseModel):
    """The rounds of the current run, as in results.json."""

    id: str
    label_names: list[str]
    rounds: list[dict[str, Any]]


class ClientStanding(BaseModel):
    """A client of the current run in the newest round that it was asked in, and its history in short."""

    client_id: int
    rounds: int = Field(description="how often it was asked")
    used: int = Field(description="how often its update was used")
    last_round: int
    status: Literal["ok", "failed", "rejected"]
    code: str = Field(description="why, as a word of fedmap.reasons; empty where it is ok")
    reason: str
    remarks: dict[str, str] = Field(description="by code, what was found of an update that was used all the same")
    weight: float | None
    num_examples: int | None
    signals: dict[str, Any]


class Clients(BaseModel):
    """The clients of the current run."""

    id: str
    waiting_for: list[int]
    clients: list[ClientStanding]
