"""Any folder of images with a CSV: ``image, phrase`` and optionally ``finding, x, y, w, h``.

A ``subject`` column, where there is one, names the patient (bootstrap intervals are drawn over
patients); without it every image counts as a patient. Other columns are ignored.
"""

from __future__ import annotations

import csv
import difflib
import math
import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from g2g_utils.data.record import FINDINGS, Box, Example, merge_rows
from g2g_utils.data.transforms import ImageError, image_size

REQUIRED = ("image", "phrase")
BOX_COLUMNS = ("x", "y", "w", "h")
SLACK = 1.0  # pixels a box may stick out by: annotation tools round

Row = dict[str, str]


class FolderError(ValueError):
    """A CSV that cannot be used: one line with file, row, column, problem and fix."""


class _Reader:
    """One CSV file: where it is, where its images are, and how to complain about it."""

    def __init__(self, csv_path: Path, image_root: Path) -> None:
        self.path, self.root = csv_path, image_root
        self.line: int | None = None
        self.size = lru_cache(maxsize=None)(image_size)

    def error(self, problem: str, fix: str, column: str | None = None) -> FolderError:
        place = str(self.path)
        place += f", line {self.line}" if self.line else ""
        place += f", column {column!r}" if column else ""
        return FolderError(f"{place}: {problem}; {fix}")

    def example(self, row: Row) -> Example:
        """One validated row as a record with at most one box."""
        if not row["phrase"]:
            raise self.error("the phrase is empty", "write what to look for", "phrase")
        image, (height, width) = self._image(row)
        box = self._box(row, height, width)
        return Example(
            image=image,
            phrase=row["phrase"],
            finding=self._finding(row),
            boxes=() if box is None else (box,),
            image_id=row["image"],
            subject_id=row.get("subject") or row["image"],
            split="test",
        )

    def _image(self, row: Row) -> tuple[Path, tuple[int, int]]:
        if not row["image"]:
            raise self.error("the image name is empty", "name an image file", "image")
        path = self.root / row["image"]
        try:
            return path, self.size(path)
        except ImageError as error:
            fix = f"image names are relative to {self.root}"
            raise self.error(str(error), fix, "image") from error

    def _finding(self, row: Row) -> str | None:
        name = row.get("finding", "")
        known = {finding.lower(): finding for finding in FINDINGS}
        if not name or name.lower() in known:
            return known.get(name.lower())
        close = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.5)
        hint = f"did you mean {known[close[0]]!r}? " if close else ""
        fix = f"{hint}classes: {', '.join(FINDINGS)}, or leave it empty"
        raise self.error(f"unknown class {name!r}", fix, "finding")

    def _number(self, row: Row, column: str) -> float:
        text = row.get(column, "")
        if not text:
            fix = "fill x, y, w and h, or leave all four empty"
            raise self.error("the box is incomplete", fix, column)
        try:
            value = float(text)
        except ValueError:
            fix = "write pixels with a decimal point"
            raise self.error(f"{text!r} is not a number", fix, column) from None
        if not math.isfinite(value):
            fix = "write pixels, or leave x, y, w and h empty where there is no box"
            raise self.error(f"{text!r} is not a finite number", fix, column)
        return value

    def _box(self, row: Row, height: int, width: int) -> Box | None:
        if not any(row.get(column) for column in BOX_COLUMNS):
            return None
        x, y, w, h = (self._number(row, column) for column in BOX_COLUMNS)
        for column, length in (("w", w), ("h", h)):
            if length <= 0:
                fix = "width and height are positive pixels (not a second corner)"
                raise self.error(f"box side {length:g} is not positive", fix, column)
        for column, start, length, limit in (("x", x, w, width), ("y", y, h, height)):
            if start < -SLACK or start + length > limit + SLACK:
                problem = (
                    f"box from {start:g} to {start + length:g} leaves the image (0 to {limit})"
                )
                fix = "boxes are x, y, w, h in pixels of the image file, origin top left"
                raise self.error(problem, fix, column)
        return x, y, w, h


def _check_header(reader: _Reader, header: list[str]) -> None:
    missing = [column for column in REQUIRED if column not in header]
    if missing:
        for delimiter, name in ((";", "semicolons"), ("\t", "tabs"), ("|", "bars")):
            if len(header) == 1 and delimiter in header[0]:
                raise reader.error(f"the columns are separated by {name}", "use commas")
        problem = f"no column {missing[0]!r} among {', '.join(header)}"
        raise reader.error(problem, f"the header needs {', '.join(REQUIRED)}", missing[0])
    twice = sorted({column for column in header if column and header.count(column) > 1})
    if twice:
        raise reader.error(f"column {twice[0]!r} occurs twice", "rename one", twice[0])
    some = [column for column in BOX_COLUMNS if column in header]
    if some and len(some) < len(BOX_COLUMNS):
        absent = next(column for column in BOX_COLUMNS if column not in header)
        raise reader.error("the box columns are incomplete", "x, y, w and h go together", absent)


def _rows(reader: _Reader) -> Iterator[Row]:
    """The data rows, stripped; ``reader.line`` is the line of the current row."""
    with reader.path.open(newline="", encoding="utf-8-sig") as file:
        lines = csv.reader(file)
        header = [name.strip() for name in next(lines, [])]
        reader.line = 1
        if not any(header):
            raise reader.error("the file is empty", "the first line names the columns")
        _check_header(reader, header)
        for cells in lines:
            reader.line = lines.line_num
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) != len(header):
                problem = f"{len(cells)} cells where the header has {len(header)}"
                raise reader.error(problem, 'put phrases with commas into "quotes"')
            yield {name: cell.strip() for name, cell in zip(header, cells, strict=True)}


def load(
    csv_path: str | os.PathLike[str], image_root: str | os.PathLike[str] | None = None
) -> list[Example]:
    """The pairs of a CSV, one record per (image, phrase, finding), boxes of equal rows united.

    Image names are relative to ``image_root``, by default the CSV's folder. Images stay on disk
    (``Example.load``); boxes are pixels of the file. Raises FolderError at the first bad row.
    """
    path = Path(csv_path)
    reader = _Reader(path, Path(image_root) if image_root is not None else path.parent)
    if not path.is_file():
        raise reader.error("no such file", "give the path of a CSV file")
    try:
        examples = [reader.example(row) for row in _rows(reader)]
    except UnicodeDecodeError as error:
        raise reader.error(f"not UTF-8 text ({error.reason})", "save it as UTF-8 CSV") from error
    except csv.Error as error:
        raise reader.error(f"not a CSV file ({error})", "save it as UTF-8 CSV") from error
    if not examples:
        raise reader.error("no rows below the header", "add at least one image and phrase")
    return merge_rows(examples)
