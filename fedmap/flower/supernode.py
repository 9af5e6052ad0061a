"""A deployed federation's client: supervises a SuperNode until the run has ended, and starts it again when it has lost its server."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import psutil

from fedmap.access.folder import AccessFolder
from fedmap.access.handshake import check_encrypted, check_plain
from fedmap.backoff import pauses
from fedmap.config import PROJECT, RunConfig
from fedmap.errors import FederationError
from fedmap.flower import launcher, own_app, paced, processes
from fedmap.flower.events import Tail
from fedmap.flower.identities import REFUSED
from fedmap.participation import CONNECTED, CONNECTING, SEARCHING, Participation

_POLL_SECONDS = 0.3
_EARLY_SECONDS = 30.0  # a SuperNode that ends sooner, with the server there, has not only lost its connection
_MOST_FAILURES = 4
_MOST_PROBLEMS = 3  # rounds in a row that a client may fail before it ends: one error may pass, as when a machine is short of memory
_TURN_SECONDS, _TURN_SAID_SECONDS = 180.0, 25.0  # Flower forgets a SuperNode that died without a word after a minute
_ENDED, _STOPPED, _MOVED, _LOST = "the run has ended", "stopped", "the server has moved", "the SuperNode has ended"


class Whereabouts(Protocol):
    """Where the server is; see `fedmap.service.discovery`. Nothing here waits."""

    @property
    def address(self) -> str:
        """host:port; "" while it is not known."""

    @property
    def waiting_for(self) -> str:
        """A sentence while the address is not known."""

    def refresh(self) -> None:
        """Ask again."""


@dataclass(frozen=True)
class Member:
    """What a client needs to take part, and whom it tells.

    Attributes:
        config: its configuration.
        config_file: the same in a file, for the processes that it starts.
        folder: for its logs.
        say: told sentences for people.
        on_event: told what the client app does; see `fedmap.flower.client_app`.
    """

    config: RunConfig
    config_file: Path
    folder: Path
    say: Callable[[str], None]
    on_event: Callable[[dict[str, Any]], None]


def join(member: Member, server: Whereabouts, participation: Participation) -> bool:
    """Take part in the federation until the run has ended (or for ever, with `runtime.stay`) or a stop is asked for.

    A SuperNode that ends, because the SuperLink was started anew, for instance, is started again after a growing, random pause.

    Returns:
        Whether the run has ended; False after a stop.

    Raises:
        FederationError: this client cannot take part, or its SuperNode ends again and again although the server answers.
    """
    config, folder = member.config, member.folder
    environment = processes.environment(PROJECT / ".fedmap" / "flower" / f"{folder.parent.name}_{folder.name}_client_{config.client_id}")
    # Flower's own second between looks for a message to start a process for is, on average, half a second of every round.
    environment.setdefault("FLWR_SUPEREXEC_TASK_POLL_INTERVAL", "0.2")
    home = Path(environment["FLWR_HOME"])
    events = Tail(folder / "client_events.jsonl")
    program = Path(processes.program("flwr-clientapp"))
    if config.security.app == "same":
        program = own_app.install(home, events.path) / program.name
        environment["PATH"] = os.pathsep.join([str(program.parent), environment["PATH"]])
    if (start := launcher.install(home, program)) is not None:
        environment["PATH"] = os.pathsep.join([str(start), environment["PATH"]])
    for _ in events.new():  # of an earlier time that this process took part
        pass
    log = folder / "supernode.log"
    pause = pauses(first=2.0, longest=30.0)
    failures = 0
    try:
        while True:
            address = _address(config.client_id, server, participation, member.say)
            if not address:
                return False
            started = time.monotonic()
            attempt = _Log(log, log.stat().st_size if log.exists() else 0)
            participation.update(connections=participation.standing.connections + 1)
            with processes.running(_supernode(member, address, events.path), log, Path.cwd(), environment) as process:
                outcome = _follow(member, events, process, server, address, participation, attempt)
            if outcome in (_ENDED, _STOPPED):
                return outcome == _ENDED
            if outcome == _MOVED:
                continue
            early = time.monotonic() - started < _EARLY_SECONDS and processes.answers(address)
            failures = failures + 1 if early else 0
            if refusal := attempt.refusal():
                raise FederationError(f"client {config.client_id} may not join at {address}: {refusal}")
            if failures >= _MOST_FAILURES:
                raise FederationError(
                    f"the SuperNode ended {failures} times in a row although {address} answers, last with exit code "
                    f"{process.returncode}; the end of {log}:\n{processes.tail(log)}"
                )
            server.refresh()
            seconds = pause(max(failures, 1))
            member.say(f"client {config.client_id}: the connection to {address} has ended; connecting again in {seconds:.0f} s")
            participation.update(state=CONNECTING, waiting_for=f"the server at {address}")
            participation.wait_for_stop(seconds)
    finally:
        shutil.rmtree(environment["FLWR_HOME"], ignore_errors=True)


def _supernode(member: Member, address: str, events: Path) -> list[str]:
    node = {"client-id": member.config.client_id, "config": str(member.config_file), "events": str(events)}
    command = [sys.executable, "-P", str(Path(paced.__file__)), processes.program("flower-supernode")]
    command += ["--superlink", address, "--port", str(processes.free_port())]
    command += ["--node-config", " ".join(f"{key}={json.dumps(value)}" for key, value in node.items())]
    if member.config.security.folder is None:
        return [*command, "--insecure"]
    access = AccessFolder(Path(member.config.security.folder))
    key = access.client_key(member.config.client_id)
    return [*command, "--root-certificates", str(access.authority), "--auth-supernode-private-key", str(key)]


@dataclass(frozen=True)
class _Log:
    """What one SuperNode has said.

    Attributes:
        path: a file, in which other SuperNodes have written before.
        start: where this one begins.
    """

    path: Path
    start: int

    def said(self) -> str:
        """Everything since the start, or since the file was begun anew."""
        if not self.path.exists():  # it has said nothing
            return ""
        with self.path.open("rb") as file:
            file.seek(self.start if self.path.stat().st_size >= self.start else 0)
            return file.read().decode(errors="replace")

    def refusal(self) -> str:
        """The sentence with which the server has refused the SuperNode; "" if it has not."""
        found = re.search(rf"\[code: {REFUSED}\] ([^\n]+)", self.said())
        return found[1].strip() if found else ""

    def connected(self) -> bool:
        """Whether the server has taken the connection."""
        return "SuperNode ID:" in self.said()

    def turned_away(self) -> bool:
        """Whether the server has told the SuperNode to try again later."""
        return "Connection attempt failed, retrying" in self.said()


def _look(config: RunConfig, address: str) -> None:
    """Check that client and server agree about TLS.

    Raises:
        FederationError: they do not, or the server is not the one that the client's authority knows.
    """
    host, port = processes.split_address(address)
    if config.security.folder is None:
        check_plain(host, port)
    else:
        check_encrypted(host, port, AccessFolder(Path(config.security.folder)).authority)


def _address(client_id: int, server: Whereabouts, participation: Participation, say: Callable[[str], None]) -> str:
    """Wait for the server's address; "" if a stop was asked for first."""
    said = ""
    while not participation.stopping:
        if address := server.address:
            if participation.standing.address != address:
                say(f"client {client_id}: connecting to {address}")
            participation.update(state=CONNECTING, address=address, waiting_for=f"the server at {address}")
            return address
        if (sentence := server.waiting_for) != said:
            said = sentence
            say(f"client {client_id}: waiting for {sentence}")
            participation.update(state=SEARCHING, waiting_for=sentence)
        participation.wait_for_stop(_POLL_SECONDS)
    return ""


