"""What the SuperLink of `security=tls` lets through: Flower's own application behind the gatekeeper, asked as a network would."""

import asyncio
import base64
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.common.constant import TIMESTAMP_HEADER
from flwr.proto.fleet_pb2 import ActivateNodeRequest, ActivateNodeResponse, PullMessagesRequest
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE

from fedmap.access.authority import make_authority, make_certificate
from fedmap.access.folder import AccessFolder
from fedmap.access.keys import allowed_keys, make_client_key, revoke_client
from fedmap.flower.identities import read_nodes
from fedmap.flower.link import Gatekeeper, make_link

CONTROL, WORLD = 4001, 4002


class Hall:
    """A SuperLink that is not served, and two clients' keys."""

    def __init__(self, folder: Path) -> None:
        self.access = AccessFolder(folder / "certs")
        make_authority(self.access)
        make_certificate(self.access, self.access.server, [])
        for client_id in (0, 1):
            make_client_key(self.access, client_id)
        self.file = folder / "nodes.json"
        self.link: Gatekeeper = make_link(self.access, CONTROL, self.file)

    def key(self, client_id: int) -> ec.EllipticCurvePrivateKey:
        key = serialization.load_ssh_private_key(self.access.client_key(client_id).read_bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        return key

    def ask(self, path: str, body: bytes = b"", port: int = WORLD, read: list[int] | None = None, **headers: str) -> tuple[int, bytes]:
        """Status and body of the answer to a POST; `read` gets the size of each part of the body that was read."""
        found: dict[str, Any] = {"body": b""}

        async def receive() -> dict[str, Any]:
            if read is not None:
                read.append(len(body))
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: dict[str, Any]) -> None:
            found["status"] = message.get("status", found.get("status"))
            found["body"] += message.get("body", b"")

        named = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
        scope = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "https", "path": path}
        scope |= {"raw_path": path.encode(), "query_string": b"", "root_path": "", "headers": named, "client": ("198.51.100.1", 1)}
        asyncio.run(self.link({**scope, "server": ("127.0.0.1", port)}, receive, send))
        return found["status"], found["body"]


def signed(key: ec.EllipticCurvePrivateKey, behind: float = 0.0) -> dict[str, str]:
    """The headers that a SuperNode with this key sends."""
    time = (datetime.now(UTC) - timedelta(seconds=behind)).isoformat()
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    signature = key.sign(time.encode(), ec.ECDSA(hashes.SHA256()))
    return {
        FLEET_HTTP_PUBLIC_KEY_HEADER: base64.b64encode(public).decode(),
        FLEET_HTTP_SIGNATURE_HEADER: base64.b64encode(signature).decode(),
        TIMESTAMP_HEADER: time,
        "content_type": PROTOBUF_MEDIA_TYPE,
        "accept": PROTOBUF_MEDIA_TYPE,
    }


@pytest.fixture(scope="module")
def hall(tmp_path_factory: pytest.TempPathFactory) -> Hall:
    return Hall(tmp_path_factory.mktemp("link"))


def activate(hall: Hall, client_id: int) -> tuple[int, bytes]:
    pem = allowed_keys(hall.access)[client_id]
    request = ActivateNodeRequest(public_key=pem, heartbeat_interval=30).SerializeToString()
    return hall.ask("/v1/fleet/activate-node", request, **signed(hall.key(client_id)))


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/docs",
        "/openapi.json",
        "/health",
        "/v1/control/start-run",
        "/v1/control/register-node",
        "/v1/runtime/acquire-task",
        "/v1/responses",
        "/v1/fleet",
        "/v1/fleet/../control/start-run",
        "//v1/fleet/x",
        "/V1/FLEET/pull-messages",
    ],
)
def test_the_world_sees_one_interface(hall: Hall, path: str) -> None:
    status, body = hall.ask(path, **signed(hall.key(0)))
    assert (status, json.loads(body)["detail"]) in [(404, "there is nothing here"), (404, "Not Found")]


def test_this_machine_sees_all_of_them(hall: Hall) -> None:
    assert hall.ask("/v1/control/list-nodes", port=CONTROL, content_type=PROTOBUF_MEDIA_TYPE)[0] != 404
    assert hall.ask("/v1/control/list-nodes")[0] == 404


def test_only_what_an_accepted_key_has_signed_is_read(hall: Hall) -> None:
    stranger = ec.generate_private_key(ec.SECP384R1())
    cases = [
        ({}, "takes requests that a client's key has signed"),
        (signed(stranger), "this key is not accepted"),
        (signed(hall.key(0)) | {k: v for k, v in signed(stranger).items() if "signature" in k.lower()}, "signature is not this key's"),
        (signed(hall.key(0), behind=400), "the client's is 400 s behind"),
        (signed(hall.key(0), behind=-20), "the client's is 20 s ahead"),
        (signed(hall.key(0)) | {k: "!" for k in signed(stranger) if "key" in k.lower()}, "takes requests that"),
    ]
    for headers, sentence in cases:
        for path, status in (("/v1/fleet/pull-object", 401), ("/v1/fleet/activate-node", 400), ("/v1/fleet/register-node", 400)):
            read: list[int] = []
            answer = hall.ask(path, b"x" * 10_000_000, read=read, **headers)
            assert answer[0] == status
            assert sentence in json.loads(answer[1])["detail"]
            assert read == [], "a stranger's request is not even read"


def test_a_key_is_one_client_and_one_connection_and_can_be_taken_back(hall: Hall) -> None:
    nodes = read_nodes(hall.file)
    assert sorted(nodes.values()) == [0, 1]
    status, body = activate(hall, 1)
    assert status == 200
    answer = ActivateNodeResponse()
    answer.ParseFromString(body)
    assert nodes[answer.node_id] == 1
    pull = PullMessagesRequest(node=Node(node_id=answer.node_id)).SerializeToString()
    assert hall.ask("/v1/fleet/pull-messages", pull, **signed(hall.key(1)))[0] == 200
    assert hall.ask("/v1/fleet/pull-messages", pull, **signed(hall.key(0)))[0] == 401, "in another client's name"
    status, body = activate(hall, 1)
    assert status == 503
    assert json.loads(body)["detail"] == "a client with this key is connected, or was until a moment ago"
    headers = signed(hall.key(1))
    revoke_client(hall.access, 1)
    hall.link.nodes.refresh()
    beat = SendNodeHeartbeatRequest(node=Node(node_id=answer.node_id), heartbeat_interval=30).SerializeToString()
    for request, path in ((pull, "pull-messages"), (beat, "send-node-heartbeat")):
        status, body = hall.ask(f"/v1/fleet/{path}", request, **headers)
        assert (status, "was revoked" in json.loads(body)["detail"]) == (401, True)
    assert list(read_nodes(hall.file).values()) == [0]
    make_client_key(hall.access, 1)
    hall.link.nodes.refresh()
    assert sorted(read_nodes(hall.file).values()) == [0, 1], "with a new key"
    assert activate(hall, 1)[0] == 200
