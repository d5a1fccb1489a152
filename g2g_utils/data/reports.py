"""Text of a radiology report about its image: impression, else findings, else last paragraph."""

from __future__ import annotations

import difflib
import re
from functools import lru_cache
from typing import NamedTuple

from g2g_utils.data.plain import is_empty, plain

USUAL = (
    r"(?i:(?:(?:final|overall|provisional|preliminary|radiographic|radiolog(?:y|ic|ical|ist|ist's)"
    r"|physician(?:'s)?|diagnostic|chest|cxr|my|general|summary)[ ]+)?"
    r"(?:impressions?|findings?|conclusions?|observations?|opinions?)"
    r"(?:(?:[ ]*[/,&+][ ]*|[ ]+and[ ]+)"
    r"(?:impressions?|findings?|conclusions?|plan|recommendations?|opinion))?"
    r"|(?:clinical |patient )?(?:history|information|indications?)"
    r"|reason for (?:the )?(?:exam(?:ination)?|study)|comparisons?|techniques?|exam(?:ination)?s?"
    r"|recommendations?|notifications?|procedure|summary(?: of findings)?|interpretation|impr?|pfi)"
)
_OPEN = (
    r"[ \t>*#=|~`'•·◦■➢»–—_-]*+(?:\(?\d{1,2}[.)][ \t]*+|[IVX]{1,4}\.[ \t]++|[A-Ha-h][.)][ \t]++)?+"
    r"[\[({<\"]*+[ \t]*+"
)
_CLOSE = r"[ \t\])}>\"'*`~]*+(?:_(?!_))?+[ \t]*+"
_OF = r"(?:(?:\([^()\n]{1,30}\)|\[[^\[\]\n]{1,30}\]|(?:#|No\.)[ ]?\d{0,2})[ \t]*+|\.[ \t]*+)?+"
_COLON = rf"{_CLOSE}{_OF}[:;]+{_CLOSE}(?:\.+(?=\s))?+"
_BY_MACHINE = r"(?:electronically|digitally|e)[ -]?(?:signed|authenticated|approved|verified)\b"
_DONE = (
    r"(?:dictated|transcribed|signed|reported|read|interpreted|approved|verified|reviewed"
    r"|finali[sz]ed|authenticated)"
)
SIGNERS = (
    r"(?i:(?:(?:this|the) )?(?:(?:(?:final|preliminary) )?(?:report|document) )?"
    rf"(?:(?:was|has been|is) )?{_BY_MACHINE}"
    r"|(?:(?:(?:final )?report|dictated|reviewed|read)(?: and|,)? )?"
    rf"{_DONE}(?: electronically)? by\b"
    rf"|(?:date |report )?(?:dictated|transcribed|signed|verified|finali[sz]ed)(?:[ ]?(?=:)| on\b)"
    r"|(?:(?:reporting|attending|consultant|dictating|referring|ordering|interpreting|staff) )?"
    r"(?:radiologist|physician|attending|resident|fellow|transcriptionist|author|cc)"
    r"(?=[ ]?:|[ ]+-|[ ]{2,}[A-Z])|signed,?$|/s/"
    r"|end of (?:the )?(?:report|impression|addendum|dictation)\b|workstation performed\b"
    r"|I have (?:personally )?reviewed\b|thank you for (?:referring|this referral)\b)"
)
"""Who signed, dictated or read a report, and other words behind its text."""
_NAME = (
    r"(?:Dr\.?(?:[ ][A-Z][\w.'-]*){1,4}|[A-Z][\w'-]+,?(?:[ ][A-Z][\w.'-]*){1,3},?[ ]"
    r"(?:M\.?D|D\.?O|MBBS|FRCR|Ph\.?D)\b[^\n]{0,40})[ \t.]*$"
)
HEADING = re.compile(
    rf"^{_OPEN}(?P<signed>(?=[A-Z][a-z]|(?i:this|electr|digit|e-|/s))(?:{SIGNERS})"
    rf"|{SIGNERS}(?=[ ]?:)|{_NAME}|[DT]D?:[ ]*\d{{1,2}}/)"
    r"|^[ \t]*+(?P<capitals>[A-Z][A-Z0-9 ()/,&.'_-]{2,70}?)[ \t]*:(?=\s|$)"
    rf"|^[ \t]*+[\[({{<](?P<boxed>{USUAL})[\])}}>](?=[ \t]*[^a-z\s:;])"
    rf"|^{_OPEN}(?:(?=[A-Z])(?P<initials>{SIGNERS})"
    rf"|(?=[A-Z])(?P<usual>{USUAL}){_COLON}(?:-+(?=\s))?"
    rf"|(?P<small>{USUAL}){_COLON}"
    rf"|(?P<bare>{USUAL}){_CLOSE}{_OF}[.,/*#=~-]*[ \t]*(?:$(?:\s*\n[ \t]*[:;])?|\Z)"
    rf"|(?=[A-Z])(?P<dashed>{USUAL}){_CLOSE}(?:-+(?=\s)|-*[=>|→~]+)"
    rf"|(?=[A-Z][A-Z])(?P<stopped>{USUAL})(?:\.+(?=[ \t]+[^a-z\s])|(?=[ \t]+(?:[A-Z][a-z]|\d)))"
    rf"|(?=[A-Z])(?P<trailing>{USUAL})\.{{3,}}(?=[ \t])"
    rf"|(?P<spelt>[A-Za-z]{{6,13}}){_COLON}"
    rf"|(?P<misspelt>[A-Za-z]{{6,13}}){_CLOSE}$)"
    rf"|(?:(?<=[.;!?)\]][ \t])|(?<=[ \t][ \t]))[(\[]?(?=[A-Z])(?P<signs>{SIGNERS})"
    rf"|(?<=\s)[(\[]?(?P<machine>(?i:{_BY_MACHINE}))"
    rf"|(?<=[\s.;!?)\]])(?=[A-Z][A-Z])(?P<inline>{USUAL})[ \t]*:"
    rf"|(?:(?<=[.;!?)\]][ \t])|(?<=[ \t][ \t])|(?<=[.;!?)\]]))(?=[A-Z])(?P<after>{USUAL})"
    r"[ \t]*(?::|[ \t]-+(?=\s))"
    rf"|(?<=[.;!?)\]][ \t])(?=[A-Z][A-Z])(?P<told>{USUAL})\.(?=\s+[^a-z\s])",
    re.MULTILINE,
)
"""A heading: capitals at the start of a line and a colon; the usual ones as people write them.

The usual ones come in any case, with dashes, brackets and stops, misspelt, on a line of their own
without a colon, and inside of a line. `LONE` ones must stand where a sentence may begin. A
signature is a heading too: nothing behind it is text.
"""
STARTS = re.compile(
    r"^|[ \t.;!?)\]](?=[A-Z(\[]|(?:electronical|digital)ly |e-signed)", re.MULTILINE
)
"""Places where a heading may begin; asking for one at each is ten times as fast as a search."""
LONE = ("small", "bare", "stopped", "inline", "told", "initials", "misspelt")
SPELT = ("spelt", "misspelt")  # which must be close to a word for an impression or findings
SIGNED = ("signed", "signs", "machine", "initials")
SHOUTED = ("inline",)  # of which capitals are proof enough
HOW = {"capitals": "heading", "usual": "heading", "small": "heading", "spelt": "heading",
       "inline": "heading inside a line", "after": "heading inside a line",
       "told": "heading inside a line"}  # fmt: skip
