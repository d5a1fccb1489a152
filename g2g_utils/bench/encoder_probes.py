"""Probes of a text encoder before any diffusion training: distances of phrases, words, images."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from g2g_utils import models, text
from g2g_utils.bench.benchmark import score
from g2g_utils.data.record import Example
from g2g_utils.methods.base import Grounder
from g2g_utils.methods.biovil import Joint
from g2g_utils.training.pretrain import sentence_state


@torch.no_grad()
def states_of(
    tokenizer: Any, encoder: Any, phrases: Sequence[str], max_length: int
) -> tuple[Tensor, list[text.PhraseTokens]]:
    """Text states [b, n, d] of phrases and their tokens."""
    tokens = [text.tokenize(tokenizer, phrase, max_length) for phrase in phrases]
    return models.text_states(encoder, *text.stack(tokens)), tokens


def phrase_vectors(tokenizer: Any, encoder: Any, phrases: Sequence[str], max_length: int) -> Tensor:
    """One vector per phrase [b, d]: the mean state of its content words, centred over phrases."""
    states, tokens = states_of(tokenizer, encoder, phrases, max_length)
    means = [one[t.content()].mean(0) for one, t in zip(states, tokens, strict=True)]
    stacked = torch.stack(means)
    return stacked - stacked.mean(0)


def cosines(vectors: Tensor) -> Tensor:
    """Cosines [b, b] between rows."""
    unit = F.normalize(vectors, dim=-1)
    return unit @ unit.T


def nearness_gap(vectors: Tensor, labels: Sequence[Any]) -> NDArray[np.float64]:
    """For each row: mean cosine to others of its label - mean cosine to rows of other labels.

    NaN for rows without a label, or without another row of the same or of another label.
    """
    near = cosines(vectors).double().numpy()
    same = np.array([[a == b for b in labels] for a in labels])
    known = np.array([label is not None for label in labels])
    own, other = same & known[None], ~same & known[None]
    np.fill_diagonal(own, False)
    with np.errstate(invalid="ignore"):
        gap = (near * own).sum(1) / own.sum(1) - (near * other).sum(1) / other.sum(1)
    return np.where(known, gap, np.nan)


def neighbours(
    tokenizer: Any, encoder: Any, phrases: Sequence[str], words: Sequence[str], max_length: int,
    count: int = 3,
) -> dict[str, list[str]]:  # fmt: skip
    """The `count` nearest words of each word, by its mean state over all phrases that hold it."""
    states, tokens = states_of(tokenizer, encoder, phrases, max_length)
    found: dict[str, list[Tensor]] = defaultdict(list)
    for one, phrase in zip(states, tokens, strict=True):
        for word in phrase.words:
            found[word.text.lower()].append(one[list(word.tokens)].mean(0))
    names = sorted(found)
    means = torch.stack([torch.stack(found[name]).mean(0) for name in names])
    near = cosines(means - means.mean(0)).fill_diagonal_(-2)
    rows = {name: near[i].topk(min(count, len(names) - 1)).indices for i, name in enumerate(names)}
    return {word: [names[i] for i in rows[word]] for word in words if word in rows}


def swap_cosines(tokenizer: Any, encoder: Any, phrase: str, max_length: int) -> dict[str, float]:
    """How alike each word's state is in a phrase and in the phrase with the other side.

    Returns:
        Word of the phrase -> cosine; 1 for a word whose state does not notice the swap.
    """
    both = [phrase, text.swap_sides(phrase)]
    states, (own, swapped) = states_of(tokenizer, encoder, both, max_length)
    found = {}
    for word, other in zip(own.words, swapped.words, strict=True):
        first, second = states[0][list(word.tokens)].mean(0), states[1][list(other.tokens)].mean(0)
        found[word.text] = float(F.cosine_similarity(first, second, dim=0))
    return found


def mean_swap_cosines(
    tokenizer: Any,
    encoder: Any,
    phrases: Sequence[str],
    findings: Sequence[str | None],
    max_length: int,
) -> tuple[float, float]:
    """Mean of `swap_cosines` over phrases with a side: of side words, and of findings' names."""
    sides, names = [], []
    for phrase, finding in zip(phrases, findings, strict=True):
        if text.side_of(phrase):
            named = text.VOCABULARY.get(finding or "", frozenset())
            for word, cosine in swap_cosines(tokenizer, encoder, phrase, max_length).items():
                sides += [cosine] * (word.lower() in ("left", "right"))
                names += [cosine] * (word.lower() in named)
    return float(np.mean(sides or [np.nan])), float(np.mean(names or [np.nan]))


@torch.no_grad()
def retrieval_ranks(joint: Joint, films: Sequence[Example]) -> Tensor:
    """Rank [b], 1 = first, of each impression's own image among all images, by cosine."""
    tokens = [text.tokenize(joint.tokenizer, film.phrase, joint.max_length) for film in films]
    ids, mask = text.stack(tokens)
    states = models.text_states(joint.text_encoder, ids, mask)
    sentences = joint.heads.sentence(sentence_state(states, ids, mask, "bert"))
    images = torch.from_numpy(np.stack([film.array() for film in films]))[:, None]
    _, pooled = joint.branch(images)
    near = F.normalize(sentences, dim=-1) @ F.normalize(pooled, dim=-1).T  # texts films
    return (near > near.diagonal()[:, None]).sum(1) + 1


def mark_groups(ax: Any, labels: Sequence[str], *, names: bool = True) -> None:
    """Draw lines between runs of equal labels along a square map, and optionally their names."""
    start = 0
    for label, run in groupby(labels):
        stop = start + len(list(run))
        for line in (ax.axhline, ax.axvline):
            line(stop - 0.5, color="0.4", lw=0.4)
        if names:
            ax.text(-1, (start + stop - 1) / 2, label, ha="right", va="center", fontsize=7)
        start = stop


def side_costs(baseline: Grounder, pairs: Sequence[Example]) -> pd.DataFrame:
    """CNR of a method's map of pairs that name one side, and the cost of swapping that side.

    Returns:
        image_id, subject_id, cnr, and cost: the specificity of the own phrase against the swapped
            one,
        both against the own boxes.
    """
    sided = [pair for pair in pairs if text.side_of(pair.phrase)]
    swapped = [replace(pair, phrase=text.swap_sides(pair.phrase)) for pair in sided]
    table = score(baseline, sided, others=swapped, measure="quick", progress=False)
    renamed = table.rename(columns={"specificity": "cost"})
    return renamed.reindex(columns=["image_id", "subject_id", "cnr", "cost"])
