"""Model cards: README.md beside each saved model of a run, in the form of the Hugging Face hub. Counts of rows, nothing of a row."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedmap.errors import DataError
from fedmap.files import write_text
from fedmap.history import LabelResult, RoundRecord, RunHistory, Scores
from fedmap.outputs import read_history
from fedmap.report.page import configuration, target_name
from fedmap.report.tables import Table

MODELS = ("best", "last")
_FEW = 20  # rows of a label, below which its F1 says little


def write_cards(folder: Path) -> list[Path]:
    """Write README.md into each model of a run's folder, from what the folder holds.

    Raises:
        DataError: the folder holds no run.
    """
    history, tree = read_history(folder), configuration(folder)
    written = []
    for which in MODELS:
        if (folder / which / "model.safetensors").is_file():
            write_text(folder / which / "README.md", model_card(history, tree, _json(folder / which / "config.json"), which))
            written.append(folder / which / "README.md")
    return written


def model_card(history: RunHistory, tree: Mapping[str, Any], saved: Mapping[str, Any], which: str) -> str:
    """A model's card.

    Args:
        history: its run.
        tree: the run's configuration; empty where it is not known.
        saved: the model's own config.json.
        which: "best" or "last".
    """
    record = history.best if which == "best" else (history.rounds[-1] if history.rounds else None)
    final = history.final
    chosen = final is not None and record is not None and final.chosen_round == record.round_index and which == "best"
    labels = final.labels if final is not None and chosen else ()
    test = (final.test_tuned or final.test) if final is not None and chosen else (record.test if record else None)
    parts = [
        _metadata(tree, test),
        f"# {_title(tree)}",
        _what(history, tree, record, which),
        "## Data",
        _data(history, record),
        "## Labels",
        _labels(history, saved, labels),
        "## Scores",
        _scores(history, record, chosen),
        "## Training",
        _training(history, tree),
        "## Limits",
        _limits(labels, saved),
        "## Use",
        _use(tree, saved, which),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _metadata(tree: Mapping[str, Any], test: Scores | None) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    strategy = target_name((tree.get("server") or {}).get("strategy"))
    tower = str((tree.get("model") or {}).get("bert_name") or "")
    results = None
    if test is not None:
        data = str((tree.get("dataset") or {}).get("name") or "federated")
        results = [
            EvalResult("multi-label-classification", data.lower(), data, "f1", round(value, 4), metric_name=name, dataset_split="test")
            for name, value in (("macro-F1", test.macro_f1), ("micro-F1", test.micro_f1))
        ]
    card = ModelCardData(
        library_name="fedmap",
        tags=["federated-learning", "multimodal", "multi-label-classification", "flower", *([strategy.lower()] if strategy else [])],
        base_model=tower if tower and tower != "tiny" and not tower.startswith(("package:", "/", ".", "~")) else None,
        eval_results=results,
        model_name=_title(tree) if results else None,
    )
    return f"---\n{card.to_yaml()}\n---"


def _title(tree: Mapping[str, Any]) -> str:
    data = str((tree.get("dataset") or {}).get("name") or "")
    return f"{target_name(tree.get('model')) or 'Model'}{f' for {data}' if data else ''}, trained with FedMAP"


def _what(history: RunHistory, tree: Mapping[str, Any], record: RoundRecord | None, which: str) -> str:
    model = tree.get("model") or {}
    towers = ""
    if "bert_name" in model:
        frozen = [name for name, key in (("text", "freeze_bert"), ("image", "freeze_vision")) if model.get(key)]
        towers = f" Text tower: `{_shareable(str(model['bert_name']))}`; image tower: `{model.get('vision_name')}`" + (
            f"; kept frozen: {' and '.join(frozen)}." if frozen else "; both trained."
        )
    when = "" if record is None else f" after round {record.round_index}"
    why = ", the best on the server's validation rows" if which == "best" and record is not None and record.validation is not None else ""
    state = (
        ""
        if history.status == "finished"
        else f" The run {'failed: ' + history.reason if history.status == 'failed' else 'has not ended'}."
    )
    return (
        f"A multi-label classifier with {len(history.label_names)} labels, trained across clients that kept their rows to themselves. "
        f"This is the global model{when}{why}.{towers}{state}"
    )


def _shareable(tower: str) -> str:
    """A tower's name without the folders of this machine."""
    return Path(tower).name if tower.startswith(("/", ".", "~")) else tower


def _data(history: RunHistory, record: RoundRecord | None) -> str:
    clients: dict[int, tuple[int | None, Mapping[str, float]]] = {}
    for one in history.rounds:
        for client in one.clients:
            if client.status == "ok":
                clients[client.client_id] = (client.num_examples, client.signals.modality_shares)
    rows = [
        (f"client {number}", count, *(f"{share:.0%}" for share in shares.values())) for number, (count, shares) in sorted(clients.items())
    ]
    names = next((tuple(shares) for _, shares in clients.values() if shares), ())
    server = (
        [
            f"{scores.num_samples} {split} rows"
            for split, scores in (("validation", record.validation), ("test", record.test))
            if scores is not None
        ]
        if record
        else []
    )
    parts = [f"The server held {' and '.join(server)}, which no client saw." if server else "The server held no rows."]
    if rows:
        width = 2 + len(names)
        table = Table("", ("trained on", "rows", *(f"with {name}" for name in names)), [row for row in rows if len(row) == width])
        parts.append(table.markdown())
    return "\n\n".join(parts)


