"""The three domains of Office-31 (Saenko et al., 2010), read from the real folders, and a generated stand-in for trying the code.

Expected below the folder that the user names, with or without the level `images`:

    amazon/images/back_pack/frame_0001.jpg        webcam/images/...        dslr/images/...
    amazon/back_pack/frame_0001.jpg               webcam/...               dslr/...
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from fedmap.data.base import Batch
from fedmap.errors import DataError

DOMAINS = ("amazon", "webcam", "dslr")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp")
LAYOUT = "expected amazon/, webcam/ and dslr/, each with one folder of images per class, directly or below images/"
Images = npt.NDArray[np.uint8]
IntArray = npt.NDArray[np.int64]

STAND_IN_ROWS = {"amazon": 40, "webcam": 12, "dslr": 8}  # per class: close to the 2,817 : 795 : 498 images of Office-31
SHAPES = ("disc", "ring", "square", "frame", "triangle", "cross", "saltire", "bars", "columns", "chequers")


@dataclass(frozen=True)
class Domain:
    """One domain's images, decoded once.

    Attributes:
        images: [n, 3, S, S] uint8 RGB.
        classes: [n] index into the class names.
        row_ids: n names, unique in the domain.
    """

    images: Images
    classes: IntArray
    row_ids: Sequence[str]


@dataclass(frozen=True)
class Office:
    """All domains over the same classes.

    Attributes:
        source: what the tables say about the data.
        real: whether these are photographs that the user supplied.
        class_names: the C classes, sorted.
        domains: by name, in the order of `DOMAINS`.
    """

    source: str
    real: bool
    class_names: Sequence[str]
    domains: Mapping[str, Domain]


def read_office(root: Path, image_size: int) -> Office:
    """Office-31 from its folders, every image squeezed to a square of image_size pixels.

    Raises:
        DataError: a domain or class is missing, empty or different between domains, or an image cannot be read; the message names it.
    """
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; {LAYOUT}")
    missing = [name for name in DOMAINS if not (root / name).is_dir()]
    if missing:
        found = sorted(path.name for path in root.iterdir() if path.is_dir())
        raise DataError(f"{root}: no folder {', '.join(missing)}; it holds {', '.join(found[:8]) or 'no folders'}; {LAYOUT}")
    files = {name: _files_by_class(root / name) for name in DOMAINS}
    names = sorted(files[DOMAINS[0]])
    for domain in DOMAINS[1:]:
        odd = sorted(set(names) ^ set(files[domain]))
        if odd:
            raise DataError(
                f"{root / domain}: its classes differ from {DOMAINS[0]}'s in {', '.join(odd[:5])}; all domains need the same class folders"
            )
    domains = {name: _read_domain(root / name, [files[name][c] for c in names], image_size) for name in DOMAINS}
    return Office(f"Office-31 folders, {image_size} x {image_size} pixels", True, names, domains)


def _files_by_class(domain: Path) -> dict[str, list[Path]]:
    top = domain / "images" if (domain / "images").is_dir() else domain
    classes = sorted(path for path in top.iterdir() if path.is_dir() and not path.name.startswith("."))
    if len(classes) < 2:
        raise DataError(f"{top}: {len(classes)} class folders, at least 2 are needed; {LAYOUT}")
    files = {path.name: sorted(f for f in path.iterdir() if f.suffix.lower() in IMAGE_SUFFIXES) for path in classes}
    for name, images in files.items():
        if len(images) < 3:
            raise DataError(
                f"{top / name}: {len(images)} images ({', '.join(IMAGE_SUFFIXES)}); at least 3 are needed to train, to tune and to score"
            )
    return files


def _read_domain(folder: Path, by_class: Sequence[Sequence[Path]], size: int) -> Domain:
    from PIL import Image

    rows = [(path, index) for index, paths in enumerate(by_class) for path in paths]
    images = np.empty((len(rows), 3, size, size), dtype=np.uint8)
    for place, (path, _) in enumerate(rows):
        try:
            with Image.open(path) as image:
                pixels = np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR))
        except (OSError, ValueError, SyntaxError) as error:
            raise DataError(f"{path}: cannot be read as an image ({error}); replace it or delete it") from error
        images[place] = pixels.transpose(2, 0, 1)
    return Domain(images, np.array([index for _, index in rows]), [str(path.relative_to(folder)) for path, _ in rows])


def generate_office(image_size: int, seed: int = 0, rows: Mapping[str, int] = STAND_IN_ROWS) -> Office:
    """A stand-in, not Office-31: ten shapes, drawn by three domains in a manner of their own.

    amazon: bright objects on white, centred. webcam: coarse pixels, noise and a warm cast over a cluttered background.
    dslr: pale objects, turned and shaded, on dark backgrounds.
    """
    domains = {}
    for place, name in enumerate(DOMAINS):
        rng = np.random.default_rng([seed, place])
        classes = np.repeat(np.arange(len(SHAPES)), rows[name])
        images = np.stack([_drawn(name, int(c), image_size, rng) for c in classes])
        domains[name] = Domain(images, classes, [f"{SHAPES[c]}/{i:04d}" for i, c in enumerate(classes)])
    return Office(f"generated stand-in, not Office-31 ({image_size} x {image_size} pixels)", False, SHAPES, domains)


def _mask(shape: int, u: npt.NDArray[np.float64], v: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Where the shape is, in its own coordinates u, v in about [-1, 1]."""
    radius, inside = np.hypot(u, v), np.maximum(abs(u), abs(v)) < 0.85
    return (
        radius < 0.9,
        (radius < 0.9) & (radius > 0.5),
        inside,
        inside & (np.maximum(abs(u), abs(v)) > 0.5),
        (v > -0.8) & (v < 0.8) & (abs(u) < (0.8 - v) * 0.55),
        inside & ((abs(u) < 0.28) | (abs(v) < 0.28)),
        inside & ((abs(u - v) < 0.38) | (abs(u + v) < 0.38)),
        inside & (np.sin(v * 9) > 0),
        inside & (np.sin(u * 9) > 0),
        inside & (np.sin(u * 7) * np.sin(v * 7) > 0),
    )[shape]


