"""OpenI (Indiana University): frontal images and reports that anyone can download."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from g2g_utils.data.manifest import Dropped, Selection
from g2g_utils.data.plain import is_empty
from g2g_utils.data.record import Example
from g2g_utils.data.reports import without_heading
from g2g_utils.data.tables import Row, TableError, locate, matching, read, tolerate, unique

REPORTS = "indiana_reports*.csv"
PROJECTIONS = "indiana_projections*.csv"
XML_FOLDER = "ecgen-radiology"
REPORT_COLUMNS = ("uid", "findings", "impression")
PROJECTION_COLUMNS = ("uid", "filename", "projection")
VIEWS = {"frontal": "Frontal", "lateral": "Lateral"}
FOLDERS = ("images/images_normalized", "images_normalized", "images", "NLMCXR_png", "")
REDACTED = re.compile(r"\bX{3,}\b|\[XXXX\]")
X_RAY = re.compile(r"\bx-XXXX\b", re.IGNORECASE)
MOSTLY = 0.5  # share of redacted words from which a sentence is left out


def unredact(text: str) -> str:
    """A report's text without its XXXX: `x-XXXX` becomes x-ray, other redacted words are left out.

    Sentences that lost half of their words are dropped, for their rest says little.
    """
    kept = []
    for sentence in re.split(r"(?<=[.;?!])\s+", X_RAY.sub("x-ray", text)):
        hidden, words = len(REDACTED.findall(sentence)), len(sentence.split())
        if words and hidden / words < MOSTLY:
            kept.append(REDACTED.sub("", sentence))
    joined = " ".join(" ".join(kept).split())
    return re.sub(r"\s+([.,;:?!])", r"\1", joined)


def xml_rows(folder: Path) -> Iterator[Row]:
    """The ecgen-radiology XML reports as rows of `indiana_reports.csv`."""
    paths = sorted(folder.glob("*.xml"), key=lambda p: (len(p.stem), p.stem))
    if not paths:
        raise TableError(folder, "no XML reports", "unpack NLMCXR_reports.tgz there", kind="file")
    for path in paths:
        try:
            tree = ElementTree.parse(path)
        except ElementTree.ParseError as error:
            problem = f"not XML ({error})"
            raise TableError(path, problem, "download it again", kind="file") from error
        found = tree.find("uId")
        uid = (found.get("id") or "").removeprefix("CXR") if found is not None else ""
        texts = {
            (node.get("Label") or "").lower(): (node.text or "").strip()
            for node in tree.iter("AbstractText")
        }
        if not uid or not texts:
            fix = "take the published file"
            raise TableError(path, "no <uId> or no <AbstractText>", fix, kind="columns")
        yield Row(path, "", {"uid": uid, **texts})


def reports(root: Path) -> Iterator[Row]:
    """Rows of the reports, one per report: the CSV of the Kaggle edition, or else the XML files."""
    if not matching(root, REPORTS) and (root / XML_FOLDER).is_dir():
        return xml_rows(root / XML_FOLDER)
    return read(locate(root, REPORTS), REPORT_COLUMNS)


def projections(root: Path, problems: list[TableError] | None = None) -> Iterator[Row]:
    """Rows of the images, one per image, with its view, which the XML files lack."""
    if root.is_dir() and not matching(root, PROJECTIONS):
        problem = f"no file {PROJECTIONS}, which alone says which images are frontal"
        fix = "take it from the Kaggle edition; it fits the XML reports too (data/README.md)"
        raise TableError(root, problem, fix, kind="file")
    yield from unique(read(locate(root, PROJECTIONS), PROJECTION_COLUMNS), "filename", problems)


def _phrase(row: Row) -> tuple[str, str]:
    """Impression, or else findings, without redactions; and which of the two ("" for neither)."""
    for section in ("impression", "findings"):
        cell = row.get(section)
        text = "" if is_empty(cell) else unredact(without_heading(cell))
        if re.search(r"[^\W\d_]{2}", text):
            return text, section
    return "", ""


def _path(folders: list[Path], filename: str) -> Path:
    """Path of an image: Kaggle's name `1_IM-0001-4001.dcm.png` or NLM's `CXR1_1_IM-….png`."""
    stem = filename.removesuffix(".png").removesuffix(".dcm")
    names = (filename, f"CXR{stem}.png", f"{stem}.png", f"{stem}.dcm")
    found = (f / name for f in folders for name in names if os.path.isfile(f / name))
    return next(found, folders[0] / filename)


def load(
    root: Path, images: Path | None = None, problems: list[TableError] | None = None
) -> Selection:
    """Load the frontal image–report pairs. Every report counts as a patient, as the source says.

    The phrase is the impression, or else the findings. Reports left without words are dropped with
    the reason. Images that are not on disk are dropped too, for parts of the collection are common.
    """
    folders = [images] if images else [root / f for f in FOLDERS if (root / f).is_dir()] or [root]
    phrases = {row["uid"]: _phrase(row) for row in unique(reports(root), "uid", problems)}
    examples: list[Example] = []
    dropped: list[Dropped] = []
    used = {"impression": 0, "findings": 0}
    for row in projections(root, problems):
        uid, name = row["uid"], row["filename"]
        path, (phrase, section) = _path(folders, name), phrases.get(uid, ("", ""))
        reason = "unknown view"
        with tolerate(problems):
            reason = "" if row.one_of("projection", VIEWS) == "Frontal" else "not frontal"
        if uid not in phrases:
            reason = reason or "no report"
        elif not phrase:
            reason = reason or "unusable report"
        elif not os.path.isfile(path):
            reason = reason or "no image file"
        if reason:
            dropped.append(Dropped(name, uid, "train", reason))
            continue
        used[section] += 1
        examples.append(Example(path, phrase, None, (), name, uid, "train"))
    return Selection(examples, dropped, {"text_from": used})
