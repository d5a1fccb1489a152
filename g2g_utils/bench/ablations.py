"""Ablations of attention maps: token filters, layers, timesteps, curves of one capture.

Every function returns a long table (pandas), one row per image-phrase pair and setting, so that
averages, intervals and paired differences are all taken from the same rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Unpack

import numpy as np
import pandas as pd
from torch import Tensor

from g2g_utils import metrics
from g2g_utils.attention import Layers, block_of
from g2g_utils.bench.benchmark import FILMS, Measure, Others, answers, identity, score
from g2g_utils.data.record import Example
from g2g_utils.grounding import Grounding, GroundOptions, ground
from g2g_utils.masks import gmm_mask
from g2g_utils.methods import g2g
from g2g_utils.methods.base import HeatMap, Query
from g2g_utils.models.protocol import LatentDiffusion
from g2g_utils.text import Filter, select_tokens

MapsOf = Callable[[Query, Grounding], Mapping[Any, Tensor]]


def compare(
    model: LatentDiffusion,
    pairs: Sequence[Example],
    title: str,
    by: str,
    maps_of: MapsOf,
    *,
    others: Others | bool = True,
    measure: Measure = "quick",
    **options: Unpack[GroundOptions],
) -> pd.DataFrame:
    """Score the maps that `maps_of` makes of each pair's grounding: one row per pair and setting.

    Args:
        model: a diffusion model.
        pairs: with boxes; see `score`.
        title: of the progress bar.
        by: column of the settings.
        maps_of: from a query and its grounding to setting -> map [h, w].
        others: as in `score`.
        measure: as in `score`.
        options: of `grounding.ground`.
    """

    def variants(query: Query, found: HeatMap) -> dict[Any, HeatMap]:
        return {k: HeatMap(heat) for k, heat in maps_of(query, found.capture).items()}

    method = g2g.G2G("attention", model, options)
    return score(
        method,
        pairs,
        others=others,
        variants=variants,
        by=by,
        measure=measure,
        films=FILMS,
        title=title,
    )


def curves(
    model: LatentDiffusion,
    pairs: Sequence[Example],
    others: Others | bool = True,
    **options: Unpack[GroundOptions],
) -> pd.DataFrame:
    """All metrics of the plain activation map and of its three merged forms (paper, eq. 5-7)."""
    method = g2g.G2G("attention", model, options | {"curve": "mixture"})
    return score(
        method,
        pairs,
        others=others,
        variants=g2g.curves,
        by="curve",
        films=FILMS,
        title="bias merging",
    )


def filters(
    model: LatentDiffusion, pairs: Sequence[Example], **options: Unpack[GroundOptions]
) -> pd.DataFrame:
    """Scores under the three token filters, from one capture of every token's map."""

    def filtered(query: Query, found: Grounding) -> dict[Any, Tensor]:
        known: list[Filter] = ["disease"] if query.finding else []
        names: list[Filter] = ["lexical", *known, "all"]
        chosen: dict[str, list[int]] = {
            name: select_tokens(found.phrase_tokens, name, query.finding) for name in names
        }
        chosen |= {"start token": [0], "end token": [found.phrase_tokens.end]}
        return {name: found.select(tokens) for name, tokens in chosen.items()}

    return compare(model, pairs, "filters", "filter", filtered, **options)


def layers_and_steps(
    model: LatentDiffusion, pairs: Sequence[Example], **options: Unpack[GroundOptions]
) -> pd.DataFrame:
    """Scores of every single (layer, timestep) map, to find those that carry the signal."""

    def single(query: Query, found: Grounding) -> dict[Any, Tensor]:
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


def resolutions(
    model: LatentDiffusion, pairs: Sequence[Example], **options: Unpack[GroundOptions]
) -> pd.DataFrame:
    """Scores of `layer_groups`."""

    def grouped(query: Query, found: Grounding) -> dict[Any, Tensor]:
        return {name: found.select(layers=some) for name, some in layer_groups(found).items()}

    options |= {"keep": "layers", "layers": None}
    return compare(model, pairs, "layer groups", "layers", grouped, **options)


