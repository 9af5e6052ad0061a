"""The dashboard in every state of a run, on a phone and on a wide screen, light and dark."""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fedmap.service import background
from fedmap.service.server_front import create_server_app
from tests.browser.conftest import Visit
from tests.fronts import make_run
from tests.staged_runs import HOSTILE, LABELS, StagedRun

if TYPE_CHECKING:
    from playwright.sync_api import Page

expect = pytest.importorskip("playwright.sync_api", reason="needs the playwright package").expect
pytestmark = pytest.mark.browser

MANY, FAILED, DONE, OTHER, REAL = (f"2026-11-20~{hour}-00-00" for hour in ("08", "09", "10", "11", "12"))
STATES = {
    "waiting": "/?run=2026-11-21~10-00-00",
    "training": "/?run=2026-11-21~11-00-00",
    "finished": f"/?run={DONE}",
    "failed": f"/?run={FAILED}",
    "200 clients": f"/?run={MANY}",
    "runs": "/runs",
    "compare": f"/compare?run={DONE}&run={OTHER}&run={FAILED}",
    "compare nothing": "/compare",
}

# Text whose contrast with what is behind it is below WCAG's AA: 4.5, or 3 for large text.
FAINT = """() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = (colour) => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1); return [...canvas.getImageData(0, 0, 1, 1).data]; };
  const over = (top, under) => top.slice(0, 3).map((v, i) => v * top[3] / 255 + under[i] * (1 - top[3] / 255));
  const light = (colour) => { const [r, g, b] = colour.map((v) => v / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const ground = (element) => {
    const layers = [];
    for (let at = element; at; at = at.parentElement) layers.push(rgba(getComputedStyle(at).backgroundColor));
    return layers.reduceRight((under, top) => over(top, under), [255, 255, 255]);
  };
  const found = [];
  for (const element of document.querySelectorAll("body *:not(script):not(option)")) {
    const own = [...element.childNodes].filter((node) => node.nodeType === 3).map((node) => node.data.trim()).join("");
    const style = getComputedStyle(element);
    if (!own || !element.checkVisibility({ opacityProperty: true, visibilityProperty: true }) || element.closest(".hidden, [disabled], [aria-disabled=true], .in-cell")) continue;
    const under = ground(element.closest("svg") ?? element);
    const ink = over(rgba(element.namespaceURI.endsWith("svg") ? style.fill : style.color), under);
    const [a, b] = [light(ink), light(under)].sort((x, y) => y - x);
    const size = parseFloat(style.fontSize);
    const enough = size >= 24 || (size >= 18.6 && style.fontWeight >= 600) ? 3 : 4.5;
    if ((a + 0.05) / (b + 0.05) < enough) found.push(`${own.slice(0, 40)}: ${((a + 0.05) / (b + 0.05)).toFixed(2)}`);
  }
  return found;
}"""

# Buttons, links and fields without a name that can be spoken.
UNNAMED = """() => [...document.querySelectorAll("button, a, select, input, summary, [tabindex='0']")].filter((one) => one.checkVisibility()
  && !(one.textContent.trim() || one.getAttribute("aria-label") || one.getAttribute("aria-labelledby") || one.labels?.length)).map((one) => one.outerHTML)"""


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("states") / "outputs"
    past, now = folder / "2026-11-20", folder / "2026-11-21"
    StagedRun(past / "08-00-00", num_clients=200, num_rounds=3).rounds(3).finish()
    StagedRun(past / "09-00-00", num_rounds=6).rounds(4).fail(f"3 rounds in a row had fewer answers than the quorum {HOSTILE}")
    StagedRun(past / "10-00-00", model={"hidden": 16}).rounds(6).finish()
    StagedRun(past / "11-00-00", strategy="fedprox", model={"hidden": 32}).rounds(6).finish()
    StagedRun(now / "10-00-00").joined(1)
    StagedRun(now / "11-00-00").rounds(3).begin_round(4, 2)
    make_run(past / "12-00-00", "dataset.num_clients=2")
    return folder


@pytest.fixture(scope="module")
def front(outputs: Path) -> Iterator[str]:
    with background.serving(create_server_app(outputs)) as served:
        yield served.url


