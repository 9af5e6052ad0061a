"""The command in a report composes to the configuration of the run."""

import shlex
from pathlib import Path

import pytest
import yaml
from hydra.core.global_hydra import GlobalHydra

from fedmap.config import CONF, compose_and_resolve
from fedmap.report.repeat import repeat_command

(DEFAULT,) = [entry["strategy"] for entry in yaml.safe_load((CONF / "config.yaml").read_text())["defaults"] if "strategy" in entry]


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["strategy=scaffold", "model=tiny", "runtime=local"],
        ["strategy=fedadam", "server.strategy.options.eta=0.5", "random_seed=7", "model=digits", "dataset=digits"],
        ["strategy=modality_aware", "+server.strategy.custom_features.battery=higher", "server.strategy.fairness=label"],
        ["strategy=fedmap", "server.strategy.head_prefixes=[a, 'b c']", "server.strategy.layer_sigma={}", "training.num_updates=5"],
        ["model.bert_name='a b\\'c'", "hooks.after_round=null", "learning_rate=1e-05", "training.amp=true", "clients_per_round=2"],
        ["security.insecure=true", "runtime.address=0.0.0.0:9000", "dataset.root=/data/my movies", "dataset.name='12'"],
    ],
)
def test_it_composes_to_the_same(overrides: list[str]) -> None:
    tree = compose_and_resolve("config", overrides)
    command = repeat_command(tree)
    assert command is not None
    assert compose_and_resolve("config", shlex.split(command)[2:]) == tree


@pytest.mark.parametrize("strategy", ["fedavg", "fedyogi", "modality_aware"])
def test_a_strategy_is_called_by_its_name(strategy: str) -> None:
    command = repeat_command(compose_and_resolve("config", [f"strategy={strategy}"]))
    assert command == "python server_main.py" + ("" if strategy == DEFAULT else f" strategy={strategy}")


def test_where_a_run_was_written_and_secrets_are_left_out(tmp_path: Path) -> None:
    tree = compose_and_resolve("config", ["name=mine", "tracking=mlflow", "dataset.server_url='http://a/b'"])
    tree["dataset"]["server_url"] = "***"
    tree["dataset"]["root"] = str(Path.cwd())
    assert repeat_command(tree) == "python server_main.py"


def test_a_configuration_of_another_version_gives_no_command() -> None:
    assert repeat_command({**compose_and_resolve("config"), "learning_rate": "${"}) is None


def test_what_hydra_knows_of_the_program_stays() -> None:
    before = GlobalHydra.instance().hydra
    GlobalHydra.instance().hydra = marker = object()  # type: ignore[assignment]
    try:
        repeat_command(compose_and_resolve("config"))
        GlobalHydra.instance().hydra = marker  # type: ignore[assignment]
        repeat_command({})
        assert GlobalHydra.instance().hydra is marker
    finally:
        GlobalHydra.instance().hydra = before
