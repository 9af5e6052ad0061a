"""A client's messages, as a hostile client can make them, up to the aggregated model.

An input begins with how the message is changed:

    0  a good update in which some entries were renamed, taken out, or given other values (the rest of the bytes decide which)
    1  a good message of which one object, as Flower carries them between machines, has other bytes; names and lengths fit again
    2  the bytes of a whole record dictionary as Flower's protocol buffer
    3  a good message in a crate, as it travels over a SuperLink, whose list or whole data has other bytes
"""

from __future__ import annotations

import contextlib
import json
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.app.message.message import make_message
from flwr.app.metadata import Metadata
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict
from flwr.supercore.inflatable.inflatable_object import UnexpectedObjectContentError, get_all_nested_objects, get_object_id
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents, validate_object_content

from benchmarks.fuzzing.choices import Choices
from fedmap.aggregators.base import Aggregator, expected_form
from fedmap.aggregators.fedavg import FedAvg
from fedmap.aggregators.judge import with_judge
from fedmap.aggregators.modality_aware.aggregator import ModalityAwareAggregation
from fedmap.aggregators.scaffold import Scaffold
from fedmap.compression import Compression
from fedmap.compression.parcels import pack_update
from fedmap.errors import UpdateError
from fedmap.files import plain
from fedmap.flower.crates import CRATE, crate, uncrate
from fedmap.flower.exchange import Exchange
from fedmap.flower.wire import (
    ClientCard,
    card_to_content,
    content_to_card,
    content_to_counts,
    content_to_update,
    counts_to_content,
    update_to_content,
)
from fedmap.guard import Defence, GuardState, Ladder, check_model
from fedmap.history import RoundRecord
from fedmap.metrics import MultilabelCounts
from fedmap.records import Broadcast, ClientSignals, ClientUpdate
from fedmap.weights import Layout, Weights

_LABELS = 3
_LENGTH = struct.Struct("<Q")  # of a crate's list
_WEIGHTS = {
    "head.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "head.bias": np.float32([0.5, -0.5]),
    "norm.num_batches_tracked": np.array(7, np.int64),
}
_COUNTS = MultilabelCounts.of([[1, 0, 0], [1, 1, 0]], [[1, 1, 0], [0, 1, 1]])
_GOOD = ClientUpdate(
    client_id=3,
    round_index=1,
    weights=_WEIGHTS,
    num_examples=17,
    num_steps=4,
    signals=ClientSignals(0.1, 0.2, 0.7, 0.6, 1.5, 0.4, 0.3, 1.0, {"text": 1.0, "image": 0.5}, 0.5, {"battery": 0.8}),
    scalars={"log-likelihood": -1.5},
    counts={"val-before": _COUNTS, "val-after": _COUNTS},
    seconds={"train": 1.25, "evaluate": 0.5},
)
_CARD = ClientCard(3, 17, 2, 0, ("Drama", "Comedy", "War"), {"text": 1.0, "image": 0.5}, tuple(_WEIGHTS), "abc")
_NUMBERS = (0, 1, -1, 2, 1 << 31, -(1 << 63), (1 << 63) - 1, 1 << 62)
_FLOATS = (0.0, -0.0, 1.0, -1.0, 1e30, -1e308, 1e-320, float("nan"), float("inf"), float("-inf"))
_TEXTS = ("", "float32", "numpy.ndarray", "torch.Tensor", "O", "../../x", "x" * 5000, "\ud7ff\0")
_SHAPES = ((), (0,), (2, 3), (3, 2), (6,), (1, 6), (-1,), (1 << 40, 1 << 40), (2,) * 70)


class _Judge:
    """Twenty rows on which the model's logits are linear in its arrays."""

    exclusive, tunable = False, True

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.rows = rng.normal(size=(20, 2))
        self.labels = (rng.random((20, _LABELS)) < 0.5).astype(np.uint8)

    def logits(self, weights: Mapping[str, Any]) -> Any:
        return self.rows @ weights["head.weight"].astype(np.float64)

    def decide(self, logits: Any) -> Any:
        return logits >= 0


class _Mailbox:
    """A grid that has one answer, and makes it of its parts as Flower's does: when it is asked for, and with whatever that raises."""

    poll_seconds = 0.0

    def __init__(self, name: str, parts: Mapping[str, bytes]) -> None:
        self.name, self.parts = name, parts
        self.looks = 0

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        return ["asked" for _ in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Any]:
        self.looks += 1
        if self.looks > 20:
            raise AssertionError("the answer is asked for again and again")
        return [inflate_object_from_contents(self.name, dict(self.parts))]

    def get_node_ids(self) -> list[int]:
        return [1]

    def cancel(self, message_ids: Iterable[str]) -> None:
        """Nothing is under way."""