def settled(page: Page) -> Page:
    """The page once it shows a run, a list or that there is nothing."""
    page.wait_for_selector("#hero:not([hidden]), #runs-table tbody tr, #finals:not([hidden]), #empty:not([hidden])")
    page.wait_for_timeout(400)  # events are read, and the last drawing is done
    return page


@pytest.mark.parametrize(("width", "dark"), [(360, False), (1600, True)], ids=["phone-light", "wide-dark"])
def test_every_state_can_be_read(visit: Visit, front: str, tmp_path: Path, width: int, dark: bool) -> None:
    for name, address in STATES.items():
        page = settled(visit(front + address, width=width, dark=dark))
        page.screenshot(path=tmp_path / f"{name}.png", full_page=True)  # to look at
        assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0, f"{name}: wider than the screen"
        assert page.evaluate(FAINT) == [], name
        assert page.evaluate(UNNAMED) == [], name
        assert page.locator("h1").count() == 1, name
        assert page.evaluate("window.hacked") is None, name
        assert page.locator("#main img, #main iframe, #main script").count() == 0, name
        page.context.close()


def test_waiting_says_who_is_awaited_and_how_to_join(visit: Visit, front: str) -> None:
    page = settled(visit(front + STATES["waiting"]))
    assert page.inner_text("#run-phase") == "Waiting for clients: 1 of 4 have joined"
    assert "python client_main.py client_id=0" in page.inner_text("#run-box")
    assert page.inner_text("#run-status") == "waiting"
    assert not page.is_visible("#scores")


def test_training_says_how_far_it_is(visit: Visit, front: str) -> None:
    page = settled(visit(front + STATES["training"]))
    assert page.inner_text("#run-phase") == "Round 4 of 6: 2 of 4 clients have answered"
    assert page.get_attribute("#progress", "aria-valuenow") == "3"
    assert re.search(r"time left\s+about \d+ s", page.inner_text("#run-times"))
    states = page.locator("#clients-table .status").all_inner_texts()
    assert states == ["answered", "answered", "training", "training"]


def test_events_that_come_later_are_shown_at_once_also_of_a_run_that_is_continued(visit: Visit, tmp_path: Path) -> None:
    staged = StagedRun(tmp_path / "outputs" / "2026-11-21" / "10-00-00").rounds(1)
    with background.serving(create_server_app(tmp_path / "outputs", staged.path)) as served:
        page = settled(visit(served.url))
        assert page.get_attribute("body", "data-rounds") == "2"
        staged.begin_round(2, 4)
        expect(page.locator("#run-phase")).to_contain_text("Round 2 of 6")
        staged._record(staged._round(2))
        expect(page.locator("body")).to_have_attribute("data-rounds", "3")
        assert "the disk is full" in page.inner_text("#problems-table")
        staged.fail("the quorum is lost")
        expect(page.locator("body")).to_have_attribute("data-status", "failed")
        assert "the quorum is lost" in page.inner_text("#run-box")
        assert "python server_main.py resume=outputs/2026-11-21/10-00-00" in page.inner_text("#run-box")
        staged.events.opened(6, {"strategy": "fedavg"})  # the same run is continued
        staged.events.resumed(2)
        staged.begin_round(3, 1)
        expect(page.locator("#run-phase")).to_have_text("Round 3 of 6: 1 of 4 clients have answered", timeout=15_000)
        assert page.inner_text("#run-status") == "training"
        assert not page.is_visible("#run-box")
        assert "The run goes on after round 2" in page.inner_text("#note-list")
        staged.events.failed(KeyboardInterrupt())
        expect(page.locator("body")).to_have_attribute("data-status", "interrupted")
        assert "The run was stopped" in page.inner_text("#run-box")
        page.context.close()  # before the server ends, for which the page would ask


def test_a_failed_run_says_why(visit: Visit, front: str) -> None:
    page = settled(visit(front + STATES["failed"]))
    assert "fewer answers than the quorum <img src=x" in page.inner_text("#run-box [role=alert]")
    assert page.inner_text("#run-phase") == "Failed after 4 of 6 rounds"


