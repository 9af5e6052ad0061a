"""Make the environment of the scale benchmark's peers: Flower's Ray simulation and blazefl.

    python -m benchmarks.make_scale_venv [--folder .peer/scale] [--torch-index URL]

Flower 1.41 with its extra `simulation` brings Ray 2.55.1. blazefl 2.0.2 declares Python 3.12 or newer, but has no line that Python
3.11 does not run; it is installed unchanged without that check, so that all three systems run on one Python and one torch.
"""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.peer_environment import PEERS, PeerEnvironment

NEEDED = ("flwr[simulation]==1.41.0", "numpy==2.4.6", "psutil==7.2.2", "tqdm==4.67.1")
BLAZEFL = "blazefl==2.0.2"
CHECK = """
import importlib.metadata as m
import ray, blazefl.contrib, flwr.simulation
print(*(f"{p} {m.version(p)}" for p in ("flwr", "ray", "blazefl", "torch", "numpy")), sep=", ")
"""
ENVIRONMENT = PeerEnvironment(
    "benchmarks.make_scale_venv", PEERS / "scale", (NEEDED, ("--no-deps", "--ignore-requires-python", BLAZEFL)), CHECK
)
FOLDER = ENVIRONMENT.folder


def python_of(folder: Path = FOLDER) -> Path:
    """The environment's interpreter, whether or not it is there yet."""
    return ENVIRONMENT.python(folder)


if __name__ == "__main__":
    sys.exit(ENVIRONMENT.main(__doc__))
