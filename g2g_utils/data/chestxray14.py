"""ChestX-ray14 (NIH): 984 boxes on 880 images, with phrases made from class names."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from g2g_utils.data.files import Images, collect
from g2g_utils.data.record import Example, merge_rows
from g2g_utils.data.tables import Row, TableError, locate, read, tolerate, unique

BOXES = "BBox_List_2017*.csv"
ENTRIES = "Data_Entry_2017*.csv"
COLUMNS = ("Image Index", "Finding Label", "x", "y", "w", "h")
ENTRY_COLUMNS = ("Image Index", "Finding Labels", "Patient ID", "View Position")
RENAME = {"Bbox [x": "x", "h]": "h"}  # the published header is not quoted
SIDE = 1024  # pixels: the frame of all boxes
CLASSES = {
    "atelectasis": "Atelectasis",
    "cardiomegaly": "Cardiomegaly",
    "effusion": "Pleural Effusion",  # MIMIC's name
    "pleural effusion": "Pleural Effusion",
    "infiltrate": "Infiltration",  # the boxes' name of the entries' class
    "infiltration": "Infiltration",
    "mass": "Mass",
    "nodule": "Nodule",
    "pneumonia": "Pneumonia",
    "pneumothorax": "Pneumothorax",
}
OTHER_LABELS = {
    name.lower().replace(" ", "_"): name
    for name in ("Consolidation", "Edema", "Emphysema", "Fibrosis", "Pleural Thickening", "Hernia")
}


@dataclass(frozen=True, slots=True)
class Entry:
    """A row of `Data_Entry_2017`: findings that text mining found in the report of an image."""

    image_id: str
    findings: tuple[str, ...]
    subject_id: str
    view: str


def image_folders(root: Path) -> list[Path]:
    """Folders of the images: one, or the twelve of the published archives."""
    parts = sorted(path for path in root.glob("images*/images") if path.is_dir())
    return [root / "images", *parts, root]


def entries(root: Path, problems: list[TableError] | None = None) -> Iterator[Entry]:
    """Entries of the 2017 or 2020 table. `root` may be the file itself."""
    path = root if root.is_file() else locate(root, ENTRIES)
    for row in unique(read(path, ENTRY_COLUMNS), "Image Index", problems):
        with tolerate(problems):
            yield _entry(row)


def _entry(row: Row) -> Entry:
    known = CLASSES | OTHER_LABELS
    labels = row["Finding Labels"].split("|")
    found = []
    for label in labels if labels != ["No Finding"] else []:
        cell = Row(row.path, row.place, {"Finding Labels": label})
        found.append(cell.one_of("Finding Labels", known))
    patient = row["Patient ID"]
    if not patient.isdigit():
        raise row.error(f"{patient!r} is no patient", "ids are numbers", "Patient ID")
    return Entry(row["Image Index"], tuple(found), f"{int(patient):08d}", row["View Position"])


def rows(root: Path) -> Iterator[Row]:
    """Rows of the box table, one per box. `root` may be the file itself."""
    return read(root if root.is_file() else locate(root, BOXES), COLUMNS, RENAME)


def _example(row: Row, images: Images, template: str) -> Example:
    name = row.text("Image Index", "the image name is empty", "take the published file")
    finding = row.one_of("Finding Label", CLASSES)
    box = row.box(SIDE, SIDE, cut=images.cut)
    if box is None:
        raise row.error("the row has no box", "every row of the list is one box", "x", "box")
    path = images.find(row, "Image Index", name)
    return Example(
        image=path,
        phrase=template.format(finding.lower()),
        finding=finding,
        boxes=(images.rescale(box, (SIDE, SIDE), path, row),),
        image_id=name,
        subject_id=name.partition("_")[0],
        split="test",
    )


def load(
    root: Path,
    images: Path | None = None,
    template: str = "{}",
    problems: list[TableError] | None = None,
) -> list[Example]:
    """Load the boxed images: one record per (image, class).

    Boxes are in pixels of the file: the table's 1024² pixels, scaled for smaller copies.

    Args:
        template: text of a phrase, with a place for the class name.
    """
    films = Images([images] if images else image_folders(root))

    def example(row: Row) -> Example:
        return _example(row, films, template)

    return merge_rows(collect(rows(root), example, "Image Index", films, problems))
