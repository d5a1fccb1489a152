"""Hints of AdaMatch for the language model: keywords of films, key patches of reports.

Both codebooks come from training pairs alone (Chen et al., ACL 2024, sections 3.2 and 3.3, the
text). Where the authors' code does otherwise the text is built: every keyword is encoded alone, the
codes of key patches keep their rank, and no test pair enters a book.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from g2g_utils import text
from g2g_utils.data.geometry import Box
from g2g_utils.models.adamatch import AdaMatch
from g2g_utils.training.adamatch import Captions, read_captions

GROUPS: dict[str, frozenset[str]] = {  # content words of the phantoms' closed vocabulary
    name: frozenset(words.split())
    for name, words in {
        "finding": "atelectasis atelectatic bronchopneumonia cardiomegaly congestion consolidation "
        "consolidative edema effusion effusions enlargement foci opacification opacity pneumonia "
        "pneumothorax",
        "place": "airspace apex apical basal base basilar bilateral bilaterally both cardiac "
        "central heart hilar hilum lateral left lobe lower lung lungs mid middle perihilar "
        "peripheral pleural right sided upper vascular",
        "description": "acute band clear clustered defined dense enlarged extensive faint focal "
        "hazy increased interstitial large layering linear marked markedly medium mild mildly "
        "minor moderate moderately multifocal normal patchy plate severe severely slight slightly "
        "small",
        "sign": "air ecg fluid leads line monitoring pacemaker visible",
    }.items()
}
HALF = 0.5  # share of a cell that a box must cover

Rows = NDArray[np.int64]


def known_groups(captions: Sequence[str]) -> Mapping[str, frozenset[str]]:
    """The table of groups where it names most words of captions, else one group of all words."""
    counts = _counts(captions)
    named = frozenset().union(*GROUPS.values())
    content = {w: n for w, n in counts.items() if len(w) > 2 and w in named}
    enough = sum(content.values()) >= 0.4 * sum(counts.values())
    return GROUPS if enough else {"word": frozenset(counts)}


def _counts(captions: Sequence[str]) -> Counter[str]:
    return Counter(word for one in captions for word in re.findall(r"[a-z]+", one.lower()))


def textual_book(
    tokenizer: Any, captions: Sequence[str], groups: Mapping[str, frozenset[str]], top: int
) -> list[str]:
    """The most frequent content words of each group in training captions, group after group."""
    found: dict[str, None] = {}
    for words in groups.values():
        kept = 0
        for word, _ in sorted(_counts(captions).items(), key=lambda item: (-item[1], item[0])):
            if kept == top:
                break
            if word in words and _is_content(tokenizer, word):
                found[word] = None
                kept += 1
    return list(found)


def _is_content(tokenizer: Any, word: str) -> bool:
    try:
        return bool(text.content_words(text.tokenize(tokenizer, word, 77)))
    except text.PhraseError:
        return False


@torch.no_grad()
def word_vectors(network: AdaMatch, tokenizer: Any, words: Sequence[str], length: int) -> Tensor:
    """Unit vectors [k, d] of words, each read alone.

    A word of several pieces is the sum of its pieces, as in training.
    """
    captions = read_captions(tokenizer, words, length, "all")
    vectors, counts = network.words(captions.ids, captions.mask, captions.owners)
    if set(counts) != {1}:
        raise ValueError("a keyword is more than one word: name single words")
    return vectors


def keyword_scores(patches: Tensor, words: Tensor, batch: int = 256) -> Tensor:
    """Score [n, k] of words [k, d] for films [n, p, d]: the largest cosine over its patches."""
    return torch.cat([(some @ words.T).amax(1) for some in torch.split(patches, batch)])


def keywords(scores: Tensor, book: Sequence[str], top: int) -> list[list[str]]:
    """The words with the best scores [n, k] of each film, best first; ties by their place."""
    order = scores.argsort(dim=1, descending=True, stable=True)[:, :top]
    return [[book[k] for k in row] for row in order.tolist()]


# ---------------------------------------------------------------- key patches


def covered_cells(box: Sequence[float], side: int) -> list[int]:
    """Cells of a grid side x side that a box (x1 y1 x2 y2, shares) covers at least by half.

    Row by row; the one it covers most where it covers none by half.
    """
    at = np.arange(side) / side
    x1, y1, x2, y2 = box
    wide = np.clip(np.minimum(at + 1 / side, x2) - np.maximum(at, x1), 0, None) * side
    high = np.clip(np.minimum(at + 1 / side, y2) - np.maximum(at, y1), 0, None) * side
    share = np.outer(high, wide).ravel()
    found = np.flatnonzero(share >= HALF - 1e-6)
    return found.tolist() if len(found) else [int(share.argmax())]


@dataclass(frozen=True)
class VisualBook:
    """Key patches of training films: unit vectors, the codes of their cells, and their film."""

    vectors: Tensor  # m d
    codes: tuple[tuple[int, ...], ...]  # m
    owners: Tensor  # m

    def match(
        self, words: Tensor, per_word: int, top: int, without: int | None = None
    ) -> list[int]:
        """Codes of the key patches that fit the words [k, d] of a report, best first, each once.

        Args:
            per_word: patches of each word.
            top: codes.
            without: a training film whose own patches are left out.
        """
        cosines = words @ self.vectors.T
        if without is not None:
            cosines = cosines.masked_fill(self.owners == without, -torch.inf)
        values, places = cosines.topk(min(per_word, cosines.shape[1]), dim=1)
        order = values.flatten().argsort(descending=True, stable=True)
        order = order[: int(values.isfinite().sum())]  # those left out come last
        ranked = (code for k in places.flatten()[order].tolist() for code in self.codes[k])
        return list(dict.fromkeys(ranked))[:top]


@torch.no_grad()
def visual_book(
    network: AdaMatch,
    patches: tuple[Tensor, Tensor],
    captions: Captions,
    codes: Rows,
    *,
    pairs: int,
    words: int,
    margin: float,
) -> VisualBook:
    """Key patches of the training pairs that agree best by their words (equation 6).

    Args:
        patches: unit vectors [n, p, d] and boxes [n, p, 4] of the films.
        codes: [n, cells] of the films.
        pairs: how many pairs.
        words: of each pair those with the best patch; each gives this patch.
        margin: by which boxes are drawn larger than their outer samples, in shares of the side.
    """
    best, where = [], []
    for start in range(0, len(codes), 128):
        rows = torch.arange(start, min(start + 128, len(codes)))
        vectors, counts = network.words(*captions.rows(rows))
        for row, own in zip(rows.tolist(), torch.split(vectors, counts), strict=True):
            cosine, patch = (own @ patches[0][row].T).max(1)
            first = cosine.argsort(descending=True, stable=True)[:words]
            best.append(float(cosine.mean()))
            where.append(list(dict.fromkeys(patch[first].tolist())))
    chosen = np.argsort(-np.array(best), kind="stable")[:pairs].tolist()
    side = round(codes.shape[1] ** 0.5)
    found = [(row, patch) for row in chosen for patch in where[row]]
    drawn = (patches[1] + margin * patches[1].new_tensor([-1, -1, 1, 1])).clamp(0, 1)
    taken = []
    for row, patch in found:
        cells = covered_cells(drawn[row, patch].tolist(), side)
        taken.append(tuple(int(codes[row, k]) for k in cells))
    vectors = torch.stack([patches[0][row, patch] for row, patch in found])
    return VisualBook(vectors, tuple(taken), torch.tensor([row for row, _ in found]))


@torch.no_grad()
def keypatches(
    network: AdaMatch,
    book: VisualBook,
    captions: Captions,
    *,
    per_word: int,
    top: int,
    training: bool = False,
) -> list[list[int]]:
    """Codes of key patches for each caption, in rank order.

    training: caption k belongs to training film k, whose own patches are left out: a test film has
    none in the book either.
    """
    found = []
    for start in range(0, len(captions.ids), 128):
        rows = torch.arange(start, min(start + 128, len(captions.ids)))
        vectors, counts = network.words(*captions.rows(rows))
        for row, own in zip(rows.tolist(), torch.split(vectors, counts), strict=True):
            found.append(book.match(own, per_word, top, row if training else None))
    return found


# ---------------------------------------------------------------- ceilings and controls


def true_keywords(facts: frozenset[tuple[str | None, ...]], top: int) -> list[str]:
    """Words of the facts of a film, sorted by finding: the best that keywords can be."""
    ordered = sorted(facts, key=lambda fact: tuple(str(part) for part in fact))
    words = (w for fact in ordered for part in fact if part for w in part.lower().split())
    return list(dict.fromkeys(words))[:top]


def true_patches(codes: Rows, boxes: Sequence[Box], size: int, top: int) -> list[int]:
    """Codes of a film's own cells inside the boxes (pixels of a side `size`) of its findings."""
    side = round(len(codes) ** 0.5)
    found: dict[int, None] = {}
    for x, y, w, h in boxes:
        share = (x / size, y / size, (x + w) / size, (y + h) / size)
        found |= dict.fromkeys(int(codes[k]) for k in covered_cells(share, side))
    return list(found)[:top]


def shuffled(rows: Sequence[Any], seed: int) -> list[Any]:
    """Rows in another order, in which none keeps its place."""
    order = np.random.default_rng(seed).permutation(len(rows))
    moved = np.empty(len(rows), int)
    moved[order] = np.roll(order, 1)
    return [rows[k] for k in moved]
