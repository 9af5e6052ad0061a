"""What a run's privacy has cost so far: the server counts in which rounds it asked each client, and says epsilon."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from fedmap.config import RunConfig
from fedmap.history import RunHistory
from fedmap.privacy.accounting import Training, largest_epsilon

EPSILON, DELTA = "privacy-epsilon", "privacy-delta"


@dataclass
class Spending:
    """Counts every client that was asked, whether or not its answer came or was used: it may have been sent.

    Attributes:
        config: of the run.
    """

    config: RunConfig
    _asked: Counter[int] = field(default_factory=Counter, init=False)

    def resume(self, history: RunHistory | None) -> None:
        """Count the rounds of a run that is continued."""
        if self.config.privacy.wanted and history is not None:
            self._asked = Counter(client.client_id for record in history.rounds if record.round_index for client in record.clients)

    def after(self, asked: Iterable[int], num_rows: Mapping[int, int]) -> dict[str, float]:
        """Count one more round; returns the largest epsilon of all clients so far, and delta, for the round's record.

        Args:
            asked: the round's clients.
            num_rows: training rows by client, of those that have joined.
        """
        if not self.config.privacy.wanted:
            return {}
        self._asked.update(asked)
        training = Training(self.config.batch_size, self.config.num_epochs, self.config.training.num_updates)
        privacy = self.config.privacy
        return {EPSILON: largest_epsilon(privacy, training, self._asked, num_rows), DELTA: privacy.delta}

    def sentence(self, spent: Mapping[str, float]) -> str:
        """For the log; empty where there is nothing to say."""
        if EPSILON not in spent:
            return ""
        privacy = self.config.privacy
        of = "a training row" if privacy.name == "record" else "a client's data as a whole"
        seeded = "; privacy.noise_seed is set, so that it is private to nobody" if privacy.noise_seed is not None else ""
        return (
            f"privacy={privacy.name}: what was sent so far is ({spent[EPSILON]:.3g}, {spent[DELTA]:g})-differentially private for {of} "
            f"(Renyi accountant, noise multiplier {privacy.noise_multiplier:g}, norm {privacy.max_norm:g}){seeded}"
        )
