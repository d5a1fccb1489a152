"""Make a pack of small films from a user's own downloads (`radiographs` reads it).

ChestX-ray14 gives films, labels and boxes. The RSNA Pneumonia Detection Challenge and ChestX-Det
gave more boxes to the same films under other names; the shipped pack holds both lists of names.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from PIL import Image
from tqdm.auto import tqdm

from g2g_utils import runs
from g2g_utils.data import chestxray14, radiographs, rsna
from g2g_utils.data.chestxray14 import SIDE, Entry
from g2g_utils.data.files import Images
from g2g_utils.data.films import to_bytes
from g2g_utils.data.geometry import Box, crop_resize, transform_box
from g2g_utils.data.images import image_size, read_image
from g2g_utils.data.order import position
from g2g_utils.data.tables import Row, TableError, locate, read
from g2g_utils.runs import places

SHIPPED = places.ROOT / "data" / "radiographs"
RSNA_NAMES = "rsna_nih_match*.csv"
DET_NAMES = "chestxdet_to_nih_names*.csv"
DET_FILES = "ChestX_Det*.json"
CHOICES = ("same", "boxed", "all")
LARGEST_ERROR = (
    5.0  # grey values²: mean difference of an RSNA film and the NIH film it is taken for
)


@dataclass(frozen=True, slots=True)
class Marked:
    """One box in the 1024² frame of ChestX-ray14, before it is scaled."""

    image: str
    label: str
    box: Box
    source: str


def prepare(
    nih: Path,
    out: Path,
    *,
    rsna_folder: Path | None = None,
    chestxdet: Path | None = None,
    films: str = "boxed",
    size: int = 128,
) -> Path:
    """Write a pack: films as grey PNGs of size², `images.csv`, `boxes.csv`, `SOURCES.md`.

    All tables are read and all films found before the first is written. A second call goes on where
    the first stopped: films that are there are not read again.

    Args:
        nih: folder of ChestX-ray14, as data/README.md lays it out.
        rsna_folder: folder of the challenge's labels; its films are not needed.
        chestxdet: folder of ChestX-Det's JSON files; its films are not needed.
        films: "same" as the shipped pack, "boxed": all films of patients with a box and as many
            normal ones, or "all".

    Raises:
        TableError: a table or film cannot be used; one line with file, row and fix.
        ValueError: an argument is out of range, or `out` holds films of another size.
    """
    _check_arguments(out, films, size)
    entries = {entry.image_id: entry for entry in chestxray14.entries(nih)}
    marked = list(_nih_boxes(nih))
    marked += _rsna_boxes(rsna_folder) if rsna_folder else []
    marked += _det_boxes(chestxdet) if chestxdet else []
    names = chosen(entries, {box.image for box in marked}, films)
    paths = _find(names, nih)
    for name in tqdm(names, "films"):
        _write_film(paths[name], out / "images" / name, size)
    _write_tables(out, [entries[name] for name in names], marked, size)
    return out


def _check_arguments(out: Path, films: str, size: int) -> None:
    if films not in CHOICES:
        raise ValueError(f"films = {films!r}: choose one of {', '.join(CHOICES)}")
    if not 32 <= size <= SIDE:
        raise ValueError(f"size = {size}: choose a side between 32 and {SIDE} pixels")
    there = next(iter(sorted((out / "images").glob("*.png"))), None)
    if there is not None and image_size(there) != (size, size):
        side = image_size(there)[0]
        raise ValueError(f"{out} holds films of {side}² pixels: choose another folder or that size")


# ---------------------------------------------------------------- boxes of the three sources


def _nih_boxes(root: Path) -> Iterator[Marked]:
    for row in chestxray14.rows(root):
        label = row.one_of("Finding Label", chestxray14.CLASSES)
        yield Marked(row["Image Index"], label, _box(row, chestxray14.COLUMNS[2:]), "ChestX-ray14")


def _box(row: Row, columns: Iterable[str]) -> Box:
    box = row.box(SIDE, SIDE, tuple(columns), cut=[])
    if box is None:
        raise row.error("the row has no box", "take the published file", "x", "box")
    return box


def _rsna_boxes(root: Path) -> Iterator[Marked]:
    """Boxes of the challenge on films whose pixels were matched with a film of the NIH."""
    names = {}
    for row in read(_names(RSNA_NAMES, root), ("rsna_patientId", "nih_image", "match_mse")):
        if row.number("match_mse") <= LARGEST_ERROR:
            names[row["rsna_patientId"]] = row["nih_image"]
    for row in rsna.rows(root):
        if row["Target"] == "1" and row["patientId"] in names:
            box = _box(row, rsna.BOX_COLUMNS)
            yield Marked(names[row["patientId"]], rsna.FINDING, box, "RSNA 2018")


def _names(pattern: str, root: Path) -> Path:
    """A list of names: the user's own beside the labels, or the shipped one."""
    folder = root if list(root.glob(pattern)) else SHIPPED / "meta"
    return locate(folder, pattern)


def _det_boxes(root: Path) -> Iterator[Marked]:
    """Boxes of ChestX-Det, whose corners are x1, y1, x2, y2."""
    rows = read(_names(DET_NAMES, root), ("nih_image", "chestxdet_file_name"))
    names = {row["chestxdet_file_name"]: row["nih_image"] for row in rows}
    files = sorted(root.glob(DET_FILES))
    if not files:
        raise TableError(root, f"no file {DET_FILES}", "unpack ChestX-Det there", kind="file")
    for path in files:
        for number, item in enumerate(runs.read_json(path)):
            yield from _det_item(path, number, item, names)


