"""Deal rows to the server and the clients and write their tables."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedmap.data.collect import Table
from fedmap.data.layout import DataLayout
from fedmap.data.manifest import describe_rows
from fedmap.data.modality import USES, client_modalities, draw_missing, missing_rates
from fedmap.data.partition import Rows, partition, stratified_split
from fedmap.data.preparation import PreparationOptions
from fedmap.data.table import COLUMNS
from fedmap.errors import ConfigError
from fedmap.randomness import generator

Flags = npt.NDArray[np.bool_]

_SPLITS = ("train", "val", "test")


def deal(layout: DataLayout, table: Table, label_names: Sequence[str], options: PreparationOptions) -> dict[str, Any]:
    """Write labels.json and every holder's tables below the layout.

    Returns:
        For the manifest: for each holder its modalities and the counts of each split.

    Raises:
        ConfigError: the rows cannot be dealt as the options ask.
    """
    layout.shared.mkdir(parents=True, exist_ok=True)
    _write_json(layout.shared / "labels.json", list(label_names))
    rest, server_val, server_test = _server_rows(table, options)
    owned = partition([table.ids[i] for i in rest], table.labels[rest], options.dealing(), options.seed)
    counts = {f"client_{k}": _write_client(layout, k, table.take(rest[rows]), label_names, options) for k, rows in enumerate(owned)}
    server: dict[str, Any] = {}
    for split, rows in (("val", server_val), ("test", server_test)):
        if len(rows):
            everything = table.take(rows)
            has_text, has_image = _present(everything)
            _write_table(layout.root / "dataset" / "server" / f"server_{split}.csv", everything, has_text, has_image, label_names)
            server[split] = describe_rows(everything.labels, has_text, has_image, label_names)
    if server:
        counts["server"] = {"modalities": "both", "splits": server}
    return counts


def _server_rows(table: Table, options: PreparationOptions) -> tuple[Rows, Rows, Rows]:
    """The clients' rows, the server's validation rows and its test rows."""
    if options.server == "source":
        kinds = (("", "train"), ("dev",), ("test",))
        parts = [np.array([i for i, split in enumerate(table.splits) if split in kind], dtype=np.int64) for kind in kinds]
        if not len(parts[1]) or not len(parts[2]):
            raise ConfigError(
                "server=source takes the source's own dev and test rows for the server, but the source has "
                f"{len(parts[1])} dev and {len(parts[2])} test rows; use server=share"
            )
        return parts[0], parts[1], parts[2]
    shares = [1 - options.server_val - options.server_test, options.server_val, options.server_test]
    rest, val, test = stratified_split(table.ids, table.labels, shares, options.seed, "server-split")
    return rest, val, test


def _write_client(
    layout: DataLayout, client_id: int, table: Table, label_names: Sequence[str], options: PreparationOptions
) -> dict[str, Any]:
    uses = client_modalities(options.modalities, options.num_clients)[client_id]
    has_text, has_image = _present(table)
    if uses == "both":
        rates = [missing_rates(key, getattr(options, key), options.num_clients)[client_id] for key in ("missing_text", "missing_image")]
        has_text, has_image = draw_missing(has_text, has_image, rates[0], rates[1], seed=options.seed, client_id=client_id)
    else:
        lacking = np.flatnonzero(~(has_text if uses == "text" else has_image))
        if lacking.size:
            raise ConfigError(
                f"modalities: client {client_id} uses only the {uses}, but {lacking.size} of its rows have none (first: "
                f"{table.ids[lacking[0]]!r}); give it 'both', or leave such rows out of the source"
            )
    parts = stratified_split(table.ids, table.labels, options.split, options.seed, f"client-split-{client_id}")
    if client_id in options.shuffle_labels:
        # The test rows stay true, so that the harm of wrong labels can be measured.
        noisy = np.sort(np.concatenate(parts[:2]))
        mixed = generator(options.seed, purpose="shuffle-labels", client_id=client_id).permutation(noisy)
        table.labels[noisy] = table.labels[mixed]
    folder = layout.client(client_id)
    splits = {}
    for split, rows in zip(_SPLITS, parts, strict=True):
        chosen = table.take(rows)
        _write_table(folder / f"{split}.csv", chosen, has_text[rows], has_image[rows], label_names)
        splits[split] = describe_rows(chosen.labels, has_text[rows], has_image[rows], label_names)
    _write_json(folder / "modality.json", USES[uses])
    return {"modalities": uses, "splits": splits}


def _present(table: Table) -> tuple[Flags, Flags]:
    return np.array([bool(text) for text in table.texts]), np.array([bool(name) for name in table.names])


def _write_table(path: Path, table: Table, has_text: Flags, has_image: Flags, label_names: Sequence[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(COLUMNS)
        for i in range(len(table)):
            labels = "|".join(label_names[int(c)] for c in np.flatnonzero(table.labels[i]))
            writer.writerow([table.names[i] if has_image[i] else "", table.texts[i] if has_text[i] else "", labels])


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
