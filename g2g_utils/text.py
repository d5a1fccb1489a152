"""Words and tokens of a phrase, and which tokens ground (paper section 3.1, "Filtering").

`tokenize` makes one typed object from the tokenizer's character offsets, so that word pieces (BERT)
and byte pairs (CLIP) are treated alike. `select_tokens` chooses content tokens.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor

from g2g_utils import tagger
from g2g_utils.data.plain import Plain, normalise, plain, says_nothing
from g2g_utils.data.record import FINDINGS

log = logging.getLogger(__name__)

Filter = Literal["lexical", "disease", "all"]

# Words that name a finding: the eight of MS-CXR as published, then ChestX-ray14's other boxed ones.
VOCABULARY: dict[str, frozenset[str]] = {
    finding: frozenset(words.split())
    for finding, words in {
        "Atelectasis": "atelectasis atelectatic",
        "Cardiomegaly": "cardiomegaly cardiac",
        "Consolidation": "consolidation consolidations consolidative",
        "Edema": "edema",
        "Lung Opacity": "opacity opacities opacification",
        "Pleural Effusion": "pleural effusion effusions",
        "Pneumonia": "pneumonia",
        "Pneumothorax": "pneumothorax pneumothoraces",
        "Infiltration": "infiltrate infiltrates infiltration",
        "Mass": "mass masses",
        "Nodule": "nodule nodules nodular",
    }.items()
}

DENIALS = re.compile(r"\b(no|not|without|free|clear|negative|resolved|unremarkable|normal)\b")


def named_findings(report: str) -> list[str]:
    """Findings of MS-CXR that a report's sentences name. Sentences with a denial are left out.

    A crude label: it knows no scope of negation and no uncertainty.
    """
    sentences = [s for s in re.split(r"[.;]", report.lower()) if not DENIALS.search(s)]
    words = set(re.findall(r"[a-z]+", " ".join(sentences)))
    return [finding for finding in FINDINGS if words & VOCABULARY[finding]]


CONTENT_TAGS = frozenset({"ADJ", "NOUN", "VERB", "PROPN", "NUM"})
# Adjectives and nouns that spaCy's English stop words hold.
KEPT_STOP_WORDS = frozenset("bottom top side full part other".split())
# Words in -ly that are no adverbs end so.
NOT_ADVERBS = ("megaly", "anomaly", "family", "early", "likely", "elderly", "daily", "weekly")

# Numbers with a decimal sign, else runs of letters and digits; "x-ray" and "left/right" are two.
_WORD = re.compile(r"\d+(?:[.,]\d+)+|[^\W_]+(?:['’][^\W_]+)*")


class PhraseError(ValueError):
    """A phrase that cannot be grounded: empty, or without words that its filter keeps."""


@dataclass(frozen=True)
class Word:
    """A word of a phrase: plain text, span [start, end) as typed, and its token positions."""

    text: str
    start: int
    end: int
    tokens: tuple[int, ...]
    inner: tuple[int, int] | None = None  # span in the plain text, if it differs

    def overlaps(self, low: int, high: int) -> bool:
        """True if the word shares characters with a span of the plain text."""
        start, end = self.inner or (self.start, self.end)
        return low < end and high > start


@dataclass(frozen=True, eq=False)
class PhraseTokens:
    """A phrase as words and tokens. All positions index the padded tokens, of length n."""

    text: str
    input_ids: Tensor  # 1 n
    attention_mask: Tensor  # 1 n
    pieces: tuple[str, ...]  # n token strings
    words: tuple[Word, ...]  # those of which at least one token was kept
    start: int
    end: int
    padding: tuple[int, ...]
    truncated: tuple[str, ...]  # words that the maximum length cut off, wholly or in part
    typed: str = ""  # as the user wrote it; `text` is the plain text
    unknown: frozenset[int] = frozenset()  # positions of tokens that stand for any unknown word
    spacy_model: str | None = None  # of its content words, where none is named: the profile's

    @property
    def inner(self) -> tuple[int, ...]:
        """Positions of all tokens between start and end."""
        return tuple(range(self.start + 1, self.end))

    def tokens_of(self, word: str | int | Word, occurrence: int | None = None) -> list[int]:
        """Positions of a word's tokens.

        The word is an index, an object or a text (any case, or several words).

        A text that occurs several times gives all its tokens, unless `occurrence` picks one.

        Raises:
            ValueError: the phrase has no such word; the message names its words.
        """
        if isinstance(word, int):
            return list(self.words[word].tokens)
        if isinstance(word, Word):
            return list(word.tokens)
        spans = [m.span() for m in re.finditer(_bounded(plain(word)), self.text, re.IGNORECASE)]
        spans = spans if occurrence is None else spans[occurrence : occurrence + 1]
        found = [w for w in self.words if any(w.overlaps(*span) for span in spans)]
        if not found:
            cut = f"; cut off: {', '.join(self.truncated)}" if self.truncated else ""
            known = ", ".join(w.text for w in self.words)
            raise ValueError(f"no word {word!r} in {self.text!r}: choose among {known}{cut}")
        return _tokens(found)

    def content(self, filter: Filter = "lexical", **options: Any) -> list[int]:
        """Content tokens of the phrase; see `select_tokens`."""
        return select_tokens(self, filter, **options)

    def word_at(self, token: int) -> str:
        """Word to which a token belongs; for special tokens and punctuation the token's text."""
        return next((w.text for w in self.words if token in w.tokens), self.pieces[token])


