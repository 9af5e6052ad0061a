"""Who gets which rows: pure functions of a label matrix and a seed.

Every row goes to exactly one part. The result depends on the set of rows and the seed, not on the order of the rows: rows
are put in the order of their ids before anything is drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedmap.errors import ConfigError
from fedmap.randomness import generator

Labels = npt.NDArray[np.uint8]
Rows = npt.NDArray[np.int64]

POLICIES = ("proportions", "iid", "dirichlet", "quantity", "label_skew")
PROPORTIONS = (0.35, 0.10, 0.15, 0.20, 0.20)  # of the reference application
DRAWS = 200


@dataclass(frozen=True)
class Policy:
    """How rows are dealt to clients.

    Attributes:
        name: one of `POLICIES`:
            proportions: client k gets the share proportions[k] of the rows, drawn at random.
            iid: equal shares, drawn at random.
            dirichlet: label distribution skew. A row is represented by its rarest label; the rows of each label are dealt
                by shares drawn from Dirichlet(alpha) over the clients (Hsu et al., arXiv 1909.06335, per label).
            quantity: quantity skew. The clients' shares of the rows are drawn from Dirichlet(alpha); labels stay IID.
            label_skew: each client owns `labels_per_client` labels; a row goes to a client that owns most of its labels,
                ties at random; a row whose labels nobody owns goes to any client. Rows have several labels, so a client
                sees mostly, not only, its own.
        clients: number of clients, at least 1.
        proportions: one positive share for each client (only for "proportions"); they need not add up to 1.
        alpha: concentration > 0; small is skewed.
        labels_per_client: for "label_skew", 1 or more.
        min_rows: every client gets at least this many rows, at least 1.

    Raises:
        ConfigError: a value is out of its range or contradicts another.
    """

    name: str = "proportions"
    clients: int = len(PROPORTIONS)
    proportions: tuple[float, ...] = PROPORTIONS
    alpha: float = 0.5
    labels_per_client: int = 4
    min_rows: int = 10

    def __post_init__(self) -> None:
        if self.name not in POLICIES:
            raise ConfigError(f"policy={self.name!r} is unknown; expected one of {', '.join(POLICIES)}")
        if self.clients < 1:
            raise ConfigError(f"clients={self.clients}: at least 1 client is needed")
        if self.name == "proportions" and len(self.proportions) != self.clients:
            raise ConfigError(f"{len(self.proportions)} proportions for {self.clients} clients; give one share for each client")
        if self.name == "proportions" and not all(np.isfinite(p) and p > 0 for p in self.proportions):
            raise ConfigError(f"proportions={list(self.proportions)} must all be positive")
        if not (np.isfinite(self.alpha) and self.alpha > 0):
            raise ConfigError(f"alpha={self.alpha} must be positive; 0.1 is very skewed, 100 is nearly IID")
        if self.labels_per_client < 1:
            raise ConfigError(f"labels_per_client={self.labels_per_client} must be at least 1")
        if self.min_rows < 1:
            raise ConfigError(f"min_rows={self.min_rows} must be at least 1: a client without rows cannot train")


def partition(row_ids: Sequence[str], labels: Labels, policy: Policy, seed: int) -> list[Rows]:
    """Deal all rows to the clients.

    Args:
        row_ids: n different names; they alone order the rows.
        labels: [n, C] uint8.

    Returns:
        For each client the indices of its rows, ascending in the order of the row ids.

    Raises:
        ConfigError: there are too few rows, or no draw gave every client `min_rows` of them.
    """
    n, k = len(row_ids), policy.clients
    if n < k * policy.min_rows:
        raise ConfigError(
            f"{n} rows cannot give {k} clients at least {policy.min_rows} each; take fewer clients, a lower min_rows or more rows"
        )
    order = canonical_order(row_ids)
    ordered = labels[order]
    rng = generator(seed, purpose=f"partition-{policy.name}")
    smallest = 0
    for _ in range(DRAWS):
        owner = _draw(ordered, policy, rng)
        fewest = int(np.bincount(owner, minlength=k).min())
        if fewest >= policy.min_rows:
            return [order[owner == client] for client in range(k)]
        smallest = max(smallest, fewest)
        if policy.name in ("proportions", "iid"):
            break  # the sizes do not depend on the draw
    cure = {
        "proportions": "more even proportions",
        "dirichlet": "a larger alpha",
        "quantity": "a larger alpha",
        "label_skew": "more labels_per_client",
    }.get(policy.name, "fewer clients")
    raise ConfigError(
        f"policy={policy.name} leaves a client with {smallest} of {n} rows, but min_rows={policy.min_rows}; "
        f"take {cure}, fewer clients, a lower min_rows or more rows"
    )


def stratified_split(row_ids: Sequence[str], labels: Labels, shares: Sequence[float], seed: int, purpose: str) -> list[Rows]:
    """Split rows into parts of exact sizes in which every label keeps its share as nearly as the sizes allow.

    Iterative stratification (Sechidis et al., 2011): the rarest label is dealt first, each row to the part that lacks this label
    most. Parts are never filled beyond their size.

    Args:
        row_ids: n different names.
        labels: [n, C] uint8.
        shares: the parts' shares of the rows; they must add up to 1. A share above 0 gets at least one row if there are enough.

    Returns:
        For each part its rows, ascending in the order of the row ids.
    """
    order = canonical_order(row_ids)
    rng = generator(seed, purpose=purpose)
    shuffled = rng.permutation(len(order))
    ordered = labels[order][shuffled].astype(np.int64)
    room = apportion(len(order), shares)
    wanted = np.outer(room / max(1, len(order)), ordered.sum(0))  # [parts, C] rows of each label still wanted
    part = np.full(len(order), -1, dtype=np.int64)
    for label in np.argsort(ordered.sum(0), kind="stable"):
        for row in np.flatnonzero((ordered[:, label] > 0) & (part < 0)):
            _place(int(row), wanted[:, label], part, room, wanted, ordered)
    for row in np.flatnonzero(part < 0):
        _place(int(row), room.astype(np.float64), part, room, wanted, ordered)
    owner = np.empty_like(part)
    owner[shuffled] = part
    return [order[owner == p] for p in range(len(shares))]


def canonical_order(row_ids: Sequence[str]) -> Rows:
    """The rows' indices in the order of their ids.

    Raises:
        ConfigError: an id occurs twice, so that the order would depend on the input.
    """
    if len(set(row_ids)) != len(row_ids):
        raise ConfigError("row ids must differ from one another")
    return np.array(sorted(range(len(row_ids)), key=lambda i: row_ids[i]), dtype=np.int64)


def apportion(n: int, shares: Sequence[float] | npt.NDArray[np.float64]) -> Rows:
    """n rows by shares into whole numbers that add up to n (largest remainder); a positive share gets a row if n allows it."""
    weights = np.asarray(shares, dtype=np.float64)
    exact = n * weights / weights.sum()
    sizes = np.floor(exact + 1e-9).astype(np.int64)
    for part in np.argsort(-(exact - sizes), kind="stable")[: n - int(sizes.sum())]:
        sizes[part] += 1
    for part in np.flatnonzero((weights > 0) & (sizes == 0)):
        richest = int(np.argmax(sizes))
        if sizes[richest] > 1:
            sizes[richest] -= 1
            sizes[part] += 1
    return np.asarray(sizes, dtype=np.int64)


def _place(row: int, need: npt.NDArray[np.float64], part: Rows, room: Rows, wanted: npt.NDArray[np.float64], labels: Rows) -> None:
    open_parts = np.flatnonzero(room > 0)
    best = open_parts[np.lexsort((-room[open_parts], -need[open_parts]))[0]]
    part[row] = best
    room[best] -= 1
    wanted[best] -= labels[row]


def _draw(labels: Labels, policy: Policy, rng: np.random.Generator) -> Rows:
    """[n] the client of each row."""
    n, k = len(labels), policy.clients
    if policy.name == "proportions":
        return _dealt(n, policy.proportions, rng)
    if policy.name == "iid":
        return _dealt(n, [1.0] * k, rng)
    if policy.name == "quantity":
        # The minimum is set aside first: under strong skew no draw at all would reach it.
        return _dealt_with_minimum(n, rng.dirichlet([policy.alpha] * k), policy.min_rows, rng)
    if policy.name == "dirichlet":
        owner = np.empty(n, dtype=np.int64)
        rarest = _rarest_label(labels)
        for label in np.unique(rarest):
            rows = np.flatnonzero(rarest == label)
            owner[rows] = rng.choice(k, size=len(rows), p=rng.dirichlet([policy.alpha] * k))
        return owner
    return _by_owned_labels(labels, policy, rng)


def _dealt(n: int, shares: Sequence[float], rng: np.random.Generator) -> Rows:
    owner = np.repeat(np.arange(len(shares)), apportion(n, shares))
    return rng.permutation(owner)


def _dealt_with_minimum(n: int, shares: npt.NDArray[np.float64], least: int, rng: np.random.Generator) -> Rows:
    sizes = apportion(n, shares)
    while (short := np.flatnonzero(sizes < least)).size:
        sizes[np.argmax(sizes)] -= 1
        sizes[short[0]] += 1
    return rng.permutation(np.repeat(np.arange(len(shares)), sizes))


def _rarest_label(labels: Labels) -> Rows:
    """[n] the index of each row's rarest label; C for a row without labels."""
    counts = labels.sum(0, dtype=np.int64)
    ranked = np.where(labels > 0, counts[None, :], np.iinfo(np.int64).max)
    return np.where(labels.any(1), ranked.argmin(1) if labels.shape[1] else 0, labels.shape[1])


def _by_owned_labels(labels: Labels, policy: Policy, rng: np.random.Generator) -> Rows:
    n, num_labels = labels.shape
    present = np.flatnonzero(labels.any(0))
    each = min(policy.labels_per_client, len(present))
    owned = np.zeros((policy.clients, num_labels), dtype=np.int64)
    # Dealing from repeated shuffles makes every label owned by nearly the same number of clients.
    deck: list[int] = []
    for client in range(policy.clients):
        while owned[client].sum() < each:
            fresh = [label for label in deck if not owned[client, label]]
            if not fresh:
                deck.extend(int(label) for label in rng.permutation(present))
                continue
            owned[client, fresh[0]] = 1
            deck.remove(fresh[0])
    overlap = labels.astype(np.int64) @ owned.T  # [n, clients]
    return np.asarray((overlap + rng.random((n, policy.clients))).argmax(1), dtype=np.int64)
