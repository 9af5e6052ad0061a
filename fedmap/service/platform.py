"""An outside FedOps platform: where the environment says it is, and its own client API with limits.

The variables are those of FedOps' users. Nothing is contacted that none of them names.

    FEDOPS_SERVER_MANAGER_URL      which port the server of a task has; told when our server starts and ends
    FEDOPS_CLIENT_PERFORMANCE_URL  takes the scores of clients and server
    FEDOPS_CLIENT_MANAGER_URL      the client manager beside a client, usually http://localhost:8004
    FEDOPS_AGGREGATION_SERVER      host:port of the SuperLink, instead of asking
    FEDOPS_AGGREGATION_HOST        the host of the port that the server manager names; its own host by default
    FEDOPS_REQUEST_TIMEOUT_SECONDS 10 by default
    FEDOPS_CAMPAIGN_RUN_ID         passed on with the server's scores
    FEDOPS_GL_MODEL_VERSION        the number of the global model that this run makes, 1 by default
"""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

from fedmap.access.folder import AccessFolder
from fedmap.config import SecurityConfig, is_loopback
from fedmap.errors import ConfigError, FederationError
from fedmap.service.transport import Bounded, without_password

INSTALL = "pip install --no-deps -r requirements-fedops.txt"


@dataclass(frozen=True)
class Platform:
    """Addresses of a FedOps platform's parts, "" where there is none, and limits.

    Attributes:
        seconds: time-out of a request, > 0.
        authority: the file of a certificate authority that is trusted besides the usual ones; "" for none.
    """

    server_manager: str = ""
    performance: str = ""
    client_manager: str = ""
    aggregation_server: str = ""
    seconds: float = 10.0
    campaign: str = ""
    model_version: int = 1
    authority: str = ""

    @property
    def reports(self) -> bool:
        """Whether there is anybody to report to."""
        return bool(self.server_manager or self.performance or self.client_manager)

    def secured(self, security: SecurityConfig) -> Platform:
        """The same platform, reached as the configuration allows.

        Raises:
            ConfigError: an address of another machine is not encrypted.
        """
        named = {"SERVER_MANAGER": self.server_manager, "CLIENT_PERFORMANCE": self.performance, "CLIENT_MANAGER": self.client_manager}
        open_to = [
            f"FEDOPS_{name}_URL={without_password(url)}"
            for name, url in named.items()
            if url.startswith("http://") and not is_loopback(urlsplit(url).hostname or "")
        ]
        if open_to and not security.insecure:
            raise ConfigError(
                f"{', '.join(open_to)}: what is sent there would not be encrypted; use https://, or say security.insecure=true "
                "if the network is trusted"
            )
        return replace(self, authority=str(AccessFolder(Path(security.folder)).authority) if security.folder is not None else "")

    @staticmethod
    def from_environment(environment: Mapping[str, str] | None = None) -> Platform:
        """Read the FEDOPS_* variables.

        Raises:
            ConfigError: one of them is malformed; all such are named.
        """
        given = os.environ if environment is None else environment
        problems: list[str] = []

        def text(name: str) -> str:
            return given.get(f"FEDOPS_{name}", "").strip()

        def url(name: str) -> str:
            value = text(name).rstrip("/")
            if value and not _is_url(value):
                problems.append(f"FEDOPS_{name}: expected an address like http://localhost:8004")
            return value

        def number(name: str, default: float, least: float) -> float:
            value = text(name)
            try:
                found = float(value) if value else default
            except ValueError:
                found = float("nan")
            if not least <= found < 1e6:
                problems.append(f"FEDOPS_{name}={value!r}: expected a number of at least {least:g}")
            return found

        server = text("AGGREGATION_SERVER")
        if server and not is_endpoint(server):
            problems.append(f"FEDOPS_AGGREGATION_SERVER={server!r}: expected host:port, for example 127.0.0.1:8000")
        version = number("GL_MODEL_VERSION", 1, 1)
        made = Platform(
            server_manager=url("SERVER_MANAGER_URL"),
            performance=url("CLIENT_PERFORMANCE_URL"),
            client_manager=url("CLIENT_MANAGER_URL"),
            aggregation_server=server,
            seconds=number("REQUEST_TIMEOUT_SECONDS", 10, 0.1),
            campaign=text("CAMPAIGN_RUN_ID"),
            model_version=0 if problems else int(version),
        )
        if problems:
            raise ConfigError("the environment has mistakes:\n" + "\n".join(f"  - {problem}" for problem in problems))
        return made


