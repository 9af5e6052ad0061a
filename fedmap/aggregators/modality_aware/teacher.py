"""The teacher: Optuna's TPE over the features' alphas, one study across rounds.

Trials of past rounds are told to the study before it proposes new ones. Scores rise from round to round whatever the alphas
are, so a trial is remembered by its gain over the size-weighted mix of its own round.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from fedmap.randomness import derive_seed

FloatArray = npt.NDArray[np.float64]

MEMORY = 64  # trials that are remembered; TPE's time grows with them
_STARTUP = 10  # random draws before TPE models anything
_LEAST = 1e-3


def on_simplex(draws: FloatArray) -> FloatArray:
    """Points u in (0, 1]^F to the simplex: -log(u), normalised, which for uniform u is uniform on the simplex."""
    exponentials = -np.log(np.clip(draws, _LEAST, 1.0 - 1e-9))
    alphas: FloatArray = exponentials / exponentials.sum(axis=-1, keepdims=True)
    return alphas


def search(
    gain_of: Callable[[FloatArray], float],
    past_draws: FloatArray,
    past_gains: FloatArray,
    *,
    num_trials: int,
    seed: int,
    round_index: int,
) -> tuple[FloatArray, FloatArray]:
    """Propose and score `num_trials` alphas.

    Args:
        gain_of: [F] alphas to the score's gain over the size-weighted mix; -inf where it is hopeless.
        past_draws: [T, F] what past trials drew, oldest first.
        past_gains: [T] their gains.
        num_trials: >= 0.
        seed: of the federation.
        round_index: draws are a function of (seed, round, past trials).

    Returns:
        [num_trials, F] new draws (see `on_simplex`) and [num_trials] their gains.
    """
    num_features = past_draws.shape[1]
    if num_trials == 0:
        return np.zeros((0, num_features)), np.zeros(0)
    import optuna

    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # one line a trial otherwise
    try:
        names = [f"u{i}" for i in range(num_features)]
        space: dict[str, Any] = {name: optuna.distributions.FloatDistribution(_LEAST, 1.0) for name in names}
        number = derive_seed(seed, purpose="teacher", round_index=round_index) % 2**32
        sampler = optuna.samplers.TPESampler(seed=number, n_startup_trials=_STARTUP)
        study = optuna.create_study(direction="maximize", sampler=sampler)
        for draw, gain in zip(past_draws, past_gains, strict=True):
            point = {name: float(u) for name, u in zip(names, draw, strict=True)}
            study.add_trial(optuna.trial.create_trial(params=point, distributions=space, value=float(gain)))
        if len(past_gains):
            best = past_draws[int(np.argmax(past_gains))]
            study.enqueue_trial({name: float(u) for name, u in zip(names, best, strict=True)})
        draws, gains = np.zeros((num_trials, num_features)), np.zeros(num_trials)
        for i in range(num_trials):
            trial = study.ask(space)
            draws[i] = [trial.params[name] for name in names]
            gains[i] = max(gain_of(on_simplex(draws[i])), -1.0)
            study.tell(trial, float(gains[i]))
        return draws, gains
    finally:
        optuna.logging.set_verbosity(level)
