"""Who counts, and where: models that may get no weight at all, and the parts of a model that a client has trained."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fedmap.aggregators.modality_aware.checks import Claims
from fedmap.aggregators.modality_aware.mixing import part_names
from fedmap.aggregators.modality_aware.objective import Verdict
from fedmap.weights import Layout

FloatArray = npt.NDArray[np.float64]

_FAR = 10.0  # times the median norm of a client's change


def reasons_against(own: Sequence[Verdict], norms: Sequence[float]) -> list[str]:
    """For each client why its model may get no weight at all; "" where it may.

    Both measures are the server's own. A diverged model is finite but far from everybody's, and a few percent of it are enough to ruin
    a mix for ever; a model that is far and good, for instance of a client with by far the most rows, stays.
    """
    finite = [bool(np.isfinite(verdict.loss)) for verdict in own]
    reasons = ["" if fits else "its model gives outputs that are not finite" for fits in finite]
    if sum(finite) >= 3:  # with two nobody can tell which one is far
        usual_norm = float(np.median([norm for norm, fits in zip(norms, finite, strict=True) if fits]))
        usual_loss = float(np.median([verdict.loss for verdict, fits in zip(own, finite, strict=True) if fits]))
        for k, (verdict, norm) in enumerate(zip(own, norms, strict=True)):
            if finite[k] and norm > _FAR * usual_norm and verdict.loss > usual_loss:
                reasons[k] = f"its change is {norm / max(usual_norm, 1e-12):.0f} times as large as usual and its model worse than most"
    return reasons


def modality_gates(claims: Claims, layout: Layout) -> dict[str, FloatArray]:
    """The clients' shares of rows with each modality, where the model has parts of its own for it."""
    shares = {name.removeprefix("share."): values for name, values in claims.values.items() if name.startswith("share.")}
    wanted = {name.removeprefix("no ") for name in part_names(layout)}
    return {name: values for name, values in shares.items() if name in wanted}
