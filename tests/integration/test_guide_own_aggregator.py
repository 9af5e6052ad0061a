"""The guide's code is extracted from docs/guides/own_aggregator.md and run as a user would run it."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "guides" / "own_aggregator.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", GUIDE, flags=re.DOTALL)


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A folder of the user's with the guide's Python files in it."""
    for block in blocks("python"):
        name = block.splitlines()[0].removeprefix("# ")
        with (tmp_path / name).open("a", encoding="utf-8") as file:
            file.write(block + "\n\n")
    monkeypatch.syspath_prepend(tmp_path)
    for module in ("my_aggregator", "check_my_aggregator"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    return tmp_path


def test_the_aggregators_are_under_thirty_lines(folder):
    classes = [node for node in ast.parse((folder / "my_aggregator.py").read_text()).body if isinstance(node, ast.ClassDef)]
    assert [node.name for node in classes] == ["FitWeighted", "ReportFit", "SmoothState", "Smooth"]
    assert all(node.end_lineno - node.lineno + 1 < 30 for node in classes)


def test_the_guides_checks_pass(folder):
    exec(compile((folder / "check_my_aggregator.py").read_text(), "check_my_aggregator.py", "exec"), {})


def test_it_trains_clients_by_its_own_rule(folder):
    from my_aggregator import FitWeighted, Smooth

    from fedmap.aggregators.fedavg import FedAvg
    from tests.toys import PLAIN_SGD, net_clients, run, same

    reports = []
    run(FitWeighted(sharpness=3.0), net_clients(PLAIN_SGD), 2, on_round=lambda r: reports.append((r.updates, r.report)))
    for updates, report in reports:
        fits = {u.client_id: u.num_examples * u.scalars["fit"] for u in updates}
        assert report.client_weights == pytest.approx({k: v / sum(fits.values()) for k, v in fits.items()})
    expected, _ = run(FedAvg(), net_clients(PLAIN_SGD), 2)
    assert same(run(FitWeighted(sharpness=0), net_clients(PLAIN_SGD), 2)[0].weights, expected.weights)
    smooth, _ = run(Smooth(keep=0.5), net_clients(PLAIN_SGD), 2)
    assert same(smooth.weights, smooth.slow)
    assert not same(smooth.weights, expected.weights)


def test_the_guides_yaml_makes_it_selectable_by_name(folder):
    from fedmap.build import build_aggregator
    from fedmap.config import compose_and_resolve, parse

    conf = folder / "conf"
    shutil.copytree(ROOT / "conf", conf)
    (conf / "strategy" / "fit_weighted.yaml").write_text(blocks("yaml")[0])
    tree = compose_and_resolve("config", ["strategy=fit_weighted", "server.strategy.sharpness=4"], conf)
    aggregator = build_aggregator(parse(tree))
    assert type(aggregator).__name__ == "FitWeighted"
    assert aggregator.sharpness == 4


@pytest.mark.slow
def test_the_guides_command_runs(folder):
    command = shlex.split(blocks("bash")[0])
    assert command[:2] == ["python", "server_main.py"]
    place = [*command[2:], f"hydra.run.dir={folder / 'run'}", "runtime.workers=0"]
    environment = {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(ROOT / "server_main.py"), *place], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    results = json.loads((folder / "run" / "results.json").read_text())
    assert results
