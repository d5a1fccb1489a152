"""The affine map that images and boxes share.

The largest centred square of an image is resized to S × S (the shorter side becomes S),
antialiased. Boxes go through the same map as numbers.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Box = tuple[float, float, float, float]
"""`(x, y, w, h)` in pixels of the image frame, origin top left."""

log = logging.getLogger(__name__)


def _square(height: int, width: int) -> tuple[int, int, int]:
    """Left, top and side of the largest centred square, whole pixels."""
    side = min(height, width)
    return (width - side) // 2, (height - side) // 2, side


def crop_resize(image: NDArray[Any], size: int) -> NDArray[Any]:
    """Crop the centred square and resize it: [H, W] to [size, size], antialiased bilinear.

    Keeps float32 and the range. An image that is size × size already is returned unchanged.
    """
    if image.ndim != 2:
        raise ValueError(f"crop_resize wants an image [H, W], got shape {image.shape}")
    if size < 1:
        raise ValueError(f"crop_resize wants a positive size, got {size}")
    left, top, side = _square(*image.shape)
    square = np.ascontiguousarray(image[top : top + side, left : left + side], dtype=np.float32)
    if side == size:
        return square
    resized = Image.fromarray(square).resize((size, size), Image.Resampling.BILINEAR)
    return np.array(resized, dtype=np.float32)  # a copy, as Pillow's own is read-only


def transform_box(box: Box, height: int, width: int, size: int) -> Box | None:
    """Map one (x, y, w, h) like `crop_resize` and clip it; None if nothing is left."""
    left, top, side = _square(height, width)
    x, y, w, h = box
    if not all(map(math.isfinite, box)):
        raise ValueError(f"a box holds finite numbers, got {box}")
    scale = size / side
    x0, x1 = (min(max((v - left) * scale, 0.0), float(size)) for v in (x, x + w))
    y0, y1 = (min(max((v - top) * scale, 0.0), float(size)) for v in (y, y + h))
    return (x0, y0, x1 - x0, y1 - y0) if x1 > x0 and y1 > y0 else None


def restore_box(box: Box, height: int, width: int, size: int) -> Box:
    """Map a box of the size × size frame back to pixels of the height × width image."""
    left, top, side = _square(height, width)
    x, y, w, h = (value * side / size for value in box)
    return x + left, y + top, w, h


def transform_boxes(boxes: Iterable[Box], height: int, width: int, size: int) -> tuple[Box, ...]:
    """Map boxes of a height × width image like `crop_resize`, to pixels of size².

    Boxes are clipped to the frame. Boxes wholly outside are dropped and reported in the log.
    """
    kept = []
    for box in boxes:
        moved = transform_box(box, height, width, size)
        if moved is None:
            log.warning("box %s lies outside the centre crop of a %d×%d image", box, width, height)
        else:
            kept.append(moved)
    return tuple(kept)
