"""ModalityAwareAggregation: one round from the clients' updates to the mixed model.

    measure   check what clients claim; score each client's own model on the server's validation rows    (K forward passes)
    teacher   candidates by rule, by gradient and by Optuna over the features' alphas, scored by mixed logits; the best few by
              really mixing and evaluating; chosen on the validation rows, ties fall to the size-weighted mix
    student   learns the teacher's weights; leads, without a search, once it has matched the teacher in held-out rounds

A teacher over client signals with a distilled student is FedOps' idea (FedMAP, evaluation-guided aggregation); surrogate,
checks, gates per modality and the student's gate are this project's. Pure: state and updates in, state and report out. The
judge (`fedmap.aggregators.judge`) is bound by whoever owns the validation rows, who also calls `restore` and `persist`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fedmap.aggregators.base import ServerState, check_choice, check_number, example_shares, in_client_order
from fedmap.aggregators.judge import Judge
from fedmap.aggregators.modality_aware import search, store, student, teacher
from fedmap.aggregators.modality_aware.bench import Bench, finite_only, update_norm
from fedmap.aggregators.modality_aware.checks import check_claims
from fedmap.aggregators.modality_aware.features import FEATURES, NUM_META, Features, make_features
from fedmap.aggregators.modality_aware.gate import Gate, after_student, after_teacher
from fedmap.aggregators.modality_aware.mixing import Mix, gated
from fedmap.aggregators.modality_aware.objective import FAIRNESS, OBJECTIVES, Objective, Verdict, client_labels
from fedmap.aggregators.modality_aware.student import Lesson, Student
from fedmap.aggregators.modality_aware.surrogate import Surrogate
from fedmap.aggregators.modality_aware.usable import modality_gates, reasons_against
from fedmap.errors import ConfigError
from fedmap.guard.signals import HIGHER, LOWER
from fedmap.records import Broadcast, ClientUpdate, RoundReport
from fedmap.weights import Layout, Weights

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ModalityAwareState(ServerState):
    """The global model and what the search remembers.

    Attributes:
        trial_draws: [T, F] what the teacher's past trials drew.
        trial_gains: [T] their gains over the size-weighted mix.
        correlation: running mean of the surrogate's rank correlation over the rounds where ranks mattered; None before the first.
        student: the student; None before the first lesson.
        lessons: the replay, oldest first.
        gate: who leads the next round.
    """

    trial_draws: FloatArray = field(default_factory=lambda: np.zeros((0, len(FEATURES))))
    trial_gains: FloatArray = field(default_factory=lambda: np.zeros(0))
    correlation: float | None = None
    student: Student | None = None
    lessons: tuple[Lesson, ...] = ()
    gate: Gate = field(default_factory=Gate)


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
        caution: standard errors of validation loss or score by which a mix must beat the one by examples, else they tie, >= 0.
        surrogate_floor: below this running rank correlation candidates are evaluated really, in [-1, 1].
        server_learning_rates: shares of the way to the clients' mean that are tried on the validation rows, > 0; [1] goes all the way.
        per_modality: whether clients count in a modality's part of the model only as far as they trained it.
        objective: "tuned": macro-F1 at each label's best threshold on the validation rows; "decided": at the model's own decision.
        fairness: "none", "label" or "client": whose worst case is penalised.
        fairness_penalty: how much of the gap between the mean and the worst is taken off the score, >= 0.
        student: whether there is one.
        aggregator_path: the student's file, read before the first round and written after each; None keeps it in the state alone.
        input_dim: the student's inputs: 10 and one for each custom feature.
        hidden_dim: its hidden units, >= 1.
        aggregator_lr: Adam's learning rate of its training, > 0.
        entropy_coeff: how much the student is drawn to even weights, >= 0.
        patience: held-out rounds in a row that it must match the teacher before it leads, >= 1.
        audit_every: after this many rounds led by the student the teacher looks again, >= 1.
        mu: FedProx' spring on the clients, >= 0.
        custom_features: your own signals by name, each "higher" or "lower": which end is the good one.
        seed: of the teacher's draws and the student's start.
    """

    n_trials_per_round: int = 32
    perf_mix_lambda: float = 0.7
    z_clip: float = 3.0
    claim_limit: float = 0.5
    confirm: int = 4
    tolerance: float = 0.02
    caution: float = 2.0
    surrogate_floor: float = 0.3
    server_learning_rates: Sequence[float] = (1.0,)
    per_modality: bool = True
    objective: str = "tuned"
    fairness: str = "none"
    fairness_penalty: float = 0.5
    student: bool = True
    aggregator_path: str | None = None
    input_dim: int | None = None
    hidden_dim: int = 16
    aggregator_lr: float = 0.01
    entropy_coeff: float = 0.01
    patience: int = 3
    audit_every: int = 5
    mu: float = 0.0
    custom_features: Mapping[str, str] = field(default_factory=dict)
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("n_trials_per_round", 0), ("confirm", 1), ("hidden_dim", 1), ("patience", 1), ("audit_every", 1), ("seed", 0)):
            value = getattr(self, name)
            check_number(name, value, least)
            if not isinstance(value, int):
                raise ConfigError(f"{name}={value!r}: expected an integer")
        for name in ("claim_limit", "tolerance", "caution", "fairness_penalty", "entropy_coeff", "mu"):
            check_number(name, getattr(self, name), 0)
        check_number("perf_mix_lambda", self.perf_mix_lambda, 0, 1)
        check_number("surrogate_floor", self.surrogate_floor, -1, 1)
        for rate in self.server_learning_rates:
            check_number("server_learning_rates", rate, above=0)
        check_number("z_clip", self.z_clip, above=0)
        check_number("aggregator_lr", self.aggregator_lr, above=0)
        check_choice("objective", self.objective, OBJECTIVES)
        check_choice("fairness", self.fairness, FAIRNESS)
        for name, better in self.custom_features.items():
            check_choice(f"custom_features.{name}", better, (HIGHER, LOWER))
        if self.input_dim not in (None, self._num_inputs):
            raise ConfigError(
                f"input_dim={self.input_dim!r}: the student sees {NUM_META} meta-features and {len(self.custom_features)} custom ones; "
                f"set input_dim={self._num_inputs} or null"
            )

    @property
    def _num_inputs(self) -> int:
        return NUM_META + len(self.custom_features)

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

    def restore(self, state: ModalityAwareState) -> ModalityAwareState:
        """The state with the student of an earlier run, where `aggregator_path` holds one; whether it leads is for this run to see.

        Raises:
            ConfigError: the file is damaged, or its student has another shape.
        """
        if not self.student or self.aggregator_path is None:
            return state
        stored = store.load_student(Path(self.aggregator_path), self._num_inputs, self.hidden_dim)
        return state if stored is None else replace(state, student=stored.student, lessons=stored.lessons)

    def persist(self, state: ModalityAwareState) -> None:
        """Write the student to `aggregator_path`, where there are both."""
        if self.aggregator_path is not None and state.student is not None:
            store.save_student(Path(self.aggregator_path), state.student, state.lessons)

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
        """Find weights and mix.

        Raises:
            ConfigError: no judge was bound.
        """
        judge = self.judge
        done = state.round_index + 1
        ordered, notes = finite_only(in_client_order(updates))
        if not ordered:
            note = f"round {done}: no client sent a finite model; the model is kept"
            return replace(state, round_index=done), RoundReport(round_index=done, notes=(*notes, note))
        objective = Objective(judge, self.objective, self.fairness, float(self.fairness_penalty), client_labels(ordered))
        bench = Bench(objective, ordered, state.weights, state.layout)
        shares = example_shares(ordered)
        sizes = np.array([shares[update.client_id] for update in ordered])
        if len(ordered) == 1:
            result = _Result(Mix(sizes), state)
        else:
            result = self._round(state, bench, sizes)
        report = RoundReport(
            round_index=done,
            client_weights={}
            if result.keep
            else {update.client_id: float(share) for update, share in zip(ordered, result.mix.shares, strict=True)},
            diagnostics={
                "evaluations": float(bench.evaluations),
                **{name: float(value) for name, value in result.diagnostics.items() if np.isfinite(value)},
                **result.mix.part_weights([update.client_id for update in ordered]),
            },
            notes=(*notes, *(note for note in result.notes if note)),
        )
        weights = state.weights if result.keep else bench.model(result.mix)
        return replace(result.state, weights=weights, round_index=done), report

    def _round(self, state: ModalityAwareState, bench: Bench, sizes: FloatArray) -> _Result:
        """A round of two or more clients."""
        updates = bench.updates
        logits = bench.logits()
        own = [bench.objective.verdict(each) for each in logits]
        claims = check_claims(updates, self.custom_features)
        norms = [update_norm(update, state.weights, state.layout) for update in updates]
        features = make_features(
            claims,
            [update.num_examples for update in updates],
            own,
            norms,
            perf_mix_lambda=self.perf_mix_lambda,
            z_clip=self.z_clip,
            claim_limit=self.claim_limit,
            custom=self.custom_features,
        )
        reasons = reasons_against(own, norms)
        usable = np.array([not reason for reason in reasons])
        notes = [f"signal refused, it counts as the round's worst: {sentence}" for sentence in claims.rejected]
        notes += [f"client {update.client_id} gets no weight: {reason}" for update, reason in zip(updates, reasons, strict=True) if reason]
        diagnostics: dict[str, float] = {
            "rejected-signals": len(claims.rejected),
            **{f"own-score-client-{update.client_id}": verdict.score for update, verdict in zip(updates, own, strict=True)},
        }
        if not usable.any():
            kept = f"round {state.round_index + 1}: no client's model gives finite outputs; the model is kept"
            return _Result(Mix(np.full(len(sizes), 1 / len(sizes))), state, diagnostics, (*notes, kept), keep=True)
        if not usable.all():
            sizes = np.where(usable, sizes, 0.0) / sizes[usable].sum()
        gates = modality_gates(claims, state.layout) if self.per_modality else {}
        pupil = self._pupil(state, bench, features, sizes, usable, gates)
        sized = bench.verdict(Mix(sizes))
        diagnostics["score-by-examples"] = sized.score
        if pupil is not None:
            diagnostics["student-score"] = pupil[1].score
            if state.gate.leads and state.gate.led < self.audit_every:
                gate, note = after_student(state.gate, pupil[1], sized)
                state = replace(state, gate=gate)
                notes.append(note)
                if gate.leads:
                    mix, verdict = self._along(bench, pupil[0], sized)
                    found = {
                        "score": verdict.score,
                        "validation-loss": verdict.loss,
                        "server-learning-rate": mix.step,
                        "student-leads": 1.0,
                    }
                    return _Result(mix, state, diagnostics | found, tuple(notes))
        surrogate = Surrogate(bench.objective, [each if fits else np.zeros_like(each) for each, fits in zip(logits, usable, strict=True)])
        trust = state.correlation is None or state.correlation >= self.surrogate_floor
        if not trust:
            notes.append(f"mixed logits have ranked candidates badly (correlation {state.correlation:.2f}): all are really evaluated")
        proposed = search.propose(
            surrogate,
            bench,
            features,
            sizes,
            usable,
            past=(state.trial_draws, state.trial_gains),
            num_trials=self.n_trials_per_round,
            seed=self.seed,
            round_index=state.round_index + 1,
            trust=trust,
        )
        choice = search.choose(bench, proposed, sizes, gates, confirm=self.confirm, tolerance=self.tolerance, caution=self.caution)
        decisive = bool(np.abs(choice.mix.shares - sizes).max() > 0.01)
        gate, note = after_teacher(
            state.gate,
            None if pupil is None else pupil[1],
            choice.verdict,
            sized,
            decisive=decisive,
            outdone=pupil is not None and bench.objective.clearly_better(choice.verdict, pupil[1], self.caution),
            tolerance=self.tolerance,
            patience=self.patience,
        )
        notes.append(note)
        mix, verdict = self._along(bench, choice.mix, sized)
        diagnostics |= {
            "candidates": len(proposed.candidates),
            "score": verdict.score,
            "teacher-score": choice.verdict.score,
            "validation-loss": verdict.loss,
            "server-learning-rate": mix.step,
            **dict(zip((f"alpha-{name}" for name in (*FEATURES, *self.custom_features)), map(float, proposed.alphas), strict=False)),
        }
        if choice.correlation is not None:
            diagnostics["surrogate-correlation"] = choice.correlation
        state = replace(
            state,
            trial_draws=np.concatenate([state.trial_draws, proposed.draws])[-teacher.MEMORY :],
            trial_gains=np.concatenate([state.trial_gains, proposed.gains])[-teacher.MEMORY :],
            correlation=_running(state.correlation, choice.correlation if choice.telling else None),
            gate=gate,
        )
        return _Result(mix, self._taught(state, features, choice.mix.shares), diagnostics, tuple(notes))

    def _along(self, bench: Bench, mix: Mix, sized: Verdict) -> tuple[Mix, Verdict]:
        """The mix with the server's learning rate; never below the score of the mix by examples, unless it was there before."""
        return search.go_along(bench, mix, self.server_learning_rates, least=sized.score, tolerance=self.tolerance, caution=self.caution)

    def _pupil(
        self,
        state: ModalityAwareState,
        bench: Bench,
        features: Features,
        sizes: FloatArray,
        usable: npt.NDArray[np.bool_],
        gates: Mapping[str, FloatArray],
    ) -> tuple[Mix, Verdict] | None:
        """The student's mix, gated where that is better, and how it does; it has not seen this round."""
        if not self.student or state.student is None:
            return None
        weights = np.where(usable, state.student.weights(features), 0.0)
        weights = weights / weights.sum()
        mixes = [Mix(weights), *([gated(weights, state.layout, gates)] if gates else [])]
        verdicts = bench.verdicts([*mixes, Mix(sizes)])  # the last one is asked for next
        return max(zip(mixes, verdicts, strict=False), key=lambda pair: pair[1].rank)

    def _taught(self, state: ModalityAwareState, features: Features, weights: FloatArray) -> ModalityAwareState:
        """The state with one more lesson and the student trained on the replay."""
        if not self.student:
            return state
        lessons = (*state.lessons, Lesson(features.meta(), weights))[-student.REPLAY :]
        start = state.student or student.new_student(self._num_inputs, self.hidden_dim, self.seed)
        trained, _ = student.train(start, lessons, learning_rate=self.aggregator_lr, entropy_coeff=self.entropy_coeff)
        return replace(state, student=trained, lessons=lessons)


@dataclass(frozen=True)
class _Result:
    mix: Mix
    state: ModalityAwareState
    diagnostics: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    keep: bool = False


def _running(before: float | None, now: float | None) -> float | None:
    if now is None or before is None:
        return before if now is None else now
    return 0.7 * before + 0.3 * now
