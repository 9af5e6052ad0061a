"""The teacher's search in one round: propose candidates, score them by the surrogate, confirm the best few, choose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from fedmap.aggregators.modality_aware import teacher
from fedmap.aggregators.modality_aware.bench import Bench
from fedmap.aggregators.modality_aware.features import Features, softmax
from fedmap.aggregators.modality_aware.mixing import Mix, gated
from fedmap.aggregators.modality_aware.objective import Verdict
from fedmap.aggregators.modality_aware.surrogate import Surrogate, anchors, greedy, rank_correlation

FloatArray = npt.NDArray[np.float64]

_LARGEST = 10.0  # times the median's examples, from which on a claim must be borne out
_ALWAYS = 2  # candidates that are really evaluated whatever the surrogate says: the uniform mix, and the one by roots of examples
_APART = 0.01  # candidates whose weights differ by less are the same


@dataclass(frozen=True)
class Candidate:
    """Weights [K], and how the surrogate and, where it was evaluated, the mixed model did."""

    weights: FloatArray
    expected: Verdict
    real: Verdict | None = None

    @property
    def best_known(self) -> Verdict:
        """The real verdict where there is one."""
        return self.real or self.expected


@dataclass(frozen=True)
class Proposed:
    """All candidates of a round, and the teacher's trials.

    Attributes:
        candidates: in the order of proposal: the uniform mix, the one by square roots of examples, the one by examples, the others.
        draws: [T, F] the trials' draws, see `teacher.on_simplex`.
        gains: [T] their gains over the size-weighted mix.
    """

    candidates: Sequence[Candidate]
    draws: FloatArray
    gains: FloatArray

    @property
    def alphas(self) -> FloatArray:
        """[F] of the best trial; empty if there was none."""
        return teacher.on_simplex(self.draws[int(np.argmax(self.gains))]) if len(self.gains) else np.zeros(0)


@dataclass(frozen=True)
class Choice:
    """What the search chose.

    Attributes:
        mix: the weights.
        verdict: how the mixed model did.
        sized: how the size-weighted mix did.
        correlation: Spearman's, of expected and real scores; None where it could not be measured.
        telling: whether the real scores lie further apart than the tolerance; ranks among equals are luck.
    """

    mix: Mix
    verdict: Verdict
    sized: Verdict
    correlation: float | None
    telling: bool


def propose(
    surrogate: Surrogate,
    bench: Bench,
    features: Features,
    sizes: FloatArray,
    usable: npt.NDArray[np.bool_],
    *,
    past: tuple[FloatArray, FloatArray],
    num_trials: int,
    seed: int,
    round_index: int,
    trust: bool,
) -> Proposed:
    """Candidates by rule, by gradient and by Optuna.

    Args:
        surrogate: scores them.
        bench: evaluates them really where the surrogate is not trusted.
        features: what the teacher mixes.
        sizes: [K] shares of examples.
        usable: [K] clients that may get any weight; at least one.
        past: the teacher's past draws and gains.
        num_trials: of the teacher.
        seed: of its draws.
        round_index: of its draws.
        trust: whether the surrogate's ranks have agreed with real ones.
    """
    candidates: list[Candidate] = []

    def masked(weights: FloatArray) -> FloatArray:
        kept = np.where(usable, weights, 0.0)
        shares: FloatArray = kept / kept.sum()
        return shares

    def add(weights: FloatArray) -> Verdict:
        candidate = Candidate(weights, surrogate.verdict(weights), None if trust else bench.verdict(Mix(weights)))
        candidates.append(candidate)
        return candidate.best_known

    sized, uniform = masked(sizes), masked(np.full(len(sizes), 1.0 / len(sizes)))
    add(uniform)
    add(masked(np.sqrt(sizes)))
    base = add(sized)
    for weights in anchors(sized):
        add(masked(weights))
    add(masked(greedy(surrogate.verdict, sized)))
    for label_weights in (np.ones(surrogate.logits.shape[2]), surrogate.objective.balanced_label_weights()):
        for start in (sized, uniform):
            for weights in surrogate.descend(start, label_weights):
                add(masked(weights))
    draws, gains = teacher.search(
        lambda alphas: add(masked(softmax(features.logits(alphas)))).score - base.score,
        *past,
        num_trials=num_trials,
        seed=seed,
        round_index=round_index,
    )
    return Proposed(candidates, draws, gains)


def choose(
    bench: Bench, proposed: Proposed, sizes: FloatArray, gates: Mapping[str, FloatArray], *, confirm: int, tolerance: float, caution: float
) -> Choice:
    """Really evaluate the best few, with and without gates, and choose.

    Among mixes whose score is within `tolerance` of the best one's and not below the size-weighted mix's, the lowest loss
    wins: on a hundred rows F1 tells neighbours apart by luck. A mix that does not beat the size-weighted one clearly ties with it,
    and ties fall to the size-weighted mix: the best of many candidates looks better than it is.

    Args:
        bench: evaluates.
        proposed: candidates.
        sizes: [K] shares of examples.
        gates: by modality, [K] shares of rows with it; empty mixes the whole model alike.
        confirm: how many to evaluate.
        tolerance: >= 0.
        caution: standard errors of loss or score by which a mix must beat the size-weighted one, >= 0.
    """
    best: list[Candidate] = []
    for candidate in sorted(proposed.candidates, key=lambda each: each.best_known.rank, reverse=True):
        if len(best) == confirm:
            break
        if all(np.abs(candidate.weights - other.weights).max() > _APART for other in best):
            best.append(candidate)
    measured = [candidate for candidate in proposed.candidates if candidate.real is not None]
    spread = measured or [*best, *proposed.candidates[: _ALWAYS + 1]]
    uniform, tempered = proposed.candidates[:_ALWAYS]
    mixes = [Mix(candidate.weights) for candidate in (*best, uniform, tempered)]
    if gates:
        mixes += [gated(weights, bench.layout, gates) for weights in (sizes, *(each.weights for each in (*best[:2], tempered)))]
    verdicts = bench.verdicts([Mix(sizes), *mixes, *(Mix(candidate.weights) for candidate in spread)])
    sized = verdicts[0]
    expected, real = _finite_pairs(spread, verdicts[1 + len(mixes) :])
    telling = bool(real) and max(real) - min(real) > tolerance
    pairs = zip(mixes, verdicts[1:], strict=False)
    tried = [(mix, verdict) for mix, verdict in pairs if bench.objective.clearly_better(verdict, sized, caution)]
    cut = Mix(borne_out(sizes))
    if np.abs(cut.shares - sizes).max() > 0 and bench.objective.clearly_better(bench.verdict(cut), sized, 0.0):
        tried.append((cut, bench.verdict(cut)))
    least = max([sized.score, *(verdict.score - tolerance for _, verdict in tried)])
    chosen, verdict = Mix(sizes), sized
    for mix, found in tried:
        if found.score >= least and (verdict.score < least or found.loss < verdict.loss):
            chosen, verdict = mix, found
    return Choice(chosen, verdict, sized, rank_correlation(expected, real), telling)


def go_along(bench: Bench, mix: Mix, rates: Sequence[float], *, least: float, tolerance: float, caution: float) -> tuple[Mix, Verdict]:
    """How far to go towards the mix: the server's learning rate, on the validation rows.

    Once models have stopped to improve, rounds go around the optimum; a step short of the clients' mean averages over rounds. Rates
    are tried outwards from 1, on either side, for as long as the loss falls; one that does not beat 1 clearly ties with it, and ties fall to 1.

    Args:
        bench: evaluates.
        mix: with step 1.
        rates: to try, > 0; 1 is always among them.
        least: a rate whose score is below this one is not taken.
        tolerance: how far below the mix' own score still counts as equal, >= 0.
        caution: standard errors of loss or score by which another rate must beat 1, >= 0.
    """
    first = bench.verdict(mix)
    least = max(least, first.score - tolerance)
    for side in (sorted({rate for rate in rates if rate < 1}, reverse=True), sorted({rate for rate in rates if rate > 1})):
        chosen, best = mix, first
        for rate in side:
            moved = replace(mix, step=float(rate))
            verdict = bench.verdict(moved)
            better = verdict.loss < best.loss and verdict.score >= least
            if not better or not bench.objective.clearly_better(verdict, first, caution):
                break
            chosen, best = moved, verdict
        if chosen is not mix:
            return chosen, best
    return mix, first


def borne_out(sizes: FloatArray) -> FloatArray:
    """Shares of examples where nobody counts more than 10 times the (lower) median client.

    A number of examples is a claim, too. A larger one counts in full only as long as that does not cost anything on the
    validation rows: this mix needs no caution to displace the size-weighted one.
    """
    middle = np.sort(sizes)[(len(sizes) - 1) // 2]
    cut = np.minimum(sizes, _LARGEST * middle)
    shares: FloatArray = sizes if (cut == sizes).all() else cut / cut.sum()
    return shares


def _finite_pairs(candidates: Sequence[Candidate], verdicts: Sequence[Verdict]) -> tuple[list[float], list[float]]:
    pairs = [(candidate.expected.score, real.score) for candidate, real in zip(candidates, verdicts, strict=True)]
    kept = [pair for pair in pairs if np.isfinite(pair).all()]
    return [left for left, _ in kept], [right for _, right in kept]
