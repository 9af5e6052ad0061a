"""Import or generate movies, deal them to the server and the clients, and write the layout with its manifest."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedmap.data import manifest as manifests
from fedmap.data.collect import collect
from fedmap.data.deal import deal
from fedmap.data.importers import IMPORTERS, BadRows, Movie, detect
from fedmap.data.layout import DataLayout
from fedmap.data.preparation import PreparationOptions
from fedmap.data.staging import PLOT, Posters, Staging
from fedmap.data.synthetic import GENRES, generate
from fedmap.errors import DataError


@dataclass(frozen=True)
class Prepared:
    """What a preparation did.

    Attributes:
        root: the folder of the data set.
        manifest: the content of dataset/manifest.json.
        unchanged: the same data set was there already and nothing was written.
    """

    root: Path
    manifest: dict[str, Any]
    unchanged: bool


def prepare(**settings: Any) -> Prepared:
    """Make a data set; the settings are the keys of `conf/data_preparation.yaml`, for example
    `prepare(root=folder, source="synthetic", num_movies=600, seed=1)`.

    The same settings and source give the same files, byte for byte.

    Raises:
        ConfigError: a setting is wrong or cannot be fulfilled.
        DataError: the source has a bad row, or a different data set is in place and `overwrite` is not set.
    """
    options = PreparationOptions.of(settings)
    root = Path(options.root)
    staging = Staging(root)
    staging.recover()
    source = _source(options)
    header = {"format": manifests.FORMAT, "source": {"kind": source, "path": options.path}, "seed": options.seed}
    header["settings"] = options.recorded(source)
    existing = _may_write(root, header, options.overwrite)

    staging.begin()
    try:
        manifest = _stage(staging, source, header, options)
        if existing is not None:
            if existing["fingerprint"] == manifest["fingerprint"] and not manifests.changed_files(root, existing):
                return Prepared(root, existing, unchanged=True)
            raise DataError(
                f"{root / 'dataset'}: the data set there was made with the same settings, but its content differs from the source's now "
                "(files were edited, or the source changed); overwrite=true replaces it"
            )
        dataset = staging.folder / "dataset"
        if options.plot:
            from fedmap.data.manifest_plot import draw_distribution

            draw_distribution(manifest, dataset / PLOT)
        (dataset / manifests.NAME).write_text(json.dumps(manifest, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        staging.commit()
    finally:
        staging.recover()
    return Prepared(root, manifest, unchanged=False)


def _stage(staging: Staging, source: str, header: dict[str, Any], options: PreparationOptions) -> dict[str, Any]:
    """Make the whole data set in the staging folder and return its manifest."""
    posters = Posters(staging.posters, options.posters == "hardlink")
    movies, bad = _read(source, options)
    table, label_names, rows = collect(movies, posters, bad, options, GENRES if source == "synthetic" else ())
    posters.keep_only({name for name in table.names if name})
    counts = deal(staging.layout, table, label_names, options)
    manifest = {**header, "labels": list(label_names), "rows": rows, "counts": counts}
    files = [file for file in staging.folder.rglob("*") if file.is_file() and file.parent != staging.posters]
    manifest["checksums"] = manifests.checksums(staging.folder, files)
    manifest["posters"] = {"files": len(posters.digests), "sha256": manifests.digest(posters.digests)}
    manifest["fingerprint"] = manifests.digest([manifest["checksums"], manifest["posters"]])
    return manifest


def _source(options: PreparationOptions) -> str:
    if options.source != "auto":
        return options.source
    if options.path is None:
        raise DataError("nothing to import: give path=<folder or file> of your movies, or source=synthetic for generated ones")
    return detect(Path(options.path))


def _may_write(root: Path, header: dict[str, Any], overwrite: bool) -> dict[str, Any] | None:
    """The manifest in place, if it is of the same data set.

    Raises:
        DataError: another data set is in place and must not be replaced.
    """
    if overwrite:
        return None
    layout = DataLayout(root)
    existing = manifests.read(root / "dataset")
    if existing is None:
        holders = layout.client_ids() or (root / "dataset" / "server").exists()
        posters = layout.shared / "mmimdb_posters"
        if holders or (layout.shared / "labels.json").exists() or (posters.is_dir() and any(posters.iterdir())):
            raise DataError(f"{root}: there is a data set that was not made here (it has no manifest); overwrite=true replaces it")
        return None
    differing = [key for key in ("source", "seed", "settings") if _comparable(existing, key) != _comparable(header, key)]
    if differing:
        was, new = _comparable(existing, differing[0]), _comparable(header, differing[0])
        if isinstance(was, dict) and isinstance(new, dict):
            key = next(k for k in sorted({*was, *new}) if was.get(k) != new.get(k))
            was, new = f"{key}={was.get(key)}", f"{key}={new.get(key)}"
        raise DataError(
            f"{root / 'dataset'}: a different data set is there ({differing[0]}: {was}, asked for {new}); "
            "overwrite=true replaces it, root=<folder> writes elsewhere"
        )
    return existing


def _comparable(header: dict[str, Any], key: str) -> Any:
    return header["source"]["kind"] if key == "source" else header[key]


def _read(source: str, options: PreparationOptions) -> tuple[Iterator[Movie], BadRows]:
    bad = BadRows(options.on_bad_row)
    if source == "synthetic":
        return generate(options.synthetic(), options.seed), bad
    return IMPORTERS[source](Path(options.path or ""), bad), bad


def describe(prepared: Prepared) -> str:
    """What a preparation did, for the terminal."""
    manifest, dataset = prepared.manifest, prepared.root / "dataset"
    rows = manifest["rows"]
    lines = [f"{rows['kept']} movies with {len(manifest['labels'])} labels from {manifest['source']['kind']}, seed {manifest['seed']}"]
    reasons = {
        "skipped": "bad rows left out",
        "duplicates": "duplicates left out (same text and poster)",
        "without_known_label": "rows left out whose every label is dropped",
        "over_limit": "rows left out by limit",
    }
    lines += [f"{rows[key]} {text}" for key, text in reasons.items() if rows[key]]
    lines += [f"  {reason}" for reason in rows["skipped_reasons"][:5]]
    state = "was there already and is unchanged" if prepared.unchanged else "written"
    lines += ["", manifests.table(manifest), "", f"{dataset / manifests.NAME}  {state}"]
    lines += [str(dataset / PLOT)] if (dataset / PLOT).is_file() else []
    return "\n".join(lines)
