"""The folder of a run. Everything is written whole or not at all, after every round, so that a killed run leaves true files.

    config.yaml     the resolved configuration; values of secret keys are replaced by ***
    versions.json   {"software": Python, packages and commit; "machine": the kind of machine}
    run.json        {"id": the name under which clients keep their memories of the run}
    checkpoints/    what a stopped run continues from, see `fedmap.checkpoint`; may be removed once a run has finished
    results.json    see below
    results.csv     one row per round
    clients.csv     one row per round and client
    last/, best/    the model after the last round, and after the round with the best validation macro-F1
    plots/, report.md, report.html    written at the end, see `fedmap.report`; each model gets a README.md, its card

results.json (schema_version 1) is `fedmap.history.RunHistory` as an object, field by field under the attributes' names:

    schema_version  1
    status          "running" (also what a killed run leaves), "finished" or "failed"; reason: why it failed
    label_names     the C labels in the order of the model's outputs
    best_round      the round whose model is in best/, or null
    rounds          list of {round_index, seconds {phase: s}, validation, test, validation_tuned, clients_validation, clients,
                    diagnostics, notes, label_f1 (by label, on the validation split, at tuned thresholds)};
                    scores are null or {micro_f1, macro_f1, weighted_f1, samples_f1, num_samples, loss};
                    a client is {client_id, status, reason, weight, num_examples, num_steps, signals, scores, scalars, seconds,
                    bytes_up, bytes_down, code, remarks {code: sentence}}; codes are those of `fedmap.reasons`, and signals those of `fedmap.records.ClientSignals`
    final           null until the end, then {chosen_round, validation, test, test_tuned, thresholds {label: t}, labels
                    [{label, support, precision, recall, f1, threshold}], clients {id: scores}}

A number that is not known or not finite is null. Scores of the test split are reported and never used to choose.
"""

from __future__ import annotations

import json
import re
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from fedmap.errors import DataError
from fedmap.files import plain, typed, unwritable, write_json, write_text
from fedmap.history import FinalResults, RoundRecord, RunHistory
from fedmap.result_files import SCHEMA_VERSION, ResultFiles
from fedmap.scoring import final_results as final_results  # a run ends with `run.finish(final_results(...))`
from fedmap.tracking import Tracker, make_tracker
from fedmap.versions import machine, versions

if TYPE_CHECKING:
    from torch import nn

SECRET = re.compile(r"(^|[_.-])(token|secrets?|passwords?|passwd|credentials?|(api|access|private|secret)_?keys?)($|[_.-])")
HIDDEN = "***"