def tokenize(tokenizer: Any, phrase: str, max_length: int) -> PhraseTokens:
    """Split a phrase into words and tokens, padded to `max_length` tokens.

    The phrase is read as plain text (`data.plain`): equal looks ground equally.

    Args:
        tokenizer: any fast tokenizer (BERT word pieces, CLIP byte pairs, ...).
        max_length: number of tokens n. Words beyond it are listed in `truncated`.

    Raises:
        PhraseError: the phrase has no word.
        TypeError: the tokenizer is a slow one, which has no offsets.
    """
    source = _read(phrase)
    if not getattr(tokenizer, "is_fast", False):
        raise TypeError(f"{type(tokenizer).__name__} gives no offsets: load it with use_fast=True")
    encoded = tokenizer(
        source.text,
        max_length=max_length,
        padding="max_length",
        padding_side="right",
        truncation=True,
        return_offsets_mapping=True,
        return_tensors="pt",
    )
    ids, mask = encoded["input_ids"], encoded["attention_mask"]
    end = int(mask.sum()) - 1
    spans = encoded["offset_mapping"][0, 1:end].tolist()
    covered = max((stop for _, stop in spans), default=0)
    words = tuple(_words(source, spans))
    absent = getattr(tokenizer, "unk_token_id", None)
    return PhraseTokens(
        text=source.text,
        input_ids=ids,
        attention_mask=mask,
        pieces=tuple(tokenizer.convert_ids_to_tokens(ids[0].tolist())),
        words=tuple(w for w in words if w.tokens),
        start=0,
        end=end,
        padding=tuple(range(end + 1, max_length)),
        truncated=tuple(w.text for w in words if (w.inner or (0, w.end))[1] > covered),
        typed=phrase,
        unknown=frozenset(i for i in range(1, end) if int(ids[0, i]) == absent),
        spacy_model=getattr(tokenizer, "spacy_model", None),
    )


def _read(phrase: str) -> Plain:
    """The plain text of a phrase; an error where it says nothing."""
    source = normalise(phrase)
    source = source._replace(text=_one_line(source.text))
    if says_nothing(phrase):
        raise PhraseError(f"empty phrase {phrase!r}: write at least one word")
    return source


def _one_line(text: str) -> str:
    """A text whose line ends and tabs are spaces."""
    return text.translate(dict.fromkeys(map(ord, "\t\n\r"), " "))


