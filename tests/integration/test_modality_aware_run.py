"""ModalityAwareAggregation in whole runs of runtime=local, and what the models say about their modalities."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedmap.aggregators.modality_aware.store import load_student
from fedmap.errors import ConfigError, ModelError
from fedmap.local.tensors import layout_of
from fedmap.weights import ModalityPart
from models import MMIMDbFusionModel
from tests.federations import run_locally
from tests.toys import Net

SHORT = (
    "strategy=modality_aware",
    "server.strategy.n_trials_per_round=4",
    "dataset.num_clients=3",
    "num_rounds=2",
    "hooks.after_round=null",
)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_the_report_has_it_all_and_the_student_goes_on(tmp_path: Path) -> None:
    keep = (*SHORT, f"server.strategy.aggregator_path={tmp_path / 'mlp.safetensors'}")
    history = run_locally(tmp_path / "first", *keep)
    for record in history.rounds[1:]:
        assert sum(client.weight or 0 for client in record.clients) == pytest.approx(1)
        assert {"score", "score-by-examples", "evaluations", "alpha-performance", "own-score-client-0"} <= set(record.diagnostics)
        assert record.diagnostics["score"] == pytest.approx(record.validation.macro_f1)  # the judge sees what the server then scores
    assert "student-score" not in history.rounds[1].diagnostics
    stored = load_student(tmp_path / "mlp.safetensors", 10, 16)
    assert stored is not None
    assert len(stored.lessons) == 2
    again = run_locally(tmp_path / "second", *keep)
    assert "student-score" in again.rounds[1].diagnostics
    with pytest.raises(ConfigError, match="hidden_dim=4"):
        run_locally(tmp_path / "third", *keep, "server.strategy.hidden_dim=4")


def test_parts_of_the_fusion_model_are_named_and_cover_the_fusion() -> None:
    parts = layout_of(
        MMIMDbFusionModel(3, bert_name="tiny", vision_name="tiny", pretrained_vision=False, image_output_dim=8)
    ).modality_parts
    assert {parts[name][0].modality for name in parts if name.startswith("text_tower.")} == {"text"}
    assert {parts[name][0].modality for name in parts if name.startswith(("image_tower.", "image_projection."))} == {"image"}
    assert parts["missing_text"] == (ModalityPart("text", without=True),)
    assert parts["fusion.weight"] == (ModalityPart("text", 0, 32), ModalityPart("image", 32, 40))
    assert not {"fusion.bias", "classifier.weight", "norm.weight"} & set(parts)


def test_parts_that_do_not_fit_are_refused() -> None:
    class Wrong(Net):
        def modality_of_parameters(self):
            return {"head.weight": (ModalityPart("text", 0, 5), ModalityPart("image", 4, 8)), "tower.0.weight": (ModalityPart("text"),)}

    with pytest.raises(ModelError, match=r"head\.weight has 8 columns, and the part \[4, 8\) of 'image'"):
        layout_of(Wrong())
    assert layout_of(Net()).modality_parts == {}
