"""The explorer's state: one frozen record of every control, and pure functions that change it.

No function here computes a map or knows a widget.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

from g2g_utils.attention import block_of, matches
from g2g_utils.bbm import Curve
from g2g_utils.config import Grounding
from g2g_utils.explorer.maps import Capture, Selection
from g2g_utils.information import leave_out
from g2g_utils.text import PhraseTokens, Word, content_words, select_tokens, swap_sides

Show = Literal["map", "mask", "difference"]
Scale = Literal["each", "shared"]
Compare = Literal["nothing", "model", "phrase"]
Method = Literal["attention", "information", "both"]
METHODS: dict[Method, str] = {
    "attention": "attention",
    "information": "information",
    "both": "attention × information",
}


@dataclass(frozen=True, kw_only=True)
class State:
    """Values of all controls."""

    image: str  # key of a picture
    phrase: str
    model: str  # ARM-sSEED
    region: int | None = None  # described finding whose boxes are the target; None: no target
    seed: int = 0  # of the sampling noise
    columns: tuple[int, ...] | None = None  # chosen columns of the capture; None: content words
    steps: tuple[int, int] | None = None  # first and last index; None: the profile's
    layers: tuple[int, int] | None = None  # first and last index; None: the profile's
    sizes: tuple[int, ...] | None = None  # map heights to use; None: all
    method: Method = "attention"  # whose heat map is shown
    curve: Curve | None = None  # of bias merging, of attention alone
    show: Show = "map"
    scale: Scale = "each"
    opacity: float = 0.5
    boxes: bool = True
    contour: bool = True
    pieces: bool = False  # one button per word piece
    special: bool = False  # buttons of special tokens
    compare: Compare = "nothing"  # with other_model or other_phrase, in a second panel
    other_model: str = ""
    other_phrase: str = ""


def undrawn(state: State) -> State:
    """The state without its drawing options, on which no map or number depends."""
    return replace(
        state,
        show="map",
        scale="each",
        opacity=0.5,
        boxes=True,
        contour=True,
        pieces=False,
        special=False,
    )


def edit_phrase(state: State, phrase: str) -> State:
    """Change the phrase and choose its content words. An empty phrase is a ValueError."""
    phrase = " ".join(phrase.split())
    if not phrase:
        raise ValueError("the phrase is empty: write what to look for")
    if phrase == state.phrase:
        return state
    return replace(state, phrase=phrase, columns=None)


def pick_method(state: State, method: Method) -> State:
    """Choose attention, information or both. Only attention is merged with its biases."""
    return replace(state, method=method, curve=state.curve if method == "attention" else None)


def names_side(phrase: str) -> bool:
    """True if a phrase says left or right."""
    return swap_sides(phrase) != phrase


def swap(state: State) -> State:
    """Rewrite the phrase's side and compare the result with the original."""
    swapped = swap_sides(state.phrase)
    if swapped == state.phrase:
        raise ValueError(f"no side to swap in {state.phrase!r}: write left or right")
    return replace(state, compare="phrase", other_phrase=swapped)


def toggle(chosen: Iterable[int], columns: Sequence[int]) -> tuple[int, ...]:
    """Switch a button's columns off if all are chosen, else on."""
    before, own = set(chosen), set(columns)
    return tuple(sorted(before - own if own <= before else before | own))


# -- words ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Chip:
    """One word button: its label, its columns and its kind."""

    label: str
    columns: tuple[int, ...]
    kind: Literal["word", "special"]


def chips(capture: Capture, pieces: bool = False, special: bool = False) -> list[Chip]:
    """Buttons of a phrase in order. Word pieces are joined by a dot, or kept apart.

    Args:
        special: adds start, end, padding and punctuation.
    """
    phrase, found = capture.phrase, []
    for column in range(capture.columns):
        word = _word_of(phrase, column)
        if word is None:
            if special:
                found.append(_special(capture, column))
        elif pieces:
            found.append(Chip(piece_label(phrase, column), (column,), "word"))
        elif column == word.tokens[0]:
            label = "·".join(piece_label(phrase, t).strip("·") for t in word.tokens)
            found.append(Chip(label, word.tokens, "word"))
    return found


def _word_of(phrase: PhraseTokens, column: int) -> Word | None:
    return next((w for w in phrase.words if column in w.tokens), None)


def _special(capture: Capture, column: int) -> Chip:
    return Chip(column_label(capture, column), (column,), "special")


def piece_label(phrase: PhraseTokens, position: int) -> str:
    """A token without its tokenizer's marks. A dot says that the word began before it."""
    raw = phrase.pieces[position]
    text = raw.removeprefix("##").removesuffix("</w>").lstrip("Ġ▁")
    word = _word_of(phrase, position)
    inside = word is not None and position > word.tokens[0]
    return f"·{text}" if inside else text or raw


