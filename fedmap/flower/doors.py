"""What server_main.py and client_main.py do, once Hydra has composed the configuration."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf, open_dict

from fedmap import access
from fedmap import config as configuration
from fedmap.config import RunConfig
from fedmap.errors import FederationError, QuorumError
from fedmap.flower import processes
from fedmap.progress import Progress

_MISTAKE, _FAILED, _INTERRUPTED = 2, 1, 130


def serve(cfg: DictConfig) -> int:
    """Serve a federation and write its results; returns the process's exit code."""
    return _door(cfg, _serve, continues=True)


def join(cfg: DictConfig) -> int:
    """Join a federation as one client; returns the process's exit code."""
    return _door(cfg, _join)


def _door(cfg: DictConfig, work: Any, continues: bool = False) -> int:
    from hydra.core.hydra_config import HydraConfig

    from fedmap.files import locked

    folder = Path(HydraConfig.get().runtime.output_dir).resolve()
    with contextlib.ExitStack() as stack:
        try:
            tree = resolved(cfg)
            config = configuration.parse(tree)
            if continues:
                from fedmap.resuming import continued

                stack.enter_context(locked(folder / ".lock"))
                tree = continued(folder, tree, list(HydraConfig.get().overrides.task))
                config = configuration.parse(tree)
        except FederationError as error:
            print(f"error: {error}", file=sys.stderr)
            return _MISTAKE
        try:
            file = folder / "run.yaml"  # with secrets, for the processes of this run: its owner alone may read it, and it goes with the run
            stack.callback(file.unlink, missing_ok=True)
            configuration.save(tree, file)
            with processes.terminated_like_interrupted():
                work(config, file, folder)
        except FederationError as error:
            print(f"error: {error}", file=sys.stderr)
            return _FAILED
        except KeyboardInterrupt:
            print("stopped", file=sys.stderr)
            return _INTERRUPTED
        return 0


def resolved(cfg: DictConfig) -> dict[str, Any]:
    """The configuration as plain mappings, with paths that are good from every process's working directory."""
    with open_dict(cfg):
        cfg.pop("hydra", None)
    tree = cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True))
    data = tree.get("dataset")
    if isinstance(data, dict):
        for key in ("root", "cache_dir"):
            if data.get(key):
                data[key] = os.path.abspath(os.path.expanduser(str(data[key])))
    for node, key in (("service", "token_file"), ("security", "folder")):
        values = tree.get(node)
        if isinstance(values, dict) and values.get(key):
            values[key] = os.path.abspath(os.path.expanduser(str(values[key])))
    return tree


def run_name(folder: Path) -> str:
    """A run's name from its folder, e.g. 2026-01-31_12-00-00, or "hospital" for outputs/hospital."""
    parts = folder.parts[-1:] if folder.parent.name == "outputs" else folder.parts[-3 if "multirun" in folder.parts else -2 :]
    return re.sub(r"[^A-Za-z0-9._-]", "-", "_".join(parts)).lstrip("._-") or "run"


def _serve(config: RunConfig, file: Path, folder: Path) -> None:
    from hydra.core.hydra_config import HydraConfig

    from fedmap.flower.events import EVENTS, EventProgress, Told
    from fedmap.flower.federation import Server
    from fedmap.outputs import RunFolder
    from fedmap.progress import make_progress
    from fedmap.service.platform import Platform
    from fedmap.service.process import front
    from fedmap.service.server_reporting import server_reports

    if _has_finished(config, folder):
        _show_results(folder)
        return
    access.check_server(config, _warn)
    platform = Platform.from_environment().secured(config.security)
    progress = make_progress()
    _log_through(progress)
    events = EventProgress(folder / EVENTS)
    events.opened(config.num_rounds, HydraConfig.get().runtime.choices)
    try:
        with front(config, folder, progress.note), server_reports(config.task_id, folder, progress.note, platform):
            try:
                if config.runtime.name == "superlink":
                    from fedmap.flower import superlink

                    superlink.serve(config, file, folder, run_name(folder), progress)
                else:
                    _serve_locally(config, file, RunFolder(folder), Told(progress, events), Server)
                    events.emit("finished")
            except BaseException as error:
                if not events.ended():
                    events.failed(error)
                raise
    finally:
        progress.stop()
    _show_results(folder)


def _warn(text: str) -> None:
    print(f"WARNING: {text}", file=sys.stderr, flush=True)


def _has_finished(config: RunConfig, folder: Path) -> bool:
    """Whether there is nothing left to do in the folder, which is said. Refuses what cannot be continued before anything is started."""
    from fedmap.report.folder import shown, write_report
    from fedmap.resuming import check_may_start, rounds_done

    check_may_start(folder, config.resume)
    status, done = rounds_done(folder)
    if status != "finished" or done < config.num_rounds:
        return False
    print(
        f"{shown(folder)}: this run has finished after {done} rounds. A larger num_rounds trains it further; another name starts a new one"
    )
    if not (folder / "report.md").exists():
        write_report(folder)
    return True


class _Notes(logging.Handler):
    """Log lines as notes of the progress display, which a raw line would tear."""

    def __init__(self, progress: Progress) -> None:
        super().__init__(logging.INFO)
        self.progress = progress

    def emit(self, record: logging.LogRecord) -> None:
        self.progress.note(record.getMessage())


def _log_through(progress: Progress) -> None:
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
            handler.addFilter(lambda record: not record.name.startswith("fedmap"))
    logging.getLogger("fedmap").addHandler(_Notes(progress))


def _serve_locally(config: RunConfig, file: Path, folder: Any, progress: Any, server_class: Any) -> None:
    from fedmap.build import build_data
    from fedmap.flower.local_grid import LocalGrid

    data = build_data(config)
    clients = list(data.client_ids())
    if config.num_clients is not None:
        if config.num_clients > len(clients):
            raise QuorumError(
                f"num_clients={config.num_clients}, but there are {len(clients)} client partitions below {config.dataset.get('root')}"
            )
        clients = clients[: config.num_clients]
    if not clients:
        raise QuorumError("there are no client partitions; make some with `python data_preparation.py`, see its --help")
    workers = config.runtime.workers
    if workers is None:
        workers = min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, len(clients))
    nodes = {client_id + 100: {"client-id": client_id, "config": str(file)} for client_id in clients}
    server = server_class(config, folder, progress, len(clients), run_name(folder.path), data)
    with LocalGrid(nodes, workers, config.runtime.clients_at_once) as grid:
        server.run(grid)


def _show_results(folder: Path) -> None:
    from fedmap.report import print_report

    print_report(folder)


def _join(config: RunConfig, file: Path, folder: Path) -> None:
    from fedmap.service.client import take_part

    if config.runtime.name != "superlink":
        raise FederationError("client_main.py joins a server over runtime=superlink; with runtime=local the server runs all clients itself")
    access.check_client(config, _warn)

    def say(text: str) -> None:
        print(text, flush=True)

    take_part(config, file, folder, say)


logging.getLogger("fedmap").setLevel(logging.INFO)
