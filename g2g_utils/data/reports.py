"""Text of a radiology report about its image: impression, else findings, else last paragraph."""

from __future__ import annotations

import difflib
import re
from typing import NamedTuple

HEADING = re.compile(
    r"^[ \t]*(?:(?P<capitals>[A-Z][A-Z0-9 ()/,&.'_-]{2,70}?)[ \t]*:(?=\s|$)"
    r"|(?=[A-Z])(?P<usual>(?i:impression|finding|conclusion)s?)[ \t]*[:;])",
    re.MULTILINE,
)
"""A heading: capitals at the start of a line and a colon; usual headings in any case."""

PREFERENCE = ("impression", "findings", "last paragraph")
IMPRESSIONS = ("IMPRESSION", "CONCLUSION", "SUMMARY", "OPINION", "INTERPRETATION")
FINDINGS = ("FINDINGS", "OBSERVATIONS", "REPORT")
VIEWS = ("CHEST", "PORTABLE", "RADIOGRAPH", "VIEW", "AP", "PA", "LATERAL", "X-RAY", "CXR")
ASIDE = (  # their text says nothing about this image
    "INDICATION", "HISTORY", "COMPARISON", "TECHNIQUE", "EXAMINATION", "EXAM", "STUDY", "REASON",
    "CLINICAL", "NOTIFICATION", "RECOMMENDATION", "RECOMMENDATIONS", "DATE", "TYPE", "PROCEDURE",
    "DICTATED", "SIGNED", "ADDENDUM", "DOSE", "CONTRAST", "ACCESSION",
)  # fmt: skip
POINTERS = re.compile(
    r"(please )?(as|see|per)( detailed| described| discussed)? "
    r"(above|below|findings|report|body of report|full report)( section)?( above)?[. ]*",
    re.IGNORECASE,
)
STAMP = re.compile(r"\b\d{1,2}:\d{2}\s*([AP]\.?M\b\.?)?|\bX{3,}\b")
"""A time of day, or a redacted word. Neither is a text by itself."""
BANNER = re.compile(r"^\W*(final|preliminary|wet read|addendum)?\W*(report|final)\W*$", re.I)


class Phrase(NamedTuple):
    """Text of a report and the section it comes from (one of `PREFERENCE`)."""

    text: str
    section: str


def _kind(heading: str) -> str:
    """Kind of a heading, misspelt or not.

    "impression", "provisional" (an impression that a final one replaces), "findings", "aside" or
    "other".
    """
    words = re.findall(r"[A-Z-]+", heading.upper())
    if not words:
        return "other"
    if words[0] == "CLINICAL":  # CLINICAL SUMMARY: the patient's story
        return "aside"

    def names(vocabulary: tuple[str, ...], within: list[str], cutoff: float) -> bool:
        return any(difflib.get_close_matches(w, vocabulary, n=1, cutoff=cutoff) for w in within)

    if names(IMPRESSIONS, words, 0.84):
        return "provisional" if "PROVISIONAL" in words else "impression"
    if names(FINDINGS, words[:1], 0.84):
        return "findings"
    if names(ASIDE, words, 0.9):
        return "aside"
    return "findings" if any(w.rstrip("S") in VIEWS for w in words) else "other"


def clean(text: str) -> str:
    """Text on one line, with single spaces, without rulers and the ornaments of enumerations."""
    return " ".join(re.sub(r"[_=*-]{4,}", " ", text).split())


def sections(report: str) -> list[tuple[str, str]]:
    """(kind, text) of every part of a report, in order. Text before all headings is "other".

    Unknown headings directly below IMPRESSION or FINDINGS (NOTE, LUNGS) are parts of its text.
    """
    marks = list(HEADING.finditer(report))
    edges = [*(mark.start() for mark in marks), len(report)]
    parts = [("other", report[: edges[0]])]
    start, nested = 0, False
    for mark, end in zip(marks, edges[1:], strict=True):
        kind, (above, text) = _kind(mark["capitals"] or mark["usual"]), parts[-1]
        empty = above not in ("other", "aside") and not text.strip()
        nested = kind == "other" and (nested or empty)
        if nested:
            parts[-1] = (above, report[start:end])
        else:
            start = mark.end()
            parts.append((kind, report[start:end]))
    return parts


def _last_paragraph(report: str) -> str:
    """The last paragraph. The first one below a heading such as HISTORY belongs to that heading."""
    for kind, text in reversed(sections(report)):
        paragraphs = [clean(p) for p in re.split(r"\n[ \t]*\n", text)]
        paragraphs = [p for p in paragraphs if p and not BANNER.match(p)]
        paragraphs = paragraphs[1:] if kind == "aside" else paragraphs
        if paragraphs:
            return paragraphs[-1]
    return ""


def _usable(text: str) -> bool:
    """True if the text has a word of two letters and is more than a time or a pointer elsewhere."""
    return bool(re.search(r"[^\W\d_]{2}", STAMP.sub("", text))) and not POINTERS.fullmatch(text)


def phrase(report: str) -> Phrase | None:
    """Text to train on, or None if a report says nothing usable.

    Of several impressions (a wet read, then the final report) the last that is not empty counts. A
    provisional one counts only if there is no other. The de-identification's underscores stay, as
    in the published text.
    """
    report = report.replace("\r\n", "\n").replace("\r", "\n")
    parts = [(kind, clean(text)) for kind, text in sections(report)]
    for wanted in ("impression", "provisional", "findings"):
        texts = [text for kind, text in parts if kind == wanted and _usable(text)]
        if texts:
            return Phrase(texts[-1], wanted if wanted in PREFERENCE else PREFERENCE[0])
    text = _last_paragraph(report)
    sentence = _usable(text) and re.search(r"[a-z]", text) and len(text.split()) > 2
    return Phrase(text, PREFERENCE[2]) if sentence else None
