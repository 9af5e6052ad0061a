"""`python -m fedmap certs`: the authority, certificates and keys of a federation with `security=tls`."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from fedmap.access.authority import AUTHORITY_DAYS, CertificateInfo, certificate_info, make_authority, make_certificate
from fedmap.access.folder import MAKE, AccessFolder, absent
from fedmap.access.keys import add_client, allowed_keys, fingerprint, make_client_key, revoke_client
from fedmap.errors import ConfigError

_SOON_DAYS = 30


def run(arguments: argparse.Namespace) -> int:
    """Do one action; returns the exit status."""
    folder = AccessFolder(arguments.folder)
    if arguments.days <= 0:
        raise ConfigError(f"--days {arguments.days:g}: expected more than 0")
    if arguments.clients < 0:
        raise ConfigError(f"--clients {arguments.clients}: expected 0 or more")
    if (arguments.client is None) == (arguments.action in ("add", "key", "revoke")):
        need = "needs a client's number, e.g. `certs add 0`" if arguments.client is None else "takes no client's number"
        raise ConfigError(f"certs {arguments.action} {need}")
    if arguments.client is not None and arguments.client < 0:
        raise ConfigError(f"client {arguments.client}: expected 0 or more")
    actions: dict[str, Callable[[AccessFolder, argparse.Namespace], None]] = {
        "init": _init,
        "add": _add,
        "key": _key,
        "revoke": _revoke,
        "server": _server,
        "list": _list,
    }
    actions[arguments.action](folder, arguments)
    return 0


def _init(folder: AccessFolder, arguments: argparse.Namespace) -> None:
    absent(folder.authority, folder.authority_key, *folder.server, *(folder.client_public(k) for k in range(arguments.clients)))
    if arguments.days > AUTHORITY_DAYS:
        raise ConfigError(f"--days {arguments.days:g}: the authority itself is good for {AUTHORITY_DAYS} days; choose fewer")
    make_authority(folder)
    make_certificate(folder, folder.server, arguments.host, arguments.days)
    for client_id in range(arguments.clients):
        make_client_key(folder, client_id)
    _list(folder, arguments)
    print(f"\nthe server:  python server_main.py security=tls security.folder={folder.path}")
    print(f"a client:    {MAKE} add <k>, then take ca.pem and clients/client_<k>.key to its machine")


def _add(folder: AccessFolder, arguments: argparse.Namespace) -> None:
    client_id = arguments.client
    if arguments.public_key is not None:
        try:
            add_client(folder, client_id, arguments.public_key)
        except FileNotFoundError as error:
            raise ConfigError(f"--public-key {arguments.public_key} is missing; expected the .pub file that the client made") from error
        print(f"client {client_id}'s key is accepted from now on")
    elif arguments.host and folder.client_public(client_id).exists():
        print(f"client {client_id} has a key already; its front gets a certificate")
    else:
        secret = make_client_key(folder, client_id)
        print(f"client {client_id}'s key: {secret}; take it and {folder.authority.name} to the client's machine, and keep no copy here")
    if arguments.host:
        files = folder.front(client_id)
        make_certificate(folder, files, arguments.host, arguments.days)
        print(f"its front's certificate: {files[0]} and {files[1].name}; take both to the client's machine")


def _key(folder: AccessFolder, arguments: argparse.Namespace) -> None:
    secret = make_client_key(folder, arguments.client)
    public = folder.client_public(arguments.client)
    print(f"{secret} stays on this machine; send {public} to the server, where `{MAKE} add {arguments.client} --public-key FILE` takes it")


def _revoke(folder: AccessFolder, arguments: argparse.Namespace) -> None:
    kept = revoke_client(folder, arguments.client)
    print(f"client {arguments.client}'s key is no longer accepted (kept as {kept}); a running server cuts it off within seconds")


def _server(folder: AccessFolder, arguments: argparse.Namespace) -> None:
    if not arguments.host and folder.server[0].exists():
        arguments.host = list(certificate_info(folder.server[0]).names)
    for path in folder.server:
        if path.exists():
            path.replace(path.with_name(f"{path.name}.old"))
            print(f"{path} is kept as {path.name}.old")
    make_certificate(folder, folder.server, arguments.host, arguments.days)
    print(f"a new server certificate: {_words(certificate_info(folder.server[0]))}; a server takes it when it is started again")


def _list(folder: AccessFolder, arguments: argparse.Namespace) -> None:
    if not folder.path.is_dir():
        raise ConfigError(f"{folder.path} is no folder with certificates; `{MAKE} init --host <server's name>` makes one")
    for path in (folder.authority, folder.server[0], *sorted(folder.clients.glob("*_front.pem"))):
        if path.exists():
            print(f"{path}: {_words(certificate_info(path))}")
    keys = allowed_keys(folder)
    for client_id, pem in keys.items():
        here = "; its private half is here, too" if folder.client_key(client_id).exists() else ""
        print(f"client {client_id}: accepted, key {fingerprint(pem)}{here}")
    for path in sorted(folder.revoked.glob("*.pub")):
        number, when, which = path.stem.removeprefix("client_").split("_")
        print(f"client {number}: revoked on {when[:4]}-{when[4:6]}-{when[6:8]}, key {which}")
    if not keys:
        print(f"no client has a key yet: `{MAKE} add <k>`")


def _words(info: CertificateInfo) -> str:
    names = f" for {', '.join(info.names)}" if info.names else ""
    left = info.days_left
    word = "HAS EXPIRED" if left < 0 else f"expires in {left:.0f} days" if left >= _SOON_DAYS else f"EXPIRES IN {left:.0f} DAYS"
    return f"{info.subject}{names}, good until {info.expires:%Y-%m-%d} ({word})"
