"""FedOps' own client code, 1.1.30.19 as installed by requirements-fedops.txt, talks to our servers as to a FedOps platform."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import httpx
import pytest
import requests

from fedmap.participation import CONNECTED, Participation
from fedmap.service import background
from fedmap.service.client_front import Identity, create_client_app, rules_for
from fedmap.service.manager import Task
from fedmap.service.platform import ClientPlatform, Platform
from fedmap.service.reporting import ClientReports
from fedmap.service.server_front import create_server_app
from fedmap.service.server_reporting import server_reports
from tests.fronts import BEARER, TOKEN

pytest.importorskip("fedops", reason="needs FedOps' client API: pip install --no-deps -r requirements-fedops.txt")

TRAINED = {
    "event": "trained", "round": 2, "num_rounds": 3, "loss": 0.5, "f1": 0.25, "micro_f1": 0.5, "val_loss": 0.75, "num_examples": 40,
    "seconds": 1.5,
}  # fmt: skip
FINISHED = {"event": "finished", "round": 3, "macro_f1": 0.3, "micro_f1": 0.4, "num_test": 9, "loss": 0.6}
ROUND = {
    "event": "round",
    "record": {
        "round_index": 1,
        "validation": {"loss": 0.7, "micro_f1": 0.5, "macro_f1": 0.4, "weighted_f1": 0.45, "samples_f1": 0.48, "num_samples": 9},
        "seconds": {"train": 2.0, "evaluate": 0.5},
    },
}


@pytest.fixture
def client_api(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """FedOps' module, with nothing of ours in it; without what a person's environment may say about a platform."""
    for name in ("FEDOPS_SERVER_MANAGER_URL", "FEDOPS_CLIENT_PERFORMANCE_URL", "FEDOPS_CLIENT_MANAGER_URL", "FEDOPS_AGGREGATION_SERVER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FEDOPS_AGGREGATION_HOST", "127.0.0.1")
    from fedops.client import client_api

    return client_api


@pytest.fixture
def server(tmp_path: Path) -> Iterator[httpx.Client]:
    """Our server front, as a server manager and performance sink."""
    folder = tmp_path / "run"
    folder.mkdir()
    app = create_server_app(tmp_path, folder, token=TOKEN, depth=0, task=Task("movies", 9191, folder))
    with background.serving(app) as served, httpx.Client(base_url=served.url, headers=BEARER, timeout=20) as client:
        yield client


def address(server: httpx.Client) -> str:
    return str(server.base_url).rstrip("/").replace("://", f"://fedmap:{TOKEN}@")


def shown(server: httpx.Client) -> dict:
    return server.get("/api/tasks/movies").json()


def test_client_server_api_finds_the_server_and_reports(
    client_api: ModuleType, server: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDOPS_SERVER_MANAGER_URL", address(server))
    monkeypatch.setenv("FEDOPS_CLIENT_PERFORMANCE_URL", address(server))
    api = client_api.ClientServerAPI("movies")
    assert api.get_port() == "127.0.0.1:9191"
    sent = {"fl_task_id": "movies", "client_mac": "aa:bb", "round": 1, "train_loss": 0.5}
    api.put_train_result(json.dumps(sent))
    api.put_test_result(json.dumps(sent))
    api.put_client_time_result(json.dumps(sent))
    api.put_client_system(json.dumps(sent))
    api.put_client_xai_result(json.dumps(sent))
    api.put_cluster_assign("aa:bb", "2")
    found = shown(server)
    assert [(each["kind"], each["report"]) for each in found["reports"] if each["kind"] != "cluster"] == [
        (kind, sent) for kind in ("train_result", "test_result", "client_time_result", "client_system", "xai_result")
    ]
    assert found["clusters"] == {"aa:bb": 2}


def test_an_unknown_task_has_no_port(client_api: ModuleType, server: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDOPS_SERVER_MANAGER_URL", address(server))
    assert client_api.ClientServerAPI("another").get_port() is None


def test_client_manager_api_talks_to_a_clients_front(client_api: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    participation = Participation()
    participation.update(state=CONNECTED, prepared=True, address="127.0.0.1:9191", model_version=6)
    app = create_client_app(Identity(0, "movies"), participation, rules_for("127.0.0.1", None))
    with background.serving(app) as front:
        monkeypatch.setenv("FEDOPS_CLIENT_MANAGER_URL", front.url)
        api = client_api.ClientMangerAPI()
        info = api.get_info().json()
        assert (info["GL_Model_V"], info["task_id"], info["client_training"], info["last_told"]) == (6, "movies", True, "")
        for url, told in ((api.get_train_fin(), "trainFin"), (api.get_train_fail(), "trainFail")):
            answer = requests.get(url, timeout=10)
            assert (answer.status_code, api.get_info().json()["last_told"]) == (200, told)
        api.get_client_out()
        assert api.get_info().json()["last_told"] == "flclient_out"
        assert participation.standing.state == CONNECTED, "what others say of themselves changes nothing here"


def test_our_clients_reports_reach_our_server_through_fedops_code(client_api: ModuleType, server: httpx.Client) -> None:
    said: list[str] = []
    reports = ClientReports(ClientPlatform(Platform(performance=address(server)), "movies"), said.append)
    reports.started(lambda version: None)
    reports.event({"event": "joined", "run": "r", "num_train": 3})
    reports.event(TRAINED)
    reports.event(FINISHED)
    reports.ended(well=True)
    assert reports.performance is not None
    reports.performance.close(20)
    reports.close()
    assert (said, reports.sent, reports.lost) == ([], 4, 0)
    by_kind = {each["kind"]: each["report"] for each in shown(server)["reports"]}
    train = by_kind["train_result"]
    assert (train["round"], train["train_loss"], train["val_loss"], train["val_accuracy"], train["val_f1_macro"]) == (
        2,
        0.5,
        0.75,
        0.5,
        0.25,
    )
    assert train["client_mac"].count(":") == 5
    assert by_kind["client_system"]["memory_rssMB"] > 1
    assert (by_kind["test_result"]["test_loss"], by_kind["test_result"]["test_accuracy"]) == (0.6, 0.4)
    assert by_kind["client_time_result"]["operation_time"] >= 0


def test_our_servers_reports_reach_a_server_manager(server: httpx.Client, tmp_path: Path) -> None:
    said: list[str] = []
    platform = Platform(server_manager=address(server), performance=address(server), campaign="c-1", model_version=3)
    events = tmp_path / "events.jsonl"
    events.write_text(json.dumps({"event": "round", "record": {"round_index": 9}}) + "\n")  # of before the run was continued
    with server_reports("movies", tmp_path, said.append, platform) as reports, events.open("a") as file:
        for event in ({"event": "start", "num_rounds": 1}, ROUND, {"event": "finished"}):
            file.write(json.dumps(event) + "\n")
    assert reports is not None
    assert (said, reports.lost, reports.sent) == ([], 0, 4)
    kinds = [(each["kind"], each["report"]) for each in shown(server)["reports"]]
    by_kind = dict(kinds)
    assert by_kind["FLSeUpdate"]["FLSeReady"] is True
    assert by_kind["FLSeUpdate"]["GL_Model_V"] == 3
    scores = by_kind["gl_model_evaluation"]
    assert (scores["round"], scores["gl_loss"], scores["gl_accuracy"], scores["macro_f1"]) == (1, 0.7, 0.5, 0.4)
    assert (scores["run_time_by_round"], scores["campaign_run_id"], scores["evaluation_source"]) == (2.5, "c-1", "server_validation")
    assert by_kind["server_time_result"]["gl_model_v"] == 3
    assert "FLRoundFin" in by_kind


def test_a_run_that_is_stopped_is_said_to_have_failed(server: httpx.Client, tmp_path: Path) -> None:
    said: list[str] = []
    with pytest.raises(KeyboardInterrupt), server_reports("movies", tmp_path, said.append, Platform(server_manager=address(server))):
        raise KeyboardInterrupt
    reports = [each["report"] for each in shown(server)["reports"] if each["kind"] == "FLSeUpdate"]
    assert [each["FLSeReady"] for each in reports] == [True, False]
    assert said == []


def test_a_server_manager_without_the_token_is_one_warning(server: httpx.Client, tmp_path: Path) -> None:
    said: list[str] = []
    with server_reports("movies", tmp_path, said.append, Platform(server_manager=str(server.base_url).rstrip("/"))) as reports:
        pass
    assert reports is not None
    assert (reports.sent, reports.lost, len(said)) == (0, 3, 1)
    assert "the answer is HTTP 401 (does the address hold the token?); it is not sent again" in said[0]


def test_fedops_name_of_the_strategy_still_means_ours() -> None:
    from fedmap.aggregators.modality_aware.aggregator import ModalityAwareAggregation
    from fedmap.build import build_aggregator
    from fedmap.config import compose_and_resolve, parse

    tree = compose_and_resolve("config", ["strategy=fedavg"])
    tree["server"]["strategy"] = {"_target_": "fedops.server.fedmap.strategy.ModalityAwareAggregation", "input_dim": 10, "hidden_dim": 16}
    made = build_aggregator(parse(tree))
    assert isinstance(made, ModalityAwareAggregation)
    assert not [name for name in sys.modules if name.startswith("fedops.server")], "the wheel's class was not even imported"