def check_phrase(phrase: str, filter: Filter = "lexical", spacy_model: Any = None) -> None:
    """Refuse a phrase that cannot be grounded, before any tokenizer or model is loaded.

    Raises:
        ValueError: the phrase has no word, or only function words that its filter drops.
    """
    source = _read(phrase)
    if filter == "all":
        return
    nothing = torch.empty(1, 0)
    bare = PhraseTokens(
        source.text, nothing, nothing, (), tuple(_words(source, ())), 0, 0, (), (), phrase
    )
    if not content_words(bare, spacy_model):
        raise PhraseError(
            f"phrase {phrase!r} has function words only: name what to look for, for example "
            "'left pleural effusion'"
        )


_SIDE = re.compile(r"\b(?:left|right)\b", re.IGNORECASE)


def side_of(phrase: str) -> str | None:
    """The one side, "left" or "right", that a phrase names as a word; None for both or neither."""
    sides = {side.lower() for side in _SIDE.findall(plain(phrase))}
    return sides.pop() if len(sides) == 1 else None


def swap_sides(phrase: str) -> str:
    """The phrase with "left" and "right" exchanged; unchanged without either."""

    def other(match: re.Match[str]) -> str:
        side = match.group()
        swapped = "right" if side.lower() == "left" else "left"
        cased = swapped.upper() if side.isupper() else swapped
        return cased.capitalize() if side.istitle() else cased

    text = plain(phrase)
    return _SIDE.sub(other, text) if _SIDE.search(text) else phrase


def _words(source: Plain, spans: Sequence[Sequence[int]]) -> Iterable[Word]:
    """Words with the positions of the tokens whose characters overlap them."""
    for match in _WORD.finditer(source.text):
        low, high = match.span()
        tokens = (i for i, (a, b) in enumerate(spans, start=1) if a < high and b > low)
        yield Word(match.group(), *source.typed(low, high), tuple(tokens), (low, high))


def select_tokens(
    phrase: PhraseTokens,
    filter: Filter = "lexical",
    finding: str | None = None,
    explicit: Sequence[int | str] | None = None,
    *,
    spacy_model: Any = None,
    compat: str | None = None,
) -> list[int]:
    """Positions of the tokens that ground a phrase, in order and without repetition.

    Args:
        filter: "lexical" (content words by part of speech), "disease" (words of the finding's
            class, or else all), "all" (all but start, end and padding).
        finding: class of the phrase, for "disease".
        explicit: token positions or words, instead of a filter.
        spacy_model: pipeline, package or folder, or "scispacy". Default: the environment variable,
            then the profile's (the attribute `spacy_model` of its tokenizer); see `tagger`.
        compat: "published" keeps only the first piece of each word, and the disease filter matches
            substrings.

    Raises:
        PhraseError: nothing is left, or the encoder knows none of the words; the message names the
            phrase and the fix.
    """
    if compat not in (None, "published"):
        raise ValueError(f'compat={compat!r}: None or "published"')
    if explicit is not None:
        return _explicit(phrase, explicit)
    if filter == "all":
        words = list(phrase.words)
        chosen = list(phrase.inner)
    elif filter == "lexical":
        words = content_words(phrase, spacy_model)
        chosen = _tokens(words)
    elif filter == "disease":
        words = disease_words(phrase, finding, substring=compat == "published")
        chosen = _tokens(words) if words else list(phrase.inner)
        words = words or list(phrase.words)
    else:
        raise ValueError(f"filter={filter!r}: choose lexical, disease or all")
    if compat == "published":
        chosen = sorted({w.tokens[0] for w in words})
    if not chosen:
        raise PhraseError(
            f"no content words in {phrase.text!r}: add some or ground with filter='all'"
        )
    _check_known(phrase, chosen)
    return chosen


def _check_known(phrase: PhraseTokens, chosen: Sequence[int]) -> None:
    """Refuse words of which the text encoder knows none; name those that it does not know."""
    if not phrase.unknown:
        return
    words = [word for word in phrase.words if set(word.tokens) & set(chosen)]
    strange = [word.text for word in words if set(word.tokens) & phrase.unknown]
    if strange and {t for w in words for t in w.tokens} & set(chosen) <= phrase.unknown:
        raise PhraseError(
            f"the text encoder knows no word of {phrase.text!r} ({', '.join(strange)}): "
            "it would ground any unknown word alike; write English words"
        )
    if strange:
        _name_unknown(phrase.text, ", ".join(strange))


