"""What is read of a run's results.json and config.yaml: once for each time that they change, however many ask."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from threading import RLock
from typing import Any

import yaml

RESULTS = "results.json"
_CONFIG, _VERSIONS = "config.yaml", "versions.json"
_BODIES = 16
_LARGE_BYTES = 4 << 20
_OWN_KEYS = ("status", "reason", "best_round")  # of results.json, that a run's standing says anew


@dataclass(frozen=True)
class _Kept:
    """What was made of files, with the signs by which a change is seen."""

    signs: Any
    value: Any


@dataclass
class Results:
    """Reads files of runs' folders, and keeps what was made of them until they change."""

    _digests: dict[Path, _Kept] = field(default_factory=dict, init=False)
    _settings: dict[Path, _Kept] = field(default_factory=dict, init=False)
    _bodies: dict[tuple[Path, str], _Kept] = field(default_factory=dict, init=False)
    _newest: tuple[Path, _Kept] | None = field(default=None, init=False)
    _lock: RLock = field(default_factory=RLock, init=False)  # so that many who ask at once do not all read

    def _results(self, folder: Path) -> dict[str, Any]:
        """results.json; the one that was asked for last stays in memory, unless it is large."""
        signs = _signs(folder / RESULTS)
        if self._newest is not None and self._newest[0] == folder and self._newest[1].signs == signs:
            value: dict[str, Any] = self._newest[1].value
            return value
        self._newest = None
        results = _read(folder / RESULTS)
        if signs is not None and signs[2] < _LARGE_BYTES:
            self._newest = folder, _Kept(signs, results)
        return results

    def digest(self, folder: Path) -> dict[str, Any]:
        """What a list of runs needs."""
        signs = _signs(folder / RESULTS), _signs(folder / _CONFIG)
        kept = self._digests.get(folder)
        if kept is None or kept.signs != signs:
            with self._lock:
                config = _read(folder / _CONFIG)
                kept = _Kept(signs, _made(lambda results: _digest(results, config), self._results(folder)))
                self._digests[folder] = kept
        value: dict[str, Any] = kept.value
        return value

    def settings(self, folder: Path) -> bytes:
        """The configuration and the versions, as a JSON object."""
        signs = _signs(folder / _CONFIG), _signs(folder / _VERSIONS)
        kept = self._settings.get(folder)
        if kept is None or kept.signs != signs:
            settings = {"config": _read(folder / _CONFIG), "versions": _read(folder / _VERSIONS)}
            kept = self._settings[folder] = _Kept(signs, json.dumps(settings, separators=(",", ":"), default=str).encode())
        value: bytes = kept.value
        return value

    def body(self, folder: Path, name: str, make: Callable[[dict[str, Any]], dict[str, Any]]) -> bytes:
        """A JSON object made of results.json, kept under a name."""
        signs = _signs(folder / RESULTS)
        kept = self._bodies.get((folder, name))
        if kept is None or kept.signs != signs:
            with self._lock:
                kept = self._bodies.pop((folder, name), None)
                if kept is None or kept.signs != signs:
                    kept = _Kept(signs, json.dumps(_made(make, self._results(folder)), separators=(",", ":")).encode())
                self._bodies[(folder, name)] = kept
                while len(self._bodies) > _BODIES:
                    del self._bodies[next(iter(self._bodies))]
        value: bytes = kept.value
        return value


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


def without_standing(results: dict[str, Any]) -> dict[str, Any]:
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
    for status in ("failed", "rejected"):
        numbers[status] = Counter(c.get("code") or "unknown" for r in rounds for c in r["clients"] if c["status"] == status)
    numbers["marked"] = Counter(code for r in rounds for c in r["clients"] for code in c.get("remarks") or {})
    return {name: {key: float(v) for key, v in values.items() if v is not None} for name, values in numbers.items()}


def _target(node: Any) -> str:
    """The class that a part of the configuration names, without its module."""
    return str(node.get("_target_", "")).rpartition(".")[2] if isinstance(node, dict) else ""


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) else None


def _macro_f1(scores: Any) -> float | None:
    value = scores.get("macro_f1") if isinstance(scores, dict) else None
    return float(value) if isinstance(value, (int, float)) else None
