"""Make the environment of the scale benchmark's peers: Flower's Ray simulation and blazefl.

    python -m benchmarks.make_scale_venv [--folder .peer/scale] [--torch-index URL]

Flower 1.41 with its extra `simulation` brings Ray 2.55.1. blazefl 2.0.2 declares Python 3.12 or newer, but has no line that Python
3.11 does not run; it is installed unchanged without that check, so that all three systems run on one Python and one torch.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import venv
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent / ".peer" / "scale"
TORCH = "torch==2.13.0"
NEEDED = ("flwr[simulation]==1.41.0", "numpy==2.4.6", "psutil==7.2.2", "tqdm==4.67.1")
BLAZEFL = "blazefl==2.0.2"
CHECK = """
import importlib.metadata as m
import ray, blazefl.contrib, flwr.simulation
print(*(f"{p} {m.version(p)}" for p in ("flwr", "ray", "blazefl", "torch", "numpy")), sep=", ")
"""


def python_of(folder: Path = FOLDER) -> Path:
    """The environment's interpreter, whether or not it is there yet."""
    return folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")


def make(folder: Path, torch_index: str | None) -> str:
    """Make the environment, or complete it, and return the versions that the peers run with."""
    python = python_of(folder)
    if not python.is_file():
        venv.create(folder, with_pip=True)

    def pip(*arguments: str) -> None:
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *arguments], check=True)

    pip(TORCH, *(["--index-url", torch_index] if torch_index else []))
    pip(*NEEDED)
    pip("--no-deps", "--ignore-requires-python", BLAZEFL)
    return versions(python)


def versions(python: Path) -> str:
    """What is installed there, as one line; checks that it can be imported."""
    return subprocess.run([str(python), "-c", CHECK], check=True, capture_output=True, text=True).stdout.strip()


def main() -> int:
    """Parse the command line and make the environment."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.make_scale_venv", description=__doc__)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where it goes (default .peer/scale)")
    parser.add_argument(
        "--torch-index", help="package index for PyTorch, e.g. https://download.pytorch.org/whl/cpu for the small CPU build"
    )
    arguments = parser.parse_args()
    try:
        print(make(arguments.folder, arguments.torch_index))
    except subprocess.CalledProcessError as error:
        print(f"the peers' environment could not be made: {' '.join(error.cmd[:5])} ... failed ({error.returncode})\n{error.stderr or ''}")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
