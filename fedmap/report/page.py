"""Reports as single HTML files: tables, plots as pictures inside the file, and the commands that repeat a run. Nothing is loaded."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from fedmap.errors import DataError
from fedmap.files import write_text
from fedmap.history import OK, RunHistory
from fedmap.outputs import read_history
from fedmap.progress import duration
from fedmap.report.plots import write_plots
from fedmap.report.repeat import repeat_command
from fedmap.report.tables import Table, client_table, label_table, rounds_table, summary_table

_STYLE = """
:root { color-scheme: light dark; --ground: light-dark(#f4f6f9, #0e1116); --card: light-dark(#fff, #171b22); --line: light-dark(#d8dee7, #2c3440);
  --text: light-dark(#171b22, #e8ebf0); --muted: light-dark(#566070, #9ea9b8); }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--text); font: 15px/1.5 system-ui, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif;
  font-variant-numeric: tabular-nums; }
main { max-width: 1080px; margin: 0 auto; padding: 24px 16px 64px; display: grid; gap: 16px; grid-template-columns: minmax(0, 1fr); }
section, header { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 16px 20px; }
h1, h2 { margin: 0 0 8px; line-height: 1.25; } h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; }
p { margin: 0 0 8px; } .muted { color: var(--muted); }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: .9rem; width: 100%; }
th, td { padding: 5px 10px; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } thead th { color: var(--muted); font-size: .82rem; }
figure { margin: 0; } img { max-width: 100%; height: auto; border-radius: 6px; background: #fff; }
.plots { display: grid; gap: 16px; grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); align-items: start; }
.plots figure:first-child { grid-column: 1 / -1; }
pre { margin: 0; padding: 10px 12px; white-space: pre-wrap; overflow-wrap: anywhere; font: .85rem/1.5 ui-monospace, "DejaVu Sans Mono", monospace; border: 1px solid var(--line);
  border-radius: 8px; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 2px 16px; margin: 0; } dt { color: var(--muted); } dd { margin: 0; }
