"""MIMIC-CXR-JPG 2.x with the reports of MIMIC-CXR: frontal images and their report text."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

from tqdm.auto import tqdm

from g2g_utils.data import reports as text
from g2g_utils.data.manifest import Dropped, Selection
from g2g_utils.data.record import Example
from g2g_utils.data.tables import Row, TableError, locate, read, unique

METADATA = "mimic-cxr-2.*-metadata.csv"
SPLIT = "mimic-cxr-2.*-split.csv"
REPORTS = "mimic-cxr-reports.zip"
METADATA_COLUMNS = ("dicom_id", "subject_id", "study_id", "ViewPosition")
SPLIT_COLUMNS = ("dicom_id", "study_id", "subject_id", "split")
SPLITS = {"train": "train", "validate": "validation", "test": "test"}
FRONTAL = ("PA", "AP")
THREADS = 16  # report files are small and often far away
NO_IMAGE = "no image file"
RECIPE = 3  # raise when a change here changes the pairs

Report = tuple[str, str]  # subject, study
Row4 = tuple[str, str, str, str]  # dicom, subject, study, view


def folder_of(root: Path, subject: str) -> Path:
    """Folder of a patient: `files/p10/p10000032`. `root` may be the `files` folder itself."""
    base = root if root.name == "files" and not (root / "files").is_dir() else root / "files"
    return base / f"p{subject[:2]}" / f"p{subject}"


def image_path(root: Path, subject: str, study: str, dicom: str) -> Path:
    """`files/p10/p10000032/s50414267/DICOM.jpg` below the root."""
    return folder_of(root, subject) / f"s{study}" / f"{dicom}.jpg"


def report_reader(folder: Path) -> Callable[[Report], str | None]:
    """A function (subject, study) -> report text or None, from a folder or the published zip."""
    archive = folder if folder.suffix == ".zip" else folder / REPORTS
    if archive.is_file():
        return _zip_reader(archive)
    if not folder.is_dir():
        fix = f"name the folder with files/ or {REPORTS} as data.reports"
        raise TableError(folder, "no reports there", fix, kind="file")

    def from_folder(report: Report) -> str | None:
        path = folder_of(folder, report[0]) / f"s{report[1]}.txt"
        return path.read_text("utf-8", errors="replace") if path.is_file() else None

    return from_folder


def _zip_reader(archive: Path) -> Callable[[Report], str | None]:
    try:
        content = zipfile.ZipFile(archive)
    except zipfile.BadZipFile as error:
        raise TableError(archive, str(error), "download it again", kind="file") from error
    # repacked archives nest the folder, or lack it
    names = {PurePosixPath(name).parts[-3:]: name for name in content.namelist()}

    def from_zip(report: Report) -> str | None:
        name = names.get((folder_of(Path(), report[0]) / f"s{report[1]}.txt").parts[-3:])
        try:
            return content.read(name).decode("utf-8", "replace") if name else None
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            problem = f"damaged archive ({error})"
            raise TableError(archive, problem, "download it again", kind="file") from error

    return from_zip


def splits(root: Path, problems: list[TableError] | None = None) -> dict[str, str]:
    """Official split ("train", "validation", "test") of every image."""
    found: dict[str, str] = {}
    for row in unique(read(locate(root, SPLIT), SPLIT_COLUMNS), "dicom_id", problems):
        found[row["dicom_id"]] = row.one_of("split", SPLITS)
    return found


def metadata(root: Path, problems: list[TableError] | None = None) -> Iterator[Row4]:
    """(dicom, subject, study, view) of every row of the metadata."""
    for row in unique(read(locate(root, METADATA), METADATA_COLUMNS), "dicom_id", problems):
        subject, study = _number(row, "subject_id"), _number(row, "study_id")
        yield row["dicom_id"], subject, study, row["ViewPosition"].upper()


def _number(row: Row, column: str) -> str:
    """An id without the p or s that some exports put in front."""
    name = row[column].lstrip("ps")
    if not name.isdigit():
        raise row.error(f"{row[column]!r} is no {column}", "ids are numbers, 10000032", column)
    return name


def select(
    root: Path,
    split: str,
    excluded: frozenset[str],
    official: Mapping[str, str] | None = None,
    films: Iterable[Row4] | None = None,
) -> tuple[list[Row4], list[Dropped], int]:
    """Choose the frontal images of a split, without the excluded subjects.

    Args:
        official: what `splits` gave, if it was read already; films: what `metadata` gave.

    Returns:
        The images, those dropped with the reason, and the number of images of other splits.
    """
    official = splits(root) if official is None else official
    kept: list[Row4] = []
    dropped: list[Dropped] = []
    others = 0
    for image in metadata(root) if films is None else films:
        dicom, subject, _, view = image
        if dicom not in official:
            dropped.append(Dropped(dicom, subject, "", "not in the split table"))
        elif official[dicom] != split:
            others += 1
        elif subject in excluded:
            dropped.append(Dropped(dicom, subject, split, "subject of the evaluation data"))
        elif view not in FRONTAL:
            dropped.append(Dropped(dicom, subject, split, "not frontal", view or "no view given"))
        else:
            kept.append(image)
    return kept, dropped, others


def absent(paths: Iterable[Path]) -> set[Path]:
    """Paths that are no files. Several are looked up at once, as they are often far away."""
    wanted = list(paths)

    def among(part: list[Path]) -> set[Path]:
        return {path for path in part if not os.path.isfile(path)}

    with ThreadPoolExecutor(THREADS) as pool:
        return set().union(*pool.map(among, (wanted[i::THREADS] for i in range(THREADS))))


def _phrases(
    studies: Iterable[Report], read_report: Callable[[Report], str | None], progress: bool
) -> dict[Report, text.Phrase | str]:
    """Phrase of every study, or the reason why it has none."""

    def one(study: Report) -> text.Phrase | str:
        report = read_report(study)
        if report is None:
            return "no report file"
        return text.phrase(report) or ("unusable report" if report.strip() else "empty report")

    wanted = list(dict.fromkeys(studies))
    with ThreadPoolExecutor(THREADS) as pool:
        found = tqdm(pool.map(one, wanted), "reports", len(wanted), disable=not progress)
        return dict(zip(wanted, found, strict=True))


def load(
    root: Path,
    reports: Path | None = None,
    split: str = "train",
    excluded: frozenset[str] = frozenset(),
    images: Path | None = None,
    progress: bool = False,
) -> Selection:
    """Load the frontal image–report pairs of an official split, without the excluded subjects.

    Images stay on disk and are not opened; absent ones are dropped. All pairs of a study share its
    phrase.

    Args:
        reports: folder with `files/p10/…/s….txt`, or the published zip; by default `root`.
        images: folder of the images; by default `root`.
    """
    if split not in SPLITS.values():
        raise ValueError(f"unknown split {split!r}: choose one of {', '.join(SPLITS.values())}")
    kept, dropped, others = select(root, split, excluded)
    phrases = _phrases(((i[1], i[2]) for i in kept), report_reader(reports or root), progress)
    paths = [image_path(images or root, subject, study, dicom) for dicom, subject, study, _ in kept]
    missing = absent(paths)
    examples: list[Example] = []
    used: dict[str, int] = dict.fromkeys(text.PREFERENCE, 0)
    ways: Counter[str] = Counter()
    for path, (dicom, subject, study, _) in zip(paths, kept, strict=True):
        phrase = NO_IMAGE if path in missing else phrases[subject, study]
        if isinstance(phrase, str):
            dropped.append(Dropped(dicom, subject, split, phrase, f"s{study}"))
            continue
        used[phrase.section] += 1
        ways[phrase.how] += 1
        examples.append(Example(path, phrase.text, None, (), dicom, subject, split))
    facts = {
        "other_splits": others,
        "excluded_subjects": len(excluded),
        "text_from": used,
        "text_found_by": dict(ways.most_common()),
    }
    return Selection(examples, dropped, facts)
