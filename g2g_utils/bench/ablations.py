"""Studies over a data set: tables for the notebooks on merging, hyper-parameters and baselines.

Every function returns a long table (pandas), one row per image-phrase pair and setting, so that
averages, intervals and paired differences are all taken from the same rows.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from g2g_utils import bbm, metrics
from g2g_utils.attention import Layers, block_of
from g2g_utils.data.record import Example
from g2g_utils.grounding import Grounding, draw_others, ground_batch
from g2g_utils.methods import biovil, no_skill
from g2g_utils.text import Filter, PhraseError, check_phrase, select_tokens

BATCH = 16  # pairs handed to the grounding engine at once
PAIR = ["image_id", "subject_id", "phrase", "finding"]  # columns that tell a row's pair


def read_rows(path: Path) -> pd.DataFrame:
    """A results table from a CSV; what tells a row's pair stays text, as in the records ("007")."""
    return pd.read_csv(path, dtype=dict.fromkeys(PAIR, str))


def identity(example: Example) -> dict[str, Any]:
    """What tells a row's pair: image, patient, finding and phrase."""
    return {
        "image_id": example.image_id,
        "subject_id": example.subject_id,
        "finding": example.finding,
        "phrase": example.phrase,
    }


def quick_scores(heatmap: Tensor, boxes: Any, size: int) -> dict[str, float]:
    """CNR, AUC and pointing of a map [h, w]: the metrics that need no mask."""
    return batch_scores([heatmap], boxes, size)[0]


def batch_scores(heatmaps: Sequence[Tensor], boxes: Any, size: int) -> list[dict[str, float]]:
    """`quick_scores` of several maps [h, w] of one pair, at once."""
    heat = metrics.resize(bbm.minmax(torch.stack(list(heatmaps)).double()), size)  # n size size
    target = metrics.rasterise(boxes, size).expand_as(heat)
    scores = {
        "cnr": metrics.contrast_to_noise(heat, target),
        "auc_roc": metrics.auc_roc(heat, target),
        "pointing": metrics.pointing_game(heat, target),
    }
    columns = {name: torch.as_tensor(values).tolist() for name, values in scores.items()}
    return [{name: columns[name][k] for name in columns} for k in range(len(heat))]


def grounded(model: Any, pairs: Sequence[Example], title: str, **options: Any) -> Any:
    """Iterate over (example, Grounding), a batch at a time, with a progress bar."""
    for start in tqdm(range(0, len(pairs), BATCH), desc=title, mininterval=2):
        batch = [pair.framed(model.image_size) for pair in pairs[start : start + BATCH]]
        images, phrases = [e.array() for e in batch], [e.phrase for e in batch]
        findings = [e.finding for e in batch]
        yield from zip(
            batch, ground_batch(model, images, phrases, findings=findings, **options), strict=True
        )


def compare(
    model: Any,
    pairs: Sequence[Example],
    title: str,
    by: str,
    maps_of: Callable[[Example, Grounding], dict[Any, Tensor]],
    score: Callable[[list[Tensor], Any, int], list[dict[str, Any]]] = batch_scores,
    more: Callable[[Grounding], dict[str, Any]] = lambda _: {},
    others: Sequence[str] | None = None,
    **options: Any,
) -> pd.DataFrame:
    """One row a pair and setting: scores of the maps that `maps_of` makes of a pair's grounding.

    maps_of: from a framed pair and its grounding to setting -> map [h, w]; `by` names the column
    of settings. more: further columns of a grounding. `specificity` is the CNR less `other_cnr`,
    that of the same setting's map of another phrase on the same image, both against the own boxes;
    unknown where no other phrase is apart. others: these phrases ("" for none), by default
    `draw_others` among the pairs. They name another finding, so that a filter by disease gives way
    to the lexical one, as in `grounding.evaluate`. Pairs whose phrase can't be grounded are left
    out, with a warning that names the first.
    """
    drawn = draw_others(pairs, model.image_size) if others is None else others
    pairs, drawn = _groundable(pairs, drawn, **options)
    lexical = options | ({"filter": "lexical"} if options.get("filter") == "disease" else {})

    def scored(
        asked: Sequence[Example], score: Any, title: str, options: dict[str, Any]
    ) -> list[list[dict[str, Any]]]:
        """Rows of every pair, one a setting."""
        found = []
        for example, grounding in grounded(model, asked, title, **options):
            maps, extra = maps_of(example, grounding), more(grounding)
            rows = score(list(maps.values()), example.boxes, model.image_size)
            pair = identity(example) | extra
            found.append([pair | {by: k, **row} for k, row in zip(maps, rows, strict=True)])
        return found

    own = scored(pairs, score, title, options)
    swapped = under_others(pairs, drawn)
    strangers = [stranger for stranger in swapped if stranger]
    against = iter(scored(strangers, batch_scores, f"{title}, other phrases", lexical))
    for rows, stranger in zip(own, swapped, strict=True):
        cnr = {row[by]: row["cnr"] for row in next(against)} if stranger else {}
        for row in rows:
            row["other_cnr"] = cnr.get(row[by], np.nan)
            row["specificity"] = row["cnr"] - row["other_cnr"]
    return pd.DataFrame([row for rows in own for row in rows])