"""How a heading was found, by the group of `HEADING`; others have no colon."""
NO_COLON = "heading without a colon"
SPACED = re.compile(r"(?<![^\W_])(?:[A-Z][ ]){5,}[A-Z](?![^\W_])")  # I M P R E S S I O N
ESCAPED = re.compile(r"(?:\\r)?\\n(?![a-z])")
QUOTED = re.compile(r'\s*"([^"]*)"\s*')
BOLD = re.compile(
    r"\*\*(?=\S)|(?<=\S)\*\*|^#{1,6} +|(?<![_\w])__(?=[A-Za-z])|(?<=[A-Za-z:])__(?!\w)", re.M
)

PREFERENCE = ("impression", "findings", "last paragraph")
IMPRESSIONS = ("IMPRESSION", "CONCLUSION", "SUMMARY", "OPINION", "INTERPRETATION")
SHORT = {"IMP": "impression", "IMPR": "impression", "PFI": "provisional"}
FINDINGS = ("FINDINGS", "OBSERVATIONS", "REPORT")
CLOSE = 0.87  # of a misspelt heading; COMPRESSION, OCCLUSION and CONTUSION are less so
VIEWS = ("CHEST", "PORTABLE", "RADIOGRAPH", "VIEW", "AP", "PA", "LATERAL", "X-RAY", "CXR")
ASIDE = (  # their text says nothing about this image
    "INDICATION", "HISTORY", "COMPARISON", "TECHNIQUE", "EXAMINATION", "EXAM", "STUDY", "REASON",
    "CLINICAL", "NOTIFICATION", "RECOMMENDATION", "RECOMMENDATIONS", "DATE", "TYPE", "PROCEDURE",
    "ADDENDUM", "DOSE", "CONTRAST", "ACCESSION", "INFORMATION",
)  # fmt: skip
BEFORE = ("technique", "comparison", "exam", "procedure", "history", "indication", "information")
"""Asides that stand before the findings; behind them, in small letters, they are words."""
POINTERS = frozenset(("as", "see", "per", "refer", "same", "ditto", "above", "below", "pending"))
POINTING = POINTERS | frozenset(
    "please kindly the to in of for are is detailed described discussed noted stated mentioned "
    "outlined given findings finding report body full complete section details detail comment "
    "comments text addendum".split()
)
"""Words of an impression that only points elsewhere; one of `POINTERS` is among them."""
STAMP = re.compile(r"\b\d{1,2}:\d{2}\s*([AP]\.?M\b\.?)?|\bX{3,}\b")
"""A time of day, or a redacted word. Neither is a text by itself."""
BANNER = re.compile(
    r"^\W*+(?:(?:final|preliminary|wet read|addendum)\W++)?(report|final)\W*+$", re.I
)


