"""`python -m fedmap demo`: `fedmap.demo` by another name."""

from __future__ import annotations

import argparse

from fedmap import demo
from fedmap.config import PROJECT


def run(arguments: argparse.Namespace) -> int:
    """Run the demonstration; returns the exit status."""
    return demo.run(arguments.folder or PROJECT / "demo", (*demo.SETTINGS, *arguments.settings))
