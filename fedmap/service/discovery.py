"""Where the server is: FEDOPS_AGGREGATION_SERVER, else what FedOps' server manager says, else `runtime.address`."""

from __future__ import annotations

import logging
import math
import threading
import time

from fedmap.backoff import pauses
from fedmap.config import SecurityConfig, is_loopback
from fedmap.errors import ConfigError
from fedmap.service.platform import ClientPlatform, Platform
from fedmap.service.transport import reason_of, without_password

log = logging.getLogger("fedmap.platform")
_FORGET_SECONDS = 120.0  # after so long a silence the pauses begin anew


class Fixed:
    """An address that is known.

    Attributes:
        address: host:port.
    """

    waiting_for = ""

    def __init__(self, address: str) -> None:
        self.address = address

    def refresh(self) -> None:
        """Ask again; there is nobody to ask."""

    def close(self) -> None:
        """Nothing to end."""


class Asked:
    """An address that the server manager is asked for, in a thread of its own: a manager that hangs delays nothing else.

    Attributes:
        address: host:port; "" until it is known.
        waiting_for: a sentence while it is not; "" afterwards.
    """

    def __init__(self, api: ClientPlatform, security: SecurityConfig, first_pause: float = 1.0, longest_pause: float = 30.0) -> None:
        self._api, self._security = api, security
        self._where = without_password(api.platform.server_manager)
        self._pause = pauses(first_pause, longest_pause)
        self._ask = threading.Event()
        self._closed = False
        self.address = ""
        self.waiting_for = f"the server manager at {self._where}"
        self._ask.set()
        threading.Thread(target=self._work, name="fedmap-discovery", daemon=True).start()

    def refresh(self) -> None:
        """Ask again, e.g. because the server does not answer any more; the old address stays until there is another."""
        self._ask.set()

    def close(self) -> None:
        """Ask no more."""
        self._closed = True
        self._ask.set()

    def _work(self) -> None:
        fruitless, last = 0, -math.inf
        while True:
            self._ask.wait()
            if self._closed:
                return
            self._ask.clear()
            if time.monotonic() - last > _FORGET_SECONDS:
                fruitless = 0
            fruitless = 0 if self._asked() else fruitless + 1
            last = time.monotonic()
            if not self.address:
                self._ask.set()
            if fruitless and not self._closed:
                time.sleep(self._pause(fruitless))  # however often `refresh` is called

    def _asked(self) -> bool:
        """Ask once; returns whether that gave a new address."""
        before = self.address
        try:
            self.address = self._allowed(self._api.address())
            self.waiting_for = ""
        except Exception as error:  # no answer of a manager may end this thread: it is asked again
            log.debug("server manager: %r", error)
            if not self.address:
                task = self._api.task_id
                self.waiting_for = f"the server manager at {self._where} to name the server of task {task} ({reason_of(error)})"
        return self.address != before

    def _allowed(self, address: str) -> str:
        _check(f"it names {address}", address, self._security)
        return address


def discovery(platform: Platform, task_id: str, configured: str, security: SecurityConfig) -> Fixed | Asked:
    """The way to the server's address.

    Args:
        platform: what the environment says.
        task_id: the federation's task.
        configured: `runtime.address`.
        security: whether addresses other than this machine's are allowed.

    Raises:
        ConfigError: FEDOPS_AGGREGATION_SERVER is not allowed.
        FederationError: there is a server manager, but FedOps' client API is not installed.
    """
    if platform.aggregation_server:
        _check(f"FEDOPS_AGGREGATION_SERVER={platform.aggregation_server}", platform.aggregation_server, security)
        return Fixed(platform.aggregation_server)
    if platform.server_manager:
        return Asked(ClientPlatform(platform, task_id), security)
    return Fixed(configured)


def _check(what: str, address: str, security: SecurityConfig) -> None:
    if not (security.insecure or security.tls or is_loopback(address.rpartition(":")[0])):
        raise ConfigError(
            f"{what}, which is not this machine, and the connection would be neither encrypted nor authenticated; "
            "use security=tls, or say security.insecure=true if the network is trusted"
        )