def test_names_and_reasons_from_others_stay_text(visit: Visit, front: str) -> None:
    page = settled(visit(front + STATES["finished"]))
    assert HOSTILE in page.locator("#labels-final").text_content()
    assert page.locator("#label-map svg text", has_text="<img src").count() == 1
    assert f"the disk is full {HOSTILE}" in page.locator("#problems-table").text_content()
    assert HOSTILE in page.locator("#strategy-body").text_content()
    assert HOSTILE in page.locator("#map-what").text_content()
    page.get_by_role("button", name="client 0").click()
    assert HOSTILE in page.locator("tr.more").text_content()
    assert page.evaluate("window.hacked") is None


def test_no_run_yet_and_no_such_run(visit: Visit, front: str, tmp_path: Path) -> None:
    with background.serving(create_server_app(tmp_path)) as served:
        page = settled(visit(served.url))
        assert "No run yet" in page.inner_text("#empty")
        listed = settled(visit(f"{served.url}/runs"))
        assert "No run yet" in listed.inner_text("#empty")
        listed.context.close()
        StagedRun(tmp_path / "2026-11-21" / "10-00-00").joined(0)
        page.wait_for_selector("#hero:not([hidden])")  # it appears by itself
        page.context.close()
    page = visit(f"{front}/?run=2026-01-01~00-00-00", allowed=("404",))
    page.wait_for_selector("#notice .bad")
    assert "there is no run" in page.inner_text("#notice")


def test_two_hundred_clients_can_be_searched_and_sorted(visit: Visit, front: str) -> None:
    page = settled(visit(front + STATES["200 clients"]))
    rows = page.locator("#clients-table tbody tr")
    assert rows.count() == 50
    page.get_by_role("button", name="Show all 200").click()
    assert rows.count() == 200
    page.get_by_role("button", name="Examples").click()
    assert rows.first.get_attribute("data-client") == "199"
    page.fill("#client-search", "head.weight")
    assert [row.get_attribute("data-client") for row in rows.all()] == ["153", "103", "53", "3"]
    page.fill("#client-search", "client 7")
    assert rows.count() == 1
    page.fill("#client-search", "nobody")
    assert page.is_visible("text=No client is like that.")


def test_everything_is_reached_by_keyboard(visit: Visit, front: str) -> None:
    page = settled(visit(front + STATES["finished"]))
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    chart = page.locator('[data-chart="macro_f1"] svg[tabindex]')
    chart.focus()
    page.keyboard.press("End")
    tip = page.locator('[data-chart="macro_f1"] .tip')
    assert tip.is_visible()
    assert tip.inner_text().startswith("round 6")
    page.keyboard.press("ArrowLeft")
    assert tip.inner_text().startswith("round 5")
    page.keyboard.press("Escape")
    assert not tip.is_visible()
    page.locator("#weight-map svg[tabindex]").focus()
    page.keyboard.press("End")
    assert page.inner_text("#weight-map .readout") == "Round 6, client 0: Aggregation weight 25.0 %"
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    for _ in range(3):
        page.keyboard.press("ArrowLeft")
    assert page.inner_text("#weight-map .readout").startswith("Round 3, client 2: failed: RuntimeError: the disk is full <img")
    page.locator("#downloads summary").press("Enter")
    page.wait_for_selector("#download-list a")
    page.keyboard.press("Escape")
    assert not page.is_visible("#download-list")


def test_the_theme_is_kept(visit: Visit, front: str) -> None:
    page = settled(visit(front + STATES["finished"]))
    ground = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(ground)
    page.click("#theme")
    assert page.evaluate(ground) == light
    page.click("#theme")
    dark = page.evaluate(ground)
    assert dark != light
    page.reload()
    assert settled(page).evaluate(ground) == dark
    assert page.get_attribute("#theme", "aria-label") == "Colours: dark. Change"


def test_a_series_can_be_hidden(visit: Visit, front: str) -> None:
    page = settled(visit(front + STATES["finished"]))
    lines = page.locator('[data-chart="macro_f1"] path.line')
    before = lines.count()
    button = page.locator('[data-chart="macro_f1"]').get_by_role("button", name="test at 0.5")
    button.click()
    assert lines.count() == before - 1
    assert button.get_attribute("aria-pressed") == "false"


