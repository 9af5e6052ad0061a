"""ModalityAwareAggregation: one round from the clients' updates to the mixed model.

    check     what clients claim; measure each client's own model on the server's validation rows      (K forward passes)
    teacher   candidates: size-weighted, uniform, leave-one-out, greedy, Optuna over the features' alphas, gradient search;
              all scored by mixed logits, the best few by really mixing and evaluating
    choose    the best on the validation rows; ties fall to the size-weighted mix, which is always among the candidates

The idea of a teacher over client signals and a distilled student is FedOps' (FedMAP, evaluation-guided aggregation); the
surrogate, the checks, the weights per modality and the student's gate are this project's. Pure: state and updates in, state
and report out. The judge (see `fedmap.aggregators.judge`) is bound by whoever owns the validation rows.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from fedmap.aggregators.base import ServerState, check_choice, check_number, example_shares, in_client_order
from fedmap.aggregators.judge import Judge
from fedmap.aggregators.modality_aware import teacher
from fedmap.aggregators.modality_aware.bench import Bench, finite_only, update_norm
from fedmap.aggregators.modality_aware.checks import HIGHER, LOWER, check_claims
from fedmap.aggregators.modality_aware.features import FEATURES, NUM_META, Features, make_features, softmax
from fedmap.aggregators.modality_aware.mixing import Mix
from fedmap.aggregators.modality_aware.objective import FAIRNESS, OBJECTIVES, Objective, Verdict
from fedmap.aggregators.modality_aware.surrogate import Surrogate, anchors, greedy, rank_correlation
from fedmap.errors import ConfigError
from fedmap.records import Broadcast, ClientUpdate, RoundReport
from fedmap.weights import Layout, Weights

FloatArray = npt.NDArray[np.float64]

SIZE = "by examples"


@dataclass(frozen=True)
class ModalityAwareState(ServerState):
    """The global model and what the search remembers.

    Attributes:
        trial_draws: [T, F] what the teacher's past trials drew.
        trial_gains: [T] their gains over the size-weighted mix.
        correlation: running mean of the surrogate's rank correlation; None before it was measured.
    """

    trial_draws: FloatArray = field(default_factory=lambda: np.zeros((0, len(FEATURES))))
    trial_gains: FloatArray = field(default_factory=lambda: np.zeros(0))
    correlation: float | None = None


@dataclass(frozen=True)
class ModalityAwareAggregation:
    """Weights for the clients' models, found on the server's validation rows.

    Attributes:
        n_trials_per_round: alphas that Optuna proposes per round, >= 0.
        perf_mix_lambda: in [0, 1]; a client's claimed performance is lambda * F1 after + (1 - lambda) * improvement.
        z_clip: features are clipped to [-z_clip, z_clip], > 0.
        claim_limit: what a client claims moves its logit by at most this, >= 0; its odds by a factor of at most exp(4 claim_limit).
        confirm: how many of the surrogate's best candidates are really mixed and evaluated, >= 1.
        tolerance: scores this close to the best count as equal, and the lowest loss among them decides, >= 0.
        surrogate_floor: below this running rank correlation candidates are evaluated really, in [-1, 1].
        objective: "tuned": macro-F1 at each label's best threshold on the validation rows; "decided": at the model's own decision.
        fairness: "none", "label" or "client": whose worst case is penalised.
        fairness_penalty: how much of the gap between the mean and the worst is taken off the score, >= 0.
        mu: FedProx' spring on the clients, >= 0.
        custom_features: your own signals by name, each "higher" or "lower": which end is the good one.
        seed: of the teacher's draws.
    """

    n_trials_per_round: int = 32
    perf_mix_lambda: float = 0.7
    z_clip: float = 3.0
    claim_limit: float = 0.5
    confirm: int = 4
    tolerance: float = 0.005
    surrogate_floor: float = 0.3
    objective: str = "tuned"
    fairness: str = "none"
    fairness_penalty: float = 0.5
    mu: float = 0.0
    custom_features: Mapping[str, str] = field(default_factory=dict)
    seed: int = 0

    def __post_init__(self) -> None:
        check_number("n_trials_per_round", self.n_trials_per_round, 0)
        check_number("perf_mix_lambda", self.perf_mix_lambda, 0, 1)
        check_number("z_clip", self.z_clip, above=0)
        check_number("claim_limit", self.claim_limit, 0)
        check_number("confirm", self.confirm, 1)
        check_number("tolerance", self.tolerance, 0)
        check_number("surrogate_floor", self.surrogate_floor, -1, 1)
        check_choice("objective", self.objective, OBJECTIVES)
        check_choice("fairness", self.fairness, FAIRNESS)
        check_number("fairness_penalty", self.fairness_penalty, 0)
        check_number("mu", self.mu, 0)
        check_number("seed", self.seed, 0)
        for name, better in self.custom_features.items():
            check_choice(f"custom_features.{name}", better, (HIGHER, LOWER))

    def with_judge(self, judge: Judge) -> ModalityAwareAggregation:
        """The same aggregator, choosing by this judge."""
        bound = copy.copy(self)
        object.__setattr__(bound, "_judge", judge)
        return bound

    @property
    def judge(self) -> Judge:
        """The judge that was bound.

        Raises:
            ConfigError: none was.
        """
        judge: Judge | None = getattr(self, "_judge", None)
        if judge is None:
            raise ConfigError(
                "ModalityAwareAggregation chooses weights on the server's validation rows and has none; bind them with "
                "with_judge(fedmap.local.judge.ModelJudge(model, split, options))"
            )
        return judge

    def init(self, weights: Weights, layout: Layout | None = None) -> ModalityAwareState:
        """The initial model and no memories."""
        draws = np.zeros((0, len(FEATURES) + len(self.custom_features)))
        return ModalityAwareState(weights=weights, layout=layout or Layout.of(weights), trial_draws=draws)

    def broadcast(self, state: ModalityAwareState) -> Broadcast:
        """The global model, trained plainly or, with mu > 0, by FedProx' rule."""
        if self.mu == 0:
            return Broadcast(round_index=state.round_index + 1, weights=state.weights, rule="plain")
        return Broadcast(round_index=state.round_index + 1, weights=state.weights, rule="proximal", scalars={"mu": float(self.mu)})

    def aggregate(self, state: ModalityAwareState, updates: Sequence[ClientUpdate]) -> tuple[ModalityAwareState, RoundReport]:
        """Search for weights and mix.

        Raises:
            ConfigError: no judge was bound.
        """
        judge = self.judge
        done = state.round_index + 1
        ordered, notes = finite_only(in_client_order(updates))
        if not ordered:
            note = f"round {done}: no client sent a finite model; the model is kept"
            return replace(state, round_index=done), RoundReport(round_index=done, notes=(*notes, note))
        objective = Objective(judge, self.objective, self.fairness, float(self.fairness_penalty), _client_labels(ordered))
        bench = Bench(objective, ordered, state.weights, state.layout)
        shares = example_shares(ordered)
        sizes = np.array([shares[update.client_id] for update in ordered])
        if len(ordered) == 1:
            chosen, found = Mix(sizes), _Found({}, (), state)
        else:
            chosen, found = self._search(state, bench, sizes)
        after = replace(found.state, weights=bench.model(chosen), round_index=done)
        diagnostics = {name: float(value) for name, value in found.diagnostics.items() if np.isfinite(value)}
        report = RoundReport(
            round_index=done,
            client_weights={update.client_id: float(share) for update, share in zip(ordered, chosen.shares, strict=True)},
            diagnostics={"evaluations": float(bench.evaluations), **diagnostics},
            notes=(*notes, *found.notes),
        )
        return after, report

    def _search(self, state: ModalityAwareState, bench: Bench, sizes: FloatArray) -> tuple[Mix, _Found]:
        ordered = bench.updates
        logits = [bench.logits(update.weights) for update in ordered]
        own = [bench.objective.verdict(each) for each in logits]
        claims = check_claims(ordered, self.custom_features)
        features = make_features(
            claims,
            [update.num_examples for update in ordered],
            own,
            [update_norm(update, state.weights, state.layout) for update in ordered],
            perf_mix_lambda=self.perf_mix_lambda,
            z_clip=self.z_clip,
            claim_limit=self.claim_limit,
            custom=self.custom_features,
        )
        usable = np.array([np.isfinite(verdict.loss) for verdict in own])
        notes = [f"signal refused, counts as the round's worst: {sentence}" for sentence in claims.rejected]
        notes += [
            f"client {update.client_id} gets no weight: its model gives outputs that are not finite"
            for update, fits in zip(ordered, usable, strict=True)
            if not fits
        ]
        if not usable.any():
            return Mix(sizes), _Found({"rejected-signals": len(claims.rejected)}, (*notes, "the mean by examples is taken"), state)
        surrogate = Surrogate(bench.objective, [each if fits else np.zeros_like(each) for each, fits in zip(logits, usable, strict=True)])
        proposed = self._propose(state, surrogate, features, np.where(usable, sizes, 0.0), usable)
        chosen, verdict, sized, correlation = self._confirm(bench, proposed, sizes)
        running = _running(state.correlation, correlation)
        diagnostics = {
            "candidates": len(proposed.candidates),
            "score": verdict.score,
            "score-by-examples": sized.score,
            "validation-loss": verdict.loss,
            "rejected-signals": len(claims.rejected),
            **{f"alpha-{name}": alpha for name, alpha in zip((*FEATURES, *self.custom_features), proposed.alphas, strict=True)},
            **{f"own-score-client-{u.client_id}": each.score for u, each in zip(ordered, own, strict=True)},
        }
        if correlation is not None:
            diagnostics["surrogate-correlation"] = correlation
        kept = replace(state, trial_draws=proposed.draws, trial_gains=proposed.gains, correlation=running)
        return Mix(chosen), _Found(diagnostics, tuple(notes), kept)

    def _propose(
        self, state: ModalityAwareState, surrogate: Surrogate, features: Features, sizes: FloatArray, usable: npt.NDArray[np.bool_]
    ) -> _Proposed:
        """Candidates and their verdicts by the surrogate."""
        sizes = sizes / sizes.sum()
        base = surrogate.verdict(sizes)
        candidates: list[tuple[FloatArray, Verdict]] = []

        def add(weights: FloatArray) -> Verdict:
            verdict = surrogate.verdict(weights)
            candidates.append((weights, verdict))
            return verdict

        def masked(weights: FloatArray) -> FloatArray:
            kept = np.where(usable, weights, 0.0)
            return kept / kept.sum()

        for _, weights in anchors(sizes):
            if weights[usable].sum() > 0:
                add(masked(weights))
        add(greedy(surrogate.verdict, masked(sizes)) if usable.sum() > 1 else masked(sizes))
        starts = (masked(sizes), masked(np.full(len(sizes), 1.0 / len(sizes))))
        for label_weights in (np.ones(surrogate.logits.shape[2]), surrogate.objective.balanced_label_weights()):
            for start in starts:
                for weights in surrogate.descend(start, label_weights):
                    add(masked(weights))
        draws, gains = teacher.search(
            lambda alphas: add(masked(softmax(features.logits(alphas)))).score - base.score,
            state.trial_draws,
            state.trial_gains,
            num_trials=int(self.n_trials_per_round),
            seed=int(self.seed),
            round_index=state.round_index + 1,
        )
        all_draws = np.concatenate([state.trial_draws, draws])[-teacher.MEMORY :]
        all_gains = np.concatenate([state.trial_gains, gains])[-teacher.MEMORY :]
        alphas = teacher.on_simplex(draws[int(np.argmax(gains))]) if len(gains) else np.full(features.claimed.shape[1], np.nan)
        return _Proposed(candidates, alphas, all_draws, all_gains)

    def _confirm(
        self, bench: Bench, proposed: _Proposed, sizes: FloatArray
    ) -> tuple[FloatArray, Verdict, Verdict, float | None]:
        """Really evaluate the best few and the size-weighted mix; returns the choice, both verdicts and the rank correlation."""
        ranked = sorted(proposed.candidates, key=lambda pair: pair[1].rank, reverse=True)
        best: list[tuple[FloatArray, Verdict]] = []
        for weights, expected in ranked:
            if len(best) == int(self.confirm):
                break
            if all(np.abs(weights - other).max() > 0.01 for other, _ in best):
                best.append((weights, expected))
        sized = bench.verdict(Mix(sizes))
        tried = [(weights, bench.verdict(Mix(weights))) for weights, _ in best]
        uniform, expected = proposed.candidates[0]
        pairs = [(e.score, v.score) for (_, e), (_, v) in zip(best, tried, strict=True)] + [(expected.score, bench.verdict(Mix(uniform)).score)]
        tried.append((uniform, bench.verdict(Mix(uniform))))
        top = max(verdict.score for _, verdict in [*tried, (sizes, sized)])
        least = max(top - self.tolerance, sized.score)
        chosen, verdict = sizes, sized
        for weights, found in tried:
            if found.score >= least and (found.loss < verdict.loss or verdict.score < least):
                chosen, verdict = weights, found
        return chosen, verdict, sized, rank_correlation([e for e, _ in pairs], [v for _, v in pairs])


@dataclass(frozen=True)
class _Proposed:
    candidates: list[tuple[FloatArray, Verdict]]
    alphas: FloatArray
    draws: FloatArray
    gains: FloatArray


@dataclass(frozen=True)
class _Found:
    diagnostics: Mapping[str, float]
    notes: tuple[str, ...]
    state: ModalityAwareState


def _running(before: float | None, now: float | None) -> float | None:
    if now is None or before is None:
        return before if now is None else now
    return 0.7 * before + 0.3 * now


def _client_labels(updates: Sequence[ClientUpdate]) -> list[FloatArray]:
    """[C] label shares of each client's validation rows, from the counts it sent; clients without counts are left out."""
    shares = []
    for update in updates:
        counts = update.counts.get("val-after")
        if counts is not None and (counts.tp + counts.fn).sum() > 0:
            support = (counts.tp + counts.fn).astype(np.float64)
            shares.append(support / support.sum())
    return shares