def _groundable(
    pairs: Sequence[Example], others: Sequence[str], **options: Any
) -> tuple[list[Example], list[str]]:
    """The pairs whose phrase can be grounded, and their other phrases ("" where those can't)."""
    asked: Filter = options.get("filter", "lexical")

    def problem(phrase: str, filter: Filter) -> str:
        try:
            check_phrase(phrase, filter, options.get("spacy_model"))
        except PhraseError as error:
            return str(error)
        return ""

    problems = [problem(p.phrase, "lexical" if asked == "lexical" else "all") for p in pairs]
    if wrong := [text for text in problems if text]:
        warnings.warn(f"{len(wrong)} of {len(pairs)} pairs left out: {wrong[0]}", stacklevel=3)
    kept = [i for i, text in enumerate(problems) if not text]
    other: Filter = "all" if asked == "all" else "lexical"
    known = ["" if not others[i] or problem(others[i], other) else others[i] for i in kept]
    return [pairs[i] for i in kept], known


def under_others(pairs: Sequence[Example], others: Sequence[str]) -> list[Example | None]:
    """Each pair's image and boxes under another phrase and its finding; None where it is ""."""
    finding_of = {pair.phrase: pair.finding for pair in pairs}
    return [
        replace(pair, phrase=other, finding=finding_of.get(other)) if other else None
        for pair, other in zip(pairs, others, strict=True)
    ]


def curves(model: Any, pairs: Sequence[Example], **options: Any) -> pd.DataFrame:
    """All metrics of the plain activation map and of its three merged forms (paper, eq. 5-7)."""

    def merged(example: Example, found: Grounding) -> dict[Any, Tensor]:
        maps: dict[Any, Tensor] = {"none": found.activation}
        assert found.interaction is not None and found.confidence is not None
        for curve in get_args(bbm.Curve):
            maps[curve] = bbm.merge(found.activation, found.interaction, found.confidence, curve)
        return maps

    def every_metric(maps: list[Tensor], boxes: Any, size: int) -> list[dict[str, Any]]:
        return [metrics.evaluate(heatmap, boxes, size) for heatmap in maps]

    def confidence(found: Grounding) -> dict[str, Any]:
        return {"confidence": found.confidence}

    options |= {"curve": "mixture"}
    return compare(
        model, pairs, "bias merging", "curve", merged, every_metric, confidence, **options
    )


def filters(model: Any, pairs: Sequence[Example], **options: Any) -> pd.DataFrame:
    """Scores under the three token filters, from one capture of every token's map."""

    def filtered(example: Example, found: Grounding) -> dict[Any, Tensor]:
        known: list[Filter] = ["disease"] if example.finding else []
        names: list[Filter] = ["lexical", *known, "all"]
        chosen: dict[str, list[int]] = {
            name: select_tokens(found.phrase_tokens, name, example.finding) for name in names
        }
        chosen |= {"start token": [0], "end token": [found.phrase_tokens.end]}
        return {name: found.select(tokens) for name, tokens in chosen.items()}

    return compare(model, pairs, "filters", "filter", filtered, **options)


