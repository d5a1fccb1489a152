"""Plain text of typed, pasted or exported phrases: equal looks become equal characters.

Unicode's compatibility forms (NFKC), entities of HTML, soft hyphens, zero-width and control
characters, typographic dashes and quotes, and a spreadsheet's `="text"`. Printable ASCII stays
unchanged, character by character.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Iterator
from typing import NamedTuple

DASHES = dict.fromkeys("‐‑‒–—―−﹘﹣－⁃", "-")
QUOTES = dict.fromkeys("‘’‚‛ʼ＇´", "'") | dict.fromkeys("“”„‟＂«»", '"') | {"⁄": "/"}
CHANGED = DASHES | QUOTES
KEPT_CONTROLS = "\t\n\r"
_WITHOUT_LINES = dict.fromkeys(map(ord, KEPT_CONTROLS))
LINE_ENDS = "\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"
ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")
FORMULA = re.compile(r"""\s*=\s*"(.*)"\s*""", re.DOTALL)
EMPTY = re.compile(
    r"[\W_]*+(?:nan|n[/.]?a\.?|none|null|nil|nat|undefined|blank|1\.#(?:ind|qnan))?[\W_]*+"
    r"|\W*#(?:n/?a|value|ref|name|div/0|num|null|spill|calc|getting_data)[!?]*\W*",
    re.IGNORECASE,
)


class Plain(NamedTuple):
    """Plain text, and for each of its characters the typed span [start, end)."""

    text: str
    spans: tuple[tuple[int, int], ...]

    def typed(self, start: int, end: int) -> tuple[int, int]:
        """The typed span of a span [start, end) of the plain text."""
        return self.spans[start][0], self.spans[end - 1][1]


def plain(typed: str) -> str:
    """Plain text of what was typed."""
    if typed.isascii() and "&" not in typed and "=" not in typed[:80]:
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
    if typed.isascii() and typed.isprintable() and not formula and "&" not in typed:
        return Plain(typed, tuple((i, i + 1) for i in range(len(typed))))
    text, spans = [], []
    for cluster, span in _clusters(typed, low, high):
        shown = "".join(_shown(c) for c in unicodedata.normalize("NFKC", _changed(cluster)))
        text.append(shown)
        spans += [span] * len(shown)
    return Plain("".join(text), tuple(spans))


def printable(message: str) -> str:
    """A message on one line: control characters and line ends that it quotes are spaces."""
    return "".join(c if c.isprintable() else " " for c in message)


def is_empty(typed: str) -> bool:
    """True if a cell has no letter or digit, or is a spreadsheet's word for empty."""
    return EMPTY.fullmatch(plain(typed)) is not None


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
    """Single characters. Those of an entity share its span."""
    at = low
    while at < high:
        entity = ENTITY.match(typed, at, high) if typed[at] == "&" else None
        read = html.unescape(entity.group()) if entity else typed[at]
        end = entity.end() if entity else at + 1
        for character in read:
            yield character, (at, end)
        at = end


def _combines(character: str) -> bool:
    """True if a character may melt into the one before: marks, and Hangul's later letters."""
    marks = unicodedata.category(character) in ("Mn", "Mc", "Me")
    return marks or "\u1160" <= character <= "\u11ff"


def _changed(cluster: str) -> str:
    return "".join(CHANGED.get(c, c) for c in cluster)


def _shown(character: str) -> str:
    """Visible form of one character: itself, a space, or nothing."""
    character = CHANGED.get(character, character)
    if character.isascii() and character.isprintable():
        return character
    if character in KEPT_CONTROLS or character in LINE_ENDS:
        return character if character in KEPT_CONTROLS else "\n"
    if character == "\u200b" or unicodedata.category(character) == "Cf":
        return ""
    if 0xFE00 <= ord(character) <= 0xFE0F:  # variants of the character before
        return ""
    return character if character.isprintable() else " "