@dataclass(frozen=True)
class _Round:
    """One way to run a round, and a good answer to it.

    Attributes:
        aggregator: the strategy.
        compression: what clients were asked to answer in.
        extras: groups of arrays that the strategy wants.
    """

    aggregator: Aggregator[Any]
    compression: Compression = field(default_factory=Compression)
    extras: Mapping[str, Weights] = field(default_factory=dict)

    @cached_property
    def state(self) -> Any:
        return self.aggregator.init(_WEIGHTS, Layout(frozenset({"norm.num_batches_tracked"})))

    @cached_property
    def broadcast(self) -> Broadcast:
        return self.aggregator.broadcast(self.state)

    @cached_property
    def good(self) -> ClientUpdate:
        return replace(_GOOD, extras=self.extras)

    def content(self) -> RecordDict:
        """The good answer's content, anew."""
        packed = None if self.compression.up == "none" else pack_update(self.good, self.broadcast, self.compression, 1, {})[0]
        return update_to_content(self.good, packed)

    @cached_property
    def parts(self) -> tuple[dict[str, bytes], str]:
        return _parts(self.content())

    def take(self, content: RecordDict) -> None:
        """What the server does with an answer, up to the record of the round."""
        form = expected_form(self.aggregator, self.state, self.broadcast)
        ladder = Ladder(Defence(), self.broadcast, form, self.state.layout.buffers, GuardState(), {0: 17, 3: 17})
        update = content_to_update(content, _LABELS, self.broadcast, self.compression, form)
        ladder.admit(update)
        if update.client_id != 0:
            ladder.admit(replace(self.good, client_id=0))
        settled = ladder.settle()
        new, report = self.aggregator.aggregate(self.state, settled.updates)
        check_model(new.weights)
        record = RoundRecord.of(report, settled.updates, remarks=settled.remarks)
        json.dumps(plain(record), allow_nan=False)


class Update:
    """Whatever the client sends is refused with an `UpdateError`, or taken and folded into the model, which stays finite."""

    allowed = ()
    processes = False

    def __init__(self, folder: Path) -> None:
        judged = with_judge(ModalityAwareAggregation(n_trials_per_round=2, seed=1), _Judge())
        control = {"control-delta": {name: _WEIGHTS[name] for name in ("head.weight", "head.bias")}}
        packed = [Compression(up=up, down=down, smallest=1) for up, down in (("lossless", "lossless"), ("int8", "fp16"), ("topk", "fp16"))]
        self.rounds = [
            _Round(FedAvg()),
            _Round(Scaffold(num_clients=2), extras=control),
            _Round(judged),
            *(_Round(FedAvg(), compression) for compression in packed),
        ]

    def seeds(self) -> Sequence[bytes]:
        """Good messages, and some changes of each kind."""
        found = [b"\0"]
        for which, one in enumerate(self.rounds):
            found += [bytes([0, which, entry, change, 5]) for entry in range(0, 30, 5) for change in range(0, 8, 3)]
            parts = list(one.parts[0].values())
            kinds = sorted({part.split(b" ")[0]: i for i, part in enumerate(parts)}.values())
            found += [bytes([1, which, i, 0]) + parts[i].partition(b"\0")[2] for i in kinds]
            found.append(bytes([2, which]) + recorddict_to_proto(one.content()).SerializeToString())
            head, body = _crate_of(one.content())
            found += [bytes([3, which, 0]) + head, bytes([3, which, 1]) + _LENGTH.pack(len(head)) + head + body]
        for record in (card_to_content(_CARD), counts_to_content(3, {"test": _COUNTS})):
            found.append(b"\2\0" + recorddict_to_proto(record).SerializeToString())
        return found

    def run(self, data: bytes) -> None:
        """See the module."""
        choices = Choices(data)
        kind, one = choices.byte() % 4, choices.pick(self.rounds)
        if kind == 0:
            content: RecordDict | None = tampered(one.content(), choices)
        elif kind == 1:
            content = self._delivered(one, choices)
        elif kind == 2:
            content = self._parsed(choices.rest())
        else:
            content = self._uncrated(one, choices)
        if content is None:
            return
        for read in (content_to_card, lambda found: content_to_counts(found, _LABELS)):
            with contextlib.suppress(UpdateError):
                read(content)
        one.take(content)

    def _parsed(self, data: bytes) -> RecordDict | None:
        try:
            return recorddict_from_proto(ProtoRecordDict.FromString(data))
        except Exception:  # of Flower's own reader; `_delivered` shows what comes of that
            return None

    def _uncrated(self, one: _Round, choices: Choices) -> RecordDict | None:
        """Open a crate with another list, or with other bytes altogether; what lies beside it stays."""
        content = crate(one.content())
        _, body = _crate_of(one.content())
        whole, data = choices.byte() % 2, choices.rest()
        data = data if whole else _LENGTH.pack(len(data)) + data + body
        content[CRATE] = ArrayRecord({"data": Array("uint8", (len(data),), "fedmap.crate", data)})
        try:
            return uncrate(content)
        except UpdateError:
            return None

    def _delivered(self, one: _Round, choices: Choices) -> RecordDict | None:
        """Replace one object and let the server receive the message."""
        good, _ = one.parts
        name, kind = choices.pick(list(good)), choices.byte()
        head = good[name].partition(b"\0")[0].split(b" ")
        if kind:
            head[0] = choices.pick((b"Array", b"ArrayChunk", b"ArrayRecord", b"ConfigRecord", b"MetricRecord", b"RecordDict", b"Message"))
        body = choices.rest()
        head[-1] = str(len(body)).encode()
        parts, top = _replaced(good, name, b" ".join(head) + b"\0" + body)
        try:
            for part in parts.values():
                validate_object_content(part)
        except UnexpectedObjectContentError:  # the SuperLink refuses it
            return None
        message = make_message(_metadata("asked"), content=RecordDict())
        return Exchange(_Mailbox(top, parts)).ask({1: message}, 0.5)[1].content  # type: ignore[arg-type]


