"""Records to Flower messages and back. Keys on the wire are kebab-case; whatever arrives is checked before it is believed.

| message  | server to client                                   | client to server                                          |
| -------- | -------------------------------------------------- | --------------------------------------------------------- |
| query    | "round": the run                                   | "client": identity, rows, labels, modalities              |
| train    | "weights", "extra.<group>", "round", "scalars"     | "weights", "extra.<group>", "client", "signals", "counts.<split>" |
| evaluate | as train                                           | "client", "counts.<split>"                                |

Arrays may be packed on their way (`fedmap.flower.parcels`): a train message then has a record "compression", too.

A client that cannot do its part answers with a record "problem" instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, cast

from flwr.app import Array, ConfigRecord, MetricRecord, RecordDict

from fedmap.compression import Compression
from fedmap.compression.parcels import WEIGHTS, Parcel, Parcels, Shapes, pack_broadcast, unpack_broadcast, unpack_update
from fedmap.errors import DataError, UpdateError
from fedmap.flower.parcels import compression_of, filled, of_kind, parcels_of, put_compression, put_parcels
from fedmap.guard.form import Form, check_size
from fedmap.metrics import MultilabelCounts
from fedmap.reasons import Reason
from fedmap.records import Broadcast, ClientSignals, ClientUpdate, Scalar

PLAIN = Compression()
_LONGEST_PROBLEM = 2000  # letters of a client's own words that are kept


@dataclass(frozen=True)
class RunInfo:
    """What every message says about the run.

    Attributes:
        run_name: names the run; a client keeps its memory under it.
        seed: the federation's seed, which decides the order of a client's batches.
        num_rounds: rounds in all.
        final: whether this is the last message of the run.
        oldest: the server may go back to the end of this round, and no further; 0 is before the first.
    """

    run_name: str
    seed: int
    num_rounds: int
    final: bool = False
    oldest: int = 0


@dataclass(frozen=True)
class ClientCard:
    """What a client says about itself when it joins.

    Attributes:
        client_id: its stable number.
        num_train: rows it trains on.
        num_val: rows of its validation split.
        num_test: rows of its test split.
        label_names: the labels, in the order of the model's outputs.
        modality_shares: share of training rows that have each modality.
        model_names: the names of the tensors it shares, to compare with the server's.
        fingerprint: of the frozen towers, which are not sent and must be the same everywhere; empty where there are none.
    """

    client_id: int
    num_train: int
    num_val: int
    num_test: int
    label_names: tuple[str, ...]
    modality_shares: Mapping[str, float]
    model_names: tuple[str, ...]
    fingerprint: str = ""


def _config(content: RecordDict, key: str) -> Mapping[str, Any]:
    record = content[key]
    if not isinstance(record, ConfigRecord):
        raise KeyError(key)
    return cast(Mapping[str, Any], record)


def broadcast_to_content(broadcast: Broadcast, run: RunInfo, compression: Compression = PLAIN) -> RecordDict:
    """A broadcast as the content of a train or evaluate message; `compression` is for training, and also says how to answer."""
    content = run_to_content(run)
    put_parcels(content, pack_broadcast(broadcast, compression, run.seed))
    if compression != PLAIN:
        put_compression(content, compression)
    of_kind(content, ConfigRecord)["round"].update({"index": broadcast.round_index, "rule": broadcast.rule})
    content["scalars"] = ConfigRecord(dict(broadcast.scalars))
    return content


def content_to_broadcast(content: RecordDict, shapes: Shapes | None = None) -> Broadcast:
    """The inverse of `broadcast_to_content`, as far as the compression allows.

    Args:
        content: of a train or evaluate message.
        shapes: of the receiver's own model, by name, which tell how packed arrays lie.

    Raises:
        UpdateError: packed arrays do not fit the model.
    """
    place = _config(content, "round")
    scalars: dict[str, Scalar] = dict(_config(content, "scalars"))
    groups = unpack_broadcast(parcels_of(content), compression_of(content), shapes or {})
    return Broadcast(round_index=int(place["index"]), weights=groups.pop(WEIGHTS), rule=str(place["rule"]), extras=groups, scalars=scalars)


def round_of(content: RecordDict) -> int:
    """The round that a train or evaluate message is about."""
    return int(_config(content, "round")["index"])


def run_to_content(run: RunInfo) -> RecordDict:
    """The content of a query message."""
    place = ConfigRecord({"run-name": run.run_name, "seed": run.seed, "num-rounds": run.num_rounds, "final": run.final})
    place["oldest"] = run.oldest
    return RecordDict({"round": place})


def content_to_run(content: RecordDict) -> RunInfo:
    """What a message says about the run."""
    place = _config(content, "round")
    return RunInfo(
        run_name=str(place["run-name"]),
        seed=int(place["seed"]),
        num_rounds=int(place["num-rounds"]),
        final=bool(place["final"]),
        oldest=int(place["oldest"]),
    )


def card_to_content(card: ClientCard) -> RecordDict:
    """A client's card as the content of a reply."""
    return RecordDict(
        {
            "client": ConfigRecord(
                {
                    "client-id": card.client_id,
                    "num-train": card.num_train,
                    "num-val": card.num_val,
                    "num-test": card.num_test,
                    "label-names": list(card.label_names),
                    "modality-names": list(card.modality_shares),
                    "modality-shares": list(card.modality_shares.values()),
                    "model-names": list(card.model_names),
                    "fingerprint": card.fingerprint,
                }
            )
        }
    )


