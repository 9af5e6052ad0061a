"""Whether and how clients' answers are differentially private; the section `privacy` of the configuration."""

from __future__ import annotations

from dataclasses import dataclass

OPTIONS = ("none", "record", "client")


@dataclass(frozen=True)
class Privacy:
    """What a client adds to what it sends; docs/guides/privacy.md says what it protects and what not.

    Attributes:
        name: "none"; "record": each step's gradient is private, so that a single training row cannot be told from what is
            sent; "client": the model that is sent is private as a whole, so that a client's data cannot be told.
        max_norm: the Euclidean norm to which each row's gradient ("record") or the client's whole change ("client") is clipped, > 0.
        noise_multiplier: the noise's standard deviation, as a multiple of `max_norm`, > 0.
        delta: for which epsilon is reported, in (0, 1); well below one over the number of rows ("record") or clients.
        noise_seed: None draws from a secret of the client's. A number makes runs repeatable for whoever knows it, which is
            the server: such a run is for measuring, and private to nobody.
    """

    name: str = "none"
    max_norm: float = 1.0
    noise_multiplier: float = 1.0
    delta: float = 1e-5
    noise_seed: int | None = None

    @property
    def wanted(self) -> bool:
        """Whether there is any."""
        return self.name != "none"


NO_PRIVACY = Privacy()