def tampered(content: RecordDict, choices: Choices) -> RecordDict:
    """Up to eight changes to the entries of a message."""
    for _ in range(8):
        if not choices:
            break
        key = choices.pick(list(content) or [""])
        record = content.get(key)
        if record is None:
            break
        name = choices.pick(list(record) or ["made-up"])
        what = choices.byte() % 9
        if what == 0:
            del content[key]
        elif what == 1:
            record.pop(name, None)
        elif what == 2:
            content[choices.pick(("weights", "client", "signals", "counts.x", "extra.x", "problem", "scalars", "seconds"))] = record
        elif isinstance(record, ArrayRecord):
            record[name] = _array(choices)
        elif isinstance(record, MetricRecord):
            record[name if what < 7 else f"{key}.{what}"] = _metric(choices)
        elif isinstance(record, ConfigRecord):
            record[name if what < 7 else f"{key}.{what}"] = choices.pick((_metric(choices), choices.pick(_TEXTS), b"\0\xff", True))
    return content


def _metric(choices: Choices) -> Any:
    what = choices.byte() % 5
    if what == 0:
        return choices.pick(_NUMBERS)
    if what == 1:
        return choices.pick(_FLOATS)
    if what == 2:
        return [choices.pick(_NUMBERS) for _ in range(choices.byte() % 20)]
    if what == 3:
        return [choices.pick(_FLOATS) for _ in range(choices.byte() % 20)]
    return int.from_bytes(choices.take(8), "little", signed=True)


def _array(choices: Choices) -> Array:
    what = choices.byte() % 4
    if what == 0:
        number = choices.pick(_FLOATS)
        with np.errstate(all="ignore"):
            kind = choices.pick((np.float32, np.float64, np.float16, np.complex64))
            return Array(np.full(choices.pick(((2, 3), (2,), (), (3, 2), (0,))), number).astype(kind))
    if what == 1:
        return Array(np.full(choices.pick(((2, 3), (2,), ())), choices.pick(_NUMBERS), np.int64))
    good = Array(_WEIGHTS["head.weight"])
    if what == 2:
        return Array(choices.pick(("float32", "O", *_TEXTS)), choices.pick(_SHAPES), choices.pick(("numpy.ndarray", *_TEXTS)), good.data)
    data = bytearray(good.data)
    for _ in range(1 + choices.byte() % 8):
        data[choices.byte() % len(data)] = choices.byte()
    return Array("float32", (2, 3), "numpy.ndarray", bytes(data[: len(data) - choices.byte() % 16]))


def _crate_of(content: RecordDict) -> tuple[bytes, bytes]:
    """The list and the arrays' bytes of a content's crate."""
    data = cast(ArrayRecord, crate(content)[CRATE])["data"].data
    end = _LENGTH.size + _LENGTH.unpack_from(data)[0]
    return data[_LENGTH.size : end], data[end:]


def _metadata(reply_to: str) -> Metadata:
    return Metadata(
        run_id=1,
        message_id="",
        src_node_id=2,
        dst_node_id=1,
        reply_to_message_id=reply_to,
        group_id="1",
        created_at=1.0,
        ttl=3600.0,
        message_type="train",
    )


def _parts(content: RecordDict) -> tuple[dict[str, bytes], str]:
    """A message's objects by their names, those inside others first, and the name of the message."""
    message = make_message(_metadata("asked"), content=content)
    return {name: part.deflate() for name, part in get_all_nested_objects(message).items()}, message.object_id


def _replaced(parts: Mapping[str, bytes], name: str, content: bytes) -> tuple[dict[str, bytes], str]:
    """The objects with one of them replaced, and those that name it renamed up to the message; and the name of the message."""
    renamed = {name.encode(): get_object_id(content).encode()}
    found: dict[str, bytes] = {}
    top = ""
    for old, part in parts.items():
        made = content if old == name else part
        for before, after in renamed.items():
            if before in made and old != name:
                made = made.replace(before, after)
        top = get_object_id(made)
        if made != part:
            renamed[old.encode()] = top.encode()
        found[top] = made
    return found, top