def test_results_and_models_can_be_downloaded(visit: Visit, front: str, outputs: Path) -> None:
    page = settled(visit(f"{front}/?run={REAL}"))
    page.click("#downloads summary")
    with page.expect_download() as started:
        page.get_by_role("link", name="results.json").click()
    assert Path(started.value.path()).read_bytes() == (outputs / "2026-11-20/12-00-00/results.json").read_bytes()
    with page.expect_download() as started:
        page.get_by_role("link", name="chosen model").click()
    content = io.BytesIO(Path(started.value.path()).read_bytes())
    assert any(name.endswith("model.safetensors") for name in zipfile.ZipFile(content).namelist())


def test_past_runs_are_opened_and_compared_from_the_list(visit: Visit, front: str, outputs: Path) -> None:
    page = settled(visit(f"{front}/runs"))
    assert page.locator("#runs-table tbody tr").count() == 7
    assert page.locator("#compare").get_attribute("href") is None
    page.fill("#find", "2026-11-20")
    assert page.locator("#runs-table tbody tr").count() == 5
    for run in (DONE, OTHER):
        page.check(f'tr[data-run="{run}"] input')
    page.click("#compare")
    page.wait_for_selector("#finals-table")

    results = [json.loads((outputs / run.replace("~", "/") / "results.json").read_text()) for run in (OTHER, DONE)]
    heads = [head.get_attribute("data-run") for head in page.locator("#finals-table thead th").all()]
    assert heads == [OTHER, DONE]

    def row(table: str, name: str) -> list[float]:
        cells = page.locator(f"#{table} tbody tr", has=page.get_by_role("rowheader", name=name, exact=True)).locator("data")
        return [float(cell.get_attribute("value") or "nan") for cell in cells.all()]

    assert row("finals-table", "Test macro-F1, tuned") == [one["final"]["test_tuned"]["macro_f1"] for one in results]
    assert row("finals-table", "Test loss") == [one["final"]["test"]["loss"] for one in results]
    assert row("labels-table", "Drama") == [next(r["f1"] for r in one["final"]["labels"] if r["label"] == "Drama") for one in results]
    assert page.locator("#labels-table tbody tr").count() == len(LABELS)
    assert page.locator("#curve-charts figure").first.locator("path.line").count() == 2
    keys = page.locator("#config-differences tbody th").all_inner_texts()
    assert keys == ["server.strategy._target_", "model.hidden"]
    page.check("#all-keys")
    assert "num_rounds" in page.locator("#config-differences tbody th").all_inner_texts()

    page.select_option("#add", FAILED)
    expect(page.locator("#finals-table thead th")).to_have_count(3)
    assert FAILED in page.url.replace("%7E", "~")
    page.get_by_role("button", name=re.compile("^Remove .*09-00-00")).click()
    assert page.locator("#finals-table thead th").count() == 2


def test_numbers_are_written_as_people_read_them(visit: Visit, front: str) -> None:
    page = visit(f"{front}/runs")
    told = page.evaluate(
        """async () => {
          const f = await import("/assets/format.js");
          const { ticks } = await import("/assets/axes.js");
          return [f.score(0.12345), f.score(null), f.score(NaN), f.percent(0.2418), f.percent(1), f.percent(0), f.bytes(999), f.bytes(1000), f.bytes(38194560),
            f.bytes(999999), f.duration(0.04), f.duration(0.4), f.duration(12.4), f.duration(185), f.duration(7620), f.count(1234567), f.plain(0.00012), f.plain(55),
            f.plain(0.333333), f.ago(100, 101), f.ago(100, 165), f.spans([1, 2, 3, 5, 7, 8]), ticks(0, 1, 4).values.join(" "), ticks(0.21, 0.79, 4).values.join(" ")];
        }"""
    )
    dash = "–"  # noqa: RUF001
    assert told == [
        "0.123", dash, dash, "24.2 %", "100 %", "0 %", "999 B", "1 kB", "38.2 MB",
        "1 MB", "40 ms", "0.4 s", "12 s", "3 min 05 s", "2 h 07 min", "1\u202f234\u202f567", "1.20e-4", "55",
        "0.3333", "now", "1 min ago", "1–3, 5, 7–8", "0 0.25 0.5 0.75 1", "0.4 0.6",  # noqa: RUF001
    ]  # fmt: skip
