"""Any folder of images with a CSV: `image, phrase` and optionally `finding, x, y, w, h`.

An optional column `subject` names the patient, for bootstrap intervals over patients. Without it
every image counts as a patient. Boxes are pixels of the file, or of the frame that the optional
columns `image_width, image_height` name. Other columns are ignored.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from g2g_utils.data.files import Images, collect, report_two_classes
from g2g_utils.data.geometry import Box
from g2g_utils.data.plain import is_empty, plain
from g2g_utils.data.record import FINDINGS, Example, merge_rows
from g2g_utils.data.tables import BOX_COLUMNS, Row, TableError, read

log = logging.getLogger(__name__)

REQUIRED = ("image", "phrase")
FRAME = ("image_width", "image_height")
OPTIONAL = ("finding", "subject", *BOX_COLUMNS, *FRAME)
BOXLIKE = re.compile(  # a column's name, letters and digits alone: boxes in another form
    r"[xy](?:\d|tl|br|min|max|start|end|c|center|centre)|(?:start|end|min|max)[xy]"
    r"|left|top|right|bottom|.*(?:bbox|boundingbox).*|box|boxes"
)
MEANT = {  # a column's name, letters alone -> the column that it seems to be
    "label": "finding",
    "class": "finding",
    "category": "finding",
    "subjectid": "subject",
    "patient": "subject",
    "patientid": "subject",
}
FEWEST, CORNERS = 3, (0.35, 0.55)
"""Boxes that all end in this upper left part of their films tell of another frame: few, or more."""
CLASSES = {finding.lower(): finding for finding in FINDINGS}

FolderError = TableError
"""A CSV that cannot be used: one line with file, row, column, problem and fix."""


def _example(row: Row, images: Images) -> Example:
    """One validated row as a record with at most one box."""
    phrase = row.phrase("phrase", "the phrase is empty", "write what to look for")
    name = Path(row.text("image", "the image name is empty", "name an image file")).as_posix()
    image = images.find(row, "image", name)
    box = _box(row, images, image)
    named = not is_empty(row.get("finding"))
    return Example(
        image=image,
        phrase=phrase,
        finding=row.one_of("finding", CLASSES, ", or leave it empty") if named else None,
        boxes=() if box is None else (box,),
        image_id=name,
        subject_id=_subject(row) or name,
        split="test",
    )


def _box(row: Row, images: Images, image: Path) -> Box | None:
    """The box in pixels of the file, from the frame of `FRAME`'s columns where they are filled."""
    if all(is_empty(row.get(column)) for column in FRAME):
        return row.box(*images.size(image))
    height, width = row.number("image_height"), row.number("image_width")
    if min(height, width) < 1:
        raise row.error("the frame of the box is empty", "write its pixels", FRAME[0], "box")
    box = row.box(height, width)
    return box and images.rescale(box, (height, width), image, row)


def other_frame(path: Path, examples: Sequence[Example], images: Images) -> TableError | None:
    """A complaint where all boxes of a table seem to be drawn in another frame than the films'."""
    boxed = {(e.image, box) for e in examples for box in e.boxes if isinstance(e.image, Path)}
    if not boxed:
        return None
    sizes = {image: images.size(image) for image, _ in boxed}
    ends = [max((x + w) / sizes[f][1], (y + h) / sizes[f][0]) for f, (x, y, w, h) in boxed]
    if max(ends) < CORNERS[len(boxed) >= FEWEST]:
        problem = f"all {len(boxed)} boxes lie in the upper left {max(ends):.0%} of their images"
        fix = (
            f"if they are percent or were drawn in smaller copies, add the columns "
            f"{' and '.join(FRAME)} (100 and 100 for percent)"
        )
    elif all(w > x and h > y for _, (x, y, w, h) in boxed):
        problem = f"of all {len(boxed)} boxes w is larger than x, and h than y"
        fix = "if these are two corners (x1, y1, x2, y2), subtract: w = x2 - x1, h = y2 - y1"
    else:
        return None
    return TableError(path, problem, fix, column="x", kind="frame")


def _subject(row: Row) -> str:
    """The patient. Spreadsheets write numbers beside empty cells as "10.0" and "nan"."""
    name = row.get("subject")
    return "" if is_empty(name) else re.sub(r"^(\d+)\.0$", r"\1", name)


def _check_names(path: Path, header: Iterable[str]) -> None:
    """Refuse misspelt column names, which would be ignored silently."""
    place: dict[str, Any] = {"place": "line 1", "kind": "columns"}
    for column in header:
        name = column.lower()
        if name in (*REQUIRED, *OPTIONAL) and column != name:
            raise TableError(path, "unknown column", f"write {name!r}", column=column, **place)
        bare = re.sub(r"[^a-z0-9]", "", plain(name))
        if bare in BOX_COLUMNS and column not in BOX_COLUMNS:
            raise TableError(path, "unknown column", f"write {bare!r}", column=column, **place)
        if BOXLIKE.fullmatch(bare) and "x" not in header:
            fix = "boxes are x, y, w, h: the upper left corner, width and height"
            problem = "boxes in this form (corners, centres) are not read"
            raise TableError(path, problem, fix, column=column, **place)
        if (meant := MEANT.get(bare)) and meant not in header:
            fix = f"write {meant!r} if it is that"
            log.warning("%s: column %r is ignored: %s", path, column, fix)


def _checked(path: Path) -> Iterator[Row]:
    """The rows of the CSV. Box columns must be complete or absent."""
    checked = False
    for row in read(path, REQUIRED):
        if not checked:
            _check_names(path, row.cells)
        absent = [column for column in BOX_COLUMNS if column not in row.cells]
        if not checked and 0 < len(absent) < len(BOX_COLUMNS):
            problem, fix = "the box columns are incomplete", "x, y, w and h go together"
            place = {"place": "line 1", "column": absent[0], "kind": "columns"}
            raise TableError(path, problem, fix, **place)
        checked = True
        yield row


def load(
    csv_path: str | os.PathLike[str],
    image_root: str | os.PathLike[str] | None = None,
    problems: list[TableError] | None = None,
) -> list[Example]:
    """Load the pairs of a CSV: one record per (image, phrase, finding), boxes of equal rows united.

    Images stay on disk (`Example.load` reads them); boxes are in pixels of the file.

    Args:
        image_root: folder to which image names are relative; by default the CSV's folder.
        problems: collects bad rows; without it the first one raises FolderError.
    """
    path = Path(csv_path)
    images = Images([Path(image_root) if image_root is not None else path.parent])
    examples = collect(_checked(path), lambda row: _example(row, images), "image", images, problems)
    report_two_classes(examples, path)
    if strange := other_frame(path, examples, images):
        if problems is None:
            log.warning("%s", strange)
        else:
            problems.append(strange)
    return merge_rows(examples)