def _follow(
    member: Member,
    events: Tail,
    process: subprocess.Popen[bytes],
    server: Whereabouts,
    address: str,
    participation: Participation,
    log: _Log,
) -> str:
    """Pass on what the client app does until it is over; returns how it ended."""
    client_id, say = member.config.client_id, member.say
    here: bool | None = None
    probed = 0.0
    problems = 0  # in a row
    waits = _Turn(client_id, say, log) if member.config.security.tls else None
    while True:
        for event in events.new():
            say(_sentence(event, client_id))
            participation.event(event)
            member.on_event(event)
            problems = problems + 1 if event["event"] == "problem" else 0 if event["event"] == "trained" else problems
            if event["event"] == "problem" and (event.get("asked", "query") == "query" or problems >= _MOST_PROBLEMS):
                time.sleep(2 * _POLL_SECONDS)
                _drain(process)
                raise FederationError(f"client {client_id} cannot take part: {event['kind']}: {event['message']}")
            if event["event"] == "finished" and not member.config.runtime.stay:
                _drain(process)
                return _ENDED
        if participation.stopping:
            return _STOPPED
        if process.poll() is not None:
            return _LOST
        if server.address != address:
            say(f"client {client_id}: the server has moved to {server.address}")
            return _MOVED
        if time.monotonic() - probed > 3.0:
            probed = time.monotonic()
            now = processes.answers(address)
            if now != here:
                if now:
                    _look(member.config, address)
                _tell_connection(client_id, address, now, participation, say)
            if not now and here is not None:
                server.refresh()
            here = now
            if waits is not None and here:
                waits.look()
        time.sleep(_POLL_SECONDS)