def layers_and_steps(model: Any, pairs: Sequence[Example], **options: Any) -> pd.DataFrame:
    """Scores of every single (layer, timestep) map: which of them carry the signal."""

    def single(example: Example, found: Grounding) -> dict[Any, Tensor]:
        return {
            (layer, found.maps[layer].shape[-1], timestep): found.select(layers=layer, steps=[k])
            for layer in found.layers
            for k, timestep in enumerate(found.timesteps)
        }

    options |= {"keep": "all", "keep_last": options["timesteps"], "layers": None}
    table = compare(model, pairs, "layers x timesteps", "place", single, **options)
    places = pd.DataFrame(table.pop("place").tolist(), columns=["layer", "side", "timestep"])
    return table.join(places)


def layer_groups(found: Grounding) -> dict[str, Layers | None]:
    """Groups of a grounding's layers: all, each block, each map side, the decoder's finer sides."""
    sides = {name: maps.shape[-1] for name, maps in found.maps.items()}
    coarsest = min(sides.values())
    fine = [name for name in sides if block_of(name) == "up" and sides[name] > coarsest]
    groups: dict[str, Layers | None] = {"all": None}
    groups |= {block: block for block in ("down", "mid", "up") if block in map(block_of, sides)}
    groups |= {"up, finer": fine} if fine else {}
    return groups | {f"{side}×{side}": side for side in sorted(set(sides.values()), reverse=True)}


def resolutions(model: Any, pairs: Sequence[Example], **options: Any) -> pd.DataFrame:
    """Scores of `layer_groups`."""

    def grouped(example: Example, found: Grounding) -> dict[Any, Tensor]:
        return {name: found.select(layers=some) for name, some in layer_groups(found).items()}

    options |= {"keep": "layers", "layers": None}
    return compare(model, pairs, "layer groups", "layers", grouped, **options)


def step_counts(
    model: Any, pairs: Sequence[Example], counts: Sequence[int], **options: Any
) -> pd.DataFrame:
    """Scores against the number T of ground-truth timesteps (all kept)."""

    def counted(count: int) -> pd.DataFrame:
        def whole(example: Example, found: Grounding) -> dict[Any, Tensor]:
            return {count: found.activation}

        steps = options | {"timesteps": count, "keep_last": count}
        return compare(model, pairs, f"T = {count}", "timesteps", whole, **steps)

    return pd.concat([counted(count) for count in counts], ignore_index=True)


def kept_steps(
    model: Any, pairs: Sequence[Example], kept: Sequence[int], **options: Any
) -> pd.DataFrame:
    """Scores when only the k least noisy of T timesteps are kept, from one capture."""

    def last(example: Example, found: Grounding) -> dict[Any, Tensor]:
        total = len(found.timesteps)
        return {k: found.select(steps=range(total - k, total)) for k in kept}

    options |= {"keep": "all", "keep_last": options["timesteps"]}
    return compare(model, pairs, "last k", "keep_last", last, **options)


def step_halves(model: Any, pairs: Sequence[Example], **options: Any) -> pd.DataFrame:
    """Scores of the noisier and of the cleaner half of T >= 2 timesteps, from one capture.

    Where T is odd the middle one is in neither.
    """

    def halves(example: Example, found: Grounding) -> dict[Any, Tensor]:
        total = len(found.timesteps)
        half = total // 2
        steps = {"noisier half": range(half), "cleaner half": range(total - half, total)}
        return {name: found.select(steps=some) for name, some in steps.items()}

    if options["timesteps"] < 2:
        raise ValueError("one timestep has no halves: use timesteps=2 or more")
    options |= {"keep": "all", "keep_last": options["timesteps"]}
    return compare(model, pairs, "halves", "timesteps", halves, **options)


def box_growth(
    model: Any, pairs: Sequence[Example], frame: int, source: int, **options: Any
) -> pd.DataFrame:
    """The same maps against exact boxes and against boxes resized as pictures (as published).

    frame: side in which metrics are taken; source: side of the original film, in which the
    published way draws the boxes before it shrinks them.
    """
    rows = []
    for example, found in grounded(model, pairs, "box growth", **options):
        drawn = np.asarray(example.boxes, float) * source / model.image_size
        heat = metrics.resize(found.heatmap.double(), frame)
        mask = metrics.resize(found.mask.double(), frame).round().bool()
        for name, compat in (("exact", None), ("published", "published")):
            target = metrics.rasterise(drawn, frame, source_size=source, compat=compat)
            scores = {
                "cnr": metrics.contrast_to_noise(heat, target),
                "iou": metrics.iou(mask, target),
                "balanced_iou": metrics.balanced_iou(mask, target),
                "area": float(target.double().mean()),
            }
            rows.append(identity(example) | {"boxes": name, **scores})
    return pd.DataFrame(rows)


