"""Which client has which modality, and which rows lack one: policies that are written into the data set."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fedmap.errors import ConfigError
from fedmap.randomness import generator

USES: dict[str, dict[str, int]] = {
    "both": {"use_text": 1, "use_image": 1},
    "text": {"use_text": 1, "use_image": 0},
    "image": {"use_text": 0, "use_image": 1},
}

Flags = npt.NDArray[np.bool_]


def per_client(key: str, value: object, clients: int) -> list[object]:
    """One value for each client from a single value or a list.

    Raises:
        ConfigError: a list of another length.
    """
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
        return [value] * clients
    if len(value) != clients:
        raise ConfigError(f"{key} has {len(value)} entries for {clients} clients; give one value, or one for each client")
    return list(value)


def client_modalities(value: object, clients: int) -> list[str]:
    """Each client's modalities: "both", "text" or "image".

    Raises:
        ConfigError: another word, or a list of the wrong length.
    """
    chosen = per_client("modalities", value, clients)
    for word in chosen:
        if word not in USES:
            raise ConfigError(f"modalities: {word!r} is unknown; expected {', '.join(USES)}")
    return [str(word) for word in chosen]


def missing_rates(key: str, value: object, clients: int) -> list[float]:
    """Each client's share of rows that lose a modality, in [0, 1).

    Raises:
        ConfigError: not a number, out of range, or a list of the wrong length.
    """
    rates = per_client(key, value, clients)
    for rate in rates:
        if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 <= rate < 1:
            raise ConfigError(f"{key}={rate!r} must be a number from 0 to below 1: the share of rows that lose it")
    return [float(rate) for rate in rates]  # type: ignore[arg-type]


def draw_missing(
    has_text: Flags, has_image: Flags, missing_text: float, missing_image: float, *, seed: int, client_id: int
) -> tuple[Flags, Flags]:
    """Take the text from some rows and the image from others; no row loses both.

    Only rows that have both can lose one, so a share that is larger than such rows allow is an error.

    Args:
        has_text: [n] rows with a text, in an order that does not depend on the source's.
        has_image: [n] rows with an image.
        missing_text: share of the n rows that lose their text.
        missing_image: share of the n rows that lose their image.

    Returns:
        The two flags after the loss, each [n].

    Raises:
        ConfigError: both shares together ask for more rows than have both modalities.
    """
    n = len(has_text)
    both = np.flatnonzero(has_text & has_image)
    lose_text, lose_image = round(missing_text * n), round(missing_image * n)
    if lose_text + lose_image > len(both):
        raise ConfigError(
            f"client {client_id}: missing_text={missing_text} and missing_image={missing_image} ask for {lose_text} + {lose_image} rows, "
            f"but {len(both)} of {n} have both modalities, and no row may lose both"
        )
    drawn = generator(seed, purpose="missing-modality", client_id=client_id).permutation(both)
    text, image = has_text.copy(), has_image.copy()
    text[drawn[:lose_text]] = False
    image[drawn[lose_text : lose_text + lose_image]] = False
    return text, image
