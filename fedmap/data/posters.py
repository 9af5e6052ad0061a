"""Posters on disk as one array of small RGB pictures, decoded once and cached by content."""

from __future__ import annotations

import hashlib
import io
import logging
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from fedmap.data.cache import Arrays, cached_arrays, content_key, streamed_arrays
from fedmap.errors import DataError

log = logging.getLogger("fedmap.data")

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")  # those without an interpreter behind them
MAX_BYTES = 64 << 20
MAX_PIXELS = 50_000_000  # decoded, such a picture takes 150 MB; larger ones are errors or attacks
_MAX_SLOW_PIXELS = 1_000_000  # of a run-length coded BMP, which is decoded a thousand times slower than others
_DECODER = 1  # part of the cache's key: raise it when decoding gives other pixels than before
_THREADS = 4
_FRESH = 2.0  # seconds; a file changed twice within a clock tick may look unchanged, so recent ones are always read


@dataclass(frozen=True)
class PosterStore:
    """Decoded posters.

    Attributes:
        images: [m, 3, S, S] uint8 RGB, memory-mapped.
        readable: [m] bool; the pixels of a poster that could not be decoded mean nothing.
        digests: [m, 32] uint8, SHA-256 of the files.
    """

    images: npt.NDArray[np.uint8]
    readable: npt.NDArray[np.bool_]
    digests: npt.NDArray[np.uint8]


def decode_poster(content: bytes, size: int) -> npt.NDArray[np.uint8]:
    """A picture file as [3, size, size] RGB: turned upright, transparency over white, squeezed to a square.

    Raises:
        DataError: it is no picture of a known format, truncated, or larger than 64 MiB or 50 million pixels.
    """
    if not content:
        raise DataError("the file is empty")
    if len(content) > MAX_BYTES:
        raise DataError(f"the file has {len(content):,} bytes, more than {MAX_BYTES:,}")
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise DataError(f"the picture is {picture.width} x {picture.height}, more than {MAX_PIXELS:,} pixels")
            if picture.width * picture.height > _MAX_SLOW_PIXELS and any(tile[0] == "bmp_rle" for tile in picture.tile):
                raise DataError(
                    f"the picture is a run-length coded BMP of {picture.width} x {picture.height}, more than {_MAX_SLOW_PIXELS:,} "
                    "pixels; save it as PNG or JPEG"
                )
            picture.draft("RGB", (2 * size, 2 * size))  # lets JPEG decode at a fraction of a large size
            pixels = _to_rgb(_upright(picture)).resize((size, size), Image.Resampling.BILINEAR)
    except DataError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"the picture has more than {MAX_PIXELS:,} pixels") from error
    except MemoryError:
        raise
    except Exception as error:  # a damaged file makes the decoders raise nearly anything
        problem = str(error).split(" <_io.BytesIO")[0] if "cannot identify" not in str(error) else f"it is none of {', '.join(FORMATS)}"
        raise DataError(f"the picture cannot be decoded: {problem or type(error).__name__}") from error
    return np.ascontiguousarray(np.asarray(pixels, dtype=np.uint8).transpose(2, 0, 1))


def _upright(picture: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(picture)
    except Exception:  # a damaged note on the orientation does not spoil the picture; damaged pixels raise again when they are used
        return picture


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I"):  # 16 bits per pixel; PIL's own conversion would clip them at 255
        return Image.fromarray((np.asarray(picture).astype(np.float64) / 257).clip(0, 255).round().astype(np.uint8)).convert("RGB")
    if picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info:
        opaque = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", opaque.size, "white"), opaque).convert("RGB")
    return picture.convert("RGB")


def load_posters(paths: Sequence[Path], size: int, cache_dir: Path) -> PosterStore:
    """The posters decoded to size x size, from the cache if the same files were decoded before.

    Raises:
        DataError: a file vanished or changed while it was read, or the cache cannot be written.
    """
    digests = _digests(paths, cache_dir)
    key = "posters-" + content_key(digests, {"size": size, "decoder": _DECODER})

    def fill(arrays: Arrays) -> None:
        started = time.perf_counter()

        def decode(position: int) -> None:
            content = _content(paths[position])
            if hashlib.sha256(content).digest() != digests[position].tobytes():
                raise DataError(f"{paths[position]}: the file changed while it was read; start again when nothing writes there")
            try:
                arrays["images"][position] = decode_poster(content, size)
                arrays["readable"][position] = True
            except DataError:
                pass  # the caller asks `why_unreadable`: the reason is not cached, only the fact

        _for_each(len(paths), decode)
        log.info(
            "Decoded %d posters to %d x %d in %.1f s; they are cached in %s.",
            len(paths),
            size,
            size,
            time.perf_counter() - started,
            cache_dir,
        )

    shapes = {"images": ((len(paths), 3, size, size), np.uint8), "readable": ((len(paths),), np.bool_)}
    arrays = streamed_arrays(cache_dir, key, shapes, fill)
    return PosterStore(arrays["images"], arrays["readable"], digests)


def why_unreadable(path: Path, size: int) -> str:
    """Why a poster that `load_posters` could not decode is bad."""
    try:
        decode_poster(_content(path), size)
    except DataError as error:
        return str(error)
    return "the picture could not be decoded before and can be now; the file has changed, start again"


def _digests(paths: Sequence[Path], cache_dir: Path) -> npt.NDArray[np.uint8]:
    """[m, 32]: SHA-256 of each file. Files whose names, sizes and times are as before are not read again."""

    def read() -> Arrays:
        digests = np.zeros((len(paths), 32), np.uint8)

        def digest(position: int) -> None:
            digests[position] = np.frombuffer(hashlib.sha256(_content(paths[position])).digest(), np.uint8)

        _for_each(len(paths), digest)
        return {"sha256": digests}

    states = [_state(path) for path in paths]
    newest = max((max(state.st_mtime, state.st_ctime) for state in states), default=0.0)
    if time.time() - newest < _FRESH:
        return read()["sha256"]
    identity = [
        (str(path), state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino) for path, state in zip(paths, states, strict=True)
    ]
    return cached_arrays(cache_dir, "digests-" + content_key(identity), read)["sha256"]


def _state(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error


def _content(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(MAX_BYTES + 1)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error


def _for_each(count: int, work: Callable[[int], None]) -> None:
    """work(0) ... work(count - 1) on a few threads; decoding and hashing leave the interpreter's lock."""
    with ThreadPoolExecutor(max_workers=min(_THREADS, os.cpu_count() or 1)) as pool:
        for start in range(0, count, 1024):  # no more waiting tasks than that, and an error ends the work soon
            list(pool.map(work, range(start, min(start + 1024, count))))
