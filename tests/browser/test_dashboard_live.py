"""A real run, watched in a real browser from its first round to its last: what the page shows is what results.json holds."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from fedmap.config import PROJECT
from fedmap.flower import processes
from tests.browser.conftest import Visit
from tests.federations import DIGITS, script, start, wait_for

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = [pytest.mark.browser, pytest.mark.network]

ROUNDS = 4
HOOK = """
import time

def after_round(update):
    time.sleep(0.35)
    if update.client_id == 2 and update.round_index == 2:
        raise RuntimeError('the disk is full <img src=x onerror="window.hacked = true">')
    return update
"""

# The numbers of a chart or of a map as the page's own table has them: {round: {column: number}}.
TABLE = """(figure) => {
  figure.querySelector("details").open = true;
  figure.querySelector("details").dispatchEvent(new Event("toggle"));
  const [head, ...rows] = [...figure.querySelectorAll("details tr")].map((row) => [...row.children]);
  return rows.map((row) => [row[0].textContent, Object.fromEntries(row.slice(1).map((cell, i) => {
    const data = cell.querySelector("data");
    return [head[i + 1].textContent, data ? [Number(data.value), data.textContent] : null];
  }))]);
}"""
NOW = "() => [document.body.dataset.status, Number(document.body.dataset.rounds), document.getElementById('run-phase').textContent]"


def shown(page: Page, chart: str) -> dict[str, dict[str, Any]]:
    return dict(page.locator(f'[data-chart="{chart}"]').evaluate(TABLE))


def check(cell: Any, value: float | None, digits: int | None = 3) -> None:
    """A cell of the page holds a number exactly, and writes it with so many decimals."""
    if value is None:
        assert cell is None
        return
    exact, text = cell
    assert exact == value
    if digits is not None:
        assert re.fullmatch(rf"-?\d+\.\d{{{digits}}}", text)
        assert abs(float(text) - value) <= 0.5 * 10**-digits + 1e-12


@pytest.fixture
def run(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """The folder and the address of a run that has just begun."""
    (tmp_path / "went_wrong.py").write_text(HOOK)
    folder, log = tmp_path / "outputs" / "2026-11-21" / "10-00-00", tmp_path / "server.log"
    options = [*DIGITS, "runtime=local", "runtime.workers=0", "strategy=modality_aware", f"num_rounds={ROUNDS}", "dataset.num_clients=3"]
    options += ["hooks.after_round=went_wrong.after_round", "service.port=0", f"service.token_file={tmp_path}/token"]
    process = start(script("server_main.py", *options, f"hydra.run.dir={folder}"), log, PROJECT, PYTHONPATH=str(tmp_path))
    try:
        found = wait_for(lambda: re.search(r"http://127\.0\.0\.1:\d+", log.read_text()), 90, log.read_text)
        yield folder, found[0]
        assert process.wait(60) == 0, log.read_text()
    finally:
        processes.end_tree(process.pid)


def test_a_run_is_watched_from_its_first_round_to_its_last(visit: Visit, run: tuple[Path, str]) -> None:
    folder, address = run
    page = visit(address, allowed=("ERR_CONNECTION_REFUSED",))  # the server ends with the run, and the page asks again
    seen: list[tuple[str, int, str]] = []
    live: dict[str, dict[str, Any]] = {}
    end = time.monotonic() + 90
    while not seen or seen[-1][0] != "finished":
        assert time.monotonic() < end, seen
        now = tuple(page.evaluate(NOW))
        if not seen or now != seen[-1]:
            seen.append(now)
        if now[0] == "running" and now[1] == 3 and not live:  # the initial model and two rounds
            live = shown(page, "macro_f1")
        page.wait_for_timeout(60)
    page.wait_for_selector("#labels-final")

    # every round was seen while it ran, in order, and clients were seen to answer one after the other
    counts = [rounds for _, rounds, _ in seen if rounds]
    assert counts == sorted(counts)
    assert set(range(1, ROUNDS + 2)) <= set(counts)
    assert any(re.fullmatch(r"Round \d of 4: 1 of 3 clients have answered.*", phase) for _, _, phase in seen)

    results = json.loads((folder / "results.json").read_text())
    assert results["status"] == "finished"
    rounds = results["rounds"]
    assert len(rounds) == ROUNDS + 1

    # curves: each value of each round, and what was shown live is what stands there in the end
    for name in ("macro_f1", "micro_f1", "loss"):
        table = shown(page, name)
        assert list(table) == [str(record["round_index"]) for record in rounds]
        for record in rounds:
            row = table[str(record["round_index"])]
            check(row["validation"], record["validation"][name])
            check(row["test"], record["test"][name])
            if name != "loss" and record["clients_validation"]:
                check(row["clients' own"], record["clients_validation"][name])
    assert len(live) >= 3
    assert {key: table_row for key, table_row in shown(page, "macro_f1").items() if key in live} == live

    # key figures
    def tile(name: str) -> float:
        return float(page.locator(f'[data-tile="{name}"] .value data').first.get_attribute("value") or "nan")

    best = rounds[results["best_round"]]
    assert tile("best-round") == results["best_round"] == results["final"]["chosen_round"]
    assert tile("validation-macro") == best["validation"]["macro_f1"]  # a model that decides itself has no thresholds to tune
    assert tile("test-macro") == results["final"]["test"]["macro_f1"]
    assert tile("validation-loss") == results["final"]["validation"]["loss"]
    moved = [client[key] or 0 for record in rounds for client in record["clients"] for key in ("bytes_up", "bytes_down")]
    assert tile("bytes") == sum(moved)

    # labels
    cells = page.locator("#labels-final tbody tr").evaluate_all(
        "(rows) => rows.map((row) => [row.children[0].textContent, ...[...row.querySelectorAll('data')].map((data) => Number(data.value))])"
    )
    wanted = {row["label"]: [row["f1"], row["precision"], row["recall"], row["support"]] for row in results["final"]["labels"]}
    assert {name: values for name, *values in cells} == wanted
    labels = dict(page.locator("#label-map figure").evaluate(TABLE))
    for i, label in enumerate(results["label_names"]):
        for record in rounds:
            check(labels[label][str(record["round_index"])], record["label_f1"][i], 2)

    # clients: what they told in their last round, what was left out and why, and the map of their weights
    for client in rounds[-1]["clients"]:
        row = page.locator(f'#clients-table tr[data-client="{client["client_id"]}"]')
        numbers = row.locator("data").evaluate_all("(all) => all.map((data) => Number(data.value))")
        signals = client["signals"]
        test = results["final"]["clients"][str(client["client_id"])]["macro_f1"]
        assert numbers == [client["num_examples"], client["weight"], signals["f1_before"], signals["f1_after"], signals["train_loss"], test]
        assert row.locator(".chip").all_text_contents() == ["upper", "lower"]
        assert re.search(r"now|\d+ s ago", row.text_content() or "")
    problems = page.locator("#problems-table tbody tr").all_text_contents()
    (lost,) = [client for record in rounds for client in record["clients"] if client["status"] != "ok"]
    assert problems == [f"client 2failed2{lost['code']}{lost['reason']}"]
    assert "<img src=x" in lost["reason"]
    assert page.evaluate("window.hacked") is None
    assert page.locator("#main img").count() == 0
    weights = dict(page.locator("#weight-map figure").evaluate(TABLE))
    for record in rounds[1:]:
        for client in record["clients"]:
            cell = weights[f"client {client['client_id']}"][str(record["round_index"])]
            check(cell, client["weight"] if client["status"] == "ok" else None, None)

    # the strategy's own report, and what the rounds cost
    teacher, alphas = shown(page, "teacher-student"), shown(page, "alphas")
    for record in rounds[1:]:
        told, row = record["diagnostics"], teacher[str(record["round_index"])]
        check(row["teacher"], told.get("teacher-score"))
        check(row["weights by examples"], told.get("score-by-examples"))
        for key, value in told.items():
            if key.startswith("alpha-"):
                check(alphas[str(record["round_index"])][key.removeprefix("alpha-").replace("-", " ")], value)
    cost = [dict(figure.evaluate(TABLE)) for figure in page.locator("#cost-charts figure").all()]
    for record in rounds[1:]:
        at = str(record["round_index"])
        check(cost[0][at]["clients to server"], sum(client["bytes_up"] or 0 for client in record["clients"]), None)
        check(cost[1][at]["clients train"], record["seconds"]["train"], None)
        check(cost[1][at]["evaluate"], record["seconds"]["evaluate"], None)
