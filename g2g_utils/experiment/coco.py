"""Boxes and masks of groundings as one JSON file in COCO's object format.

A category is a phrase, an annotation one connected region of a pair's mask. Masks are run lengths
by columns, uncompressed, so no library is needed to write or read them. All places are in pixels of
the image files.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from g2g_utils import metrics
from g2g_utils.data.geometry import restore_box

Mask = NDArray[np.bool_]
Size = tuple[int, int]


def run_lengths(
    mask: Mask, corner: tuple[int, int] = (0, 0), size: Size | None = None
) -> list[int]:
    """Lengths of runs by columns, the first of pixels outside the mask (it may be 0).

    Args:
        mask: [h, w].
        corner: top and left of the mask in the film.
        size: height and width of the film; None: those of the mask.
    """
    height, width = size or mask.shape
    columns, rows = np.nonzero(mask.T)
    at = (columns + corner[1]) * height + rows + corner[0]  # in the film, by columns
    edges = np.stack([np.setdiff1d(at, at + 1), np.setdiff1d(at + 1, at)], 1).ravel()
    counts = np.diff(np.r_[0, edges, height * width])
    return [int(count) for count in (counts if counts[-1] else counts[:-1])]


def in_film(values: NDArray[Any], height: int, width: int) -> NDArray[np.float32]:
    """A map [h, w] of the centred square, bilinearly in a height x width film; 0 beside it."""
    left, top, side, _ = (round(v) for v in restore_box((0, 0, 1, 1), height, width, 1))
    film = np.zeros((height, width), np.float32)
    square = torch.from_numpy(values.astype(np.float32))
    film[top : top + side, left : left + side] = metrics.resize(square, side).numpy()
    return film


def film_mask(
    heat: NDArray[Any], mask: Mask, threshold: float | None, size: tuple[int, int]
) -> Mask:
    """Mask [height, width] of a film of this size.

    Args:
        heat: map [h, w] of the centred square, in [0, 1].
        mask: the method's own mask [h, w].
        threshold: foreground is where the heat is above it; None takes the method's mask.
        size: height and width of the film.
    """
    if threshold is None:
        return in_film(mask, *size) > 0.5
    return in_film(heat, *size) > threshold


def regions(mask: Mask, heat: NDArray[np.float32]) -> list[dict[str, Any]]:
    """Annotations of a film's mask: one a connected region (8 neighbours), the hottest first.

    Args:
        mask: [H, W] of the film.
        heat: [H, W] of the film, whose largest value in a region is its score.
    """
    from scipy import ndimage

    labels, _ = ndimage.label(mask, np.ones((3, 3)))
    found = []
    for number, (rows, columns) in enumerate(ndimage.find_objects(labels), start=1):
        own, corner = labels[rows, columns] == number, (rows.start, columns.start)
        counts = run_lengths(own, corner, (mask.shape[0], mask.shape[1]))
        box = (columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start)
        found.append(
            {
                "bbox": [int(value) for value in box],
                "area": int(own.sum()),
                "segmentation": {"counts": counts, "size": list(mask.shape)},
                "iscrowd": 0,
                "score": round(float(heat[rows, columns][own].max()), 4),
            }
        )
    return sorted(found, key=lambda one: -one["score"])


def table(
    pairs: Iterable[tuple[str, Size, str, list[dict[str, Any]]]],
) -> dict[str, Any]:
    """COCO's dictionary of (file name, height and width, phrase, annotations) of every pair."""
    images: dict[str, dict[str, Any]] = {}
    categories: dict[str, int] = {}
    annotations: list[dict[str, Any]] = []
    for name, (height, width), phrase, found in pairs:
        shape = {"file_name": name, "height": height, "width": width}
        image = images.setdefault(name, {"id": len(images) + 1, **shape})
        category = categories.setdefault(phrase, len(categories) + 1)
        for one in found:
            ids = {"id": len(annotations) + 1, "image_id": image["id"], "category_id": category}
            annotations.append(ids | one)
    return {
        "images": list(images.values()),
        "categories": [{"id": number, "name": phrase} for phrase, number in categories.items()],
        "annotations": annotations,
    }