class _Turn:
    """A server that knows clients by their keys takes one connection of each; this client may have to wait for an earlier one's end."""

    def __init__(self, client_id: int, say: Callable[[str], None], log: _Log) -> None:
        self._client_id, self._say, self._log = client_id, say, log
        self._since: float | None = None
        self._said = self._done = False

    def look(self) -> None:
        """Say that it is waited for.

        Raises:
            FederationError: it takes too long.
        """
        self._done = self._done or self._log.connected()
        if self._done or not self._log.turned_away():
            return
        self._since = self._since or time.monotonic()
        waited = time.monotonic() - self._since
        if waited > _TURN_SECONDS:
            raise FederationError(
                f"client {self._client_id}'s key is in use by another program that is connected to the server; give every client its own key"
            )
        if waited > _TURN_SAID_SECONDS and not self._said:
            self._said = True
            self._say(f"client {self._client_id}: the server still sees an earlier connection with this key; waiting for its end")


def _tell_connection(client_id: int, address: str, now: bool, participation: Participation, say: Callable[[str], None]) -> None:
    if now:
        say(f"client {client_id}: connected to the server at {address}")
        if participation.standing.state == CONNECTING:
            participation.update(state=CONNECTED, waiting_for="the run to begin")
    else:
        say(f"client {client_id}: waiting for the server at {address}")
        participation.update(state=CONNECTING, waiting_for=f"the server at {address}")


def _drain(process: subprocess.Popen[bytes], seconds: float = 20.0) -> None:
    """Give the SuperNode the time to hand in the last answer: until its ClientApp process has gone, and a moment more."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(psutil.NoSuchProcess):  # it has ended this moment
            if not any(_is_client_app(child) for child in psutil.Process(process.pid).children(recursive=True)):
                break
        time.sleep(_POLL_SECONDS)
    time.sleep(4.0)


def _is_client_app(process: psutil.Process) -> bool:
    try:
        return any("flwr-clientapp" in word for word in process.cmdline())
    except psutil.Error:  # it ended meanwhile
        return False


def _sentence(event: dict[str, Any], client_id: int) -> str:
    kind, who = event["event"], f"client {client_id}"
    if kind == "joined":
        return f"{who}: joined run {event['run']} with {event['num_train']} training rows"
    place = f"{who}: round {event.get('round')}/{event.get('num_rounds')}"
    if kind == "training":
        return f"{place}, training"
    if kind == "step":
        return f"{place}, step {event['steps']}, loss {_number(event['loss'])}"
    if kind == "trained":
        f1 = "" if event["f1"] is None else f", validation macro-F1 {event['f1']:.3f}"
        return f"{place}, trained in {_number(event['seconds'], 1)} s, loss {_number(event['loss'])}{f1}"
    if kind in ("finished", "evaluated") and "macro_f1" not in event:
        return f"{who}: its part is done; scores on its own rows are not told (privacy)"
    if kind in ("finished", "evaluated"):
        return f"{who}: test macro-F1 {event['macro_f1']:.3f}, micro-F1 {event['micro_f1']:.3f} on {event['num_test']} rows"
    what = "left out of this round" if event.get("asked") == "train" else "no answer"
    return f"{who}: {what}: {event.get('kind', kind)}: {event.get('message', '')}"


def _number(value: float | None, digits: int = 3) -> str:
    return "unknown" if value is None else f"{value:.{digits}f}"  # a hook may keep a signal to itself, and NaN is no number