def _drawn(domain: str, shape: int, size: int, rng: np.random.Generator) -> Images:
    """One image [3, S, S]."""
    turn = {"amazon": 0.1, "webcam": 0.2, "dslr": 0.35}[domain] * rng.normal()
    scale, shift = rng.uniform(0.5, 0.85), rng.uniform(-0.2, 0.2, size=2)
    axis = np.linspace(-1, 1, size)
    y, x = np.meshgrid(axis, axis, indexing="ij")
    x, y = (x - shift[0]) / scale, (y - shift[1]) / scale
    mask = _mask(shape, x * np.cos(turn) - y * np.sin(turn), x * np.sin(turn) + y * np.cos(turn))[None]
    hue = rng.uniform(0, 1, size=(3, 1, 1))
    if domain == "amazon":
        image = np.where(mask, 0.8 * hue, 0.97)
    elif domain == "webcam":
        clutter = rng.uniform(0.42, 0.58, size=(3, 4, 4)).repeat(-(-size // 4), 1).repeat(-(-size // 4), 2)[:, :size, :size]
        image = np.where(mask, 0.3 * clutter + 0.7 * np.where(hue > 0.5, 1.0, 0.0) * rng.uniform(0.6, 1.0), clutter)
        block = max(size // 16, 1)
        image = image[:, ::block, ::block].repeat(block, 1).repeat(block, 2)[:, :size, :size]
        image = image * np.array([1.15, 1.0, 0.8])[:, None, None] + 0.06 * rng.normal(size=image.shape)
    else:
        shade = 0.75 + 0.25 * np.linspace(-1, 1, size)[None, :, None] * rng.choice([-1, 1])
        image = np.where(mask, 0.55 + 0.35 * hue, 0.12 + 0.1 * hue[::-1]) * shade
    return (np.clip(image, 0, 1) * 255).astype(np.uint8)


@dataclass(frozen=True)
class OfficeSplit:
    """Rows of a domain as a split of the product: one-hot labels, so that micro-F1 is the accuracy."""

    images: Images
    labels: npt.NDArray[np.uint8]
    modalities: npt.NDArray[np.bool_]
    row_ids: Sequence[str]

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, rows: npt.NDArray[np.int64]) -> Batch:
        """Images [B, 3, S, S] float32 in [-1, 1] and one-hot labels [B, C]."""
        return {
            "image": torch.from_numpy(self.images[rows].astype(np.float32) / 127.5 - 1),
            "labels": torch.from_numpy(self.labels[rows].astype(np.float32)),
        }


def split_domain(domain: Domain, num_classes: int, share: float, rng: np.random.Generator) -> tuple[Domain, Domain]:
    """The domain in two, `share` of every class in the first part, and of every class at least one row in both."""
    first = []
    for c in range(num_classes):
        rows = rng.permutation(np.flatnonzero(domain.classes == c))
        first.append(rows[: min(max(round(share * len(rows)), 1), len(rows) - 1)])
    chosen = np.zeros(len(domain.classes), dtype=bool)
    chosen[np.concatenate(first)] = True
    return _rows(domain, chosen), _rows(domain, ~chosen)


def _rows(domain: Domain, chosen: npt.NDArray[np.bool_]) -> Domain:
    ids = [name for name, keep in zip(domain.row_ids, chosen, strict=True) if keep]
    return Domain(domain.images[chosen], domain.classes[chosen], ids)


def as_split(domain: Domain, num_classes: int) -> OfficeSplit:
    """A domain's rows for training and evaluation."""
    labels = np.eye(num_classes, dtype=np.uint8)[domain.classes]
    return OfficeSplit(domain.images, labels, np.ones((len(labels), 1), dtype=bool), domain.row_ids)
