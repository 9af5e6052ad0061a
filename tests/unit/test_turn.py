"""What a client reads in its SuperNode's log: that it was refused, and that an earlier connection with its key is still there."""

import re
from pathlib import Path

import pytest

from fedmap.errors import FederationError
from fedmap.flower import supernode
from fedmap.flower.supernode import _Log, _Turn

REFUSED = "Failed to initialize the connection to the SuperLink.\n[code: 9004] this key is not accepted: it was revoked\n"


def test_a_refusal_is_read_from_this_attempts_part_of_the_log(tmp_path: Path) -> None:
    path = tmp_path / "supernode.log"
    assert (_Log(path, 0).said(), _Log(path, 0).refusal(), _Log(path, 0).connected()) == ("", "", False)
    path.write_text(REFUSED)
    assert _Log(path, 0).refusal() == "this key is not accepted: it was revoked"
    later = _Log(path, path.stat().st_size)
    assert later.refusal() == ""
    with path.open("a") as file:
        file.write("[code: 2004] of Flower's own\nSuperNode ID: 7\n")
    assert (later.refusal(), later.connected()) == ("", True)
    path.write_text("SuperNode ID: 8\n")  # the log has been begun anew meanwhile
    assert later.connected()


def test_a_client_says_that_it_waits_and_not_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(supernode.time, "monotonic", lambda: clock[0])
    log = _Log(tmp_path / "supernode.log", 0)
    said: list[str] = []
    turn = _Turn(3, said.append, log)
    turn.look()
    clock[0] = 190.0
    turn.look()
    assert said == [], "a SuperNode that is slow to start is not in anybody's way"
    log.path.write_text("WARNING: Connection attempt failed, retrying in 1.00 seconds\n")
    for clock[0] in (200.0, 224.0):
        turn.look()
    assert said == []
    for clock[0] in (226.0, 240.0):
        turn.look()
    assert said == ["client 3: the server still sees an earlier connection with this key; waiting for its end"]
    clock[0] = 400.0
    with pytest.raises(FederationError, match=re.escape("client 3's key is in use by another program that is connected to the server")):
        turn.look()
    log.path.write_text("SuperNode ID: 7\n")
    turn.look()
    log.path.write_text("")
    clock[0] = 1000.0
    turn.look()  # once connected, it is no longer looked at
    assert len(said) == 1
