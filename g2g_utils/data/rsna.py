"""RSNA Pneumonia Detection Challenge 2018: lung-opacity boxes on DICOM images of the NIH."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from g2g_utils.data.files import Images, collect
from g2g_utils.data.record import Example, merge_rows
from g2g_utils.data.tables import Row, TableError, locate, read

LABELS = "stage_2_train_labels*.csv"
BOX_COLUMNS = ("x", "y", "width", "height")
COLUMNS = ("patientId", *BOX_COLUMNS, "Target")
FOLDERS = ("stage_2_train_images", "images", "")
SUFFIXES = (".dcm", ".png", ".jpg")
SIDE = 1024  # pixels: the frame of all boxes
FINDING = "Lung Opacity"


def rows(root: Path) -> Iterator[Row]:
    """Rows of the table, one per box or image without a box. `root` may be the file itself."""
    return read(root if root.is_file() else locate(root, LABELS), COLUMNS)


def _target(row: Row) -> bool:
    """True for a row with a box. The box and Target must agree."""
    if row["Target"] not in ("0", "1"):
        raise row.error(f"{row['Target']!r} is no target", "Target is 0 or 1", "Target")
    boxed = any(row.get(column) for column in BOX_COLUMNS)
    if boxed != (row["Target"] == "1"):
        problem = f"Target is {row['Target']} {'with' if boxed else 'without'} a box"
        raise row.error(problem, "take the published file", "Target", "box")
    return boxed


def _example(row: Row, images: Images, template: str) -> Example:
    name = row.text("patientId", "the image name is empty", "take the published file")
    box = row.box(SIDE, SIDE, BOX_COLUMNS, images.cut)
    path = images.find(row, "patientId", name + SUFFIXES[0])
    return Example(
        image=path,
        phrase=template.format(FINDING.lower()),
        finding=FINDING,
        boxes=(images.rescale(box, (SIDE, SIDE), path, row),) if box else (),
        image_id=name,
        subject_id=name,
        split="test",
    )


def load(
    root: Path,
    images: Path | None = None,
    template: str = "{}",
    negatives: bool = False,
    problems: list[TableError] | None = None,
) -> list[Example]:
    """Load the boxed images, boxes united; with `negatives` also the images without boxes.

    The challenge names images, not patients: every image counts as a patient.
    """
    films = Images([images] if images else [root / f for f in FOLDERS], SUFFIXES)

    def example(row: Row) -> Example | None:
        return _example(row, films, template) if _target(row) or negatives else None

    return merge_rows(collect(rows(root), example, "patientId", films, problems))
