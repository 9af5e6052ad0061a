"""The benchmark of attacks, small: it runs, the ladder gives the codes that it should, and what it refuses costs nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.attacks import QUICK_ATTACKS, arguments, measure
from benchmarks.harness import main


@pytest.mark.slow
def test_quick_attacks(tmp_path: Path) -> None:
    out = tmp_path / "attacks.json"
    argv = ["--quick", "--out", str(out), "--columns", "fedavg.nothing", "fedavg.default"]
    assert main("attacks", measure, arguments=arguments, argv=argv) == 0
    result = json.loads(out.read_text())
    figures = {name: figure["mean"] for name, figure in result["figures"].items()}
    codes = {attack: found[0] for attack, found in result["codes"]["fedavg.default"].items()}
    assert codes == {
        "without": {},
        "none": {},
        "nan": {"finite": 6},
        "misshapen": {"shape": 6},
        "flipped10": {"direction": 6},
        "copied": {"replay": 6},
    }
    for attack in QUICK_ATTACKS[1:]:
        if attack != "copied":  # of two equal models the hostile client's has the lower number: the honest clients are other ones
            assert figures[f"fedavg.default.{attack}"] == figures["fedavg.default.without"], attack
    assert figures["fedavg.nothing.nan"] == 0.0
