"""The server's front over a real run's folder, asked by real HTTP clients."""

import io
import json
import shutil
import socket
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from fedmap.flower.events import EventProgress
from fedmap.service import background, gate
from fedmap.service.server_front import create_server_app
from tests.fronts import BEARER, TOKEN, Watcher, make_run, watch

RUN = "2026-01-31~10-00-00"
OLD = "2026-01-30~09-00-00"


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("place")
    made = make_run(place / "outputs" / "2026-01-31" / "10-00-00")
    old = shutil.copytree(made, place / "outputs" / "2026-01-30" / "09-00-00")
    with (old / "events.jsonl").open("rb+") as file:  # its process was killed in the first round
        lines = file.readlines()
        file.seek(0)
        file.truncate()
        file.writelines([lines[0].replace(b'"pid": ', b'"pid": 9999'), *lines[1:7]])
    (old / "results.json").write_text((old / "results.json").read_text().replace('"status": "finished"', '"status": "running"'))
    (place / "outputs" / "not-a-run").mkdir()
    (place / "secret.txt").write_text("secret")
    (made / "best" / "link").symlink_to(place / "secret.txt")
    (place / "outputs" / "link").symlink_to(made)
    return place / "outputs"


@pytest.fixture(scope="module")
def front(outputs: Path) -> Iterator[httpx.Client]:
    with background.serving(create_server_app(outputs, token=TOKEN)) as served, httpx.Client(base_url=served.url) as client:
        yield client


def test_health(front: httpx.Client) -> None:
    assert front.get("/health/live").json() == {"status": "alive"}
    assert front.get("/health/ready").json() == {"status": "ready"}


def test_the_runs_are_listed_newest_first(front: httpx.Client, outputs: Path) -> None:
    runs = front.get("/api/runs").json()
    assert [(run["id"], run["status"], run["current"]) for run in runs] == [(RUN, "finished", False), (OLD, "interrupted", False)]
    results = json.loads((outputs / "2026-01-31/10-00-00/results.json").read_text())
    best = results["rounds"][results["best_round"]]
    assert runs[0]["validation_macro_f1"] == (best["validation_tuned"] or best["validation"])["macro_f1"]
    assert runs[0]["test_macro_f1"] == (results["final"]["test_tuned"] or results["final"]["test"])["macro_f1"]
    assert {name: runs[0][name] for name in ("strategy", "model", "dataset", "rounds_done", "num_rounds", "best_round")} == {
        "strategy": "fedavg",
        "model": "digits",
        "dataset": "digits",
        "rounds_done": 2,
        "num_rounds": 2,
        "best_round": results["best_round"],
    }


def test_a_run_is_its_results_and_how_far_it_is(front: httpx.Client, outputs: Path) -> None:
    folder = outputs / "2026-01-31/10-00-00"
    shown = front.get(f"/api/runs/{RUN}").json()
    results = json.loads((folder / "results.json").read_text())
    assert {key: shown[key] for key in results} == results
    assert shown["config"]["num_rounds"] == 2
    assert shown["versions"] == json.loads((folder / "versions.json").read_text())
    assert (shown["phase"], shown["waiting_for"], shown["seconds_left"], shown["round"]) == ("ended", [], None, 2)
    assert list(json.loads(json.dumps(shown))) == list(shown), "no key twice"
    assert front.get("/status").json()["id"] == RUN
    assert front.get("/rounds").json() == {"id": RUN, "label_names": results["label_names"], "rounds": results["rounds"]}
    clients = front.get("/clients").json()
    assert [(c["client_id"], c["rounds"], c["used"], c["last_round"]) for c in clients["clients"]] == [(k, 2, 2, 2) for k in range(3)]
    assert clients["clients"][1]["weight"] == results["rounds"][2]["clients"][1]["weight"]


def test_the_files_of_a_run_come_byte_for_byte(front: httpx.Client, outputs: Path) -> None:
    folder = outputs / "2026-01-31/10-00-00"
    files = front.get(f"/api/runs/{RUN}/files").json()
    names = [file["name"] for file in files]
    assert {"results.json", "results.csv", "clients.csv", "config.yaml", "versions.json", "report.md", "plots/f1.png"} <= set(names)
    assert {"best/model.safetensors", "last/config.json"} <= set(names)
    assert not [name for name in names if name.startswith((".", "run.yaml", "checkpoints", "events", "best/link"))]
    for file in files:
        answer = front.get(f"/api/runs/{RUN}/files/{file['name']}")
        assert answer.content == (folder / file["name"]).read_bytes()
        assert len(answer.content) == file["bytes"]
        assert answer.headers["content-security-policy"].startswith("sandbox")
        assert answer.headers["content-disposition"].startswith("attachment")


