"""The server's run: wait for clients, rounds of training and aggregation, evaluation, results. The same in every runtime."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

from flwr.serverapp import Grid

from fedmap import averaging
from fedmap.aggregators.base import ServerState, expected_form, persist, with_num_clients
from fedmap.aggregators.judge import wants_judge, with_judge
from fedmap.build import build_aggregator, build_data
from fedmap.checkpoint import Checkpoint
from fedmap.config import RunConfig
from fedmap.data.base import FederatedData
from fedmap.errors import CheckpointError, QuorumError, UpdateError
from fedmap.files import locked
from fedmap.flower.client_tests import ClientTests, ask_for_tests, load_tests, save_tests
from fedmap.flower.collecting import Collection
from fedmap.flower.feedback import check_compression
from fedmap.flower.global_model import GlobalModel
from fedmap.flower.identities import identities_of
from fedmap.flower.registry import Registry, quorum_of
from fedmap.flower.spending import Spending
from fedmap.flower.standing import LOCK, Standing, checkpoints_of, find_standing
from fedmap.flower.wire import RunInfo
from fedmap.guard import GuardState, Ladder, check_model
from fedmap.history import RoundRecord
from fedmap.local.private import check_model_for, check_rule_for
from fedmap.local.rules import make_rule
from fedmap.local.tensors import layout_of
from fedmap.local.together import check_together
from fedmap.local.training import Evaluation
from fedmap.memory import give_back
from fedmap.outputs import RunFolder
from fedmap.progress import Progress
from fedmap.randomness import sample_clients
from fedmap.records import Broadcast, RoundReport
from fedmap.scoring import final_results, thresholds_by_label
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
        self.model = GlobalModel.of(self.config, data)
        averaging.prepare(self.expected * sum(tensor.numel() for tensor in self.model.shared.values()))
        self.aggregator = with_num_clients(build_aggregator(self.config), self.expected)
        if wants_judge(self.aggregator):  # it chooses by the server's validation rows, and by nothing else
            self.aggregator = with_judge(self.aggregator, self.model.judge(self.config.runtime.threads))
        self.checkpoints = checkpoints_of(self.folder.path, self.config.keep_checkpoints)
        self._guard = GuardState()
        self._spending = Spending(self.config)
        self._state: ServerState | None = None  # its model's arrays are a view of those in `self.model`
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
        initial = self.aggregator.init(self.model.weights, layout_of(self.model.module))
        rule = self.aggregator.broadcast(initial).rule
        check_compression(self.config.compression, self.aggregator, rule)
        if self.config.runtime.clients_at_once > 1:
            check_together(self.model.module, self.model.options, rule)
        self._check_privacy(initial)
        standing = find_standing(self.config, self.folder.path, self.name, self.aggregator, initial, self.label_names)
        self._state = standing.state
        return replace(standing, state=replace(standing.state, weights={}))

    @property
    def state(self) -> ServerState:
        """The aggregator's state."""
        assert self._state is not None, "the run has begun"
        return self._state

    def _settle(self, updates: int = 0) -> None:
        """Let the state's model be the one that is shown, so that it is there once, and so many updates' memory be the system's."""
        self._state = replace(self.state, weights=self.model.show(self.state.weights))
        give_back(self.model.nbytes * (1 + updates))

    def _check_privacy(self, initial: ServerState) -> None:
        """Refuse a model or a strategy whose clients would send what privacy does not cover."""
        broadcast = self.aggregator.broadcast(initial)
        form = expected_form(self.aggregator, initial, broadcast)
        check_model_for(self.config.privacy, self.model.module)
        check_rule_for(self.config.privacy, make_rule(broadcast.rule), broadcast, form.extras, form.scalars)

    def _run(self, grid: Grid, standing: Standing) -> None:
        config = self.config
        for note in standing.notes:
            self.progress.note(note)
        if not self.model.splits:
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
            evaluations = self.model.evaluate(self.state.weights)
            record = RoundRecord.of(RoundReport(round_index=0), [], **self.model.scores(evaluations))
            self._record(record, evaluations, registry, 0)
        else:
            self.progress.resumed(self.state.round_index)
        while self.state.round_index < config.num_rounds:
            registry.refresh(config.runtime.wait_seconds)
            least = quorum_of(self.expected, config.runtime.quorum)
            if len(registry.nodes) < least:
                registry.wait(least, config.runtime.wait_seconds, 1.0)
            failed_in_a_row = self._round(registry, info, failed_in_a_row)
            if failed_in_a_row >= config.runtime.max_failed_rounds:
                raise QuorumError(
                    f"{failed_in_a_row} rounds in a row had fewer answers than the quorum; the model of round "
                    f"{self.state.round_index - failed_in_a_row} is kept in {self.folder.path}. See the reasons above, or set runtime.quorum"
                )
        self._finish(registry, info, tests)

    def _registry(self, grid: Grid, info: RunInfo, before: Mapping[int, int]) -> Registry:
        fingerprint = getattr(self.model.module, "frozen_fingerprint", None)
        return Registry(
            grid=grid,
            run=info,
            label_names=self.label_names,
            model_names=list(self.model.shared),
            fingerprint=str(fingerprint()) if callable(fingerprint) else "",
            note=self.progress.note,
            waiting=self.progress.waiting,
            before=before,
            identities=identities_of(self.config, self.folder.path),
        )

    def _round(self, registry: Registry, info: RunInfo, failed: int) -> int:
        """One round; returns how many rounds in a row, this one included, were below the quorum."""
        broadcast = self.aggregator.broadcast(self.state)
        round_index = broadcast.round_index
        info = replace(info, oldest=self.checkpoints.oldest(round_index))
        chosen = sample_clients(info.seed, round_index, registry.client_ids(), self.config.clients_per_round)
        self.progress.clients(round_index, chosen)
        started = time.perf_counter()
        clients = {registry.nodes[client_id]: client_id for client_id in chosen}
        ladder = self._ladder(registry, broadcast)
        collection = Collection(self.config, ladder, clients, len(self.label_names), self.folder.path, self.progress)
        answered = collection.ask(registry.exchange, info)
        del broadcast, ladder, collection  # with them the old model goes as soon as there is a new one
        updates = answered.settled.updates
        trained = time.perf_counter()
        least = quorum_of(len(chosen), self.config.runtime.quorum)
        self.model.forget()  # an aggregator may ask how other models do
        give_back(self.model.nbytes * len(updates))
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
        self._settle(len(updates))
        spent = self._spending.after(chosen, {client_id: card.num_train for client_id, card in registry.cards.items()})
        report = replace(report, diagnostics={**report.diagnostics, **spent}) if spent else report
        evaluations = self.model.evaluate(self.state.weights)
        scores = self.model.scores(evaluations)
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

    def _finish(self, registry: Registry, info: RunInfo, tests: ClientTests | None) -> None:
        """Score the chosen model on the server and, each with the model it uses, on the clients; write everything."""
        best = self.folder.history.best
        chosen = best.round_index if best else self.state.round_index
        if tests is None:
            broadcast = replace(self.aggregator.broadcast(self.state), weights=self._weights_of(chosen))
            counts = ask_for_tests(self.config, registry, replace(info, final=True), broadcast)
            tests = ClientTests(self.state.round_index, counts)
            save_tests(self.folder.path, tests)
            del broadcast
        if (last := self.folder.history.rounds[-1:]) and (sentence := self._spending.sentence(last[0].diagnostics)):
            self.progress.note(sentence)
        results = self._save_models()
        final = final_results(chosen, self.label_names, results.get("val"), results.get("test"), tests.counts, model=self.model.module)
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
            module, weights = self.model.module, self.model.show(self._weights_of(round_index))
            scored, validation = self._validation
            if name == "best" or (scored != round_index and "val" in self.model.splits):
                results = self.model.evaluate(weights)
                validation = results.get("val")
            del weights  # the next one takes its place
            self.folder.save_model(name, module, thresholds_by_label(self.label_names, validation, module))
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