def is_endpoint(text: str) -> bool:
    """Whether the text is host:port."""
    host, _, port = text.rpartition(":")
    return bool(host) and "/" not in host and "@" not in host and port.isdecimal() and 0 < int(port) < 65536


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:  # a port that is no number
        return False


class ClientPlatform:
    """FedOps' own `ClientServerAPI` and `ClientMangerAPI` for one task, with limits on every request.

    Attributes:
        platform: where things are.
        task_id: the federation's task.
    """

    def __init__(self, platform: Platform, task_id: str) -> None:
        """Load FedOps' client API.

        Raises:
            FederationError: the package is missing or cannot be loaded.
        """
        self.platform, self.task_id = platform, task_id
        module = _client_api()
        module.requests = Bounded(platform.seconds, platform.authority)  # type: ignore[attr-defined]
        self.server: Any = module.ClientServerAPI(task_id)
        self.server.server_manager_url = platform.server_manager
        self.server.client_performance_url = platform.performance
        self.server.aggregation_server = ""  # `fedmap.service.discovery` sees to it
        self._manager: Any = module.ClientMangerAPI() if platform.client_manager else None
        if self._manager is not None:
            self._manager.client_manager_addr = platform.client_manager
        self._http = Bounded(platform.seconds, platform.authority)

    def address(self) -> str:
        """Where the server manager says the task's SuperLink is, as host:port.

        Raises:
            requests.RequestException: the manager cannot be reached or will not tell.
            ValueError: what it says is no port.
        """
        host = urlsplit(self.platform.server_manager).hostname or ""
        self.server.ccl_address = f"[{host}]" if ":" in host else host  # what FedOps takes where FEDOPS_AGGREGATION_HOST is not set
        try:
            found = str(self.server.get_port())
        except (KeyError, TypeError) as error:
            raise ValueError('its answer is not {"port": n}') from error
        if not is_endpoint(found):
            raise ValueError(f'its answer is not {{"port": n}} (it gives {found[:80]!r})')
        return found

    def model_version(self) -> int:
        """The number of the global model, from the client manager; 0 without one.

        Raises:
            requests.RequestException: the manager cannot be reached.
            ValueError: its answer has no `GL_Model_V`.
        """
        if self._manager is None:
            return 0
        try:
            return int(self._manager.get_info().json()["GL_Model_V"])
        except (KeyError, TypeError) as error:
            raise ValueError("its answer has no GL_Model_V") from error

    def tell_manager(self, what: str) -> None:
        """Tell the client manager "fin", "fail" or "out"; nothing without one."""
        if self._manager is None:
            return
        if what == "out":
            self._manager.get_client_out()
        else:
            self._http.get(self._manager.get_train_fin() if what == "fin" else self._manager.get_train_fail())


def _client_api() -> ModuleType:
    """An own instance of `fedops.client.client_api`: what is changed in it changes nothing for others who import it.

    The module configures the root logger when it is loaded; a handler that is there meanwhile keeps it from that.
    """
    name = "fedops.client.client_api"
    try:
        spec = importlib.util.find_spec(name)
    except ImportError:
        spec = None
    if spec is None or spec.loader is None:
        raise FederationError(f"FEDOPS_* variables are set, but the package fedops is not installed: {INSTALL}, or unset them")
    module = importlib.util.module_from_spec(spec)
    root, placeholder = logging.getLogger(), logging.NullHandler()
    level = root.level
    root.addHandler(placeholder)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # it opens a log file in a folder that may be missing, for one
        raise FederationError(
            f"{name} of the package fedops cannot be loaded: {error}. {INSTALL}, or unset the FEDOPS_* variables"
        ) from error
    finally:
        root.removeHandler(placeholder)
        root.setLevel(level)
    module.logger = logging.Logger(name, logging.CRITICAL + 1)  # type: ignore[attr-defined]  # what matters is said in our own words
    return module
