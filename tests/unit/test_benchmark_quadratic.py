import json
from pathlib import Path

import pytest

from benchmarks import quadratic
from benchmarks.harness import main
from benchmarks.quadratic import Problem, Quadratic, fedprox_point, optimum


def test_the_closed_forms_at_values_a_pencil_can_check() -> None:
    one_step = Problem("", (Quadratic(1.0, 0.0, 1), Quadratic(3.0, 4.0, 1)), 0.1)
    assert optimum(one_step) == pytest.approx(3.0)
    assert fedprox_point(one_step, 0.0) == pytest.approx(3.0)
    many_steps = Problem("", (Quadratic(1.0, 0.0, 5000), Quadratic(3.0, 4.0, 5000)), 0.1)
    assert fedprox_point(many_steps, 0.0) == pytest.approx(2.0)
    two_steps = Problem("", (Quadratic(1.0, 0.0, 2), Quadratic(2.0, 1.0, 2)), 0.5)
    assert fedprox_point(two_steps, 0.0) == pytest.approx(1.0 / 1.75)


def test_the_quick_benchmark_meets_its_targets(tmp_path: Path) -> None:
    out = tmp_path / "quadratic.json"
    assert main("quadratic", quadratic.measure, argv=["--quick", "--check", "--out", str(out)]) == 0
    assert all(target["met"] for target in json.loads(out.read_text())["targets"])
