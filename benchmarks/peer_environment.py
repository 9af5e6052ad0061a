"""A virtual environment for peers, whose pins do not go together with the project's: what it needs, and the command that makes it."""

from __future__ import annotations

import argparse
import subprocess
import sys
import venv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

TORCH = "torch==2.13.0"
PEERS = Path(__file__).resolve().parent.parent / ".peer"


@dataclass(frozen=True)
class PeerEnvironment:
    """What is installed where.

    Attributes:
        module: whose `python -m` makes it.
        folder: where it goes by default.
        installs: the arguments of one `pip install` after the other, behind PyTorch's.
        check: a program that imports the peers and prints what is installed, as one line.
    """

    module: str
    folder: Path
    installs: Sequence[Sequence[str]]
    check: str

    def python(self, folder: Path | None = None) -> Path:
        """The interpreter, whether or not it is there yet."""
        return (folder or self.folder) / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")

    def versions(self, folder: Path | None = None) -> str:
        """What is installed, as one line; checks that it can be imported."""
        command = [str(self.python(folder)), "-c", self.check]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    def make(self, folder: Path, torch_index: str | None) -> str:
        """Make the environment, or complete it, and return the versions that the peers run with."""
        python = self.python(folder)
        if not python.is_file():
            venv.create(folder, with_pip=True)
        for arguments in ((TORCH, *(("--index-url", torch_index) if torch_index else ())), *self.installs):
            subprocess.run([str(python), "-m", "pip", "install", "--quiet", *arguments], check=True)
        return self.versions(folder)

    def main(self, description: str | None) -> int:
        """Parse the command line and make the environment."""
        parser = argparse.ArgumentParser(prog=f"python -m {self.module}", description=description)
        parser.add_argument("--folder", type=Path, default=self.folder, help=f"where it goes (default .peer/{self.folder.name})")
        parser.add_argument(
            "--torch-index", help="package index for PyTorch, e.g. https://download.pytorch.org/whl/cpu for the small CPU build"
        )
        arguments = parser.parse_args()
        try:
            print(self.make(arguments.folder, arguments.torch_index))
        except subprocess.CalledProcessError as error:
            said = error.stderr or ""
            print(f"the peers' environment could not be made: {' '.join(error.cmd[:5])} ... failed ({error.returncode})\n{said}")
            return 2
        return 0