def _labels(history: RunHistory, saved: Mapping[str, Any], labels: tuple[LabelResult, ...]) -> str:
    if labels:
        rows = [(row.label, row.threshold, row.support, row.precision, row.recall, row.f1) for row in labels]
        return Table("", ("label", "threshold", "test rows", "precision", "recall", "F1"), rows).markdown()
    thresholds = saved.get("thresholds") or [None] * len(history.label_names)
    if isinstance(thresholds, Mapping):
        thresholds = [thresholds.get(name) for name in history.label_names]
    return Table("", ("label", "threshold"), list(zip(history.label_names, thresholds, strict=False))).markdown()


def _scores(history: RunHistory, record: RoundRecord | None, chosen: bool) -> str:
    final = history.final
    rows: list[tuple[str, Scores | None]] = []
    if final is not None and chosen:
        rows = [("validation", final.validation), ("test", final.test), ("test, thresholds tuned on validation", final.test_tuned)]
    elif record is not None:
        rows = [("validation", record.validation), ("test", record.test)]
    shown = [(name, s.macro_f1, s.micro_f1, s.weighted_f1, s.samples_f1, s.num_samples) for name, s in rows if s is not None]
    if not shown:
        return "Not scored: the server had no rows."
    return Table("", ("split", "macro-F1", "micro-F1", "weighted F1", "samples F1", "rows"), shown).markdown()


def _training(history: RunHistory, tree: Mapping[str, Any]) -> str:
    rounds = [record for record in history.rounds if record.round_index]
    clients = {client.client_id for record in rounds for client in record.clients}
    training = tree.get("training") or {}
    facts = [
        ("strategy", target_name((tree.get("server") or {}).get("strategy"))),
        ("rounds", len(rounds)),
        ("clients", len(clients)),
        ("local epochs", tree.get("num_epochs") if training.get("num_updates") is None else None),
        ("local steps", training.get("num_updates")),
        ("batch size", tree.get("batch_size")),
        ("optimiser", training.get("optimizer")),
        ("learning rate", tree.get("learning_rate")),
        ("seed", tree.get("random_seed")),
    ]
    return "\n".join(f"- {name}: {value}" for name, value in facts if value not in (None, ""))


def _limits(labels: tuple[LabelResult, ...], saved: Mapping[str, Any]) -> str:
    rare = [row.label for row in labels if row.support < _FEW]
    arguments = saved.get("arguments")
    lines = [
        "Scores hold for rows like the server's test rows, and for nothing else; where clients differ, theirs may be lower.",
        "Thresholds were tuned on the server's validation rows."
        if _tuned(saved)
        else "Thresholds were not tuned for this model: a label applies from 0.5.",
    ]
    if rare:
        lines.append(f"F1 from fewer than {_FEW} test rows says little: {', '.join(rare)}.")
    if isinstance(arguments, Mapping) and "max_text_length" in arguments:
        size = saved.get("image_size")
        squeezed = f", and pictures are squeezed to {size} x {size} pixels" if size else ""
        lines.append(f"Texts are cut to {arguments['max_text_length']} tokens{squeezed}.")
    pretrained = saved.get("pretrained")
    if isinstance(pretrained, Mapping) and any(pretrained.values()):
        lines.append("Pretrained towers bring along what their own training data held.")
    lines.append("What the weights give away about the rows that they were trained on was not measured.")
    return "\n".join(f"- {line}" for line in lines)


def _tuned(saved: Mapping[str, Any]) -> bool:
    thresholds = saved.get("thresholds")
    values = thresholds.values() if isinstance(thresholds, Mapping) else thresholds or ()
    return any(value != 0.5 for value in values)


def _use(tree: Mapping[str, Any], saved: Mapping[str, Any], which: str) -> str:
    path = str((tree.get("model") or {}).get("_target_") or saved.get("model") or "")
    module, _, name = path.rpartition(".")
    if saved.get("format") != "fedmap-fusion-model" or not module:
        return f"`model.safetensors` holds the tensors of `{path or 'a model of your own'}` by name."
    return (
        f'```python\nfrom {module} import {name}\n\nmodel = {name}.from_pretrained("{which}")   # this folder\n'
        'model.predict_proba(["A robot falls in love."], ["poster.jpg"])   # [1, labels]; None where one is missing\n'
        "model.label_names, model.thresholds\n```\n\n"
        'Or `python -m fedmap predict --run <this folder> --poster poster.jpg --text "A robot falls in love."`'
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    return found if isinstance(found, dict) else {}
