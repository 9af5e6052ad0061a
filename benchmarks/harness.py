"""What every benchmark shares: the command line, the result file, the printed tables and the check of stated targets.

A benchmark is a module with a function that measures, and one call at the end:

    def measure(options: Options) -> Result:
        accuracy = {"fedavg": [train(seed) for seed in options.seed_list()]}
        return Result(
            settings={"rounds": 50},
            figures={"accuracy.fedavg": accuracy["fedavg"]},
            tables=[Table("Accuracy in percent", ("method", "accuracy"), [("fedavg", spread(accuracy["fedavg"]))])],
            targets=[Target("FedAvg learns", median(accuracy["fedavg"]), 0.8, ">=")],
        )

    if __name__ == "__main__":
        sys.exit(main("my_benchmark", measure, seeds=3))

The file `benchmarks/results/<name>.json` is an object with the keys name, description, quick, seeds, seconds, versions,
machine, settings, notes, figures (each with values, median, mean, std, min, max), targets (each with name, value, op, bound, met),
and besides them the keys of `Result.details`, which a benchmark is free to shape.
"""

from __future__ import annotations

import argparse
import math
import operator
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedmap.errors import FederationError
from fedmap.files import write_json
from fedmap.versions import machine, versions

RESULTS = Path(__file__).resolve().parent / "results"
COMPARE: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
    "==": operator.eq,
}


@dataclass(frozen=True)
class Target:
    """A stated target: `value op bound` must hold. A value that is not a finite number misses it.

    Attributes:
        name: what is claimed, e.g. "FedMAP's gain over Individual, label skew, in points".
        value: what was measured.
        bound: what was stated.
        op: one of >=, <=, >, <, ==.
    """

    name: str
    value: float
    bound: float
    op: str = ">="

    def __post_init__(self) -> None:
        if self.op not in COMPARE:
            raise ValueError(f"target {self.name!r}: op {self.op!r} is none of {', '.join(COMPARE)}")

    @property
    def met(self) -> bool:
        """Whether the target holds."""
        return math.isfinite(self.value) and COMPARE[self.op](float(self.value), self.bound)


@dataclass(frozen=True)
class Table:
    """A table to print: every row has one cell per column; floats are shown with three decimals."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[object]]


@dataclass(frozen=True)
class Result:
    """What a benchmark measured.

    Attributes:
        settings: everything that decides the figures, as plain values.
        figures: repeated measurements (over seeds or repetitions) by dotted name; one number is a list of one.
        tables: printed, not saved.
        targets: what was stated in advance.
        details: further top-level keys of the result file, e.g. {"scenarios": {...}}.
        notes: sentences for the reader, printed and saved.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    figures: Mapping[str, Sequence[float]] = field(default_factory=dict)
    tables: Sequence[Table] = ()
    targets: Sequence[Target] = ()
    details: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Options:
    """What the command line asked for; `extra` holds the benchmark's own arguments."""

    quick: bool
    seeds: int
    extra: argparse.Namespace

    def seed_list(self) -> list[int]:
        """The seeds to repeat with: 0, 1, ... unless --first-seed says otherwise."""
        first = int(getattr(self.extra, "first_seed", 0))
        return list(range(first, first + self.seeds))


def summary(values: Sequence[float]) -> dict[str, object]:
    """The values with their median, mean, sample standard deviation (0 for a single value), minimum and maximum."""
    numbers = [float(value) for value in values]
    if not numbers:
        raise ValueError("a figure needs at least one value")
    return {
        "values": numbers,
        "median": statistics.median(numbers),
        "mean": statistics.fmean(numbers),
        "std": statistics.stdev(numbers) if len(numbers) > 1 else 0.0,
        "min": min(numbers),
        "max": max(numbers),
    }


def median(values: Sequence[float]) -> float:
    """The median of at least one value."""
    return float(statistics.median(values))


