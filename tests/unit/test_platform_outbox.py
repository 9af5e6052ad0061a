"""Reports wait in order, are tried again, and never make anybody wait."""

import threading
import time

import pytest

from fedmap.backoff import pauses
from fedmap.service.outbox import Outbox
from fedmap.service.transport import Refused


def outbox(said: list[str], capacity: int = 256) -> Outbox:
    return Outbox("http://platform", said.append, capacity=capacity, first_pause=0.01, longest_pause=0.02)


def wait_until(true, seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.005)
    assert true()


def test_reports_are_sent_in_order_and_close_sends_the_rest() -> None:
    said: list[str] = []
    sent: list[int] = []
    box = outbox(said)
    for k in range(50):
        box.put("a report", lambda k=k: sent.append(k))
    box.close(10)
    assert sent == list(range(50))
    assert (box.sent, box.lost, said) == (50, 0, [])


def test_trouble_is_one_warning_and_the_report_is_tried_again() -> None:
    said: list[str] = []
    attempts: list[str] = []

    def flaky() -> None:
        attempts.append("flaky")
        if len(attempts) < 5:
            raise OSError("broken pipe")

    box = outbox(said)
    box.put("a round's scores", flaky)
    box.put("the end", lambda: attempts.append("end"))
    wait_until(lambda: box.sent == 2)
    box.close()
    assert attempts == [*["flaky"] * 5, "end"]
    assert said == [
        "the FedOps platform at http://platform does not take a round's scores: broken pipe; later reports wait, and it is tried again. "
        "The federation goes on without it"
    ]


def test_a_refused_report_is_dropped_and_the_next_is_sent() -> None:
    said: list[str] = []

    def refused() -> None:
        raise Refused("the answer is HTTP 422")

    box = outbox(said)
    for _ in range(3):
        box.put("a report", refused)
    box.put("another", lambda: None)
    box.close(10)
    assert (box.sent, box.lost, len(said)) == (1, 3, 1)
    assert "it is not sent again" in said[0]


def test_of_too_many_reports_the_oldest_are_lost() -> None:
    go = threading.Event()
    sent: list[int] = []
    box = outbox([], capacity=3)
    box.put("first", go.wait)
    wait_until(lambda: box.waiting == 0)
    for k in range(10):
        box.put("a report", lambda k=k: sent.append(k))
    assert (box.waiting, box.lost) == (3, 7)
    go.set()
    box.close(10)
    assert sent == [7, 8, 9]


@pytest.mark.parametrize("failed_before", [False, True])
def test_neither_put_nor_close_waits_for_a_platform_that_hangs(failed_before: bool) -> None:
    hang = threading.Event()

    def never() -> None:
        if failed_before:
            raise TimeoutError
        hang.wait(60)

    said: list[str] = []
    box = outbox(said)
    started = time.monotonic()
    for _ in range(1000):
        box.put("a report", never)
    assert time.monotonic() - started < 1.0
    if failed_before:
        wait_until(lambda: len(said) == 1)
    started = time.monotonic()
    box.close(0.5)
    assert time.monotonic() - started < (0.4 if failed_before else 1.5)
    assert box.lost == 1000
    hang.set()


def test_pauses_grow_and_are_random() -> None:
    assert [pauses(1, 30, jitter=lambda: 1.0)(k) for k in (1, 2, 3, 6, 10_000)] == [1, 2, 4, 30, 30]
    assert pauses(1, 30, jitter=lambda: 0.0)(3) == 2
    pause = pauses(1, 30)
    assert len({pause(3) for _ in range(20)}) > 1
    assert all(2 <= pause(3) < 4 for _ in range(100))
