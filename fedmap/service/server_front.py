"""The server's front: runs, rounds, clients, events, downloads, health, metrics, FedOps' server manager, and the pages."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, Header, HTTPException, Query, Response
from fastapi.responses import FileResponse, StreamingResponse

from fedmap.service import archive, dashboard, documentation, manager, predict
from fedmap.service.answers import PROBLEMS, Json, install_answers
from fedmap.service.gate import Gate, Rules
from fedmap.service.manager import Task
from fedmap.service.metrics import Metrics
from fedmap.service.runs import MODELS, Runs
from fedmap.service.schemas import Clients, FileEntry, Health, Problem, Rounds, Run, RunSummary, Standing

MISSING: dict[int | str, dict[str, Any]] = {404: {"model": Problem, "description": "there is no such run or file"}}
_EVENTS: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}, "description": "one message for each line of events.jsonl"}
}
_BYTES: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}
}


def create_server_app(
    outputs: Path,
    current: Path | None = None,
    *,
    token: str | None = None,
    public: bool = False,
    depth: int = 3,
    task: Task | None = None,
) -> FastAPI:
    """The application.

    Args:
        outputs: the folder that holds the runs' folders.
        current: the folder of the run that is being served; None to show past runs alone.
        token: what writing needs; None: nobody may write.
        public: other machines can reach it, so reading needs the token, too.
        depth: how many levels below `outputs` runs are looked for.
        task: the task that FedOps' clients may join and report on; None where no federation is served.
    """
    runs = Runs(outputs, current, depth)
    app = FastAPI(title="FedMAP", docs_url=None, redoc_url=None, default_response_class=Json, responses=PROBLEMS)
    app.state.runs = runs
    app.state.close = runs.close
    app.include_router(_health(), tags=["health"])
    app.include_router(_runs(runs), tags=["runs"])
    app.include_router(_current(runs), tags=["current run"])
    app.include_router(dashboard.router())
    app.include_router(predict.router(runs))
    app.include_router(documentation.router())
    if task is not None:
        app.include_router(manager.router(task))
    metrics = Metrics(runs)
    app.include_router(metrics.router())
    install_answers(app)
    documentation.describe_token(app)
    rules = Rules(token=token, public=public, forms=frozenset({predict.PATH}), bodies={predict.PATH: predict.MAX_BODY})
    app.add_middleware(Gate, rules=rules, answered=metrics.answered)
    return app


def _health() -> APIRouter:
    router = APIRouter(prefix="/health")

    @router.get("/live")
    async def live() -> Health:
        """The front answers."""
        return Health(status="alive")

    @router.get("/ready")
    async def ready() -> Health:
        """The front can show runs."""
        return Health(status="ready")

    return router


def _found(runs: Runs, run_id: str) -> Path:
    folder = runs.folder(run_id)
    if folder is None:
        raise HTTPException(404, f"there is no run {run_id!r}; GET /api/runs lists them")
    return folder


def _runs(runs: Runs) -> APIRouter:
    router = APIRouter(prefix="/api/runs")

    @router.get("")
    def list_runs() -> list[RunSummary]:
        """All runs, newest first."""
        return [RunSummary(**runs.summary(folder)) for folder in runs.folders()]

    @router.get("/{run_id}", response_model=Run, responses=MISSING)
    def show_run(run_id: str) -> Response:
        """Everything about a run."""
        return Response(runs.document(_found(runs, run_id)), media_type="application/json")

    @router.get("/{run_id}/events", response_class=StreamingResponse, response_model=None, responses=MISSING | _EVENTS)
    async def watch_run(
        run_id: str,
        after: Annotated[int, Query(ge=0, le=2**53, description="begin after this line")] = 0,
        last_event_id: Annotated[str | None, Header(description="what a browser sends when it comes back")] = None,
    ) -> StreamingResponse:
        """The run's events as they happen; each message's id is its line in events.jsonl."""
        return _stream(runs, _found(runs, run_id), after, last_event_id)

    @router.get("/{run_id}/files", responses=MISSING)
    def list_files(run_id: str) -> list[FileEntry]:
        """The files of a run that can be downloaded."""
        return [FileEntry(name=name, bytes=size) for name, size in runs.files(_found(runs, run_id))]

    @router.get("/{run_id}/files/{name:path}", response_class=FileResponse, responses=MISSING | _BYTES)
    def download(run_id: str, name: str) -> FileResponse:
        """One file of a run."""
        path = runs.file(_found(runs, run_id), name)
        if path is None:
            raise HTTPException(404, f"the run has no file {name!r} for download; GET /api/runs/{run_id}/files lists them")
        return FileResponse(path, filename=path.name, headers={"content-security-policy": "sandbox; default-src 'none'"})

    @router.get("/{run_id}/model/{model}.zip", response_class=StreamingResponse, responses=MISSING | _BYTES)
    def download_model(run_id: str, model: str) -> StreamingResponse:
        """A saved model's folder: `best` or `last`."""
        folder = _found(runs, run_id)
        names = [name for name, _ in runs.files(folder) if name.startswith(f"{model}/")] if model in MODELS else []
        if not names:
            raise HTTPException(404, f"the run has no model {model!r} yet; the models are {' and '.join(MODELS)}")
        name = f"{folder.name}-{model}.zip".replace('"', "")
        headers = {"content-disposition": f"attachment; filename*=utf-8''{archive.quoted(name)}"}
        return StreamingResponse(archive.zipped([folder / name for name in names], model), media_type="application/zip", headers=headers)

    return router


