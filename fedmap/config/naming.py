"""A run's name, and the folder that follows from it."""

from __future__ import annotations

import re

from omegaconf import OmegaConf

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def run_folder(name: object, resume: object, now: str) -> str:
    """The folder of a run, below the working folder: the one to resume, else that of its name, else a new one."""
    if resume not in RESUME_WORDS:
        return str(resume)
    return f"outputs/{now if name is None else name}"


RESUME_WORDS = ("auto", "never")
OmegaConf.register_new_resolver("run_folder", run_folder, replace=True)


def problem_of_name(name: object) -> str:
    """What is wrong with a name; "" if nothing is."""
    if _NAME.fullmatch(str(name)) and name != "clients":  # outputs/clients holds the clients' logs
        return ""
    return f"name={name!r}: use letters, digits, '.', '_' and '-' alone, starting with a letter or digit, and not 'clients'"
