"""Every input that once broke a promise of a parser is taken, or refused with a documented error, in time, in memory and in its folder.

The inputs were found by `python -m benchmarks.fuzz`; each lies in tests/fuzz_seeds/<target>/ under what it is.
"""

import functools
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.fuzzing.contract import Target, Watch, check
from benchmarks.fuzzing.targets import TARGETS, make_target

SEEDS = Path(__file__).resolve().parent.parent / "fuzz_seeds"
CASES = sorted(path.relative_to(SEEDS).as_posix() for path in SEEDS.glob("*/*"))


@functools.cache
def watch() -> Watch:
    return Watch()


Ready = Callable[[str], tuple[Target, Path]]


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Ready:
    """Targets by name, each made when it is first asked for."""

    @functools.cache
    def made(name: str) -> tuple[Target, Path]:
        folder = tmp_path_factory.mktemp(name)
        target = make_target(name, folder)
        for seed in target.seeds():  # what is imported late is there before it is watched
            if len(seed) < 1 << 16:
                check(target, seed, folder, watch())
        return target, folder

    return made


@pytest.mark.parametrize("case", CASES)
def test_what_was_found_once_is_mended(case: str, ready: Ready) -> None:
    name = case.partition("/")[0]
    target, folder = ready(name)
    found, _ = check(target, (SEEDS / case).read_bytes(), folder, watch())
    assert not found, "\n".join(f"{finding.kind} {finding.place}\n{finding.details}" for finding in found)


@pytest.mark.parametrize("name", [name for name in TARGETS if name not in ("http", "platform")])
def test_a_good_input_keeps_every_promise(name: str, ready: Ready) -> None:
    target, folder = ready(name)
    for seed in list(target.seeds())[:3]:
        assert check(target, seed, folder, watch())[0] == []


def test_a_broken_promise_would_be_found(tmp_path: Path) -> None:
    class Broken:
        allowed = ()
        processes = False

        def __init__(self, folder: Path) -> None:
            self.folder = folder

        def seeds(self) -> list[bytes]:
            return []

        def run(self, data: bytes) -> None:
            if data == b"write":
                (self.folder.parent / "outside").write_text("x")
            elif data == b"memory":
                raise MemoryError
            elif data == b"raise":
                {}["a"]

    folder = tmp_path / "own"
    folder.mkdir()
    found = {kind: check(Broken(folder), kind, folder, watch())[0] for kind in (b"write", b"memory", b"raise", b"")}
    assert [finding.kind for finding in found[b"write"]] == ["outside"]
    assert [finding.kind for finding in found[b"memory"]] == ["memory"]
    assert [finding.kind for finding in found[b"raise"]] == ["crash"]
    assert found[b""] == []