def content_to_card(content: RecordDict) -> ClientCard:
    """The inverse of `card_to_content`.

    Raises:
        UpdateError: the client answered with a problem, or with something else than a card.
    """
    raise_problem(content)
    try:
        record = _config(content, "client")
        names, shares = list(record["modality-names"]), list(record["modality-shares"])
        return ClientCard(
            client_id=int(record["client-id"]),
            num_train=int(record["num-train"]),
            num_val=int(record["num-val"]),
            num_test=int(record["num-test"]),
            label_names=tuple(str(name) for name in record["label-names"]),
            modality_shares={str(n): float(s) for n, s in zip(names, shares, strict=True)},
            model_names=tuple(str(name) for name in record["model-names"]),
            fingerprint=str(record["fingerprint"]),
        )
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise UpdateError(f"the client's answer to the server's first question is malformed: {error!r}") from error


def problem_to_content(client_id: int, error: BaseException, words: str | None = None) -> RecordDict:
    """An error of a client as the content of a reply; `words` in place of its own sentence."""
    message = str(error) if words is None else words
    return RecordDict({"problem": ConfigRecord({"client-id": client_id, "kind": type(error).__name__, "message": message})})


def raise_problem(content: RecordDict) -> None:
    """Raise the error that a client answered with, if it did.

    Raises:
        UpdateError: with the client's own message.
    """
    if "problem" in content:
        try:
            record = _config(content, "problem")
            sentence = f"{record['kind']}: {record['message']}"
        except (KeyError, TypeError) as error:
            raise UpdateError(f"the client answered with a malformed problem: {error!r:.200}") from error
        raise UpdateError(sentence[:_LONGEST_PROBLEM], Reason.PROBLEM)


def _counts_to(content: RecordDict, counts: Mapping[str, MultilabelCounts]) -> None:
    filled(content, {f"counts.{name}": filled(MetricRecord(), value.to_lists()) for name, value in counts.items()})


def _counts_from(metrics: Mapping[str, MetricRecord], num_labels: int | None) -> dict[str, MultilabelCounts]:
    found = {}
    for key, record in metrics.items():
        if key.startswith("counts."):
            length = len(cast(list[int], record["tp"]))
            if num_labels is not None and length != num_labels:  # before memory is taken for what a client claims
                raise DataError(f"{key} counts {length} labels, expected {num_labels}")
            found[key.removeprefix("counts.")] = MultilabelCounts.from_lists(record)  # type: ignore[arg-type]
    return found


def counts_to_content(client_id: int, counts: Mapping[str, MultilabelCounts]) -> RecordDict:
    """A client's counts as the content of a reply to an evaluate message."""
    content = RecordDict({"client": ConfigRecord({"client-id": client_id})})
    _counts_to(content, counts)
    return content


def content_to_counts(content: RecordDict, num_labels: int | None = None) -> tuple[int, dict[str, MultilabelCounts]]:
    """The inverse of `counts_to_content`.

    Raises:
        UpdateError: the client answered with a problem or a malformed reply.
    """
    raise_problem(content)
    try:
        return int(_config(content, "client")["client-id"]), _counts_from(of_kind(content, MetricRecord), num_labels)
    except (KeyError, TypeError, ValueError, OverflowError, DataError) as error:
        raise UpdateError(f"malformed evaluation reply: {error!r}") from error


_SIGNALS = [f.name for f in fields(ClientSignals) if f.name not in ("modality_shares", "custom")]


