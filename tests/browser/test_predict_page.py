"""The page that predicts, in real Chromium: it classifies made-up movies as the model does, and nothing leaves the host."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fedmap.prediction.attribution import GRID
from fedmap.prediction.predictor import Predictor
from fedmap.service.background import serving
from fedmap.service.server_front import create_server_app
from tests.movie_runs import MovieRun

if TYPE_CHECKING:
    from playwright.sync_api import Page

Visit = Callable[..., "Page"]
pytestmark = [pytest.mark.browser, pytest.mark.slow]


@pytest.fixture(scope="module")
def address(movie_run: MovieRun) -> Iterator[str]:
    with serving(create_server_app(movie_run.outputs)) as front:
        yield front.url


@pytest.fixture
def page(visit: Visit, address: str) -> Page:
    return opened(visit, address)


def opened(visit: Visit, address: str, **options: object) -> Page:
    page = visit(f"{address}/predict", **options)
    page.wait_for_selector("#which option", state="attached")
    return page


def ask(page: Page, text: str, poster: object = None) -> None:
    """Fill in the form, send it, and wait for the scores and for what mattered."""
    if poster is not None:
        page.set_input_files("#poster", str(poster))
    page.fill("#text", text)
    with page.expect_response(lambda answer: answer.request.method == "POST"):
        page.click("#go")
    page.wait_for_selector("#mattered[aria-busy=false] #why:not([hidden])")


def shown(page: Page) -> dict[str, list[float]]:
    """By genre: the numbers of its row."""
    return page.evaluate(
        """() => Object.fromEntries([...document.querySelectorAll("#scores tbody tr")].map(
            (row) => [row.dataset.label, [...row.querySelectorAll("data")].map((cell) => Number(cell.value))]))"""
    )


def test_it_classifies_movies_as_the_model_does_and_mostly_right(page: Page, movie_run: MovieRun) -> None:
    predictor = Predictor.open(movie_run.folder)
    right = 0
    for movie in movie_run.movies[:4]:
        poster = movie_run.poster(movie["img_name"])
        ask(page, movie["text"], poster)
        expected = predictor.predict(movie["text"], poster)
        assert page.locator("#decided .chip:not(.none)").all_inner_texts() == list(expected.decided)
        rows, plot, picture = shown(page), predictor.predict(movie["text"]), predictor.predict(None, poster)
        assert list(rows) == [row["label"] for row in expected.rows()]
        for i, label in enumerate(predictor.label_names):
            assert rows[label] == pytest.approx([expected.scores[i], expected.thresholds[i], plot.scores[i], picture.scores[i]], abs=1e-5)
        right += next(iter(rows)) in movie["labels"].split("|")
    assert right >= 3


def test_what_mattered_follows_the_genre(page: Page, movie_run: MovieRun) -> None:
    movie = movie_run.movies[0]
    ask(page, movie["text"], movie_run.poster(movie["img_name"]))
    assert page.locator("#plot").inner_text() == movie["text"]
    assert page.locator("#grid span").count() == GRID * GRID
    assert page.locator("#plot .for, #plot .against").count() > 0
    before = page.locator("#regions-said").inner_text()
    last = page.locator("#scores tbody tr").last
    last.locator("button").click()
    label = last.get_attribute("data-label")
    assert page.locator("#genre").input_value() == label
    assert label in page.locator("#regions-said").inner_text() != before
    assert "with it" in page.locator("#plot span").first.get_attribute("title")


def test_lines_and_signs_of_any_kind_stay_in_their_place(page: Page) -> None:
    text = 'A <b>ghost</b> 👻 in the castle.\n\n"Run", she said,\nand the détective ran.'
    ask(page, text)
    assert page.locator("#plot").inner_text() == text
    assert page.locator("#plot b").count() == 0
    assert page.locator("#plot span").all_inner_texts()[-3:] == ["the", "détective", "ran"]
    assert page.locator("#picture").is_hidden()
    assert page.locator("#scores .without").first.is_hidden()


def test_a_poster_alone_by_keyboard_and_its_removal(page: Page, movie_run: MovieRun) -> None:
    page.set_input_files("#poster", str(movie_run.poster(movie_run.movies[1]["img_name"])))
    page.locator("#preview").wait_for(state="visible")
    page.focus("#go")
    page.keyboard.press("Enter")
    page.wait_for_selector("#mattered[aria-busy=false] #why:not([hidden])")
    assert page.locator("#words").is_hidden()
    assert page.evaluate("document.activeElement.id") == "result-title"
    page.focus("#remove")
    page.keyboard.press("Enter")
    assert page.locator("#preview").is_hidden()
    page.click("#go")
    assert page.locator("#problem").inner_text() == "Give a poster, a plot, or both."


def test_a_picture_that_is_none_is_said(visit: Visit, address: str, tmp_path: Path) -> None:
    page = opened(visit, address, allowed=("400",))  # Chromium notes the status
    (tmp_path / "poster.png").write_bytes(b"no picture")
    page.set_input_files("#poster", str(tmp_path / "poster.png"))
    page.click("#go")
    page.wait_for_selector("#problem:not([hidden])")
    assert "it is none of JPEG, PNG" in page.locator("#problem").inner_text()
    assert page.locator("#go").is_enabled()


def test_a_phone_scrolls_in_one_direction(visit: Visit, address: str, movie_run: MovieRun) -> None:
    page = opened(visit, address, width=390)
    movie = movie_run.movies[0]
    ask(page, movie["text"], movie_run.poster(movie["img_name"]))
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_no_model_yet(visit: Visit, tmp_path: Path) -> None:
    with serving(create_server_app(tmp_path)) as front:
        page = visit(f"{front.url}/predict")
        page.wait_for_selector("#none:not([hidden])")
        assert page.locator("#form").is_hidden()