@pytest.mark.parametrize("which", ["best", "last"])
def test_a_model_comes_as_an_archive(front: httpx.Client, outputs: Path, which: str) -> None:
    answer = front.get(f"/api/runs/{RUN}/model/{which}.zip")
    archive = zipfile.ZipFile(io.BytesIO(answer.content))
    assert archive.testzip() is None
    folder = outputs / "2026-01-31/10-00-00" / which
    expected = {f"{which}/{path.name}": path.read_bytes() for path in folder.iterdir() if not path.is_symlink()}
    assert {name: archive.read(name) for name in archive.namelist()} == expected
    assert front.get(f"/api/runs/{RUN}/model/other.zip").status_code == 404
    assert front.get(f"/api/runs/{RUN}/model/..zip").status_code == 404


@pytest.mark.parametrize(
    "path",
    [
        f"/api/runs/{RUN}/files/run.yaml",
        f"/api/runs/{RUN}/files/best/link",
        f"/api/runs/{RUN}/files/../../../../secret.txt",
        f"/api/runs/{RUN}/files/..%2f..%2f..%2fsecret.txt",
        f"/api/runs/{RUN}/files/best/../run.yaml",
        f"/api/runs/{RUN}/files/best%2f..%2frun.yaml",
        f"/api/runs/{RUN}/files//etc/passwd",
        f"/api/runs/{RUN}/files/%2fetc%2fpasswd",
        f"/api/runs/{RUN}/files/results.json%00",
        f"/api/runs/{RUN}/files/plots",
        "/api/runs/..~..~etc",
        "/api/runs/..",
        "/api/runs/%2e%2e%2f%2e%2e",
        "/api/runs/~~",
        "/api/runs/~",
        "/api/runs/.~2026-01-31~10-00-00",
        "/api/runs/2026-01-31",
        "/api/runs/not-a-run",
        "/api/runs/link",
        "/api/runs/" + "x" * 5000,
        "/api/runs/%00",
        "/api/runs/%ff%fe",
        "/api/runs/2026-01-31~10-00-00~best",
        "/api/runs/2026-01-31%5c10-00-00",
        "/docs/..%2f..%2fsetup.py",
    ],
)
def test_no_name_leads_to_another_file(front: httpx.Client, path: str) -> None:
    answer = front.build_request("GET", "/")
    answer.url = answer.url.copy_with(raw_path=path.encode())
    response = front.send(answer)
    assert response.status_code == 404
    assert list(response.json()) == ["detail"]


def test_events_come_from_the_first_and_from_where_one_has_been(front: httpx.Client, outputs: Path) -> None:
    lines = (outputs / "2026-01-31/10-00-00/events.jsonl").read_text().splitlines()
    url = f"{front.base_url}/api/runs/{RUN}/events"
    everything = watch(url, len(lines))
    assert [data for _, _, data in everything] == [json.loads(line) for line in lines]
    assert [number for number, _, _ in everything] == list(range(1, len(lines) + 1))
    assert [kind for _, kind, _ in everything] == [json.loads(line)["event"] for line in lines]
    assert watch(f"{url}?after=5", len(lines)) == everything[5:]
    assert watch(f"{url}?after=5", len(lines), **{"Last-Event-ID": "7"}) == everything[7:]
    assert watch(f"{url}", len(lines), **{"Last-Event-ID": "no number"}) == everything
    assert watch(f"{front.base_url}/events?after=5", len(lines)) == everything[5:]


