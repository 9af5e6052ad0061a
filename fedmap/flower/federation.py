"""The server's run: wait for clients, rounds of training and aggregation, evaluation, results. The same in every runtime."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from flwr.app import Message, MessageType
from flwr.serverapp import Grid
from torch import nn

from fedmap import averaging
from fedmap.aggregators.base import ServerState, expected_form, persist, with_num_clients
from fedmap.aggregators.judge import wants_judge, with_judge
from fedmap.build import build_aggregator, build_data, build_model, cache_dir, prepare_split, prune_caches, training_options
from fedmap.checkpoint import Checkpoint
from fedmap.config import RunConfig
from fedmap.data.base import FederatedData, Split
from fedmap.errors import CheckpointError, ConfigError, QuorumError, UpdateError
from fedmap.files import locked
from fedmap.flower.exchange import Answer, content_bytes, lifetime
from fedmap.flower.feedback import check_compression
from fedmap.flower.identities import identities_of
from fedmap.flower.registry import Registry, quorum_of
from fedmap.flower.spending import Spending
from fedmap.flower.standing import LOCK, ClientTests, Standing, checkpoints_of, find_standing, load_tests, save_tests
from fedmap.flower.wire import RunInfo, broadcast_to_content, content_to_counts, content_to_update
from fedmap.guard import GuardState, Ladder, Settled, check_model
from fedmap.history import FAILED, REJECTED, ClientRecord, RoundRecord, RoundScores
from fedmap.local.judge import NO_ROWS, ModelJudge, at_once
from fedmap.local.private import check_model_for, check_rule_for
from fedmap.local.rules import make_rule
from fedmap.local.tensors import layout_of, put_weights, shared_tensors, weights_in
from fedmap.local.training import Evaluation, TrainingOptions, evaluate
from fedmap.memory import give_back
from fedmap.outputs import RunFolder
from fedmap.progress import Progress
from fedmap.randomness import sample_clients
from fedmap.reasons import Reason
from fedmap.records import Broadcast, RoundReport
from fedmap.scoring import final_results, round_scores, thresholds_by_label
from fedmap.spill import Spill
from fedmap.weights import Weights

_PATIENCE = 30.0  # seconds for a server that was killed a moment ago to be gone


@dataclass
class Server:
    """The server's half of one run, in one process.

    Attributes:
        config: the run's configuration.
        folder: where results go.
        progress: told what happens, for people.
        expected: how many clients to wait for.
        name: names a new run; with something drawn at random behind it, clients keep their memories under it.
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
        averaging.set_threads(self.config.runtime.threads)
        data = self.data or build_data(self.config)
        self.label_names = tuple(data.label_names)
        self.model: nn.Module = build_model(self.config, data)
        averaging.prepare(self.expected * sum(tensor.numel() for _, tensor in shared_tensors(self.model)))
        cache = cache_dir(self.config)
        rows = data.server() if getattr(data, "has_server", lambda: True)() else {}
        self.splits: Mapping[str, Split] = {name: prepare_split(self.model, split, cache) for name, split in rows.items() if len(split)}
        prune_caches(self.config)
        self.options: TrainingOptions = training_options(self.config)
        self.aggregator = with_num_clients(build_aggregator(self.config), self.expected)
        if wants_judge(self.aggregator):  # it chooses by the server's validation rows, and by nothing else
            if "val" not in self.splits:
                raise ConfigError(f"server.strategy: {NO_ROWS}")
            several = at_once(self.model, self.options, self.config.runtime.threads)
            self.aggregator = with_judge(self.aggregator, ModelJudge(self.model, self.splits["val"], self.options, several))
        self.checkpoints = checkpoints_of(self.folder.path, self.config.keep_checkpoints)
        self._guard = GuardState()
        self._spending = Spending(self.config)
        self._state: ServerState | None = None  # the global model lies in `self.model`, and the state's arrays are a view of it
        self._in_model: Weights = {}  # what `self.model` has now
        self._held: dict[int, Weights] = {}  # by round, models that no checkpoint has
        self._validation: tuple[int, Evaluation | None] = (-1, None)  # the last round written down, and its model on the validation rows

    def run(self, grid: Grid) -> None:
        """Run the federation, or what is left of it after the newest checkpoint in the folder, and write its results.

        Raises:
            QuorumError: too few clients joined, or too many rounds in a row stayed below the quorum.
            CheckpointError: the folder holds a run that cannot be continued, or a checkpoint cannot be written.
            StorageError: another server uses the folder, or it cannot be written.
        """
        with locked(self.folder.path / LOCK, _PATIENCE):
            standing = self._find_standing()
            self.folder.start(self.config.raw, self.label_names, standing.history, standing.run_id)
            try:
                self._run(grid, standing)
            except BaseException as error:
                self._end_early(str(error) or type(error).__name__)
                raise

    def _find_standing(self) -> Standing:
        """Where the run stands; the state, whose model must not be held twice, is kept here alone."""
        self._in_model = weights_in(self.model)
        initial = self.aggregator.init(self._in_model, layout_of(self.model))
        check_compression(self.config.compression, self.aggregator, self.aggregator.broadcast(initial).rule)
        self._check_privacy(initial)
        standing = find_standing(self.config, self.folder.path, self.name, self.aggregator, initial, self.label_names)
        self._state = standing.state
        return replace(standing, state=replace(standing.state, weights={}))

    @property
    def state(self) -> ServerState:
        """The aggregator's state."""
        assert self._state is not None, "the run has begun"
        return self._state

    def _show(self, weights: Weights) -> Weights:
        """Put weights into the model; returns them as they lie there."""
        if weights is not self._in_model:
            self._in_model = put_weights(self.model, weights)
        return self._in_model

    def _settle(self) -> None:
        """Let the state's model be the one in the model, so that it is there once."""
        self._state = replace(self.state, weights=self._show(self.state.weights))
        give_back()

    def _check_privacy(self, initial: ServerState) -> None:
        """Refuse a model or a strategy whose clients would send what privacy does not cover."""
        broadcast = self.aggregator.broadcast(initial)
        form = expected_form(self.aggregator, initial, broadcast)
        check_model_for(self.config.privacy, self.model)
        check_rule_for(self.config.privacy, make_rule(broadcast.rule), broadcast, form.extras, form.scalars)

    def _run(self, grid: Grid, standing: Standing) -> None:
        config = self.config
        for note in standing.notes:
            self.progress.note(note)
        if not self.splits:
            self.progress.note(
                "the server has no validation or test rows: the last model is kept, and only the clients' own scores are reported"
            )
        info = RunInfo(standing.run_id, config.random_seed, config.num_rounds)
        registry = self._registry(grid, info, standing.clients)
        failed_in_a_row = standing.failed_in_a_row
        self._guard = standing.guard
        self._spending.resume(standing.history)
        self._settle()
        tests = load_tests(self.folder.path, self.state.round_index) if self.state.round_index >= config.num_rounds else None
        if tests is None:
            registry.wait(self.expected, config.runtime.wait_seconds, config.runtime.quorum, standing.clients.keys())
        self.progress.start(config.num_rounds)
        if standing.history is None:
            evaluations = self._evaluate(self.state.weights)
            record = RoundRecord.of(RoundReport(round_index=0), [], **self._scores(evaluations))
            self._record(record, evaluations, registry, 0)
        else:
            self.progress.resumed(self.state.round_index)
        while self.state.round_index < config.num_rounds:
            registry.refresh(config.runtime.wait_seconds)
            least = quorum_of(self.expected, config.runtime.quorum)
            if len(registry.nodes) < least:
                registry.wait(least, config.runtime.wait_seconds, 1.0)
            failed_in_a_row = self._round(grid, registry, info, failed_in_a_row)
            if failed_in_a_row >= config.runtime.max_failed_rounds:
                raise QuorumError(
                    f"{failed_in_a_row} rounds in a row had fewer answers than the quorum; the model of round "
                    f"{self.state.round_index - failed_in_a_row} is kept in {self.folder.path}. See the reasons above, or set runtime.quorum"
                )
        self._finish(grid, registry, info, tests)

    def _registry(self, grid: Grid, info: RunInfo, before: Mapping[int, int]) -> Registry:
        fingerprint = getattr(self.model, "frozen_fingerprint", None)
        return Registry(
            grid=grid,
            run=info,
            label_names=self.label_names,
            model_names=[name for name, _ in shared_tensors(self.model)],
            fingerprint=str(fingerprint()) if callable(fingerprint) else "",
            note=self.progress.note,
            waiting=self.progress.waiting,
            before=before,
            identities=identities_of(self.config, self.folder.path),
        )

    def _round(self, grid: Grid, registry: Registry, info: RunInfo, failed: int) -> int:
        """One round; returns how many rounds in a row, this one included, were below the quorum."""
        broadcast = self.aggregator.broadcast(self.state)
        round_index = broadcast.round_index
        info = replace(info, oldest=self.checkpoints.oldest(round_index))
        chosen = sample_clients(info.seed, round_index, registry.client_ids(), self.config.clients_per_round)
        self.progress.clients(round_index, chosen)
        started = time.perf_counter()
        answered = self._train(grid, registry, info, broadcast, self._ladder(registry, broadcast), chosen)
        del broadcast  # with it the old model goes as soon as there is a new one
        updates = answered.settled.updates
        trained = time.perf_counter()
        least = quorum_of(len(chosen), self.config.runtime.quorum)
        self._in_model = {}  # an aggregator may ask how other models do
        give_back()
        try:
            if len(updates) < least:
                raise UpdateError(f"{len(updates)} of {len(chosen)} clients gave usable answers, {least} are needed")
            new, report = self.aggregator.aggregate(self.state, updates)
            check_model(new.weights)
            self._state, self._guard = new, answered.settled.state
            del new
            persist(self.aggregator, self.state)
            failed = 0
        except UpdateError as error:
            # The old model stays; the round is marked and counted, so that random draws differ in the next one.
            self._state = replace(self.state, round_index=round_index)
            note = f"round {round_index}: {error}; the model is kept"
            self.progress.note(note)
            report = RoundReport(round_index=round_index, notes=(note,))
            failed += 1
        aggregated = time.perf_counter()
        updates = tuple(replace(update, weights={}, extras={}) for update in updates)  # their models make room before the evaluation
        answered = replace(answered, settled=replace(answered.settled, updates=(), refused=()))
        self._settle()
        spent = self._spending.after(chosen, {client_id: card.num_train for client_id, card in registry.cards.items()})
        report = replace(report, diagnostics={**report.diagnostics, **spent}) if spent else report
        evaluations = self._evaluate(self.state.weights)
        scores = self._scores(evaluations)
        seconds = {"train": trained - started, "aggregate": aggregated - trained, "evaluate": time.perf_counter() - aggregated}
        record = RoundRecord.of(
            report,
            updates,
            **scores,
            seconds=seconds,
            lost=answered.lost,
            bytes_up=answered.bytes_up,
            bytes_down=answered.bytes_down,
            remarks=answered.settled.remarks,
        )
        self._record(record, evaluations, registry, failed)
        return failed

    def _ladder(self, registry: Registry, broadcast: Broadcast) -> Ladder:
        """What this round's updates have to pass."""
        form = expected_form(self.aggregator, self.state, broadcast)
        rows = {client_id: card.num_train for client_id, card in registry.cards.items()}
        return Ladder(self.config.defence, broadcast, form, self.state.layout.buffers, self._guard, rows)

    def _train(
        self, grid: Grid, registry: Registry, info: RunInfo, broadcast: Broadcast, ladder: Ladder, chosen: Sequence[int]
    ) -> _Trained:
        clients = {registry.nodes[client_id]: client_id for client_id in chosen}
        kinds = [kind for group in ladder.form.groups.values() for kind in group.values()]
        spill = Spill(self.folder.path, len(chosen) * sum(kind.nbytes for kind in kinds))
        lost: dict[int, ClientRecord] = {}
        up: dict[int, int] = {}

        def lose(record: ClientRecord) -> None:
            lost[record.client_id] = record
            self.progress.client_lost(broadcast.round_index, record)
            code = f" ({record.code})" if record.status == REJECTED else ""
            self.progress.note(f"client {record.client_id} is left out of round {broadcast.round_index}{code}: {record.reason}")

        def take(node: int, answer: Answer) -> None:
            client_id = clients[node]
            status, code, reason = FAILED, str(Reason.NO_ANSWER), answer.failure
            if answer.content is not None:
                up[client_id] = content_bytes(answer.content)
                try:
                    update = content_to_update(
                        answer.content, len(self.label_names), broadcast, self.config.compression, ladder.form, ladder.defence.max_bytes
                    )
                    if update.client_id != client_id:
                        raise UpdateError(f"the node of client {client_id} answered as client {update.client_id}", Reason.IDENTITY)
                    ladder.admit(spill.keep(update))
                except UpdateError as error:
                    code, reason = error.code, str(error)
                    status = FAILED if code == Reason.PROBLEM else REJECTED
                else:
                    self.progress.client_done(update)
                    return
            down = None if answer.content is None else size
            lose(ClientRecord(client_id, status, reason, code=code, bytes_up=up.get(client_id), bytes_down=down))

        content = broadcast_to_content(broadcast, info, self.config.compression)
        seconds = self.config.runtime.round_seconds
        messages = {
            node: Message(content, node, MessageType.TRAIN, ttl=lifetime(seconds), group_id=str(broadcast.round_index)) for node in clients
        }
        size = content_bytes(content)
        registry.exchange.ask(messages, seconds, take)
        settled = ladder.settle(spill.keep)
        spill.close()
        for refusal in settled.refused:
            sent = up[refusal.update.client_id]
            lose(ClientRecord.of(refusal.update, status=REJECTED, reason=refusal.reason, code=refusal.code, bytes_up=sent, bytes_down=size))
        for client_id, remarks in settled.remarks.items():
            for code, remark in remarks.items():
                self.progress.note(f"client {client_id} in round {broadcast.round_index} ({code}): {remark}")
        return _Trained(settled, [lost[k] for k in sorted(lost)], up, dict.fromkeys(chosen, size))

    def _evaluate(self, weights: Weights) -> dict[str, Evaluation]:
        self._show(weights)
        return {name: evaluate(self.model, split, self.options) for name, split in self.splits.items()}

    def _scores(self, evaluations: Mapping[str, Evaluation]) -> RoundScores:
        """Scores on the validation and the test split; None where the server has no such rows."""
        return round_scores(evaluations.get("val"), evaluations.get("test"), self.model)

    def _record(self, record: RoundRecord, evaluations: Mapping[str, Evaluation], registry: Registry, failed: int) -> None:
        """Write a round down. The checkpoint comes last: a run that is killed before it says the round again, and forgets none."""
        self.folder.add_round(record)
        history = self.folder.history
        self._validation = record.round_index, evaluations.get("val")
        if self.checkpoints.keep == 0:
            found = {**self._held, record.round_index: self.state.weights}
            self._held = {r: weights for r, weights in found.items() if r in (history.best_round(), record.round_index)}
        self.progress.round_done(record)
        try:
            self.checkpoints.save(Checkpoint(registry.run.run_name, self.state, history, failed, registry.rows(), self._guard))
        except CheckpointError as error:
            kept = self.checkpoints.rounds()
            advice = f"The same command again goes on after round {kept[-1]}" if kept else "The run has to start anew"
            raise CheckpointError(f"round {record.round_index} is not saved: {error}. {advice}") from error

    def _weights_of(self, round_index: int) -> Weights:
        """The global model after a round that has been written down: the last one, or the best.

        Raises:
            CheckpointError: it can no longer be read.
        """
        if round_index == self.state.round_index and self.state.weights:
            return self.state.weights
        return self._held[round_index] if round_index in self._held else self.checkpoints.weights(round_index, type(self.state))

    def _finish(self, grid: Grid, registry: Registry, info: RunInfo, tests: ClientTests | None) -> None:
        """Score the chosen model on the server and, each with the model it uses, on the clients; write everything."""
        best = self.folder.history.best
        chosen = best.round_index if best else self.state.round_index
        if tests is None:
            broadcast = replace(self.aggregator.broadcast(self.state), weights=self._weights_of(chosen))
            tests = ClientTests(self.state.round_index, self._client_tests(grid, registry, replace(info, final=True), broadcast))
            save_tests(self.folder.path, tests)
            del broadcast
        if (last := self.folder.history.rounds[-1:]) and (sentence := self._spending.sentence(last[0].diagnostics)):
            self.progress.note(sentence)
        results = self._save_models()
        final = final_results(chosen, self.label_names, results.get("val"), results.get("test"), tests.counts, model=self.model)
        self.folder.finish(final)

    def _save_models(self) -> dict[str, Evaluation]:
        """Write the last and the best model, each with the thresholds that suit it on the validation rows; returns how the best one does."""
        history = self.folder.history
        if self._state is None or not history.rounds:
            return {}
        last = history.rounds[-1].round_index
        best = history.best_round()
        results: dict[str, Evaluation] = {}
        for name, round_index in (("last", last), ("best", last if best is None else best)):
            weights = self._weights_of(round_index)
            scored, validation = self._validation
            if name == "best" or (scored != round_index and "val" in self.splits):
                results = self._evaluate(weights)
                validation = results.get("val")
            self._show(weights)
            del weights
            self.folder.save_model(name, self.model, thresholds_by_label(self.label_names, validation, self.model))
            if best != last:
                self._state = replace(self.state, weights={})  # it makes room for the best model, and can be read again
        return results

    def _end_early(self, reason: str) -> None:
        """Leave what there is. What cannot be written is said, and does not hide the reason for which the run ends."""
        for step in (self._save_models, lambda: self.folder.fail(reason)):
            try:
                step()
            except Exception as error:
                self.progress.note(f"after the run had failed: {error}")

    def _client_tests(self, grid: Grid, registry: Registry, info: RunInfo, broadcast: Broadcast) -> dict[int, Any]:
        registry.refresh(5.0)
        clients = {node: client_id for client_id, node in registry.nodes.items()}
        if not clients:
            return {}
        content = broadcast_to_content(broadcast, info)
        seconds = self.config.runtime.round_seconds
        messages = {node: Message(content, node, MessageType.EVALUATE, ttl=lifetime(seconds), group_id="final") for node in clients}
        found = {}
        answers = registry.exchange.ask(messages, seconds)
        if self.config.privacy.wanted:  # they learn that the run has ended, and say nothing
            self.progress.note(f"privacy={self.config.privacy.name}: the clients do not tell how the model does on their own rows")
            return {}
        for node, answer in answers.items():
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


@dataclass(frozen=True)
class _Trained:
    """What came of asking a round's clients to train.

    Attributes:
        settled: the updates that may be aggregated, and what was found of them.
        lost: the clients whose answer did not come or is not used.
        bytes_up: by client that answered.
        bytes_down: by client that was asked.
    """

    settled: Settled
    lost: Sequence[ClientRecord]
    bytes_up: Mapping[int, int]
    bytes_down: Mapping[int, int]
