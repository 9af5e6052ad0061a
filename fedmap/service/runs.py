"""The folders of runs, read safely: a name from outside never leads out of the folder of outputs."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

import yaml

from fedmap.files import plain
from fedmap.service.feed import Feed

EVENTS = "events.jsonl"
_RESULTS = "results.json"
_FILES = (_RESULTS, "results.csv", "clients.csv", "config.yaml", "versions.json", "report.md", "report.html")
_FOLDERS = ("plots", "best", "last")
MODELS = ("best", "last")
_KEPT_BODIES = 16
_OWN_KEYS = ("status", "reason", "best_round")  # of results.json, that a run's standing says anew


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
    _digests: dict[Path, _Kept] = field(default_factory=dict, init=False)
    _bodies: dict[tuple[Path, str], _Kept] = field(default_factory=dict, init=False)
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
                started = (folder / _RESULTS).stat().st_mtime
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

    def _digest(self, folder: Path) -> dict[str, Any]:
        """What a list of runs needs of results.json and config.yaml; read again only when one of them has changed."""
        signs = _signs(folder / _RESULTS), _signs(folder / "config.yaml")
        kept = self._digests.get(folder)
        if kept is None or kept.signs != signs:
            config = _read(folder / "config.yaml")
            kept = self._digests[folder] = _Kept(signs, _made(lambda results: _digest(results, config), _read(folder / _RESULTS)))
        value: dict[str, Any] = kept.value
        return value

    def body(self, folder: Path, name: str, make: Callable[[dict[str, Any]], dict[str, Any]]) -> bytes:
        """A JSON object made of results.json, kept under a name until that file changes."""
        signs = _signs(folder / _RESULTS)
        kept = self._bodies.get((folder, name))
        if kept is None or kept.signs != signs:
            text = json.dumps(_made(make, _read(folder / _RESULTS)), separators=(",", ":"))
            kept = _Kept(signs, text.encode())
            with self._lock:
                self._bodies[(folder, name)] = kept
                while len(self._bodies) > _KEPT_BODIES:
                    del self._bodies[next(iter(self._bodies))]
        value: bytes = kept.value
        return value

    def status(self, folder: Path) -> str:
        """waiting, running, finished, failed or interrupted."""
        state, digest = self.feed(folder).state, self._digest(folder)
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
        state, digest = self.feed(folder).state, self._digest(folder)
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
        newest: dict[str, dict[str, float]] = self._digest(folder)["newest"]
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
            "reason": state.reason or self._digest(folder)["reason"],
            "last_event": state.seen,
            "lines": lines,
        }

    def document(self, folder: Path) -> bytes:
        """results.json with how far the run is, its configuration and its versions, as JSON; see `fedmap.service.schemas.Run`."""
        extra = {**self.standing(folder), "config": _read(folder / "config.yaml"), "versions": _read(folder / "versions.json")}
        results = self.body(folder, "run", _without_standing)
        return json.dumps(plain(extra), separators=(",", ":"))[:-1].encode() + b"," + results[1:]

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
    return (folder / _RESULTS).is_file() or (folder / EVENTS).is_file()


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


@dataclass(frozen=True)
class _Kept:
    """What was made of a file, with the signs by which a change is seen."""

    signs: Any
    value: Any


def _signs(file: Path) -> tuple[int, int, int] | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def _read(file: Path) -> dict[str, Any]:
    """The mapping in a JSON or YAML file; {} where there is none or it is damaged."""
    try:
        text = file.read_text(encoding="utf-8")
        value = json.loads(text) if file.suffix == ".json" else yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _made(make: Callable[[dict[str, Any]], dict[str, Any]], results: dict[str, Any]) -> dict[str, Any]:
    """What is made of results.json; of an empty one where somebody has written something else into it."""
    try:
        return make(results)
    except (LookupError, TypeError, ValueError, AttributeError):
        return make({})


def _without_standing(results: dict[str, Any]) -> dict[str, Any]:
    if not all(isinstance(record["round_index"], int) and isinstance(record["clients"], list) for record in results.get("rounds", [])):
        raise ValueError("no rounds")
    return {"label_names": [], "rounds": [], "final": None} | {key: value for key, value in results.items() if key not in _OWN_KEYS}


def _digest(results: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    rounds = results.get("rounds") or []
    best: dict[str, Any] = next((r for r in rounds if r["round_index"] == results.get("best_round")), {})
    final = results.get("final") or {}
    server = config.get("server")
    return {
        "status": str(results.get("status", "")),
        "reason": str(results.get("reason", "")),
        "best_round": _whole(results.get("best_round")),
        "newest": _newest(rounds),
        "rounds_done": max((int(r["round_index"]) for r in rounds), default=0),
        "num_rounds": _whole(config.get("num_rounds")) or 0,
        "validation_macro_f1": _macro_f1(best.get("validation_tuned") or best.get("validation")),
        "test_macro_f1": _macro_f1(final.get("test_tuned") or final.get("test") or best.get("test")),
        "strategy": _target(server.get("strategy") if isinstance(server, dict) else None),
        "model": _target(config.get("model")),
        "dataset": _target(config.get("dataset")),
    }


def _newest(rounds: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    if not rounds:
        return {}
    record = rounds[-1]
    clients = {status: sum(c["status"] == status for c in record["clients"]) for status in ("ok", "failed", "rejected")}
    sent = {way: sum(c[f"bytes_{way}"] or 0 for r in rounds for c in r["clients"]) for way in ("up", "down")}
    numbers = {name: record[name] or {} for name in ("validation", "test", "seconds")} | {"clients": clients, "bytes": sent}
    return {name: {key: float(v) for key, v in values.items() if v is not None} for name, values in numbers.items()}


def _target(node: Any) -> str:
    """The class that a part of the configuration names, without its module."""
    return str(node.get("_target_", "")).rpartition(".")[2] if isinstance(node, dict) else ""


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) else None


def _macro_f1(scores: Any) -> float | None:
    value = scores.get("macro_f1") if isinstance(scores, dict) else None
    return float(value) if isinstance(value, (int, float)) else None