class Phrase(NamedTuple):
    """Text of a report, the section it comes from (one of `PREFERENCE`), and how it was found."""

    text: str
    section: str
    how: str = "heading"


class Section(NamedTuple):
    """A part of a report: its kind, its text, and the form of its heading."""

    kind: str
    text: str
    how: str = ""


@lru_cache(maxsize=65536)  # reports share their headings, and fuzzy matching is slow
def _kind(heading: str) -> str:
    """Kind of a heading, misspelt or not.

    "impression", "provisional" (an impression that a final one replaces), "findings", "aside" or
    "other".
    """
    words = re.findall(r"[A-Z-]+", heading.upper())
    if not words:
        return "other"
    if words[0] in SHORT:
        return SHORT[words[0]]
    if words[0] == "CLINICAL":  # CLINICAL SUMMARY: the patient's story
        return "aside"

    def names(vocabulary: tuple[str, ...], within: list[str], cutoff: float) -> bool:
        return any(difflib.get_close_matches(w, vocabulary, n=1, cutoff=cutoff) for w in within)

    if names(IMPRESSIONS, words, CLOSE):
        return "provisional" if "PROVISIONAL" in words else "impression"
    if names(FINDINGS, words[:1], CLOSE):
        return "findings"
    if names(ASIDE, words, 0.9):
        return "aside"
    return "findings" if any(w.rstrip("S") in VIEWS for w in words) else "other"


def clean(text: str) -> str:
    """Text on one line, with single spaces, without rulers and the ornaments of enumerations."""
    return " ".join(re.sub(r"[_=*-]{4,}", " ", text).split())


def read(report: str) -> str:
    """A report as plain text: one kind of line end, no byte-order mark, no markup."""

    text = plain(report).replace("\r\n", "\n").replace("\r", "\n")
    if quoted := QUOTED.fullmatch(text):
        text = quoted[1]
    text = SPACED.sub(lambda word: word.group().replace(" ", ""), ESCAPED.sub("\n", text))
    return BOLD.sub("", text)


def _begins(before: str) -> bool:
    """True if a sentence may begin after a text: at a blank line, or after a finished one."""
    line = before.rstrip(" \t")
    return line.endswith("\n\n") or not line.strip() or line.rstrip()[-1] in ".:;!?)]_*=-"


