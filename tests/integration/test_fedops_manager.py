"""FedOps' server manager and performance sink: what its clients send is checked, bounded, kept and readable."""

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from fedmap.service import background, manager
from fedmap.service.manager import Task
from fedmap.service.server_front import create_server_app
from tests.fronts import BEARER, TOKEN


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "run"
    made.mkdir()
    return made


def serving(folder: Path, port: int | None = 9191) -> Iterator[httpx.Client]:
    app = create_server_app(folder.parent, folder, token=TOKEN, depth=0, task=Task("movies", port, folder))
    with background.serving(app) as served, httpx.Client(base_url=served.url, headers=BEARER) as client:
        yield client


@pytest.fixture
def front(folder: Path) -> Iterator[httpx.Client]:
    yield from serving(folder)


def test_clients_learn_the_port_of_their_task(front: httpx.Client, tmp_path: Path) -> None:
    assert front.get("/FLSe/getPort/movies", headers={"Authorization": ""}).json() == {"port": 9191}
    answer = front.get("/FLSe/getPort/other")
    assert answer.status_code == 404
    assert answer.json()["detail"].startswith("this server serves the task 'movies', not 'other'")
    (tmp_path / "local").mkdir()
    for client in serving(tmp_path / "local", None):
        assert "runtime=local" in client.get("/FLSe/getPort/movies").json()["detail"]


def test_every_report_of_fedops_is_kept_and_shown(front: httpx.Client, folder: Path) -> None:
    sent = [
        ("/FLSe/FLSeUpdate/movies", "FLSeUpdate", {"FLSe": {"FLSeReady": True, "GL_Model_V": 3}}),
        ("/client_perf/train_result/movies", "train_result", {"fl_task_id": "movies", "train_acc": 0.5, "round": 1}),
        ("/client_perf/test_result/movies", "test_result", {"test_acc": 0.25, "name": "Zoë \ud83d"}),
        ("/client_perf/client_time_result/movies", "client_time_result", {"operation_time": 1.5}),
        ("/client_perf/client_system/movies", "client_system", {"network_sent": 10**30}),
        ("/client_perf/xai_result/movies", "xai_result", {"a": [1, {"b": None}]}),
        ("/server_perf/gl_model_evaluation/movies", "gl_model_evaluation", {"gl_accuracy": 0.5}),
        ("/server_perf/server_time_result/movies", "server_time_result", {"operation_time": 2}),
    ]
    for path, _, report in sent:
        assert front.put(path, content=json.dumps(report)).json() == {"ok": True}  # without a content type, as FedOps sends it
    assert front.put("/FLSe/FLRoundFin/movies", params={"FLSeReady": "false"}).json() == {"ok": True}
    assert front.put("/FLSe/cluster/movies", json={"client_mac": "aa:bb", "cluster_id": 2}).json() == {"ok": True}
    assert front.put("/FLSe/cluster/movies", json={"client_mac": "cc:dd", "cluster_id": None}).json() == {"ok": True}
    shown = front.get("/api/tasks/movies").json()
    expected = [(kind, report) for _, kind, report in sent] + [("FLRoundFin", {"FLSeReady": "false"})]
    assert [(entry["kind"], entry["report"]) for entry in shown["reports"]][:9] == expected
    assert shown["counts"]["train_result"] == 1
    assert (shown["task_id"], shown["port"], shown["clusters"]) == ("movies", 9191, {"aa:bb": 2})
    lines = [json.loads(line) for line in (folder / manager.FILE).read_text().splitlines()]
    assert lines == shown["reports"]
    assert [entry["kind"] for entry in front.get("/api/tasks/movies?limit=2").json()["reports"]] == ["cluster", "cluster"]
    assert [entry["report"] for entry in front.get("/api/tasks/movies?kind=test_result").json()["reports"]] == [sent[2][2]]
    for again in serving(folder):
        assert again.get("/api/tasks/movies").json() == shown, "a front that is started again knows them"


