"""One target in a process of its own: `python -m benchmarks.fuzzing.child <target> <seconds> <folder>`.

libFuzzer (through Atheris) makes the inputs, led by which lines of the project and of the parsers below it they reach. A finding
does not end the run: it is written to <folder>/findings, one file for each kind and place, and the next input follows. What ends
the process (a crash of the interpreter, an input that hangs for a minute) leaves its input in <folder>/ended.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import sys
import time
from pathlib import Path

import atheris

HANG_SECONDS = 60  # wall clock, on a machine that others use
LARGEST_BYTES = 1 << 19
SEED_SECONDS = 0.2  # a seed that takes longer is run once, and not changed
_SAVE_SECONDS = 5.0
_INSTRUMENTED = ["fedmap", "models", "flwr.app.message", "flwr.supercore.inflatable", "flwr.common.serde", "PIL", "zipfile", "csv", "json"]
_INSTRUMENTED += ["h11", "starlette", "multipart", "python_multipart", "safetensors", "requests", "urllib3", "http", "email"]


def main(name: str, seconds: float, folder: Path) -> None:
    """Run until the time is over."""
    for part in ("corpus", "findings", "ended", "work"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    with atheris.instrument_imports(include=_INSTRUMENTED, enable_loader_override=False):
        from benchmarks.fuzzing.contract import Watch, check, limit_memory
        from benchmarks.fuzzing.targets import make_target

        target = make_target(name, folder / "work")
        watch = Watch()
        seeds = target.seeds()
        for seed in seeds:  # what is imported late is there before limits are set
            _, taken = check(target, seed, folder / "work", watch)
            if taken < SEED_SECONDS:
                (folder / "corpus" / hashlib.sha256(seed).hexdigest()[:16]).write_bytes(seed)
    limit_memory()
    done, slowest, saved = 0, 0.0, 0.0
    began, began_processor = time.monotonic(), time.process_time()
    places: set[str] = set()

    def progress() -> None:
        seconds, processor = time.monotonic() - began, time.process_time() - began_processor
        record = {"executions": done, "slowest_seconds": slowest, "seconds": seconds, "processor_seconds": processor}
        (folder / "progress.json").write_text(json.dumps(record))

    def run(data: bytes) -> None:
        nonlocal done, slowest, saved
        found, taken = check(target, data, folder / "work", watch)
        done, slowest = done + 1, max(slowest, taken)
        for finding in found:
            place = f"{finding.kind} {finding.place}"
            if place not in places:
                places.add(place)
                stem = hashlib.sha256(place.encode()).hexdigest()[:12]
                (folder / "findings" / f"{stem}.input").write_bytes(data)
                record = {"kind": finding.kind, "place": finding.place, "details": finding.details}
                (folder / "findings" / f"{stem}.json").write_text(json.dumps(record, indent=1))
        if time.monotonic() - saved > _SAVE_SECONDS:
            saved = time.monotonic()
            progress()

    for seed in seeds:
        run(seed)
    atexit.register(progress)
    options = [
        f"-max_total_time={int(seconds)}",
        f"-timeout={HANG_SECONDS}",
        f"-artifact_prefix={folder / 'ended'}/",
        f"-max_len={LARGEST_BYTES}",
        "-rss_limit_mb=0",  # the limit is the process's own, set above
        "-len_control=20",
        f"-report_slow_units={HANG_SECONDS}",
        "-print_final_stats=1",
        "-use_value_profile=1",
    ]
    atheris.Setup([sys.argv[0], *options, str(folder / "corpus")], run)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), Path(sys.argv[3]).resolve())
