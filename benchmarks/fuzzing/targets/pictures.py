"""Posters: what a client's folder, a shard or an upload holds. The first byte says at which size it is wanted."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from fedmap.data.posters import FORMATS, decode_poster


class Pictures:
    """A picture becomes an array of the wanted size, or a `DataError` says why not."""

    allowed = ()
    processes = False

    def __init__(self, folder: Path) -> None:
        self.sizes = (1, 32, 224)

    def seeds(self) -> Sequence[bytes]:
        """Small pictures of all formats and modes, and some that unpack to many pixels."""
        found = []
        pixels = np.random.default_rng(0).integers(0, 256, (12, 9, 3), dtype=np.uint8)
        for kind in FORMATS:
            for mode in ("RGB", "RGBA", "P", "L", "1", "LA", "CMYK", "I;16"):
                sink = io.BytesIO()
                try:
                    _in_mode(pixels, mode).save(sink, kind)
                except (OSError, ValueError, KeyError):  # not every format has every mode
                    continue
                found.append(sink.getvalue())
        sink = io.BytesIO()
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.fromarray(pixels).save(sink, "JPEG", exif=exif, progressive=True)
        found.append(sink.getvalue())
        sink = io.BytesIO()
        Image.fromarray(pixels).save(sink, "GIF", save_all=True, append_images=[Image.fromarray(255 - pixels)])
        found.append(sink.getvalue())
        bombs = (
            _empty_png(7000, 7000, 8, 2),
            _empty_png(7000, 7000, 16, 0),
            _empty_png(7000, 7000, 8, 6),
            _empty_png(1 << 30, 1 << 30, 8, 2),
        )
        return [b"\1" + content for content in (*found, *bombs)]

    def run(self, data: bytes) -> None:
        """See the module."""
        size = self.sizes[(data[0] if data else 0) % len(self.sizes)]
        pixels = decode_poster(data[1:], size)
        assert pixels.shape == (3, size, size)
        assert pixels.dtype == np.uint8


def _in_mode(pixels: np.ndarray, mode: str) -> Image.Image:
    return Image.fromarray(pixels[..., 0].astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(pixels).convert(mode)


def _empty_png(width: int, height: int, depth: int, colour: int) -> bytes:
    """A PNG of zeros; a few thousand bytes that unpack to all pixels, where there are not too many."""
    channels = {0: 1, 2: 3, 6: 4}[colour]
    row = 1 + width * channels * depth // 8
    content = b""
    if row * height < 1 << 30:
        packer = zlib.compressobj(9)
        content = b"".join(packer.compress(bytes(row)) for _ in range(height)) + packer.flush()
    parts = (b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)), (b"IDAT", content), (b"IEND", b"")
    body = b"".join(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts)
    return b"\x89PNG\r\n\x1a\n" + body
