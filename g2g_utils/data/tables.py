"""CSV tables with checked columns. Every complaint is one line: file, row, column, problem, fix."""

from __future__ import annotations

import codecs
import csv
import difflib
import gzip
import io
import math
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from g2g_utils.data.geometry import Box
from g2g_utils.data.plain import is_empty, plain, printable, says_nothing

BOX_COLUMNS = ("x", "y", "w", "h")
NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?|[+-]?(?:nan|inf(?:inity)?)", re.I)
SLACK = 1.0  # pixels a box may stick out by: annotation tools round
DELIMITERS = {";": "semicolons", "\t": "tabs", "|": "bars"}
TEXT_FIX = "save it as UTF-8 text"
CSV_FIX = "save it as UTF-8 CSV"
SEP = re.compile(r"sep=.?$", re.IGNORECASE)  # Excel's line about the delimiter, above the header
README = "data/README.md says where each file goes"


class TableError(ValueError):
    """A table that cannot be used: one line with file, row, column, problem and fix.

    `kind` sorts it for the check: "file", "columns", "value", "class", "box", "cut", "frame",
    "duplicate" or "image".
    """

    def __init__(
        self,
        path: Path,
        problem: str,
        fix: str,
        *,
        place: str = "",
        column: str | None = None,
        kind: str = "value",
    ) -> None:
        where = [str(path), place, f"column {column!r}" if column else ""]
        self.kind = kind
        super().__init__(printable(f"{', '.join(filter(None, where))}: {problem}; {fix}"))


@contextmanager
def tolerate(problems: list[TableError] | None) -> Iterator[None]:
    """Collect a TableError in `problems` and go on; without a list raise it."""
    try:
        yield
    except TableError as error:
        if problems is None:
            raise
        problems.append(error)


@dataclass(frozen=True, slots=True)
class Row:
    """One data row, cells stripped, that knows its `place` ("line 7")."""

    path: Path
    place: str
    cells: Mapping[str, str]

    def __getitem__(self, column: str) -> str:
        return self.cells[column]

    def get(self, column: str) -> str:
        """A cell, or the empty text if the column is absent."""
        return self.cells.get(column, "")

    def error(
        self, problem: str, fix: str, column: str | None = None, kind: str = "value"
    ) -> TableError:
        """A complaint about this row (and column)."""
        return TableError(self.path, problem, fix, place=self.place, column=column, kind=kind)

    def text(self, column: str, problem: str, fix: str) -> str:
        """A cell that must not be empty."""
        if not self.get(column):
            raise self.error(problem, fix, column)
        return self.get(column)

    def phrase(self, column: str, problem: str, fix: str) -> str:
        """A cell that must say something, as plain text on one line with single spaces."""
        text = self.text(column, problem, fix)
        if says_nothing(text):
            raise self.error(f"{problem} ({text!r})", fix, column)
        return " ".join(plain(text).split())

    def number(self, column: str) -> float:
        """A finite number."""
        text = self.get(column)
        if not text:
            fix = "fill x, y, w and h, or leave all four empty"
            raise self.error("the box is incomplete", fix, column, "box")
        if not NUMBER.fullmatch(text):
            fix = "write pixels with a decimal point, or leave all four empty where there is no box"
            raise self.error(f"{text!r} is not a number", fix, column, "box")
        value = float(text)
        if not math.isfinite(value):
            fix = "write pixels, or leave x, y, w and h empty where there is no box"
            raise self.error(f"{text!r} is not a finite number", fix, column, "box")
        return value

    def box(
        self,
        height: float,
        width: float,
        columns: Sequence[str] = BOX_COLUMNS,
        cut: list[TableError] | None = None,
    ) -> Box | None:
        """The row's box in a height × width image, or None if all four cells are empty (or "NA").

        A box that sticks out by more than a pixel is an error. With a list `cut` it is cut at the
        edge of the image and added to the list, as long as something of it is left.
        """
        if all(is_empty(self.get(column)) for column in columns):
            return None
        x, y, w, h = (self.number(column) for column in columns)
        for column, length in zip(columns[2:], (w, h), strict=True):
            if length <= 0:
                fix = "width and height are positive pixels (not a second corner)"
                raise self.error(f"box side {length:g} is not positive", fix, column, "box")
        self._check_fractions((x, y, w, h), height, width, columns[0])
        out = []
        for column, start, length, limit in (
            (columns[0], x, w, width),
            (columns[1], y, h, height),
        ):
            end = start + length
            left = min(end, limit) - max(start, 0.0)
            if left > 0 and start >= -SLACK and end <= limit + SLACK:
                continue
            problem = f"box from {start:g} to {end:g} leaves the image (0 to {limit:g})"
            if cut is None or left < 1:
                fix = "boxes are x, y, w, h in pixels of the image file, origin top left"
                if x < w <= width + SLACK and y < h <= height + SLACK:
                    corners = f"{x:g}, {y:g}, {w - x:g}, {h - y:g}"
                    fix = f"if these are two corners (x1, y1, x2, y2), write {corners}; {fix}"
                raise self.error(problem, fix, column, "box")
            out.append(self.error(problem, "it is cut off at the edge", column, "cut"))
        if min(w, h) < 1:
            problem = f"box side {min(w, h):g} is less than a pixel"
            fix = "boxes are x, y, w, h in pixels of the image file"
            raise self.error(problem, fix, columns[2 if w < 1 else 3], "box")
        if cut is None:
            return x, y, w, h
        cut += out[:1]
        return clipped((x, y, w, h), height, width)

    def _check_fractions(self, box: Box, height: float, width: float, column: str) -> None:
        """Refuse fractions of the image: as pixels nothing would lie inside."""
        x, y, w, h = box
        if 0 <= min(box) and max(box) <= 1 < min(height, width):
            pixels = f"{x * width:.0f}, {y * height:.0f}, {w * width:.0f}, {h * height:.0f}"
            problem = f"the box {x:g}, {y:g}, {w:g}, {h:g} looks like fractions of the image"
            fix = f"write pixels, x and w times {width:g}, y and h times {height:g}: {pixels}"
            raise self.error(problem, fix, column, "box")

    def one_of(self, column: str, names: Mapping[str, str], or_else: str = "") -> str:
        """The canonical name of a cell. `names` maps lower-case spellings to it."""
        text = self.get(column)
        if text.lower() in names:
            return names[text.lower()]
        close = difflib.get_close_matches(text.lower(), names, n=1, cutoff=0.5)
        hint = f"did you mean {names[close[0]]!r}? " if close else ""
        fix = f"{hint}classes: {', '.join(dict.fromkeys(names.values()))}{or_else}"
        raise self.error(f"unknown class {text!r}", fix, column, "class")


