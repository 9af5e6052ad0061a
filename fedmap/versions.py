"""What a result depends on besides its configuration: versions of the software, and the kind of machine."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from fedmap.config import PROJECT

PACKAGES = (
    "torch",
    "torchvision",
    "transformers",
    "flwr",
    "numpy",
    "hydra-core",
    "optuna",
    "scikit-learn",
    "pandas",
    "pillow",
    "safetensors",
)


def versions() -> dict[str, object]:
    """The versions of Python and of the packages that decide results, and the project's commit if it is a git checkout."""
    packages: dict[str, str] = {}
    for name in PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            continue
    commit, changed = _commit()
    return {"python": platform.python_version(), "packages": packages, "commit": commit, "uncommitted_changes": changed}


def machine() -> dict[str, object]:
    """The kind of machine, without its name or any path: system, processor, cores, memory in GiB, accelerators."""
    import torch

    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "system": platform.system(),
        "architecture": platform.machine(),
        "processor": _processor(),
        "cores": usable,
        "threads": torch.get_num_threads(),
        "memory_gib": _memory_gib(),
        "accelerators": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }


def _commit() -> tuple[str | None, bool | None]:
    if not (PROJECT / ".git").exists():
        return None, None

    def git(*arguments: str) -> str:
        command = ["git", "--no-optional-locks", "-C", str(PROJECT), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.SubprocessError):
        return None, None


def _processor() -> str | None:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or None


def _memory_gib() -> float | None:
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
    return round(total / 2**30, 1)
