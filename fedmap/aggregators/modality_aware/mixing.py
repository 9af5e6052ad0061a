"""Weights per client and, where the model says which part belongs to which modality, per modality.

A client without text leaves the text tower where it was. Averaged in like the others, it holds the tower back by its share.
Gates mend that: a client counts in a modality's part by its weight times its share of rows with that modality (in a learnt
stand-in for a missing modality: without it), so that a tower moves as far as those who trained it say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from fedmap.weights import Array, Layout, ModalityPart, Weights, add_scaled, difference, is_float, weighted_sum

FloatArray = npt.NDArray[np.float64]


def part_name(part: ModalityPart) -> str:
    """What a part's weights are kept under: "text", or "no text" for what only rows without text train."""
    return f"no {part.modality}" if part.without else part.modality


def part_names(layout: Layout) -> list[str]:
    """All parts that a layout tells apart."""
    return sorted({part_name(part) for parts in layout.modality_parts.values() for part in parts})


@dataclass(frozen=True)
class Mix:
    """Weights on the simplex over the K clients.

    Attributes:
        shares: [K] for whatever belongs to no modality.
        by_part: [K] for the parts of one modality, see `part_name`; a part that is not named takes `shares`.
        step: the server's learning rate: how far to go from the model that the clients received towards their mean, > 0.
    """

    shares: FloatArray
    by_part: Mapping[str, FloatArray] = field(default_factory=dict)
    step: float = 1.0

    def key(self) -> bytes:
        """Names the mix."""
        pieces = [self.shares.tobytes(), np.float64(self.step).tobytes()]
        for name, shares in sorted(self.by_part.items()):
            pieces += [name.encode(), shares.tobytes()]
        return b"|".join(pieces)

    def part_weights(self, client_ids: Sequence[int]) -> dict[str, float]:
        """The shares of the parts under the names of a round's report, e.g. "weight-text-client-0"."""
        return {
            f"weight-{name.replace(' ', '-')}-client-{client_id}": float(share)
            for name, shares in self.by_part.items()
            for client_id, share in zip(client_ids, shares, strict=True)
        }


def gated(shares: FloatArray, layout: Layout, modality_shares: Mapping[str, FloatArray]) -> Mix:
    """The mix with each part gated by the clients' shares of rows that train it.

    A part that nobody trained, or that all trained alike, keeps the plain shares.

    Args:
        shares: [K] on the simplex.
        layout: says which parts there are.
        modality_shares: by modality, [K] in [0, 1].
    """
    by_part = {}
    for name in part_names(layout):
        modality = name.removeprefix("no ")
        if modality not in modality_shares:
            continue
        gate = modality_shares[modality] if name == modality else 1.0 - modality_shares[modality]
        if (gate * shares).sum() > 1e-9 and np.ptp(gate[shares > 0]) > 0:
            by_part[name] = gate * shares / (gate * shares).sum()
    return Mix(shares, by_part)


def apply_mix(models: Sequence[Weights], mix: Mix, layout: Layout) -> dict[str, Array]:
    """The mixed model. A client whose weight in a part is zero is not looked at there.

    With the size-weighted shares and no parts this is FedAvg, bit for bit.
    """
    if not mix.by_part:
        return _mixed(models, mix.shares, list(models[0]))
    result: dict[str, Array] = {}
    whole: dict[str, list[str]] = {}
    for name in models[0]:
        parts = layout.modality_parts.get(name, ())
        only = len(parts) == 1 and parts[0].start == 0 and parts[0].stop is None
        key = part_name(parts[0]) if only and is_float(models[0][name]) and part_name(parts[0]) in mix.by_part else ""
        whole.setdefault(key, []).append(name)
    for key, names in whole.items():
        result |= _mixed(models, mix.by_part[key] if key else mix.shares, names)
    for name, parts in layout.modality_parts.items():
        if name in result and is_float(result[name]):
            for part in parts:
                if part_name(part) in mix.by_part and (part.start, part.stop) != (0, None):
                    columns = slice(part.start, part.stop)
                    cut = [{name: np.ascontiguousarray(model[name][..., columns])} for model in models]
                    result[name][..., columns] = _mixed(cut, mix.by_part[part_name(part)], [name])[name]
    return {name: result[name] for name in models[0]}


def stepped(mixed: dict[str, Array], received: Weights, step: float, layout: Layout) -> dict[str, Array]:
    """received + step (mixed - received) for what is trained; statistics and counters stay as mixed.

    This is the server's learning rate of Reddi et al. 2021 (Adaptive Federated Optimization, algorithm 1 with SGD on the server).
    """
    if step == 1.0:
        return mixed
    start = {name: received[name] for name in layout.parameters(mixed)}
    return {**mixed, **add_scaled(start, difference(start, mixed), -step)}


def _mixed(models: Sequence[Weights], shares: FloatArray, names: Sequence[str]) -> dict[str, Array]:
    used = [k for k, share in enumerate(shares) if share > 0]
    return weighted_sum([{name: models[k][name] for name in names} for k in used], [float(shares[k]) for k in used])
