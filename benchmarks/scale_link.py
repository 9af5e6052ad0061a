"""What a SuperLink answers: requests of SuperNodes per second, by the number of nodes that it knows.

A real `flower-superlink` on this machine, with its default state in memory. Nodes register and are activated as SuperNodes do, each with a
key of its own that signs every request; then threads ask in their names, over Flower's own HTTP client, as fast as they get answers.
The threads take processor time of the same machine, so that the requests per second of wall time are less than a
SuperLink alone would answer; its own processor time per request is what docs/scale.md counts with.

    python -m benchmarks.scale_link [--nodes N ...] [--seconds S]
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
from flwr.proto.fleet_pb2 import ActivateNodeRequest, PullMessagesRequest, RegisterNodeFleetRequest
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import generate_key_pairs, public_key_to_bytes
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from benchmarks.harness import Options, Result, Table, main, median
from fedmap.flower import processes

NODES = (10, 100, 1000)
THREADS = 4
ASKING_NODES = 40  # in whose names is asked; the others are only known
INTERVAL = 30.0  # seconds between two heartbeats, Flower's own


@dataclass(frozen=True)
class Asking:
    """One node with its connection."""

    client: FleetHttpClient
    node: Node

    def pull(self) -> None:
        """Ask for work; there is none."""
        self.client.PullMessages(PullMessagesRequest(node=self.node))

    def beat(self) -> None:
        """Send a heartbeat."""
        self.client.SendNodeHeartbeat(SendNodeHeartbeatRequest(node=self.node, heartbeat_interval=INTERVAL))


@contextmanager
def superlink(folder: Path) -> Iterator[tuple[str, psutil.Process]]:
    """A SuperLink's address and process."""
    address = f"127.0.0.1:{processes.free_port()}"
    host, port = processes.split_address(address)
    command = [processes.program("flower-superlink"), "--insecure", "--host", host, "--port", str(port)]
    log = folder / "superlink.log"
    with processes.running(command, log, folder, processes.environment(folder / "home")) as process:
        processes.wait_until_answers(address, process, log)
        yield address, psutil.Process(process.pid)


def join(address: str) -> Asking:
    """Register a node with a fresh key and activate it."""
    private, public = generate_key_pairs()
    interceptors = [RuntimeVersionHttpInterceptor(component_name="SuperNode"), NodeAuthHttpInterceptor(private, public)]
    client = FleetHttpClient.from_server_address(address, True, None, interceptors=interceptors)
    client.__enter__()
    key = public_key_to_bytes(public)
    client.RegisterNode(RegisterNodeFleetRequest(public_key=key))
    answer = client.ActivateNode(ActivateNodeRequest(public_key=key, heartbeat_interval=INTERVAL))
    return Asking(client, Node(node_id=answer.node_id))


def ask(nodes: list[Asking], what: Callable[[Asking], None], link: psutil.Process, seconds: float) -> tuple[float, float]:
    """Requests per second of wall time, and the SuperLink's processor milliseconds per request."""
    counts = [0] * THREADS
    end = time.monotonic() + seconds

    def work(place: int) -> None:
        for node in itertools.cycle(nodes[place::THREADS]):
            if time.monotonic() > end:
                return
            what(node)
            counts[place] += 1

    before, started = _processor(link), time.monotonic()
    threads = [threading.Thread(target=work, args=(place,)) for place in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took, spent = time.monotonic() - started, _processor(link) - before
    return sum(counts) / took, spent / max(sum(counts), 1) * 1e3


def _processor(link: psutil.Process) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in [link, *link.children(recursive=True)])


def measure(options: Options) -> Result:
    """Each number of nodes in turn, on one SuperLink that knows more and more of them."""
    sizes = sorted(options.extra.nodes or (NODES[:2] if options.quick else NODES))
    seconds = options.extra.seconds or (2.0 if options.quick else 5.0)
    figures: dict[str, list[float]] = {}
    rows = []
    with tempfile.TemporaryDirectory(prefix="fedmap-link-") as folder, superlink(Path(folder)) as (address, link):
        nodes: list[Asking] = []
        for size in sizes:
            while len(nodes) < size:
                nodes.append(join(address))
                if len(nodes) > ASKING_NODES:
                    nodes[-1].client.__exit__(None, None, None)
            asking = nodes[:ASKING_NODES]
            for name, what in (("pull", Asking.pull), ("heartbeat", Asking.beat)):
                ask(asking, what, link, 0.5)
                found = [ask(asking, what, link, seconds) for _ in options.seed_list()]
                per_second, milliseconds = ([one[place] for one in found] for place in (0, 1))
                figures[f"requests_per_second.{name}.{size}"] = per_second
                figures[f"processor_ms.{name}.{size}"] = milliseconds
                rows.append((size, name, median(per_second), median(milliseconds), 1e3 / median(milliseconds)))
        for node in nodes[:ASKING_NODES]:
            node.client.__exit__(None, None, None)
    columns = (
        "nodes known",
        "request",
        "requests a second (wall)",
        "SuperLink's processor ms per request",
        "requests a second of one processor",
    )
    return Result(
        settings={"threads": THREADS, "seconds": seconds}, figures=figures, tables=[Table("Requests to a SuperLink", columns, rows)]
    )


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--nodes", type=int, nargs="+", help=f"how many nodes (default {' '.join(map(str, NODES))})")
    parser.add_argument("--seconds", type=float, help="of each measurement (default 5, with --quick 2)")


if __name__ == "__main__":
    sys.exit(main("scale_link", measure, seeds=3, description=__doc__.strip().splitlines()[0], arguments=_arguments))
