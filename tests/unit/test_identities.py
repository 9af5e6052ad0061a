"""A client's number belongs to its key, and nobody outside hears of a federation."""

from dataclasses import replace
from pathlib import Path

import pytest

from fedmap.config import compose_and_resolve, parse
from fedmap.flower import processes
from fedmap.flower.identities import NODES, identities_of, read_nodes, write_nodes
from tests.unit.test_registry import CARD, hall_with


def test_a_node_is_the_client_whose_key_it_has(tmp_path: Path) -> None:
    hall, registry, said = hall_with(node7=CARD, node8=replace(CARD, client_id=2), node9=replace(CARD, client_id=3))
    file = tmp_path / NODES
    registry.identities = lambda: read_nodes(file)
    write_nodes(file, {7: 0, 8: 1})
    registry.refresh(5)
    assert registry.nodes == {0: 7}
    assert "a node with client 1's key says that it is client 2; start each client with the key that was made" in "\n".join(said)
    assert "a node with a key that is not accepted says that it is client 3" in "\n".join(said)
    write_nodes(file, {7: 0, 8: 1, 9: 3, 10: 2})
    hall.enter(10, replace(CARD, client_id=2))
    registry.refresh(5)
    assert registry.nodes == {0: 7, 2: 10}
    (tmp_path / NODES).unlink()
    hall.enter(11, replace(CARD, client_id=5))
    registry.refresh(5)
    assert 5 not in registry.nodes, "without the file nobody is anybody"


def test_a_damaged_file_makes_nobody_anybody(tmp_path: Path) -> None:
    assert read_nodes(tmp_path / "missing.json") == {}
    for text in ("", "[]", "{", '{"1": "x"}', '{"x": 1}', "null"):
        (tmp_path / NODES).write_text(text)
        assert read_nodes(tmp_path / NODES) == {}


@pytest.mark.parametrize(
    ("overrides", "bound"),
    [([], False), (["security=tls"], True), (["security=tls", "runtime=local"], False), (["security=tls", "runtime.external=true"], False)],
)
def test_where_nodes_have_keys_they_are_looked_at(tmp_path: Path, overrides: list[str], bound: bool) -> None:
    config = parse(compose_and_resolve("config", ["model=digits", "dataset=digits", *overrides]))
    identities = identities_of(config, tmp_path)
    assert (identities is not None) is bound
    write_nodes(tmp_path / NODES, {2**63: 4})
    assert identities is None or identities() == {2**63: 4}


def test_flower_tells_nobody_of_a_federation_unless_the_user_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FLWR_TELEMETRY_ENABLED", "FLWR_DISABLE_UPDATE_CHECK"):
        monkeypatch.delenv(name, raising=False)
    given = processes.environment(tmp_path)
    assert (given["FLWR_TELEMETRY_ENABLED"], given["FLWR_DISABLE_UPDATE_CHECK"]) == ("0", "1")
    monkeypatch.setenv("FLWR_TELEMETRY_ENABLED", "1")
    assert processes.environment(tmp_path)["FLWR_TELEMETRY_ENABLED"] == "1"