def no_skill_rows(
    pairs: Sequence[Example], regions: Sequence[dict[str, Any]], side: int, latent: int
) -> pd.DataFrame:
    """All metrics of maps that know at most the finding: random, centre, and mean training boxes.

    regions: training regions with `finding` and `boxes` in the `side` x `side` frame; maps have
    `latent` x `latent` pixels, like the model's. `specificity` is 0 for maps without a phrase, and
    that of the other phrase's finding for the mean box per finding.
    """
    priors = mean_boxes(regions, side, latent)
    finding_of = {pair.phrase: str(pair.finding) for pair in pairs}
    rows = []
    for k, (example, other) in enumerate(zip(pairs, draw_others(pairs, side, seed=0), strict=True)):
        framed = example.framed(side)
        own = priors.get(str(framed.finding), priors["all"])
        against = priors.get(finding_of.get(other, ""), priors["all"])
        maps = {
            "random": (random := no_skill.random_map((latent, latent), k), random),
            "centre prior": (centre := no_skill.centre_prior((latent, latent)), centre),
            "mean box": (priors["all"], priors["all"]),
            "mean box per finding": (own, against),
        }
        for name, (heatmap, stranger) in maps.items():
            scores = metrics.evaluate(heatmap, framed.boxes, side)
            other_cnr = quick_scores(stranger, framed.boxes, side)["cnr"] if other else np.nan
            gap = {"other_cnr": other_cnr, "specificity": float(scores["cnr"]) - other_cnr}
            rows.append(identity(framed) | {"method": name, **scores, **gap})
    return pd.DataFrame(rows)


def mean_boxes(regions: Sequence[dict[str, Any]], side: int, latent: int) -> dict[str, Tensor]:
    """Mean training box [latent, latent] of each finding, and of "all"."""
    boxes, findings = [r["boxes"] for r in regions], [r["finding"] for r in regions]
    size = (latent, latent)
    by_finding = no_skill.mean_box_per_finding(boxes, findings, side, size)
    return by_finding | {"all": no_skill.mean_box(boxes, side, size)}


def biovil_rows(
    baseline: biovil.Baseline, pairs: Sequence[Example], side: int, seed: int = 0
) -> pd.DataFrame:
    """All metrics of the discriminative map, with specificity against another phrase's map.

    `cosine_threshold_iou` is BioViL's own mIoU: cosines clamped at 0 and not stretched.
    """
    rows = []
    for example, other in zip(pairs, draw_others(pairs, side, seed), strict=True):
        framed = example.framed(side)
        heatmap = baseline.heatmap(framed.array(), framed.phrase)
        row = identity(framed) | metrics.evaluate(heatmap, framed.boxes, side)
        if isinstance(baseline, biovil.PublishedBioViL):
            clamped = metrics.resize(heatmap.double().clamp(min=0), side)
            target = metrics.rasterise(framed.boxes, side)
            scores = [float(metrics.iou(clamped > t, target)) for t in metrics.THRESHOLDS]
            row["cosine_threshold_iou"] = float(np.mean(scores))
        if other:
            against = baseline.heatmap(framed.array(), other)
            row["other_cnr"] = quick_scores(against, framed.boxes, side)["cnr"]
            row["specificity"] = row["cnr"] - row["other_cnr"]
        rows.append(row)
    return pd.DataFrame(rows)


def summary(
    table: pd.DataFrame, by: str, columns: Sequence[str], resamples: int, average: str = "micro"
) -> pd.DataFrame:
    """Mean and 95 % interval (bootstrap over patients) of columns for every value of `by`.

    `pairs` counts those that have a score in the first column.
    """
    rows = []
    for value, part in table.groupby(by, sort=False):
        scored = part[part[columns[0]].notna()] if columns[0] in part else part
        row: dict[str, Any] = {by: value, "pairs": scored.groupby(PAIR, dropna=False).ngroups}
        for column in columns:
            row[column] = interval(part, column, resamples, average) if column in part else None
        rows.append(row)
    return pd.DataFrame(rows).set_index(by)


