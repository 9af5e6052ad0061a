"""A client's HTTP front on a real port: FedOps' fields, who may ask, health, metrics, and no request that breaks it."""

import re
import threading
from collections.abc import Iterator

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from fedmap.participation import CONNECTED, FAILED, FINISHED, WAITING, Participation
from fedmap.service import background
from fedmap.service.client_front import ClientRules, Identity, Reported, create_client_app, rules_for

FEDOPS_FIELDS = {  # FLClientStatus of fedops 1.1.30.19
    "task_id": str, "client_num": int, "client_mac": str, "client_name": str, "client_online": bool, "client_start": bool,
    "client_fail": bool, "server_IP": str, "gl_model": int,
}  # fmt: skip
LABELS = {"client": "3", "task": "movies"}


@pytest.fixture
def participation() -> Participation:
    return Participation()


def serving(participation: Participation, rules: ClientRules):
    return background.serving(create_client_app(Identity(3, "movies"), participation, rules, Reported()))


@pytest.fixture
def http(participation: Participation) -> Iterator[httpx.Client]:
    with serving(participation, rules_for("127.0.0.1", None)) as front, httpx.Client(base_url=front.url, timeout=20) as client:
        yield client


def test_online_has_fedops_fields_and_types(http: httpx.Client, participation: Participation) -> None:
    participation.update(state=CONNECTED, address="127.0.0.1:8000", prepared=True, model_version=4)
    answer = http.get("/online")
    assert answer.status_code == 200
    assert {name: type(value) for name, value in answer.json().items()} == FEDOPS_FIELDS
    body = answer.json()
    assert re.fullmatch(r"([0-9a-f]{2}:){5}[0-9a-f]{2}", body["client_mac"])
    assert (body["task_id"], body["client_num"], body["server_IP"], body["gl_model"]) == ("movies", 3, "127.0.0.1:8000", 4)
    assert (body["client_online"], body["client_start"], body["client_fail"]) == (True, True, False)
    participation.update(state=FAILED, problem="no data", address="")
    body = http.get("/online").json()
    assert (body["client_start"], body["client_fail"], body["server_IP"]) == (False, True, None)


def test_start_is_a_wish_that_is_answered_with_the_servers_address(http: httpx.Client, participation: Participation) -> None:
    participation.update(state=WAITING, prepared=True)

    def take_part() -> None:
        assert participation.wait_for_start(10)
        participation.begin()
        participation.update(address="127.0.0.1:9")

    worker = threading.Thread(target=take_part)
    worker.start()
    body = http.post("/start", json={"server_ip": "ccl.gachon.ac.kr", "client_mac": "x"}).json()  # what FedOps' manager sends
    worker.join()
    assert (body["client_start"], body["server_IP"]) == (True, "127.0.0.1:9")
    assert http.post("/start").json()["client_start"] is True
    assert not participation.wait_for_start(0), "it takes part already"
    assert http.post("/stop").status_code == 200
    assert participation.stopping


def test_a_web_page_may_not_start_or_stop_a_client(http: httpx.Client, participation: Participation) -> None:
    participation.update(state=FINISHED)
    for headers in (
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-origin"},
    ):
        for method, path in (("POST", "/start"), ("POST", "/stop"), ("GET", "/trainFin"), ("GET", "/flclient_out")):
            answer = http.request(method, path, headers=headers)
            assert (answer.status_code, "web page" in answer.json()["detail"]) == (403, True)
    assert not participation.wait_for_start(0)
    for path in ("/online", "/status", "/info"):
        answer = http.get(path, headers={"host": "evil.example"})  # a page that has its name resolved to this machine
        assert answer.status_code == 421
    assert http.post("/start", headers={"host": "evil.example"}).status_code == 421
    assert not participation.wait_for_start(0)


def test_another_machine_needs_the_token_for_everything_but_health(participation: Participation) -> None:
    token = "t" * 24
    with serving(participation, rules_for("0.0.0.0", token)) as front, httpx.Client(base_url=front.url, timeout=20) as http:
        participation.update(state=FINISHED, prepared=True)
        for method, path in (
            ("GET", "/online"),
            ("GET", "/status"),
            ("GET", "/metrics"),
            ("GET", "/info"),
            ("POST", "/start"),
            ("POST", "/stop"),
        ):
            assert http.request(method, path).status_code == 401, path
            assert http.request(method, path, headers={"authorization": "Bearer wrong"}).status_code == 401
        assert not participation.wait_for_start(0)
        assert http.get("/health/live").status_code == http.get("/health/ready").status_code == 200
        assert http.get("/online", headers={"authorization": f"Bearer {token}"}).status_code == 200
        participation.update(prepared=False)
        assert http.post("/start", auth=("fedmap", token)).status_code == 200  # http://fedmap:TOKEN@host
        assert participation.wait_for_start(0)


def test_health_follows_the_standing(http: httpx.Client, participation: Participation) -> None:
    assert http.get("/health/live").json()["status"] == "alive"
    answer = http.get("/health/ready")
    assert (answer.status_code, answer.json()["detail"]) == (503, "the client prepares its data")
    participation.update(state=CONNECTED, prepared=True, waiting_for="the next round")
    answer = http.get("/health/ready")
    assert (answer.status_code, answer.json()) == (200, {"status": "ready", "detail": "the next round"})
    participation.update(state=FAILED, problem="labels differ")
    answer = http.get("/health/ready")
    assert (answer.status_code, answer.json()["detail"]) == (503, "labels differ")


def test_status_and_metrics_say_the_same(http: httpx.Client, participation: Participation) -> None:
    participation.event({"event": "joined", "run": "r", "num_rounds": 5, "num_train": 40})
    participation.event({"event": "training", "round": 2, "num_rounds": 5})
    participation.event({"event": "trained", "round": 2, "num_rounds": 5, "loss": 0.5, "f1": 0.25, "seconds": 1.5})
    status = http.get("/status").json()
    assert (status["state"], status["round_index"], status["train_loss"], status["test_macro_f1"]) == ("connected", 2, 0.5, None)
    answer = http.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    samples = {
        (sample.name, sample.labels.get("state", "")): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
        if sample.labels.items() >= LABELS.items()
    }
    assert samples["fedmap_client_train_loss", ""] == status["train_loss"]
    assert samples["fedmap_client_round", ""] == 2
    assert samples["fedmap_client_rounds_trained_total", ""] == 1
    assert samples["fedmap_client_state", "connected"] == 1
    assert sum(value for (name, _), value in samples.items() if name == "fedmap_client_state") == 1
    assert ("fedmap_client_test_macro_f1", "") not in samples, "it is not known yet"


def test_what_is_not_there_and_what_is_too_large(http: httpx.Client) -> None:
    assert http.get("/nothing").status_code == 404
    assert http.get("/start").status_code == 405
    assert http.post("/start", content=b"x" * (1 << 20)).status_code == 413
    page = http.get("/docs")
    assert page.status_code == 200
    assert "://" not in page.text, "the page loads nothing from elsewhere"