def clipped(box: Box, height: float, width: float) -> Box:
    """A box cut off at the edges of a height × width image."""
    x, y, w, h = box
    x0, y0, x1, y1 = max(x, 0.0), max(y, 0.0), min(x + w, width), min(y + h, height)
    return box if (x0, y0, x1, y1) == (x, y, x + w, y + h) else (x0, y0, x1 - x0, y1 - y0)


# ---------------------------------------------------------------- files


def matching(folder: Path, pattern: str) -> list[Path]:
    """Files of a folder that match a pattern, compressed or not, by name."""
    return sorted([*folder.glob(pattern), *folder.glob(pattern + ".gz")])


def locate(folder: Path, *patterns: str) -> Path:
    """Path of a folder's file that matches the first matching pattern, compressed or not.

    Of several versions the last by name is taken.
    """
    if not folder.is_dir():
        raise TableError(folder, "no such folder", README, kind="file")
    for pattern in patterns:
        found = matching(folder, pattern)
        if found:
            return found[-1]
    raise TableError(folder, f"no file {' or '.join(patterns)}", README, kind="file")


@contextmanager
def opened(path: Path) -> Iterator[TextIO]:
    """Open a text file without byte-order mark, gunzipped if its content (not its name) says so.

    Text that is not UTF-8 and a damaged archive raise TableError, whenever they are met.
    """
    try:
        with _open_text(path) as file:
            yield file
    except UnicodeDecodeError as error:
        raise TableError(path, f"not UTF-8 text ({error.reason})", TEXT_FIX, kind="file") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        problem = f"the compressed file is truncated or damaged ({error})"
        raise TableError(path, problem, "download it again", kind="file") from error