def test_events_appear_as_they_are_written_however_many_watch(tmp_path: Path) -> None:
    current = tmp_path / "outputs" / "run"
    current.mkdir(parents=True)
    app = create_server_app(tmp_path / "outputs", current)
    with background.serving(app) as served:
        watchers = [Watcher(f"{served.url}/events") for _ in range(20)]
        for watcher in watchers:
            watcher.start()
        events = EventProgress(current / "events.jsonl")  # which is not there before
        events.opened(9)
        for index in range(300):
            events.note(f"sentence {index} " + "x" * 10_000)
        assert httpx.get(f"{served.url}/status").json()["status"] == "waiting"
        events.emit("finished")
        for watcher in watchers:
            watcher.stopped.set()
    for watcher in watchers:
        watcher.join(20)
        assert [number for number, _, _ in watcher.seen] == list(range(1, 303)), "also the last, which came as the front closed"
        assert watcher.seen[301][1] == "finished"
    assert app.state.runs.watchers() == 0


def test_an_event_that_another_answer_has_met_first_is_not_late(tmp_path: Path) -> None:
    events = EventProgress(tmp_path / "events.jsonl")
    with background.serving(create_server_app(tmp_path, tmp_path)) as served, httpx.Client(base_url=served.url) as client:
        watcher = Watcher(f"{served.url}/events")
        watcher.start()
        while "fedmap_event_watchers 1.0" not in client.get("/metrics").text:
            pass
        for index in range(1, 6):
            events.note("now")
            assert client.get("/status").json()["lines"] == index
            end = time.monotonic() + 5  # a heartbeat would come after 15 seconds
            while len(watcher.seen) < index and time.monotonic() < end:
                time.sleep(0.02)
            assert len(watcher.seen) == index
        watcher.stopped.set()
    watcher.join(20)


def test_a_file_that_is_begun_anew_is_watched_anew(tmp_path: Path) -> None:
    current = tmp_path / "run"
    current.mkdir()
    events = EventProgress(current / "events.jsonl")
    for text in "abc":
        events.note(text)
    with background.serving(create_server_app(tmp_path, current)) as served:
        watcher = Watcher(f"{served.url}/events")
        watcher.start()
        while len(watcher.seen) < 3:
            pass
        events.path.unlink()
        events.note("d")
        while len(watcher.seen) < 4:
            pass
        watcher.stopped.set()
    watcher.join(20)
    assert [data["text"] for _, _, data in watcher.seen] == ["a", "b", "c", "d"]
    assert watcher.seen[-1][0] == 1


def test_a_heartbeat_keeps_a_quiet_stream_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedmap.service.feed._HEARTBEAT_SECONDS", 0.1)
    with background.serving(create_server_app(tmp_path, tmp_path)) as served, httpx.stream("GET", f"{served.url}/events") as response:
        lines = response.iter_lines()
        assert [next(lines) for _ in range(6)] == [": watching", "", ": ping", "", ": ping", ""]


def test_metrics_are_what_prometheus_reads(front: httpx.Client, outputs: Path) -> None:
    results = json.loads((outputs / "2026-01-31/10-00-00/results.json").read_text())
    found = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(front.get("/metrics").text)
        for sample in family.samples
    }
    assert found["fedmap_run_status", (("status", "finished"),)] == 1
    assert sum(value for (name, _), value in found.items() if name == "fedmap_run_status") == 1
    assert found["fedmap_rounds_done", ()] == 2
    last = results["rounds"][-1]
    assert found["fedmap_score", (("score", "macro_f1"), ("split", "test"))] == last["test"]["macro_f1"]
    assert found["fedmap_clients", (("status", "ok"),)] == 3
    assert found["fedmap_model_bytes_total", (("direction", "up"),)] == sum(c["bytes_up"] for r in results["rounds"] for c in r["clients"])
    assert found["fedmap_http_requests_total", (("method", "GET"), ("status", "200"))] > 0
    assert ("process_resident_memory_bytes", ()) in found


def test_headers_keep_a_browser_from_what_it_should_not_do(front: httpx.Client) -> None:
    for path in ("/health/live", "/api/runs", "/nothing", "/docs"):
        headers = front.get(path).headers
        assert "default-src 'self'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert "access-control-allow-origin" not in headers
    assert front.get("/api/runs", headers={"Host": "evil.example"}).status_code == 421


def test_the_documentation_needs_nothing_from_elsewhere(front: httpx.Client) -> None:
    page = front.get("/docs").text
    assert "http" not in page.replace("HTTP", "")
    for asset in ("swagger-ui.css", "swagger-ui-bundle.js", "start.js"):
        assert f"/docs/{asset}" in page
        assert front.get(f"/docs/{asset}").status_code == 200
    described = front.get("/openapi.json").json()
    assert "/api/runs/{run_id}/events" in described["paths"]
    assert described["paths"]["/predict"]["post"]["security"] == [{"token": []}]
    assert "security" not in described["paths"]["/api/runs"]["get"]


