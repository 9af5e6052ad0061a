"""What client_main.py does: one client's front, its way to the server, its reports, and its part in the federation."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedmap.access.folder import AccessFolder
from fedmap.config import RunConfig, is_loopback
from fedmap.errors import FederationError
from fedmap.flower import processes, supernode
from fedmap.flower.prepare import prepare
from fedmap.participation import FAILED, FINISHED, PREPARING, STOPPED, WAITING, Participation
from fedmap.service import background
from fedmap.service.client_front import Identity, Reported, create_client_app, rules_for
from fedmap.service.discovery import Asked, Fixed, discovery
from fedmap.service.platform import Platform
from fedmap.service.reporting import ClientReports, client_reports
from fedmap.service.security import load_token

DEFAULT_PORT = 8003
_AFTER_MANAGER = 8005  # 8004 is the port of FedOps' client manager
_POLL_SECONDS = 0.5


def take_part(config: RunConfig, config_file: Path, folder: Path, say: Callable[[str], None]) -> None:
    """Be one client of a federation: until its run has ended with `client.autostart=true`, else for ever, run after run.

    Raises:
        FederationError: the client cannot take part, or its front's port is taken.
    """
    platform = Platform.from_environment().secured(config.security)
    participation = Participation()
    reports = client_reports(platform, config.task_id, say)
    server = discovery(platform, config.task_id, config.runtime.address, config.security)
    member = supernode.Member(config, config_file, folder, say, lambda event: None)
    try:
        with _front(config, participation, reports, say):
            _Client(member, participation, reports).run(server)
    finally:
        server.close()
        if reports is not None:
            reports.close()


class _Client:
    def __init__(self, member: supernode.Member, participation: Participation, reports: ClientReports | None) -> None:
        self._member = replace(member, on_event=self._event)
        self._participation, self._reports = participation, reports
        self._autostart = member.config.client.autostart

    def run(self, server: Fixed | Asked) -> None:
        member, participation = self._member, self._participation
        member.say(f"client {member.config.client_id}: preparing its data")
        member.say(prepare(member.config, member.config_file, member.folder))
        participation.update(prepared=True)
        wait = not self._autostart
        while True:
            if wait or participation.take_stop():
                self._wait_for_start()
                server.refresh()  # it may have moved meanwhile
            ended = self._join(server)
            if ended and self._autostart:
                return
            wait = True

    def _wait_for_start(self) -> None:
        participation, client_id = self._participation, self._member.config.client_id
        state = participation.standing.state
        participation.update(state=WAITING if state == PREPARING else state, waiting_for="POST /start")
        self._member.say(f"client {client_id}: waiting for POST /start")
        while not participation.wait_for_start(_POLL_SECONDS):
            pass

    def _join(self, server: Fixed | Asked) -> bool:
        """Take part once; returns whether the run has ended."""
        participation, who = self._participation, f"client {self._member.config.client_id}"
        participation.begin()
        if self._reports is not None:
            self._reports.started(lambda version: participation.update(model_version=version))
        try:
            ended = supernode.join(self._member, server, participation)
        except FederationError as error:
            participation.update(state=FAILED, problem=str(error), waiting_for="")
            self._ended(well=False)
            if self._autostart:
                raise
            self._member.say(f"{who}: error: {error}")
            return False
        participation.update(state=FINISHED if ended else STOPPED, waiting_for="")
        self._ended(well=ended)
        if not ended:
            participation.take_stop()
            self._member.say(f"{who}: has left the federation, as it was asked to")
        return ended

    def _event(self, event: dict[str, Any]) -> None:
        if self._reports is not None:
            self._reports.event(event)

    def _ended(self, well: bool) -> None:
        if self._reports is not None:
            self._reports.ended(well)


@contextlib.contextmanager
def _front(config: RunConfig, participation: Participation, reports: ClientReports | None, say: Callable[[str], None]) -> Iterator[None]:
    """Serve the client's front inside the block; a port that the user has chosen and that is taken is an error."""
    if not config.client.enabled:
        yield
        return
    host, port, who = config.client.host, config.client.port, f"client {config.client_id}"
    chosen = port not in (0, DEFAULT_PORT) or "FEDOPS_CLIENT_PORT" in os.environ
    probe = f"{'127.0.0.1' if host == '0.0.0.0' else host}:{port}"
    if chosen and port and processes.answers(probe):
        raise FederationError(
            f"client.port={port} (or FEDOPS_CLIENT_PORT) is taken by another program; choose another one, client.port=0 for any "
            "free one, or client.enabled=false for none"
        )
    start = _AFTER_MANAGER if port == DEFAULT_PORT and processes.answers(probe) else port
    token = tls = None
    if not is_loopback(host):
        tls = AccessFolder(Path(config.security.folder)).front(config.client_id) if config.security.folder is not None else None
        token, made = load_token(Path(str(config.service.token_file)))
        if made:
            say(f"{who}: requests need the token {token}, which is kept in {config.service.token_file}")
    app = create_client_app(Identity(config.client_id, config.task_id), participation, rules_for(host, token), reports or Reported())
    with background.serving(app, host, start, tls) as front:
        took = int(front.url.rpartition(":")[2])
        taken = f" (port {port} is taken)" if port not in (0, took) else ""
        say(f"{who}: its state is at {front.url}/status{taken}")
        yield
