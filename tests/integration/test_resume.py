"""Runs that stop, for whatever reason, and go on: the same bits as a run left alone."""

import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import yaml
from safetensors.numpy import load_file

from benchmarks.resume import Moment, Trial, differences, killed_and_continued, outcome, overrides_of, run_script
from fedmap.aggregators.modality_aware.store import load_student
from fedmap.checkpoint import Checkpoints
from fedmap.config import PROJECT, load
from fedmap.errors import CheckpointError, ConfigError, QuorumError, StorageError
from fedmap.files import locked
from fedmap.flower import doors
from fedmap.history import RoundRecord
from fedmap.outputs import read_history, run_id
from fedmap.records import ClientUpdate
from tests.federations import DIGITS, Notes, model_bytes, run_locally, script

SHORT = ("strategy=fedavg", "dataset.num_clients=3", "num_rounds=3", "hooks.after_round=null", "batch_size=64")
STRATEGIES = {
    "scaffold": ("strategy=scaffold", "training.num_updates=4"),
    "individual": ("strategy=individual", "clients_per_round=2"),
}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fedmap.report.write_report", lambda folder: folder)  # plots take longer than these runs


class Stopping(Notes):
    """A progress that interrupts the run: when a client of a round has answered, or at the end of a round, before its checkpoint."""

    def __init__(self, round_index: int, within: bool) -> None:
        super().__init__()
        self.round_index, self.within = round_index, within

    def client_done(self, update: ClientUpdate) -> None:
        if self.within and update.round_index == self.round_index:
            raise KeyboardInterrupt

    def round_done(self, record: RoundRecord) -> None:
        if not self.within and record.round_index == self.round_index:
            raise KeyboardInterrupt


def run_and_stop(folder: Path, *overrides: str, round_index: int, within: bool) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_locally(folder, *overrides, progress=Stopping(round_index, within))
    assert read_history(folder).status == "failed"


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_run_that_is_stopped_goes_on_bit_for_bit(tmp_path: Path, name: str) -> None:
    overrides = (*SHORT, *STRATEGIES[name])
    run_locally(tmp_path / "alone", *overrides)
    for number, (round_index, within) in enumerate([(0, False), (2, True), (3, False)]):
        folder = tmp_path / str(number)
        run_and_stop(folder, *overrides, round_index=round_index, within=within)
        notes = Notes()
        assert run_locally(folder, *overrides, progress=notes).status == "finished"
        assert differences(outcome(folder), outcome(tmp_path / "alone")) == []
        said = f"continuing the run in {folder} after round {round_index - 1} of 3"
        assert (said in notes.said) == (round_index > 0)


def test_modality_aware_goes_on_with_its_own_student_alphas_and_weights(tmp_path: Path) -> None:
    """The student's file is a round ahead of the checkpoint when the run stops between the two; the checkpoint counts."""
    overrides = (
        *SHORT,
        "num_rounds=4",
        "strategy=modality_aware",
        "server.strategy.n_trials_per_round=3",
        "server.strategy.patience=1",
        "server.strategy.audit_every=1",
    )

    def keep(name: str) -> tuple[str, ...]:
        return (*overrides, f"server.strategy.aggregator_path={tmp_path / name}.safetensors")

    expected = run_locally(tmp_path / "alone", *keep("alone"))
    for round_index in (1, 2, 3):
        name = f"stopped_{round_index}"
        run_and_stop(tmp_path / name, *keep(name), round_index=round_index, within=False)
        ahead = load_student(tmp_path / f"{name}.safetensors", 10, 16)
        assert ahead is not None
        assert len(ahead.lessons) == round_index
        history = run_locally(tmp_path / name, *keep(name))
        for ours, theirs in zip(history.rounds, expected.rounds, strict=True):
            assert dict(ours.diagnostics) == dict(theirs.diagnostics)
            assert [client.weight for client in ours.clients] == [client.weight for client in theirs.clients]
        assert {"alpha-performance", "student-score"} <= set(history.rounds[2].diagnostics) | set(history.rounds[4].diagnostics)
        assert differences(outcome(tmp_path / name), outcome(tmp_path / "alone")) == []
        assert (tmp_path / f"{name}.safetensors").read_bytes() == (tmp_path / "alone.safetensors").read_bytes()


