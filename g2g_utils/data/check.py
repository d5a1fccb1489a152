"""Check that a data root is complete and sound: `python -m g2g_utils.data.check PROFILE`.

Prints one table: columns, counts beside the published ones, missing files, damaged files (a sample,
or all with --all), boxes outside images, duplicate ids, patients in two splits. Writes nothing.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from g2g_utils import config as configuration
from g2g_utils.config import Config, HeldOut
from g2g_utils.data import (
    chestxray14,
    mimic_cxr,
    ms_cxr,
    openi,
    radiographs,
    reports,
    rsna,
    siim,
    sources,
)
from g2g_utils.data.files import two_classes
from g2g_utils.data.images import ImageError, read_image
from g2g_utils.data.order import position
from g2g_utils.data.plain import plain
from g2g_utils.data.record import Example
from g2g_utils.data.tables import Row, TableError, matching, read

PUBLISHED: dict[str, dict[str, int]] = {
    "mimic_cxr": {"images": 377110, "patients": 65379, "images in train": 368960,
                  "images in validation": 2991, "images in test": 5159},
    "ms_cxr": {"rows": 1448, "images": 1047, "pairs": 1162},
    "chestxray14": {"rows": 984, "images": 880, "entries": 112120},
    "rsna": {"rows": 9555, "images": 6012},
    "openi": {"reports": 3851, "images": 7466, "frontal": 3818},
}  # fmt: skip
KINDS = {
    "file": "files", "columns": "columns", "value": "cells with a wrong value",
    "class": "unknown classes", "box": "bad boxes", "cut": "boxes cut at the image's edge",
    "frame": "boxes of another frame", "duplicate": "duplicate ids",
    "image": "missing or damaged images",
}  # fmt: skip
PEOPLE = {"ms_cxr": "mimic_cxr"}  # sources that share their patients' ids
Place = tuple[str, Path, Path | None, str | None]  # source, root, images, subset
SHOWN = 3  # complaints of one kind printed in full


@dataclass(frozen=True)
class Line:
    """One line of the table. Verdicts: "ok", "note" (worth a look), "FAIL"."""

    source: str
    what: str
    found: str
    expected: str = ""
    verdict: str = "ok"


@dataclass
class Report:
    """The table, and the complaints printed in full below it."""

    lines: list[Line] = field(default_factory=list)
    details: list[str] = field(default_factory=list)

    @property
    def failed(self) -> bool:
        """True if anything must be mended before a run."""
        return any(line.verdict == "FAIL" for line in self.lines)

    def count(self, source: str, what: str, found: int) -> None:
        """Add a count beside the published one. It never fails: parts of a data set are allowed."""
        wanted = PUBLISHED.get(source, {}).get(what)
        verdict = "ok" if wanted in (None, found) else "note"
        self.lines.append(
            Line(source, what, str(found), "" if wanted is None else str(wanted), verdict)
        )

    def none(self, source: str, what: str, wrong: Sequence[object], note: bool = False) -> None:
        """Add a list that should be empty. Its first entries become details."""
        verdict = ("note" if note else "FAIL") if wrong else "ok"
        self.lines.append(Line(source, what, str(len(wrong)), "0", verdict))
        self.details += [f"{source}: {item}" for item in wrong[:SHOWN]]
        if len(wrong) > SHOWN:
            self.details.append(f"{source}: … and {len(wrong) - SHOWN} more ({what})")

    def unusable(self, source: str, error: ValueError) -> None:
        """Add a source whose check broke off."""
        what = KINDS[error.kind] if isinstance(error, TableError) else "profile"
        line = Line(source, what, "unusable", "", "FAIL")
        if f"{source}: {error}" not in self.details:
            self.lines.append(line)
            self.details.append(f"{source}: {error}")

    def problems(self, source: str, problems: Iterable[TableError]) -> None:
        """Add bad rows by kind. Kinds that are checked for every table are always listed."""
        kinds: dict[str, list[TableError]] = {"box": [], "class": [], "duplicate": [], "image": []}
        for problem in problems:
            kinds.setdefault(problem.kind, []).append(problem)
        for kind, wrong in kinds.items():
            self.none(source, KINDS[kind], wrong, note=kind in ("cut", "frame"))

    def __str__(self) -> str:
        header = Line("source", "what", "found", "expected", "verdict")
        cells = [(s.source, s.what, s.found, s.expected, s.verdict) for s in [header, *self.lines]]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        rows = ["  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)) for r in cells]
        return "\n".join([*map(str.rstrip, rows), *([""] if self.details else []), *self.details])


# ---------------------------------------------------------------- files


def sampled(names: Iterable[Any], sample: int | None) -> list[Any]:
    """A fixed sample that does not depend on the order; all items if count is None."""
    distinct = list(dict.fromkeys(names))
    if sample is None or len(distinct) <= sample:
        return distinct
    return sorted(distinct, key=lambda name: position(str(name)))[:sample]


def check_images(report: Report, source: str, paths: Iterable[Path], sample: int | None) -> None:
    """Read image files whole, because only then truncated ones show."""
    chosen, wrong = sampled(paths, sample), []
    with _said("g2g_utils.data.images") as said:
        for path in tqdm(chosen, f"{source} images", leave=False, disable=len(chosen) < 50):
            try:
                read_image(path)
            except ImageError as error:
                wrong.append(error)
    report.none(source, f"damaged among {len(chosen)} images read", wrong)
    if said:
        report.none(source, "of them with something to look at", said, note=True)


@contextmanager
def _said(name: str) -> Iterator[list[str]]:
    """Collect what a module warns of inside, instead of showing it."""
    said: list[str] = []
    handler, logger = logging.Handler(logging.WARNING), logging.getLogger(name)
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    level, logger.propagate = logger.level, False
    logger.setLevel(logging.WARNING)
    logger.addHandler(handler)
    try:
        yield said
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = True


# ---------------------------------------------------------------- sources with boxes


def _boxed_rows(held: HeldOut, root: Path) -> tuple[Iterator[Row], tuple[str, ...]]:
    """Rows of a table with boxes, and the columns that make a pair (the image's id first)."""
    if held.source == "ms_cxr":
        return ms_cxr.rows(root), ("dicom_id", "label_text", "category_name")
    if held.source == "chestxray14":
        return chestxray14.rows(root), ("Image Index", "Finding Label")
    if held.source == "radiographs":
        return read(root / radiographs.BOXES, radiographs.COLUMNS), ("image", "label")
    if held.source == "siim":
        return (row for row in siim.rows(root) if row["EncodedPixels"] != siim.NOTHING), (
            "ImageId",
        )
    if held.source == "rsna":
        return (row for row in rsna.rows(root) if row["Target"] == "1"), ("patientId",)
    return read(sources.table(root), ("image", "phrase")), ("image", "phrase", "finding")


def _check_boxed(report: Report, held: HeldOut, sample: int | None) -> list[Example]:
    root = sources.resolve(held.root)
    images = sources.resolve(held.images) if held.images else None
    found, key = _boxed_rows(held, root)
    rows = list(found)
    pairs = {tuple(" ".join(plain(row.get(column)).split()) for column in key) for row in rows}
    report.count(held.source, "rows", len(rows))
    report.count(held.source, "images", len({pair[0] for pair in pairs}))
    report.count(held.source, "pairs", len(pairs))
    report.none(held.source, "rows given twice", _repeats(rows), note=True)
    problems: list[TableError] = []
    examples = sources.boxed(held.source, root, images, held.subset, problems)
    if held.source == "chestxray14":
        problems += _check_entries(report, root, examples)
    report.problems(held.source, problems)
    doubles = [f"{i}: {p!r} is {' and '.join(c)}" for i, p, c in two_classes(examples)]
    report.none(held.source, "phrases with two classes", doubles, note=True)
    check_images(
        report, held.source, (e.image for e in examples if isinstance(e.image, Path)), sample
    )
    return examples


def _repeats(rows: Iterable[Row]) -> list[str]:
    """Rows that repeat the cells of an earlier row. The union of boxes takes them once."""
    first: dict[tuple[str, ...], Row] = {}
    repeats = []
    for row in rows:
        earlier = first.setdefault(tuple(row.cells.values()), row)
        if earlier is not row:
            repeats.append(f"{row.path}, {row.place}: the same as {earlier.place}")
    return repeats


def _check_entries(report: Report, root: Path, boxed: list[Example]) -> list[TableError]:
    """Check ChestX-ray14's entries, if present: their count and the classes of the boxes."""
    problems: list[TableError] = []
    if root.is_file() or not matching(root, chestxray14.ENTRIES):
        return problems
    entries = {entry.image_id: entry for entry in chestxray14.entries(root, problems)}
    report.count("chestxray14", "entries", len(entries))
    wrong = []
    for example in boxed:
        entry = entries.get(example.image_id)
        if entry and example.finding not in entry.findings:
            labels = ", ".join(entry.findings) or "no finding"
            wrong.append(f"{entry.image_id}: box of {example.finding}, entry has {labels}")
    report.none("chestxray14", "boxes whose class the entry lacks", wrong, note=True)
    return problems


# ---------------------------------------------------------------- sources with reports


def _check_openi(report: Report, root: Path, images: Path | None, sample: int | None) -> set[str]:
    problems: list[TableError] = []
    report.count("openi", "reports", sum(1 for _ in openi.reports(root)))
    views = Counter(row["projection"].lower() for row in openi.projections(root, []))
    report.count("openi", "images", views.total())
    report.count("openi", "frontal", views["frontal"])
    examples, dropped, _ = openi.load(root, images, problems)
    report.problems("openi", problems)
    report.count("openi", "pairs", len(examples))
    for reason, number in Counter(item.reason for item in dropped).most_common():
        verdict = "note" if reason in ("no image file", "no report") else "ok"
        report.lines.append(Line("openi", f"left out: {reason}", str(number), "", verdict))
    check_images(report, "openi", (e.image for e in examples if isinstance(e.image, Path)), sample)
    return {example.subject_id for example in examples}


def _check_mimic(
    report: Report, config: Config, root: Path, images: Path | None, sample: int | None
) -> set[str]:
    problems: list[TableError] = []
    official = mimic_cxr.splits(root, problems)
    films = list(mimic_cxr.metadata(root, problems))
    report.count("mimic_cxr", "images", len(films))
    report.count("mimic_cxr", "patients", len({subject for _, subject, _, _ in films}))
    for split, number in Counter(official.values()).items():
        report.count("mimic_cxr", f"images in {split}", number)
    report.problems("mimic_cxr", problems)
    absent = [f"{dicom} is not in the split table" for dicom, *_ in films if dicom not in official]
    report.none("mimic_cxr", "images without a split", absent)
    by_patient: dict[str, set[str]] = {}
    for dicom, subject, _, _ in films:
        by_patient.setdefault(subject, set()).add(official.get(dicom, "none"))
    twice = [f"p{p} is in {' and '.join(sorted(s))}" for p, s in by_patient.items() if len(s) > 1]
    report.none("mimic_cxr", "patients in two splits", twice)
    excluded = sources.excluded_subjects(config)
    kept, _, _ = mimic_cxr.select(root, "train", excluded, official, films)
    report.count("mimic_cxr", "frontal training images", len(kept))
    _check_mimic_files(report, config, root, images or root, kept, sample)
    return {subject for _, subject, _, _ in kept}


def _check_mimic_files(
    report: Report,
    config: Config,
    root: Path,
    images: Path,
    kept: list[tuple[str, str, str, str]],
    sample: int | None,
) -> None:
    """Check that all training images exist, and read a sample of them and of their reports."""
    paths = [
        mimic_cxr.image_path(images, subject, study, dicom) for dicom, subject, study, _ in kept
    ]
    gone = mimic_cxr.absent(paths)
    some = len(gone) < len(paths)  # parts of the collection are common: a run drops the others
    report.none("mimic_cxr", f"left out: {mimic_cxr.NO_IMAGE}", sorted(gone), note=some)
    check_images(report, "mimic_cxr", (path for path in paths if path not in gone), sample)
    place = sources.resolve(config.data.reports) if config.data.reports else root
    read_report = mimic_cxr.report_reader(place)
    studies = sampled(((subject, study) for _, subject, study, _ in kept), sample)
    texts = {study: read_report(study) for study in studies}
    missing = [f"no report p{p}/s{s}.txt" for (p, s), text in texts.items() if text is None]
    report.none("mimic_cxr", f"missing among {len(studies)} reports", missing)
    empty = sum(1 for text in texts.values() if text is not None and not reports.phrase(text))
    report.count("mimic_cxr", "of them without usable text", empty)


# ---------------------------------------------------------------- small real films


def _check_pack(report: Report, root: Path, sample: int | None) -> set[str]:
    """Check a pack of small films: tables, boxes, files and the patients of its splits."""
    _check_boxed(report, HeldOut(source="radiographs", root=root), sample)
    of = radiographs.split_of_patients(root)
    for split in sources.SPLITS:
        patients = sum(1 for other in of.values() if other == split)
        report.count("radiographs", f"patients in {split}", patients)
    return {patient for patient, split in of.items() if split == "train"}


# ---------------------------------------------------------------- the whole


def _training(report: Report, config: Config, sample: int | None) -> set[str]:
    """Check the training source; return its patients."""
    data = config.data
    assert data.root is not None  # the configuration's own check
    root = sources.resolve(data.root)
    images = sources.resolve(data.images) if data.images else None
    if data.source == "mimic_cxr":
        return _check_mimic(report, config, root, images, sample)
    if data.source == "radiographs":
        return _check_pack(report, root, sample)
    if data.source == "openi":
        found = _check_openi(report, root, images, sample)
    else:
        held = HeldOut(source="folder", root=data.root, images=data.images)
        found = {example.subject_id for example in _check_boxed(report, held, sample)}
    low, high = sources.own_share(config, "train")
    return {subject for subject in found if low <= position(subject) < high}


def _evaluation(
    report: Report, held: HeldOut, sample: int | None, known: dict[Place, list[Example]]
) -> set[str]:
    """Check a held-out source, once if it serves both splits; return the patients of this split."""
    if held.source in ("mimic_cxr", "openi"):
        message = f"{held.source} has no boxes: it can be trained on, not evaluated on"
        raise configuration.ConfigError(message)
    own = held.source in ("ms_cxr", "radiographs")  # splits of their own
    whole = held.model_copy(update={"subset": None}) if own else held
    key = (whole.source, whole.root, whole.images, whole.subset)
    if key not in known:
        known[key] = _check_boxed(report, whole, sample)
        boxed = any(example.boxes for example in known[key])
        report.none(held.source, "nothing to evaluate on", [] if boxed else ["no row has a box"])
    found = [example for example in known[key] if held.subset in (None, example.split)]
    return {example.subject_id for example in sources.share(found, held.patients)}


def _works(
    report: Report, config: Config, sample: int | None
) -> dict[str, tuple[str, Callable[[], set[str]]]]:
    """Checks of all splits that read files: the source and a function that gives its patients."""
    known: dict[Place, list[Example]] = {}
    works: dict[str, tuple[str, Callable[[], set[str]]]] = {}
    if config.data.source != "phantoms":
        works["train"] = (config.data.source, partial(_training, report, config, sample))
    for split in sources.SPLITS[1:]:
        held = sources.held_out(config, split)
        if held:
            works[split] = (held.source, partial(_evaluation, report, held, sample, known))
    return works


def check(config: Config, sample: int | None = 200) -> Report:
    """Check every source of a profile.

    Args:
        sample: number of images and reports to read; None reads all.
    """
    report = Report()
    people: dict[str, tuple[str, set[str]]] = {}
    if config.data.source == "phantoms":
        report.lines.append(Line("phantoms", "files needed", "0", "0"))
    for split, (source, work) in _works(report, config, sample).items():
        try:
            people[split] = (source, work())
        except (TableError, configuration.ConfigError) as error:
            report.unusable(source, error)
    _check_leaks(report, people)
    return report


def _check_leaks(report: Report, people: dict[str, tuple[str, set[str]]]) -> None:
    """Patients that two splits share, for splits whose ids come from one collection."""
    for one, other in combinations(people, 2):
        (source, a), (another, b) = people[one], people[other]
        if PEOPLE.get(source, source) == PEOPLE.get(another, another):
            shared = [f"patient {p} is in {one} and {other}" for p in sorted(a & b)]
            where = source if source == another else f"{source}, {another}"
            report.none(where, f"patients in {one} and {other}", shared)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence this package's warnings inside the block."""
    logger = logging.getLogger("g2g_utils")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table of a profile. Exit status: 1 if it has a FAIL, 2 if it cannot be made."""
    parser = argparse.ArgumentParser(prog="python -m g2g_utils.data.check", description=__doc__)
    parser.add_argument("profile", nargs="?", default="miniature", help="profile or its YAML file")
    parser.add_argument("--sample", type=int, default=200, help="files read of every source")
    parser.add_argument("--all", action="store_true", help="read every file")
    options = parser.parse_args(arguments)
    try:
        config = configuration.load(options.profile)
    except configuration.ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    with _quiet():  # the table already lists what the loaders warn of
        report = check(config, None if options.all else options.sample)
    print(report)
    return int(report.failed)


if __name__ == "__main__":
    sys.exit(main())
