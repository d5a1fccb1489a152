"""Retrieval between images and reports: ranks, recall, and recall among fewer candidates.

All candidates compete, in both directions. Ties take their middle rank. A report is right if it is
the image's own, or, by the second score, if it states the same facts.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.stats import hypergeom
from torch import Tensor

from g2g_utils.bench import statistics
from g2g_utils.models.adamatch import AdaMatch, Patches, similarity
from g2g_utils.training.adamatch import Captions

DIRECTIONS = ("image to report", "report to image")
AT = (1, 5, 10)

Numbers = NDArray[np.float64]


@torch.no_grad()
def patches(network: AdaMatch, images: Tensor, batch: int = 64) -> Patches:
    """Patches of images [n, 1, S, S] in [0, 1]."""
    found = [network.patches(images[k : k + batch]) for k in range(0, len(images), batch)]
    return Patches(*(torch.cat(part) for part in zip(*found, strict=True)))


@torch.no_grad()
def similarities(
    network: AdaMatch, vectors: Tensor, captions: Captions, batch: int = 32
) -> tuple[Numbers, Numbers]:
    """Similarity of patches [n, p, d] of images with captions, by patch and by word: [n, c] each.

    Equations 5 and 6; each is the score of one direction.
    """
    words, counts = network.words(captions.ids, captions.mask, captions.owners)
    found = [
        similarity(vectors[k : k + batch], words, counts) for k in range(0, len(vectors), batch)
    ]
    by_patch, by_word = (torch.cat(part).double().numpy() for part in zip(*found, strict=True))
    return by_patch, by_word


def best_captions(
    network: AdaMatch, vectors: Tensor, captions: Captions, chunk: int = 256
) -> NDArray[np.intp]:
    """Index of the caption that agrees best with each image's patches [n, p, d] (equation 5).

    Equal captions agree equally; the first is taken.
    """
    best, found = np.full(len(vectors), -np.inf), np.zeros(len(vectors), np.intp)
    for start in range(0, len(captions.ids), chunk):
        rows = torch.arange(start, min(start + chunk, len(captions.ids)))
        by_patch, _ = similarities(network, vectors, Captions(*captions.rows(rows)))
        better = by_patch.max(1) > best
        found = np.where(better, start + by_patch.argmax(1), found)
        best = np.maximum(best, by_patch.max(1))
    return found


def ranks(scores: Numbers, right: NDArray[np.bool_] | None = None) -> Numbers:
    """Rank (1: first) of the best right candidate of each row of scores [n, m].

    Candidates with an equal score share their middle rank. Other right candidates are no rivals.

    Args:
        right: [n, m], at least one in each row; default: the diagonal.

    Raises:
        ValueError: a row has no right candidate, or scores are not finite.
    """
    right = np.eye(len(scores), scores.shape[1], dtype=bool) if right is None else right
    if not np.isfinite(scores).all() or not right.any(1).all():
        raise ValueError("every query needs finite scores and one right candidate")
    best = np.where(right, scores, -np.inf).max(1, keepdims=True)
    above = ((scores > best) & ~right).sum(1)
    equal = ((scores == best) & ~right).sum(1)
    return np.asarray(1 + above + equal / 2, float)


def same_facts(facts: Sequence[Hashable]) -> NDArray[np.bool_]:
    """True [n, n] where two reports state the same facts."""
    return np.array([[a == b for b in facts] for a in facts], bool)


def chance(right: NDArray[np.bool_], at: int) -> float:
    """Mean recall at `at` of random order, for right candidates [n, m]."""
    total = right.shape[1]
    missed = hypergeom.sf(0, total, right.sum(1), min(at, total))
    return float(np.mean(missed))


def among(rank: Numbers, total: int, candidates: int, at: int) -> Numbers:
    """Chance [n] that a query's candidate is in the first `at` of a random set that holds it.

    Exact: how many of the `candidates` - 1 others are drawn from those above it is hypergeometric.

    Args:
        rank: among all `total` candidates; a middle rank counts half to either side.

    Raises:
        ValueError: the set is larger than all, or empty.
    """
    if not 0 < candidates <= total:
        raise ValueError(f"{candidates} candidates of {total}: draw at least 1 and at most all")
    low, high = np.floor(rank - 1), np.ceil(rank - 1)
    both = [hypergeom.cdf(at - 1, total - 1, above, candidates - 1) for above in (low, high)]
    return np.asarray(np.mean(both, axis=0), float)


def table(
    by_patch: Numbers,
    by_word: Numbers,
    subjects: Sequence[str],
    ids: Sequence[str],
    facts: Sequence[Hashable] | None = None,
) -> pd.DataFrame:
    """One row per query and direction: `rank` of its partner, `facts_rank` of its facts.

    Args:
        by_patch: images x reports, the score by which an image looks for its report.
        by_word: images x reports, the score by which a report looks for its image.
        facts: of each report; None: unknown.
    """
    right = None if facts is None else same_facts(facts)
    found = []
    for direction, scores in zip(DIRECTIONS, (by_patch, by_word.T), strict=True):
        own: dict[str, Any] = {
            "direction": direction,
            "image_id": list(ids),
            "subject_id": list(subjects),
            "rank": ranks(scores),
            "facts_rank": np.nan if right is None else ranks(scores, right),
            "candidates": scores.shape[1],
        }
        found.append(pd.DataFrame(own))
    return pd.concat(found, ignore_index=True)


def recall(
    part: pd.DataFrame, at: int, *, column: str = "rank", resamples: int = 2000
) -> statistics.Interval:
    """Share of queries whose rank is at most `at`, in percent; interval over patients."""
    hits = 100 * (part[column] <= at).to_numpy(float)
    return statistics.bootstrap(hits, part["subject_id"], n=resamples)


def summary(rows: pd.DataFrame, resamples: int = 2000) -> pd.DataFrame:
    """One row per direction: recall in percent with its interval, and the median rank."""
    found = []
    for direction, part in rows.groupby("direction", sort=False):
        line: dict[str, Any] = {"direction": direction, "candidates": part["candidates"].iloc[0]}
        for name, column in (("R", "rank"), ("facts R", "facts_rank")):
            if part[column].notna().all():
                for at in AT:
                    value, low, high = recall(part, at, column=column, resamples=resamples)
                    line |= {f"{name}@{at}": value, f"{name}@{at} low": low}
                    line |= {f"{name}@{at} high": high}
        found.append(line | {"median rank": part["rank"].median()})
    return pd.DataFrame(found)


def recall_by_candidates(
    rows: pd.DataFrame, candidates: Sequence[int], at: Sequence[int] = AT
) -> pd.DataFrame:
    """Recall in percent by direction, number of candidates and `at`, beside its chance."""
    found = []
    for direction, part in rows.groupby("direction", sort=False):
        total = int(part["candidates"].iloc[0])
        for count in sorted({min(c, total) for c in candidates} | {total}):
            for k in at:
                share = among(part["rank"].to_numpy(float), total, count, k).mean()
                found.append((direction, count, k, 100 * share, 100 * min(1.0, k / count)))
    return pd.DataFrame(found, columns=["direction", "candidates", "at", "recall", "chance"])
