"""Samples of an image as its file stores them, and the one way from them to a film in [0, 1]."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from g2g_utils.data.plain import printable

log = logging.getLogger("g2g_utils.data.images")  # one for all readers

LARGEST = 100_000_000  # pixels: a film of 10 000 × 10 000
SMALLEST_SIDE = 8  # pixels: nothing can be seen in less
BIT_DEPTHS = (8, 10, 12, 14, 16)
LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R 601, as Pillow
SQUARE_SLACK = 0.02  # relative; scanners and printers round


class ImageError(ValueError):
    """An image file that cannot be used: one line with the file, the problem and the fix."""

    def __init__(self, path: Path, problem: str, fix: str) -> None:
        super().__init__(printable(f"{path}: {problem}; {fix}"))


class Samples(NamedTuple):
    """Pixels as a file stores them, and what they mean.

    Attributes:
        colours: [H, W] or [H, W, C]; integers or floats. Grey, RGB (C = 3) or CMYK inks (C = 4).
        alpha: [H, W] opacity, integers or booleans. None is opaque.
        white_is_zero: the smallest value is white.
        premultiplied: colours lie over black already.
        orientation: how to turn the image upright, 1 to 8 as in EXIF and TIFF.
    """

    colours: NDArray[Any]
    alpha: NDArray[Any] | None = None
    white_is_zero: bool = False
    premultiplied: bool = False
    orientation: int = 1


def shown(samples: Samples) -> NDArray[Any]:
    """The film [H, W] of samples: luminance over black, upright, white = 1.

    Pixels of no opacity set no level. NaN and infinity stay; they are refused later.
    """
    colours, alpha = samples.colours, samples.alpha
    if alpha is not None and not (seen := alpha > 0).all():
        colours = colours * (seen if colours.ndim == 2 else seen[..., None])
    inks = colours.ndim == 3 and colours.shape[-1] == 4
    grey = _printed(colours) if inks else _scaled(_luminance(colours), *levels(colours))
    if samples.white_is_zero:
        grey = 1 - grey
    if alpha is not None and not samples.premultiplied:
        grey = grey * _scaled(_floats(alpha), *levels(alpha))
    return _upright(grey, samples.orientation)


def levels(values: NDArray[Any]) -> tuple[float, float]:
    """Black and white of samples.

    Integers: 0 and the maximum of the smallest depth (8, 10, 12, 14, 16 bits) that holds them.
    Floats in [0, 1]: 0 and 1. Others, and signed ones: their own minimum and maximum.
    """
    if values.dtype == bool:
        return 0.0, 1.0
    low, high = float(values.min()), float(values.max())
    if np.issubdtype(values.dtype, np.integer) and low >= 0:
        return 0.0, ceiling(high)
    if (0 <= low and high <= 1) or not math.isfinite(low + high):
        return 0.0, 1.0
    return low, high


def ceiling(peak: float) -> float:
    """White of integers with this maximum: that of the smallest bit depth that holds it."""
    return next((2.0**bits - 1 for bits in BIT_DEPTHS if peak < 2**bits), peak)


def warn_stretched(path: Path, width: float, height: float) -> None:
    """Warn that pixels are not square. The image is used as stored, and boxes fit it."""
    if min(width, height) > 0 and abs(width / height - 1) > SQUARE_SLACK:
        text = "%s: its pixels are %.4g wide and %.4g high; resample it to square ones, boxes too"
        log.warning(text, path, width, height)


def warn_frames(path: Path, frames: int) -> None:
    """Warn that only the first of several frames is used."""
    if frames > 1:
        log.warning("%s has %d frames: the first is used", path, frames)


def check_size(path: Path, height: int, width: int) -> tuple[int, int]:
    """(height, width), or ImageError for an image that is too small or too large to decode."""
    if min(height, width) < SMALLEST_SIDE:
        problem = f"the image is only {width}×{height} pixels"
        raise ImageError(path, problem, f"use one of at least {SMALLEST_SIDE} pixels a side")
    if height * width > LARGEST:
        problem = f"the image has {width}×{height} pixels"
        raise ImageError(path, problem, f"resize it to {LARGEST // 10**6} million or less first")
    return height, width


def _floats(values: NDArray[Any]) -> NDArray[Any]:
    """Values as floats that tell them apart: of 32 bits up to two bytes a value, else of 64."""
    return values.astype(np.float32 if values.itemsize <= 2 else np.float64)


def _luminance(colours: NDArray[Any]) -> NDArray[Any]:
    """Luminance [H, W] of grey or RGB, as floats in the unit of the samples."""
    if colours.ndim == 2:
        return _floats(colours)
    red, green, blue = (weight * _floats(colours[..., k]) for k, weight in enumerate(LUMINANCE))
    return np.asarray(red + green + blue)


def _printed(inks: NDArray[Any]) -> NDArray[Any]:
    """Luminance [H, W] of CMYK inks in [0, 1]."""
    low, high = levels(inks)
    paper = 1 - _scaled(_luminance(inks[..., :3]), low, high)
    return np.asarray(paper * (1 - _scaled(_floats(inks[..., 3]), low, high)))


def _scaled(values: NDArray[Any], low: float, high: float) -> NDArray[Any]:
    """Values with black at 0 and white at 1; all 0 where the two agree."""
    return (values - low) / (high - low) if high > low else np.zeros_like(values)


def _upright(image: NDArray[Any], orientation: int) -> NDArray[Any]:
    """An image turned as its orientation tag says (1 to 8); other numbers say nothing."""
    image = image.T if orientation in (5, 6, 7, 8) else image
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    return image[:, ::-1] if orientation in (2, 3, 6, 7) else image