def _stream(runs: Runs, folder: Path, after: int, last_event_id: str | None) -> StreamingResponse:
    if last_event_id is not None and last_event_id.isdecimal() and len(last_event_id) < 16:
        after = int(last_event_id)  # a browser that reconnects repeats the address, with what it has seen in this header
    return StreamingResponse(
        runs.feed(folder).stream(after), media_type="text/event-stream", headers={"cache-control": "no-cache", "x-accel-buffering": "no"}
    )


def _current(runs: Runs) -> APIRouter:
    router = APIRouter(responses=MISSING)

    def newest() -> Path:
        folder = runs.newest()
        if folder is None:
            raise HTTPException(404, "there is no run yet; start one with `python server_main.py`")
        return folder

    @router.get("/status")
    def status() -> Standing:
        """How far the current run is; without one, the newest."""
        return Standing(**runs.standing(newest()))

    @router.get("/rounds", response_model=Rounds)
    def rounds() -> Response:
        """The rounds of the current run."""
        folder = newest()

        def make(results: dict[str, Any]) -> dict[str, Any]:
            return {
                "id": runs.run_id(folder),
                "label_names": results.get("label_names") or [],
                "rounds": results.get("rounds") or [],
            }

        return Response(runs.results.body(folder, "rounds", make), media_type="application/json")

    @router.get("/clients", response_model=Clients)
    def clients() -> Response:
        """The clients of the current run."""
        folder = newest()
        waiting = runs.standing(folder)["waiting_for"]
        body = runs.results.body(folder, "clients", lambda results: {"id": runs.run_id(folder), "clients": _clients(results)})
        head = Json({"waiting_for": waiting}).body
        return Response(bytes(head[:-1]) + b"," + body[1:], media_type="application/json")

    @router.get("/events", response_class=StreamingResponse, response_model=None, responses=_EVENTS)
    async def events(
        after: Annotated[int, Query(ge=0, le=2**53)] = 0,
        last_event_id: Annotated[str | None, Header()] = None,
    ) -> StreamingResponse:
        """The current run's events as they happen."""
        return _stream(runs, newest(), after, last_event_id)

    return router


def _clients(results: dict[str, Any]) -> list[dict[str, Any]]:
    found: dict[int, dict[str, Any]] = {}
    for record in results.get("rounds") or []:
        for client in record["clients"]:
            old = found.get(client["client_id"], {"rounds": 0, "used": 0})
            found[client["client_id"]] = {
                **{name: client.get(name) for name in ("client_id", "status", "reason", "weight", "num_examples", "signals")},
                "code": client.get("code") or "",
                "remarks": client.get("remarks") or {},
                "rounds": old["rounds"] + 1,
                "used": old["used"] + (client["status"] == "ok"),
                "last_round": record["round_index"],
            }
    return [found[client_id] for client_id in sorted(found)]
