"""Plots of the modality-aware benchmark."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.modality_ground import SETTINGS

COLOURS = {
    "fedavg": "#888888",
    "fedprox": "#bbbbbb",
    "teacher": "#8ecae6",
    "student": "#1f77b4",
    "per-modality": "#0b6e99",
    "server-rate": "#0b3954",
    "fair-label": "#5c946e",
    "fair-client": "#80c2af",
    "peer": "#d95f02",
}


def plot_scores(runs: dict[str, dict[str, list[dict[str, Any]]]], path: Path) -> None:
    """Macro-F1 of every strategy in every setting: one dot a seed, a bar at the mean."""
    plt = _pyplot()
    strategies = list(next(iter(runs.values())))
    figure, axes = plt.subplots(figsize=(1.8 + 1.3 * len(runs), 4.2), layout="constrained")
    for place, strategy in enumerate(strategies):
        x = np.arange(len(runs)) + 0.8 * ((place + 0.5) / len(strategies) - 0.5)
        scores = [[one["tuned"] for one in by_strategy[strategy]] for by_strategy in runs.values()]
        axes.bar(x, [np.mean(each) for each in scores], 0.8 / len(strategies), color=COLOURS[strategy], label=strategy)
        for left, each in zip(x, scores, strict=True):
            axes.plot([left] * len(each), each, ".", color="black", markersize=3)
    axes.set_xticks(np.arange(len(runs)), [SETTINGS[setting].title for setting in runs], rotation=20, ha="right")
    axes.set_ylabel("macro-F1, server test")
    axes.legend(ncols=len(strategies), fontsize=8, loc="upper center", bbox_to_anchor=(0.5, 1.12), frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def plot_weights(runs: dict[str, dict[str, list[dict[str, Any]]]], path: Path) -> None:
    """The share of every client in every round, mean over seeds, for the strategies that report it."""
    plt = _pyplot()
    strategies = [
        s for s in next(iter(runs.values())) if any(weights for one in next(iter(runs.values()))[s] for weights in one["weights"])
    ]
    figure, grid = plt.subplots(
        len(runs), len(strategies), figsize=(2.0 * len(strategies) + 1, 1.2 * len(runs) + 0.6), squeeze=False, layout="constrained"
    )
    for row, (setting, by_strategy) in enumerate(runs.items()):
        for column, strategy in enumerate(strategies):
            axes = grid[row][column]
            clients = range(len(by_strategy[strategy][0]["client_rows"]))
            shares = np.mean([[[w.get(str(k), 0.0) for w in one["weights"]] for k in clients] for one in by_strategy[strategy]], axis=0)
            image = axes.imshow(shares, vmin=0, vmax=1, cmap="viridis", aspect="auto", interpolation="nearest")
            axes.set_xticks([])
            axes.set_yticks(list(clients) if column == 0 else [])
            if row == 0:
                axes.set_title(strategy, fontsize=9)
            if column == 0:
                axes.set_ylabel(SETTINGS[setting].title, fontsize=7)
    figure.supxlabel("round", fontsize=9)
    figure.colorbar(image, ax=grid, label="share of the client")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt
