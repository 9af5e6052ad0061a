"""results.json, results.csv and clients.csv of a running federation, see `fedmap.outputs`: a round costs the same however many there were."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from fedmap.files import csv_text, extend, plain, write_csv
from fedmap.history import FAILED, REJECTED, ClientRecord, RoundRecord, RunHistory, Scores
from fedmap.records import ClientSignals

SCHEMA_VERSION = 1
SCORES = tuple(field.name for field in fields(Scores))
SIGNALS = tuple(field.name for field in fields(ClientSignals) if field.name not in ("modality_shares", "custom"))


class ResultFiles:
    """Writes the three files of one run's folder: what is new goes behind what is there, and each file is replaced in one step."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._forget()

    def _forget(self) -> None:
        self._rows: list[dict[str, Any]] = []  # of results.csv
        self._columns: list[str] = []  # of clients.csv
        self._results_size = 0  # bytes of results.json up to the end of the last round
        self._clients_size = 0  # bytes of clients.csv

    @property
    def last_round(self) -> int:
        """The last round that is written; -1 if none is."""
        return int(self._rows[-1]["round"]) if self._rows else -1

    def write(self, history: RunHistory, newest: RoundRecord | None = None) -> None:
        """Write what the history has more than at the last call; everything after a call that failed.

        Args:
            history: the run so far.
            newest: its last round, so that it need not be unpacked.

        Raises:
            StorageError: a file cannot be written; each is as it was or as it should be.
        """
        alone = newest is not None and len(history.rounds) == len(self._rows) + 1
        new = (newest,) if alone and newest is not None else history.rounds[len(self._rows) :]
        try:
            self._write_results(history, new)
            self._write_rounds(history, new)
            self._write_clients(history, new)
        except BaseException:
            self._forget()
            raise

    def _write_results(self, history: RunHistory, new: Sequence[RoundRecord]) -> None:
        start = {"schema_version": SCHEMA_VERSION, "label_names": history.label_names, "rounds": []}
        end = {
            "status": history.status,
            "reason": history.reason,
            "best_round": history.best_round(),
            "final": history.final,
        }
        body = "" if self._results_size else _json(start).removesuffix("]\n}")
        for place, record in enumerate(new, start=len(self._rows)):
            body += (",\n  " if place else "\n  ") + _json(record).replace("\n", "\n  ")
        tail = ("\n ]," if len(history.rounds) else "],") + _json(end).removeprefix("{")
        extend(self.path / "results.json", self._results_size, f"{body}{tail}\n".encode())
        self._results_size += len(body.encode())

    def _write_rounds(self, history: RunHistory, new: Sequence[RoundRecord]) -> None:
        best = history.best_round()
        self._rows += [_round_row(record) for record in new]
        for row in self._rows:
            row["best"] = int(row["round"] == best)
        write_csv(self.path / "results.csv", _columns(self._rows), self._rows)

    def _write_clients(self, history: RunHistory, new: Sequence[RoundRecord]) -> None:
        rows = [_client_row(record.round_index, client) for record in new for client in record.clients]
        columns = list(dict.fromkeys([*self._columns, *_columns(rows)]))
        if columns != self._columns or not self._clients_size:  # all rows once more, below a longer header
            rows = [_client_row(record.round_index, client) for record in history.rounds for client in record.clients]
            rows.insert(0, dict(zip(columns, columns, strict=True)))
            self._columns, self._clients_size = columns, 0
        text = csv_text(rows, columns).encode()
        extend(self.path / "clients.csv", self._clients_size, text)
        self._clients_size += len(text)


def _json(value: Any) -> str:
    return json.dumps(plain(value), indent=1, allow_nan=False, ensure_ascii=False)


def _columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(column for row in rows for column in row))


def _prefixed(prefix: str, values: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{prefix}_{key}".replace("-", "_"): value for key, value in values.items()}


def _round_row(record: RoundRecord) -> dict[str, Any]:
    row: dict[str, Any] = {"round": record.round_index, "best": 0, "train_loss": record.train_loss}
    for name in ("validation", "test", "validation_tuned", "clients_validation"):
        scores: Scores | None = getattr(record, name)
        row |= {f"{name}_{score}": None if scores is None else getattr(scores, score) for score in SCORES}
    row |= {
        "clients_ok": record.num_ok,
        "clients_failed": sum(client.status == FAILED for client in record.clients),
        "clients_rejected": sum(client.status == REJECTED for client in record.clients),
        "bytes_up": _total(client.bytes_up for client in record.clients),
        "bytes_down": _total(client.bytes_down for client in record.clients),
    }
    return row | _prefixed("seconds", record.seconds) | _prefixed("diagnostic", record.diagnostics)


def _total(values: Any) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _client_row(round_index: int, client: ClientRecord) -> dict[str, Any]:
    row: dict[str, Any] = {
        "round": round_index,
        "client": client.client_id,
        "status": client.status,
        "code": client.code,
        "reason": client.reason,
        "remarks": "; ".join(f"{code}: {remark}" for code, remark in client.remarks.items()),
        "weight": client.weight,
        "num_examples": client.num_examples,
        "num_steps": client.num_steps,
        **{name: getattr(client.signals, name) for name in SIGNALS},
        **_prefixed("share", client.signals.modality_shares),
        **_prefixed("custom", client.signals.custom),
        "bytes_up": client.bytes_up,
        "bytes_down": client.bytes_down,
    }
    for moment, scores in client.scores.items():
        row |= _prefixed(moment, asdict(scores))
    return row | _prefixed("scalar", client.scalars) | _prefixed("seconds", client.seconds)
