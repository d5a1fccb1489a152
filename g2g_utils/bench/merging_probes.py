"""Probes of bias merging: what each pair gains, and what the text bias knows of the film."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

import numpy as np
import pandas as pd
from torch import Tensor

from g2g_utils import grounding
from g2g_utils.bench.benchmark import quick_scores
from g2g_utils.bench.statistics import PAIR, Interval, bootstrap
from g2g_utils.data.record import Example
from g2g_utils.grounding import GroundOptions
from g2g_utils.models.protocol import LatentDiffusion
from g2g_utils.runs import places

PAPER = places.ROOT / "docs" / "paper" / "g2g_appendix_b.csv"


def appendix_b() -> pd.DataFrame:
    """The paper's Appendix B on MS-CXR: CNR and balanced IoU by filter and curve, all classes."""
    table = pd.read_csv(PAPER, comment="#").set_index("variant")
    return table[table["class"] == "Weighted Avg."].drop(columns="class")


def gains(table: pd.DataFrame, curve: str = "mixture", column: str = "cnr") -> pd.DataFrame:
    """What a merging curve adds to a metric of the plain map: one row per pair, mean of seeds.

    Args:
        table: rows of `ablations.curves`, of one arm.

    Returns:
        The columns PAIR, confidence, plain, and gain: the merged map's metric less `plain`.
    """
    by_curve = table.pivot_table(column, [*PAIR, "seed"], "curve", dropna=False, sort=False)
    seen = table[table["curve"] == curve].set_index([*PAIR, "seed"])["confidence"]
    wide = pd.DataFrame(
        {"confidence": seen, "plain": by_curve["none"], "gain": by_curve[curve] - by_curve["none"]}
    )
    return wide.dropna(subset=["gain"]).groupby(PAIR, sort=False, dropna=False).mean().reset_index()


def by_confidence(rows: pd.DataFrame, resamples: int) -> dict[str, Interval]:
    """Mean gain of the less and of the more confident half of the pairs, cut at the median."""
    more = rows["confidence"] > rows["confidence"].median()
    halves = {"less confident half": rows[~more], "more confident half": rows[more]}
    return {
        name: bootstrap(half["gain"], half["subject_id"], n=resamples)
        for name, half in halves.items()
        if len(half)
    }


def maps_of(
    model: LatentDiffusion, example: Example, **options: Unpack[GroundOptions]
) -> dict[str, Tensor]:
    """All maps [H, W] of merging by the mixture: A, both biases, M, and the merged map.

    Args:
        model: a diffusion model.
        example: a pair in the model's frame.
        options: of `grounding.ground`; timesteps, layers, batch_size and text_guidance are needed.
    """
    asked: GroundOptions = {**options, "curve": "mixture"}
    found = grounding.ground(model, example.array(), example.phrase, **asked)
    seen, words = grounding.record_image(
        model,
        example.array(),
        example.phrase,
        timesteps=options["timesteps"],
        batch_size=options["batch_size"],
        layers=options["layers"],
    )
    bias = grounding.text_bias(
        model,
        words,
        tokens=found.tokens,
        timesteps=options["timesteps"],
        text_guidance=options["text_guidance"],
    )
    assert found.interaction is not None
    return {
        "A": found.activation,
        "image bias": seen.mean([words.start]),
        "text bias": bias.mean(layers=seen.layers),
        "M": found.interaction,
        "merged": found.heatmap,
    }


def text_bias_scores(
    model: LatentDiffusion, pairs: Sequence[Example], **options: Unpack[GroundOptions]
) -> list[float]:
    """CNR of each pair's text bias, a map that has not seen the film (paper, section 2.3).

    Biases that a grounding of the same phrase made before are remembered.
    """
    found = []
    for pair in (p.framed(model.image_size) for p in pairs):
        bias = grounding.text_bias(
            model,
            pair.phrase,
            timesteps=options["timesteps"],
            text_guidance=options["text_guidance"],
        )
        heat = bias.mean(layers=options["layers"])
        found.append(float(quick_scores([heat], pair.boxes, model.image_size)[0]["cnr"]))
    return found


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's correlation of two columns; NaN where one is constant."""
    pair = pd.DataFrame({"first": np.asarray(first), "second": np.asarray(second)})
    return float(pair["first"].corr(pair["second"], method="spearman"))
