"""The Flower ServerApp: the same run as in the local runtime, started by a SuperLink."""

from __future__ import annotations

import logging
import sys
import traceback
from datetime import datetime
from pathlib import Path
from typing import cast

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedmap.config import compose_and_resolve, load, parse, run_folder
from fedmap.errors import FederationError
from fedmap.flower.crating_grid import CratingGrid
from fedmap.flower.session import check_name

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the federation that the run configuration describes.

    server_main.py names a resolved configuration ("config"), the run's folder and its name. `flwr run .` gives at most
    "overrides", e.g. "num_rounds=3 model=tiny", and the results go to outputs/ where the SuperLink was started; with
    name=<name> the same again continues that run.
    """
    from fedmap.flower.events import EVENTS, EventProgress
    from fedmap.flower.federation import Server
    from fedmap.outputs import RunFolder

    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)  # Flower sends what is logged to the SuperLink by a request, which httpx would log
    given = context.run_config
    if given.get("config"):
        config = load(Path(str(given["config"])))
    else:
        config = parse(compose_and_resolve("config", str(given.get("overrides", "")).split()))
    now = datetime.now()
    path = Path(str(given.get("folder") or run_folder(config.name, config.resume, f"{now:%Y-%m-%d}/{now:%H-%M-%S}"))).resolve()
    name = check_name(str(given.get("run-name") or config.name or f"{now:%Y-%m-%d}_{now:%H-%M-%S}"))
    path.mkdir(parents=True, exist_ok=True)
    events = EventProgress(path / EVENTS)
    if not given.get("folder"):  # otherwise server_main.py has opened the run
        events.opened(config.num_rounds)
    try:
        expected = config.num_clients or max(1, config.clients_per_round)
        Server(config, RunFolder(path), events, expected, name).run(cast(Grid, CratingGrid(grid)))
    except FederationError as error:
        events.failed(error)
        raise
    except Exception as error:
        events.failed(error, traceback.format_exc())
        raise
    events.emit("finished")
