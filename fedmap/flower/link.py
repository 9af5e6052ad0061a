"""A SuperLink that other machines reach through one door: requests of SuperNodes whose keys the server knows, and nothing else.

Flower 1.41 serves three interfaces on one port: Fleet for SuperNodes, Control for `flwr run` and for registering keys, Runtime for the
server app. Of these it authenticates Fleet alone, after it has read the whole request; with Control, anybody could hand code to
the clients. So the same application listens on two sockets here: one for this machine, with everything, and one for the
world, where `Gatekeeper` lets only the Fleet interface be seen, and looks at the signature before it reads a request's body.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import json
import logging
import threading
from collections.abc import Awaitable, Callable, MutableMapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flwr.common.constant import HEARTBEAT_DEFAULT_INTERVAL, NOOP_ACCOUNT_NAME, NOOP_FLWR_AID, TIMESTAMP_HEADER
from flwr.server.superlink.linkstate import LinkState
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER, FLWR_IN_MEMORY_DB_NAME, NodeStatus
from flwr.supercore.primitives.asymmetric import bytes_to_public_key, verify_signature
from flwr.superlink.auth_plugin import NoOpControlAuthnPlugin
from flwr.superlink.cli.flower_superlink import SuperLinkLifespan
from flwr.superlink.config_loader import SuperLinkLifespanConfig
from flwr.superlink.main import create_app

from fedmap.access.folder import AccessFolder
from fedmap.access.keys import allowed_keys
from fedmap.errors import ConfigError
from fedmap.flower.identities import REFUSED, write_nodes

log = logging.getLogger("fedmap.link")
_FLEET = "/v1/fleet/"
_CONNECTING = (f"{_FLEET}activate-node", f"{_FLEET}register-node")  # where a SuperNode shows an answer's sentence and ends
_WATCH_SECONDS = 1.0
_BEHIND_SECONDS, _AHEAD_SECONDS = 300.0, 5.0  # Flower's own tolerance of clocks

Scope = MutableMapping[str, Any]
Application = Callable[[Scope, Callable[[], Awaitable[Any]], Callable[[Any], Awaitable[None]]], Awaitable[None]]


class Nodes:
    """Keeps Flower's list of nodes as the folder of keys is, and says which node is which client's.

    Attributes:
        state: Flower's.
        folder: the keys.
        file: where node ids and client numbers are written, for the server's app.
    """

    def __init__(self, state: LinkState, folder: AccessFolder, file: Path) -> None:
        self.state, self.folder, self.file = state, folder, file
        self._nodes: dict[bytes, tuple[int, int]] = {}  # key: (node id, client number)
        self._seen: object = None

    def refresh(self) -> None:
        """Take in keys that were added, and cut off those that were revoked.

        Raises:
            ConfigError: a file holds no key, or two clients have the same.
        """
        seen = sorted((path.name, path.stat().st_mtime_ns) for path in self.folder.clients.glob("client_*.pub"))
        if seen == self._seen:
            return
        keys = {pem: client_id for client_id, pem in allowed_keys(self.folder).items()}
        for pem, (node_id, client_id) in list(self._nodes.items()):
            if keys.get(pem) != client_id:
                with contextlib.suppress(TypeError):  # Flower's, for a node that never connected; it is cut off all the same
                    self.state.delete_node(NOOP_FLWR_AID, node_id)
                del self._nodes[pem]
                log.warning("client %d's key is no longer accepted", client_id)
        for pem, client_id in keys.items():
            if pem not in self._nodes:
                try:
                    node_id = self.state.create_node(
                        NOOP_FLWR_AID, NOOP_ACCOUNT_NAME, pem, HEARTBEAT_DEFAULT_INTERVAL, name=f"client_{client_id}"
                    )
                except ValueError:
                    log.error("client %d's key was revoked while this server runs; give the client a new one", client_id)
                    continue
                self._nodes[pem] = (node_id, client_id)
        write_nodes(self.file, dict(self._nodes.values()))
        self._seen = seen

    def watch(self) -> None:
        """Go on doing so in a thread."""

        def work() -> None:
            pause = threading.Event()
            said = ""
            while not pause.wait(_WATCH_SECONDS):
                try:
                    self.refresh()
                except (ConfigError, OSError) as error:
                    if str(error) != said:
                        said = str(error)
                        log.error("the keys stay as they were: %s", error)

        threading.Thread(target=work, name="fedmap-keys", daemon=True).start()


class Gatekeeper:
    """ASGI middleware: on the socket for the world, only what known clients have signed.

    Attributes:
        app: Flower's application.
        state: Flower's.
        nodes: whose keys are accepted.
        control_port: the port of the socket for this machine, where everything passes.
    """

    def __init__(self, app: Application, nodes: Nodes, control_port: int) -> None:
        self.app, self.state, self.nodes, self.control_port = app, nodes.state, nodes, control_port

    async def __call__(self, scope: Scope, receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]) -> None:
        """Answer what may not pass; hand on the rest."""
        if scope["type"] == "http" and scope["server"][1] != self.control_port:
            if refusal := self.refusal(scope["path"], {name.decode().lower(): value.decode("latin-1") for name, value in scope["headers"]}):
                await _answer(send, *refusal)
                return
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close"})
            return
        await self.app(scope, receive, send)

    def refusal(self, path: str, headers: dict[str, str]) -> tuple[int, str] | None:
        """Status and sentence for a request from another machine that may not pass; None if it may."""
        if not path.startswith(_FLEET):
            return 404, "there is nothing here"
        refused = 400 if path in _CONNECTING else 401  # 401 ends a SuperNode that had been connected
        try:
            key = base64.b64decode(headers[FLEET_HTTP_PUBLIC_KEY_HEADER.lower()], validate=True)
            signature = base64.b64decode(headers[FLEET_HTTP_SIGNATURE_HEADER.lower()], validate=True)
            signed = headers[TIMESTAMP_HEADER.lower()]
            node_id = self.state.get_node_id_by_public_key(key)
            if node_id is None:
                return refused, "this key is not accepted: it was never added here, or was revoked"
            if not verify_signature(bytes_to_public_key(key), signed.encode("ascii"), signature):
                return refused, "the signature is not this key's"
            behind = (datetime.now(UTC) - datetime.fromisoformat(signed)).total_seconds()
        except (KeyError, ValueError, TypeError, binascii.Error):
            return refused, "this server takes requests that a client's key has signed, and no others"
        if not -_AHEAD_SECONDS < behind < _BEHIND_SECONDS:
            return refused, f"the clocks differ: the client's is {abs(behind):.0f} s {'behind' if behind > 0 else 'ahead'}"
        if path == _CONNECTING[0] and self._connected(node_id):
            return 503, "a client with this key is connected, or was until a moment ago"  # 503: Flower tries again
        return None

    def _connected(self, node_id: int) -> bool:
        return any(node.status == NodeStatus.ONLINE for node in self.state.get_node_info(node_ids=[node_id]))


def make_link(folder: AccessFolder, control_port: int, nodes_file: Path) -> Gatekeeper:
    """Flower's SuperLink behind a gatekeeper, with the clients' keys registered.

    Args:
        folder: certificates and keys.
        control_port: where the socket for this machine listens.
        nodes_file: see `Nodes`.

    Raises:
        ConfigError: a key file is damaged.
    """
    certificate, key = folder.server
    config = SuperLinkLifespanConfig(
        control_address="",
        health_server_address=None,
        host="127.0.0.1",
        port=control_port,
        insecure=False,
        certificates=(folder.authority.read_bytes(), certificate.read_bytes(), key.read_bytes()),
        superexec_auth_secret=None,
        authn_plugin=NoOpControlAuthnPlugin(),
        event_log_plugin=None,
        fleet_event_log_plugin=None,
        enable_event_log=False,
        artifact_provider=None,
        enable_supernode_auth=True,
        fleet_api_type="grpc-rere",
        fleet_api_address=None,
        simulation=False,
        ssl_ca_certfile=str(folder.authority),
        ssl_certfile=str(certificate),
        ssl_keyfile=str(key),
        database=FLWR_IN_MEMORY_DB_NAME,
        isolation="subprocess",
        runtime_dependency_install=False,
    )
    app = create_app(config, SuperLinkLifespan)
    state = app.state.linkstate_factory.state()
    nodes = Nodes(state, folder, nodes_file)
    nodes.refresh()
    nodes.watch()
    return Gatekeeper(app, nodes, control_port)


async def _answer(send: Callable[[Any], Awaitable[None]], status: int, detail: str) -> None:
    body = json.dumps({"code": REFUSED, "detail": detail}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