def groups_and_halves(
    model: LatentDiffusion, pairs: Sequence[Example], **options: Unpack[GroundOptions]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Scores of `layer_groups` and of the steps' halves (T >= 2), from one capture.

    The groups use the last k steps of `options`, the halves its layers. For odd T the middle step
    is in neither half.
    """
    used, last = options.get("layers"), options.get("keep_last") or options["timesteps"]

    def both(query: Query, found: Grounding) -> dict[Any, Tensor]:
        total = len(found.timesteps)
        half = total // 2
        steps = {"noisier half": range(half), "cleaner half": range(total - half, total)}
        maps: dict[Any, Tensor] = {
            ("timesteps", name): found.select(layers=used, steps=some)
            for name, some in steps.items()
        }
        kept = None if last >= total else range(total - last, total)
        for name, group in layer_groups(found).items():
            maps["layers", name] = found.select(layers=group, steps=kept)
        return maps

    if options["timesteps"] < 2:
        raise ValueError("one timestep has no halves: use timesteps=2 or more")
    options |= {"keep": "all", "keep_last": options["timesteps"], "layers": None}
    table = compare(model, pairs, "layer groups and halves", "what", both, **options)
    kind, setting = (table["what"].str[k] for k in (0, 1))
    parts = (table[kind == name].assign(**{name: setting}) for name in ("layers", "timesteps"))
    layers, halves = (part.drop(columns="what").reset_index(drop=True) for part in parts)
    return layers, halves


def step_counts(
    model: LatentDiffusion,
    pairs: Sequence[Example],
    counts: Sequence[int],
    measure: Measure = "quick",
    **options: Unpack[GroundOptions],
) -> pd.DataFrame:
    """Scores against the number T of ground-truth timesteps (all kept). measure: as in `score`."""

    def counted(count: int) -> pd.DataFrame:
        def whole(query: Query, found: Grounding) -> dict[Any, Tensor]:
            return {count: found.activation}

        steps = options | {"timesteps": count, "keep_last": count}
        return compare(model, pairs, f"T = {count}", "timesteps", whole, measure=measure, **steps)

    return pd.concat([counted(count) for count in counts], ignore_index=True)


def kept_steps(
    model: LatentDiffusion,
    pairs: Sequence[Example],
    kept: Sequence[int],
    measure: Measure = "quick",
    **options: Unpack[GroundOptions],
) -> pd.DataFrame:
    """Scores of the k least noisy of T timesteps, from one capture. measure: as in `score`."""

    def last(query: Query, found: Grounding) -> dict[Any, Tensor]:
        total = len(found.timesteps)
        return {k: found.select(steps=range(total - k, total)) for k in kept}

    options |= {"keep": "all", "keep_last": options["timesteps"]}
    return compare(model, pairs, "last k", "keep_last", last, measure=measure, **options)


def box_growth(
    model: LatentDiffusion,
    pairs: Sequence[Example],
    frame: int,
    source: int,
    **options: Unpack[GroundOptions],
) -> pd.DataFrame:
    """Score the same maps against exact boxes and against boxes resized as pictures (as published).

    Args:
        frame: side in which metrics are taken.
        source: side of the original image, in which the published way draws the boxes before it
            shrinks them.
    """
    rows = []
    method = g2g.G2G("box growth", model, options)
    for (_, found), _, example in answers(method, pairs, films=FILMS):
        if not found.exists:
            continue
        drawn = np.asarray(example.boxes, float) * source / model.image_size
        heat = metrics.resize(found.values.double(), frame)
        mask = metrics.resize(gmm_mask(found.values).double(), frame).round().bool()
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


def example_grounding(
    model: LatentDiffusion, example: Example, **options: Unpack[GroundOptions]
) -> Grounding:
    """Ground one pair and score it against its boxes."""
    framed = example.framed(model.image_size)
    return ground(
        model,
        framed.array(),
        framed.phrase,
        finding=framed.finding,
        boxes=framed.boxes,
        **options,
    )
