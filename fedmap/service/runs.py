"""The folders of runs, read safely: a name from outside never leads out of the folder of outputs."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

from fedmap.files import plain
from fedmap.service.feed import Feed
from fedmap.service.results import RESULTS, Results, without_standing

EVENTS = "events.jsonl"
_FILES = (RESULTS, "results.csv", "clients.csv", "config.yaml", "versions.json", "report.md", "report.html")
_FOLDERS = ("plots", "best", "last")
MODELS = ("best", "last")


@dataclass
class Runs:
    """The runs below one folder.

    Attributes:
        outputs: the folder; runs lie up to `depth` levels below it, e.g. <date>/<time>.
        current: the folder of the run that this process serves; None where only past runs are shown.
        depth: how far down runs are looked for; 0 shows the current one alone.
    """

    outputs: Path
    current: Path | None = None
    depth: int = 3
    _feeds: dict[Path, Feed] = field(default_factory=dict, init=False)
    results: Results = field(default_factory=Results, init=False)
    _lock: Lock = field(default_factory=Lock, init=False)

    def __post_init__(self) -> None:
        self.outputs = self.outputs.resolve()
        self.current = None if self.current is None else self.current.resolve()

    def run_id(self, folder: Path) -> str:
        """A run's name in addresses: its path below the folder of outputs, with ~ for /."""
        return "~".join(folder.relative_to(self.outputs).parts)

    def folder(self, run_id: str) -> Path | None:
        """The folder of a run; None if there is no such run."""
        parts = run_id.split("~")
        if len(parts) > 3 or any(part in ("", ".", "..") or "/" in part or "\\" in part or "\0" in part for part in parts):
            return None
        folder = self.outputs.joinpath(*parts)
        try:
            if folder.resolve() == folder and (folder == self.current or (len(parts) <= self.depth and _is_run(folder))):
                return folder  # and no link led here
        except OSError:  # the name is too long, for instance
            return None
        return None

    def folders(self) -> list[Path]:
        """All runs, newest first."""
        found = set(_runs_below(self.outputs, self.depth))
        if self.current is not None:
            found.add(self.current)
        return sorted(found, key=lambda folder: (folder == self.current, self._began(folder), folder), reverse=True)

    def newest(self) -> Path | None:
        """The current run, or the newest of the past."""
        return self.current or next(iter(self.folders()), None)

    def _began(self, folder: Path) -> float:
        started = self.feed(folder).state.started
        if started is None:
            try:
                started = (folder / RESULTS).stat().st_mtime
            except OSError:
                started = 0.0
        return started

    def feed(self, folder: Path) -> Feed:
        """The events of a run, read up to now."""
        with self._lock:
            feed = self._feeds.setdefault(folder, Feed(folder / EVENTS))
        feed.refresh()
        return feed

    def watchers(self) -> int:
        """Open streams of events."""
        return sum(feed.watchers for feed in list(self._feeds.values()))

    @property
    def watched(self) -> bool:
        """Whether somebody follows a run's events."""
        return any(feed.watchers for feed in list(self._feeds.values()))

    def close(self) -> None:
        """End all streams of events. Called on the front's event loop."""
        for feed in list(self._feeds.values()):
            feed.close()

    def status(self, folder: Path) -> str:
        """waiting, running, finished, failed or interrupted."""
        state, digest = self.feed(folder).state, self.results.digest(folder)
        if state.ended:
            return state.ended
        if folder != self.current or state.started is None:
            if digest["status"] in ("finished", "failed"):
                return "interrupted" if digest["reason"] == "KeyboardInterrupt" else str(digest["status"])
            if folder != self.current and not state.alive(time.time()):
                return "interrupted"
        return "waiting" if state.phase == "waiting" else "running"

    def summary(self, folder: Path) -> dict[str, Any]:
        """A run in a list of runs; see `fedmap.service.schemas.RunSummary`."""
        state, digest = self.feed(folder).state, self.results.digest(folder)
        return {
            "id": self.run_id(folder),
            "status": self.status(folder),
            "current": folder == self.current,
            **{name: state.choices.get(name) or digest[name] for name in ("strategy", "model", "dataset")},
            "started": self._began(folder) or None,
            "num_rounds": state.num_rounds or digest["num_rounds"],
            **{name: digest[name] for name in ("rounds_done", "best_round", "validation_macro_f1", "test_macro_f1")},
        }

    def newest_round(self, folder: Path) -> dict[str, dict[str, float]]:
        """Numbers of the newest round: "validation", "test", "seconds", "clients" by status, and "bytes" of all rounds."""
        newest: dict[str, dict[str, float]] = self.results.digest(folder)["newest"]
        return newest

    def standing(self, folder: Path) -> dict[str, Any]:
        """How far a run is; see `fedmap.service.schemas.Standing`."""
        feed = self.feed(folder)
        lines, state = feed.count, feed.state  # the results are read later, so they hold at least what these lines say
        summary = self.summary(folder)
        over = summary["status"] in ("finished", "failed", "interrupted")
        return {
            **summary,
            "round": max(state.round_index, summary["rounds_done"]),
            "phase": "ended" if over else state.phase,
            "joined": list(state.joined),
            "expected": state.expected,
            "waiting_for": [] if over else list(state.waiting_for),
            "seconds_left": None if over else state.seconds_left(time.time()),
            "notice": state.notice,
            "reason": state.reason or self.results.digest(folder)["reason"],
            "last_event": state.seen,
            "lines": lines,
        }

    def document(self, folder: Path) -> bytes:
        """results.json with how far the run is, its configuration and its versions, as JSON; see `fedmap.service.schemas.Run`."""
        standing = json.dumps(plain(self.standing(folder)), separators=(",", ":")).encode()
        rest = (self.results.settings(folder), self.results.body(folder, "run", without_standing))
        return b",".join([standing[:-1], *(part[1:-1] for part in rest)]) + b"}"

    def files(self, folder: Path) -> list[tuple[str, int]]:
        """The files of a run that may be downloaded, with their sizes in bytes."""
        candidates = [folder / name for name in _FILES]
        for name in _FOLDERS:
            if not (folder / name).is_symlink():
                candidates += sorted(_listed(folder / name))
        found = []
        for path in candidates:
            try:
                if path.is_file() and not path.is_symlink():
                    found.append((path.relative_to(folder).as_posix(), path.stat().st_size))
            except OSError:  # replaced meanwhile
                continue
        return found

    def file(self, folder: Path, name: str) -> Path | None:
        """One of those files; None if there is no such one."""
        return folder / name if name in (known for known, _ in self.files(folder)) else None


def _listed(folder: Path) -> list[Path]:
    try:
        return [path for path in folder.iterdir() if not path.name.startswith(".")]
    except OSError:
        return []


def _is_run(folder: Path) -> bool:
    return (folder / RESULTS).is_file() or (folder / EVENTS).is_file()


def _runs_below(folder: Path, depth: int) -> Iterator[Path]:
    if depth == 0:
        return
    for path in _listed(folder):
        if "~" in path.name or path.is_symlink() or not path.is_dir():
            continue
        if _is_run(path):
            yield path
        else:
            yield from _runs_below(path, depth - 1)