def test_a_finished_run_trains_further_as_if_it_had_never_ended(tmp_path: Path) -> None:
    run_locally(tmp_path / "alone", *SHORT, "num_rounds=4")
    run_locally(tmp_path / "run", *SHORT, "num_rounds=2")
    first = run_id(tmp_path / "run")
    history = run_locally(tmp_path / "run", *SHORT, "num_rounds=4")
    assert [r.round_index for r in history.rounds] == [0, 1, 2, 3, 4]
    assert differences(outcome(tmp_path / "run"), outcome(tmp_path / "alone")) == []
    assert run_id(tmp_path / "run") == first
    assert run_id(tmp_path / "alone") != first


def test_a_run_that_stops_at_its_very_end_does_not_ask_the_clients_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_locally(tmp_path / "alone", *SHORT)
    with monkeypatch.context() as context:
        context.setattr("fedmap.outputs.RunFolder.finish", lambda self, final: signal.raise_signal(signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            run_locally(tmp_path / "run", *SHORT)
    monkeypatch.setattr("fedmap.flower.registry.Registry.wait", lambda *_: pytest.fail("there is nobody to wait for"))
    history = run_locally(tmp_path / "run", *SHORT)
    assert len(history.final.clients) == 3  # type: ignore[union-attr]
    assert differences(outcome(tmp_path / "run"), outcome(tmp_path / "alone")) == []


def test_a_damaged_checkpoint_costs_a_round_of_work_and_no_bit(tmp_path: Path) -> None:
    overrides = (*SHORT, *STRATEGIES["scaffold"])
    run_locally(tmp_path / "alone", *overrides)
    run_and_stop(tmp_path / "run", *overrides, round_index=3, within=True)
    newest = tmp_path / "run" / "checkpoints" / "round_000002.checkpoint"
    newest.write_bytes(newest.read_bytes()[:-50])
    notes = Notes()
    run_locally(tmp_path / "run", *overrides, progress=notes)
    assert any("a checkpoint cannot be used" in note and "round_000002.checkpoint" in note for note in notes.said)
    assert f"continuing the run in {tmp_path / 'run'} after round 1 of 3" in notes.said
    assert differences(outcome(tmp_path / "run"), outcome(tmp_path / "alone")) == []


def test_nothing_is_trained_over_a_run_that_cannot_go_on(tmp_path: Path) -> None:
    run_locally(tmp_path / "run", *SHORT, "num_rounds=1", "keep_checkpoints=0")
    before = (tmp_path / "run" / "results.json").read_bytes()
    with pytest.raises(CheckpointError, match=r"already holds a run \(finished, 1 rounds done\) without checkpoints to continue from"):
        run_locally(tmp_path / "run", *SHORT)
    run_locally(tmp_path / "other", *SHORT, "num_rounds=1")
    with pytest.raises(CheckpointError, match="and resume=never does not touch it; choose another name"):
        run_locally(tmp_path / "other", *SHORT, "resume=never")
    with pytest.raises(ConfigError, match="batch_size is 7, the run was started with 64"):
        run_locally(tmp_path / "other", *SHORT, "batch_size=7")
    with pytest.raises(ConfigError, match="server.strategy._target_ is '.*Scaffold', the run was started with '.*FedAvg'"):
        run_locally(tmp_path / "other", *SHORT, "strategy=scaffold")
    assert (tmp_path / "run" / "results.json").read_bytes() == before


def test_who_starts_a_run_again_that_ended_for_want_of_answers_gets_new_tries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sensors.py").write_text(
        "from pathlib import Path\ndef broken(update):\n    if Path('broken').exists(): raise RuntimeError('no sensor')\n    return update\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    overrides = ("dataset.num_clients=3", "num_rounds=4", "hooks.after_round=sensors.broken", "runtime.max_failed_rounds=2")
    Path("broken").touch()
    with pytest.raises(QuorumError, match="2 rounds in a row"):
        run_locally(tmp_path / "run", *overrides)
    Path("broken").unlink()
    history = run_locally(tmp_path / "run", *overrides)
    assert [[c.status for c in r.clients] for r in history.rounds[1:]] == [["failed"] * 3] * 2 + [["ok"] * 3] * 2
    assert history.status == "finished"


@pytest.fixture
def short_files() -> Iterator[None]:
    """No file of this process may grow beyond 60 kB: what a full disk does, but to nobody else."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_named_and_costs_nothing_that_was_there(tmp_path: Path, short_files: None) -> None:
    run_locally(tmp_path / "alone", *SHORT)
    run_and_stop(tmp_path / "run", *SHORT, round_index=2, within=True)
    kept = {path.name: path.read_bytes() for path in (tmp_path / "run" / "checkpoints").iterdir()}
    limit = max(map(len, kept.values())) - 1000
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    notes = Notes()
    with pytest.raises(CheckpointError) as raised:
        run_locally(tmp_path / "run", *SHORT, progress=notes)
    assert re.search(
        r"round 2 is not saved: .*round_000002.checkpoint: cannot be written \(File too large\); free space or choose another folder\. "
        "The same command again goes on after round 1",
        str(raised.value),
    )
    assert {path.name: path.read_bytes() for path in (tmp_path / "run" / "checkpoints").iterdir()} == kept
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    run_locally(tmp_path / "run", *SHORT)
    assert differences(outcome(tmp_path / "run"), outcome(tmp_path / "alone")) == []


def test_a_disk_that_really_is_full(tmp_path: Path) -> None:
    """In a name space of its own, the run's folder is a file system of 60 kB; and a second time one that is read-only."""
    federation = " ".join(script("server_main.py", "runtime=local", *DIGITS, *SHORT, "service.enabled=false", "runtime.workers=0"))
    steps = f"""
        mkdir -p small fixed
        mount -t tmpfs -o size=60k tmpfs small || exit 77
        {federation} hydra.run.dir=small/run > small.log 2>&1; echo $? > small.code
        cp -r small/run copy
        mount -t tmpfs -o ro tmpfs fixed || exit 77
        {federation} hydra.run.dir=fixed/run > fixed.log 2>&1; echo $? > fixed.code
    """
    done = subprocess.run(["unshare", "-m", "sh", "-c", steps], cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False)
    if done.returncode == 77 or "not permitted" in done.stderr:
        pytest.skip("this user may not mount file systems")
    for name, reason in (("small", "No space left on device"), ("fixed", f"{tmp_path / 'fixed'} cannot be written")):
        said = (tmp_path / f"{name}.log").read_text()
        assert int((tmp_path / f"{name}.code").read_text()) in (1, 2), said
        assert reason in said
        assert "Traceback" not in said
    for path in Checkpoints(tmp_path / "copy" / "checkpoints", 2).folder.glob("*.checkpoint"):
        assert path.stat().st_size > 1000


def test_two_servers_on_one_folder(tmp_path: Path) -> None:
    place = tmp_path / "outputs" / "hospital"
    with locked(place / ".lock"):
        with (
            pytest.raises(StorageError, match=rf"hospital is in use by process {os.getpid()} on .*; wait until it has ended"),
            locked(place / ".lock"),
        ):
            raise AssertionError("two at once")
        command = script("server_main.py", "runtime=local", *DIGITS, *SHORT, "name=hospital", "service.enabled=false")
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 2
        assert f"error: {place} is in use by process {os.getpid()} on" in done.stderr
        assert sorted(path.name for path in place.iterdir()) == [".lock", "server_main.log"]
    with locked(place / ".lock"):
        pass


def test_a_named_run_goes_on_by_its_folder_keeps_no_secret_and_knows_when_it_has_finished(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    secret = "hunter" + "2"
    common = ["runtime=local", "runtime.workers=0", *DIGITS, *SHORT, "num_rounds=1", "service.enabled=false", f"+model.api_key={secret}"]
    (tmp_path / "secretive.py").write_text(
        "from examples.digits.model import *\nimport examples.digits.model as m\n"
        "class Net(m.TwoSensorNet):\n    def __init__(self, api_key, **more):\n        assert api_key == 'hunter' + '2'\n        super().__init__(**more)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}

    def say(*overrides: str) -> tuple[int, str]:
        command = script("server_main.py", *overrides)
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False)
        assert "Traceback" not in done.stdout + done.stderr
        return done.returncode, done.stdout + done.stderr

    code, said = say(*common, "name=hospital", "model._target_=secretive.Net")
    assert code == 0, said
    folder = tmp_path / "outputs" / "hospital"
    assert read_history(folder).status == "finished"
    for path in folder.rglob("*"):
        assert not path.is_file() or secret.encode() not in path.read_bytes(), path
    assert not (folder / ".hydra").exists()
    code, said = say("resume=outputs/hospital", "num_rounds=2", f"+model.api_key={secret}")
    assert code == 0, said
    assert f"continuing the run in {folder} after round 1 of 2" in said
    assert len(read_history(folder).rounds) == 3
    config = load(folder / "config.yaml")
    assert doors._has_finished(config, folder)
    assert "outputs/hospital: this run has finished after 2 rounds. A larger num_rounds trains it further" in capsys.readouterr().out
    assert not doors._has_finished(replace(config, num_rounds=3), folder)
    assert yaml.safe_load((folder / "config.yaml").read_text())["name"] == "hospital"


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["scaffold", "modality_aware"])
def test_server_main_is_killed_and_started_again(tmp_path: Path, strategy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = [*overrides_of(strategy), f"runtime.workers={int(strategy == 'scaffold')}", "name=run"]
    place = tmp_path / "alone"
    place.mkdir()
    with monkeypatch.context() as context:
        context.chdir(place)
        run_locally(place / "run", *overrides_of(strategy))
    place = tmp_path / "killed"
    place.mkdir()
    with (place / "first.log").open("w") as log:
        process = subprocess.Popen(script("server_main.py", *overrides), cwd=place, stdout=log, stderr=log)
        results = place / "outputs" / "run" / "results.json"
        rounds = random.Random(strategy).randint(1, 3)
        while not (results.exists() and len(json.loads(results.read_text())["rounds"]) > rounds):
            assert process.poll() is None, (place / "first.log").read_text()
            time.sleep(0.005)
        workers = psutil.Process(process.pid).children()
        process.kill()
        process.wait()
        assert psutil.wait_procs(workers, timeout=20)[1] == []
    killed, said = run_script(place, overrides, None)
    assert (killed, said) == (False, "")
    assert "continuing the run in" in (place / "run.log").read_text()
    assert differences(outcome(place / "outputs" / "run"), outcome(tmp_path / "alone" / "run")) == []


@pytest.mark.slow
def test_every_strategy_survives_a_kill_at_a_random_moment(tmp_path: Path) -> None:
    out = tmp_path / "resume.json"
    command = [sys.executable, "-m", "benchmarks.resume", "--quick", "--check", "--out", str(out)]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(out.read_text())["figures"]["kills"]["median"] >= 10


def test_the_comparison_would_notice_a_difference(tmp_path: Path) -> None:
    run_locally(tmp_path / "a", *SHORT, "num_rounds=1")
    run_locally(tmp_path / "b", *SHORT, "num_rounds=1", "learning_rate=0.0011")
    found = differences(outcome(tmp_path / "b"), outcome(tmp_path / "a"))
    assert any(difference.startswith("models.last:") for difference in found)
    assert any(difference.startswith("results.rounds[1].validation.loss:") for difference in found)
    calls: list[Moment | None] = []

    def once(moment: Moment | None) -> tuple[bool, str]:
        calls.append(moment)
        return moment is not None, ""

    planned = [Moment(seconds=0.5), Moment(write=3, after=True)]
    trial = killed_and_continued("x", outcome(tmp_path / "a"), planned, once, tmp_path / "b")
    assert calls == [*planned, None]
    assert trial.moments == ("after 0.500 s", "after write 3")
    assert not trial.same
    assert replace(trial, same=True, problem="") == Trial("x", trial.moments, True)


def test_last_is_saved_with_thresholds_of_its_own(tmp_path: Path) -> None:
    command = script(
        "data_preparation.py", "source=synthetic", f"root={tmp_path}", "num_movies=150", "clients=2", "policy=iid", "plot=false"
    )
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    movies = ("model=tiny", "dataset=mm_imdb", f"dataset.root={tmp_path}", "dataset.image_size=16", "num_rounds=1", "learning_rate=0.01")
    run_locally(tmp_path / "run", *movies)
    for name in ("last", "best"):
        thresholds = json.loads((tmp_path / "run" / name / "config.json").read_text())["thresholds"]
        assert len(set(np.ravel(list(thresholds.values()) if isinstance(thresholds, dict) else thresholds))) > 1
    assert load_file(tmp_path / "run" / "last" / "model.safetensors")
    assert model_bytes(tmp_path / "run", "last")
