"""One federation of the modality-aware benchmark: a strategy on a ground, and what its models score."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

from benchmarks.modality_ground import CULPRIT, Ground, Table
from benchmarks.peer import Peer, PeerJudge, PeerProcess
from fedmap.aggregators.base import Aggregator, ServerState
from fedmap.aggregators.judge import with_judge
from fedmap.aggregators.modality_aware.objective import Objective
from fedmap.build import build_aggregator
from fedmap.guard import OFF, Form, Ladder, climb
from fedmap.local.judge import ModelJudge
from fedmap.local.tensors import get_weights, layout_of, set_weights
from fedmap.local.training import Evaluation, evaluate
from fedmap.metrics import MultilabelCounts
from fedmap.records import Broadcast, ClientUpdate, RoundReport
from fedmap.scoring import counts_at, tuned_thresholds
from fedmap.simulation import Round, simulate
from fedmap.weights import Layout, Weights

SCORING_BATCH = 512  # rows at a time when a model is scored

# Each strategy's settings beside the common ones; each of ours adds to the one before, up to the configuration's default, per-modality.
# What comes after it adds one option to that. The peer is configured by its own class.
_OURS, _WHOLE_WAY = "strategy=modality_aware", "server.strategy.server_learning_rates=[1.0]"
STRATEGIES: dict[str, tuple[str, ...]] = {
    "fedavg": ("strategy=fedavg",),
    "fedprox": ("strategy=fedprox",),
    "teacher": (_OURS, "server.strategy.student=false", "server.strategy.per_modality=false", _WHOLE_WAY),
    "student": (_OURS, "server.strategy.per_modality=false", _WHOLE_WAY),
    "per-modality": (_OURS, _WHOLE_WAY),
    "server-rate": (_OURS, "server.strategy.server_learning_rates=[1.0,0.7,0.5]"),
    "fair-label": (_OURS, _WHOLE_WAY, "server.strategy.fairness=label"),
    "fair-client": (_OURS, _WHOLE_WAY, "server.strategy.fairness=client"),
    "peer": ("strategy=fedavg",),
}
FAIR = ("fair-label", "fair-client")
OURS = ("teacher", "student", "per-modality", "server-rate", *FAIR)


class Timed:
    """An aggregator behind the checks that the server makes of every update, with a stopwatch.

    Attributes:
        seconds: of each aggregation, search and evaluations included.
    """

    def __init__(self, inner: Aggregator[ServerState], *, processor: bool = False) -> None:
        """Wrap an aggregator.

        Args:
            inner: the aggregator.
            processor: count the seconds that this process computes, and not those on the wall, which other processes stretch.
        """
        self._inner, self._clock = inner, time.process_time if processor else time.perf_counter
        self.seconds: list[float] = []

    def init(self, weights: Weights, layout: Layout | None = None) -> ServerState:
        """See `Aggregator`."""
        return self._inner.init(weights, layout)

    def broadcast(self, state: ServerState) -> Broadcast:
        """See `Aggregator`."""
        return self._inner.broadcast(state)

    def aggregate(self, state: ServerState, updates: Sequence[ClientUpdate]) -> tuple[ServerState, RoundReport]:
        """See `Aggregator`. Without a usable update the state of the round before is kept."""
        sent = self._inner.broadcast(state)
        usable = climb(Ladder(OFF, sent, Form.of(sent.weights), state.layout.buffers), updates).updates
        if not usable:
            done = state.round_index + 1
            return replace(state, round_index=done), RoundReport(round_index=done, notes=("no usable update",))
        started = self._clock()
        result = self._inner.aggregate(state, usable)
        self.seconds.append(self._clock() - started)
        return result


def run(ground: Ground, strategy: str, trials: int, process: PeerProcess | None = None) -> dict[str, Any]:
    """One federation's figures: scores of the chosen model, of the last one and of every round, and seconds.

    Args:
        ground: who has what.
        strategy: a key of `STRATEGIES`.
        trials: `n_trials_per_round` of the peer and of ours.
        process: where the peer runs.
    """
    initial, num_rounds = get_weights(ground.model), ground.config.num_rounds
    options = replace(ground.options, batch_size=SCORING_BATCH)
    kept: list[Weights] = []
    reports: list[RoundReport] = []
    wishes: list[tuple[float, float, int]] = []
    rounds: list[dict[str, float]] = []

    def score(split: Table, weights: Weights) -> Evaluation:
        set_weights(ground.model, weights)
        return evaluate(ground.model, split, options)

    def follow(done: Round) -> None:
        weights, index = done.state.weights, done.state.round_index
        validation, test = score(ground.validation, weights), score(ground.test, weights)
        kept.append(weights)
        reports.append(done.report)
        rounds.append(_scores(validation, test))
        loss = validation.loss if math.isfinite(validation.loss) else math.inf
        wishes.append((rounds[-1]["validation_tuned"], -loss, -index))

    judge = ModelJudge(ground.model, ground.validation, options)
    aggregator: Peer | Timed
    if strategy == "peer":
        assert process is not None, "the peer needs a process"
        aggregator = Peer(process, peer_judge(judge), trials, ground.config.random_seed)
    else:
        chosen_strategy = build_aggregator(ground.movies.config(ground.config.random_seed, *overrides_of(strategy, trials)))
        aggregator = Timed(with_judge(chosen_strategy, judge))
    started = time.perf_counter()
    state = aggregator.init(initial, layout_of(ground.model))
    simulate(aggregator, state, ground.clients, num_rounds, seed=ground.config.random_seed, on_round=follow)
    elapsed = time.perf_counter() - started
    chosen = max(range(num_rounds), key=lambda index: wishes[index])
    thresholds = tuned_thresholds(score(ground.validation, kept[chosen]))
    assert thresholds is not None
    own = {k: score(split, kept[chosen]) for k, split in ground.tests.items()}
    set_weights(ground.model, initial)
    tuned = {k: counts_at(result, thresholds) for k, result in own.items()}
    return {
        **rounds[chosen],
        **{f"last.{name}": value for name, value in rounds[-1].items()},
        **_clients("tuned", tuned),
        **_clients("at_half", {k: result.counts for k, result in own.items()}),
        "chosen_round": chosen + 1,
        "aggregation_seconds": fmean(aggregator.seconds),
        "federation_seconds": elapsed,
        "curve": [one["tuned"] for one in rounds],
        "weights": [{str(k): w for k, w in report.client_weights.items()} for report in reports],
        "diagnostics": [{k: v for k, v in report.diagnostics.items() if math.isfinite(v)} for report in reports],
        "notes": [note for report in reports for note in report.notes],
        "evaluations": getattr(aggregator, "evaluations", None),
        "client_rows": [len(client.splits["train"]) for client in ground.clients],
    }


def peer_judge(judge: ModelJudge) -> PeerJudge:
    """What the peer may ask of the server's validation rows: the same objective, computed by the same code, as ours."""
    objective = Objective(judge)

    def score(weights: Weights) -> tuple[float, float]:
        verdict = objective.verdict(judge.logits(weights))
        return verdict.macro_f1, verdict.loss if math.isfinite(verdict.loss) else 1e9

    return score


