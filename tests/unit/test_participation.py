"""Where a client stands, and the wishes of others."""

import threading
import time

from fedmap.participation import CONNECTED, FINISHED, PREPARING, SEARCHING, STOPPED, TRAINING, Participation


def test_events_move_the_standing() -> None:
    client = Participation()
    assert client.standing.state == PREPARING
    client.event({"event": "joined", "run": "r", "num_rounds": 3, "num_train": 40})
    assert (client.standing.state, client.standing.run, client.standing.num_train) == (CONNECTED, "r", 40)
    client.event({"event": "training", "round": 2, "num_rounds": 3})
    assert (client.standing.state, client.standing.round_index, client.standing.waiting_for) == (TRAINING, 2, "")
    client.event({"event": "trained", "round": 2, "num_rounds": 3, "loss": 0.5, "f1": None, "seconds": 1.5})
    standing = client.standing
    assert (standing.rounds_trained, standing.train_loss, standing.validation_macro_f1) == (1, 0.5, None)
    client.event({"event": "finished", "macro_f1": 0.25, "micro_f1": 0.5, "num_test": 9})
    assert client.standing.test_macro_f1 == 0.25
    client.event({"event": "something new"})


def test_since_is_when_the_state_began() -> None:
    client = Participation()
    before = client.standing.since
    client.update(waiting_for="x")
    assert client.standing.since == before
    time.sleep(0.01)
    client.update(state=CONNECTED)
    assert client.standing.since > before


def test_a_wish_to_start_is_taken_once() -> None:
    client = Participation()
    client.update(state=FINISHED)
    assert not client.wait_for_start(0)
    client.ask_to_start()
    client.ask_to_start()
    assert client.wanted
    assert client.wait_for_start(0)
    assert not client.wait_for_start(0)


def test_a_client_that_takes_part_does_not_start_twice() -> None:
    client = Participation()
    client.ask_to_start()  # while it prepares its data, and then it begins by itself
    client.begin()
    assert client.standing.state == SEARCHING
    client.ask_to_start()
    client.update(state=STOPPED)
    assert not client.wait_for_start(0)


def test_a_stop_takes_back_a_start_and_means_nothing_to_a_client_that_does_not_take_part() -> None:
    client = Participation()
    client.update(state=FINISHED)
    client.ask_to_start()
    client.ask_to_stop()
    assert not client.wait_for_start(0)
    assert not client.stopping
    client.begin()
    client.ask_to_stop()
    assert client.stopping
    assert client.take_stop()
    assert not client.stopping


def test_a_stop_before_the_data_are_ready_is_kept() -> None:
    client = Participation()
    client.ask_to_stop()
    assert client.take_stop()
    client.ask_to_stop()
    client.ask_to_start()
    assert not client.stopping


def test_waiting_ends_with_the_wish() -> None:
    client = Participation()
    client.begin()
    threading.Timer(0.05, client.ask_to_stop).start()
    started = time.monotonic()
    assert client.wait_for_stop(10)
    assert time.monotonic() - started < 5
    threading.Timer(0.05, lambda: client.update(address="h:1")).start()
    assert client.wait_until(lambda standing: bool(standing.address), 10)
    assert not client.wait_until(lambda standing: not standing.address, 0.01)