class RunFolder:
    """Writes one run's folder: `start`, `add_round` after every round, and `finish` or `fail`.

    Attributes:
        path: the folder; made if it does not exist.
        history: the run so far.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.history = RunHistory()
        self._tracker = Tracker()
        self._files = ResultFiles(self.path)

    def start(self, config: Any, label_names: Sequence[str], history: RunHistory | None = None, run_id: str = "") -> None:
        """Write what is known before the first round, and start the tracker that the configuration names.

        Args:
            config: the run's configuration: a DictConfig or a mapping.
            label_names: in the order of the model's outputs.
            history: of the same run before it was stopped, when it is resumed.
            run_id: the name under which clients keep their memories of the run.

        Raises:
            ConfigError: `tracking` names something that cannot be had.
        """
        shown = redacted(config)
        self._tracker = make_tracker(_tracking(config))
        self._tracker.start(self.path, shown)
        self.history = (history or RunHistory(label_names=tuple(label_names))).packed()
        self._files = ResultFiles(self.path)
        write_text(self.path / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(plain(shown))))
        for left in self.path.glob(".*.tmp"):  # by a run that was killed while it wrote
            left.unlink(missing_ok=True)
        if run_id:
            write_json(self.path / "run.json", {"id": run_id})
        write_json(self.path / "versions.json", {"software": versions(), "machine": machine()})
        self._files.write(self.history)

    def add_round(self, record: RoundRecord, model: nn.Module | None = None, thresholds: Mapping[str, float] | None = None) -> bool:
        """Add a round and write everything anew.

        Args:
            record: the round.
            model: the global model after it, saved as `last`, and as `best` if the round is the best so far.
            thresholds: by label, tuned on the validation split; saved with the model. A label without one has 0.5.

        Returns:
            Whether this round is the best so far on the validation split.
        """
        if record.round_index <= self._files.last_round:  # rounds are undone
            self._files = ResultFiles(self.path)
        self.history = self.history.with_round(record)
        best = self.history.best_round() == record.round_index
        if model is not None:
            self.save_model("last", model, thresholds)
            if best:
                _copy_folder(self.path / "last", self.path / "best")
        self._files.write(self.history, record)
        self._tracker.round_done(record)
        return best

    def finish(self, final: FinalResults) -> None:
        """Write the final results, then the report and the plots. A report that cannot be drawn is a warning, not a failure."""
        from fedmap.report import write_report

        self._end("finished", "", final)
        self._tracker.finish(final)
        self._tracker.close()
        self._describe(write_report)

    def fail(self, reason: str) -> None:
        """Note why the run ended early; the rounds so far stay as they are."""
        from fedmap.report.card import write_cards

        self._end("failed", reason, None)
        self._tracker.close()
        self._describe(write_cards)

    def _describe(self, write: Callable[[Path], object]) -> None:
        try:
            write(self.path)
        except Exception as error:  # the run's results are safe already, whatever a plotting library says
            warnings.warn(f"the report of {self.path} could not be written: {error!r}", RuntimeWarning, stacklevel=3)

    def save_model(self, name: str, model: nn.Module, thresholds: Mapping[str, float] | None = None) -> Path:
        """Write a model's folder, replacing an older one of that name, and return its path.

        Raises:
            StorageError: it cannot be written; an older one is as it was.
        """
        from safetensors import SafetensorError

        target = self.path / name
        try:
            fresh = _fresh(target)
            save = getattr(model, "save_pretrained", None)
            if callable(save):
                names, known = self.history.label_names, thresholds or {}
                save(fresh, label_names=list(names), thresholds=[known.get(name, 0.5) for name in names])
            else:
                _save_plain(fresh, model, self.history.label_names, thresholds or {})
            _swap(fresh, target)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(_place_of_fresh(target), ignore_errors=True)
            raise unwritable(target, error) from error
        return target

    def _end(self, status: str, reason: str, final: FinalResults | None) -> None:
        self.history = RunHistory(self.history.label_names, self.history.rounds, final, status, reason)
        self._files.write(self.history)


def read_history(path: Path) -> RunHistory:
    """The history in a run's folder.

    Raises:
        DataError: there is no results.json, or it is not one of this schema.
    """
    file = Path(path) / "results.json"
    try:
        document = json.loads(file.read_text())
    except FileNotFoundError as error:
        raise DataError(f"{file} does not exist; give the folder of a run, e.g. outputs/<date>/<time>") from error
    except ValueError as error:
        raise DataError(f"{file} is not JSON: {error}") from error
    if not isinstance(document, dict) or document.get("schema_version") != SCHEMA_VERSION:
        raise DataError(f"{file} has not schema_version {SCHEMA_VERSION}; it was written by another version of FedMAP")
    names = {field.name for field in fields(RunHistory)}
    return typed(RunHistory, {key: value for key, value in document.items() if key in names}, str(file))


def run_id(path: Path) -> str:
    """The name under which clients keep their memories of a run.

    Raises:
        DataError: the folder does not say.
    """
    file = Path(path) / "run.json"
    try:
        return str(json.loads(file.read_text())["id"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file} does not say the run's id ({error}); give the folder of a run, e.g. outputs/<date>/<time>") from error


def redacted(config: Any) -> Any:
    """A configuration as plain values, with *** for each value under a key like token, secret, password or api_key, and for
    a password within a URL.
    """
    value = OmegaConf.to_container(config, resolve=True, throw_on_missing=False) if OmegaConf.is_config(config) else config
    return _redact(value, hide=False)


def _tracking(config: Any) -> Any:
    node = config.get("tracking") if hasattr(config, "get") else None
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node


def _redact(value: Any, hide: bool) -> Any:
    if isinstance(value, Mapping):
        return {key: _redact(item, hide or _is_secret(str(key))) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_redact(item, hide) for item in value]
    if hide and value not in (None, "", False, True):
        return HIDDEN
    if isinstance(value, str):
        return re.sub(r"(://[^/@:\s]*:)[^/@\s]+@", rf"\1{HIDDEN}@", value)
    return value


def _is_secret(key: str) -> bool:
    return SECRET.search(re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", key).lower()) is not None


def _save_plain(folder: Path, model: nn.Module, label_names: Sequence[str], thresholds: Mapping[str, float]) -> None:
    from safetensors.torch import save_model

    folder.mkdir(parents=True)
    save_model(model, str(folder / "model.safetensors"))
    kind = f"{type(model).__module__}.{type(model).__qualname__}"
    write_json(folder / "config.json", {"model": kind, "label_names": list(label_names), "thresholds": dict(thresholds)})


def _fresh(target: Path) -> Path:
    fresh = _place_of_fresh(target)
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.parent.mkdir(parents=True, exist_ok=True)
    return fresh


def _place_of_fresh(target: Path) -> Path:
    return target.with_name(f".{target.name}.new")


def _copy_folder(source: Path, target: Path) -> None:
    fresh = _fresh(target)
    shutil.copytree(source, fresh)
    _swap(fresh, target)


def _swap(fresh: Path, target: Path) -> None:
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    fresh.rename(target)
    shutil.rmtree(old, ignore_errors=True)
