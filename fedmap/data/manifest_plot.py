"""The label distribution over clients as a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np


def draw_distribution(manifest: Mapping[str, Any], path: Path) -> None:
    """A heat map of holders (rows) by labels (columns) as a PNG: colour is the share of the holder's rows with the label.

    The cells show numbers of rows, so that quantity skew is visible too.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = list(manifest["labels"])
    holders = list(manifest["counts"])
    counts = np.array(
        [[sum(s["labels"][name] for s in manifest["counts"][h]["splits"].values()) for name in names] for h in holders], dtype=np.float64
    )
    rows = np.array([sum(s["rows"] for s in manifest["counts"][h]["splits"].values()) for h in holders], dtype=np.float64)
    shares = counts / np.maximum(rows, 1)[:, None]

    many = len(holders) > 40  # numbers would not be readable
    figure = Figure(figsize=(3.2 + 0.48 * len(names), 2.0 + (0.16 if many else 0.36) * len(holders)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    image = axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=max(0.01, float(shares.max(initial=0.0))), aspect="auto")
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(holders)), [f"{h.replace('_', ' ')}  ({int(n)})" for h, n in zip(holders, rows, strict=True)])
    axes.set_xticks(np.arange(-0.5, len(names)), minor=True)
    axes.set_yticks(np.arange(-0.5, len(holders)), minor=True)
    axes.grid(which="minor", color="white", linewidth=1)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    if not many:
        middle = shares.max(initial=0.0) * 0.6
        for (row, column), count in np.ndenumerate(counts):
            colour = "white" if shares[row, column] > middle else "#333333"
            axes.text(column, row, str(int(count)), ha="center", va="center", fontsize=8, color=colour)
    axes.set_title(f"Label distribution: {manifest['settings']['policy']}, seed {manifest['seed']} (numbers are rows)", fontsize=10)
    figure.colorbar(image, ax=axes, label="share of the rows", pad=0.01)
    figure.savefig(path, dpi=120, metadata={"Software": None})
