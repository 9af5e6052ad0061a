"""A run's plots. Colours are Okabe and Ito's, told apart by line style and marker too; no global pyplot state."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedmap.history import RoundRecord, RunHistory

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#7F7F7F"
DPI = 120


def write_plots(history: RunHistory, folder: Path) -> list[Path]:
    """Draw what the history has data for and return the files, in the order in which a report shows them."""
    drawings: list[tuple[str, Callable[[RunHistory], Figure | None]]] = [
        ("f1.png", f1_curves),
        ("loss.png", loss_curves),
        ("labels.png", label_bars),
        ("weights.png", weight_map),
    ]
    written = []
    folder.mkdir(parents=True, exist_ok=True)
    for name, draw in drawings:
        figure = draw(history)
        path = folder / name
        if figure is None:
            path.unlink(missing_ok=True)
            continue
        partial = folder / f".{name}"
        figure.savefig(partial, dpi=DPI, format="png")
        partial.replace(path)
        written.append(path)
    return written


def f1_curves(history: RunHistory) -> Figure | None:
    """Macro- and micro-F1 per round, the validation split left and the test split right, on one scale."""
    splits = [name for name in ("validation", "test") if any(getattr(record, name) for record in history.rounds)]
    if not splits:
        return None
    figure = _figure(5.2 * len(splits) if len(splits) > 1 else 6.4, 4.0)
    panels = np.atleast_1d(figure.subplots(1, len(splits), sharey=True))
    for axes, name in zip(panels, splits, strict=True):
        for score, label, style in (("macro_f1", "macro-F1", _style(BLUE, "-", "o")), ("micro_f1", "micro-F1", _style(ORANGE, "--", "s"))):
            _curve(axes, history.rounds, _score_of(name, score), label, style)
        _mark_best(axes, history)
        _rounds_axis(axes, history.rounds)
        axes.set_title(f"{name} split")
        axes.set_ylim(bottom=0)
    panels[0].set_ylabel("F1 of the global model")
    _legend_below(figure, panels[0])
    return figure


def loss_curves(history: RunHistory) -> Figure | None:
    """The clients' mean training loss and the global model's loss on the server's splits."""
    series: list[tuple[str, Callable[[RoundRecord], float | None], dict[str, Any]]] = [
        ("clients' training", lambda record: record.train_loss, _style(GREEN, ":", "^")),
        ("validation", lambda record: record.validation.loss if record.validation else None, _style(BLUE, "-", "o")),
        ("test", lambda record: record.test.loss if record.test else None, _style(ORANGE, "--", "s")),
    ]
    if not any(of(record) is not None for _, of, _ in series for record in history.rounds):
        return None
    figure = _figure(6.4, 4.0)
    axes = figure.subplots()
    for label, of, style in series:
        _curve(axes, history.rounds, of, label, style)
    _mark_best(axes, history)
    _rounds_axis(axes, history.rounds)
    axes.set_ylabel("mean loss")
    _legend_below(figure, axes)
    return figure


def label_bars(history: RunHistory) -> Figure | None:
    """F1 of each label on the test split, the most frequent on top, with its number of rows."""
    if history.final is None or not history.final.labels:
        return None
    rows = sorted(history.final.labels, key=lambda row: (row.support, row.label))
    figure = _figure(6.8, max(2.6, 1.3 + 0.26 * len(rows)))
    axes = figure.subplots()
    places = np.arange(len(rows))
    axes.barh(places, [row.f1 for row in rows], color=BLUE, height=0.72)
    for place, row in enumerate(rows):
        axes.text(row.f1 + 0.01, place, f"{row.f1:.2f}", va="center", fontsize=8)
    axes.set_yticks(places, [f"{_shorten(row.label)} ({row.support})" for row in rows])
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.set_xlim(0, 1.08)
    axes.set_xticks(np.arange(0, 1.01, 0.2))
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    tuned = any(row.threshold is not None for row in rows)
    axes.set_xlabel("F1 on the test split" + (", thresholds tuned on validation" if tuned else ""))
    axes.set_ylabel("label (rows that have it)")
    return figure


