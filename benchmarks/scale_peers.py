"""One run of the scale benchmark with a peer, in the peers' environment: `python -m benchmarks.scale_peers JOB OUT`.

Each peer is written as its documentation shows it, and as fast as that allows: models and data stay in the process between
rounds, one torch thread a process, no evaluation but the server's. Model, rows, batch size, steps and optimiser are ours.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_DEDUP_LOGS", "1")
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.scale_clock import Clock, Job
from benchmarks.scale_ground import Classifier, ManyClients
from fedmap.randomness import torch_seed

_DATA: dict[Any, Any] = {}  # a process's clients, as far as it has seen them


def model_of(job: Job) -> Classifier:
    """The initial model, as ours is drawn."""
    with torch_seed(job.seed, purpose="initial-model"):
        return Classifier(job.task)


def rows_of(job: Job, client_id: int) -> TensorDataset:
    """A client's training rows, made once per process."""
    if client_id not in _DATA:
        if "all" not in _DATA:
            _DATA["all"] = ManyClients(job.task, job.clients, job.rows, 0, job.seed)
        split = _DATA["all"].client(client_id)["train"]
        _DATA[client_id] = TensorDataset(split.x, split.y)
    found: TensorDataset = _DATA[client_id]
    return found


def scorer(job: Job) -> Callable[[nn.Module], float]:
    """Accuracy on the server's test rows."""
    test = ManyClients(job.task, job.clients, job.rows, 0, job.seed).server()["test"]

    def score(model: nn.Module) -> float:
        model.eval()
        with torch.inference_mode():
            return float((model(test.x).argmax(1) == test.y).float().mean())

    return score


def run_ray(job: Job, clock: Clock) -> None:
    """Flower's simulation: a ServerApp with FedAvg, a ClientApp, the Ray backend with one actor per processor."""
    from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.serverapp import Grid, ServerApp
    from flwr.serverapp.strategy import FedAvg
    from flwr.simulation import run_simulation

    score = scorer(job)
    server, client = ServerApp(), ClientApp()

    @server.main()
    def serve(grid: Grid, context: Context) -> None:
        model = model_of(job)

        def evaluate(round_index: int, arrays: ArrayRecord) -> MetricRecord:
            model.load_state_dict(arrays.to_torch_state_dict())
            clock.tick(score(model))
            return MetricRecord({"accuracy": clock.accuracy[-1]})

        strategy = FedAvg(fraction_train=1.0, fraction_evaluate=0.0, min_train_nodes=1, min_available_nodes=job.clients)
        strategy.start(grid, ArrayRecord(model.state_dict()), num_rounds=job.rounds, evaluate_fn=evaluate)

    @client.train()
    def train(message: Message, context: Context) -> Message:
        torch.set_num_threads(1)
        if "model" not in _DATA:
            _DATA["model"] = Classifier(job.task)
        model = _DATA["model"]
        model.load_state_dict(message.content["arrays"].to_torch_state_dict())
        rows = rows_of(job, int(context.node_config["partition-id"]))
        optimizer = torch.optim.SGD(model.parameters(), lr=job.learning_rate)
        model.train()
        for x, y in DataLoader(rows, batch_size=job.batch_size, shuffle=True):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        metrics = MetricRecord({"num-examples": len(rows)})
        return Message(RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics}), reply_to=message)

    resources: dict[str, Any] = {
        "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
        "init_args": {"num_cpus": job.workers, "include_dashboard": False, "log_to_driver": False},
    }
    run_simulation(server, client, job.clients, backend_config=resources)


def run_blazefl(job: Job, clock: Clock) -> None:
    """blazefl's own FedAvg with its clients one after another, in threads, or in processes that share memory."""
    from blazefl import contrib
    from blazefl.core import IPCMode

    class Models:
        def select_model(self, model_name: str) -> nn.Module:
            return Classifier(model_name)

    class Clients:
        def get_dataset(self, type_: object, cid: int | None) -> TensorDataset:
            return rows_of(job, cid or 0)

        def set_dataset(self, type_: object, cid: int | None, dataset: object) -> None:
            pass

        def get_dataloader(self, type_: object, cid: int | None, batch_size: int | None, generator: Any) -> DataLoader[Any]:
            return DataLoader(self.get_dataset(type_, cid), batch_size=batch_size, shuffle=True, generator=generator)

    import torch._dynamo  # noqa: F401  # else each of its processes imports it anew in each round, at its first optimiser

    score = scorer(job)
    models, clients = Models(), Clients()
    handler = contrib.FedAvgBaseServerHandler(models, job.task, clients, job.rounds, job.clients, 1.0, "cpu", job.batch_size, job.seed)
    handler.model.load_state_dict(model_of(job).state_dict())
    same: dict[str, Any] = {
        "model_selector": models,
        "model_name": job.task,
        "dataset": clients,
        "device": "cpu",
        "num_clients": job.clients,
        "epochs": 1,
        "batch_size": job.batch_size,
        "lr": job.learning_rate,
        "seed": job.seed,
    }
    for client_id in range(job.clients):
        rows_of(job, client_id)  # before its processes are forked, which so share the rows
    mode = job.system.removeprefix("blazefl-")
    trainer: Any
    if mode == "serial":
        trainer = contrib.FedAvgBaseClientTrainer(**same)
    elif mode == "threads":
        trainer = contrib.FedAvgThreadPoolClientTrainer(**same, num_parallels=job.workers)
    else:
        place = Path(tempfile.mkdtemp(prefix="blazefl-"))
        folders = {"share_dir": place / "share", "state_dir": place / "state"}
        globals()["Models"], globals()["Clients"] = Models, Clients  # what goes to its processes is pickled by name
        Models.__qualname__, Clients.__qualname__ = "Models", "Clients"
        trainer = contrib.FedAvgProcessPoolClientTrainer(**same, **folders, num_parallels=job.workers, ipc_mode=IPCMode.SHARED_MEMORY)
    clock.tick(score(handler.model))
    while not handler.if_stop():
        chosen = handler.sample_clients()
        trainer.local_process(handler.downlink_package(), chosen)
        for package in trainer.uplink_package():
            handler.load(package)
        clock.tick(score(handler.model))


def main() -> None:
    """Run the job that the command line names and write what it took."""
    job, out = Job(**json.loads(sys.argv[1])), Path(sys.argv[2]).resolve()
    torch.set_num_threads(1)
    clock = Clock()
    (run_ray if job.system == "ray" else run_blazefl)(job, clock)
    clock.write(job, out)


if __name__ == "__main__":
    main()
