"""Which configuration a run goes on with, and which it refuses."""

import re
from pathlib import Path

import pytest
import yaml

from fedmap.config import check_overrides, compose_and_resolve, parse, run_folder
from fedmap.errors import CheckpointError, ConfigError, DataError
from fedmap.outputs import redacted
from fedmap.resuming import check_may_start, continued, rounds_done

BASE = ["strategy=fedavg", "model=digits", "dataset=digits", "runtime=local"]


def tree(*overrides: str) -> dict:
    return compose_and_resolve("config", [*BASE, *overrides])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    stored = tree("name=hospital", "strategy=scaffold", "num_rounds=5", "tracking=mlflow", "+tracking.token=s3cret")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(redacted(stored)))
    add_checkpoint(tmp_path)
    return tmp_path


def add_checkpoint(folder: Path) -> None:
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "round_000001.checkpoint").touch()


def test_folders_follow_from_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_folder(None, "auto", "2026-01-31/12-00-00") == "outputs/2026-01-31/12-00-00"
    assert run_folder("hospital", "never", "2026-01-31/12-00-00") == "outputs/hospital"
    assert run_folder("hospital", "/data/run", "2026-01-31/12-00-00") == "/data/run"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    for override, message in {
        "resume=outputs/none": "resume=outputs/none: there is no run in this folder",
        "hydra.run.dir=file/run": f"{tmp_path / 'file'} cannot be written: it is no folder",
        "name=../up": "name='../up': use letters, digits",
        "name=clients": "name='clients': use letters, digits, '.', '_' and '-' alone, starting with a letter or digit, and not 'clients'",
    }.items():
        with pytest.raises(SystemExit, match=re.escape(message)):
            check_overrides(["server_main.py", override])
    with pytest.raises(ConfigError, match="name='a b': use letters"):
        parse({**tree(), "name": "a b"})
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_nothing_stored_means_nothing_to_contradict(tmp_path: Path) -> None:
    new = tree("num_rounds=3")
    assert continued(tmp_path, new, ["num_rounds=3"]) == new
    with pytest.raises(ConfigError, match="there is no run in this folder"):
        continued(tmp_path, tree(f"resume={tmp_path}"), [])


def test_the_same_command_again_may_change_how_but_not_what(folder: Path) -> None:
    same = ["name=hospital", "strategy=scaffold", "tracking=none", "runtime.workers=3", "num_rounds=9", "client_id=4", "service.port=1234"]
    assert continued(folder, tree(*same), same) == tree(*same)
    for override, sentence in {
        "random_seed=1": "random_seed is 1, the run was started with 42",
        "learning_rate=0.5": "learning_rate is 0.5, the run was started with 0.05",
        "dataset.alpha=9": "dataset.alpha is 9, the run was started with 0.5",
        "clients_per_round=2": "clients_per_round is 2, the run was started with 0",
        "server.strategy.option=I": "server.strategy.option is 'I', the run was started with 'II'",
        "hooks.after_round=null": "hooks.after_round is None, the run was started with 'flclient_patch.after_round'",
        "runtime.threads=2": "runtime.threads is 2, the run was started with 1",
        "+model.depth=7": "model.depth is 7, the run was started with not set",
    }.items():
        with pytest.raises(ConfigError, match="cannot go on with another configuration") as raised:
            continued(folder, tree(*same, override), [*same, override])
        assert sentence in str(raised.value)
        assert str(raised.value).count("the run was started with") == (2 if override == "random_seed=1" else 1)  # data and seed go together


def test_a_run_that_stopped_before_it_began_may_be_mended(folder: Path) -> None:
    (folder / "checkpoints" / "round_000001.checkpoint").unlink()
    new = tree("name=hospital", "batch_size=7")
    assert continued(folder, new, ["name=hospital", "batch_size=7"]) == new


def test_a_key_that_a_newer_version_adds_is_no_contradiction(folder: Path) -> None:
    newer = {**tree("name=hospital", "strategy=scaffold"), "new_key": 1}
    assert continued(folder, newer, ["name=hospital", "strategy=scaffold"]) == newer
    with pytest.raises(ConfigError, match="new_key is 1, the run was started with not set"):
        continued(folder, newer, ["new_key=1"])


def test_a_folder_goes_on_under_its_own_configuration(folder: Path) -> None:
    said = [f"resume={folder}", "num_rounds=20", "runtime=superlink", "runtime.address=127.0.0.1:9", "tracking.token=again"]
    new = compose_and_resolve("config", [*said[:-1], "tracking=mlflow", f"+{said[-1]}"])
    found = continued(folder, new, said)
    assert found["num_rounds"] == 20
    assert found["runtime"] == new["runtime"]
    assert found["learning_rate"] == 0.05, "what SCAFFOLD needs was stored, though this command does not name the strategy"
    assert found["server"]["strategy"]["_target_"].endswith("Scaffold")
    assert found["model"] == tree()["model"]
    assert (found["name"], found["resume"]) == ("hospital", "auto")
    assert found["tracking"]["token"] == "again", "a secret is never stored"
    for override, sentence in {
        "strategy=fedavg": "server.strategy._target_ is 'fedmap.aggregators.fedavg.FedAvg'",
        "model=tiny": "model._target_ is 'models.MMIMDbFusionModel'",
        "batch_size=3": "batch_size is 3, the run was started with 32",
    }.items():
        words = [*said[:-1], override]
        with pytest.raises(ConfigError, match=re.escape(sentence)):
            continued(folder, compose_and_resolve("config", words), words)
    with pytest.raises(ConfigError, match="tracking.token: secrets are not kept with a run; give them again"):
        continued(folder, compose_and_resolve("config", [f"resume={folder}"]), [f"resume={folder}"])


def test_what_a_folder_holds(tmp_path: Path) -> None:
    assert rounds_done(tmp_path) == ("", 0)
    check_may_start(tmp_path, "auto")
    (tmp_path / "results.json").write_text('{"schema_version": 1, "status": "running", "rounds": [{"round_index": 0}]}')
    check_may_start(tmp_path, "never")  # nothing has been trained yet
    (tmp_path / "results.json").write_text('{"schema_version": 1, "status": "failed", "rounds": [{"round_index": 0}, {"round_index": 1}]}')
    assert rounds_done(tmp_path) == ("failed", 1)
    with pytest.raises(CheckpointError, match="without checkpoints to continue from"):
        check_may_start(tmp_path, "auto")
    add_checkpoint(tmp_path)
    check_may_start(tmp_path, "auto")
    with pytest.raises(CheckpointError, match=r"\(failed, 1 rounds done\) and resume=never does not touch it"):
        check_may_start(tmp_path, "never")
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(DataError, match="not JSON"):
        rounds_done(tmp_path)
    (tmp_path / "config.yaml").write_text("[")
    with pytest.raises(ConfigError, match="config.yaml cannot be read"):
        continued(tmp_path, tree(), [])
