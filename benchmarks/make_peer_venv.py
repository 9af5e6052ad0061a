"""Make the environment of the peer: `fedops`, whose published strategy and application the benchmarks compare with.

    python -m benchmarks.make_peer_venv [--folder .peer/venv] [--torch-index URL]

fedops 1.1.30.19 pins an older NumPy than this project, so that it gets a virtual environment of its own. The package
itself is installed whole and unchanged, but of its 18 requirements only those that its strategy, its server and its client
reach when they run, with the versions that it pins: 1.2 GB instead of 2.7 GB. Left out are trl, bitsandbytes, ray, wandb and others.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import venv
from pathlib import Path

FEDOPS = "fedops==1.1.30.19"
FOLDER = Path(__file__).resolve().parent.parent / ".peer" / "venv"
TORCH = "torch==2.13.0"
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


def python_of(folder: Path = FOLDER) -> Path:
    """The environment's interpreter, whether or not it is there yet."""
    return folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")


def make(folder: Path, torch_index: str | None) -> str:
    """Make the environment, or complete it, and return the versions that the peer runs with."""
    python = python_of(folder)
    if not python.is_file():
        venv.create(folder, with_pip=True)

    def pip(*arguments: str) -> None:
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *arguments], check=True)

    pip(TORCH, *(["--index-url", torch_index] if torch_index else []))
    pip(*NEEDED)
    pip("--no-deps", FEDOPS, TORCHVISION)
    return subprocess.run([str(python), "-c", CHECK], check=True, capture_output=True, text=True).stdout.strip()


def main() -> int:
    """Parse the command line and make the environment."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.make_peer_venv", description=__doc__)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where it goes (default .peer/venv)")
    parser.add_argument(
        "--torch-index", help="package index for PyTorch, e.g. https://download.pytorch.org/whl/cpu for the small CPU build"
    )
    arguments = parser.parse_args()
    try:
        print(make(arguments.folder, arguments.torch_index))
    except subprocess.CalledProcessError as error:
        print(f"the peer's environment could not be made: {' '.join(error.cmd[:5])} ... failed ({error.returncode})\n{error.stderr or ''}")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
