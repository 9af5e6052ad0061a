"""JSON and YAML from outside: data sets' descriptions, and the files of a run's folder. The first byte says which file."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.fuzzing.choices import Choices
from benchmarks.fuzzing.sample_run import LABELS, make_run
from fedmap.config import load
from fedmap.data import manifest
from fedmap.data.importers import IMPORTERS
from fedmap.data.importers.base import BadRows
from fedmap.data.layout import read_labels, read_modality
from fedmap.flower.events import Tail
from fedmap.outputs import read_history, run_id
from fedmap.prediction.runs import clients_of, configuration_of
from fedmap.report.tables import client_table, comparison_table, label_table, rounds_table, summary_table
from fedmap.resuming import check_may_start
from fedmap.service.runs import Runs

_MOVIE = {"genres": ["Drama", "War"], "plot": ["Short.", "A longer plot."], "title": "x", "year": 1999}
_MANIFEST = {
    "format": 1,
    "source": "csv",
    "checksums": {"dataset/server/server_test.csv": "0" * 64},
    "posters": {"files": 2},
    "counts": {"server": {"modalities": "both", "splits": {"test": {"rows": 3, "with_text": 2, "with_image": 1}}}},
}


class Documents:
    """A malformed file is a `FederationError`, or for the pages simply not there; what was read can be shown."""

    allowed = ()
    processes = False

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.run_folder = make_run(folder / "outputs" / "run")
        archive = folder / "archive"
        archive.mkdir()
        (archive / "0001.jpeg").write_bytes(b"\xff\xd8")
        self.good: list[tuple[Path, bytes, Callable[[Path], None]]] = [
            (folder / "labels.json", json.dumps(LABELS).encode(), lambda path: str(read_labels(path)) and None),
            (folder / "modality.json", b'{"use_text": 1, "use_image": 0}', lambda path: str(read_modality(path)) and None),
            (folder / "dataset" / manifest.NAME, json.dumps(_MANIFEST).encode(), self._manifest),
            (archive / "0001.json", json.dumps(_MOVIE).encode(), self._archive),
            (archive / "split.json", json.dumps({"train": ["0001"], "dev": [], "test": ["7"]}).encode(), self._archive),
        ]
        for name, use in (
            ("results.json", self._results),
            ("events.jsonl", self._events),
            ("config.yaml", self._configuration),
            ("run.json", lambda path: str(run_id(path.parent)) and clients_of(path.parent) and None),
            ("versions.json", lambda path: self._show()),
        ):
            self.good.append((self.run_folder / name, (self.run_folder / name).read_bytes(), use))
        for path, content, _ in self.good:
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)

    def seeds(self) -> Sequence[bytes]:
        """The good files, and smaller ones with the same keys."""
        found = [bytes([which]) + content for which, (_, content, _) in enumerate(self.good)]
        compact = json.dumps(json.loads(self.good[5][1]), separators=(",", ":")).encode()
        return [*found, b"\5" + compact, *(b"\6" + line + b"\n" for line in self.good[6][1].splitlines())]

    def run(self, data: bytes) -> None:
        """See the module."""
        choices = Choices(data)
        path, good, use = self.good[choices.byte() % len(self.good)]
        path.write_bytes(choices.rest())
        try:
            use(path)
        finally:
            path.write_bytes(good)

    def _manifest(self, path: Path) -> None:
        if (found := manifest.read(path.parent)) is not None:
            manifest.table(found)
            manifest.changed_files(self.folder, found)

    def _archive(self, path: Path) -> None:
        for movie in IMPORTERS["mmimdb_archive"](path.parent, BadRows("skip")):
            assert movie.name == Path(movie.name).name

    def _results(self, path: Path) -> None:
        self._show()
        history = read_history(path.parent)
        for table in (summary_table(history), label_table(history), client_table(history), rounds_table(history)):
            table.markdown()
        if history.final is not None:
            comparison_table({"run": history.final})
        check_may_start(path.parent, "auto")

    def _events(self, path: Path) -> None:
        self._show()
        for event in Tail(path).new():
            json.dumps(event)

    def _configuration(self, path: Path) -> None:
        self._show()
        configuration_of(path.parent)
        load(path)

    def _show(self) -> None:
        """What the pages ask for; damaged files show nothing, and never an error."""
        runs = Runs(self.folder / "outputs")
        for folder in runs.folders():
            runs.summary(folder)
            runs.newest_round(folder)
            json.loads(runs.document(folder))
            runs.feed(folder).read(0)
            runs.files(folder)
