"""The contestants of `benchmarks.aggregation` that run in this environment, each in a process of its own.

    python -m benchmarks.aggregation_worker ours|flower|limit

ours     `FedAvg.aggregate` as the server calls it ("ours"), the same from messages as they arrive ("parsed"), and the averaging step of
         ModalityAwareAggregation ("mixing").
flower   Flower's FedAvg, `aggregate_train` on messages.
limit    one pass over the clients' weights in two threads, block by block ("limit"): the weighted sum in float32, whose rounding
         nobody looks after, over one flat buffer for each client; and a pass that only reads them ("read").
"""

from __future__ import annotations

import copy
import logging
import math
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from flwr.app import RecordDict

from benchmarks.aggregation_clock import Clock, serve
from fedmap import averaging
from fedmap.aggregators.base import ServerState
from fedmap.aggregators.fedavg import FedAvg
from fedmap.aggregators.modality_aware.mixing import Mix, apply_mix
from fedmap.flower.wire import content_to_update, update_to_content
from fedmap.guard.form import Form
from fedmap.records import ClientUpdate
from fedmap.weights import Array

_BLOCK = 1 << 17  # numbers; the fastest of 2^14 to 2^18
Trials = dict[str, Callable[[], object]]


def client_weights(order: dict[str, Any], client_id: int) -> dict[str, Array]:
    """A client's made-up model."""
    rng = np.random.default_rng(client_id)
    return {
        name: rng.random(tuple(shape), dtype=np.float32) - np.float32(0.5) if dtype == "float32" else np.ones(tuple(shape), dtype)
        for name, (shape, dtype) in zip(order["names"], order["tensors"], strict=True)
    }


def examples(client_id: int) -> int:
    """How many rows a client claims."""
    return 100 + 10 * client_id


def ours(order: dict[str, Any]) -> tuple[Trials, dict[str, Any]]:
    """What the server does with what has arrived."""
    averaging.set_threads(order["threads"])
    clients = range(order["clients"])
    loading = averaging.prepare(len(clients) * sum(math.prod(shape) for shape, _ in order["tensors"]))  # as a server does when it starts
    initial = client_weights(order, 99)
    form = Form.of(initial)
    contents = [_arrived(update_to_content(ClientUpdate(k, 1, client_weights(order, k), examples(k), 10))) for k in clients]
    updates = [content_to_update(content, form=form) for content in contents]
    method = FedAvg()
    state = method.init(initial)
    mix = Mix(np.array([examples(k) for k in clients]) / sum(examples(k) for k in clients))
    if loading is not None:
        loading.join()
    return {
        "ours": lambda: method.aggregate(state, updates),
        "parsed": lambda: method.aggregate(state, [content_to_update(content, form=form) for content in contents]),
        "mixing": lambda: apply_mix([update.weights for update in updates], mix, state.layout),
    }, {"exact": exactness(updates, method, state)}


def _arrived(content: RecordDict) -> RecordDict:
    """A client's message as the server has it: bytes, which are made on the way."""
    copied: RecordDict = copy.deepcopy(content)
    return copied


def exactness(updates: list[ClientUpdate], method: FedAvg, state: ServerState) -> dict[str, Any]:
    """Against sums in float64, tensor by tensor; and against itself with other orders of arrival and numbers of threads."""
    expected, _ = method.aggregate(state, updates)
    shares = [update.num_examples / sum(each.num_examples for each in updates) for update in updates]
    worst = 0.0
    for name, found in expected.weights.items():
        if found.dtype == np.float32 and found.size:
            total = np.zeros(found.shape)
            for update, share in zip(updates, shares, strict=True):
                total += update.weights[name].astype(np.float64) * share
            worst = max(worst, float((np.abs(found - total) / np.spacing(np.abs(found))).max()))
    same = True
    before = averaging.threads()
    for threads in (1, 2, 3):
        averaging.set_threads(threads)
        again, _ = method.aggregate(state, updates[::-1] if threads % 2 else updates[1:] + updates[:1])
        same &= all(np.array_equal(again.weights[name], found) for name, found in expected.weights.items())
    averaging.set_threads(before)
    return {"ulps": worst, "same": same}


def flower(order: dict[str, Any]) -> tuple[Trials, dict[str, Any]]:
    """Flower's own FedAvg on K replies; from 121 million parameters on, clients send the first five's models again, which saves memory."""
    logging.getLogger("flwr").setLevel(logging.ERROR)
    from flwr.app import Array as FlowerArray
    from flwr.app import ArrayRecord, Message, MessageType, Metadata, MetricRecord, RecordDict
    from flwr.serverapp.strategy import FedAvg as FlowersFedAvg

    distinct = [
        ArrayRecord({name: FlowerArray(array) for name, array in client_weights(order, k).items()}) for k in range(min(order["clients"], 5))
    ]

    def reply(k: int) -> Message:
        content = RecordDict({"arrays": distinct[k % len(distinct)], "metrics": MetricRecord({"num-examples": examples(k)})})
        metadata = Metadata(
            run_id=0,
            message_id="",
            src_node_id=k + 1,
            dst_node_id=0,
            reply_to_message_id="",
            group_id="1",
            created_at=0.0,
            ttl=1.0,
            message_type=MessageType.TRAIN,
        )
        return Message(content=content, metadata=metadata)  # type: ignore[call-overload, no-any-return]

    replies = [reply(k) for k in range(order["clients"])]
    strategy = FlowersFedAvg()
    return {"flower": lambda: strategy.aggregate_train(1, replies)}, {}


def limit(order: dict[str, Any]) -> tuple[Trials, dict[str, Any]]:
    """The pass that the targets are stated against, and one that only reads."""
    torch.set_num_threads(1)  # in each of the two threads
    size = sum(math.prod(shape) for shape, dtype in order["tensors"] if dtype == "float32")
    flats = [torch.from_numpy(np.random.default_rng(k).random(size, dtype=np.float32) - np.float32(0.5)) for k in range(order["clients"])]
    total = sum(examples(k) for k in range(len(flats)))
    shares = [examples(k) / total for k in range(len(flats))]

    def in_threads(work: Callable[[int, int], None]) -> None:
        starts = iter(range(0, size, _BLOCK))
        lock = threading.Lock()

        def run(_: int) -> None:
            while True:
                with lock:
                    start = next(starts, None)
                if start is None:
                    return
                work(start, min(start + _BLOCK, size))

        with ThreadPoolExecutor(order["threads"]) as pool:
            list(pool.map(run, range(order["threads"])))

    def once() -> torch.Tensor:
        out = torch.empty(size)

        def work(start: int, stop: int) -> None:
            block = out[start:stop]
            torch.mul(flats[0][start:stop], shares[0], out=block)
            for flat, share in zip(flats[1:], shares[1:], strict=True):
                block.add_(flat[start:stop], alpha=share)

        in_threads(work)
        return out

    def read() -> None:
        def work(start: int, stop: int) -> None:
            for flat in flats:
                flat[start:stop].sum()

        in_threads(work)

    return {"limit": once, "read": read}, {}


if __name__ == "__main__":
    serve({"ours": ours, "flower": flower, "limit": limit}[sys.argv[1]], Clock(), sys.stdin.buffer)
