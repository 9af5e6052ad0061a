"""What mattered, for models whose answer can be computed by hand."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedmap.errors import DataError, ModelError
from fedmap.prediction.answer import answer
from fedmap.prediction.attribution import GRID, MAX_PARTS, explain
from fedmap.prediction.predictor import Predictor


class Hand:
    """Log-odds of "Horror": 2 for each "ghost", -1 for each "love"; of "Bright": how red the upper left field is, 0 to 1."""

    image_size = 12

    def __init__(self) -> None:
        self.asked = 0

    def predict_proba(self, texts, images):
        self.asked += len(texts)
        horror = [2.0 * (text or "").count("ghost") - (text or "").count("love") for text in texts]
        bright = []
        for image in images:
            if image is None:
                bright.append(0.0)
                continue
            picture = Image.open(io.BytesIO(image)) if isinstance(image, bytes) else image
            pixels = np.asarray(picture.convert("RGB").resize((12, 12)))
            bright.append(pixels[:2, :2, 0].mean() / 255)
        return 1 / (1 + np.exp(-np.array([horror, bright]).T))


def predictor(model: object = None) -> Predictor:
    return Predictor(model or Hand(), ("Horror", "Bright"), np.array([0.5, 0.6]), Path("run"), "best", "by hand")


def poster() -> bytes:
    """Black, the upper left field of six by six red."""
    pixels = np.zeros((12, 12, 3), np.uint8)
    pixels[:2, :2, 0] = 255
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def test_words_have_the_effect_that_they_have() -> None:
    found = explain(predictor(), "a ghost, in love: Ghost-ghost", None)
    assert [(part.start, part.end) for part in found.words] == [(0, 1), (2, 7), (9, 11), (12, 16), (18, 29)]
    np.testing.assert_allclose([part.effects[0] for part in found.words], [0, 2, 0, -1, 2], atol=1e-5)
    assert found.regions == ()
    assert found.log_odds[0] == pytest.approx(3, abs=1e-5)


def test_the_region_that_counts_is_found_and_no_other() -> None:
    model = Hand()
    found = explain(predictor(model), None, poster())
    effects = np.array([part.effects for part in found.regions])
    assert [(part.start, part.end) for part in found.regions][:7] == [*((0, c) for c in range(GRID)), (1, 0)]
    mean = round(4 * 255 / 144) / 255
    assert effects[0, 1] == pytest.approx(1 - mean, abs=1e-5)
    np.testing.assert_allclose(effects[1:, 1], 0, atol=1e-6)
    np.testing.assert_allclose(effects[:, 0], 0, atol=1e-6)
    assert model.asked <= 1 + 1 + GRID * GRID + 1


def test_both_at_once_are_each_alone() -> None:
    both = explain(predictor(), "ghost love", poster())
    np.testing.assert_allclose([part.effects[0] for part in both.words], [2, -1], atol=1e-5)
    assert both.regions[0].effects[1] > 0.9


def test_a_long_plot_is_taken_apart_in_groups() -> None:
    text = " ".join(["word"] * 250 + ["ghost"])
    found = explain(predictor(), text, None)
    assert len(found.words) <= MAX_PARTS
    assert text[found.words[-1].start : found.words[-1].end].endswith("ghost")
    assert [bool(abs(part.effects[0]) > 1e-6) for part in found.words] == [False] * (len(found.words) - 1) + [True]


def test_a_plot_without_words_has_nothing_to_leave_out() -> None:
    assert explain(predictor(), "?!", None).words == ()


def test_an_answer_says_what_each_modality_adds() -> None:
    made = answer(predictor(), "ghost", poster())
    assert made.prediction.decided == ("Horror", "Bright")
    assert made.without_poster is not None
    assert made.without_poster.decided == ("Horror",)
    assert made.without_text is not None
    assert made.without_text.decided == ("Bright",) or made.without_text.scores[0] == 0.5  # at the threshold counts
    assert answer(predictor(), "ghost", None).without_poster is None


def test_nothing_and_what_is_no_picture() -> None:
    for text in (None, "", "  \n"):
        with pytest.raises(DataError, match="give a plot, a poster, or both"):
            answer(predictor(), text, None)
    for ask in (answer, explain):
        with pytest.raises(DataError, match="cannot be decoded"):
            ask(predictor(), "ghost", b"no picture")


def test_a_model_that_answers_in_another_shape_is_said() -> None:
    class Wrong:
        def predict_proba(self, texts, images):
            return [[0.5]] * len(texts)

    with pytest.raises(ModelError, match=r"shape \(1, 1\), expected \(1, 2\)"):
        predictor(Wrong()).predict("a")