def _det_item(path: Path, number: int, item: object, names: Mapping[str, str]) -> Iterator[Marked]:
    place = f"item {number}"
    try:
        assert isinstance(item, dict)
        film, labels, boxes = str(item["file_name"]), item["syms"], item["boxes"]
        pairs = [(str(s), tuple(map(float, b))) for s, b in zip(labels, boxes, strict=True)]
    except (AssertionError, KeyError, TypeError, ValueError):
        problem, fix = "no item with file_name, syms and boxes", "take the published file"
        raise TableError(path, problem, fix, place=place) from None
    for label, corners in pairs:
        cells = dict(zip("xywh", map(str, _from_corners(corners)), strict=False))
        box = _box(Row(path, place, cells), "xywh")
        if film in names:
            yield Marked(names[film], label, box, "ChestX-Det")


def _from_corners(corners: tuple[float, ...]) -> tuple[float, ...]:
    return (*corners[:2], *(end - start for start, end in zip(corners, corners[2:], strict=False)))


# ---------------------------------------------------------------- films and tables


def chosen(entries: Mapping[str, Entry], boxed: set[str], films: str) -> list[str]:
    """Names of the films that the pack takes, sorted.

    Raises:
        TableError: "same", and the download lacks films of the shipped pack.
    """
    if films == "same":
        names = list(radiographs.films(SHIPPED))
        if absent := [name for name in names if name not in entries]:
            problem = f"{len(absent)} films of the shipped pack, first {absent[0]}, have no entry"
            raise TableError(Path(chestxray14.ENTRIES), problem, "take the whole table")
        return sorted(names)
    if films == "all":
        return sorted(entries)
    patients = {entries[name].subject_id for name in boxed if name in entries}
    ill = [name for name, entry in entries.items() if entry.subject_id in patients]
    normal = [
        name for name, e in entries.items() if not e.findings and e.subject_id not in patients
    ]
    return sorted([*ill, *sorted(normal, key=position)[: len(ill)]])


def _find(names: Iterable[str], nih: Path) -> dict[str, Path]:
    """Path of every film; the error counts all that are absent."""
    images = Images(chestxray14.image_folders(nih))
    paths = {name: [p for p in images.candidates(name) if p.is_file()] for name in names}
    if absent := [name for name, found in paths.items() if not found]:
        problem = f"{len(absent)} of {len(paths)} films are not there, first {absent[0]}"
        fix = "unpack the archives of images into images/, or choose fewer by --films"
        raise TableError(nih, problem, fix, kind="image")
    return {name: found[0] for name, found in paths.items()}


def _write_film(path: Path, target: Path, size: int) -> None:
    if target.is_file():
        return
    pixels = to_bytes(crop_resize(read_image(path), size))
    with runs.atomic(target) as temporary:
        Image.fromarray(pixels).save(temporary, "PNG", optimize=True)


def _write_tables(out: Path, films: list[Entry], marked: list[Marked], size: int) -> None:
    known = {film.image_id for film in films}
    rows = [
        (f.image_id, f"nih:{f.subject_id}", f.view, "|".join(f.findings) or radiographs.NORMAL)
        for f in films
    ]
    _write_table(out / radiographs.FILMS, rows, radiographs.FILM_COLUMNS)
    boxes = [
        (m.image, m.label, *_scaled(m.box, size), m.source) for m in marked if m.image in known
    ]
    _write_table(out / radiographs.BOXES, sorted(boxes), (*radiographs.COLUMNS, "source"))
    with runs.atomic(out / "SOURCES.md") as temporary:
        temporary.write_text(ATTRIBUTION.format(films=len(films), boxes=len(boxes), size=size))


def _scaled(box: Box, size: int) -> Box:
    scaled = transform_box(box, SIDE, SIDE, size)
    assert scaled is not None  # every box was checked to lie inside
    x, y, w, h = (round(value, 3) for value in scaled)
    return x, y, w, h


def _write_table(path: Path, rows: Sequence[tuple[object, ...]], columns: Iterable[str]) -> None:
    with runs.atomic(path) as temporary:
        pd.DataFrame(rows, columns=list(columns)).to_csv(os.fspath(temporary), index=False)


ATTRIBUTION = """\
# Sources of this pack

{films} frontal chest radiographs at {size}² pixels, 8-bit grey, and {boxes} boxes in their pixels.
For research and teaching only; not for the care of patients.

- Films, text-mined labels and the boxes named ChestX-ray14: NIH Clinical Center, ChestX-ray14,
  https://nihcc.app.box.com/v/ChestXray-NIHCC. Use is unrestricted; give that link, acknowledge the
  NIH Clinical Center and cite Wang et al., ChestX-ray8, CVPR 2017, pp. 3462-3471.
- Boxes named RSNA 2018: RSNA Pneumonia Detection Challenge 2018. Any use with attribution: Shih et
  al., Radiology: Artificial Intelligence 2019, doi:10.1148/ryai.2019180041.
- Boxes named ChestX-Det: https://github.com/Deepwise-AILab/ChestX-Det-Dataset, Apache-2.0.
- Which RSNA film is which NIH film: torchxrayvision, Apache-2.0 (`meta/`).

Changes: shorter side to {size} pixels with antialiasing, centre crop, grey; boxes through the same
map. Labels were mined from reports that are not public and are wrong in part; "No Finding" does not
prove a normal film. ChestX-ray14 has one box of a finding and film: another lesion may be unmarked.
"""
