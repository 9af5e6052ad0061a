"""A model's card is one that the Hugging Face hub reads, true to the run, and says nothing of a row."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from fedmap.config import compose_and_resolve
from fedmap.history import ClientRecord, FinalResults, LabelResult, RoundRecord, Scores
from fedmap.outputs import RunFolder
from fedmap.records import ClientSignals
from models import MMIMDbFusionModel

SCORES = Scores(0.5, 0.25, 0.4, 0.3, 10, 0.75)
NAMES = ("War", "Drama")
FINAL = FinalResults(
    1,
    SCORES,
    SCORES,
    replace(SCORES, macro_f1=0.375),
    {},
    tuple(LabelResult(n, r, 0.5, 0.5, 0.5, 0.4) for n, r in (("War", 3), ("Drama", 30))),
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = RunFolder(tmp_path_factory.mktemp("run"))
    run.start(compose_and_resolve("config", ["tracking=none", "model=tiny", "strategy=fedadam"]), NAMES)
    clients = (
        ClientRecord(0, num_examples=40, signals=ClientSignals(modality_shares={"text": 1.0, "image": 0.5})),
        ClientRecord(3, "failed", "the row with img_name secret.jpg"),
    )
    run.add_round(RoundRecord(1, {}, SCORES, SCORES, clients=clients))
    model = MMIMDbFusionModel(2, bert_name="tiny", vision_name="tiny", pretrained_vision=False)
    model.image_size = 16
    run.save_model("best", model, {"War": 0.4, "Drama": 0.4})
    run.save_model("last", model)
    run.finish(FINAL)
    return run.path


def test_the_card_of_the_best_model(finished: Path) -> None:
    card = ModelCard.load(finished / "best" / "README.md")
    assert card.data.library_name == "fedmap"
    assert {"federated-learning", "multi-label-classification", "fedadam"} <= set(card.data.tags)
    assert {(result.metric_name, result.metric_value) for result in card.data.eval_results} == {("macro-F1", 0.375), ("micro-F1", 0.5)}
    assert {result.dataset_split for result in card.data.eval_results} == {"test"}
    for words in (
        "| client 0 | 40 | 100% | 50% |",
        "| War | 0.400 | 3 | 0.500 | 0.500 | 0.500 |",
        "- strategy: FedAdam",
        "- rounds: 1",
        "after round 1, the best on the server's validation rows",
        "F1 from fewer than 20 test rows says little: War.",
        "Thresholds were tuned",
        'MMIMDbFusionModel.from_pretrained("best")',
    ):
        assert words in card.text, words
    assert "secret.jpg" not in card.text
    assert "Pretrained towers" not in card.text


def test_the_card_of_the_last_model_claims_no_more_than_is_known(finished: Path) -> None:
    text = ModelCard.load(finished / "last" / "README.md").text
    assert "| War | 0.500 |" in text
    assert "a label applies from 0.5" in text
    assert "tuned on validation" not in text


def test_a_failed_run_has_cards_too(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.start({}, NAMES)
    run.save_model("last", MMIMDbFusionModel(2, bert_name="tiny", vision_name="tiny", pretrained_vision=False))
    run.fail("too few clients")
    text = (tmp_path / "last" / "README.md").read_text()
    assert "The run failed: too few clients." in text
    assert "The server held no rows." in text


def test_a_towers_folder_stays_private(finished: Path) -> None:
    from fedmap.outputs import read_history
    from fedmap.report.card import model_card

    run = finished
    tree = compose_and_resolve("config", ["model.bert_name=/home/me/towers/my-bert", "model.freeze_bert=true"])
    saved = json.loads((run / "best" / "config.json").read_text())
    text = model_card(read_history(run), tree, saved, "best")
    assert "/home/me" not in text
    assert "`my-bert`" in text
    assert "kept frozen: text" in text
    hub = model_card(read_history(run), compose_and_resolve("config"), {**saved, "pretrained": {"text": True}}, "best")
    assert "base_model: bert-base-uncased" in hub
    assert "Pretrained towers" in hub


@pytest.mark.parametrize("which", ["best", "last"])
def test_a_saved_model_with_its_card_still_loads(finished: Path, which: str) -> None:
    assert MMIMDbFusionModel.from_pretrained(finished / which).label_names == list(NAMES)
