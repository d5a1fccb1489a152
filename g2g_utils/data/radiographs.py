"""Real films in small: a pack of radiographs with boxes and labels, without reports.

A pack is a folder: `images.csv` (one row a film: patient, view, labels), `boxes.csv` (one row a
box, pixels of the film) and `images/`. The repository ships one; `prepare` makes others. Nobody
wrote a report for these films. The phrase of a box is the finding's name and the side on which the
boxes lie. Captions are made from text-mined labels: wrong in part, and silent about the side.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from g2g_utils.data.files import Images, collect
from g2g_utils.data.geometry import Box
from g2g_utils.data.order import position
from g2g_utils.data.record import Example, merge_rows
from g2g_utils.data.tables import BOX_COLUMNS, Row, TableError, read, tolerate, unique

FILMS, BOXES = "images.csv", "boxes.csv"
FILM_COLUMNS = ("image", "subject_id", "view", "labels")
COLUMNS = ("image", "label", *BOX_COLUMNS)
SEPARATOR = "|"  # between the labels of a film
NORMAL = "No Finding"

FINDINGS = {  # label of a box -> finding; four labels are names of one look
    "pneumonia": "Airspace Opacity",
    "infiltration": "Airspace Opacity",
    "consolidation": "Airspace Opacity",
    "lung opacity": "Airspace Opacity",
    "effusion": "Pleural Effusion",
    "pleural effusion": "Pleural Effusion",
    "atelectasis": "Atelectasis",
    "pneumothorax": "Pneumothorax",
    "cardiomegaly": "Cardiomegaly",
    "mass": "Mass",
    "nodule": "Nodule",
}
OTHERS = frozenset(
    "calcification|diffuse nodule|emphysema|fibrosis|fracture|pleural thickening".split("|")
)
"""Labels of boxes that no phrase asks for."""

PHRASES = {  # finding -> the words of its phrase
    "Airspace Opacity": "lung opacity",
    "Mass": "lung mass",
    "Nodule": "lung nodule",
}
WORDS = {  # label of a film -> its words in a caption; others are written as they are
    "infiltration": "lung opacity",
    "effusion": "pleural effusion",
    "mass": "lung mass",
    "nodule": "lung nodule",
    "pleural_thickening": "pleural thickening",
}
NORMAL_CAPTION = "no acute cardiopulmonary process."
SIDELESS = frozenset({"Cardiomegaly"})
RIGHT, LEFT = 0.46, 0.54
"""The patient's right and left: shares of the width, as the films are shown."""

SHARES = {True: (0.3, 0.5), False: (0.8, 0.9)}
"""Patients [with boxes]: up to the first share of the fixed order in train, up to the second in
validation. Only boxes can be tested on, and only films without can be spared for training."""


@dataclass(frozen=True, slots=True)
class Film:
    """One film of a pack."""

    path: Path
    image_id: str
    subject_id: str
    view: str
    labels: tuple[str, ...]  # text-mined; empty: "No Finding"

    @property
    def caption(self) -> str:
        """Findings of the labels as a sentence. It names no side, for no label does."""
        words = [WORDS.get(label.lower(), label.lower()) for label in self.labels]
        return f"{listed(dict.fromkeys(words))}." if words else NORMAL_CAPTION


def listed(words: Iterable[str]) -> str:
    """Words as an enumeration: "a, b and c"."""
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last


def films(root: Path, problems: list[TableError] | None = None) -> dict[str, Film]:
    """Films of a pack by name.

    Args:
        problems: collects bad rows; without it the first one raises TableError.
    """
    images, found = Images([root / "images"]), {}
    for row in unique(read(root / FILMS, FILM_COLUMNS), "image", problems):
        with tolerate(problems):
            film = _film(row, images)
            found[film.image_id] = film
    return found


def _film(row: Row, images: Images) -> Film:
    name = row.text("image", "the image name is empty", "name a file of images/")
    path = images.find(row, "image", name)
    subject = row.text("subject_id", "the patient is empty", "write the patient's id")
    labels = [label.strip() for label in row["labels"].split(SEPARATOR) if label.strip()]
    if NORMAL in labels and len(labels) > 1:
        fix = f"a film has findings or is {NORMAL!r}"
        raise row.error(f"{row['labels']!r} contradicts itself", fix, "labels")
    if not labels:
        raise row.error("no label", f"write {NORMAL!r} where nothing was found", "labels")
    return Film(path, name, subject, row["view"], tuple(x for x in labels if x != NORMAL))


def pairs(root: Path, problems: list[TableError] | None = None) -> list[Example]:
    """Film–phrase pairs: one of each film and finding, with the boxes of all annotators united.

    Boxes with other labels (`OTHERS`) are left out. The split follows from the patient.
    """
    known = films(root, problems)
    images = Images([root / "images"])

    def example(row: Row) -> Example | None:
        return _pair(row, known, images)

    rows = read(root / BOXES, COLUMNS)
    merged = merge_rows(collect(rows, example, "image", images, problems))
    split = splits(known.values(), {pair.subject_id for pair in merged})
    return [
        replace(pair, phrase=phrase(pair, images), split=split[pair.subject_id]) for pair in merged
    ]


def _pair(row: Row, known: Mapping[str, Film], images: Images) -> Example | None:
    film = known.get(row["image"])
    if film is None:
        fix = f"give the film a row in {FILMS}, or remove the box"
        raise row.error(f"{row['image']!r} is no film of the pack", fix, "image", "image")
    box = row.box(*images.size(film.path))
    if box is None:
        raise row.error("the row has no box", "every row of the table is one box", "x", "box")
    if row["label"].lower() in OTHERS:
        return None
    finding = row.one_of("label", FINDINGS)
    return Example(film.path, "", finding, (box,), film.image_id, film.subject_id, "test")


def phrase(pair: Example, images: Images) -> str:
    """What to look for: the finding, with its side where all boxes lie on one."""
    assert pair.finding is not None and isinstance(pair.image, Path)
    words = PHRASES.get(pair.finding, pair.finding.lower())
    side = None if pair.finding in SIDELESS else side_of(pair.boxes, images.size(pair.image)[1])
    return f"{side} {words}" if side else words


def side_of(boxes: Iterable[Box], width: float) -> str | None:
    """The patient's side on which the centres of all boxes lie, or None."""
    centres = [(x + w / 2) / width for x, _, w, _ in boxes]
    if all(centre < RIGHT for centre in centres):
        return "right"
    return "left" if all(centre > LEFT for centre in centres) else None


def splits(found: Iterable[Film], boxed: set[str]) -> dict[str, str]:
    """Split of every patient, by the fixed order of their ids (`SHARES`).

    Args:
        boxed: patients with a box.
    """
    out = {}
    for film in found:
        train, validation = SHARES[film.subject_id in boxed]
        place = position(film.subject_id)
        later = "validation" if place < validation else "test"
        out[film.subject_id] = "train" if place < train else later
    return out


def captioned(root: Path, split: str) -> list[Example]:
    """Films of a split with the captions of their labels, without boxes."""
    of = split_of_patients(root)
    return [
        Example(film.path, film.caption, None, (), film.image_id, film.subject_id, split)
        for film in films(root).values()
        if of[film.subject_id] == split
    ]


def split_of_patients(root: Path) -> dict[str, str]:
    """Split of every patient of a pack."""
    return splits(films(root).values(), {pair.subject_id for pair in pairs(root)})
