"""Predictions over HTTP: POST /predict, the models that can be asked, and the page that asks them.

The work is done by `fedmap.prediction.worker`, in a process of its own, one question at a time.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Literal

from fastapi import APIRouter, File, Form, HTTPException, UploadFile
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse
from pydantic import BaseModel, Field

from fedmap.errors import DataError, FederationError, ModelError
from fedmap.prediction.runs import WHICH, clients_of
from fedmap.prediction.worker import BusyError, Question, Worker
from fedmap.service.runs import Runs

PATH = "/predict"
MAX_POSTER = 10 << 20  # bytes; pixels are limited where pictures are decoded
MAX_TEXT = 20_000  # characters
MAX_BODY = MAX_POSTER + (256 << 10)
MAX_CLIENT = 1_000_000
_POLICY = "default-src 'self'; img-src 'self' blob:; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; object-src 'none'"


class Score(BaseModel):
    """One label's probability, and whether it reaches the label's threshold."""

    label: str
    score: float = Field(ge=0, le=1)
    threshold: float = Field(ge=0, le=1)
    decided: bool


class Asked(BaseModel):
    """Which model answered."""

    run: str = Field(description="the run's id")
    which: str = Field(description='"best", "last" or "client 3"')
    thresholds: str = Field(description="where the thresholds come from")


class Word(BaseModel):
    """A word of the plot (or some neighbouring ones), and what it does to the labels."""

    start: int = Field(description="its first character")
    end: int = Field(description="after its last character")
    word: str
    effects: dict[str, float] = Field(description="by label: log-odds with the word minus without it")


class Region(BaseModel):
    """A field of the poster, of six by six, and what it does to the labels."""

    row: int = Field(description="from above, from 0")
    column: int = Field(description="from the left, from 0")
    effects: dict[str, float] = Field(description="by label: log-odds with the region minus with it covered")


class Mattered(BaseModel):
    """What mattered for a prediction."""

    log_odds: dict[str, float] = Field(description="by label, with everything there")
    words: list[Word]
    regions: list[Region]


class Predicted(BaseModel):
    """A movie's labels, the most probable first, and what they would be without one of the two modalities."""

    model: Asked
    decided: list[str]
    scores: list[Score]
    without_poster: list[Score] | None = Field(description="from the plot alone; null where only one of the two was given")
    without_text: list[Score] | None = Field(description="from the poster alone")
    explanation: Mattered | None = Field(description="where explain was true")


class RunModels(BaseModel):
    """A run whose model can be asked."""

    id: str
    models: list[Literal["best", "last"]]
    clients: list[int] = Field(description="clients with a memory on this machine, whose own models can be asked")


class Problem(BaseModel):
    """What is wrong, and how to mend it."""

    detail: str


def router(runs: Runs, worker: Worker | None = None) -> APIRouter:
    """The routes for some runs; the process that predicts ends with the application.

    Args:
        runs: whose models may be asked.
        worker: who predicts; None makes one.
    """
    predictions = worker or Worker()

    @asynccontextmanager
    async def lifespan(_: object) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(predictions.close)

    routes = APIRouter(lifespan=lifespan, tags=["predictions"])

    @routes.get(PATH, include_in_schema=False)
    def predict_page() -> HTMLResponse:
        from fedmap.service.dashboard import page

        return page("predict", _POLICY)

    @routes.get("/api/models")
    def models() -> list[RunModels]:
        """The runs whose models can be asked, the newest first."""
        return [_models_of(name, run) for name, run in _with_models(runs).items()]

    @routes.post(
        PATH,
        responses={
            400: {"model": Problem, "description": "neither plot nor poster, or the poster is no picture that can be read"},
            404: {"model": Problem, "description": "there is no such run or model"},
            413: {"model": Problem, "description": "the poster is too large"},
            500: {"model": Problem, "description": "the model itself failed, or the process that predicts ended"},
            503: {"model": Problem, "description": "too many predictions are wanted at once"},
        },
    )
    def predict(
        poster: Annotated[UploadFile | None, File(description="JPEG, PNG, WebP, GIF or BMP; 10 MiB and 50 million pixels at most")] = None,
        text: Annotated[str, Form(max_length=MAX_TEXT, description="the plot")] = "",
        run: Annotated[str, Form(max_length=300, description="the run's id; empty: the newest run")] = "",
        model: Annotated[Literal["best", "last"], Form(description="after the best round, or after the last one")] = "best",
        client: Annotated[int | None, Form(ge=0, le=MAX_CLIENT, description="this client's own model")] = None,
        explain: Annotated[bool, Form(description="also say which words and regions mattered: takes longer")] = False,
    ) -> Predicted:
        """Genres of one movie from its poster, its plot, or both."""
        content = None if poster is None else poster.file.read(MAX_POSTER + 1)
        if content is not None and len(content) > MAX_POSTER:
            raise HTTPException(413, f"the poster has more than {MAX_POSTER:,} bytes; send a smaller copy")
        known = _with_models(runs)
        if not known:
            raise HTTPException(404, "no run has saved a model yet; one is there when a run has ended")
        name = run or next(iter(known))
        if name not in known:
            raise HTTPException(404, f"there is no run {name!r} with a saved model; GET /api/models lists those that there are")
        plot = text.replace("\r\n", "\n")  # browsers send line ends so; words are counted from the beginning of the page's own text
        try:
            answer = predictions.ask(Question(known[name], model, client, plot, content, explain))
        except BusyError as error:
            raise HTTPException(503, str(error), headers={"Retry-After": "5"}) from error
        except DataError as error:
            raise HTTPException(400, str(error)) from error
        except ModelError as error:
            raise HTTPException(404, str(error)) from error
        except FederationError as error:
            raise HTTPException(500, str(error)) from error
        answer["model"]["run"] = name
        return Predicted.model_validate(answer)

    return routes


def _with_models(runs: Runs) -> dict[str, Path]:
    """Runs with a model by their ids, the newest first. A request names one of these, and never a path."""
    return {runs.run_id(folder): folder for folder in runs.folders() if any(_has(folder, which) for which in WHICH)}


def _has(run: Path, which: str) -> bool:
    return (run / which / "model.safetensors").is_file()


def _models_of(name: str, run: Path) -> RunModels:
    models: list[Literal["best", "last"]] = [which for which in WHICH if _has(run, which)]
    return RunModels(id=name, models=models, clients=clients_of(run))
