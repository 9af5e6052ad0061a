"""Whole private runs: epsilon in every round and over a resume, the same bits again, and refusals before anything is trained."""

import json
from pathlib import Path

import pytest

from fedmap.errors import ConfigError
from fedmap.privacy import Privacy
from fedmap.privacy.accounting import Training, epsilon
from tests.federations import Notes, model_bytes, run_locally

COMMON = (
    "dataset.num_clients=2",
    "strategy=fedavg",
    "hooks.after_round=null",
    "training.num_updates=1",
    "batch_size=32",
    "privacy.noise_seed=7",
)


@pytest.mark.parametrize("name", ["record", "client"])
def test_epsilon_is_in_every_round_and_goes_on_over_a_resume(name: str, tmp_path: Path) -> None:
    said = Notes()
    whole = run_locally(tmp_path / "whole", *COMMON, f"privacy={name}", "num_rounds=2", progress=said)
    run_locally(tmp_path / "parts", *COMMON, f"privacy={name}", "num_rounds=1")
    parts = run_locally(tmp_path / "parts", *COMMON, f"privacy={name}", "num_rounds=2")
    assert model_bytes(tmp_path / "parts") == model_bytes(tmp_path / "whole")
    results = json.loads((tmp_path / "whole" / "results.json").read_text())
    spent = [record["diagnostics"]["privacy-epsilon"] for record in results["rounds"][1:]]
    assert spent == [record.diagnostics["privacy-epsilon"] for record in parts.rounds[1:]]
    fewest = min(client.num_examples or 0 for client in whole.rounds[1].clients)
    training = Training(32, 1, 1)
    assert spent == [epsilon(Privacy(name), training, rounds, fewest) for rounds in (1, 2)]
    assert results["rounds"][1]["diagnostics"]["privacy-delta"] == 1e-5
    sentence = next(text for text in said.said if text.startswith(f"privacy={name}: what was sent so far is"))
    assert f"({spent[-1]:.3g}, 1e-05)-differentially private" in sentence
    assert "private to nobody" in sentence
    assert whole.final is not None
    assert whole.final.clients == {}
    assert all(client.signals.f1_after is None and not client.scores for record in whole.rounds for client in record.clients)


def test_what_cannot_be_private_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="privacy=client covers the model alone, and this strategy's clients also send log-likelihood"):
        run_locally(tmp_path / "run", *COMMON, "strategy=fedmap", "privacy=client", "num_rounds=1")
    assert not (tmp_path / "run" / "results.json").exists()
