"""Plain text of typed, pasted or exported phrases: equal looks become equal characters.

Unicode's compatibility forms (NFKC), entities and tags of HTML, characters that show nothing,
control characters, typographic dashes and quotes, Cyrillic and Greek letters inside Latin words,
and a spreadsheet's `="text"`. Other printable ASCII stays unchanged, character by character.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Iterator
from typing import NamedTuple

DASHES = dict.fromkeys("‐‑‒–—―−﹘﹣－⁃", "-")
QUOTES = dict.fromkeys("‘’‚‛ʼ＇´", "'") | dict.fromkeys("“”„‟＂«»", '"') | {"⁄": "/"}
QUOTES |= dict.fromkeys("∶꞉׃", ":") | {"\u2800": " "}
CHANGED = DASHES | QUOTES
KEPT_CONTROLS = "\t\n\r"
_WITHOUT_LINES = dict.fromkeys(map(ord, KEPT_CONTROLS))
LINE_ENDS = "\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"
ENTITY = re.compile(r"&(?:amp;)*(#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")
BLOCKS = "br|p|div|li|tr|td|th|h[1-6]|ul|ol|table"
TAG = re.compile(
    rf"(?:<|&(?:amp;)*lt;)(?:/?(?P<block>{BLOCKS})|/?(?:b|strong|i|em|u|s|span|font|sub|sup|small"
    r"|tbody|label|a)|/[a-z][\w:-]{0,30})(?:\s+[\w:-]{1,30}\s*=\s*(?:\"[^\"<>]*\"|'[^'<>]*'|[^\s<>\"']+))*"
    r"\s*/?(?:>|&(?:amp;)*gt;)",
    re.IGNORECASE,
)
"""A tag of HTML. One of a block ends a line, others show nothing; `<b 3 mm` is no tag."""
INVISIBLE = re.compile(  # Unicode's default-ignorable characters
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f"
    "\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
    "\U000e0000-\U000e0fff]"
)
ALIKE = dict(zip("аеорсухіјѕһԁԛԝАВЕКМНОРСТУХІЈЅοΑΒΕΖΗΙΚΜΝΟΡΤΥΧ",
                 "aeopcyxijshdqwABEKMHOPCTYXIJSoABEZHIKMNOPTYX", strict=True))  # fmt: skip
"""Cyrillic and Greek letters that look like Latin ones."""
MIXED = re.compile(rf"[A-Za-z{''.join(ALIKE)}]+")
FORMULA = re.compile(r"""\s*=\s*"(.*)"\s*""", re.DOTALL)
EMPTY = re.compile(
    r"[\W_]*+(?:nan|n\s*[/.]?\s*a\.?|none|null|nil|nat|undefined|blank|1\.#(?:ind|qnan)"
    r"|not (?:available|applicable))?[\W_]*+"
    r"|[^\w#]*+(?:#[¡¿]?[^\W_]++(?:[_/-][^\W_]*+)*+[!?]++|#[^\W\d]{1,2}/?[^\W\d]|err(?:or)?:\d{3}"
    r"|#(?:ref|value|name|num|null|spill|calc|getting_data|yok|hiányzik|není_k_dispozici))\W*+|\s*\\n\s*",
    re.IGNORECASE,
)
"""Words for nothing; a spreadsheet's errors in any language (#N/A, #NV, #WERT!, #NOM?, Err:502)."""
NUMBER = re.compile(r"(?:[\W\d_]|(?<=\d)[eE](?=[+-]?\d))*")
MARKED = re.compile("[&<]")


class Plain(NamedTuple):
    """Plain text, and for each of its characters the typed span [start, end)."""

    text: str
    spans: tuple[tuple[int, int], ...]

    def typed(self, start: int, end: int) -> tuple[int, int]:
        """The typed span of a span [start, end) of the plain text."""
        return self.spans[start][0], self.spans[end - 1][1]


def plain(typed: str) -> str:
    """Plain text of what was typed."""
    if typed.isascii() and not MARKED.search(typed) and "=" not in typed[:80]:
        if typed.translate(_WITHOUT_LINES).isprintable():
            return typed
    return normalise(typed).text


def normalise(typed: str) -> Plain:
    """Plain text with the place of every character in the typed text.

    Invisible characters are left out. Other control characters become one space each, or a line's
    end (form feed).
    """
    formula = FORMULA.fullmatch(typed)
    low, high = formula.span(1) if formula else (0, len(typed))
    if typed.isascii() and typed.isprintable() and not formula and not MARKED.search(typed):
        return Plain(typed, tuple((i, i + 1) for i in range(len(typed))))
    text, spans = [], []
    for cluster, span in _clusters(typed, low, high):
        shown = "".join(_shown(c) for c in unicodedata.normalize("NFKC", _changed(cluster)))
        text.append(shown)
        spans += [span] * len(shown)
    return Plain(MIXED.sub(_latin, "".join(text)), tuple(spans))


def printable(message: str) -> str:
    """A message on one line: control characters and line ends that it quotes are spaces."""
    return "".join(c if c.isprintable() else " " for c in message)


def is_empty(typed: str) -> bool:
    """True if a cell has no letter or digit, or is a spreadsheet's word for empty."""
    return EMPTY.fullmatch(plain(typed)) is not None


def says_nothing(typed: str) -> bool:
    """True if a phrase is empty, or a number."""
    return is_empty(typed) or NUMBER.fullmatch(plain(typed)) is not None


def _clusters(typed: str, low: int, high: int) -> Iterator[tuple[str, tuple[int, int]]]:
    """Characters with their combining marks, entities read, and their spans."""
    cluster, begin, end = "", low, low
    for character, span in _characters(typed, low, high):
        if cluster and not _combines(character):
            yield cluster, (begin, end)
            cluster, begin = "", span[0]
        if not cluster:
            begin = span[0]
        cluster, end = cluster + character, span[1]
    if cluster:
        yield cluster, (begin, end)


def _characters(typed: str, low: int, high: int) -> Iterator[tuple[str, tuple[int, int]]]:
    """Single characters that show something. Those of an entity or a tag share its span."""
    at = low
    while at < high:
        if tag := TAG.match(typed, at, high) if typed[at] in "<&" else None:
            if tag["block"]:
                yield "\n", tag.span()
            at = tag.end()
            continue
        entity = ENTITY.match(typed, at, high) if typed[at] == "&" else None
        read = html.unescape(f"&{entity[1]};") if entity else typed[at]
        end = entity.end() if entity else at + 1
        for character in INVISIBLE.sub("", read):
            yield character, (at, end)
        at = end


def _combines(character: str) -> bool:
    """True if a character may melt into the one before: marks, and Hangul's later letters."""
    marks = unicodedata.category(character) in ("Mn", "Mc", "Me")
    return marks or "\u1160" <= character <= "\u11ff"


def _latin(word: re.Match[str]) -> str:
    """A word with letters that look Latin as Latin ones, if it has a Latin letter."""
    found = word.group()
    latin = not found.isascii() and any(map(str.isascii, found))
    return "".join(ALIKE.get(c, c) for c in found) if latin else found


def _changed(cluster: str) -> str:
    return "".join(CHANGED.get(c, c) for c in cluster)


def _shown(character: str) -> str:
    """Visible form of one character: itself, a space, or nothing."""
    character = CHANGED.get(character, character)
    if character.isascii() and character.isprintable():
        return character
    if character in KEPT_CONTROLS or character in LINE_ENDS:
        return character if character in KEPT_CONTROLS else "\n"
    if unicodedata.category(character) == "Cf":
        return ""
    return character if character.isprintable() else " "
