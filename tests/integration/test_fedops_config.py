"""A FedOps user's conf/config.yaml, as it is, in place of ours: the whole file, the command line on top of it, and a real run."""

import os
import shutil
import subprocess
import sys

import pytest
import yaml

from fedmap.aggregators.modality_aware.aggregator import ModalityAwareAggregation
from fedmap.build import build_aggregator
from fedmap.config import CONF, PROJECT, compose, compose_and_resolve, parse
from fedmap.config.bare import GROUPS
from fedmap.data.prepare import prepare
from fedmap.errors import ConfigError
from fedmap.outputs import read_history

FEDOPS = """\
random_seed: 42
learning_rate: 0.0001
model_type: Pytorch
model:
  _target_: models.MMIMDbFusionModel
  output_size: 23
dataset:
  name: MM_IMDB
  validation_split: 0.0
client_id: 0
task_id: mytask
num_epochs: 1
batch_size: 32
num_rounds: 2
clients_per_round: 1
server:
  strategy:
    _target_: fedops.server.fedmap.strategy.ModalityAwareAggregation
    aggregator_path: "aggregator_mlp.pth"
    input_dim: 10
    hidden_dim: 16
    aggregator_lr: 0.001
    entropy_coeff: 0.01
    n_trials_per_round: 4
    perf_mix_lambda: 0.7
    z_clip: 3.0
"""


@pytest.fixture
def conf(tmp_path):
    shutil.copytree(CONF, tmp_path / "conf")
    (tmp_path / "conf" / "config.yaml").write_text(FEDOPS)
    return tmp_path / "conf"


def test_our_own_file_names_the_groups_that_complete_a_bare_one():
    groups = [entry for entry in yaml.safe_load((CONF / "config.yaml").read_text())["defaults"] if isinstance(entry, dict)]
    assert {key: value for entry in groups for key, value in entry.items() if not key.startswith("optional")} == GROUPS


def test_the_file_is_complete_and_means_our_strategy(conf):
    config = parse(compose_and_resolve("config", [], conf))
    aggregator = build_aggregator(config)
    assert isinstance(aggregator, ModalityAwareAggregation)
    assert (aggregator.n_trials_per_round, aggregator.aggregator_lr, aggregator.seed) == (4, 0.001, 42)
    assert aggregator.aggregator_path == "aggregator_mlp.pth"
    assert (config.num_rounds, config.clients_per_round, config.task_id, config.learning_rate) == (2, 1, "mytask", 0.0001)
    assert config.model["output_size"] == 23
    assert config.model["bert_name"] == "bert-base-uncased"
    assert config.dataset["name"] == "MM_IMDB"
    assert config.dataset["image_size"] == 224
    assert config.runtime.name == "superlink"
    assert config.training.optimizer == "adamw"
    assert parse(compose_and_resolve("client", ["client_id=1"], conf)).client_id == 1


def test_the_command_line_wins_over_the_file_and_typos_are_named(conf):
    config = parse(compose_and_resolve("config", ["strategy=fedprox", "server.strategy.mu=0.5", "batch_size=64", "runtime=local"], conf))
    assert config.strategy["_target_"] == "fedmap.aggregators.fedprox.FedProx"
    assert config.strategy["mu"] == 0.5
    assert "n_trials_per_round" not in config.strategy
    assert config.batch_size == 64
    assert config.runtime.name == "local"
    scaffold = parse(compose_and_resolve("config", ["strategy=scaffold", "num_clients=3"], conf))
    assert scaffold.training == parse(compose_and_resolve("config", ["strategy=scaffold", "num_clients=3"])).training
    with pytest.raises(ConfigError, match="did you mean 'batch_size'"):
        compose("config", ["batchsize=64"], conf)


def test_a_class_of_the_users_own_gets_none_of_our_arguments(conf):
    tree = yaml.safe_load(FEDOPS)
    tree["model"] = {"_target_": "mine.Model", "width": 3}
    tree["server"]["strategy"] = {"_target_": "mine.Strategy", "sharpness": 2.0}
    (conf / "config.yaml").write_text(yaml.safe_dump(tree))
    config = parse(compose_and_resolve("config", ["model.width=4"], conf))
    assert dict(config.model) == {"_target_": "mine.Model", "width": 4}
    assert dict(config.strategy) == {"_target_": "mine.Strategy", "sharpness": 2.0}


@pytest.mark.parametrize("text", ["- a list", "model: [1, 2", "just words"])
def test_a_file_that_is_no_configuration_is_named(conf, text):
    (conf / "config.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"config\.yaml"):
        compose("config", [], conf)


def test_server_main_runs_with_the_file_in_its_place(tmp_path):
    """The scripts in a folder of their own; towers are random and small, for BERT and ResNet-18 would have to be fetched."""
    app = tmp_path / "app"
    app.mkdir()
    for name in ("server_main.py", "client_main.py", "models.py", "data_preparation.py", "flclient_patch.py"):
        shutil.copy(PROJECT / name, app)
    for name in ("fedmap", "conf"):
        shutil.copytree(PROJECT / name, app / name, ignore=shutil.ignore_patterns("__pycache__"))
    (app / "conf" / "config.yaml").write_text(FEDOPS)
    prepare(root=str(app), source="synthetic", num_movies=160, clients=2, policy="iid", labels="mmimdb23", seed=0, plot=False)
    small = ["runtime=local", "runtime.workers=0", "model=tiny", "dataset.image_size=32", "service.enabled=false", "tracking=none"]
    done = subprocess.run(
        [sys.executable, "server_main.py", *small, "name=fedops", "num_clients=2", "clients_per_round=2"],
        cwd=app,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    history = read_history(app / "outputs" / "fedops")
    assert history.status == "finished"
    assert [record.round_index for record in history.rounds] == [0, 1, 2]
    assert len(history.label_names) == 23
    assert "evaluations" in history.rounds[-1].diagnostics, "our strategy aggregated"
    assert (app / "aggregator_mlp.pth").is_file()
