"""Every file of conf composes, and makes what it names where that needs no network; the two scripts answer mistakes at once."""

import re
import subprocess
import time
from pathlib import Path

import pytest
from torch import nn

from fedmap.aggregators.base import with_num_clients
from fedmap.build import build_aggregator, build_data, build_hook, build_model, training_options
from fedmap.config import CONF, compose, compose_and_resolve, parse
from fedmap.errors import ConfigError, DataError, FederationError
from fedmap.local.rules import Memory, make_rule
from fedmap.local.tensors import get_weights, layout_of
from fedmap.tracking import make_tracker
from tests.federations import script
from tests.toys import Net

GROUPS = sorted(path.name for path in CONF.iterdir() if path.is_dir() and path.name != "strategy_training")
OPTIONS = [(group, path.stem) for group in GROUPS for path in sorted((CONF / group).glob("*.yaml"))]
NEEDS_A_PACKAGE = {"mlflow", "wandb"}


def test_the_groups_are_the_documented_ones() -> None:
    assert GROUPS == ["compression", "dataset", "model", "privacy", "runtime", "security", "strategy", "tracking"]


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_of_every_group_composes_and_is_a_configuration(group: str, option: str) -> None:
    for name in ("config", "client"):
        config = parse(compose_and_resolve(name, [f"{group}={option}", "num_clients=4"]))
        assert config.num_clients == 4


@pytest.mark.parametrize("option", [option for group, option in OPTIONS if group == "strategy"])
def test_every_strategy_is_made_and_speaks_to_a_known_rule(option: str) -> None:
    config = parse(compose_and_resolve("config", [f"strategy={option}", "num_clients=8"]))
    aggregator = with_num_clients(build_aggregator(config), 8)
    model = Net()
    broadcast = aggregator.broadcast(aggregator.init(get_weights(model), layout_of(model)))
    assert broadcast.round_index == 1
    rule = make_rule(broadcast.rule)
    rule.start(model, broadcast, Memory())
    rule.check(training_options(config))


@pytest.mark.parametrize("option", [option for group, option in OPTIONS if group == "tracking"])
def test_every_tracker_is_made_or_names_its_package(option: str) -> None:
    config = parse(compose_and_resolve("config", [f"tracking={option}"]))
    problem = ""
    try:
        make_tracker(config.tracking)
    except ConfigError as error:
        problem = str(error)
    assert not problem or (option in NEEDS_A_PACKAGE and "pip install" in problem)


@pytest.mark.parametrize("options", [("model=digits", "dataset=digits"), ("model=tiny", "dataset=digits")])
def test_models_without_a_hub_are_made_for_the_data(options: tuple[str, ...]) -> None:
    config = parse(compose_and_resolve("config", options))
    data = build_data(config)
    model = build_model(config, data)
    assert isinstance(model, nn.Module)
    assert {tuple(p.shape) for name, p in model.named_parameters() if name.endswith("bias")} & {(10,)}


def test_the_movies_that_are_not_there_are_named(tmp_path: Path) -> None:
    config = parse(compose_and_resolve("config", [f"dataset.root={tmp_path}"]))
    with pytest.raises(DataError, match=re.escape(str(tmp_path))):
        build_data(config)


def test_the_hook_is_a_plain_function() -> None:
    hook = build_hook(parse(compose_and_resolve("config")))
    assert hook is not None
    assert hook("update") == "update"
    assert build_hook(parse(compose_and_resolve("config", ["hooks.after_round=null"]))) is None
    for value, message in [
        ("flclient_patch.after_raund", "cannot be imported"),
        ("nowhere.f", "cannot be imported"),
        ("os.path.sep", "is not a function"),
    ]:
        with pytest.raises(ConfigError, match=f"hooks.after_round='{value}'.*{message}"):
            build_hook(parse(compose_and_resolve("config", [f"hooks.after_round={value}"])))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "model.output_size=9",
            r"model.output_size=9, but the data has 10 labels \(0, 1, 2, 3, \.\.\.\); set model.output_size=10 or null",
        ),
        ("model._target_=examples.digits.model.ThreeSensorNet", "model._target_='examples.digits.model.ThreeSensorNet' cannot be made"),
        ("model._target_=collections.OrderedDict", "gave a OrderedDict, expected a torch.nn.Module"),
        ("+model.depth=3", "cannot be made: .*depth"),
    ],
)
def test_a_model_that_cannot_be_made_says_why(override: str, message: str) -> None:
    config = parse(compose_and_resolve("config", ["model=digits", "dataset=digits", override]))
    with pytest.raises(ConfigError, match=message):
        build_model(config, build_data(config))


