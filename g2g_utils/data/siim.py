"""SIIM-ACR Pneumothorax Segmentation 2019: run-length masks on DICOM images of the NIH."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from g2g_utils.data.files import Images, collect
from g2g_utils.data.geometry import Box
from g2g_utils.data.record import Example, Region, merge_rows
from g2g_utils.data.tables import Row, TableError, locate, read

TABLES = ("train-rle*.csv", "stage_2_train*.csv")
COLUMNS = ("ImageId", "EncodedPixels")  # some editions write a blank before the second
SUFFIXES = (".dcm", ".png", ".jpg")
SIDE = 1024  # pixels: the frame of all masks
FINDING = "Pneumothorax"
NOTHING = "-1"  # a film without a pneumothorax


def rows(root: Path) -> Iterator[Row]:
    """Rows of the table, one per mask or film without a mask. `root` may be the file itself."""
    return read(root if root.is_file() else locate(root, *TABLES), COLUMNS)


def decode(runs: str, height: int, width: int) -> NDArray[np.bool_]:
    """Mask [height, width] of run lengths: pairs (pixels skipped, pixels of the mask), by columns.

    Raises:
        ValueError: no pairs of whole numbers, or they lead beyond the film.
    """
    words = runs.split()
    if not words or len(words) % 2 or not all(word.isdigit() for word in words):
        raise ValueError(f"{runs[:40]!r} is no list of pairs of whole numbers")
    ends = np.cumsum([int(word) for word in words])
    if ends[-1] > height * width:
        raise ValueError(f"the runs end at pixel {ends[-1]} of {height * width}")
    flat = np.zeros(height * width, bool)
    for start, end in zip(ends[0::2], ends[1::2], strict=True):
        flat[start:end] = True
    return flat.reshape(width, height).T


def _box(mask: NDArray[np.bool_]) -> Box:
    """Tight box of a mask that is not empty."""
    y, x = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return float(x[0]), float(y[0]), float(x[-1] - x[0] + 1), float(y[-1] - y[0] + 1)


def _places(folder: Path) -> dict[str, Path]:
    """Image files by name without suffix: films lie in folders of their studies and series."""
    return {p.stem: p for p in sorted(folder.rglob("*")) if p.suffix.lower() in SUFFIXES}


def _mask(row: Row, size: tuple[int, int]) -> NDArray[np.bool_]:
    if size != (SIDE, SIDE):
        problem = f"the film is {size[1]}×{size[0]} pixels, its mask {SIDE}×{SIDE}"
        raise row.error(problem, "use the films as published, not resized", "ImageId", "frame")
    try:
        mask = decode(row["EncodedPixels"], *size)
    except ValueError as error:
        raise row.error(str(error), "take the published file", "EncodedPixels") from None
    if not mask.any():
        raise row.error("the mask is empty", "write -1 for no pneumothorax", "EncodedPixels")
    return mask


def load(
    root: Path,
    images: Path | None = None,
    template: str = "{}",
    negatives: bool = False,
    masks: bool = False,
    problems: list[TableError] | None = None,
) -> list[Example]:
    """Load the films with a pneumothorax, masks united; with `negatives` also the others.

    masks: keep the masks, a MiB a film; else the boxes around them alone.

    Several rows of one film are one record, whatever their order, so that no split parts them. The
    challenge names images, not patients: every image counts as a patient.
    """
    folder = images or (root.parent if root.is_file() else root)
    known, films = _places(folder), Images([folder], SUFFIXES)

    def example(row: Row) -> Example | None:
        name = row.text("ImageId", "the image name is empty", "take the published file")
        empty = row["EncodedPixels"] == NOTHING
        if empty and not negatives:
            return None
        path = films.find(row, "ImageId", str(known.get(name, Path(f"{name}.dcm"))))
        mask = None if empty else _mask(row, films.size(path))
        boxes = () if mask is None else (_box(mask),)
        phrase, kept = template.format(FINDING.lower()), mask if masks else None
        return Example(path, phrase, FINDING, boxes, name, name, "test", mask=kept)

    found = merge_rows(collect(rows(root), example, "ImageId", films, problems))
    return [_with_region(film) if film.mask is not None else film for film in found]


def _with_region(film: Example) -> Example:
    """The film with its pneumothorax as a region, which keeps the mask."""
    region = Region(film.phrase, FINDING, None, film.boxes, film.mask)
    return replace(film, regions=(region,))
