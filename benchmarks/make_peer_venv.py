"""Make the environment of the peer: `fedops`, whose published strategy and application the benchmarks compare with.

    python -m benchmarks.make_peer_venv [--folder .peer/venv] [--torch-index URL]

fedops 1.1.30.19 pins an older NumPy than this project, so that it gets a virtual environment of its own. The package
itself is installed whole and unchanged, but of its 18 requirements only those that its strategy, its server and its client
reach when they run, with the versions that it pins: 1.2 GB instead of 2.7 GB. Left out are trl, bitsandbytes, ray, wandb and others.
"""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.peer_environment import PEERS, PeerEnvironment

FEDOPS = "fedops==1.1.30.19"
# fedops itself pins NumPy; Flower 1.32 is what its open requirement is held to by the rest of its pins
NEEDED = (
    "numpy==1.26.4",
    "flwr==1.32.1",
    "optuna",
    "hydra-core",
    "requests",
    "boto3",
    "scikit-learn",
    "transformers==4.43.1",
    "peft==0.14.0",
    "pydantic",
    "pillow",
)
TORCHVISION = "torchvision==0.28.0"  # without its requirements: they would bring another build of torch
CHECK = """
import importlib.metadata as m
from fedops.server.fedmap.strategy import ModalityAwareAggregation
print(*(f"{p} {m.version(p)}" for p in ("fedops", "flwr", "numpy", "torch", "optuna", "transformers")), sep=", ")
"""
ENVIRONMENT = PeerEnvironment("benchmarks.make_peer_venv", PEERS / "venv", (NEEDED, ("--no-deps", FEDOPS, TORCHVISION)), CHECK)
FOLDER = ENVIRONMENT.folder


def python_of(folder: Path = FOLDER) -> Path:
    """The environment's interpreter, whether or not it is there yet."""
    return ENVIRONMENT.python(folder)


if __name__ == "__main__":
    sys.exit(ENVIRONMENT.main(__doc__))
