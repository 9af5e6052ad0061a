"""The student: gradients, convergence, its gate, and its file."""

from __future__ import annotations

import numpy as np
import pytest

from fedmap.aggregators.modality_aware.features import NUM_META, Features, softmax
from fedmap.aggregators.modality_aware.gate import Gate, after_student, after_teacher
from fedmap.aggregators.modality_aware.objective import Verdict
from fedmap.aggregators.modality_aware.store import load_student, save_student
from fedmap.aggregators.modality_aware.student import Lesson, loss_and_gradient, new_student, train
from fedmap.errors import ConfigError


def lessons(count: int, seed: int = 0) -> tuple[Lesson, ...]:
    """A teacher that looks at the first feature alone."""
    rng = np.random.default_rng(seed)
    metas = [rng.normal(size=(5, NUM_META)) for _ in range(count)]
    return tuple(Lesson(meta, softmax(2 * meta[:, 0])) for meta in metas)


def test_the_gradient_is_the_losses():
    rng = np.random.default_rng(1)
    parameters = {"w1": rng.normal(size=(3, 4)), "b1": rng.normal(size=4), "w2": rng.normal(size=4)}
    inputs, starts = rng.normal(size=(7, 3)), np.array([0, 2, 6])
    targets = np.array([0.3, 0.7, 0.1, 0.2, 0.0, 0.7, 1.0])
    _, gradient = loss_and_gradient(parameters, inputs, targets, starts, 0.1)
    for name, array in parameters.items():
        for index in np.ndindex(array.shape):
            values = []
            for sign in (1, -1):
                moved = {key: value.copy() for key, value in parameters.items()}
                moved[name][index] += sign * 1e-6
                values.append(loss_and_gradient(moved, inputs, targets, starts, 0.1)[0])
            assert gradient[name][index] == pytest.approx((values[0] - values[1]) / 2e-6, abs=1e-6)


def test_the_loss_is_the_divergence_and_is_zero_for_a_perfect_student():
    parameters = {"w1": np.eye(2), "b1": np.zeros(2), "w2": np.zeros(2)}
    targets = np.array([0.25, 0.75])
    loss, _ = loss_and_gradient(parameters, np.ones((2, 2)), targets, np.array([0]), 0.0)
    assert loss == pytest.approx(0.25 * np.log(0.5) + 0.75 * np.log(1.5))
    loss, _ = loss_and_gradient(parameters, np.ones((2, 2)), np.array([0.5, 0.5]), np.array([0]), 0.0)
    assert loss == 0.0


def test_it_learns_a_teacher_that_it_can_learn():
    student, loss = train(new_student(NUM_META, 16, 0), lessons(30), learning_rate=0.01, entropy_coeff=0.0)
    assert loss < 0.02
    for lesson in lessons(5, seed=9):  # held-out rounds
        np.testing.assert_allclose(softmax(student.logits(lesson.meta)), lesson.weights, atol=0.15)


def test_entropy_evens_the_weights():
    sharp, _ = train(new_student(NUM_META, 8, 0), lessons(3), learning_rate=0.01, entropy_coeff=0.0)
    even, _ = train(new_student(NUM_META, 8, 0), lessons(3), learning_rate=0.01, entropy_coeff=1.0)
    meta = lessons(3)[0].meta
    assert softmax(even.logits(meta)).max() < softmax(sharp.logits(meta)).max()


def test_claims_move_its_logits_only_so_far():
    student, _ = train(new_student(NUM_META, 16, 0), lessons(10), learning_rate=0.01, entropy_coeff=0.0)
    verified = np.random.default_rng(2).normal(size=(4, 7))
    plain = np.log(student.weights(Features(verified, np.zeros((4, 7)), 0.5)))
    claimed = np.log(student.weights(Features(verified, np.full((4, 7), 3.0) * [[1], [-1], [1], [-1]], 0.5)))
    change = claimed - plain
    assert change.max() - change.min() <= 1.0 + 1e-9


GOOD, SAME, WORSE = Verdict(0.5, 1, 0.5), Verdict(0.45, 1, 0.45), Verdict(0.3, 1, 0.3)


def test_it_leads_after_matching_in_held_out_rounds_in_a_row():
    gate, notes = Gate(), []
    for student in (None, GOOD, WORSE, GOOD, GOOD, GOOD):
        gate, note = after_teacher(gate, student, GOOD, SAME, decisive=True, outdone=False, tolerance=0.01, patience=3)
        notes.append(note)
    assert gate == Gate(leads=True, matches=3, led=0)
    assert notes[:-1] == [""] * 5
    assert "3 held-out rounds" in notes[-1]


def test_a_student_whose_loss_is_clearly_higher_has_not_matched():
    gate = Gate()
    for _ in range(5):
        gate, _ = after_teacher(gate, GOOD, GOOD, SAME, decisive=True, outdone=True, tolerance=0.01, patience=3)
    assert gate == Gate()


def test_ties_prove_nothing():
    gate = Gate()
    for _ in range(10):
        gate, _ = after_teacher(gate, SAME, SAME, SAME, decisive=False, outdone=False, tolerance=0.01, patience=3)
    assert gate == Gate()


def test_the_teacher_comes_back_when_the_score_falls():
    gate, note = after_student(Gate(leads=True, led=1), GOOD, SAME)
    assert gate == Gate(leads=True, led=2)
    gate, note = after_student(gate, WORSE, SAME)
    assert gate == Gate()
    assert note == "the teacher is back: the student scored 0.300, the mean by examples 0.450"
    gate, note = after_teacher(Gate(leads=True, led=5), SAME, GOOD, SAME, decisive=True, outdone=False, tolerance=0.01, patience=3)
    assert not gate.leads
    assert note.startswith("the teacher is back")


def test_its_file_is_continued_and_checked(tmp_path):
    path = tmp_path / "aggregator_mlp.pth"
    assert load_student(path, NUM_META, 8) is None
    student, _ = train(new_student(NUM_META, 8, 0), lessons(2), learning_rate=0.01, entropy_coeff=0.0)
    save_student(path, student, lessons(2))
    stored = load_student(path, NUM_META, 8)
    assert all(np.array_equal(stored.student.parameters[name], array) for name, array in student.parameters.items())
    assert np.array_equal(stored.student.mean, student.mean)
    assert len(stored.lessons) == 2
    with pytest.raises(ConfigError, match="hidden_dim=8, configured are input_dim=10 and hidden_dim=16"):
        load_student(path, NUM_META, 16)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(ConfigError, match="damaged"):
        load_student(path, NUM_META, 8)
