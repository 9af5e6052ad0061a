"""The Flower ClientApp: answers the server's query, train and evaluate messages, in the local runtime and deployed alike."""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedmap.compression.parcels import pack_update
from fedmap.errors import CheckpointError, ClientMemoryError, DataError, FederationError, StorageError
from fedmap.files import plain
from fedmap.flower import resident
from fedmap.flower.crates import CRATE, crate, uncrate
from fedmap.flower.events import append
from fedmap.flower.parcels import compression_of
from fedmap.flower.wire import (
    RunInfo,
    card_to_content,
    content_to_broadcast,
    content_to_run,
    counts_to_content,
    problem_to_content,
    round_of,
    update_to_content,
)

log = logging.getLogger("fedmap.client")
app = ClientApp()
_ABOUT_FILES = (CheckpointError, DataError, StorageError)
_PATH = re.compile(r"\S*[/\\]\S*")
_REPORT_SECONDS = 10.0  # a long round of training says how far it is this often


def _answer(message: Message, context: Context, work: Callable[[Any, int, RunInfo], Any]) -> Message:
    """Run `work(session, client_id, run)` and answer with its content, or with the problem that stopped it.

    Every exception becomes an answer, so that the server can say which client failed and why instead of waiting.
    """
    client_id = int(context.node_config.get("client-id", -1))
    asked = message.metadata.message_type
    try:
        if (answered := resident.answer(message, context)) is not None:
            return answered
        from fedmap.flower.session import session_of  # torch and all: not where the resident has it

        crated = CRATE in message.content
        message.content = uncrate(message.content)
        run = content_to_run(message.content)
        session, client_id = session_of(context)
        content = work(session, client_id, run)
        return Message(crate(content) if crated else content, reply_to=message)
    except Exception as error:
        problem = _out_of_memory(error, asked) or error
        expected = isinstance(problem, FederationError)  # its sentence is enough; anything else is a bug with a place
        log.error("client %d cannot answer the server's %s message: %s", client_id, asked, problem, exc_info=None if expected else error)
        _tell(context, "problem", kind=type(problem).__name__, message=str(problem), asked=asked)
        return Message(problem_to_content(client_id, problem, _for_the_server(problem, context)), reply_to=message)


def _for_the_server(problem: Exception, context: Context) -> str:
    """What of a problem's sentence leaves this machine: nothing that could name a file, a row or a value of the client's data."""
    node = context.node_config
    if "config" in node and "events" not in node:  # the local runtime: the server is on this machine
        return str(problem)
    if not isinstance(problem, FederationError) or isinstance(problem, _ABOUT_FILES):
        return "what it says stays with the client: see its own log"
    return _PATH.sub("(a path of the client's)", str(problem))


def _out_of_memory(error: Exception, asked: str) -> FederationError | None:
    """What to say where memory was too small, on the processor or on a GPU; what takes most of it is given back first."""
    from fedmap.flower.session import forget_sessions

    text = str(error)
    if not isinstance(error, MemoryError) and "out of memory" not in text and "can't allocate memory" not in text:
        return None
    error.__traceback__ = None  # it holds every array of the failed step
    forget_sessions()
    detail = f" ({text.strip().splitlines()[-1][:200]})" if text.strip() else ""
    return ClientMemoryError(
        f"out of memory while it answered the server's {asked} message{detail}; give the client more memory, or set a smaller batch_size"
    )


@app.query()
def query(message: Message, context: Context) -> Message:
    """Say who this client is and what it has; data is read and prepared here, before the first round."""

    def work(session: Any, client_id: int, run: RunInfo) -> Any:
        card = session.card(client_id)
        session.tidy(run)
        _tell(context, "joined", run=run.run_name, num_rounds=run.num_rounds, num_train=card.num_train)
        return card_to_content(card)

    return _answer(message, context, work)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train one round."""

    def work(session: Any, client_id: int, run: RunInfo) -> Any:
        from fedmap.flower.feedback import residuals_of, with_residuals

        trained = session.trained(client_id, round_of(message.content))
        broadcast = trained.broadcast if trained else content_to_broadcast(message.content, session.shapes())
        _tell(context, "training", round=broadcast.round_index, num_rounds=run.num_rounds)
        told = time.monotonic()

        def on_step(steps: int, loss: float) -> None:
            nonlocal told
            if time.monotonic() - told > _REPORT_SECONDS:
                told = time.monotonic()
                _tell(context, "step", round=broadcast.round_index, num_rounds=run.num_rounds, steps=steps, loss=loss)

        memories = session.memories(client_id, run)
        before = memories.before(broadcast.round_index)
        update, memory = session.client(client_id, run, trained).train_round(broadcast, before, on_step)
        parcels, residuals = pack_update(update, broadcast, compression_of(message.content), run.seed, residuals_of(before))
        memories.keep(broadcast.round_index, with_residuals(memory, residuals), run.oldest)
        _tell(
            context,
            "trained",
            round=broadcast.round_index,
            num_rounds=run.num_rounds,
            loss=update.signals.train_loss,
            f1=update.signals.f1_after,
            micro_f1=counts.micro_f1 if (counts := update.counts.get("val-after")) and counts.num_samples else None,
            val_loss=update.signals.validation_loss,
            num_examples=update.num_examples,
            seconds=update.seconds.get("train"),
        )
        return update_to_content(update, parcels)

    return _answer(message, context, work)


def train_together(messages: Sequence[Message], contexts: Sequence[Context]) -> None:
    """Train the clients of several train messages with one content at once, so that each message then finds its client trained.

    Whatever goes wrong here, each client then trains by itself, so that a problem of one is no other's.
    """
    try:
        from fedmap.flower.session import session_of

        found = [session_of(context) for context in contexts]
        (session, _), content = found[0], messages[0].content
        session.train_together(
            [client_id for _, client_id in found], content_to_broadcast(content, session.shapes()), content_to_run(content)
        )
    except Exception as error:
        log.warning("%d clients train one after another and not together: %s", len(messages), _out_of_memory(error, "train") or error)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Score the model this client uses on its own test split; with privacy nothing is scored, and nothing told."""

    def work(session: Any, client_id: int, run: RunInfo) -> Any:
        if session.config.privacy.wanted:
            _tell(context, "finished" if run.final else "evaluated", round=run.num_rounds)
            return counts_to_content(client_id, {})
        broadcast = content_to_broadcast(message.content, session.shapes())
        memory = session.memories(client_id, run).before(broadcast.round_index)
        result = session.client(client_id, run).evaluate_round(broadcast, memory, "test")
        scores = {**result.counts.scores(), "num_test": result.counts.num_samples, "loss": result.loss}
        _tell(context, "finished" if run.final else "evaluated", round=min(broadcast.round_index, run.num_rounds), **scores)
        return counts_to_content(client_id, {"test": result.counts})

    return _answer(message, context, work)


def _tell(context: Context, event: str, **values: Any) -> None:
    """Append an event to the file that client_main.py watches, if there is one."""
    path = context.node_config.get("events")
    if not path:
        return
    line = json.dumps(plain({"event": event, "time": time.time(), **values})) + "\n"
    try:
        append(Path(str(path)), line)
    except OSError as error:  # a full disk stops no training
        log.error("%s cannot be written (%s): client_main.py does not hear of %r", path, error.strerror, event)