def test_an_aggregator_that_is_none_says_why() -> None:
    for target, message in [
        ("examples.digits.data.DigitData", r"has no method init\(\); see docs/guides/own_aggregator.md"),
        ("fedmap.nothing.X", "cannot be made"),
    ]:
        with pytest.raises(ConfigError, match=message):
            build_aggregator(parse(compose_and_resolve("config", ["strategy=fedavg", f"server.strategy._target_={target}"])))
    with pytest.raises(FederationError, match="mu"):
        build_aggregator(parse(compose_and_resolve("config", ["strategy=fedprox", "server.strategy.mu=-1"])))


def test_the_initial_model_follows_from_the_seed_alone() -> None:
    def weights(*overrides: str) -> dict[str, bytes]:
        config = parse(compose_and_resolve("config", ["model=digits", "dataset=digits", *overrides]))
        return {name: array.tobytes() for name, array in get_weights(build_model(config, build_data(config))).items()}

    assert weights() == weights("batch_size=7")
    assert weights() != weights("random_seed=1")


def test_the_keys_that_users_know_are_there() -> None:
    """The keys of the FedOps configuration files, under their own names."""
    tree = compose_and_resolve("config")
    keys = [
        "random_seed",
        "learning_rate",
        "model_type",
        "client_id",
        "task_id",
        "num_epochs",
        "batch_size",
        "num_rounds",
        "clients_per_round",
    ]
    assert [key for key in keys if key not in tree] == []
    assert {"_target_", "output_size"} <= set(tree["model"])
    assert {"name", "validation_split"} <= set(tree["dataset"])
    assert "_target_" in tree["server"]["strategy"]


def test_every_key_is_explained() -> None:
    """Each key of the main files has a comment behind it or above it: a configuration is read more often than documents."""
    for name in ("config", "base", "runtime/local", "runtime/superlink"):
        lines = (CONF / f"{name}.yaml").read_text().splitlines()
        keys = [line for line in lines if re.match(r"\s*[a-z_]+: \S", line) and not line.startswith("  ")]
        assert sum("#" in line for line in keys) >= 0.7 * len(keys)


def test_data_preparation_composes_and_names_typos() -> None:
    assert compose("data_preparation", ["policy=dirichlet", "alpha=0.1", "clients=7"]).clients == 7
    with pytest.raises(ConfigError, match="did you mean 'policy'"):
        compose("data_preparation", ["polcy=iid"])


def answer(*command: str) -> tuple[int, str, float]:
    """Exit code, output and seconds of processor time of one of the root scripts."""
    import resource

    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(script(*command), capture_output=True, text=True, timeout=60, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return done.returncode, done.stdout + done.stderr, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("server_main.py", "batchsize=64"), "server_main.py: 'batchsize=64': there is no key 'batchsize'; did you mean 'batch_size'?"),
        (("client_main.py", "client_idd=1"), "client_main.py: 'client_idd=1': there is no key 'client_idd'; did you mean 'client_id'?"),
        (("server_main.py", "model=resnet"), "model has no option 'resnet', expected one of"),
        (("data_preparation.py", "polcy=iid"), "did you mean 'policy'"),
    ],
)
def test_a_script_answers_a_typo_at_once(command: tuple[str, ...], message: str) -> None:
    code, said, seconds = answer(*command)
    assert code != 0
    assert message in said
    assert "Traceback" not in said
    assert seconds < 2


@pytest.mark.parametrize("name", ["server_main.py", "client_main.py", "data_preparation.py"])
def test_help_comes_at_once(name: str) -> None:
    code, said, seconds = answer(name, "--help")
    assert code == 0
    assert re.search("num_rounds: 10|policy", said)
    assert seconds < 3


def test_contradictions_end_with_all_of_them_and_no_folder_is_left(tmp_path: Path) -> None:
    started = time.monotonic()
    code, said, _ = answer(
        "server_main.py",
        "clients_per_round=5",
        "num_clients=3",
        "batch_size=0",
        "runtime.address=0.0.0.0:80",
        f"hydra.run.dir={tmp_path / 'run'}",
    )
    assert code == 2
    for part in ("clients_per_round=5 is more than num_clients=3", "batch_size=0", "0.0.0.0:80' is not this machine"):
        assert part in said
    assert "Traceback" not in said
    assert time.monotonic() - started < 30
