"""Where a run's curves also go: TensorBoard, MLflow, Weights & Biases, or a class of one's own named by `tracking._target_`.

A tracker is a convenience, never a reason to lose a run: it works in a thread of its own behind a bounded queue. One that
fails or hangs is left behind with one warning, and the run goes on. Only a tracker whose package is missing is an error,
before anything has been trained.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import queue
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fedmap.errors import ConfigError, FederationError
from fedmap.history import FAILED, REJECTED, FinalResults, RoundRecord, Scores

log = logging.getLogger("fedmap.tracking")
QUEUE_SIZE = 1000
FLUSH_SECONDS = 10.0


class Tracker:
    """The interface, and the tracker that keeps nothing. The constructor only checks; work begins with `start`."""

    def start(self, folder: Path, config: Mapping[str, Any]) -> None:
        """The run begins.

        Args:
            folder: the run's folder.
            config: the resolved configuration without secrets.
        """

    def round_done(self, record: RoundRecord) -> None:
        """A round has ended."""

    def finish(self, final: FinalResults) -> None:
        """The run has its final results."""

    def close(self) -> None:
        """Nothing more will come, whether the run went well or not."""


def round_metrics(record: RoundRecord) -> dict[str, float]:
    """A round's numbers by slash-separated name, those alone that are known."""
    values: dict[str, float | None] = {"train/loss": record.train_loss}
    for name in ("validation", "test", "validation_tuned", "clients_validation"):
        values |= _scores(name, getattr(record, name))
    for client in record.clients:
        values[f"weight/client_{client.client_id}"] = client.weight
    values |= {f"diagnostics/{name}": value for name, value in record.diagnostics.items()}
    values |= {f"seconds/{name}": value for name, value in record.seconds.items()}
    values["clients/ok"] = record.num_ok
    for status in (FAILED, REJECTED):
        values[f"clients/{status}"] = sum(client.status == status for client in record.clients)
    return {name: float(value) for name, value in values.items() if value is not None}


def final_metrics(final: FinalResults) -> dict[str, float]:
    """The final numbers by slash-separated name."""
    values: dict[str, float | None] = {"final/chosen_round": final.chosen_round, "final/mean_client_macro_f1": final.mean_client_macro_f1}
    for name in ("validation", "test", "test_tuned"):
        values |= _scores(f"final/{name}", getattr(final, name))
    return {name: float(value) for name, value in values.items() if value is not None}


def _scores(name: str, scores: Scores | None) -> dict[str, float | None]:
    if scores is None:
        return {}
    return {f"{name}/{score}": getattr(scores, score) for score in ("macro_f1", "micro_f1", "weighted_f1", "samples_f1", "loss")}


class TensorBoardTracker(Tracker):
    """Event files in <run>/tensorboard."""

    def __init__(self) -> None:
        self._module = _require("torch.utils.tensorboard", "tensorboard", "tensorboard")
        self._writer: Any = None
        self._last = 0

    def start(self, folder: Path, config: Mapping[str, Any]) -> None:
        """See `Tracker`."""
        self._writer = self._module.SummaryWriter(str(folder / "tensorboard"))

    def round_done(self, record: RoundRecord) -> None:
        """See `Tracker`."""
        self._last = record.round_index
        self._add(round_metrics(record))

    def finish(self, final: FinalResults) -> None:
        """See `Tracker`."""
        self._add(final_metrics(final))

    def close(self) -> None:
        """See `Tracker`."""
        if self._writer is not None:
            self._writer.close()

    def _add(self, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, self._last)
        self._writer.flush()


