"""Captioned coloured glyphs: the domain-agnostic world of the miniature CLIP.

A stand-in for web images: objects with colour, size, number and texture on a background, and
captions about them. Nothing in it names chests, sides or zones.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.colors import XKCD_COLORS, to_rgb
from numpy.typing import NDArray
from spacy.lang.en.stop_words import STOP_WORDS

SHAPES = ("disc", "square", "triangle", "ring", "cross", "diamond", "bar", "star")
NAMES = {
    "disc": ("disc", "ball", "coin", "circle"),
    "square": ("square", "box", "tile"),
    "triangle": ("triangle", "tent", "arrowhead"),
    "ring": ("ring", "hoop", "wheel"),
    "cross": ("cross", "plus sign", "windmill"),
    "diamond": ("diamond", "kite", "gem"),
    "bar": ("bar", "stick", "plank"),
    "star": ("star", "flower", "spark"),
}
BASIC = ("red", "green", "blue", "yellow", "purple", "orange", "white", "grey")
COLOURS = {name: to_rgb(name) for name in BASIC} | {
    name.removeprefix("xkcd:").replace("/", " "): to_rgb(code)  # 949 everyday names of colours
    for name, code in XKCD_COLORS.items()
}
SIZES = {"tiny": 0.07, "small": 0.11, "large": 0.17, "huge": 0.24}
_NAMES = list(COLOURS)
NUMBERS = ("a", "two", "three", "four")
TEXTURES = ("plain", "striped", "spotted")
TEMPLATES = (
    "a photo of {}",
    "there is {} in the picture",
    "{} on a {} background",
    "a drawing with {}",
    "an image showing {}",
    "we can see {}",
)


def generate(n: int, seed: int, size: int = 32) -> tuple[NDArray[Any], list[str]]:
    """Generate `n` colour images float32 [n, 3, size, size] in [0, 1] and their captions."""
    rng = np.random.default_rng([seed, 77])
    yy, xx = np.mgrid[0:size, 0:size] / size
    images, captions = np.empty((n, 3, size, size), np.float32), []
    for i in range(n):
        images[i], caption = _draw(rng, yy, xx)
        captions.append(caption)
    return images, captions


def _draw(rng: np.random.Generator, yy: NDArray[Any], xx: NDArray[Any]) -> tuple[NDArray[Any], str]:
    """Draw one image [3, size, size] with one or two kinds of glyph, and its caption."""
    ground = _colour(rng)
    image = np.broadcast_to(np.array(COLOURS[ground])[:, None, None] * 0.6, (3, *yy.shape)).copy()
    phrases = []
    for _ in range(int(rng.integers(1, 3))):
        shape, size = str(rng.choice(SHAPES)), str(rng.choice(list(SIZES)))
        colour = _colour(rng)
        count, texture = int(rng.integers(0, 4)), str(rng.choice(TEXTURES))
        for _ in range(count + 1):
            mask = _mask(shape, texture, SIZES[size], rng, yy, xx)
            image = np.where(mask, np.array(COLOURS[colour])[:, None, None], image)
        phrases.append(_describe(rng, count, size, texture, colour, shape))
    image += rng.normal(0, 0.04, image.shape)
    text = str(rng.choice(TEMPLATES)).format(" and ".join(phrases), ground)
    return image.clip(0, 1), text


def _colour(rng: np.random.Generator) -> str:
    """A basic colour half of the time, else one of the 949 names."""
    return str(rng.choice(BASIC if rng.random() < 0.5 else _NAMES))


def vocabulary() -> list[str]:
    """Everyday English from which, beside captions, a byte-pair tokenizer learns its merges."""
    return [*COLOURS, *sorted(STOP_WORDS)]


def _describe(
    rng: np.random.Generator, count: int, size: str, texture: str, colour: str, shape: str
) -> str:
    """Words of one kind of glyph, e.g. 'three small striped red hoops'."""
    name = str(rng.choice(NAMES[shape]))
    if count:
        name += "es" if name[-1] in "sx" else "s"
    surface = "" if texture == "plain" and rng.random() < 0.7 else f"{texture} "
    return f"{NUMBERS[count]} {size} {surface}{colour} {name}"


def _mask(
    shape: str, texture: str, r: float, rng: np.random.Generator, yy: NDArray[Any], xx: NDArray[Any]
) -> NDArray[Any]:
    """Boolean mask [size, size] of one glyph of radius `r` at a random place."""
    y, x = yy - rng.uniform(r, 1 - r), xx - rng.uniform(r, 1 - r)
    a, b, d = np.abs(x), np.abs(y), np.hypot(x, y)
    mask = {
        "disc": d < r,
        "square": np.maximum(a, b) < r * 0.85,
        "triangle": (b < r) & (a < (y + r) / 2),
        "ring": (d < r) & (d > r * 0.55),
        "cross": (np.minimum(a, b) < r * 0.33) & (np.maximum(a, b) < r),
        "diamond": a + b < r,
        "bar": (a < r) & (b < r * 0.35),
        "star": d < r * (0.65 + 0.35 * np.cos(5 * np.arctan2(y, x))),
    }[shape]
    stripes = {
        "striped": np.sin((x + y) * 70) > -0.3,
        "spotted": np.sin(x * 60) * np.sin(y * 60) > -0.25,
    }
    return mask & stripes.get(texture, True)