def _open_text(path: Path) -> TextIO:
    """Open a text file, gunzipped if its content says so.

    The error names what browsers and downloaders leave in place of a table: a login page, an
    archive, a Git LFS pointer.
    """
    if not path.is_file():
        raise TableError(path, "no such file", "give the path of a CSV file", kind="file")
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    binary = gzip.open(path) if packed else path.open("rb")
    while binary.peek(3).startswith(codecs.BOM_UTF8):  # some tools write two
        binary.read(3)
    start = binary.peek(64)[:64]
    imposters = {
        b"pk\x03\x04": ("a zip archive, not a table", "unpack it"),
        b"<!doctype html": ("a web page, not a table", "log in and download it again"),
        b"<html": ("a web page, not a table", "log in and download it again"),
        b"version https://git-lfs": ("a Git LFS pointer, not a table", "run `git lfs pull`"),
    }
    found = [told for sign, told in imposters.items() if start.lstrip().lower().startswith(sign)]
    if 3 * start.count(b"\0") > len(start) and not found:
        found = [("not UTF-8 text but UTF-16, or no text at all", TEXT_FIX)]
    if found:
        binary.close()
        raise TableError(path, *found[0], kind="file")
    return io.TextIOWrapper(binary, encoding="utf-8", newline="")


def _check_header(
    path: Path, header: list[str], required: Sequence[str], original: Mapping[str, str]
) -> None:
    def error(problem: str, fix: str, column: str | None = None) -> TableError:
        return TableError(path, problem, fix, place="line 1", column=column, kind="columns")

    if not any(header):
        raise error("the file is empty", "the first line names the columns")
    missing = [column for column in required if column not in header]
    if missing:
        for delimiter, name in DELIMITERS.items():
            if any(delimiter in cell for cell in header):
                raise error(f"the columns are separated by {name}", "use commas")
        absent = original.get(missing[0], missing[0])
        needed = ", ".join(original.get(column, column) for column in required)
        problem = f"no column {absent!r} among {', '.join(header)}"
        raise error(problem, f"the header needs {needed}", absent)
    twice = sorted({column for column in header if column and header.count(column) > 1})
    if twice:
        raise error(f"column {twice[0]!r} occurs twice", "rename one", twice[0])


def _trimmed(cells: list[str]) -> list[str]:
    """Cells without empty ones at the end (trailing commas)."""
    while cells and not cells[-1].strip():
        cells = cells[:-1]
    return cells


def _rows(
    path: Path, file: TextIO, required: Sequence[str], rename: Mapping[str, str]
) -> Iterator[Row]:
    lines = csv.reader(file, strict=True)
    first: list[str] = next(
        (cells for raw in lines if (cells := _trimmed(raw)) and not SEP.match(cells[0])), []
    )
    names = [plain(name).strip() for name in first]
    header = [rename.get(name, name) for name in names]
    _check_header(path, header, required, {new: old for old, new in rename.items()})
    n, end = len(header), lines.line_num
    while True:
        place = f"line {end + 1}"
        try:
            cells = next(lines)
        except StopIteration:
            return
        except csv.Error as error:
            fix = f'{CSV_FIX}; a text with commas stands between two "quotes", each closed'
            raise TableError(path, f"not a CSV file ({error})", fix, place=place) from error
        end = lines.line_num  # a quoted cell may span lines
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) < n or any(cell.strip() for cell in cells[n:]):
            problem = f"{len(cells)} cells where the header has {n}"
            fix = 'put texts with commas into "quotes"'
            raise TableError(path, problem, fix, place=place, kind="columns")
        values = (cell.strip() for cell in cells[:n])
        yield Row(path, place, dict(zip(header, values, strict=True)))


def read(
    path: str | os.PathLike[str], required: Sequence[str], rename: Mapping[str, str] | None = None
) -> Iterator[Row]:
    """Data rows of a CSV, plain or gzipped, one at a time. Unlisted columns are kept.

    Trailing empty columns and blank lines are ignored.

    Args:
        required: columns that must exist, after renaming.
        rename: odd published headers and their names here.

    Raises:
        TableError: at the first line that does not fit.
    """
    path = Path(path)
    empty = True
    try:
        with opened(path) as file:
            for row in _rows(path, file, required, rename or {}):
                empty = False
                yield row
    except csv.Error as error:
        raise TableError(path, f"not a CSV file ({error})", CSV_FIX, kind="file") from error
    if empty:
        fix = "add at least one row"
        raise TableError(path, "no rows below the header", fix, place="line 1", kind="file")


def unique(
    rows: Iterable[Row], column: str, problems: list[TableError] | None = None
) -> Iterator[Row]:
    """The rows. A second row with the same id is an error, or is collected and left out."""
    first: dict[str, str] = {}
    for row in rows:
        name = row[column]
        if name not in first:
            first[name] = row.place
            yield row
            continue
        with tolerate(problems):
            problem = f"{name!r} is already in {first[name]}"
            raise row.error(problem, "remove one of the rows", column, "duplicate")