def column_label(capture: Capture, column: int) -> str:
    """Name of a column: its piece, or start, end, padding x n."""
    phrase = capture.phrase
    if column == capture.padding_column:
        return f"padding ×{len(phrase.padding)}"
    names = {phrase.start: "start", phrase.end: "end"}
    return names.get(column) or piece_label(phrase, column)


def content_columns(
    phrase: PhraseTokens, filter: str = "lexical", finding: str | None = None
) -> tuple[int, ...]:
    """Columns that are on by default: those of the filter, or all words if it keeps none."""
    try:
        return tuple(select_tokens(phrase, filter, finding))  # type: ignore[arg-type]
    except ValueError:
        return tuple(phrase.inner)


@lru_cache(maxsize=32)
def remarks(phrase: PhraseTokens) -> tuple[str, ...]:
    """Warnings about a phrase: words cut off by the encoder, no content words."""
    found = []
    if phrase.truncated:
        words = " ".join(phrase.truncated[:3]) + ("…" if len(phrase.truncated) > 3 else "")
        limit = len(phrase.pieces)
        found.append(f"{len(phrase.truncated)} words cut off after {limit} tokens: {words}")
    if not content_words(phrase):
        found.append("function words only: all are chosen by default")
    return tuple(found)


def carry(columns: Sequence[int], old: Capture, new: Capture) -> tuple[int, ...] | None:
    """The same words and special tokens in another tokenization; None if words do not match."""
    if len(old.phrase.words) != len(new.phrase.words):
        return None
    chosen = set(columns)
    words = zip(old.phrase.words, new.phrase.words, strict=True)
    found = {t for before, after in words if chosen & set(before.tokens) for t in after.tokens}
    roles = [
        (old.phrase.start, new.phrase.start),
        (old.phrase.end, new.phrase.end),
        (old.padding_column, new.padding_column),
    ]
    found |= {after for before, after in roles if before in chosen and after is not None}
    return tuple(sorted(found)) or None


def content_texts(phrase: PhraseTokens) -> list[str]:
    """Content words of a phrase, each once."""
    columns = set(content_columns(phrase))
    return list(dict.fromkeys(w.text for w in phrase.words if columns & set(w.tokens)))


def unchosen(phrase: PhraseTokens, columns: Sequence[int]) -> str | None:
    """The phrase without its chosen words; None if all its content words are chosen.

    Raises:
        ValueError: only special tokens are chosen, about which nothing can be asked.
    """
    chosen = list(dict.fromkeys(w.text for w in phrase.words if set(columns) & set(w.tokens)))
    if not chosen:
        raise ValueError("information is of words: choose at least one")
    if set(content_texts(phrase)) <= set(chosen):
        return None
    rest = phrase.text
    for word in chosen:
        rest = leave_out(rest, word)
    return rest


# -- selection ------------------------------------------------------------------------------------


def select(
    state: State, capture: Capture, columns: Sequence[int] | None, defaults: Grounding
) -> Selection:
    """Columns, layer names and steps of a state. Open choices are as in the profile.

    Raises:
        ValueError: nothing is left.
    """
    if columns is not None and not columns:
        raise ValueError("no word is chosen: click at least one")
    filter = "all" if defaults.filter == "all" else "lexical"
    chosen = content_columns(capture.phrase, filter) if columns is None else tuple(columns)
    first, last = layer_range(state, capture, defaults)
    names = [
        name
        for name in capture.layers[first : last + 1]
        if state.sizes is None or capture.maps[name].shape[-2] in state.sizes
    ]
    if not names:
        raise ValueError("no layer is chosen: widen the layer range or the resolutions")
    return Selection(chosen, tuple(names), step_range(state, capture, defaults))


def step_range(state: State, capture: Capture, defaults: Grounding) -> tuple[int, int]:
    """First and last index of the timesteps; by default the last k, the least noisy."""
    total = len(capture.timesteps)
    first, last = state.steps or (max(0, total - defaults.keep_last), total - 1)
    return min(first, total - 1), min(last, total - 1)


def layer_range(state: State, capture: Capture, defaults: Grounding) -> tuple[int, int]:
    """First and last index of the layers; by default from the profile's first to its last."""
    if state.layers is not None:
        return state.layers
    sizes = ((name, (m.shape[-2], m.shape[-1])) for name, m in capture.maps.items())
    found = [i for i, (name, s) in enumerate(sizes) if matches(name, s, defaults.layers)]
    return (found[0], found[-1]) if found else (0, len(capture.layers) - 1)


def describe(selection: Selection, capture: Capture, method: Method = "attention") -> str:
    """A selection in words, for captions and tooltips."""
    first, last = (capture.timesteps[i] for i in selection.steps)
    used = [block_of(name) for name in selection.layers]
    parts = ", ".join(f"{used.count(b)} {b}" for b in dict.fromkeys(used))
    words = " ".join(column_label(capture, c) for c in selection.columns)
    if method == "information":
        return f"words: {words}; information over all timesteps"
    return f"words: {words}; t {first}…{last}; layers: {parts}"
