"""The configuration at the door: typos name the nearest key, mistakes are collected, contradictions are refused."""

import copy
from pathlib import Path
from typing import Any

import pytest

from fedmap.config import CONF, RunConfig, check_overrides, compose, compose_and_resolve, load, parse, save
from fedmap.errors import ConfigError


@pytest.fixture(scope="module")
def composed() -> dict[str, dict[str, Any]]:
    return {name: compose_and_resolve("config", [f"runtime={name}", "model=digits", "dataset=digits"]) for name in ("local", "superlink")}


def changed(tree: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A copy with some values replaced; `__` stands for a dot in a key."""
    tree = copy.deepcopy(tree)
    for path, value in changes.items():
        *parents, last = path.split("__")
        node = tree
        for part in parents:
            node = node[part]
        node[last] = value
    return tree


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("batchsize=64", "there is no key 'batchsize'; did you mean 'batch_size'"),
        ("client_idd=1", "there is no key 'client_idd'; did you mean 'client_id'"),
        ("training.optimzer=sgd", "did you mean 'training.optimizer'"),
        ("dataset.validation_splitt=0.1", "did you mean 'dataset.validation_split'"),
        ("model.output_sise=3", "did you mean 'model.output_size'"),
        ("modle=tiny", "did you mean 'model'"),
        ("model=tinny", "model has no option 'tinny', expected one of .*; did you mean model=tiny"),
        ("strategy=fedprx", "did you mean strategy=fedprox"),
        ("xyzzy=1", "there is no key 'xyzzy'; known keys are batch_size, .*write \\+xyzzy=1"),
        ("batch_size", "'batch_size' is not an override; write key=value"),
        ("num_rounds==3", "cannot be composed"),
        ("batch_size=1,2", "cannot be composed: Ambiguous value"),
    ],
)
def test_a_typo_names_the_nearest_key(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compose("config", [override])


def test_keys_of_a_chosen_option_are_known_and_those_of_another_are_not() -> None:
    assert compose("config", ["strategy=fedprox", "server.strategy.mu=0.5"]).server.strategy.mu == 0.5
    assert compose("config", ["server.strategy.mu=0.5", "strategy=fedprox"]).server.strategy.mu == 0.5, "in any order"
    with pytest.raises(ConfigError, match="there is no key 'server.strategy.mu'"):
        compose("config", ["strategy=fedavg", "server.strategy.mu=0.5"])
    with pytest.raises(ConfigError, match="did you mean 'server.strategy.mu'"):
        compose("config", ["strategy=fedprox", "server.strategy.muu=0.5"])


def test_a_key_is_added_on_purpose_with_a_plus_and_removed_with_a_tilde() -> None:
    assert compose("config", ["+model.width=5"]).model.width == 5
    assert "amp" not in compose("config", ["~training.amp"]).training
    with pytest.raises(ConfigError, match="did you mean 'training.amp'"):
        compose("config", ["~training.amb"])


def test_every_compose_starts_anew() -> None:
    assert compose("config", ["batch_size=7"]).batch_size == 7
    assert compose("config").batch_size == 32
    assert compose("client", ["client_id=3"]).client_id == 3


def test_strategies_with_training_options_bring_them_and_a_command_line_wins() -> None:
    tree = compose_and_resolve("config", ["strategy=scaffold", "num_clients=4", "training.num_updates=5"])
    assert (tree["training"]["optimizer"], tree["training"]["clip_norm"], tree["training"]["num_updates"]) == ("sgd", 0.0, 5)
    assert tree["server"]["strategy"]["num_clients"] == 4


@pytest.mark.parametrize("runtime", ["local", "superlink"])
def test_a_good_configuration_gets_types(composed: dict[str, dict[str, Any]], runtime: str) -> None:
    config = parse(changed(composed[runtime], learning_rate=1, client_id=2, num_clients=3, clients_per_round=3))
    assert isinstance(config, RunConfig)
    assert (config.learning_rate, type(config.learning_rate)) == (1.0, float)
    assert (config.client_id, config.num_clients, config.clients_per_round, config.runtime.name) == (2, 3, 3, runtime)
    assert config.model["_target_"] == "examples.digits.model.TwoSensorNet"
    assert config.after_round == "flclient_patch.after_round"


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("batch_size", 0, "an integer of at least 1"),
        ("batch_size", "64", "an integer of at least 1"),
        ("batch_size", 1.5, "an integer of at least 1"),
        ("batch_size", True, "an integer of at least 1"),
        ("num_rounds", 0, "an integer of at least 1"),
        ("num_epochs", -1, "an integer of at least 1"),
        ("random_seed", -1, "an integer of at least 0"),
        ("client_id", -1, "an integer of at least 0"),
        ("clients_per_round", None, "an integer of at least 0"),
        ("num_clients", 0, "an integer of at least 1"),
        ("learning_rate", 0, "a number of at least"),
        ("learning_rate", -0.1, "a number of at least"),
        ("learning_rate", float("nan"), "a number of at least"),
        ("learning_rate", float("inf"), "a number of at least"),
        ("learning_rate", "1e-3x", "a number of at least"),
        ("training.momentum", 1.0, "a number between 0 and 0.9999"),
        ("training.weight_decay", -1, "a number of at least 0"),
        ("training.clip_norm", -1, "a number of at least 0"),
        ("training.num_updates", 0, "an integer of at least 1"),
        ("training.optimizer", "adamm", "one of adamw, adam, sgd; did you mean adam"),
        ("training.amp", "yes", "true or false"),
        ("training.device", "", "a text"),
        ("task_id", None, "a text"),
        ("model_type", "Tensorflow", "one of Pytorch"),
        ("runtime.name", "loacl", "one of local, superlink; did you mean local"),
        ("runtime.quorum", 1.5, "a number between 0 and 1"),
        ("runtime.threads", 0, "an integer of at least 1"),
        ("runtime.workers", -1, "an integer of at least 0"),
        ("runtime.max_failed_rounds", 0, "an integer of at least 1"),
        ("runtime.wait_seconds", -1, "a number of at least 0"),
    ],
)
def test_a_value_of_the_wrong_kind_or_range(composed: dict[str, dict[str, Any]], key: str, value: object, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(changed(composed["local"], **{key.replace(".", "__"): value}))
    assert f"{key}={value!r}: expected {expected}" in str(caught.value)


def test_all_mistakes_are_in_one_message(composed: dict[str, dict[str, Any]]) -> None:
    tree = changed(composed["superlink"], batch_size=0, learning_rate="fast", clients_per_round=5, num_clients=3, training__optimizer="sdg")
    tree["runtime"]["address"] = "nowhere"
    tree["model"] = {"hidden": 3}
    del tree["num_epochs"], tree["hooks"], tree["security"]
    with pytest.raises(ConfigError) as caught:
        parse(tree)
    text = str(caught.value)
    for part in (
        "batch_size=0", "learning_rate='fast'", "clients_per_round=5 is more than num_clients=3", "did you mean sgd", "expected host:port",
        "model needs a _target_", "num_epochs is missing", "hooks.after_round is missing", "security.insecure is missing",
    ):  # fmt: skip
        assert part in text
    assert text.count("\n  - ") == 9


@pytest.mark.parametrize("node", ["model", "dataset", "server.strategy"])
def test_what_is_made_needs_a_target(composed: dict[str, dict[str, Any]], node: str) -> None:
    for value in (None, "models.Model", {"hidden": 3}, {"_target_": 5}):
        with pytest.raises(ConfigError, match=f"{node} needs a _target_"):
            parse(changed(composed["local"], **{node.replace(".", "__"): value}))


def test_more_clients_in_a_round_than_there_are(composed: dict[str, dict[str, Any]]) -> None:
    with pytest.raises(ConfigError, match="clients_per_round=4 is more than num_clients=3.*lower clients_per_round or raise num_clients"):
        parse(changed(composed["local"], clients_per_round=4, num_clients=3))
    parse(changed(composed["local"], clients_per_round=4, num_clients=4))
    parse(changed(composed["local"], clients_per_round=4, num_clients=None))


@pytest.mark.parametrize("address", ["127.0.0.1:8000", "localhost:1", "[::1]:65535", "127.9.9.9:80"])
def test_this_machine_needs_no_permission(composed: dict[str, dict[str, Any]], address: str) -> None:
    assert parse(changed(composed["superlink"], runtime__address=address)).runtime.address == address


@pytest.mark.parametrize("address", ["0.0.0.0:8000", "192.168.1.5:8000", "example.org:8000", "[::]:8000", "localhost.example.org:1"])
def test_other_machines_only_with_a_word_about_safety(composed: dict[str, dict[str, Any]], address: str) -> None:
    tree = changed(composed["superlink"], runtime__address=address)
    with pytest.raises(ConfigError, match="not this machine.*neither encrypted nor authenticated.*security.insecure=true"):
        parse(tree)
    assert parse(changed(tree, security__insecure=True)).runtime.address == address


@pytest.mark.parametrize("address", ["8000", "127.0.0.1", "127.0.0.1:", ":8000", "127.0.0.1:0", "127.0.0.1:65536", "127.0.0.1:http"])
def test_an_address_needs_a_host_and_a_port(composed: dict[str, dict[str, Any]], address: str) -> None:
    with pytest.raises(ConfigError, match="expected host:port"):
        parse(changed(composed["superlink"], runtime__address=address))


def test_saved_and_loaded_is_the_same(composed: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    tree = changed(composed["local"], task_id="Filme: Größe #1", training__tower_learning_rate=2e-05)
    save(tree, tmp_path / "run.yaml")
    assert load(tmp_path / "run.yaml") == parse(tree)


def test_loading_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml cannot be read"):
        load(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("a: [1")
    with pytest.raises(ConfigError, match=r"bad\.yaml cannot be read"):
        load(tmp_path / "bad.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(ConfigError, match="holds no configuration"):
        load(tmp_path / "list.yaml")


def test_the_check_before_hydra_ends_the_program_with_one_sentence() -> None:
    check_overrides(["server_main.py", "batch_size=64", "--help"])
    check_overrides(["client_main.py", "client_id=1"], "client")
    with pytest.raises(SystemExit) as caught:
        check_overrides(["/some/where/server_main.py", "batchsize=64"])
    assert str(caught.value).startswith("server_main.py: 'batchsize=64': there is no key 'batchsize'; did you mean 'batch_size'?")


def test_the_configuration_lies_in_the_project() -> None:
    assert (CONF / "config.yaml").is_file()
