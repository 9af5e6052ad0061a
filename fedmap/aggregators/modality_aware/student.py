"""The student: a small MLP that learns the teacher's weights from past rounds, so that the search can be skipped.

    logit_k = v . tanh(W (x_k - mean) / scale + b),    weights = softmax over the clients of a round

The same MLP looks at every client by itself, so permuting the clients permutes the weights, and any number of clients will
do. It is trained to convergence on a replay of past rounds, by KL(teacher || student) - entropy_coeff * H(student), averaged
over rounds, with gradients in closed form.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedmap.aggregators.modality_aware.features import Features, softmax
from fedmap.randomness import generator

FloatArray = npt.NDArray[np.float64]

REPLAY = 50  # rounds that are remembered
_MOST_STEPS = 2000
_SMALL_GRADIENT = 1e-4


@dataclass(frozen=True)
class Lesson:
    """One round of the teacher's: [K, I] meta-features and [K] weights."""

    meta: FloatArray
    weights: FloatArray


@dataclass(frozen=True)
class Student:
    """The MLP and the normalisation of its inputs.

    Attributes:
        parameters: "w1" [I, H], "b1" [H], "w2" [H], float64.
        mean: [I] subtracted from the inputs.
        scale: [I] > 0, which they are divided by.
    """

    parameters: Mapping[str, FloatArray]
    mean: FloatArray
    scale: FloatArray

    @property
    def shape(self) -> tuple[int, int]:
        """(I, H): inputs and hidden units."""
        rows, columns = self.parameters["w1"].shape
        return int(rows), int(columns)

    @property
    def is_sound(self) -> bool:
        """Whether all arrays are there, fit one another and hold finite numbers, as is not sure of what comes from a file."""
        arrays = [*(self.parameters.get(name) for name in ("w1", "b1", "w2")), self.mean, self.scale]
        if (
            any(array is None or array.dtype.kind != "f" or not np.isfinite(array).all() for array in arrays)
            or self.parameters["w1"].ndim != 2
        ):
            return False
        inputs, hidden = self.shape
        fits = [array.shape for array in arrays[1:] if array is not None] == [(hidden,), (hidden,), (inputs,), (inputs,)]
        return fits and bool((self.scale > 0).all())

    def logits(self, meta: FloatArray) -> FloatArray:
        """[K] from [K, I]."""
        hidden = np.tanh((meta - self.mean) / self.scale @ self.parameters["w1"] + self.parameters["b1"])
        logits: FloatArray = hidden @ self.parameters["w2"]
        return logits

    def weights(self, features: Features) -> FloatArray:
        """[K] on the simplex. What clients claim moves a logit by at most the features' claim limit, as with the teacher."""
        verified = self.logits(features.meta(with_claims=False))
        change = self.logits(features.meta()) - verified
        return softmax(verified + np.clip(change, -features.claim_limit, features.claim_limit))


def new_student(input_dim: int, hidden_dim: int, seed: int) -> Student:
    """A student that gives every client the same weight."""
    rng = generator(seed, purpose="student")
    w1 = rng.normal(scale=1.0 / np.sqrt(input_dim), size=(input_dim, hidden_dim))
    parameters = {"w1": w1, "b1": np.zeros(hidden_dim), "w2": np.zeros(hidden_dim)}
    return Student(parameters, np.zeros(input_dim), np.ones(input_dim))


def loss_and_gradient(
    parameters: Mapping[str, FloatArray], inputs: FloatArray, targets: FloatArray, starts: npt.NDArray[np.int64], entropy_coeff: float
) -> tuple[float, dict[str, FloatArray]]:
    """The mean loss over R rounds and its gradient.

    Args:
        parameters: of the MLP.
        inputs: [N, I] normalised meta-features, the rounds' clients one after the other.
        targets: [N] the teacher's weights, summing to one within each round.
        starts: [R] where each round begins.
        entropy_coeff: >= 0.
    """
    rounds = len(starts)
    counts = np.diff([*starts, len(inputs)])
    hidden = np.tanh(inputs @ parameters["w1"] + parameters["b1"])  # [N, H]
    logits = hidden @ parameters["w2"]
    logits = logits - np.repeat(np.maximum.reduceat(logits, starts), counts)
    logs = logits - np.repeat(np.log(np.add.reduceat(np.exp(logits), starts)), counts)  # log softmax
    shares = np.exp(logs)
    teacher_logs = np.log(np.where(targets > 0, targets, 1.0))
    entropy = -np.add.reduceat(shares * logs, starts)  # [R]
    loss = float(((targets * (teacher_logs - logs)).sum() - entropy_coeff * entropy.sum()) / rounds)
    outer = (shares - targets + entropy_coeff * shares * (logs + np.repeat(entropy, counts))) / rounds  # [N]
    inner = outer[:, None] * parameters["w2"] * (1.0 - hidden**2)  # [N, H]
    return loss, {"w1": inputs.T @ inner, "b1": inner.sum(axis=0), "w2": hidden.T @ outer}


def train(student: Student, lessons: Sequence[Lesson], *, learning_rate: float, entropy_coeff: float) -> tuple[Student, float]:
    """The student trained to convergence by Adam on all lessons, and its loss.

    Args:
        student: where to start.
        lessons: at least one.
        learning_rate: of Adam, > 0.
        entropy_coeff: >= 0.
    """
    stacked = np.concatenate([lesson.meta for lesson in lessons])
    mean, scale = stacked.mean(axis=0), np.maximum(stacked.std(axis=0), 0.1)
    inputs, targets = (stacked - mean) / scale, np.concatenate([lesson.weights for lesson in lessons])
    starts = np.cumsum([0, *(len(lesson.weights) for lesson in lessons[:-1])]).astype(np.int64)
    parameters = {name: array.copy() for name, array in student.parameters.items()}
    first = {name: np.zeros_like(array) for name, array in parameters.items()}
    second = {name: np.zeros_like(array) for name, array in parameters.items()}
    loss = np.inf
    for step in range(1, _MOST_STEPS + 1):
        loss, gradient = loss_and_gradient(parameters, inputs, targets, starts, entropy_coeff)
        if max(float(np.abs(g).max()) for g in gradient.values()) < _SMALL_GRADIENT:
            break
        for name, g in gradient.items():
            first[name] = 0.9 * first[name] + 0.1 * g
            second[name] = 0.999 * second[name] + 0.001 * g**2
            rate = learning_rate * np.sqrt(1 - 0.999**step) / (1 - 0.9**step)
            parameters[name] = parameters[name] - rate * first[name] / (np.sqrt(second[name]) + 1e-8)
    return Student(parameters, mean, scale), float(loss)
