"""The import of torchvision is repaired where it fails for want of its operators, and otherwise left alone."""

import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
NEEDS_OPERATORS = """
import torch
torch.library.register_fake("torchvision::nms")(lambda *a: None)
torch.library.register_fake("torchvision::qnms")(lambda *a: None)
"""


def run(code: str, *path: Path) -> subprocess.CompletedProcess[str]:
    setup = f"import sys; sys.path[:0] = {[str(p) for p in (*path, PROJECT)]!r}\n"
    return subprocess.run([sys.executable, "-W", "error", "-c", setup + code], capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture
def package(tmp_path: Path):
    def make(content: str) -> Path:
        folder = tmp_path / "torchvision"
        folder.mkdir()
        (folder / "__init__.py").write_text("from torchvision import part\n" + content)
        (folder / "part.py").write_text("")
        return tmp_path

    return make


def test_the_installed_torchvision_and_transformers_import() -> None:
    plain = run("import torchvision")
    repaired = run(
        "from fedmap.encoders import torchvision_repair as r\n"
        "t = r.import_transformers()\n"
        "import torchvision\n"
        "from torchvision.models import resnet18\n"
        "print(t.BertModel.__name__, resnet18(weights=None).fc.in_features, len(r._declared))"
    )
    assert repaired.returncode == 0, repaired.stderr
    assert repaired.stdout.split() == ["BertModel", "512", "0" if plain.returncode == 0 else "1"]


def test_missing_operators_are_declared_and_what_the_failed_import_left_is_cleared(package) -> None:
    root = package(NEEDS_OPERATORS + "answer = 42\n")
    assert "does not exist" in run("import torchvision", root).stderr
    done = run(
        "from fedmap.encoders.torchvision_repair import import_torchvision as load\nprint(load().answer, load().part.__name__)",
        root,
    )
    assert done.stdout.split() == ["42", "torchvision.part"], done.stderr


def test_an_import_that_works_declares_nothing(package) -> None:
    root = package("answer = 42\n")
    done = run("from fedmap.encoders import torchvision_repair as r\nprint(r.import_torchvision().answer, r._declared)", root)
    assert done.stdout.split() == ["42", "[]"], done.stderr


def test_another_failure_is_not_hidden(package) -> None:
    root = package("raise RuntimeError('the disk is on fire')\n")
    done = run("from fedmap.encoders import torchvision_repair as r\nr.import_torchvision()", root)
    assert done.returncode != 0
    assert "the disk is on fire" in done.stderr
