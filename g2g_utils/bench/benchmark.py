"""Score methods over image-phrase pairs: the one protocol of all tables.

Only this module frames examples, draws the other phrase, keeps phrases that cannot be grounded as
rows, brings maps to the metric frame and computes specificity.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from g2g_utils import bbm, metrics, metrics_vilouras
from g2g_utils.data.images import image_size
from g2g_utils.data.record import Example
from g2g_utils.methods.base import Grounder, HeatMap, Query, no_map
from g2g_utils.text import PhraseError

FILMS = 16  # images handed to a method at once, unless it names its own number
OTHERS_SEED = 0  # draws the other phrases of every table, whatever the sampling seed
GRID = 64  # side of the grid on which the overlap of boxes is measured
QUICK = ("cnr", "auc_roc", "pointing")

Variants = Callable[[Query, HeatMap], Mapping[Any, HeatMap]]
Others = Sequence[Example | None]
Measure = Literal["all", "quick", "vilouras"]
Row = dict[str, Any]
Answer = tuple[Query, HeatMap]


def score(
    method: Grounder,
    pairs: Sequence[Example],
    *,
    others: Others | bool = True,
    variants: Variants | None = None,
    by: str = "variant",
    measure: Measure = "all",
    size: int | None = None,
    films: int | None = None,
    title: str = "",
    progress: bool = True,
) -> pd.DataFrame:
    """Score a method's maps of image-phrase pairs, each against its own boxes.

    Args:
        method: the method. It gets all queries of an image together.
        pairs: with boxes in pixels of their images.
        others: for each pair the example whose phrase is grounded on the same image, or None. True:
            drawn among the pairs by `draw_others`; False: none.
        variants: from a query and its heat map to several maps of the same capture; one row each.
        by: column that names the variant.
        measure: "all" metrics; "quick" for those that need no mask (CNR, AUC, pointing);
            "vilouras" for all and those of `metrics_vilouras`, in the frame of the pair's image.
        size: side of the metric frame in pixels (default: the method's image side).
        films: images handed over at once (default: the method's `films`, else 16).
        title: of the progress bar (default: the method's name).

    Returns:
        One row per pair (and variant): method, identity, metrics, `note` on degenerate cases, the
        map's details, `other_phrase`, `other_cnr`, and `specificity`: the CNR of the own map less
        that of the other phrase's map, both against the own boxes. A phrase that cannot be grounded
        keeps its row, with NaN and the reason.

    Raises:
        ValueError: there are no pairs, none has a box in its frame, or the numbers of other phrases
            and of pairs differ.
    """
    if not len(pairs):
        raise ValueError(f"no image-phrase pairs for {method.name}: give it at least one")
    if not any(_has_target(pair, method.image_size) for pair in pairs):
        raise ValueError(
            f"none of the {len(pairs)} image-phrase pairs for {method.name} has a box inside its "
            "image's centred square: give pairs with boxes in pixels of their images"
        )
    drawn: Others = draw_others(pairs, method.image_size) if others is True else list(others or [])
    if drawn and len(drawn) != len(pairs):
        raise ValueError(f"{len(drawn)} other phrases for {len(pairs)} pairs")
    rows: list[Row] = []
    asked = answers(method, pairs, drawn, films=films, title=title, progress=progress)
    for (own, other, pair), original in zip(asked, pairs, strict=True):
        frame = size or method.image_size
        found = _rows(own, pair, frame, method.image_size, variants, by, measure)
        if drawn:
            _add_specificity(found, other, pair, frame, method.image_size, variants, by)
        if measure == "vilouras":
            _add_vilouras(found, own, original, method.image_size, variants, by)
        rows += [{"method": method.name} | row for row in found]
    return pd.DataFrame(_every_variant(rows, by) if variants else rows)


def _has_target(pair: Example, side: int) -> bool:
    """True if something of a pair's boxes lies in its frame."""
    boxes = pair.framed(side).boxes if pair.boxes else ()
    return bool(boxes) and bool(metrics.rasterise(boxes, side).any())


def answers(
    method: Grounder,
    pairs: Sequence[Example],
    others: Others = (),
    *,
    films: int | None = None,
    title: str = "",
    progress: bool = True,
) -> Iterator[tuple[Answer, Answer | None, Example]]:
    """Own answer, the other phrase's answer and the framed pair, for each pair.

    Pairs are framed at the method's side and handed over a few images at a time, so that captures
    of a large data set are never in memory together. Arguments are those of `score`.
    """
    asked = list(zip(pairs, others or [None] * len(pairs), strict=True))
    at_once = films or int(getattr(method, "films", FILMS))
    starts = range(0, len(asked), at_once)
    for start in tqdm(starts, desc=title or method.name, mininterval=2, disable=not progress):
        yield from _grounded(method, asked[start : start + at_once])


def answer(method: Grounder, pair: Example) -> HeatMap:
    """A method's heat map of one pair, framed at the method's side."""
    return next(answers(method, [pair], progress=False))[0][1]


def specificity(own_cnr: float, other_cnr: float) -> float:
    """CNR that is lost when another phrase is grounded on the same image; 0: the map reads none.

    Both CNRs are against the own phrase's boxes. NaN if one is unknown.
    """
    return own_cnr - other_cnr


def draw_others(pairs: Sequence[Example], side: int, seed: int = OTHERS_SEED) -> Others:
    """Draw for each pair one of another finding elsewhere (IoU of boxes < 0.1).

    The other phrase is that of the drawn pair. Boxes are compared in a frame of `side` pixels, on a
    64 x 64 grid. None if no pair fits.
    """
    boxes = [pair.framed(side).boxes for pair in pairs]
    grid = [metrics.rasterise(b, GRID, source_size=side).flatten() for b in boxes]
    masks = torch.stack(grid).float()  # n pixels
    both, area = masks @ masks.T, masks.sum(1)
    apart = (both < 0.1 * (area[:, None] + area[None] - both)).numpy()
    findings, phrases = (np.array([getattr(p, n) for p in pairs]) for n in ("finding", "phrase"))
    drawn: list[Example | None] = []
    rng = np.random.default_rng(seed)
    for i in range(len(pairs)):
        differs = (findings != findings[i]) & (phrases != phrases[i])
        candidates = np.flatnonzero(apart[i] & differs)
        drawn.append(pairs[rng.choice(candidates)] if len(candidates) else None)
    return drawn


def identity(pair: Example) -> Row:
    """Columns that identify the pair of a row."""
    names = ("image_id", "subject_id", "split", "finding", "phrase")
    return {name: getattr(pair, name) for name in names}


def quick_scores(heatmaps: Sequence[Tensor], boxes: metrics.Boxes, size: int) -> list[Row]:
    """CNR, AUC and pointing of several maps [h, w] of one pair: the metrics without a mask."""
    heat = metrics.resize(bbm.minmax(torch.stack(list(heatmaps)).double()), size)  # n size size
    target = metrics.rasterise(boxes, size).expand_as(heat)
    scores = {
        "cnr": metrics.contrast_to_noise(heat, target),
        "auc_roc": metrics.auc_roc(heat, target),
        "pointing": metrics.pointing_game(heat, target),
    }
    columns = {name: torch.as_tensor(values).tolist() for name, values in scores.items()}
    return [{name: columns[name][k] for name in columns} for k in range(len(heat))]


# -- one block of films ---------------------------------------------------------------------------


def _grounded(
    method: Grounder, asked: Sequence[tuple[Example, Example | None]]
) -> Iterator[tuple[Answer, Answer | None, Example]]:
    """Own and other answers of each pair. An image's queries share its tensor."""
    queries: list[Query] = []
    framed = [pair.framed(method.image_size) for pair, _ in asked]
    for pair, (_, other) in zip(framed, asked, strict=True):
        image = torch.as_tensor(np.asarray(pair.image), dtype=torch.float32)[None]
        queries.append(Query(image, pair.phrase, pair.finding))
        if other is not None:
            queries.append(Query(image, other.phrase, other.finding))
    answers = iter(zip(queries, _ground(method, queries), strict=True))
    for pair, (_, other) in zip(framed, asked, strict=True):
        yield next(answers), next(answers) if other is not None else None, pair


def _ground(method: Grounder, queries: Sequence[Query]) -> list[HeatMap]:
    """A method's answers; where it raises for a phrase, each query alone and that one noted."""
    try:
        return method.ground(queries)
    except PhraseError as error:
        if len(queries) == 1:
            return [no_map(error)]
        return [found for query in queries for found in _ground(method, [query])]


def _variants(answer: Answer, variants: Variants | None) -> Mapping[Any, HeatMap]:
    """The maps of an answer by variant. None names the answer itself."""
    query, found = answer
    return variants(query, found) if variants and found.exists else {None: found}


def _rows(
    answer: Answer,
    pair: Example,
    frame: int,
    side: int,
    variants: Variants | None,
    by: str,
    measure: Measure,
) -> list[Row]:
    """Identity and metrics of a pair's own map, one row per variant."""
    boxes = np.reshape(pair.boxes, (-1, 4)) * (frame / side)
    maps = _variants(answer, variants)
    scored = _measured(list(maps.values()), boxes, frame, measure)
    rows = []
    for (name, found), scores in zip(maps.items(), scored, strict=True):
        label = {by: name} if variants else {}
        rows.append(identity(pair) | label | scores | dict(found.details))
    return rows


def _every_variant(rows: list[Row], by: str) -> list[Row]:
    """Give a pair without a map one row per variant of the other pairs."""
    names = list(dict.fromkeys(row[by] for row in rows if row[by] is not None))
    return [
        copy
        for row in rows
        for copy in ([row] if row[by] is not None or not names else [row | {by: n} for n in names])
    ]


def _measured(maps: list[HeatMap], boxes: Any, frame: int, measure: Measure) -> list[Row]:
    """Metrics and note of the maps of one pair; NaN for an absent map."""
    nothing = dict.fromkeys(QUICK if measure == "quick" else metrics.METRICS, np.nan)
    there = [found for found in maps if found.exists]
    if measure == "quick":
        quick = quick_scores([found.values for found in there], boxes, frame) if there else []
        rows = [row | {"note": m.note} for row, m in zip(quick, there, strict=True)]
    else:
        rows = [_every_metric(found, boxes, frame) for found in there]
    scored = iter(rows)
    return [next(scored) if m.exists else nothing | {"note": m.note or "no map"} for m in maps]


def _every_metric(found: HeatMap, boxes: Any, frame: int) -> Row:
    """All metrics of one map, and its notes."""
    row: Row = dict(metrics.evaluate(found.values, boxes, frame, mask=found.mask))
    row["note"] = "; ".join(filter(None, (row["note"], found.note)))
    if found.absolute is not None:
        row["absolute_threshold_iou"] = _absolute_threshold_iou(found.absolute, boxes, frame)
    return row


def _add_vilouras(
    rows: list[Row],
    own: Answer,
    original: Example,
    side: int,
    variants: Variants | None,
    by: str,
) -> None:
    """Add the metrics of Vilouras et al. to the rows of a pair, in its image's own pixels."""
    source = original.image
    height, width = image_size(source) if isinstance(source, Path) else source.shape
    maps = _variants(own, variants)
    for row in rows:
        found, scores = maps.get(row.get(by)), dict.fromkeys(metrics_vilouras.METRICS, np.nan)
        if found is not None and found.exists:
            heat = bbm.minmax(found.values) if found.absolute is None else found.absolute
            large = metrics.resize(heat.float(), side)
            scores = metrics_vilouras.in_original(large, original.boxes, height, width)
        row.update(scores)


def _absolute_threshold_iou(values: Tensor, boxes: Any, frame: int) -> float:
    """Mean IoU of values above the fixed thresholds, without rescaling (BioViL's own mIoU)."""
    large, target = metrics.resize(values.double(), frame), metrics.rasterise(boxes, frame)
    return float(np.mean([float(metrics.iou(large > t, target)) for t in metrics.THRESHOLDS]))


def _add_specificity(
    rows: list[Row],
    other: Answer | None,
    pair: Example,
    frame: int,
    side: int,
    variants: Variants | None,
    by: str,
) -> None:
    """Add `other_phrase`, `other_cnr` and `specificity` to the rows of a pair."""
    boxes = np.reshape(pair.boxes, (-1, 4)) * (frame / side)
    maps = _variants(other, variants) if other is not None else {}
    maps = {name: found for name, found in maps.items() if found.exists}
    scores = quick_scores([m.values for m in maps.values()], boxes, frame) if maps else []
    known = dict(zip(maps, (row["cnr"] for row in scores), strict=True))
    for row in rows:
        row["other_phrase"] = other[0].phrase if other is not None else ""
        row["other_cnr"] = known.get(row.get(by), np.nan)
        row["specificity"] = specificity(row["cnr"], row["other_cnr"])
