"""Messages between processes of one machine."""

from multiprocessing import Pipe
from threading import Thread

import pytest

from fedmap.flower.pipes import receive, send


def test_what_was_sent_arrives() -> None:
    ours, theirs = Pipe()
    large = bytes(range(256)) * 4096
    thing = {"large": [large, large, large + b"1"], "small": b"abc", "empty": b"", "number": 1, "text": "x" * 100_000}
    sender = Thread(target=send, args=(ours, thing))
    sender.start()
    assert receive(theirs) == thing
    sender.join()
    for value in (None, b"x" * (1 << 16), ()):
        sender = Thread(target=send, args=(theirs, value))
        sender.start()
        assert receive(ours) == value
        sender.join()
    ours.close()
    theirs.close()


def test_a_closed_end_is_an_end() -> None:
    ours, theirs = Pipe()
    ours.send_bytes(b"\2\0\0\0")
    ours.send_bytes(b"one of two")
    ours.close()
    with pytest.raises(EOFError):
        receive(theirs)
    theirs.close()
