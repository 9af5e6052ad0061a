"""Imports torchvision, and with it transformers, where PyPI's build of it meets a CPU-only torch.

PyPI's torchvision is linked against CUDA. Beside a CPU-only torch its C++ library does not load, and the import ends with
`operator torchvision::nms does not exist` (pytorch/vision issue 9077), because two operators get shape rules without having
been declared. transformers imports torchvision and falls with it. Declaring the two operators is all that is missing: no
tower here uses them, and whoever calls them still gets torchvision's own error.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_declared: list[object] = []  # torch forgets the operators with the Library object that declared them


def import_torchvision() -> ModuleType:
    """torchvision, repaired if its import fails for want of its operators; imports that work are left alone."""
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if "operator torchvision::" not in str(error) or _declared:
            raise
    _declare_operators()
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]  # what the failed import left behind
    return importlib.import_module("torchvision")


def import_transformers() -> ModuleType:
    """transformers, with torchvision imported first where it is installed."""
    if importlib.util.find_spec("torchvision") is not None:
        import_torchvision()
    return importlib.import_module("transformers")


def _declare_operators() -> None:
    import torch

    library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for name in ("nms", "qnms"):
        library.define(f"{name}{_SCHEMA}")  # type: ignore[no-untyped-call]
    _declared.append(library)
