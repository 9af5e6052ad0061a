"""The server's run: wait for clients, rounds of training and aggregation, evaluation, results. The same in every runtime."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from flwr.app import Message, MessageType
from flwr.serverapp import Grid
from torch import nn

from fedmap.aggregators.base import ServerState, expected_names, persist, restored, with_num_clients
from fedmap.aggregators.judge import wants_judge, with_judge
from fedmap.build import build_aggregator, build_data, build_model, cache_dir, prepare_split, training_options
from fedmap.config import RunConfig
from fedmap.data.base import FederatedData, Split
from fedmap.errors import ConfigError, QuorumError, UpdateError
from fedmap.flower.exchange import Answer, content_bytes, exchange
from fedmap.flower.registry import Registry, quorum_of
from fedmap.flower.wire import RunInfo, broadcast_to_content, content_to_counts, content_to_update
from fedmap.guard import check_update
from fedmap.history import FAILED, REJECTED, ClientRecord, RoundRecord, RoundScores
from fedmap.local.judge import NO_ROWS, ModelJudge
from fedmap.local.tensors import get_weights, layout_of, set_weights, shared_tensors
from fedmap.local.training import Evaluation, TrainingOptions, evaluate
from fedmap.outputs import RunFolder
from fedmap.progress import Progress
from fedmap.randomness import sample_clients
from fedmap.records import Broadcast, ClientUpdate, RoundReport
from fedmap.scoring import final_results, round_scores
from fedmap.weights import Weights


@dataclass
class Server:
    """The server's half of one run, in one process.

    Attributes:
        config: the run's configuration.
        folder: where results go.
        progress: told what happens, for people.
        expected: how many clients to wait for.
        name: names the run; clients keep their memory under it.
        data: the data set, where it has been built already.
    """

    config: RunConfig
    folder: RunFolder
    progress: Progress
    expected: int
    name: str
    data: FederatedData | None = None

    def __post_init__(self) -> None:
        import torch

        torch.set_num_threads(self.config.runtime.threads)
        data = self.data or build_data(self.config)
        self.label_names = tuple(data.label_names)
        self.model: nn.Module = build_model(self.config, data)
        cache = cache_dir(self.config)
        rows = data.server() if getattr(data, "has_server", lambda: True)() else {}
        self.splits: Mapping[str, Split] = {name: prepare_split(self.model, split, cache) for name, split in rows.items() if len(split)}
        self.options: TrainingOptions = training_options(self.config)
        self.aggregator = with_num_clients(build_aggregator(self.config), self.expected)
        if wants_judge(self.aggregator):  # it chooses by the server's validation rows, and by nothing else
            if "val" not in self.splits:
                raise ConfigError(f"server.strategy: {NO_ROWS}")
            self.aggregator = with_judge(self.aggregator, ModelJudge(self.model, self.splits["val"], self.options))
        self.best: Weights | None = None
        self.last: Weights | None = None

    def run(self, grid: Grid) -> None:
        """Run the whole federation and write its results.

        Raises:
            QuorumError: too few clients joined, or too many rounds in a row stayed below the quorum.
        """
        self.folder.start(self.config.raw, self.label_names)
        try:
            self._run(grid)
        except BaseException as error:
            try:
                self._save_models()
            finally:
                self.folder.fail(str(error) or type(error).__name__)
            raise

    def _run(self, grid: Grid) -> None:
        config = self.config
        info = RunInfo(self.name, config.random_seed, config.num_rounds)
        if not self.splits:
            self.progress.note(
                "the server has no validation or test rows: the last model is kept, and only the clients' own scores are reported"
            )
        registry = self._registry(grid, info)
        state = restored(self.aggregator, self.aggregator.init(get_weights(self.model), layout_of(self.model)))
        registry.wait(self.expected, config.runtime.wait_seconds, config.runtime.quorum)
        self.progress.start(config.num_rounds)
        self._record(RoundRecord.of(RoundReport(round_index=0), [], **self._scores(state.weights)), state.weights)
        failed_in_a_row = 0
        for _ in range(config.num_rounds):
            registry.refresh(config.runtime.wait_seconds)
            least = quorum_of(self.expected, config.runtime.quorum)
            if len(registry.nodes) < least:
                registry.wait(least, config.runtime.wait_seconds, 1.0)
            state, good = self._round(grid, registry, info, state)
            failed_in_a_row = 0 if good else failed_in_a_row + 1
            if failed_in_a_row >= config.runtime.max_failed_rounds:
                raise QuorumError(
                    f"{failed_in_a_row} rounds in a row had fewer answers than the quorum; the model of round "
                    f"{state.round_index - failed_in_a_row} is kept in {self.folder.path}. See the reasons above, or set runtime.quorum"
                )
        self._finish(grid, registry, info, state)

    def _registry(self, grid: Grid, info: RunInfo) -> Registry:
        fingerprint = getattr(self.model, "frozen_fingerprint", None)
        return Registry(
            grid=grid,
            run=info,
            label_names=self.label_names,
            model_names=[name for name, _ in shared_tensors(self.model)],
            fingerprint=str(fingerprint()) if callable(fingerprint) else "",
            note=self.progress.note,
        )

    def _round(self, grid: Grid, registry: Registry, info: RunInfo, state: ServerState) -> tuple[ServerState, bool]:
        """One round; returns the new state and whether the quorum was met."""
        broadcast = self.aggregator.broadcast(state)
        chosen = sample_clients(info.seed, broadcast.round_index, registry.client_ids(), self.config.clients_per_round)
        self.progress.clients(broadcast.round_index, chosen)
        started = time.perf_counter()
        names = expected_names(self.aggregator, state)
        updates, lost, up, down = self._train(grid, registry, info, broadcast, names, chosen)
        trained = time.perf_counter()
        least = quorum_of(len(chosen), self.config.runtime.quorum)
        try:
            if len(updates) < least:
                raise UpdateError(f"{len(updates)} of {len(chosen)} clients gave usable answers, {least} are needed")
            state, report = self.aggregator.aggregate(state, updates)
            persist(self.aggregator, state)
            good = True
        except UpdateError as error:
            # The old model stays; the round is marked and counted, so that random draws differ in the next one.
            state = replace(state, round_index=broadcast.round_index)
            note = f"round {broadcast.round_index}: {error}; the model is kept"
            self.progress.note(note)
            report = RoundReport(round_index=broadcast.round_index, notes=(note,))
            good = False
        aggregated = time.perf_counter()
        scores = self._scores(state.weights)
        seconds = {"train": trained - started, "aggregate": aggregated - trained, "evaluate": time.perf_counter() - aggregated}
        record = RoundRecord.of(report, updates, **scores, seconds=seconds, lost=lost, bytes_up=up, bytes_down=down)
        self._record(record, state.weights)
        return state, good

    def _train(
        self, grid: Grid, registry: Registry, info: RunInfo, broadcast: Broadcast, names: frozenset[str], chosen: Sequence[int]
    ) -> tuple[list[ClientUpdate], list[ClientRecord], dict[int, int], dict[int, int]]:
        clients = {registry.nodes[client_id]: client_id for client_id in chosen}
        updates: dict[int, ClientUpdate] = {}
        lost: dict[int, ClientRecord] = {}
        up: dict[int, int] = {}

        def take(node: int, answer: Answer) -> None:
            client_id = clients[node]
            status, reason = FAILED, answer.failure
            if answer.content is not None:
                up[client_id] = content_bytes(answer.content)
                try:
                    update = content_to_update(answer.content, len(self.label_names))
                    status = REJECTED
                    if update.client_id != client_id:
                        raise UpdateError(f"the node of client {client_id} answered as client {update.client_id}")
                    check_update(update, broadcast, names)
                except UpdateError as error:
                    reason = str(error)
                else:
                    updates[client_id] = update
                    self.progress.client_done(update)
                    return
            lost[client_id] = ClientRecord(client_id=client_id, status=status, reason=reason)
            self.progress.note(f"client {client_id} is left out of round {broadcast.round_index}: {reason}")

        content = broadcast_to_content(broadcast, info)
        seconds = self.config.runtime.round_seconds
        messages = {
            node: Message(content, node, MessageType.TRAIN, ttl=seconds + 60, group_id=str(broadcast.round_index)) for node in clients
        }
        size = content_bytes(content)
        exchange(grid, messages, seconds, take)
        return [updates[k] for k in sorted(updates)], [lost[k] for k in sorted(lost)], up, dict.fromkeys(chosen, size)

    def _evaluate(self, weights: Weights) -> dict[str, Evaluation]:
        set_weights(self.model, weights)
        return {name: evaluate(self.model, split, self.options) for name, split in self.splits.items()}

    def _scores(self, weights: Weights) -> RoundScores:
        """Scores on the validation and the test split; None where the server has no such rows."""
        results = self._evaluate(weights)
        return round_scores(results.get("val"), results.get("test"), self.model)

    def _record(self, record: RoundRecord, weights: Weights) -> None:
        self.folder.add_round(record)
        best = self.folder.history.best
        if best is None or best.round_index == record.round_index:  # without validation rows the last model is the best known
            self.best = weights
        self.last = weights
        self.progress.round_done(record)

    def _finish(self, grid: Grid, registry: Registry, info: RunInfo, state: ServerState) -> None:
        """Score the chosen model on the server and, each with the model it uses, on the clients; write everything."""
        assert self.best is not None
        best = self.folder.history.best
        counts = self._client_tests(grid, registry, replace(info, final=True), replace(self.aggregator.broadcast(state), weights=self.best))
        results = self._evaluate(self.best)
        chosen = best.round_index if best else state.round_index
        final = final_results(chosen, self.label_names, results.get("val"), results.get("test"), counts, model=self.model)
        self._save_models(final.thresholds)
        self.folder.finish(final)

    def _save_models(self, thresholds: Mapping[str, float] | None = None) -> None:
        """Write the best and the last model; the thresholds are the best one's."""
        for name, weights in (("best", self.best), ("last", self.last)):
            if weights is not None:
                set_weights(self.model, weights)
                self.folder.save_model(name, self.model, (thresholds or None) if name == "best" else None)

    def _client_tests(self, grid: Grid, registry: Registry, info: RunInfo, broadcast: Broadcast) -> dict[int, Any]:
        registry.refresh(5.0)
        clients = {node: client_id for client_id, node in registry.nodes.items()}
        if not clients:
            return {}
        content = broadcast_to_content(broadcast, info)
        seconds = self.config.runtime.round_seconds
        messages = {node: Message(content, node, MessageType.EVALUATE, ttl=seconds + 60, group_id="final") for node in clients}
        found = {}
        for node, answer in exchange(grid, messages, seconds).items():
            try:
                if answer.content is None:
                    raise UpdateError(answer.failure)
                client_id, counts = content_to_counts(answer.content, len(self.label_names))
                if client_id != clients[node] or "test" not in counts:
                    raise UpdateError("the answer is another client's, or has no counts of the test split")
                found[client_id] = counts["test"]
            except UpdateError as error:
                self.progress.note(f"client {clients[node]} is missing from the final scores: {error}")
        return found
