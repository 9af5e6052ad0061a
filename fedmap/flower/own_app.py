"""A client that runs its own code: programs that stand where Flower's SuperNode looks for the ones that run an app.

Flower unpacks the app that the server sends and runs it. Its way of restricting that, `--trusted-entities`, takes only apps that
Flower's hub has signed. Here a SuperNode finds, first on its PATH, a `flwr-clientapp` that compares the server's bundle with
this machine's own copy, refuses it if they differ, and otherwise runs the copy; and in the place of the programs for all other kinds
of tasks, which a server could ask for as well, one that refuses.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from pathlib import Path
from typing import Any

from fedmap.errors import FederationError
from fedmap.flower.bundle import check_same, stage

_REFUSING = ("flwr-agentapp", "flwr-connector", "flwr-model", "flwr-serverapp", "flwr-simulation")


def install(home: Path, events: Path) -> Path:
    """Copy this machine's code, and write the programs.

    Args:
        home: the SuperNode's Flower home.
        events: where a refusal is told, for the program that watches the client.

    Returns:
        The folder that must come first on the SuperNode's PATH.
    """
    own = stage(home)
    programs = home / "bin"
    programs.mkdir(parents=True, exist_ok=True)
    head = f"#!{sys.executable}\nimport sys\n"
    run = f"sys.path.insert(0, {str(own)!r})\nfrom fedmap.flower.own_app import run\nrun({str(own)!r}, {str(events)!r})\n"
    refuse = "sys.exit('this client runs no apps but its own ClientApp')\n"
    for name in ("flwr-clientapp", *_REFUSING):
        program = programs / name
        program.write_text(head + (run if name == "flwr-clientapp" else refuse), encoding="utf-8")
        program.chmod(0o700)
    return programs


def run(own: str, events: str) -> None:
    """Flower's `flwr-clientapp` with this machine's code in place of the server's."""
    from flwr.clientapp.utils import get_load_client_app_fn
    from flwr.supernode.cli import flwr_clientapp

    flower: Any = importlib.import_module("flwr.supernode.runtime.run_clientapp")

    def check(bundle: bytes, **_: Any) -> None:
        try:
            check_same(bundle, Path(own))
        except FederationError as error:
            line = json.dumps(
                {"event": "problem", "time": time.time(), "asked": "query", "kind": type(error).__name__, "message": str(error)}
            )
            with open(events, "a", encoding="utf-8") as file:
                file.write(line + "\n")
            raise

    def load(**_: Any) -> Any:
        return get_load_client_app_fn(default_app_ref="", app_path=own, multi_app=True)

    # The two names by which Flower's function installs and finds the server's app; it has no option for either.
    flower.install_from_fab = check
    flower.get_load_client_app_fn = load
    flwr_clientapp()
