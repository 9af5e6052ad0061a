"""Predictions in a process of their own, for a server: one at a time, few waiting, and nothing of it in the server's memory.

A model that is loaded or asked draws on torch's global generator and threads. Beside a federation that trains in the same process
that would change its results; a process apart, with a low priority, cannot.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from fedmap.errors import DataError, FederationError, ModelError

_KEPT = 2  # models that stay loaded
_KINDS: Mapping[str, type[FederationError]] = {"DataError": DataError, "error": FederationError}


class BusyError(FederationError):
    """More predictions are wanted at once than may wait, or one took too long."""


@dataclass(frozen=True)
class Question:
    """One prediction; see `Predictor.open` and `answer`."""

    run: Path
    which: str = "best"
    client: int | None = None
    text: str | None = None
    poster: bytes | None = field(default=None, repr=False)
    explained: bool = False


@dataclass
class Worker:
    """Answers questions from any thread, one after the other, in a process that starts with the first.

    Attributes:
        waiting: questions that may wait for their turn; one more is refused.
        seconds: the longest that a question may take; its process is then ended.
        idle: seconds without questions after which the process ends and gives its memory back.
    """

    waiting: int = 8
    seconds: float = 120.0
    idle: float = 600.0
    _process: BaseProcess | None = field(default=None, init=False)
    _pipe: Connection | None = field(default=None, init=False)
    _closed: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self._places = threading.BoundedSemaphore(self.waiting + 1)
        self._turn = threading.Lock()

    def ask(self, question: Question) -> dict[str, Any]:
        """The answer as `Answer.document` gives it.

        Raises:
            BusyError: too many questions wait already, or this one took longer than `seconds`.
            DataError: nothing was given, or the picture or the run cannot be read.
            ModelError: there is no such model.
            FederationError: the process ended or met an error of its own.
        """
        if not self._places.acquire(blocking=False):
            raise BusyError(f"{self.waiting + 1} predictions are under way or waiting already; try again in a moment")
        try:
            with self._turn:
                if self._closed:
                    raise BusyError("the server is about to end")
                return self._exchange(question)
        finally:
            self._places.release()

    def _exchange(self, question: Question, again: bool = True) -> dict[str, Any]:
        pipe = self._started()
        try:
            pipe.send(question)
            if not pipe.poll(self.seconds):
                self._end()
                raise BusyError(f"the prediction took longer than {self.seconds:g} s and was given up")
            kind, content = pipe.recv()
        except (EOFError, OSError) as error:
            if self._end() == 0 and again:  # it was about to leave for want of questions
                return self._exchange(question, again=False)
            raise FederationError("the process that predicts has ended, maybe for want of memory; try again") from error
        if kind == "answer":
            return dict(content)
        raise _KINDS.get(kind, ModelError)(content)

    def _started(self) -> Connection:
        if self._pipe is not None and self._process is not None and self._process.is_alive():
            return self._pipe
        self._end()
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, self.idle), name="fedmap-predictions", daemon=True)
        process.start()
        theirs.close()  # so that the end of either process is seen by the other
        self._process, self._pipe = process, ours
        return ours

    def _end(self) -> int | None:
        """End the process, and return its exit code if it has ended by itself."""
        code = None
        if self._pipe is not None:
            self._pipe.close()
        if self._process is not None:
            self._process.join(timeout=0.5)
            code = self._process.exitcode
            if code is None:
                self._process.terminate()
                self._process.join(timeout=5)
            if self._process.is_alive():
                self._process.kill()
                self._process.join()
            self._process.close()
        self._process = self._pipe = None
        return code

    def close(self) -> None:
        """End the process at once, whatever it is doing; nothing can be asked any more."""
        self._closed = True
        process = self._process
        if process is not None:
            with suppress(ValueError):  # it has been closed already
                process.kill()
                process.join(timeout=5)


def _serve(pipe: Connection, idle: float) -> None:
    """Answer until the other side closes its end or nothing has come for `idle` seconds."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the server ends this process when it is interrupted
    with suppress(OSError, AttributeError):
        os.nice(10)
    import torch

    torch.set_num_threads(1)
    models: OrderedDict[tuple[object, ...], Any] = OrderedDict()
    with suppress(EOFError, OSError):
        while pipe.poll(idle):
            pipe.send(_reply(pipe.recv(), models))


def _reply(question: Question, models: OrderedDict[tuple[object, ...], Any]) -> tuple[str, Any]:
    from fedmap.prediction.answer import answer

    try:
        predictor = _model(question, models)
        return "answer", answer(predictor, question.text, question.poster, explained=question.explained).document()
    except FederationError as error:
        return type(error).__name__, str(error)
    except Exception as error:  # a model of the user's own may raise anything
        return "error", f"the model could not be asked: {type(error).__name__}: {error}"


def _model(question: Question, models: OrderedDict[tuple[object, ...], Any]) -> Any:
    from fedmap.prediction.predictor import Predictor

    file = question.run / question.which / "model.safetensors"
    written = file.stat().st_mtime_ns if file.is_file() else 0  # a running federation replaces its models
    key = (question.run, question.which, question.client, written)
    if key not in models:
        for old in [known for known in models if known[:3] == key[:3]]:
            del models[old]
        while len(models) >= _KEPT:
            models.popitem(last=False)
        models[key] = Predictor.open(question.run, question.which, question.client)
    models.move_to_end(key)
    return models[key]
