"""What privacy is worth: epsilon, by Renyi differential privacy (Mironov, 2017, arXiv 1702.07476; for rows that are drawn, Mironov et
al., 2019, arXiv 1908.10530), as the accountant of Opacus computes it.

record: two data sets are neighbours if one has one row more. A round is K steps, each a Gaussian mechanism with noise multiplier z on
    rows drawn with probability q.
client: two data sets of a client are neighbours whatever they hold, so that two clipped changes lie up to 2 C apart; a round is one
    Gaussian mechanism with noise multiplier z / 2. Drawing clients gains nothing: the server knows who takes part.
"""

from __future__ import annotations

import functools
import logging
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fedmap.errors import ConfigError
from fedmap.privacy.mechanism import sampling_rate, steps_per_round
from fedmap.privacy.settings import Privacy


@dataclass(frozen=True)
class Training:
    """What of a round's training counts; see `fedmap.local.training.TrainingOptions`."""

    batch_size: int
    num_epochs: int
    num_updates: int | None


def epsilon(privacy: Privacy, training: Training, rounds: int, num_rows: int) -> float:
    """What a client's answers to so many rounds can tell at most, for `privacy.delta`; 0 before the first.

    Args:
        privacy: with a name other than "none".
        training: how a round trains.
        rounds: in which the client was asked.
        num_rows: that it trains on.

    Raises:
        ConfigError: the accountant is not installed.
    """
    if rounds == 0:
        return 0.0
    if privacy.name == "client":
        return _composed(privacy.noise_multiplier / 2, 1.0, rounds, privacy.delta)
    steps = steps_per_round(num_rows, training.batch_size, training.num_epochs, training.num_updates)
    return _composed(privacy.noise_multiplier, sampling_rate(num_rows, training.batch_size), rounds * steps, privacy.delta)


def largest_epsilon(privacy: Privacy, training: Training, rounds: Mapping[int, int], num_rows: Mapping[int, int]) -> float:
    """The largest of all clients'.

    Args:
        privacy: see `epsilon`.
        training: see `epsilon`.
        rounds: by client, in which it was asked.
        num_rows: by client. One whose number is not known has never joined, and so has said nothing.
    """
    cases = {(count, num_rows[client] if privacy.name == "record" else 0) for client, count in rounds.items() if client in num_rows}
    return max((epsilon(privacy, training, count, rows) for count, rows in cases), default=0.0)


def _composed(noise_multiplier: float, sample_rate: float, steps: int, delta: float) -> float:
    accountant = _accountant()()
    accountant.history = [(noise_multiplier, sample_rate, steps)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the best order is the largest or smallest known one: the bound holds all the same
        return float(accountant.get_epsilon(delta))


@functools.cache
def _accountant() -> Any:
    """Opacus' class. The package configures the root logger when it is loaded; a handler that is there meanwhile keeps it from that."""
    root, placeholder = logging.getLogger(), logging.NullHandler()
    root.addHandler(placeholder)
    try:
        from opacus.accountants import RDPAccountant
    except ImportError as error:
        raise ConfigError(
            "privacy needs the accountant of Opacus: pip install --no-deps opacus==1.6.0 opt_einsum==3.4.0, or choose privacy=none"
        ) from error
    finally:
        root.removeHandler(placeholder)
    return RDPAccountant
