"""Image files that tables name: their place, their size, and boxes in their pixels."""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from pathlib import Path

from g2g_utils.data.geometry import Box
from g2g_utils.data.images import ImageError, image_size
from g2g_utils.data.record import Example
from g2g_utils.data.tables import Row, TableError, tolerate

log = logging.getLogger(__name__)

ASPECT_SLACK = 0.02  # relative; a resized copy rounds its sides
CONSTANT = {"subject_id": "patient", "image": "file", "split": "split"}
"""What an image has only one of, in however many rows it occurs."""


class Images:
    """The folders in which a table's images may lie. Sizes are read from the files' headers, once.

    `cut` lists the boxes that stuck out of their images.
    """

    def __init__(self, folders: Sequence[Path], suffixes: Sequence[str] = ()) -> None:
        self.folders, self.suffixes = tuple(folders), tuple(suffixes)
        self.cut: list[TableError] = []
        self.size = lru_cache(maxsize=None)(image_size)  # path -> (height, width)

    def candidates(self, name: str) -> list[Path]:
        """Paths at which an image may lie: every folder, its own suffix first.

        Letters with accents are tried as written, in one character and in two (macOS).
        """
        names = [name, *(str(Path(name).with_suffix(suffix)) for suffix in self.suffixes)]
        if not name.isascii():
            names += [unicodedata.normalize(form, n) for form in ("NFC", "NFD") for n in names]
        return [folder / n for folder in self.folders for n in dict.fromkeys(names)]

    def find(self, row: Row, column: str, name: str) -> Path:
        """Path of a readable image.

        Raises:
            TableError: there is none; the message names the row and the places searched.
        """
        try:
            candidates = self.candidates(name)
            path = next((p for p in candidates if p.is_file()), candidates[0])
            self.size(path)
        except ImageError as error:
            fix = f"image names are relative to {self.folders[0]}"
            raise row.error(str(error), fix, column, "image") from error
        except (OSError, ValueError) as error:  # a name that is too long, or holds a NUL
            fix = "write the name of an image file in this column"
            problem = str(getattr(error, "strerror", None) or error)
            raise row.error(problem, fix, column, "image") from None
        return path

    def rescale(self, box: Box, declared: tuple[float, float], path: Path, row: Row) -> Box:
        """A box of the declared (height, width) frame in pixels of the file.

        Resized copies of the images are scaled; cropped copies are an error.
        """
        height, width = self.size(path)
        sy, sx = height / declared[0], width / declared[1]
        if abs(sy / sx - 1) > ASPECT_SLACK:
            problem = (
                f"{path} is {width}×{height} pixels, "
                f"but the box was drawn in {declared[1]:g}×{declared[0]:g}"
            )
            raise row.error(problem, "use whole images, not cropped ones", None, "box")
        x, y, w, h = box
        return box if sx == sy == 1 else (x * sx, y * sy, w * sx, h * sy)


def collect(
    rows: Iterable[Row],
    example: Callable[[Row], Example | None],
    column: str,
    images: Images,
    problems: list[TableError] | None,
) -> list[Example]:
    """Read the records of a table, row by row.

    Args:
        example: makes the record of a row, or None for a row without one.
        column: name of the column with the image.
        problems: collects TableErrors; without it the first one is raised. A row is bad by itself,
            or because it gives an image another patient, file or split than an earlier row. Cut
            boxes (`images.cut`) are collected too; without a list one warning counts them.
    """
    first: dict[str, tuple[Example, Row]] = {}
    found: list[Example] = []
    for row in rows:
        with tolerate(problems):
            record = example(row)
            if record is not None:
                before, its_row = first.setdefault(record.image_id, (record, row))
                _same_image(before, its_row, record, row, column)
                found.append(record)
    if problems is not None:
        problems += images.cut
    elif images.cut:
        log.warning("%d boxes stick out of their images, first: %s", len(images.cut), images.cut[0])
    return found


def _same_image(before: Example, its_row: Row, now: Example, row: Row, column: str) -> None:
    """Raise an error if two rows of one image contradict each other."""
    for name, word in CONSTANT.items():
        one, other = getattr(before, name), getattr(now, name)
        if one != other:
            problem = f"{now.image_id!r} has the {word} {other}, but {one} in {its_row.place}"
            fix = "an image has one patient, one file and one split"
            raise row.error(problem, fix, column, "duplicate")


def two_classes(examples: Iterable[Example]) -> list[tuple[str, str, tuple[str, ...]]]:
    """(image, phrase, classes) of every phrase that has two classes on one image."""
    found: dict[tuple[str, str], dict[str, None]] = {}
    for example in examples:
        if example.finding is not None:
            found.setdefault((example.image_id, example.phrase), {})[example.finding] = None
    return [(*key, tuple(classes)) for key, classes in found.items() if len(classes) > 1]


def report_two_classes(examples: Iterable[Example], path: Path) -> None:
    """Log each phrase with two classes. Its rows stay apart, as separate pairs."""
    for image, phrase, classes in two_classes(examples):
        log.warning(
            "%s: image %s: phrase %r has the classes %s; they stay apart as pairs of their own, "
            "remove rows if one is wrong",
            path, image, phrase, " and ".join(classes),
        )  # fmt: skip
