"""Which models can be loaded from which folders, and what is said of the others."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from fedmap.config import compose_and_resolve
from fedmap.errors import DataError, ModelError
from fedmap.history import RunHistory
from fedmap.outputs import RunFolder
from fedmap.prediction.predictor import Predictor
from fedmap.prediction.runs import newest_run, runs_with_models
from models import MMIMDbFusionModel

TINY = {"bert_name": "tiny", "vision_name": "tiny", "pretrained_vision": False}
NAMES = ("Drama", "War")


def fusion_run(folder: Path, **thresholds: float) -> Path:
    run = RunFolder(folder)
    run.history = RunHistory(NAMES)
    model = MMIMDbFusionModel(2, **TINY)
    model.image_size = 16
    run.save_model("best", model, thresholds)
    return folder


class Own(nn.Module):
    """A model of a user's own: no save_pretrained, but it can predict."""

    def __init__(self, output_size: int | None = None) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(output_size or 1))

    def predict_proba(self, texts, images):
        return torch.sigmoid(self.bias).detach().expand(len(texts), -1).numpy()


class Mute(Own):
    predict_proba = None


def own_run(folder: Path, kind: type[Own]) -> Path:
    run = RunFolder(folder)
    run.history = RunHistory(NAMES)
    model = kind(2)
    with torch.no_grad():
        model.bias.copy_(torch.tensor([2.0, -2.0]))
    run.save_model("best", model, {"Drama": 0.9})
    tree = compose_and_resolve("config", ["model=digits", "dataset=digits"])
    tree["model"] = {"_target_": f"{kind.__module__}.{kind.__qualname__}", "output_size": None}
    (folder / "run.yaml").write_text(yaml.safe_dump(tree))
    return folder


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """This file as a module that a configuration can name."""
    import sys

    monkeypatch.setitem(sys.modules, __name__, sys.modules[__name__])


def test_a_run_without_configuration_is_enough_for_a_fusion_model(tmp_path: Path) -> None:
    predictor = Predictor.open(fusion_run(tmp_path, Drama=0.3))
    assert predictor.label_names == NAMES
    assert predictor.thresholds.tolist() == [0.3, 0.5]
    assert predictor.called == f"the best model of {tmp_path}"
    assert "no tuned thresholds" in Predictor.open(fusion_run(tmp_path / "other")).tuned


def test_a_model_of_ones_own_is_made_from_the_runs_configuration(tmp_path: Path) -> None:
    predictor = Predictor.open(own_run(tmp_path, Own))
    made = predictor.predict("a plot")
    assert made.scores.tolist() == pytest.approx([0.880797, 0.119203], abs=1e-5)
    assert predictor.thresholds.tolist() == [0.9, 0.5]
    assert made.decided == ()
    (tmp_path / "run.yaml").unlink()
    with pytest.raises(ModelError, match=r"a class of your own \(.*Own\); give the folder of its run"):
        Predictor.open(tmp_path)


def test_a_model_that_cannot_predict_says_what_it_lacks(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"Mute cannot predict from a poster and a plot: give it a method predict_proba\(texts, images\)"):
        Predictor.open(own_run(tmp_path, Mute))


def test_folders_that_are_no_run(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"best does not exist; give the folder of a run"):
        Predictor.open(tmp_path)
    fusion_run(tmp_path / "run")
    with pytest.raises(DataError, match=rf"last does not exist.*there is {tmp_path / 'run' / 'best'}"):
        Predictor.open(tmp_path / "run", "last")
    with pytest.raises(ModelError, match="expected one of best, last"):
        Predictor.open(tmp_path / "run", "first")
    with pytest.raises(ModelError, match="is a single saved model; a client's own model needs the folder of the run"):
        Predictor.open(tmp_path / "run" / "best", client=1)
    config = tmp_path / "run" / "best" / "config.json"
    document = json.loads(config.read_text())
    config.write_text(json.dumps(document | {"label_names": None, "thresholds": None}))
    with pytest.raises(ModelError, match="was saved without label names"):
        Predictor.open(tmp_path / "run")
    (tmp_path / "run" / "config.yaml").write_text("model: [")
    with pytest.raises(DataError, match="cannot be read"):
        Predictor.open(tmp_path / "run")


def test_the_newest_run_is_the_one_that_was_written_last(tmp_path: Path) -> None:
    import os

    with pytest.raises(DataError, match="no run below"):
        newest_run(tmp_path)
    for name, time in (("2026-01-01/10-00-00", 3), ("named", 5), ("2026-01-01/11-00-00", 4)):
        fusion_run(tmp_path / name)
        (tmp_path / name / "results.json").write_text("{}")
        os.utime(tmp_path / name / "results.json", (time, time))
    assert [str(run.relative_to(tmp_path)) for run in runs_with_models(tmp_path)] == ["named", "2026-01-01/11-00-00", "2026-01-01/10-00-00"]
    assert newest_run(tmp_path).name == "named"