def test_what_is_not_finite_is_null(front: httpx.Client) -> None:
    assert front.put("/client_perf/train_result/movies", content=b'{"train_loss": NaN, "x": -Infinity}').status_code == 200
    assert front.get("/api/tasks/movies").json()["reports"][0]["report"] == {"train_loss": None, "x": None}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"3",
        b'"x"',
        b"[1]",
        b"null",
        b"\xff\xfe",
        b"[" * 30_000,
        b'{"a":' * 5000,
        b"9" * 10_000,
        b'{"a": {"a": {"a": {"a": 1}}}}'[:-1] + b"}",
    ],
)
def test_rubbish_is_refused_with_a_reason(front: httpx.Client, folder: Path, body: bytes) -> None:
    answer = front.put("/client_perf/train_result/movies", content=body)
    if body == b'{"a": {"a": {"a": {"a": 1}}}}':
        assert answer.status_code == 200, "four deep is allowed"
        return
    assert answer.status_code == 422
    assert answer.json()["detail"].startswith("the body ")
    assert not (folder / manager.FILE).exists()


@pytest.mark.parametrize(
    "body", [{}, {"client_mac": ""}, {"client_mac": "x" * 200}, {"client_mac": "a", "cluster_id": "x"}, {"client_mac": 1}, []]
)
def test_a_cluster_needs_a_client(front: httpx.Client, body: object) -> None:
    answer = front.put("/FLSe/cluster/movies", json=body)
    assert answer.status_code == 422
    assert answer.json()["detail"].startswith("the request has mistakes: body")


def test_reports_need_the_token_the_right_task_and_a_known_kind(front: httpx.Client, folder: Path) -> None:
    path = "/client_perf/train_result/movies"
    assert front.put(path, content=b"{}", headers={"Authorization": "Bearer wrong"}).status_code == 401
    assert front.put(path, content=b"{}", headers={"Authorization": ""}).status_code == 401
    assert front.put("/client_perf/train_result/other", content=b"{}").status_code == 404
    assert front.put("/client_perf/other/movies", content=b"{}").status_code == 422
    assert front.get("/api/tasks/other").status_code == 404
    assert not (folder / manager.FILE).exists()
    url = str(front.base_url).replace("http://", f"http://fedmap:{TOKEN}@")
    assert httpx.put(url + path, content=b"{}").status_code == 200, "as FedOps' clients can write it"


def test_reports_are_bounded(front: httpx.Client, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def chunks() -> Iterator[bytes]:
        yield b'{"a": "'
        for _ in range(20):
            yield b"x" * 10_000
        yield b'"}'

    path = "/client_perf/train_result/movies"
    assert front.put(path, content=chunks()).status_code == 413, "without Content-Length, too"
    monkeypatch.setattr(manager, "_FILE_BYTES", 10_000)
    monkeypatch.setattr(manager, "_RECENT", 5)
    statuses = [front.put(path, json={"n": n, "text": "x" * 500}).status_code for n in range(30)]
    kept = statuses.count(200)
    assert 10 < kept < 20
    assert statuses == [200] * kept + [413] * (30 - kept)
    assert (folder / manager.FILE).stat().st_size <= 10_000
    shown = front.get("/api/tasks/movies").json()
    assert shown["counts"] == {"train_result": kept}
    assert [entry["report"]["n"] for entry in shown["reports"]] == list(range(kept - 5, kept))


def test_a_file_that_was_damaged_loses_its_damaged_lines_alone(folder: Path) -> None:
    (folder / manager.FILE).write_bytes(
        b'{"time": 1, "kind": "train_result", "report": {"a": 1}}\nrubbish\n{"time": 1}\n[1]\n{"time": 2, "kind": "te'
    )
    for front in serving(folder):
        assert front.put("/client_perf/test_result/movies", json={"b": 2}).status_code == 200
        assert [entry["report"] for entry in front.get("/api/tasks/movies").json()["reports"]] == [{"a": 1}, {"b": 2}]
    for front in serving(folder):
        assert [entry["report"] for entry in front.get("/api/tasks/movies").json()["reports"]] == [{"a": 1}, {"b": 2}]
