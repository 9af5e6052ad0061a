"""What a server or a client needs before it connects anywhere: usable files, or a loud word where there is no protection."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fedmap.access.authority import certificate_info, check_certificate
from fedmap.access.folder import MAKE, AccessFolder, present
from fedmap.access.keys import allowed_keys, check_client_key
from fedmap.config import RunConfig, is_loopback
from fedmap.errors import ConfigError

_SOON_DAYS = 30


def check_server(config: RunConfig, warn: Callable[[str], None]) -> None:
    """Check a server's certificate and its clients' keys.

    Args:
        config: the run's configuration.
        warn: told what is dangerous, and what will soon be wrong.

    Raises:
        ConfigError: a file is missing, damaged, expired or readable by others, or no client has a key.
    """
    deployed = config.runtime.name == "superlink"
    open_to = [("runtime.address", config.runtime.address.rpartition(":")[0])] if deployed and not config.runtime.external else []
    open_to += [("service.host", config.service.host)] if config.service.enabled else []
    _shout(config, open_to, warn)
    if config.security.folder is None:
        return
    folder = AccessFolder(Path(config.security.folder))
    _authority(folder)
    info = check_certificate(folder.server, f"`{MAKE} server --host <name>` makes one")
    if info.days_left < _SOON_DAYS:
        warn(f"{folder.server[0]} expires in {info.days_left:.0f} days; `{MAKE} server` makes a new one")
    if not deployed:
        return
    if config.runtime.external:
        warn(
            "runtime.external=true: who may connect is decided by whoever runs that SuperLink, and that a client is the one whose "
            "client_id it names is not checked"
        )
    elif not allowed_keys(folder):
        raise ConfigError(f"no client has a key in {folder.clients}; `{MAKE} add <k>` makes client k's")


def check_client(config: RunConfig, warn: Callable[[str], None]) -> None:
    """Check a client's key and what it needs to know its server.

    Raises:
        ConfigError: a file is missing, damaged, expired or readable by others.
    """
    _shout(config, [("client.host", config.client.host)] if config.client.enabled else [], warn)
    if config.security.insecure and not config.security.tls and not is_loopback(config.runtime.address.rpartition(":")[0]):
        warn(f"security.insecure=true: the connection to {config.runtime.address} is not encrypted, and nobody checks whose server it is")
    if config.security.folder is None:
        return
    folder = AccessFolder(Path(config.security.folder))
    _authority(folder)
    check_client_key(folder, config.client_id)
    if config.client.enabled and not is_loopback(config.client.host):
        check_certificate(folder.front(config.client_id), f"`{MAKE} add {config.client_id} --host <this machine's name>` makes it")


def _authority(folder: AccessFolder) -> None:
    path = present(folder.authority, f"`{MAKE} init --host <the server's name>` makes it on the server's machine; clients get a copy")
    info = certificate_info(path)
    if info.days_left < 0:
        raise ConfigError(
            f"{path} has expired on {info.expires:%Y-%m-%d}; make a new authority in another folder, and hand it to everybody"
        )


def _shout(config: RunConfig, open_to: list[tuple[str, str]], warn: Callable[[str], None]) -> None:
    if config.security.tls or not config.security.insecure:
        return
    for key, host in open_to:
        if not is_loopback(host):
            warn(
                f"security.insecure=true with {key} at {host}: NOTHING IS ENCRYPTED, and whoever reaches the port can read along"
                + (", join as any client, and run code on every client" if key == "runtime.address" else "")
                + "; security=tls protects it"
            )