def headings(report: str) -> list[re.Match[str]]:
    """Headings of a report that was `read`, in order."""
    found: list[re.Match[str]] = []
    for place in STARTS.finditer(report):
        if found and place.end() < found[-1].end():
            continue
        mark = HEADING.match(report, place.end())
        if mark is None:
            continue
        way = mark.lastgroup or ""
        before = re.sub(r"\n[ \t]+(?=\n)", "\n", report[max(0, mark.start() - 200) : mark.start()])
        if way in LONE and way not in SHOUTED and not _begins(before):
            continue
        if way in SPELT and _kind(mark[way]) not in (*PREFERENCE, "provisional"):
            continue
        found.append(mark)
    return found


def sections(report: str) -> list[Section]:
    """Every part of a report, in order. Text before all headings is "other".

    Unknown headings directly below IMPRESSION or FINDINGS (NOTE, LUNGS) are parts of its text.
    """
    marks = headings(report)
    edges = [*(mark.start() for mark in marks), len(report)]
    parts = [Section("other", report[: edges[0]])]
    start, nested = 0, False
    for mark, end in zip(marks, edges[1:], strict=True):
        way = mark.lastgroup or ""
        kind, last = "signature" if way in SIGNED else _kind(mark[way]), parts[-1]
        empty = last.kind not in ("other", "aside") and not last.text.strip()
        below = last.kind == "signature" or empty
        nested = (kind == "other" and (nested or below)) or _aside_of(last, mark, kind)
        if nested:
            parts[-1] = last._replace(text=report[start:end])
        else:
            start = mark.end()
            parts.append(Section(kind, report[start:end], HOW.get(way, NO_COLON)))
    return parts


def _aside_of(last: Section, mark: re.Match[str], kind: str) -> bool:
    """True for words like "Technique: limited" inside an impression or findings: no section."""
    way, text = mark.lastgroup or "", mark.string
    return (
        kind == "aside"
        and last.kind in ("impression", "provisional", "findings")
        and bool(last.text.strip())
        and text[: mark.start()].rstrip(" \t")[-2:] != "\n\n"
        and mark[way].lower().startswith(BEFORE)
        and not mark[way].isupper()
        and text[mark.end() :].lstrip()[:1].islower()
    )


def without_heading(text: str) -> str:
    """The text of one section as plain text, without the section's own heading before it."""
    text = read(text).strip()
    mark = HEADING.match(text)
    own = mark and _kind(mark[mark.lastgroup or 0]) in ("impression", "provisional", "findings")
    return text[mark.end() :].lstrip() if mark and own else text


def _last_paragraph(report: str) -> str:
    """The last paragraph. The first one below a heading such as HISTORY belongs to that heading."""
    for kind, text, _ in reversed(sections(report)):
        if kind == "signature":
            continue
        paragraphs = [clean(p) for p in re.split(r"\n[ \t]*\n", text)]
        paragraphs = [p for p in paragraphs if p and not BANNER.match(p)]
        paragraphs = paragraphs[1:] if kind == "aside" else paragraphs
        if paragraphs:
            return paragraphs[-1]
    return ""


def _usable(text: str) -> bool:
    """True if the text has a word of two letters and is more than a time or a pointer elsewhere."""
    words = set(re.findall(r"[a-z]+", text.lower()))
    points = words <= POINTING and words & POINTERS
    return (
        bool(re.search(r"[^\W\d_]{2}", STAMP.sub("", text))) and not points and not is_empty(text)
    )


def phrase(report: str) -> Phrase | None:
    """Text to train on, or None if a report says nothing usable.

    Of several impressions (a wet read, then the final report) the last that is not empty counts. A
    provisional one counts only if there is no other. The de-identification's underscores stay, as
    in the published text.
    """
    report = read(report)
    parts = [part._replace(text=clean(part.text)) for part in sections(report)]
    for wanted in ("impression", "provisional", "findings"):
        texts = [part for part in parts if part.kind == wanted and _usable(part.text)]
        if texts:
            section = wanted if wanted in PREFERENCE else PREFERENCE[0]
            return Phrase(texts[-1].text, section, texts[-1].how)
    text = _last_paragraph(report)
    sentence = _usable(text) and re.search(r"[a-z]", text) and len(text.split()) > 2
    return Phrase(text, PREFERENCE[2], "no heading") if sentence else None
