"""A client process reads its configuration once, and again when the file is another one."""

from pathlib import Path

from flwr.app import Context, RecordDict

from fedmap.config import compose_and_resolve, save
from fedmap.flower import session
from fedmap.flower.session import forget_sessions, session_of
from tests.federations import DIGITS


def _context(file: Path, client_id: int) -> Context:
    return Context(1, 1, {"config": str(file), "client-id": client_id}, RecordDict(), {})


def test_the_file_is_read_once_until_it_changes(tmp_path: Path, monkeypatch) -> None:
    read: list[Path] = []
    load = session.load
    monkeypatch.setattr(session, "load", lambda path: (read.append(path), load(path))[1])
    file = tmp_path / "run.yaml"
    tree = compose_and_resolve("config", ["runtime=local", *DIGITS])
    save(tree, file)
    forget_sessions()
    first, number = session_of(_context(file, 3))
    assert number == 3
    assert session_of(_context(file, 4)) == (first, 4)
    assert len(read) == 1
    save({**tree, "client_id": 7}, file)
    assert session_of(_context(file, 3))[0] is first, "another client_id is no other configuration"
    save({**tree, "learning_rate": 0.5}, file)
    second, _ = session_of(_context(file, 3))
    assert second is not first
    assert second.options.learning_rate == 0.5
    assert len(read) == 3
    forget_sessions()
    assert session_of(_context(file, 3))[0] is not second
    forget_sessions()
