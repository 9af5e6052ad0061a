"""Read and prepare a client's data before it joins: mistakes are said at once, and the server does not wait for caches to fill.

    python -m fedmap.flower.prepare CONFIG RESULT

runs in a process of its own, because client_main.py itself needs neither torch nor the data.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from fedmap.config import PROJECT, RunConfig, load
from fedmap.errors import FederationError
from fedmap.flower import processes


def prepare(config: RunConfig, config_file: Path, folder: Path) -> str:
    """Prepare the client's data and return a sentence about it.

    Raises:
        FederationError: the data or the model cannot be used, or the preparing process was killed.
    """
    result, log = folder / "prepared.json", folder / "prepare.log"
    path = os.pathsep.join(part for part in (str(PROJECT), os.environ.get("PYTHONPATH", "")) if part)
    command = [sys.executable, "-m", "fedmap.flower.prepare", str(config_file), str(result)]
    with processes.running(command, log, Path.cwd(), {**os.environ, "PYTHONPATH": path}) as process:
        status = process.wait()
    found = json.loads(result.read_text()) if result.exists() else {}
    if "problem" in found:
        raise FederationError(f"client {config.client_id} cannot take part: {found['problem']}")
    if status != 0 or not found:
        raise FederationError(f"preparing the data ended with exit code {status}; the end of {log}:\n{processes.tail(log)}")
    return f"client {config.client_id}: {found['train']} training, {found['val']} validation and {found['test']} test rows are ready"


def main(config_file: Path, result: Path) -> None:
    """Prepare, and write {"train", "val", "test"} numbers of rows or {"problem"} to `result`."""
    from fedmap.flower.session import Session

    try:
        config = load(config_file)
        card = Session(config).card(config.client_id)
        result.write_text(json.dumps({"train": card.num_train, "val": card.num_val, "test": card.num_test}))
    except FederationError as error:
        result.write_text(json.dumps({"problem": str(error)}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
