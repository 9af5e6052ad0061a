"""A deployed client's resident process: one for all messages, gone with what it was for."""

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from flwr.app import Context, Message, MessageType, RecordDict

from fedmap.config import PROJECT, compose_and_resolve, save
from fedmap.errors import ClientMemoryError
from fedmap.flower import resident
from fedmap.flower.local_grid import LocalGrid
from fedmap.flower.wire import RunInfo, content_to_card, run_to_content
from tests.federations import DIGITS, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300), pytest.mark.skipif(sys.platform == "win32", reason="no Unix sockets")]

ASK = """
import sys
sys.path.insert(0, sys.argv[1])
from flwr.app import Context, RecordDict
from fedmap.flower import resident
from tests.integration.test_resident import asked
from fedmap.flower.wire import content_to_card
node = {"config": sys.argv[2] + "/run.yaml", "events": sys.argv[2] + "/events.jsonl", "client-id": 1}
reply = resident.answer(asked(), Context(1, 2, node, RecordDict(), {}))
open(sys.argv[2] + "/answered", "w").write(str(content_to_card(reply.content).client_id))
"""


@pytest.fixture
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, short_folder: Path) -> Context:
    """Of a client that client_main.py has started in a session of its own."""
    monkeypatch.setenv("FLWR_HOME", str(short_folder))
    save(compose_and_resolve("config", ["runtime=superlink", *DIGITS]), tmp_path / "run.yaml")
    node = {"client-id": 1, "config": str(tmp_path / "run.yaml"), "events": str(tmp_path / "events.jsonl")}
    return Context(1, 2, dict(node), RecordDict(), {})


@pytest.fixture
def short_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder whose path leaves room for a socket's, and the end of the resident that was started there."""
    folder = tmp_path_factory.mktemp("r")
    yield folder
    for process in residents(folder):
        process.kill()
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def residents(folder: Path) -> list[psutil.Process]:
    found = [p for p in psutil.process_iter(["cmdline", "status"]) if str(folder / "resident") in (p.info["cmdline"] or [])]
    return [p for p in found if p.info["status"] != psutil.STATUS_ZOMBIE]


@contextlib.contextmanager
def asking(folder: Path, before: str = "", **how: bool) -> Iterator[subprocess.Popen[bytes]]:
    """A process that asks once, killed at the end of the block if it still runs."""
    process = subprocess.Popen([sys.executable, "-c", before + ASK, str(PROJECT), str(folder)], **how)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def asked() -> Message:
    LocalGrid({}, 0)  # names this process to Flower, as a server's would
    message = Message(run_to_content(RunInfo("a", 1, 2)), 2, MessageType.QUERY, ttl=60)
    message.metadata.__dict__["_message_id"] = "m"
    return message


def test_one_process_answers_every_message(context: Context, short_folder: Path) -> None:
    first = resident.answer(asked(), context)
    (process,) = residents(short_folder)
    second = resident.answer(asked(), context)
    assert residents(short_folder) == [process]
    for reply in (first, second):
        assert reply is not None
        assert content_to_card(reply.content).client_id == 1
    assert (short_folder / "resident").stat().st_mode & 0o077 == 0


def test_one_that_was_killed_is_followed_by_another(context: Context, short_folder: Path) -> None:
    resident.answer(asked(), context)
    (process,) = residents(short_folder)
    process.kill()
    process.wait()
    reply = resident.answer(asked(), context)
    assert reply is not None
    assert content_to_card(reply.content).client_id == 1
    assert residents(short_folder) != [process]


@pytest.fixture
def endless(context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The client's data take for ever to read; a file appears as it begins."""
    marker = tmp_path / "reading"
    (tmp_path / "endless.py").write_text(
        f"import pathlib, time\nclass Data:\n    def __init__(self):\n        pathlib.Path({str(marker)!r}).touch()\n        time.sleep(600)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    save(compose_and_resolve("config", ["runtime=superlink", *DIGITS]) | {"dataset": {"_target_": "endless.Data"}}, tmp_path / "run.yaml")
    return marker


def test_one_that_dies_at_work_is_the_answer(context: Context, short_folder: Path, endless: Path) -> None:
    def kill() -> None:
        wait_for(endless.exists, 120, lambda: "nothing is read")
        residents(short_folder)[0].kill()

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(ClientMemoryError, match="ended while it answered the server's query message"):
        resident.answer(asked(), context)
    killer.join()


def test_it_gives_up_when_nobody_waits_for_the_answer(short_folder: Path, endless: Path, tmp_path: Path) -> None:
    with asking(tmp_path) as asker:
        wait_for(endless.exists, 120, lambda: "nothing is read")
        (process,) = residents(short_folder)
        asker.kill()
        asker.wait()
        process.wait(30)


def test_it_ends_with_its_session(context: Context, short_folder: Path, tmp_path: Path) -> None:
    with asking(tmp_path, start_new_session=True) as leader:
        wait_for(lambda: residents(short_folder), 60, lambda: "no resident")
        (process,) = residents(short_folder)
        assert leader.wait(120) == 0
        process.wait(30)


def test_it_answers_where_its_session_has_no_leader_any_more(context: Context, short_folder: Path, tmp_path: Path) -> None:
    with asking(tmp_path, "import os\nif os.fork():\n    os._exit(0)\n", start_new_session=True) as leader:
        assert leader.wait(120) == 0
        (process,) = wait_for(lambda: residents(short_folder), 60, lambda: "no resident")
        (asker,) = psutil.Process(process.pid).parents()[:1]
        assert os.getsid(process.pid) == leader.pid != asker.pid
        asker.wait(120)
        process.wait(30)
    assert (tmp_path / "answered").read_text() == "1"


def test_clients_that_client_main_did_not_start_have_none(context: Context, short_folder: Path) -> None:
    del context.node_config["events"]
    assert resident.answer(asked(), context) is None
    assert residents(short_folder) == []
