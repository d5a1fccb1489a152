"""RSNA Pneumonia Detection Challenge 2018: lung-opacity boxes on DICOM images of the NIH."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
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


HELD = 5337  # films of validation, and as many of test, of the published split


def published_split(films: Iterable[str], held: int = HELD) -> dict[str, list[str]]:
    """MGCA's split of the films, which G2D and others report on, by name.

    scikit-learn's `train_test_split` with seed 0 of the sorted names; of what is held out the first
    half is tested. The 26 684 films of the challenge give 16 010, 5 337 and 5 337.

    Raises:
        ValueError: there are too few films for it.
    """
    from sklearn.model_selection import train_test_split

    names = sorted(set(films))
    if len(names) <= 2 * held:
        raise ValueError(f"{len(names)} films: the published split holds out {2 * held} of 26684")
    train, both = train_test_split(names, test_size=2 * held, random_state=0)
    test, validation = train_test_split(both, test_size=0.5, random_state=0)
    return {"train": train, "validation": validation, "test": test}


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
