"""What all tests share."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from tests.deployed import Place
    from tests.movie_runs import MovieRun

# Continuous integration draws the same examples every time, so that what fails there fails again; elsewhere new ones are tried.
settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")
# A shell starts what runs in its background with interrupts ignored, and so would everything that a test starts and interrupts.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def movie_run(tmp_path_factory: pytest.TempPathFactory) -> MovieRun:
    """A finished federation on 1,000 made-up movies whose model predicts well; takes about ten seconds, once."""
    from tests.movie_runs import GOOD, movie_data, train_on_movies

    folder = tmp_path_factory.mktemp("movies")
    return train_on_movies(folder / "outputs", "2026-11-21/10-00-00", movie_data(folder / "data", 1000), *GOOD)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """Where programs of a deployed federation are started; they end with the test."""
    from tests.deployed import Place

    made = Place(tmp_path)
    yield made
    made.close()
