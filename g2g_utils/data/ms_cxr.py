"""MS-CXR 1.x: phrases with boxes on images of MIMIC-CXR-JPG, from its CSV or its COCO JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from g2g_utils.data.files import Images, report_two_classes
from g2g_utils.data.record import FINDINGS, Example, merge_rows
from g2g_utils.data.tables import Row, TableError, locate, read, tolerate

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
    """The annotation file: given itself, or the newest of the folder."""
    return root if root.is_file() else locate(root, *TABLES)


def rows(root: Path) -> Iterator[Row]:
    """One row a box, with the CSV's columns, whichever file it comes from."""
    path = table(root)
    return _coco(path) if path.suffix == ".json" else read(path, COLUMNS)


def _coco(path: Path) -> Iterator[Row]:
    """The annotations of the COCO file as rows of the CSV."""
    try:
        tree = json.loads(path.read_text("utf-8"))
        categories = {c["id"]: c["name"] for c in tree["categories"]}
        films = {image["id"]: image for image in tree["images"]}
        annotations = tree["annotations"]
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise TableError(path, f"not JSON ({error})", "download it again", kind="file") from error
    except (KeyError, TypeError) as error:
        problem = f"no COCO file: {error} is missing"
        raise TableError(path, problem, "use the published JSON", kind="columns") from error
    for number, annotation in enumerate(annotations):
        place = f"annotation {annotation.get('id', number)}"
        try:
            yield Row(path, place, _cells(annotation, films, categories))
        except (KeyError, ValueError, TypeError) as error:
            fix = "use the published JSON"
            problem = f"{error!r} while reading it"
            raise TableError(path, problem, fix, place=place, kind="columns") from error


def _cells(annotation: Any, films: dict[Any, Any], categories: dict[Any, str]) -> dict[str, str]:
    film = films[annotation["image_id"]]
    place = film.get("path") or film["file_name"]
    x, y, w, h = annotation["bbox"]
    return {
        "dicom_id": Path(place).stem,
        "category_name": categories[annotation["category_id"]],
        "label_text": str(annotation["label_text"]).strip(),
        "path": str(place),
        **{name: str(value) for name, value in zip("xywh", (x, y, w, h), strict=True)},
        "image_width": str(film.get("width") or annotation["width"]),
        "image_height": str(film.get("height") or annotation["height"]),
        "split": str(annotation.get("split") or film.get("split") or ""),
    }


def subject_of(row: Row) -> str:
    """Patient of a row, from its path ``files/p10/p10000032/s50414267/…``."""
    found = SUBJECT.search(row["path"])
    if not found:
        fix = "paths are files/p10/p10000032/s50414267/DICOM.jpg"
        raise row.error(f"{row['path']!r} names no patient", fix, "path")
    return found[1]


def subjects(root: Path) -> frozenset[str]:
    """All patients of MS-CXR: none of them may be trained on."""
    return frozenset(map(subject_of, rows(root)))


def _example(row: Row, images: Images, clip: bool) -> Example:
    phrase = row.text("label_text", "the phrase is empty", "take the published file")
    finding = row.one_of("category_name", CLASSES)
    size = row.number("image_height"), row.number("image_width")
    box = row.box(*size, clip=clip)
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
    """True if the folder given is MIMIC-CXR-JPG's ``files`` folder itself."""
    folder = images.folders[0]
    return folder.name == "files" and not (folder / "files").is_dir()


def load(
    root: Path,
    images: Path,
    subset: str | None = None,
    problems: list[TableError] | None = None,
) -> list[Example]:
    """The image–phrase pairs: rows of one (image, phrase, class) merged, their boxes united.

    ``root``: folder of MS-CXR (or its CSV or JSON); ``images``: folder of MIMIC-CXR-JPG.
    ``subset`` keeps "train", "validation" or "test" of version 1.1's own split column.
    Boxes are in pixels of the file: resized copies are fine. A box that sticks out is cut at the
    edge; bad rows raise TableError, or are collected in ``problems``.
    """
    films = Images([images], SUFFIXES)
    found: list[Example] = []
    for row in rows(root):
        with tolerate(problems):
            found.append(_example(row, films, clip=problems is None))
    report_two_classes(found, table(root))
    return merge_rows(e for e in found if subset in (None, e.split))
