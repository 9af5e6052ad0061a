"""The demonstration behind `make demo`: made-up movies, five clients, a federated run, and what it is compared with."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from fedmap.baselines import Arena, compare
from fedmap.config import PROJECT, compose_and_resolve, parse
from fedmap.data.prepare import describe, prepare
from fedmap.errors import FederationError
from fedmap.history import FinalResults
from fedmap.outputs import read_history
from fedmap.progress import duration
from fedmap.report import print_comparison
from fedmap.report.folder import shown

SETTINGS = ("model=minilm_resnet18", "dataset.image_size=32", "num_rounds=12")
GAIN = 0.15  # how far the federated model must be above an untrained one and above the most frequent genres
LOSS = 0.05  # how far it may be below the same model trained centrally


def run(folder: Path, settings: tuple[str, ...] = SETTINGS, num_movies: int = 2000, seed: int = 42) -> int:
    """Run the demonstration in a folder and return the exit status: 0 if the federated model is as good as it must be.

    Raises:
        FederationError: a step could not be done.
    """
    started = time.monotonic()
    say("1/3 generating movies with plots, posters and genres, and dealing them to five clients and the server")
    data = folder / "data"
    print(describe(prepare(root=str(data), source="synthetic", num_movies=num_movies, seed=seed)))
    where = [f"dataset.root={data.resolve()}", f"random_seed={seed}"]
    say("2/3 federated training: python server_main.py runtime=local " + " ".join(settings))
    output = folder / "runs" / time.strftime("%Y-%m-%d_%H-%M-%S")
    command = [sys.executable, str(PROJECT / "server_main.py"), "runtime=local", *settings, *where, f"hydra.run.dir={output.resolve()}"]
    status = subprocess.run(command, cwd=PROJECT, check=False).returncode
    if status != 0:
        raise FederationError(f"server_main.py ended with status {status}; its messages are above")
    federated = read_history(output).final
    if federated is None:
        raise FederationError(f"{output} has no final results")
    say("3/3 what it is compared with")
    arena = Arena.of(parse(compose_and_resolve("config", [*settings, *where, "runtime=local", "tracking=none"])))
    results = {"federated": federated} | compare(arena, say)
    print_comparison(list(results.items()), "On the server's test split, which chose nothing")
    for name, part in (("model", "best"), ("plots", "plots"), ("report", "report.html"), ("results", "results.json")):
        print(f"{name + ':':9}{shown(output / part)}")
    failures = shortfalls(results)
    for failure in failures:
        print(f"NOT AS GOOD AS IT MUST BE: {failure}")
    say(f"the demonstration took {duration(time.monotonic() - started)}")
    return 1 if failures else 0


def shortfalls(results: Mapping[str, FinalResults], gain: float = GAIN, loss: float = LOSS) -> list[str]:
    """What the federated model fails to reach, judged by macro-F1 on the test split at thresholds tuned on validation.

    Args:
        results: with the keys "federated", "central", "untrained" and "most frequent".
        gain: how far it must be above the untrained model and the most frequent genres.
        loss: how far it may be below the centrally trained model.
    """

    def macro(name: str) -> float:
        scores = results[name].test_tuned or results[name].test
        return scores.macro_f1 if scores else 0.0

    ours = macro("federated")
    failures = [
        f"federated macro-F1 {ours:.3f} is less than {gain} above {name} ({macro(name):.3f})"
        for name in ("untrained", "most frequent")
        if ours < macro(name) + gain
    ]
    if ours < macro("central") - loss:
        failures.append(f"federated macro-F1 {ours:.3f} is more than {loss} below central ({macro('central'):.3f})")
    return failures


def say(text: str) -> None:
    """Tell the user, at once."""
    print(text, flush=True)


def main() -> int:
    """`python -m fedmap.demo`; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m fedmap.demo", description=__doc__)
    parser.add_argument("--folder", type=Path, default=PROJECT / "demo", help="where data and runs go (default demo/)")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="further settings, as for server_main.py")
    parsed = parser.parse_args()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        return run(parsed.folder, (*SETTINGS, *parsed.settings))
    except FederationError as error:
        print(f"fedmap.demo: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