def weight_map(history: RunHistory) -> Figure | None:
    """Each client's weight in the aggregate, by round; a hatched field is a client whose update was not used."""
    from matplotlib.patches import Patch

    trained = [record for record in history.rounds if record.clients]
    numbers = sorted({client.client_id for record in trained for client in record.clients})
    weights = np.full((len(numbers), len(trained)), np.nan)
    lost: list[tuple[int, int]] = []
    for column, record in enumerate(trained):
        for client in record.clients:
            row = numbers.index(client.client_id)
            if client.status != "ok":
                lost.append((row, column))
            elif client.weight is not None:
                weights[row, column] = client.weight
    if not np.isfinite(weights).any():
        return None
    figure = _figure(min(max(5.6, 2.6 + 0.22 * len(trained)), 13.0), min(max(3.0, 2.0 + 0.24 * len(numbers)), 11.0))
    axes = figure.subplots()
    image = axes.imshow(weights, aspect="auto", cmap="cividis", interpolation="nearest", vmin=0, vmax=max(float(np.nanmax(weights)), 1e-12))
    for row, column in lost:
        axes.add_patch(_failed_field(column, row))
    axes.set_facecolor("white")
    figure.colorbar(image, ax=axes, label="weight in the aggregate", pad=0.02)
    columns = _spaced([record.round_index for record in trained], 14)
    axes.set_xticks(columns, [str(trained[i].round_index) for i in columns])
    rows = _spaced(numbers, 25)
    axes.set_yticks(rows, [str(numbers[i]) for i in rows])
    if len(trained) <= 12 and len(numbers) <= 12:
        middle = float(np.nanmax(weights)) / 2
        for row, column in zip(*map(list, np.nonzero(np.isfinite(weights))), strict=True):
            value = float(weights[row, column])
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=8, color="white" if value < middle else "black")
    axes.set_xlabel("round")
    axes.set_ylabel("client")
    keys = [Patch(facecolor="white", edgecolor=GREY, label="not asked")] if (np.isnan(weights).sum() > len(lost)) else []
    if lost:
        keys.append(Patch(facecolor="white", edgecolor=ORANGE, hatch="////", label="failed or rejected"))
    if keys:
        figure.legend(handles=keys, loc="outside lower center", ncols=len(keys), frameon=False)
    return figure


def _failed_field(column: int, row: int) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor="white", edgecolor=ORANGE, hatch="////", linewidth=0)


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _style(color: str, line: str, marker: str) -> dict[str, Any]:
    return {"color": color, "linestyle": line, "marker": marker, "markersize": 4, "linewidth": 1.6}


def _curve(axes: Axes, rounds: Sequence[RoundRecord], of: Callable[[RoundRecord], float | None], label: str, style: dict[str, Any]) -> None:
    points = [(record.round_index, of(record)) for record in rounds]
    known = [(x, y) for x, y in points if y is not None and np.isfinite(y)]
    if not known:
        return
    if len(known) > 30:
        style = style | {"markevery": max(1, len(known) // 15)}
    axes.plot([x for x, _ in known], [y for _, y in known], label=label, **style)


def _score_of(split: str, score: str) -> Callable[[RoundRecord], float | None]:
    def read(record: RoundRecord) -> float | None:
        scores = getattr(record, split)
        return None if scores is None else float(getattr(scores, score))

    return read


def _mark_best(axes: Axes, history: RunHistory) -> None:
    best = history.best
    if best is not None and best.validation is not None:
        axes.axvline(best.round_index, color=GREY, linestyle="-.", linewidth=1, label=f"chosen (round {best.round_index})", zorder=0)


def _rounds_axis(axes: Axes, rounds: Sequence[RoundRecord]) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=10, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))
    first, last = rounds[0].round_index, rounds[-1].round_index
    margin = max(0.02 * (last - first), 0.15)
    axes.set_xlim(first - margin, last + margin)
    axes.set_xlabel("round")
    axes.grid(alpha=0.3)


def _legend_below(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)


def _spaced(numbers: Sequence[int], most: int) -> list[int]:
    """The places of at most `most` of the ascending numbers, those that are round."""
    for step in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 10**9):
        places = [place for place, number in enumerate(numbers) if number % step == 0]
        if len(places) <= most:
            return places or [0]
    return [0]


def _shorten(label: str, most: int = 24) -> str:
    return label if len(label) <= most else label[: most - 1] + "…"
