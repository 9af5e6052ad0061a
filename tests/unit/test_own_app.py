"""A client that runs its own code: which bundles it takes, and the programs that stand in for Flower's."""

import io
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from flwr.cli.build import build_fab_from_disk

from fedmap.errors import FederationError
from fedmap.flower import own_app
from fedmap.flower.bundle import check_same, stage

pytestmark = pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")  # Flower's


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stage(tmp_path_factory.mktemp("own"))


@pytest.fixture(scope="module")
def bundle(own: Path) -> bytes:
    """What a server with the same code submits."""
    return build_fab_from_disk(own)


def test_the_same_code_is_taken_and_what_is_the_users_own_may_differ(own: Path, bundle: bytes, tmp_path: Path) -> None:
    check_same(bundle, own)
    theirs = shutil.copytree(own, tmp_path / "theirs")
    (theirs / "models.py").write_text("# another model\n")
    (theirs / "more.py").write_text("# a file of the server's user\n")
    check_same(build_fab_from_disk(theirs), own)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda app: (app / "fedmap/guardx.py").write_text("print('mine')\n"), "fedmap/guardx.py differs"),
        (lambda app: (app / "fedmap/signals.py").unlink(), "fedmap/signals.py differs"),
        (lambda app: (app / "fedmap/flower/client_app.py").write_text("# nothing\n"), "fedmap/flower/client_app.py differs"),
    ],
)
def test_other_code_is_refused_and_named(own: Path, tmp_path: Path, change: object, named: str) -> None:
    theirs = shutil.copytree(own, tmp_path / "theirs")
    change(theirs)  # type: ignore[operator]
    with pytest.raises(FederationError, match=f"the server's code is not this client's: {named}.*Nothing of the server's code was run"):
        check_same(build_fab_from_disk(theirs), own)


def test_what_is_no_bundle_is_refused(own: Path, bundle: bytes) -> None:
    empty = io.BytesIO()
    with zipfile.ZipFile(empty, "w") as archive:
        archive.writestr("fedmap/x.py", "")
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(".info/CONTENT", b"a,b,1\n" * 2_000_000)
    for content in (b"", b"no zip", bundle[: len(bundle) // 2], empty.getvalue(), bomb.getvalue()):
        with pytest.raises(FederationError, match="cannot be read as a bundle of Flower's"):
            check_same(content, own)


def test_a_list_that_hides_a_file_is_caught_by_what_it_leaves_out(own: Path, bundle: bytes) -> None:
    changed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(bundle)) as old, zipfile.ZipFile(changed, "w") as new:
        for name in old.namelist():
            text = old.read(name)
            if name == ".info/CONTENT":
                text = b"\n".join(line for line in text.splitlines() if not line.startswith(b"fedmap/guard"))
            new.writestr(name, text)
    with pytest.raises(FederationError, match="fedmap/guard"):
        check_same(changed.getvalue(), own)


def test_the_programs_come_first_and_all_others_refuse(tmp_path: Path) -> None:
    programs = own_app.install(tmp_path, tmp_path / "events.jsonl")
    from flwr.supercore.constant import TASK_TYPE_TO_COMMAND

    assert {path.name for path in programs.iterdir()} == set(TASK_TYPE_TO_COMMAND.values()), "whatever Flower may be asked to start"
    for name in sorted(set(TASK_TYPE_TO_COMMAND.values()) - {"flwr-clientapp"}):
        environment = {**os.environ, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}
        done = subprocess.run([name, "--token", "x"], env=environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 1
        assert done.stderr.strip() == "this client runs no apps but its own ClientApp"
    text = (programs / "flwr-clientapp").read_text()
    assert text.startswith(f"#!{sys.executable}\n")
    assert str(tmp_path / "fedmap") in text


def test_flower_still_has_the_two_names_that_are_replaced() -> None:
    import importlib

    flower = importlib.import_module("flwr.supernode.runtime.run_clientapp")
    source = Path(str(flower.__file__)).read_text()
    assert "install_from_fab(fab.content, skip_prompt=True)" in source
    assert source.count("get_load_client_app_fn(") == 1
    assert source.index("install_from_fab(fab.content") < source.index("load_client_app_fn("), "checked before anything is loaded"
