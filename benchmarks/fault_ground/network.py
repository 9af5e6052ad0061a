"""Faults in the superlink runtime: clients, the network, the SuperLink and the server's app; real processes on loopback."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.fault_ground.deployed import Deployed, deployed
from benchmarks.fault_ground.injection import BEFORE, KILL, MEMORY, MODEL_SAYS, RAISE, SLEEP, Fault, overrides, write_plan
from benchmarks.fault_ground.local import COMMON, STARVED, run
from benchmarks.fault_ground.proxy import Proxy
from benchmarks.fault_ground.trial import Check, Trial, model_bits
from fedmap.errors import FederationError

DEPLOYED = ("runtime=superlink", *(value for value in COMMON if not value.startswith(("runtime", "service", "dataset.num_clients"))))
_KEPT_BACK = "what it says stays with the client"  # a model's own words may hold data: they stay in the client's log
_GONE = "lost on its way|left before it answered|Node Unavailable|no answer within|stopped responding|ended while it answered"


def left_alone(place: Path, num_clients: int, num_rounds: int) -> tuple[str, float]:
    """The same federation in one process and without faults: the last model's digest, and the test macro-F1."""
    run(place, [f"dataset.num_clients={num_clients}", f"num_rounds={num_rounds}", "runtime.workers=0"])
    return model_bits(place / "run"), Check(place / "run").f1 or 0.0


def clients(place: Path) -> list[Trial]:
    """Client 1's app dies, client 0's model fails, client 1 has too little memory, client 2 comes late, client 0 is slow, and the
    machine of client 2 is switched off and on again.
    """
    place.mkdir(parents=True)
    num_rounds, seconds = 8, 60
    plan = [Fault(1, 1, KILL, BEFORE), Fault(0, 2, RAISE), Fault(1, 3, MEMORY), Fault(0, 5, SLEEP, seconds=80.0)]
    path = write_plan(place / "plan.json", plan)
    own = ["dataset.num_clients=3", "num_clients=2", f"num_rounds={num_rounds}", f"runtime.round_seconds={seconds}", "runtime.quorum=0.3"]
    _, f1 = left_alone(place / "alone", 3, num_rounds)
    with deployed(place, [*DEPLOYED, *own, *overrides(path)]) as federation:
        problems: list[str] = []
        try:
            federation.server()
            federation.client(0)
            federation.client(1)
            federation.wait(lambda: federation.ended(1), "round 1")
            federation.client(2)
            federation.wait(lambda: _ok(federation, 2), "client 2's first update")
            federation.wait(lambda: federation.asked(6), "round 6")
            federation.kill("client_2")
            federation.client(2)
            problems += _ends(federation, 0, 1, 2)
        except FederationError as error:
            problems.append(str(error))
        notes = federation.notes()

        def trial(fault: str, moment: str, look: Callable[[Check], None]) -> Trial:
            check = Check(federation.folder, list(problems))
            check.finished(num_rounds)
            check.score(f1)
            look(check)
            return Trial(fault, "superlink", moment, tuple(check.problems), check.f1)

        def late(check: Check) -> None:
            check.that("client 2 has joined" in notes, "nobody was told that client 2 has joined")
            check.that(any(c.client_id == 2 and c.status == "ok" for r in check.history.rounds for c in r.clients), "it never took part")

        def back(check: Check) -> None:
            check.that(notes.count("client 2 has joined") == 2, "it was not told that client 2 has come back")
            check.that(re.search("client 2 .*(has left|Node Unavailable)", notes), "it was not told that client 2 has left")

        def straggler(check: Check) -> None:
            check.lost(5, 0, f"no answer within {seconds} s")
            check.that(
                re.search("client 0 answered round 5 after .* too late: its answer is not used", notes), "the late answer is not noted"
            )

        return [
            trial("a client dies", "client 1's app, round 1, before training", lambda check: check.lost(1, 1, _GONE)),
            trial("an exception in the model", "client 0, round 2", lambda check: check.lost(2, 0, f"{MODEL_SAYS}|{_KEPT_BACK}")),
            trial("a client out of memory", "client 1, round 3", lambda check: check.lost(3, 1, STARVED)),
            trial("a client comes late", "client 2, after round 1", late),
            trial("a client is too slow", "client 0, round 5, 80 s instead of 60 s", straggler),
            trial("a client's machine is switched off and on", "client 2, round 6", back),
        ]


def _ok(federation: Deployed, client_id: int) -> bool:
    return any(event["event"] == "client" and event["client_id"] == client_id for event in federation.events())


