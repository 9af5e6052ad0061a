"""How a federation's models travel; the server decides, and every message to a client says it."""

from __future__ import annotations

from dataclasses import dataclass

from fedmap.errors import UpdateError

DOWN = ("none", "lossless", "fp16", "int8")
UP = (*DOWN, "topk")
EXACT = ("none", "lossless")


@dataclass(frozen=True)
class Compression:
    """What becomes of arrays on their way; see `fedmap.compression.codes` for the codes.

    Attributes:
        up: the code of what a client sends, one of `UP`. Lossy codes take the change since the broadcast.
        down: the code of what the server sends for training, one of `DOWN`.
        density: share of the numbers that topk sends, in (0, 1].
        block: how many neighbouring numbers share a scale of int8, in [8, 65536].
        smallest: arrays with fewer numbers travel as they are: biases, normalisation layers and their statistics, >= 1.
        feedback: whether a client adds what a lossy code has left out to what it sends in its next round.
    """

    up: str = "none"
    down: str = "none"
    density: float = 0.2
    block: int = 256
    smallest: int = 1024
    feedback: bool = False

    def known(self) -> None:
        """Refuse codes and numbers that this version cannot have sent.

        Raises:
            UpdateError: names the field and its value.
        """
        fits = {
            "up": self.up in UP,
            "down": self.down in DOWN,
            "density": 0 < self.density <= 1,
            "block": 8 <= self.block <= 65536,
            "smallest": self.smallest >= 1,
        }
        for name, good in fits.items():
            if not good:
                raise UpdateError(
                    f"the server's message is packed with {name}={getattr(self, name)!r}, which this version does not know; "
                    "use the same version on server and clients"
                )

    def problems(self) -> list[str]:
        """What contradicts itself, each with the keys to change; codes and ranges are checked where the keys are read."""
        found = []
        if self.down in DOWN and self.down not in EXACT and self.up in EXACT:
            found.append(
                f"compression.down={self.down} with compression.up={self.up}: clients would start from a rounded model and send it back "
                "whole, so that the server's model lost digits in every round; set compression.up to fp16, int8 or topk, whose changes are "
                "added to the server's full model, or compression.down=lossless"
            )
        if self.feedback and self.up in EXACT:
            found.append(
                f"compression.feedback=true with compression.up={self.up}: there is nothing left out; set compression.feedback=false"
            )
        return found