def test_what_is_too_large_or_too_slow_is_refused(front: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    assert front.put("/x", content=b"x" * 70_000, headers=BEARER).status_code == 413

    assert front.post("/predict", content=b"x" * 20_000_000, headers=BEARER).status_code == 413
    monkeypatch.setattr(gate, "_BODY_SECONDS", 0.3)
    with socket.create_connection((front.base_url.host, front.base_url.port or 0), timeout=10) as slow:
        head = f"POST /predict HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: 1000\r\n"
        slow.sendall(f"{head}Content-Type: multipart/form-data; boundary=x\r\n\r\n--x".encode())
        assert slow.recv(1000).startswith(b"HTTP/1.1 408")


def test_without_a_run_it_says_how_to_start_one(tmp_path: Path) -> None:
    with background.serving(create_server_app(tmp_path / "none")) as served, httpx.Client(base_url=served.url) as client:
        assert client.get("/api/runs").json() == []
        for path in ("/status", "/rounds", "/clients", "/events"):
            answer = client.get(path)
            assert answer.status_code == 404
            assert "server_main.py" in answer.json()["detail"]
        assert client.get("/metrics").status_code == 200
        assert client.put("/x").status_code == 403


def test_files_that_are_damaged_are_no_reason_to_fail(tmp_path: Path) -> None:
    for name, content in {
        "a": b"{",
        "b": b"[]",
        "c": b'{"rounds": 3}',
        "d": b"\xff",
        "e": b'{"rounds": [{}], "final": 3, "best_round": {}}',
    }.items():
        folder = tmp_path / name
        folder.mkdir()
        for file in ("results.json", "config.yaml", "versions.json", "events.jsonl"):
            (folder / file).write_bytes(content)
    with background.serving(create_server_app(tmp_path)) as served, httpx.Client(base_url=served.url) as client:
        runs = client.get("/api/runs")
        assert [run["id"] for run in runs.json()] == sorted("abcde", reverse=True) or len(runs.json()) == 5
        for run in runs.json():
            assert client.get(f"/api/runs/{run['id']}").status_code == 200
        for path in ("/status", "/rounds", "/clients", "/metrics"):
            assert client.get(path).status_code == 200


def test_a_public_front_wants_the_token(outputs: Path) -> None:
    app = create_server_app(outputs, token=TOKEN, public=True)
    with background.serving(app, "0.0.0.0") as served, httpx.Client(base_url=served.url) as client:
        assert client.get("/health/live").status_code == 200
        for path in ("/", "/api/runs", "/status", "/metrics", "/docs", f"/api/runs/{RUN}/model/best.zip"):
            refused = client.get(path)
            assert refused.status_code == 401
            assert refused.headers["www-authenticate"].startswith("Basic"), "a browser asks for it"
            assert client.get(path, auth=("fedmap", TOKEN)).status_code == 200
        assert client.get("/api/runs", headers={"Host": "server.example", **BEARER}).status_code == 200


def test_a_taken_port_gives_the_next_free_one(tmp_path: Path) -> None:
    app = create_server_app(tmp_path)
    with background.serving(app) as first:
        port = int(first.url.rpartition(":")[2])
        with background.serving(create_server_app(tmp_path), port=port) as second:
            assert port < int(second.url.rpartition(":")[2]) <= port + 100
            assert httpx.get(f"{second.url}/health/live").status_code == 200


def test_stopping_ends_streams_and_leaves_no_thread(tmp_path: Path) -> None:
    before = threading.active_count()
    served = background.start(create_server_app(tmp_path, tmp_path), "127.0.0.1", 0)
    watcher = Watcher(f"{served.url}/events")
    watcher.start()
    while not httpx.get(f"{served.url}/metrics").text.count("fedmap_event_watchers 1.0"):
        pass
    watcher.stopped.set()
    served.stop()
    served.stop()
    watcher.join(5)
    assert not watcher.is_alive()
    assert threading.active_count() <= before
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{served.url}/health/live")