def update_to_content(update: ClientUpdate, parcels: Parcels | None = None) -> RecordDict:
    """A client's update as the content of a reply to a train message; `parcels` are its arrays in packed form."""
    signals: dict[str, float] = {
        name.replace("_", "-"): float(value) for name in _SIGNALS if (value := getattr(update.signals, name)) is not None
    }
    signals |= {f"share.{name}": float(share) for name, share in update.signals.modality_shares.items()}
    signals |= {f"custom.{name}": float(value) for name, value in update.signals.custom.items()}
    client = {
        "client-id": update.client_id,
        "round-index": update.round_index,
        "num-examples": update.num_examples,
        "num-steps": update.num_steps,
    }
    numbers = {
        "signals": signals,
        "scalars": {name: float(value) for name, value in update.scalars.items()},
        "seconds": {name: float(value) for name, value in update.seconds.items()},
    }
    records = {name: filled(MetricRecord(), values) for name, values in numbers.items()}
    content = filled(RecordDict(), {"client": filled(ConfigRecord(), client), **records})
    put_parcels(
        content, {WEIGHTS: Parcel(update.weights), **{k: Parcel(v) for k, v in update.extras.items()}} if parcels is None else parcels
    )
    _counts_to(content, {name: counts for name, counts in update.counts.items() if counts.num_samples})
    return content


def memory_of(content: RecordDict) -> int:
    """About how many bytes a content takes, names and numbers included, told from lengths alone."""
    size = 0
    for key, record in content.items():
        size += len(key)
        for name, value in record.items():
            data = value.data if isinstance(value, Array) else value
            size += len(name) + _size(data)
    return size


def _size(data: Any) -> int:
    if isinstance(data, (int, float)):
        return 8
    if isinstance(data, (bytes, str, memoryview)):
        return len(data)
    return 8 * len(data) + sum(len(value) for value in data if isinstance(value, (bytes, str)))


def content_to_update(
    content: RecordDict,
    num_labels: int | None = None,
    sent: Broadcast | None = None,
    compression: Compression = PLAIN,
    form: Form | None = None,
    max_bytes: int | None = None,
) -> ClientUpdate:
    """The inverse of `update_to_content`, as far as the compression allows.

    Args:
        content: of the reply.
        num_labels: how many labels its counts must have.
        sent: the broadcast that it answers; packed arrays are read by its names and shapes alone.
        compression: what the broadcast asked for.
        form: what it has to look like; nothing is allocated for what does not. None believes everything.
        max_bytes: of the whole content; None: what the form takes.

    Raises:
        UpdateError: the client answered with a problem, or with something that is not a valid update; its code says what.
    """
    if form is not None:
        check_size(memory_of(content), form.max_bytes if max_bytes is None else max_bytes)
    raise_problem(content)
    try:
        client = _config(content, "client")
        groups = unpack_update(parcels_of(content, form), sent or Broadcast(0, {}), compression)
        metrics = of_kind(content, MetricRecord)
        signals: dict[str, Any] = dict(metrics["signals"].items())
        return ClientUpdate(
            client_id=_integer(client, "client-id"),
            round_index=_integer(client, "round-index"),
            num_examples=_integer(client, "num-examples"),
            num_steps=_integer(client, "num-steps"),
            weights=groups.pop(WEIGHTS),
            signals=ClientSignals(
                **{name: float(signals[key]) for name in _SIGNALS if (key := name.replace("_", "-")) in signals},
                modality_shares=_prefixed(signals, "share."),
                custom=_prefixed(signals, "custom."),
            ),
            extras=groups,
            scalars={name: float(value) for name, value in metrics["scalars"].items()},  # type: ignore[arg-type]
            counts=_counts_from(metrics, num_labels),
            seconds={name: float(value) for name, value in metrics["seconds"].items()},  # type: ignore[arg-type]
        )
    except UpdateError:
        raise
    except (KeyError, TypeError, ValueError, OverflowError, DataError) as error:
        raise UpdateError(f"malformed update: {error!r:.500}") from error


_CODES = {"client-id": Reason.IDENTITY, "round-index": Reason.ROUND, "num-examples": Reason.EXAMPLES, "num-steps": Reason.STEPS}


def _integer(record: Mapping[str, Any], key: str) -> int:
    value = record[key]
    if isinstance(value, bool) or not isinstance(value, int):
        raise UpdateError(f"{key} must be an integer, got {value!r:.40}", _CODES[key])
    return value


def _prefixed(values: Mapping[str, Any], prefix: str) -> dict[str, float]:
    return {key.removeprefix(prefix): float(value) for key, value in values.items() if key.startswith(prefix)}
