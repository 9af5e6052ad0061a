"""A bundle is unpacked once for each SuperNode, and again when it is another one or when unpacking has failed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fedmap.flower.launcher import unpack_once


def test_a_bundle_is_unpacked_once_and_another_one_again(tmp_path: Path) -> None:
    unpacked: list[tuple[Any, ...]] = []
    for _ in range(2):  # two copies, which share nothing but the folder
        flower = SimpleNamespace(install_from_fab=lambda bundle, **options: unpacked.append((bundle, options)))
        unpack_once(flower, tmp_path)
        for bundle in (b"a", b"a", b"b"):
            flower.install_from_fab(bundle, skip_prompt=True)
    assert unpacked == [(b"a", {"skip_prompt": True}), (b"b", {"skip_prompt": True})]


def test_what_could_not_be_unpacked_is_tried_again(tmp_path: Path) -> None:
    tried: list[bytes] = []

    def unpack(bundle: bytes) -> None:
        tried.append(bundle)
        raise OSError("no space left on device")

    flower = SimpleNamespace(install_from_fab=unpack)
    unpack_once(flower, tmp_path)
    for _ in range(2):
        with pytest.raises(OSError, match="no space"):
            flower.install_from_fab(b"a")
    assert tried == [b"a", b"a"]


def test_another_flower_is_left_alone(tmp_path: Path) -> None:
    unpack_once(None, tmp_path)
    flower = SimpleNamespace(main=1)
    unpack_once(flower, tmp_path)
    assert vars(flower) == {"main": 1}


def test_flower_calls_it_by_that_name_and_wants_no_answer() -> None:
    import flwr.supernode.runtime.run_clientapp as flower

    source = Path(str(flower.__file__)).read_text()
    assert source.count("install_from_fab(") == 1
    assert "\n        install_from_fab(fab.content, skip_prompt=True)\n" in source