def overrides_of(strategy: str, trials: int) -> tuple[str, ...]:
    """What configures a strategy with this many trials per round."""
    return (*STRATEGIES[strategy], *((f"server.strategy.n_trials_per_round={trials}",) if strategy in OURS else ()))


def _scores(validation: Evaluation, test: Evaluation) -> dict[str, float]:
    thresholds = tuned_thresholds(validation)
    assert thresholds is not None
    tuned = counts_at(test, thresholds)
    return {
        "tuned": tuned.macro_f1,
        "at_half": test.counts.macro_f1,
        "worst_label": min(f1 for f1, support in zip(tuned.per_label_f1, tuned.tp + tuned.fn, strict=True) if support > 0),
        "tuned_micro": tuned.micro_f1,
        "at_half_micro": test.counts.micro_f1,
        "validation": validation.counts.macro_f1,
        "validation_tuned": counts_at(validation, thresholds).macro_f1,
    }


def _clients(name: str, counts: dict[int, MultilabelCounts]) -> dict[str, float]:
    scores = {k: own.macro_f1 for k, own in counts.items()}
    honest = [score for k, score in scores.items() if k != CULPRIT]
    return {
        f"clients_mean.{name}": fmean(scores.values()),
        f"clients_worst.{name}": min(scores.values()),
        f"clients_honest.{name}": fmean(honest),
    }
