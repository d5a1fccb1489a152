"""MS-CXR 1.x: phrases with boxes on images of MIMIC-CXR-JPG, from its CSV or its COCO JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from g2g_utils.data.files import Images, collect, report_two_classes
from g2g_utils.data.record import FINDINGS, Example, merge_rows
from g2g_utils.data.tables import Row, TableError, locate, opened, read

TABLES = ("MS_CXR_Local_Alignment_v1.*.csv", "MS_CXR_Local_Alignment_v1.*.json")
COLUMNS = (
    "dicom_id", "category_name", "label_text", "path",
    "x", "y", "w", "h", "image_width", "image_height",
)  # fmt: skip
CLASSES = {finding.lower(): finding for finding in FINDINGS}
SPLITS = {
    "train": "train", "val": "validation", "validate": "validation", "validation": "validation",
    "test": "test", "": "test",
}  # fmt: skip
SUBJECT = re.compile(r"(?:^|/)p(\d{8})/s(\d{8})/")
SUFFIXES = (".jpg", ".png", ".dcm")  # MIMIC-CXR-JPG, a converted copy, MIMIC-CXR


def table(root: Path) -> Path:
    """Path of the annotation file: `root` itself, or the newest file of the folder."""
    return root if root.is_file() else locate(root, *TABLES)


def rows(root: Path) -> Iterator[Row]:
    """Rows of either file, one per box, with the CSV's columns."""
    path = table(root)
    is_json = path.name.removesuffix(".gz").endswith(".json")
    return _coco(path) if is_json else read(path, COLUMNS)


def _coco(path: Path) -> Iterator[Row]:
    """The annotations of the COCO file as rows of the CSV."""
    fix = "use the published JSON"
    tree = _tree(path)
    try:
        categories, films = (_by_id(tree, name) for name in ("categories", "images"))
        annotations = list(tree["annotations"])
    except (KeyError, TypeError, ValueError) as error:
        raise TableError(path, f"no COCO file ({error!r})", fix, kind="columns") from error
    if not annotations:
        raise TableError(path, "no annotations", fix, kind="file")
    for number, annotation in enumerate(annotations):
        known = isinstance(annotation, dict)
        place = f"annotation {annotation.get('id', number) if known else number}"
        try:
            yield Row(path, place, _cells(annotation, films, categories))
        except (KeyError, ValueError, TypeError) as error:
            problem = f"{error!r} while reading it"
            raise TableError(path, problem, fix, place=place, kind="columns") from error


def _tree(path: Path) -> Any:
    """The content of a JSON file, compressed or not."""
    try:
        with opened(path) as file:
            return json.load(file)
    except TableError:
        raise
    except (ValueError, RecursionError) as error:
        raise TableError(path, f"not JSON ({error})", "download it again", kind="file") from error


def _by_id(tree: Any, name: str) -> dict[Any, Any]:
    """Entries of a COCO list by id. Two entries with one id are an error."""
    entries = {entry["id"]: entry for entry in tree[name]}
    if len(entries) < len(tree[name]):
        raise ValueError(f"two {name} have one id")
    return entries


def _cells(annotation: Any, films: dict[Any, Any], categories: dict[Any, Any]) -> dict[str, str]:
    """One annotation under the CSV's column names. An absent text stays empty."""
    label = annotation["label_text"]
    if not isinstance(label, str | None):
        raise TypeError(f"label_text is {label!r}, not a text")
    film = films[annotation["image_id"]]
    place = film.get("path") or film["file_name"]
    x, y, w, h = annotation["bbox"]
    return {
        "dicom_id": Path(place).stem,
        "category_name": str(categories[annotation["category_id"]]["name"]),
        "label_text": (label or "").strip(),
        "path": str(place),
        **{name: str(value) for name, value in zip("xywh", (x, y, w, h), strict=True)},
        "image_width": str(film.get("width") or annotation["width"]),
        "image_height": str(film.get("height") or annotation["height"]),
        "split": str(annotation.get("split") or film.get("split") or "").strip(),
    }


def subject_of(row: Row) -> str:
    """Patient of a row, from its path `files/p10/p10000032/s50414267/…`."""
    found = SUBJECT.search(row["path"])
    if not found:
        fix = "paths are files/p10/p10000032/s50414267/DICOM.jpg"
        raise row.error(f"{row['path']!r} names no patient", fix, "path")
    return found[1]


def subjects(root: Path) -> frozenset[str]:
    """All patients of MS-CXR. None of them may be trained on."""
    return frozenset(map(subject_of, rows(root)))


def _example(row: Row, images: Images) -> Example:
    phrase = row.phrase("label_text", "the phrase is empty", "take the published file")
    finding = row.one_of("category_name", CLASSES)
    size = row.number("image_height"), row.number("image_width")
    box = row.box(*size, cut=images.cut)
    if box is None:
        raise row.error("the row has no box", "every row of MS-CXR is one box", "x", "box")
    name = row["path"].removeprefix("files/") if _is_files(images) else row["path"]
    path = images.find(row, "path", name)
    return Example(
        image=path,
        phrase=phrase,
        finding=finding,
        boxes=(images.rescale(box, size, path, row),),
        image_id=row["dicom_id"],
        subject_id=subject_of(row),
        split=row.one_of("split", SPLITS) if row.get("split") else "test",
    )


def _is_files(images: Images) -> bool:
    """True if the folder is MIMIC-CXR-JPG's `files` folder itself."""
    folder = images.folders[0]
    return folder.name == "files" and not (folder / "files").is_dir()


def load(
    root: Path,
    images: Path,
    subset: str | None = None,
    problems: list[TableError] | None = None,
) -> list[Example]:
    """Load the image–phrase pairs: rows of one (image, phrase, class) merged, their boxes united.

    Boxes are in pixels of the file; resized copies are scaled. A box that sticks out is cut at the
    edge.

    Args:
        root: folder of MS-CXR, or its CSV or JSON.
        images: folder of MIMIC-CXR-JPG.
        subset: "train", "validation" or "test" of version 1.1's split column; None keeps all.
        problems: collects bad rows; without it the first one raises TableError.
    """
    films = Images([images], SUFFIXES)
    found = collect(rows(root), lambda row: _example(row, films), "dicom_id", films, problems)
    report_two_classes(found, table(root))
    return merge_rows(e for e in found if subset in (None, e.split))
