"""Fuzzing of every parser of outside bytes: `python -m benchmarks.fuzz --target update --minutes 10`; all targets without --target.

Each target runs in a process of its own, at the lowest priority, for the given minutes (see `benchmarks.fuzzing.contract` for what it
is held to and `benchmarks.fuzzing.child` for how inputs are made). Figures go into benchmarks/results/fuzz.json, target by target; an
input that breaks a promise is written to <keep>/<target>/findings and ends the command with status 1. A mended one belongs into
tests/fuzz_seeds/<target>/, which tests/property/test_fuzz_regressions.py replays.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.fuzzing.contract import MEMORY_BYTES, SECONDS
from benchmarks.fuzzing.targets import TARGETS
from benchmarks.harness import RESULTS
from fedmap.files import write_json
from fedmap.versions import machine, versions

_PATIENCE = 900.0  # seconds beyond its time for a process to get ready and to end, on a busy machine
_NICE = 19
_MOST_STARTS, _LEAST_SECONDS = 20, 20.0
_NOTHING = {"executions": 0, "seconds": 0.0, "processor_seconds": 0.0, "slowest_seconds": 0.0, "starts": 0, "edges": 0, "inputs": 0}
_LOG_BYTES = 1 << 20
_COVERAGE = re.compile(r"cov: (\d+) ft: \d+ corp: (\d+)")


def fuzz(name: str, minutes: float, keep: Path) -> dict[str, Any]:
    """Run one target; returns its figures.

    Args:
        name: of the target.
        minutes: of the wall clock, from the first input. A process that ends before its time (because of a crash of the interpreter, or a hang) is
            started again on what its predecessor had found.
        keep: where its inputs and figures go; what lies there already is used and counted.
    """
    folder = keep / name
    total = {**_NOTHING, **_read(folder / "total.json")}
    once = False
    for _ in range(_MOST_STARTS):
        left = 60 * minutes - total["seconds"]
        if once and left < _LEAST_SECONDS:
            break
        once = True
        output = _run(name, max(left, _LEAST_SECONDS), folder)
        progress = {**_NOTHING, **_read(folder / "progress.json")}
        for key in ("executions", "seconds", "processor_seconds"):
            total[key] += progress[key]
        total["slowest_seconds"] = max(total["slowest_seconds"], progress["slowest_seconds"])
        total["starts"] += 1
        for found in _COVERAGE.finditer(output):
            total["edges"], total["inputs"] = max(total["edges"], int(found[1])), max(total["inputs"], int(found[2]))
        (folder / "total.json").write_text(json.dumps(total))
        shutil.rmtree(folder / "work", ignore_errors=True)
    findings = [json.loads(path.read_text()) for path in sorted((folder / "findings").glob("*.json"))]
    ended = sorted(
        path.name for path in (folder / "ended").iterdir() if not path.name.startswith("slow-unit")
    )  # on the wall, not by itself
    return {
        "what": TARGETS[name][2],
        "executions": total["executions"],
        "seconds": round(total["seconds"], 1),
        "processor_seconds": round(total["processor_seconds"], 1),
        "slowest_input_seconds": round(total["slowest_seconds"], 3),
        "edges_covered": total["edges"],
        "inputs_kept": total["inputs"],
        "process_starts": total["starts"],
        "findings": [f"{finding['kind']} {finding['place']}" for finding in findings],
        "crashes_and_hangs": ended,
    }


def _run(name: str, seconds: float, folder: Path) -> str:
    command = [sys.executable, "-m", "benchmarks.fuzzing.child", name, f"{seconds:.0f}", str(folder)]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "progress.json").unlink(missing_ok=True)
    with tempfile.TemporaryFile() as log:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "FLWR_TELEMETRY_ENABLED": "0"}
        child = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, child.pid, _NICE)
        try:
            child.wait(seconds + _PATIENCE)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
            (folder / "ended").mkdir(exist_ok=True)
            (folder / "ended" / "did-not-end").touch()
        log.seek(max(0, log.seek(0, os.SEEK_END) - _LOG_BYTES))
        output = log.read().decode(errors="replace")
    if child.returncode:
        (folder / f"log-{int(time.time())}.txt").write_text(output[-20_000:])
    return output


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError):
        return {}


def table(targets: Mapping[str, Mapping[str, Any]]) -> str:
    """The figures as a Markdown table."""
    rows = [
        "| target | reads | inputs | minutes | processor minutes | edges reached | slowest input, s | findings |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, found in targets.items():
        broken = len(found["findings"]) + len(found["crashes_and_hangs"])
        rows.append(
            f"| {name} | {found['what']} | {found['executions']:,} | {found['seconds'] / 60:.1f} | {found['processor_seconds'] / 60:.1f} | {found['edges_covered']:,} "
            f"| {found['slowest_input_seconds']:.2f} | {broken} |"
        )
    return "\n".join(rows)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuzz", description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--target", action="append", choices=list(TARGETS), help="one of the targets; may be repeated; default: all")
    parser.add_argument("--minutes", type=float, default=10.0, help="wall clock for each target")
    parser.add_argument("--jobs", type=int, default=2, help="targets at a time")
    parser.add_argument("--keep", type=Path, help="folder for inputs and findings, used again if it exists; default: a temporary one")
    parser.add_argument("--out", type=Path, default=RESULTS / "fuzz.json")
    given = parser.parse_args()
    try:
        import atheris  # noqa: F401, the processes need it
    except ImportError:
        sys.exit("fuzzing needs Atheris: pip install --no-deps atheris==3.0.0")
    keep = given.keep or Path(tempfile.mkdtemp(prefix="fedmap-fuzz-"))
    names = given.target or list(TARGETS)
    with ThreadPoolExecutor(given.jobs) as pool:
        found = dict(zip(names, pool.map(lambda name: fuzz(name, given.minutes, keep.resolve()), names), strict=True))
    known = json.loads(given.out.read_text())["targets"] if given.out.is_file() else {}
    targets = {name: {**known, **found}[name] for name in TARGETS if name in {**known, **found}}
    write_json(
        given.out,
        {
            "name": "fuzz",
            "description": "inputs that parsers of outside bytes were given, and the promises that they broke",
            "settings": {"seconds_per_input": SECONDS, "memory_bytes": MEMORY_BYTES, "nice": _NICE},
            "versions": {**versions(), "atheris": version("atheris")},
            "machine": machine(),
            "targets": targets,
        },
    )
    print(table(targets))
    broken = {
        name: [*one["findings"], *one["crashes_and_hangs"]] for name, one in found.items() if one["findings"] or one["crashes_and_hangs"]
    }
    for name, promises in broken.items():
        print(f"{name}: {len(promises)} broken promises, see {keep / name}:", *promises, sep="\n  ")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
