"""Pages in a real Chromium. Whatever a test does, its pages may log no error and may ask no other machine."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

Visit = Callable[..., "Page"]
NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
QUIET = [
    "--no-sandbox",  # continuous integration runs as root
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """One browser for a file of tests: its event loop would be in the way of other files' loops."""
    api = pytest.importorskip("playwright.sync_api", reason="needs the playwright package: pip install -r requirements-dev.txt")
    found = next((path for path in map(shutil.which, NAMES) if path), None)
    if found is None:
        pytest.skip(f"needs Chromium on the PATH, under one of the names {', '.join(NAMES)}; on Debian: apt-get install chromium")
    with api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=found, args=QUIET)
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium: Browser) -> Iterator[Visit]:
    """Opens addresses: `visit(url, width=1280, dark=False, allowed=())`; `allowed` are parts of errors that the test provokes."""
    wrong: list[str] = []
    contexts = []

    def open_page(url: str, width: int = 1280, dark: bool = False, allowed: tuple[str, ...] = ()) -> Page:
        context = chromium.new_context(
            viewport={"width": width, "height": 800}, color_scheme="dark" if dark else "light", accept_downloads=True
        )
        contexts.append(context)
        page = context.new_page()
        host = urlsplit(url).netloc

        def on_console(text: str) -> None:
            if not any(part in text for part in allowed):
                wrong.append(text)

        page.on("console", lambda message: on_console(f"{message.type}: {message.text}") if message.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: wrong.append(f"exception: {error}"))

        def on_request(address: str) -> None:
            if not address.startswith(("blob:", "data:")) and urlsplit(address).netloc != host:  # a chosen picture is shown from memory
                wrong.append(f"asked {address}")

        page.on("request", lambda request: on_request(request.url))
        page.goto(url)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert wrong == []
