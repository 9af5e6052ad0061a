"""Secrets planted everywhere a federation takes them, and looked for in everything that it leaves, says and serves."""

import os
import subprocess
import zipfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import httpx
import pytest

from fedmap.access.authority import make_authority, make_certificate
from fedmap.access.folder import AccessFolder
from fedmap.access.keys import make_client_key
from fedmap.service import background
from fedmap.service.server_front import create_server_app
from tests.federations import DIGITS, script

pytestmark = [pytest.mark.slow, pytest.mark.network, pytest.mark.timeout(300)]

PLANTED = {
    "token": "planted-token-0123456789abcdef",
    "tracking key": "planted-tracking-key-4711",
    "tracking password": "planted-tracking-password-4711",
    "address password": "planted-url-password-4711",
    "environment": "planted-environment-secret-4711",
    "platform password": "planted-platform-password-4711",
}


def test_no_secret_is_in_what_a_run_leaves_says_and_serves(tmp_path: Path) -> None:
    access = AccessFolder(tmp_path / "certs")
    make_authority(access)
    make_certificate(access, access.server, [])
    make_client_key(access, 0)
    (tmp_path / "token").write_text(PLANTED["token"])
    (tmp_path / "token").chmod(0o600)
    folder = tmp_path / "outputs" / "run"
    overrides = [
        *DIGITS,
        "runtime=local",
        "runtime.workers=1",
        "dataset.num_clients=2",
        "num_rounds=1",
        "security=tls",
        f"security.folder={access.path}",
        "service.port=0",
        f"service.token_file={tmp_path / 'token'}",
        f"+tracking.api_key={PLANTED['tracking key']}",
        f"+tracking.login.password={PLANTED['tracking password']}",
        f"+tracking.uri=https://user:{PLANTED['address password']}@mlflow.example/x",
        f"hydra.run.dir={folder}",
    ]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "SOME_API_KEY": PLANTED["environment"],
        "FEDOPS_CLIENT_PERFORMANCE_URL": f"http://user:{PLANTED['platform password']}@127.0.0.1:9",
        "FEDOPS_REQUEST_TIMEOUT_SECONDS": "0.2",
    }
    done = subprocess.run(script("server_main.py", *overrides), cwd=tmp_path, env=environment, capture_output=True, timeout=280)
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    private = [path.read_bytes().splitlines()[1] for path in access.path.rglob("*.key")]
    assert len(private) == 3
    needles = {**{name: value.encode() for name, value in PLANTED.items()}, **{f"key {n}": line for n, line in enumerate(private)}}
    searched = dict(everything(folder))
    assert {"config.yaml", "results.json", "events.jsonl", "report.md", "report.html", "front.log"} <= set(searched)
    assert any(name.startswith("checkpoints/") for name in searched)
    assert not (folder / "run.yaml").exists(), "what the run's own processes needed went with the run"
    with (
        background.serving(create_server_app(tmp_path / "outputs", depth=1, token=PLANTED["token"])) as front,
        httpx.Client(base_url=front.url, timeout=30) as http,
    ):
        run_id = http.get("/api/runs").json()[0]["id"]
        paths = [
            "/",
            "/api/runs",
            f"/api/runs/{run_id}",
            f"/api/runs/{run_id}/files",
            "/status",
            "/rounds",
            "/clients",
            "/metrics",
            "/openapi.json",
        ]
        paths += [f"/api/runs/{run_id}/files/{entry['name']}" for entry in http.get(f"/api/runs/{run_id}/files").json()]
        for path in paths:
            answer = http.get(path)
            assert answer.status_code == 200, path
            searched[f"GET {path}"] = answer.content
    found = [
        f"{name} in {where}"
        for where, text in [*searched.items(), ("stdout", done.stdout), ("stderr", done.stderr)]
        for name, needle in needles.items()
        if needle in text
    ]
    assert found == []
    assert b"hidden" in searched["config.yaml"] or b"***" in searched["config.yaml"], "the keys are there, without their values"


def everything(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Names and contents of all files, and of what is packed in them."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            content = path.read_bytes()
            yield path.relative_to(folder).as_posix(), content
            if zipfile.is_zipfile(BytesIO(content)):
                with zipfile.ZipFile(BytesIO(content)) as archive:
                    for name in archive.namelist():
                        yield f"{path.name}/{name}", archive.read(name)