def spread(values: Sequence[float], digits: int = 3) -> str:
    """`mean ± sample standard deviation` for a table's cell; the mean alone for a single value."""
    mean = f"{statistics.fmean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def main(
    name: str,
    measure: Callable[[Options], Result],
    *,
    seeds: int = 3,
    quick_seeds: int = 1,
    description: str = "",
    arguments: Callable[[argparse.ArgumentParser], None] | None = None,
    argv: Sequence[str] | None = None,
) -> int:
    """Run one benchmark from the command line.

    Args:
        name: of the module and of the result file.
        measure: does the work.
        seeds: how many seeds a full run takes unless --seeds says otherwise.
        quick_seeds: the same for --quick.
        description: one paragraph for --help and for the result file.
        arguments: adds the benchmark's own arguments, e.g. `lambda parser: parser.add_argument("--data", type=Path)`.
        argv: the arguments; the process's own by default.

    Returns:
        The exit status: 0; 1 if --check found a missed target; 2 if the benchmark could not run.
    """
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=description)
    parser.add_argument("--quick", action="store_true", help="a small version that ends in a minute or so")
    parser.add_argument("--seeds", type=int, help=f"how many seeds (default {seeds}, with --quick {quick_seeds})")
    parser.add_argument("--first-seed", type=int, default=0, help="where seeds begin (default 0); fresh ones confirm what others suggested")
    parser.add_argument("--out", type=Path, default=RESULTS / f"{name}.json", help="result file (default benchmarks/results/)")
    parser.add_argument("--check", action="store_true", help="exit with status 1 and name each stated target that is missed")
    if arguments is not None:
        arguments(parser)
    parsed = parser.parse_args(argv)
    if parsed.seeds is not None and parsed.seeds < 1:
        parser.error("--seeds must be at least 1")
    options = Options(parsed.quick, parsed.seeds or (quick_seeds if parsed.quick else seeds), parsed)
    started = time.perf_counter()
    try:
        result = measure(options)
    except FederationError as error:
        print(f"benchmarks.{name}: {error}")
        return 2
    write_json(parsed.out, document(name, description, options, result, time.perf_counter() - started))
    _print(result, parsed.out)
    missed = [target for target in result.targets if not target.met]
    for target in missed if parsed.check else ():
        print(f"MISSED: {target.name}: {target.value:.4g}, stated {target.op} {target.bound:.4g}")
    return 1 if parsed.check and missed else 0


def document(name: str, description: str, options: Options, result: Result, seconds: float) -> dict[str, Any]:
    """The content of a result file.

    Raises:
        ValueError: the benchmark's details would hide a key of the harness.
    """
    own: dict[str, Any] = {
        "name": name,
        "description": description,
        "quick": options.quick,
        "seeds": options.seeds,
        "first_seed": options.seed_list()[0],
        "seconds": round(seconds, 2),
        "versions": versions(),
        "machine": machine(),
        "settings": result.settings,
        "figures": {key: summary(values) for key, values in result.figures.items()},
        "targets": [{"name": t.name, "value": t.value, "op": t.op, "bound": t.bound, "met": t.met} for t in result.targets],
        "notes": list(result.notes),
    }
    hidden = sorted(set(own) & set(result.details))
    if hidden:
        raise ValueError(f"details may not use the harness's own keys {hidden}")
    return {**own, **result.details}


def _print(result: Result, path: Path) -> None:
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    shown = [*result.tables]
    if result.targets:
        rows = [(t.name, t.value, f"{t.op} {t.bound:.4g}", "met" if t.met else "MISSED") for t in result.targets]
        shown.append(Table("Targets", ("target", "measured", "stated", ""), rows))
    for table in shown:
        drawn = RichTable(title=Text(table.title), title_justify="left")
        for index, column in enumerate(table.columns):
            drawn.add_column(Text(column), justify="left" if index == 0 else "right")
        for row in table.rows:
            drawn.add_row(*(Text(f"{cell:.3f}" if isinstance(cell, float) else str(cell)) for cell in row))
        console.print(drawn)
    for note in result.notes:
        console.print(Text(note))
    print(f"written: {path}")
