"""Posters from a visual grammar: palettes and emblems tell the style, other emblems and weaves the kind of story.

Emblems vary in place, size and tint, and there is clutter without meaning.
Only whole-number drawing and plain arithmetic are used, and no fonts, so that a seed gives the same pixels on every machine.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

Colour = tuple[int, int, int]

# warm, dark, cool: backgrounds and ink. Their ranges overlap once the tint is added.
_BACKGROUNDS: tuple[tuple[Colour, ...], ...] = (
    ((214, 150, 80), (200, 110, 80), (222, 180, 110)),
    ((44, 40, 52), (70, 44, 44), (36, 52, 60)),
    ((110, 180, 214), (140, 214, 180), (190, 200, 226)),
)
_INKS: tuple[tuple[Colour, ...], ...] = (
    ((150, 36, 30), (240, 214, 90), (110, 60, 20)),
    ((190, 30, 40), (130, 130, 140), (16, 14, 20)),
    ((24, 70, 160), (250, 250, 250), (20, 130, 120)),
)
_TINT = 38  # the largest shift of a colour channel
_WEAVE = 24  # brightness of a weave's bright threads
_STRAY = 0.08  # share of emblems in a style that the movie does not belong to

# Unit polygons (x, y in -1..1): one for each style, four for the kinds of story.
_STYLE_SHAPES: tuple[tuple[tuple[float, float], ...], ...] = (
    ((0, -1), (1, 0), (0, 1), (-1, 0)),  # warm: diamond
    ((-0.25, -1), (0.25, -1), (0.25, 1), (-0.25, 1)),  # dark: bar
    ((1, 0), (0.7, 0.7), (0, 1), (-0.7, 0.7), (-1, 0), (-0.7, -0.7), (0, -1), (0.7, -0.7)),  # cool: disc
)
_STORY_SHAPES: tuple[tuple[tuple[float, float], ...], ...] = (
    ((0, 1), (-1, -0.2), (-0.6, -0.9), (0, -0.4), (0.6, -0.9), (1, -0.2)),  # heart
    ((-1, -1), (1, -1), (1, 1), (-1, 1), (-1, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5), (-0.5, 0), (-1, 0)),  # secret: maze
    ((0, -1), (1, 1), (-1, 1)),  # battle: tent
    ((0, -1), (0.25, -0.25), (1, 0), (0.25, 0.25), (0, 1), (-0.25, 0.25), (-1, 0), (-0.25, -0.25)),  # wonder: star
)


def draw_poster(cells: Sequence[tuple[int, int]], clarity: float, width: int, height: int, rng: np.random.Generator) -> bytes:
    """A PNG poster for a movie's genres.

    Args:
        cells: (story 0..3, style 0..2) of each genre, the first being the movie's main one.
        clarity: probability that an emblem has the shape of its genre's story, and not of its style, and that half of the
            background has the weave of a genre's story, and not none.
        width: pixels.
        height: pixels.
    """
    halves = [cells[int(index)] for index in rng.permutation(len(cells))[[0, -1]]]
    colours = [_shade(_BACKGROUNDS[style], rng) for _, style in halves]
    weaves = [story if rng.random() < clarity else None for story, _ in halves]
    image = _background(colours, weaves, width, height, rng)
    draw = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(2, 6))):  # clutter without meaning
        _speckle(draw, width, height, rng)
    subjects = [*cells] + [cells[int(rng.integers(len(cells)))] for _ in range(int(rng.integers(1, 4)))]
    for index in rng.permutation(len(subjects)):
        story, style = subjects[int(index)]
        if rng.random() < _STRAY:
            style = int(rng.integers(len(_STYLE_SHAPES)))
        shape = _STORY_SHAPES[story] if rng.random() < clarity else _STYLE_SHAPES[style]
        _emblem(draw, shape, _shade(_INKS[style], rng), width, height, rng)
    _title(draw, width, height, rng)
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=3)
    return file.getvalue()


def _shade(palette: Sequence[Colour], rng: np.random.Generator) -> Colour:
    base = palette[int(rng.integers(len(palette)))]
    red, green, blue = (min(255, max(0, channel + int(rng.integers(-_TINT, _TINT + 1)))) for channel in base)
    return red, green, blue


def _background(colours: Sequence[Colour], weaves: Sequence[int | None], width: int, height: int, rng: np.random.Generator) -> Image.Image:
    """A grainy ramp from the first colour at the top to the second at the bottom; each half may have a story's weave."""
    grain = rng.integers(-14, 15, size=(max(2, height // 8), max(2, width // 8)))
    ramp = np.linspace(0.0, 1.0, grain.shape[0])[:, None, None]
    coarse = np.array(colours[0]) * (1 - ramp) + np.array(colours[1]) * ramp + grain[:, :, None]
    smooth = Image.fromarray(np.clip(coarse, 0, 255).astype(np.uint8), "RGB").resize((width, height), Image.Resampling.BILINEAR)
    pixels = np.asarray(smooth).astype(np.int64)
    for half, story in zip((slice(0, height // 2), slice(height // 2, height)), weaves, strict=True):
        if story is not None:
            pixels[half] += _weave(story, width, height)[half, :, None]
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8), "RGB")


def _weave(story: int, width: int, height: int) -> npt.NDArray[np.int64]:
    """[height, width] brightness to add: dots, upright stripes, level stripes or checks."""
    thread = max(2, width // 16)
    x, y = np.arange(width)[None, :] // thread, np.arange(height)[:, None] // thread
    patterns = ((x % 3 == 0) & (y % 3 == 0), (x % 2 == 0) & (y >= 0), (y % 2 == 0) & (x >= 0), (x + y) % 2 == 0)
    return np.asarray(np.where(patterns[story], _WEAVE, -_WEAVE // 2), dtype=np.int64)


def _emblem(
    draw: ImageDraw.ImageDraw, shape: Sequence[tuple[float, float]], colour: Colour, width: int, height: int, rng: np.random.Generator
) -> None:
    size = width * float(rng.uniform(0.15, 0.28))
    x, y = width * float(rng.uniform(0.15, 0.85)), height * float(rng.uniform(0.12, 0.75))
    stretch, lean = float(rng.uniform(0.8, 1.25)), float(rng.uniform(-0.25, 0.25))
    points = [(round(x + size * (px * stretch + py * lean)), round(y + size * py)) for px, py in shape]
    draw.polygon(points, fill=colour)


def _speckle(draw: ImageDraw.ImageDraw, width: int, height: int, rng: np.random.Generator) -> None:
    x, y = int(rng.integers(width)), int(rng.integers(height))
    grey = int(rng.integers(40, 216))
    draw.rectangle((x, y, x + int(rng.integers(1, 1 + width // 8)), y + int(rng.integers(1, 1 + height // 12))), fill=(grey, grey, grey))


def _title(draw: ImageDraw.ImageDraw, width: int, height: int, rng: np.random.Generator) -> None:
    ink = (245, 240, 230) if rng.random() < 0.5 else (20, 20, 24)
    x, y = width // 8 + int(rng.integers(width // 8)), height * 5 // 6 + int(rng.integers(max(1, height // 12)))
    while x < width * 7 // 8:
        letter = int(rng.integers(2, 3 + width // 12))
        draw.rectangle((x, y, x + letter, y + max(2, height // 24)), fill=ink)
        x += letter + 2