def _ends(federation: Deployed, *client_ids: int) -> list[str]:
    """Wait for the end of the server and the clients; what is not as it should be."""
    problems = []
    for name in ("server", *(f"client_{k}" for k in client_ids)):
        if code := federation.end(name):
            problems.append(f"{name} ended with exit code {code}: {federation.said(name)[-300:]}")
    return problems + [f"left behind: {line[:100]}" for line in federation.left()[:3]]


def network(place: Path, rng: random.Random) -> list[Trial]:
    """Two clients behind bad networks: slow in one round, cut in the next, swallowed, half open. The same bits as without."""
    num_rounds = 5
    own = ["dataset.num_clients=2", "num_clients=2", f"num_rounds={num_rounds}", "runtime.round_seconds=300"]
    bits, f1 = left_alone(place / "alone", 2, num_rounds)
    struck: list[tuple[str, str]] = []
    with deployed(place, [*DEPLOYED, *own]) as federation, Proxy(federation.port) as first, Proxy(federation.port) as second:
        problems: list[str] = []
        try:
            first.latency = second.latency = 0.05
            federation.server()
            federation.client(0, first.port)
            federation.client(1, second.port)

            def in_round(round_index: int, name: str, strike: Callable[[], str]) -> None:
                federation.wait(lambda: federation.asked(round_index), f"round {round_index}")
                wait = rng.uniform(0, 6)
                time.sleep(wait)
                struck.append((name, f"round {round_index}, after {wait:.1f} s: {strike()}"))

            in_round(1, "the network is slow", lambda: _slow(first, second))
            in_round(2, "connections are cut", lambda: f"{first.reset() + second.reset()} connections reset")
            in_round(3, "the network swallows everything", lambda: _swallow(second, 15.0))
            in_round(4, "connections are half open", lambda: f"{second.forget()} connections forgotten")
            in_round(5, "connections are cut", lambda: f"{first.reset()} connections reset")
            problems += _ends(federation, 0, 1)
        except FederationError as error:
            problems.append(str(error))
        trials = []
        for name, moment in struck or [("the network is slow", "never reached")]:
            check = Check(federation.folder, list(problems))
            check.finished(num_rounds)
            if lost := check.lost_anywhere():
                check.that(all(re.search(_GONE, reason) for _, _, reason in lost), f"lost for other reasons: {lost}")
                check.score(f1)
            else:
                check.same_model(bits)
            trials.append(Trial(name, "superlink", moment, tuple(check.problems), check.f1))
        return trials


def _slow(*proxies: Proxy) -> str:
    for proxy in proxies:
        proxy.latency, proxy.bandwidth = 0.2, 100_000.0
    time.sleep(10)
    for proxy in proxies:
        proxy.latency, proxy.bandwidth = 0.05, 0.0
    return "0.2 s and 100 kB/s for 10 s"


def _swallow(proxy: Proxy, seconds: float) -> str:
    proxy.swallow(True)
    time.sleep(seconds)
    proxy.swallow(False)
    return f"nothing arrives for {seconds:g} s"


def servers(place: Path, rng: random.Random) -> list[Trial]:
    """The SuperLink and the server's app are killed while clients train; the same command again goes on, to the same bits."""
    num_rounds = 4
    own = ["dataset.num_clients=2", "num_clients=2", f"num_rounds={num_rounds}"]
    bits, _ = left_alone(place / "alone", 2, num_rounds)
    struck: list[tuple[str, str]] = []
    with deployed(place, [*DEPLOYED, *own]) as federation:
        problems: list[str] = []
        try:
            federation.server()
            federation.client(0)
            federation.client(1)
            for round_index, fault, word in ((1, "the SuperLink dies", "flower-superlink"), (3, "the server's app dies", "flwr-serverapp")):
                federation.wait(lambda number=round_index: federation.asked(number), f"round {round_index}")
                wait = rng.uniform(0, 8)
                time.sleep(wait)
                struck.append((fault, f"round {round_index}, after {wait:.1f} s"))
                if not federation.kill_within("server", word):
                    problems.append(f"there is no {word} to kill")
                code = federation.end("server")
                if code != 1 or "error: " not in federation.said("server"):
                    problems.append(f"after {fault}: exit code {code}, {federation.said('server')[-300:]}")
                federation.server()
            problems += _ends(federation, 0, 1)
        except FederationError as error:
            problems.append(str(error))
        trials = []
        for fault, moment in struck:
            check = Check(federation.folder, list(problems))
            check.finished(num_rounds)
            check.same_model(bits)
            trials.append(Trial(fault, "superlink", f"{moment}; started again", tuple(check.problems), check.f1))
        return trials
