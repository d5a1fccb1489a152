"""The one record type that every data source yields."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from g2g_utils.config import FINDINGS
from g2g_utils.data.geometry import Box, crop_resize, transform_boxes
from g2g_utils.data.images import read_image

__all__ = ["FINDINGS", "Example", "Region", "merge_rows", "pairs", "unite"]


@dataclass(frozen=True, eq=False)
class Region:
    """One described abnormality of an image.

    `phrase` is its span of the impression. `side` is the *patient's* side ("left", "right",
    "bilateral") or None. `boxes` are in image pixels, one per lung for bilateral findings. `mask`
    is bool [H, W], or None if only boxes are known.
    """

    phrase: str
    finding: str
    side: str | None
    boxes: tuple[Box, ...]
    mask: NDArray[Any] | None = None


@dataclass(frozen=True, eq=False)
class Example:
    """An image with its text: an impression (`regions` filled) or one phrase (a pair).

    `image` is float32 [H, W] in [0, 1], or the path of an image file. `boxes` are pixels of that
    image, or of the file's own frame for a path. `framed` maps both to a square.
    """

    image: NDArray[Any] | Path
    phrase: str
    finding: str | None
    boxes: tuple[Box, ...]
    image_id: str
    subject_id: str
    split: str
    regions: tuple[Region, ...] = ()
    mask: NDArray[Any] | None = None

    def array(self) -> NDArray[Any]:
        """The whole image, float32 [H, W] in [0, 1]. A file is read (ImageError if it is bad)."""
        return read_image(self.image) if isinstance(self.image, Path) else self.image

    def load(self, size: int | None = None) -> NDArray[Any]:
        """The image as float32 [size, size] in [0, 1] (shorter side to size, centre crop)."""
        image = self.array()
        return image if size is None else crop_resize(image, size)

    def framed(self, size: int) -> Example:
        """The same record in a size × size frame: image loaded, all boxes mapped, masks dropped.

        Boxes outside the crop are dropped. A pair left without boxes cannot be scored.
        """
        image = self.array()
        height, width = image.shape
        if (height, width) == (size, size):
            return replace(self, image=image)
        regions = tuple(
            replace(r, boxes=transform_boxes(r.boxes, height, width, size), mask=None)
            for r in self.regions
        )
        boxes = transform_boxes(self.boxes, height, width, size)
        cropped = crop_resize(image, size)
        return replace(self, image=cropped, boxes=boxes, regions=regions, mask=None)


def unite(boxes: Iterable[Box]) -> tuple[Box, ...]:
    """Boxes without duplicates, in their first order. Their union is the target."""
    return tuple(dict.fromkeys(boxes))


def _merge(first: Example, second: Example) -> Example:
    masks = [m for m in (first.mask, second.mask) if m is not None]
    mask = np.logical_or.reduce(masks) if len(masks) == 2 else None
    return replace(first, boxes=unite(first.boxes + second.boxes), mask=mask)


def merge_rows(rows: Iterable[Example]) -> list[Example]:
    """Merge rows of one (image, phrase, class) into one record, their boxes united."""
    merged: dict[tuple[str, str, str | None], Example] = {}
    for row in rows:
        key = (row.image_id, row.phrase, row.finding)
        merged[key] = _merge(merged[key], row) if key in merged else row
    return list(merged.values())


def _as_pair(example: Example, region: Region) -> Example:
    return replace(
        example,
        phrase=region.phrase,
        finding=region.finding,
        boxes=region.boxes,
        mask=region.mask,
        regions=(),
    )


def pairs(examples: Iterable[Example]) -> list[Example]:
    """Image–phrase pairs from the regions of each image, one record per pair.

    Rows of one (image, phrase, class) merge, their boxes united. A record with boxes and no regions
    is a pair already. Images without boxes (normals) give no pair.
    """
    rows: list[Example] = []
    for example in examples:
        if example.regions:
            rows += [_as_pair(example, region) for region in example.regions]
        elif example.boxes:
            rows.append(example)
    return merge_rows(rows)