def interval(
    part: pd.DataFrame, column: str, resamples: int, average: str = "micro"
) -> metrics.Interval:
    """Mean of a column, first over seeds within a pair, with its interval over patients."""
    means = part.groupby(PAIR, sort=False, dropna=False)[column].mean()
    pairs = means.reset_index().dropna(subset=[column])
    if pairs.empty:
        return metrics.Interval(np.nan, np.nan, np.nan)
    return metrics.bootstrap(
        pairs[column], pairs["subject_id"], classes=pairs["finding"], average=average, n=resamples
    )


def on_common_seeds(
    table: pd.DataFrame, better: str, worse: str
) -> tuple[pd.DataFrame, pd.DataFrame, list[int]]:
    """Rows of two methods over the training seeds that both have, and those seeds.

    A method that was not trained has no seed (NaN) and is compared with all of the other's.
    """
    parts = [table[table["method"] == name] for name in (better, worse)]
    known = [{int(seed) for seed in part["seed"].dropna()} for part in parts]
    seeds: list[int] = sorted(known[0] & known[1] if all(known) else known[0] | known[1])
    first, second = (part[part["seed"].isna() | part["seed"].isin(seeds)] for part in parts)
    return first, second, seeds


def difference(
    first: pd.DataFrame, second: pd.DataFrame, column: str, resamples: int
) -> metrics.Interval:
    """Paired difference of two methods on the same pairs, seeds averaged, over patients.

    NaN where no pair has a number on both sides.
    """
    means = [
        table.groupby(PAIR, sort=False, dropna=False)[column].mean() for table in (first, second)
    ]
    gap = (means[0] - means[1]).dropna().reset_index()
    if gap.empty:
        return metrics.Interval(np.nan, np.nan, np.nan)
    return metrics.bootstrap(gap[column], gap["subject_id"], n=resamples)


def methods(
    rows: pd.DataFrame, no_skill_table: pd.DataFrame, discriminative: pd.DataFrame | None = None
) -> pd.DataFrame:
    """One long table with a column `method`: the arms, the other phrase's map, baselines.

    rows: of `products.tables` (arm, seed, metrics, other_cnr). The other phrase's map of the first
    arm has a CNR only: against the own boxes, as in `specificity`.
    """
    arms = rows.rename(columns={"arm": "method"})
    first = arms[arms["method"] == arms["method"].iloc[0]]
    keys = ["image_id", "subject_id", "finding", "phrase", "seed"]
    swapped = first[keys].assign(cnr=first["other_cnr"], method="its map of another phrase")
    parts = [arms, swapped]
    if discriminative is not None:
        parts.append(discriminative.assign(method="BioViL-like"))
    return pd.concat([*parts, no_skill_table], ignore_index=True)


def pair_of(row: pd.Series, pairs: Sequence[Example]) -> Example:
    """The pair that a row of a results table is about; pairs without a row may lie between."""
    wanted = [None if pd.isna(row[name]) else row[name] for name in PAIR]
    found = [pair for pair in pairs if [getattr(pair, name) for name in PAIR] == wanted]
    if not found:
        raise ValueError(f"no pair {wanted}: the table is of other data")
    return found[0]


def ranked(part: pd.DataFrame, column: str, shares: Sequence[float]) -> pd.DataFrame:
    """Rows at fixed ranks of a column: 0 the best, 0.5 the median, 1 the worst; no choosing."""
    known = part.dropna(subset=[column]).sort_values(column, ascending=False, kind="stable")
    return known.iloc[[round(share * (len(known) - 1)) for share in shares]]


def per_class(table: pd.DataFrame, column: str) -> pd.DataFrame:
    """Class means of a column with counts, then the three averages (micro, macro, paper)."""
    keys = ["image_id", "phrase", "finding"]
    pairs = table.groupby(keys, sort=False, dropna=False)[column].mean().reset_index()
    classes = pairs.groupby("finding", dropna=False)[[column]]
    means = classes.mean()
    counts = classes.count()
    averages = metrics.class_averages(means, counts)
    averages.index = [f"{name} average" for name in averages.index]
    table = pd.concat([means, averages])
    table["pairs"] = counts[column].reindex(table.index)
    return table


def example_grounding(model: Any, example: Example, **options: Any) -> Grounding:
    """Ground one pair, its boxes scored."""
    framed = example.framed(model.image_size)
    return ground_batch(
        model, [framed.array()], [framed.phrase], findings=[framed.finding], boxes=[framed.boxes],
        **options,
    )[0]  # fmt: skip