@lru_cache(maxsize=4096)
def _name_unknown(text: str, strange: str) -> None:
    """Say once for a phrase which of its words the text encoder does not know."""
    log.warning("phrase %r: the text encoder does not know %s", text, strange)


def content_words(phrase: PhraseTokens, spacy_model: Any = None) -> list[Word]:
    """Content words by part of speech: adjectives, nouns, verbs, proper nouns and numbers."""
    nlp = tagger.load(phrase.spacy_model if spacy_model is None else spacy_model)
    document = nlp(phrase.text)
    keep = is_content if nlp.meta.get("g2g_fallback") else _has_content_tag
    if keep is _has_content_tag and not any(token.pos_ for token in document):
        raise ValueError(f"spaCy pipeline {nlp.meta.get('name')!r} gives no parts of speech")
    spans = [(t.idx, t.idx + len(t)) for t in document if keep(t)]
    return [w for w in phrase.words if any(w.overlaps(*span) for span in spans)]


def disease_words(phrase: PhraseTokens, finding: str | None, substring: bool = False) -> list[Word]:
    """Words that name the finding's class: whole words, or substrings (published)."""
    if finding not in VOCABULARY:
        error = PhraseError if finding is None else ValueError  # one row's gap, or a wrong name
        known = ", ".join(VOCABULARY)
        raise error(f"filter='disease' needs a finding, got {finding!r}: one of {known}")
    names = VOCABULARY[finding]
    if substring:
        return [w for w in phrase.words if any(name in w.text.lower() for name in names)]
    return [w for w in phrase.words if w.text.lower() in names]


def _explicit(phrase: PhraseTokens, chosen: Sequence[int | str]) -> list[int]:
    """Positions of explicitly chosen tokens and words. Special tokens may be chosen."""
    found: list[int] = []
    for one in chosen:
        if isinstance(one, str):
            found += phrase.tokens_of(one)
        elif 0 <= one < len(phrase.pieces):
            found.append(int(one))
        else:
            raise ValueError(f"token {one} of {phrase.text!r}: 0..{len(phrase.pieces) - 1}")
    if not found:
        raise ValueError(f"no tokens chosen of {phrase.text!r}")
    return sorted(set(found))


def _has_content_tag(token: Any) -> bool:
    return token.pos_ in CONTENT_TAGS


def is_content(token: Any) -> bool:
    """True for a word that the list keeps: it imitates a tagger's content tags.

    Out go spaCy's stop words, "no", "not", "both" and "above" among them, adverbs in -ly and the
    first word of "prior to". A tagger keeps "is" of "there is" as a verb too; the list does not.
    """
    word = token.lower_
    if word in KEPT_STOP_WORDS:
        return True
    if word.endswith("ly") and not word.endswith(NOT_ADVERBS):
        return False
    if word == "prior" and token.doc[token.i + 1 : token.i + 2].text.lower() == "to":
        return False
    return not (token.is_stop or token.is_punct or token.is_space)


def _tokens(words: Iterable[Word]) -> list[int]:
    return sorted({token for word in words for token in word.tokens})


def _bounded(text: str) -> str:
    """Pattern for a text at word boundaries."""
    return rf"(?<!\w){re.escape(text.strip())}(?!\w)"


def occurring(phrases: Iterable[str], captions: Iterable[str]) -> list[bool]:
    """For each phrase, True if one of the captions contains it word for word, in any case."""
    everything = "\n".join(map(plain, captions)).lower()
    wanted = [_one_line(plain(phrase)).lower() for phrase in phrases]
    known = {p: re.search(_bounded(p), everything) is not None for p in dict.fromkeys(wanted)}
    return [known[phrase] for phrase in wanted]


def stack(phrases: Sequence[PhraseTokens]) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask [b, n] of several phrases."""
    return (
        torch.cat([p.input_ids for p in phrases]),
        torch.cat([p.attention_mask for p in phrases]),
    )