details > summary { cursor: pointer; } ul { margin: 0; padding-left: 20px; }
@media print { body { background: none; } section, header { break-inside: avoid; border-color: #ccc; } }
"""
_PLOTS = {
    "f1": "F1 of the global model by round",
    "loss": "Mean loss by round",
    "labels": "F1 of each label on the test split",
    "weights": "Weights of the clients in the aggregate, by round",
}


def write_page(folder: Path, out: Path | None = None, plots: Sequence[Path] | None = None) -> Path:
    """Write a run's report as one HTML file and return its path.

    Args:
        folder: the run's folder.
        out: the file; None is report.html in the folder.
        plots: its plots where they have just been drawn; None draws them.

    Raises:
        DataError: the folder holds no run.
    """
    history = read_history(folder)
    drawn = write_plots(history, folder / "plots") if plots is None else plots
    target = out or folder / "report.html"
    write_text(target, run_page(history, drawn, _text(folder / "config.yaml"), _text(folder / "versions.json"), _name(folder)))
    return target


def run_page(history: RunHistory, plots: Sequence[Path], config: str, versions: str, name: str) -> str:
    """A run's report.

    Args:
        history: the run.
        plots: PNG files to put into it.
        config: the resolved configuration as YAML, without secrets; "" where it is not known.
        versions: the content of versions.json; "" where it is not known.
        name: of the run.
    """
    tables = [table for table in (summary_table(history), label_table(history), client_table(history), rounds_table(history)) if table.rows]
    tree = _tree(config)
    parts = [_head(history, name, tree), *map(_table, tables[:1]), _figures(plots), *map(_table, tables[1:]), _notes(history)]
    parts += [_repeat(tree), _details("Configuration", config), _details("Versions", versions)]
    return page(f"Report of run {name}", parts)


def page(title: str, parts: Sequence[str]) -> str:
    """An HTML document of sections; empty ones are left out."""
    body = "\n".join(part for part in parts if part)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def html_table(table: Table) -> str:
    """A table without its title."""
    head = "".join(f'<th scope="col">{escape(str(column))}</th>' for column in table.columns)
    rows = [
        "<tr>"
        + "".join(f'<th scope="row">{escape(cell)}</th>' if i == 0 else f"<td>{escape(cell)}</td>" for i, cell in enumerate(cells))
        + "</tr>"
        for cells in table.cells()
    ]
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>\n' + "\n".join(rows) + "\n</tbody></table></div>"


def _head(history: RunHistory, name: str, tree: Mapping[str, Any]) -> str:
    ended = {"finished": "finished", "failed": f"failed: {history.reason}"}.get(history.status, "has not ended properly")
    rounds = [record for record in history.rounds if record.round_index]
    seconds = sum(sum(record.seconds.values()) for record in rounds)
    server = tree.get("server")
    facts = {
        "status": f"{ended}, {len(rounds)} rounds" + (f" in {duration(seconds)}" if seconds else ""),
        "strategy": target_name(server.get("strategy") if isinstance(server, Mapping) else None),
        "model": target_name(tree.get("model")),
        "data": str((tree.get("dataset") or {}).get("name") or target_name(tree.get("dataset"))),
        "labels": str(len(history.label_names)),
        "seed": str(tree.get("random_seed", "-")),
    }
    listed = "".join(f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in facts.items() if value)
    return f"<header><h1>Run {escape(name)}</h1><dl>{listed}</dl></header>"


def target_name(node: object) -> str:
    """What a part of a configuration is, in a word: the class that it names, or the one of Flower's strategies; "" if it names none."""
    if not isinstance(node, Mapping):
        return ""
    name = str(node.get("_target_", "")).rpartition(".")[2]
    return str(node["strategy"]) if name == "FlowerAggregator" and "strategy" in node else name


def _table(table: Table) -> str:
    return f"<section><h2>{escape(table.title)}</h2>{html_table(table)}</section>"


def _figures(plots: Sequence[Path]) -> str:
    figures = []
    for plot in plots:
        data = base64.b64encode(plot.read_bytes()).decode()
        figures.append(f'<figure><img src="data:image/png;base64,{data}" alt="{escape(_PLOTS.get(plot.stem, plot.stem))}"></figure>')
    return f'<section><h2>Plots</h2><div class="plots">{"".join(figures)}</div></section>' if figures else ""


def _notes(history: RunHistory) -> str:
    lines = [f"round {record.round_index}: {note}" for record in history.rounds for note in record.notes]
    lines += client_lines(history)
    listed = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f"<section><h2>Notes</h2><ul>{listed}</ul></section>" if lines else ""


def client_lines(history: RunHistory) -> list[str]:
    """A line for each update that was not used, and for each that was not used as it came."""
    lines = []
    for record in history.rounds:
        for client in record.clients:
            who = f"round {record.round_index}: client {client.client_id}"
            if client.status != OK:
                lines.append(f"{who} {client.status}{f' ({client.code})' if client.code else ''}: {client.reason}")
            lines += [f"{who} ({code}): {remark}" for code, remark in client.remarks.items()]
    return lines


def _repeat(tree: Mapping[str, Any]) -> str:
    command = repeat_command(tree) if tree else None
    if command is None:
        return ""
    return (
        f"<section><h2>Repeat it</h2><p>With the same data and the versions below this gives the same model, bit for bit on a CPU.</p>"
        f"<pre>{escape(command)}</pre></section>"
    )


def _details(title: str, content: str) -> str:
    return (
        f"<section><details><summary><strong>{title}</strong></summary><pre>{escape(content)}</pre></details></section>" if content else ""
    )


def _name(folder: Path) -> str:
    parts = folder.resolve().parts
    return "/".join(parts[parts.index("outputs") + 1 :]) if "outputs" in parts[:-1] else parts[-1]


def configuration(folder: Path) -> dict[str, Any]:
    """The configuration that a run's folder holds; empty where there is none."""
    return _tree(_text(folder / "config.yaml"))


def _tree(config: str) -> dict[str, Any]:
    import yaml

    try:
        tree = yaml.safe_load(config)
    except yaml.YAMLError as error:
        raise DataError(f"the run's config.yaml is damaged: {error}") from error
    return tree if isinstance(tree, dict) else {}


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""
