"""Whole runs with packed messages: what travels, in how many bytes, and the same bits however the run is cut up."""

from collections import Counter
from pathlib import Path

import pytest
from flwr.app import MessageType

from benchmarks.resume import differences, outcome
from fedmap.checkpoint import Memories
from fedmap.errors import ConfigError
from fedmap.flower.feedback import residuals_of
from fedmap.flower.local_grid import LocalGrid
from fedmap.history import OK, RunHistory
from tests.federations import Notes, model_bytes, run_locally
from tests.integration.test_resume import run_and_stop

SHORT = ("strategy=fedavg", "dataset.num_clients=3", "num_rounds=3", "hooks.after_round=null", "batch_size=64", "compression.smallest=16")
TOPK = ("compression=topk", "compression.density=0.05")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fedmap.report.write_report", lambda folder: folder)


def travelled(history: RunHistory) -> tuple[int, int]:
    """Bytes up and down of the last round's first client; in the first, SCAFFOLD's control is zero and packs to nothing."""
    client = history.rounds[-1].clients[0]
    assert client.bytes_up
    assert client.bytes_down
    return client.bytes_up, client.bytes_down


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunHistory]:
    folder = tmp_path_factory.mktemp("plain")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("fedmap.report.write_report", lambda folder: folder)
        return folder, run_locally(folder, *SHORT)


def test_a_round_has_one_message_each_way_for_each_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model that comes down for training also serves evaluation; clients are scored once, at the end."""
    sent: Counter[tuple[str, str]] = Counter()
    push = LocalGrid.push_messages

    def counted(grid, messages):
        messages = list(messages)
        sent.update((message.metadata.message_type, message.metadata.group_id) for message in messages)
        return push(grid, messages)

    monkeypatch.setattr(LocalGrid, "push_messages", counted)
    history = run_locally(tmp_path / "run", *SHORT)
    with_arrays = {key: count for key, count in sent.items() if key[0] != MessageType.QUERY}
    assert with_arrays == {**{(MessageType.TRAIN, str(r)): 3 for r in (1, 2, 3)}, (MessageType.EVALUATE, "final"): 3}
    assert all(client.signals.f1_before is not None for record in history.rounds[1:] for client in record.clients)


def test_lossless_is_the_same_run_in_fewer_bytes(plain, tmp_path: Path) -> None:
    folder, history = plain
    packed = run_locally(tmp_path / "run", *SHORT, "compression=lossless")
    assert model_bytes(tmp_path / "run") == model_bytes(folder)
    assert packed.final == history.final
    assert all(ours < theirs for ours, theirs in zip(travelled(packed), travelled(history), strict=True))


@pytest.mark.parametrize(
    ("options", "most"),
    [
        (("compression=fp16",), (0.55, 0.55)),
        (("compression=int8",), (0.40, 0.55)),
        (TOPK, (0.25, 0.55)),
    ],
)
def test_lossy_codes_learn_nearly_the_same_and_workers_change_no_bit(plain, tmp_path: Path, options: tuple[str, ...], most) -> None:
    _, history = plain
    packed = run_locally(tmp_path / "0", *SHORT, *options)
    for ours, theirs, share in zip(travelled(packed), travelled(history), most, strict=True):
        assert ours < share * theirs
    first, last = packed.rounds[0].validation.loss, packed.rounds[-1].validation.loss  # type: ignore[union-attr]
    exact = history.rounds[-1].validation.loss  # type: ignore[union-attr]
    assert first - last > (0.2 if options is TOPK else 0.95) * (first - exact)
    if options is TOPK:
        run_locally(tmp_path / "2", *SHORT, *options, workers=2)
        assert model_bytes(tmp_path / "2") == model_bytes(tmp_path / "0")


def test_what_clients_have_not_sent_is_kept_by_round_and_a_stopped_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    overrides = (*SHORT, *TOPK)
    run_locally(tmp_path / "alone", *overrides)
    memories = sorted((tmp_path / ".fedmap" / "clients").glob("*/client_0"))
    assert len(memories) == 1
    kept = Memories(memories[0])
    assert residuals_of(kept.latest())["weights"]
    for number, (round_index, within) in enumerate([(2, True), (3, False)]):
        folder = tmp_path / str(number)
        run_and_stop(folder, *overrides, round_index=round_index, within=within)
        assert run_locally(folder, *overrides, progress=Notes()).status == "finished"
        assert differences(outcome(folder), outcome(tmp_path / "alone")) == []


@pytest.mark.parametrize("options", [TOPK, ("compression=int8",)])
def test_controls_are_packed_too(tmp_path: Path, options: tuple[str, ...]) -> None:
    scaffold = (*SHORT, "strategy=scaffold", "training.num_updates=4", "num_rounds=2")
    plain = run_locally(tmp_path / "plain", *scaffold)
    packed = run_locally(tmp_path / "packed", *scaffold, *options)
    assert packed.status == "finished"
    assert all(ours < 0.6 * theirs for ours, theirs in zip(travelled(packed), travelled(plain), strict=True))


@pytest.mark.parametrize("strategy", ["fedmap", "fedmedian", "gma", "fedgma"])
def test_a_strategy_that_topk_does_not_suit_says_so_before_anybody_trains(tmp_path: Path, strategy: str) -> None:
    with pytest.raises(ConfigError, match="compression.up=topk .*choose compression=none, lossless, fp16 or int8"):
        run_locally(tmp_path / "run", *SHORT, f"strategy={strategy}", *TOPK)
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize("strategy", ["fedbn", "individual", "fedmap", "fedgma"])
def test_strategies_that_send_other_things_than_a_model_work_packed(tmp_path: Path, strategy: str) -> None:
    history = run_locally(tmp_path / "run", *SHORT, f"strategy={strategy}", "compression=int8", "num_rounds=2")
    assert history.status == "finished"
    assert all(client.status == OK for record in history.rounds for client in record.clients)