class MLflowTracker(Tracker):
    """One MLflow run, named after the run's folder."""

    def __init__(self, tracking_uri: str | None = None, experiment: str = "fedmap") -> None:
        self._module = _require("mlflow", "mlflow", "mlflow")
        self._uri, self._experiment = tracking_uri, experiment
        self._client: Any = None
        self._run = ""
        self._last = 0
        self._status = "FAILED"

    def start(self, folder: Path, config: Mapping[str, Any]) -> None:
        """See `Tracker`."""
        self._client = self._module.MlflowClient(tracking_uri=self._uri)
        known = self._client.get_experiment_by_name(self._experiment)
        number = known.experiment_id if known else self._client.create_experiment(self._experiment)
        self._run = self._client.create_run(number, run_name="_".join(folder.parts[-2:])).info.run_id
        for name, value in _flat(config).items():
            self._client.log_param(self._run, name, str(value)[:500])

    def round_done(self, record: RoundRecord) -> None:
        """See `Tracker`."""
        self._last = record.round_index
        self._add(round_metrics(record))

    def finish(self, final: FinalResults) -> None:
        """See `Tracker`."""
        self._status = "FINISHED"
        self._add(final_metrics(final))

    def close(self) -> None:
        """See `Tracker`."""
        if self._run:
            self._client.set_terminated(self._run, status=self._status)

    def _add(self, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._client.log_metric(self._run, name, value, step=self._last)


class WandbTracker(Tracker):
    """One Weights & Biases run, named after the run's folder."""

    def __init__(self, project: str = "fedmap", mode: str = "offline") -> None:
        if mode not in ("offline", "online"):
            raise ConfigError(f"tracking.mode={mode!r}: expected offline or online")
        self._module = _require("wandb", "wandb", "wandb")
        self._project, self._mode = project, mode
        self._run: Any = None
        self._last = 0
        self._failed = True

    def start(self, folder: Path, config: Mapping[str, Any]) -> None:
        """See `Tracker`."""
        name = "_".join(folder.parts[-2:])
        self._run = self._module.init(project=self._project, mode=self._mode, name=name, dir=str(folder), config=dict(config))

    def round_done(self, record: RoundRecord) -> None:
        """See `Tracker`."""
        self._last = record.round_index
        self._run.log(round_metrics(record), step=self._last)

    def finish(self, final: FinalResults) -> None:
        """See `Tracker`."""
        self._failed = False
        self._run.summary.update(final_metrics(final))

    def close(self) -> None:
        """See `Tracker`."""
        if self._run is not None:
            self._run.finish(exit_code=int(self._failed))


class BackgroundTracker(Tracker):
    """Any tracker, in a thread of its own: its calls return at once, and its failures are one warning."""

    def __init__(self, tracker: Tracker, flush_seconds: float = FLUSH_SECONDS, queue_size: int = QUEUE_SIZE) -> None:
        self._tracker = tracker
        self._flush_seconds = flush_seconds
        self._queue: queue.Queue[Callable[[], None] | None] = queue.Queue(queue_size)
        self._warned = threading.Lock()
        self._broken = threading.Event()
        self._thread = threading.Thread(target=self._work, name="fedmap-tracking", daemon=True)

    def start(self, folder: Path, config: Mapping[str, Any]) -> None:
        """See `Tracker`."""
        self._thread.start()
        self._put(lambda: self._tracker.start(folder, config))

    def round_done(self, record: RoundRecord) -> None:
        """See `Tracker`."""
        self._put(lambda: self._tracker.round_done(record))

    def finish(self, final: FinalResults) -> None:
        """See `Tracker`."""
        self._put(lambda: self._tracker.finish(final))

    def close(self) -> None:
        """Wait at most `flush_seconds` for what is still queued. May be called twice."""
        if not self._thread.is_alive():
            return
        self._put(self._tracker.close)
        with contextlib.suppress(queue.Full):  # `_put` has warned already
            self._queue.put_nowait(None)
        self._thread.join(self._flush_seconds)
        if self._thread.is_alive():
            self._break(f"it did not finish within {self._flush_seconds:g} s")

    def _put(self, call: Callable[[], None]) -> None:
        if self._broken.is_set():
            return
        try:
            self._queue.put_nowait(call)
        except queue.Full:
            self._break(f"it is {self._queue.maxsize} calls behind")

    def _work(self) -> None:
        while (call := self._queue.get()) is not None:
            if self._broken.is_set():
                continue
            try:
                call()
            except Exception as error:
                self._break(f"{type(error).__name__}: {error}")

    def _break(self, reason: str) -> None:
        self._broken.set()
        if self._warned.acquire(blocking=False):
            name = type(self._tracker).__name__
            log.warning("%s is left behind, the run goes on without it and its own files are complete: %s", name, reason)


def make_tracker(tracking: Mapping[str, Any] | None) -> Tracker:
    """The tracker that the configuration's `tracking` node names, behind a thread of its own.

    Raises:
        ConfigError: there is no such class, its arguments are wrong, or its package is not installed.
    """
    node = dict(tracking or {})
    path = str(node.pop("_target_", "") or "fedmap.tracking.Tracker")
    module_name, _, name = path.rpartition(".")
    try:
        kind = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"tracking._target_={path!r} cannot be imported ({error}); use tracking=none or a module.Class") from error
    if not (isinstance(kind, type) and issubclass(kind, Tracker)):
        raise ConfigError(f"tracking._target_={path!r} is not a subclass of fedmap.tracking.Tracker")
    if kind is Tracker:
        return Tracker()
    try:
        return BackgroundTracker(kind(**node))
    except FederationError:
        raise
    except Exception as error:
        raise ConfigError(f"tracking._target_={path!r} cannot be made: {error}; tracking=none goes without it") from error


def _require(module: str, what: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"tracking={what} needs a package that is not installed: pip install {package}, or set tracking=none ({error})"
        ) from error


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, Mapping):
            flat |= _flat(item, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = item
    return flat
