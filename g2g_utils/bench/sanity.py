"""Sanity checks of one grounding: beside maps without knowledge, and beside the swapped side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Unpack

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from g2g_utils.bench.benchmark import answer, answers, score
from g2g_utils.data.record import Example
from g2g_utils.grounding import Grounding, GroundOptions
from g2g_utils.methods import no_skill
from g2g_utils.methods.base import Given, Grounder
from g2g_utils.methods.g2g import G2G
from g2g_utils.models import GroundingModel
from g2g_utils.models.protocol import LatentDiffusion
from g2g_utils.text import side_of, swap_sides

COLUMNS = ("cnr", "auc_roc", "pointing", "iou", "specificity")
NO_SIDE = "small right apical pneumothorax"  # for phrases that name no side


def no_skill_methods(
    regions: Sequence[Mapping[str, Any]], side: int, size: tuple[int, int], names: Sequence[str]
) -> list[Grounder]:
    """Baselines that read no words, by name: see `no_skill.rules`.

    Args:
        regions: training regions in the frame of `side` pixels. Without them there is no mean box.
    """
    rules = no_skill.rules(regions, side, size)
    return [no_skill.NoSkill(name, side, rules[name]) for name in names if name in rules]


def compare(
    example: Example,
    result: Grounding,
    baselines: Sequence[Grounder],
    other: Grounding | None = None,
) -> pd.DataFrame:
    """Compare one grounding with baselines: scores if boxes are known, and likeness.

    Args:
        example: the pair, in the model's frame.
        result: its grounding.
        baselines: methods that know nothing of the phrase.
        other: the grounding of another phrase on the same image, for specificity.

    Returns:
        A row per map. `likeness` is the correlation with the model's map; near 1 means that a map
        without knowledge of the phrase looks the same.
    """
    side = baselines[0].image_size
    maps = {g.phrase: g.heatmap for g in (result, other) if g is not None}
    asked = None if other is None else replace(example, phrase=other.phrase, finding=None)
    rows = []
    for method in (Given("model", side, maps), *baselines):
        if example.boxes:
            table = score(method, [example], others=[asked], progress=False)
            found = {name: table[name].iloc[0] for name in COLUMNS if name in table}
            found |= {} if other is not None else {"specificity": np.nan}
        else:
            found = {}
        likeness = correlation(answer(method, example).values, result.heatmap)
        rows.append({"map": method.name, **found, "likeness": likeness})
    table = pd.DataFrame(rows).set_index("map").astype(float).round(2)
    return table.dropna(axis="columns", how="all")


def correlation(first: Tensor, second: Tensor) -> float:
    """Pearson correlation of two maps of one size; 0 if one is constant."""
    pair = torch.stack([first.flatten(), second.flatten()]).double()
    return float(torch.nan_to_num(torch.corrcoef(pair))[0, 1])


def contrary(phrase: str) -> str:
    """The phrase with the other side; without a side, a phrase of another finding."""
    other = swap_sides(phrase)
    return other if other != phrase else NO_SIDE


def share_of_side(heatmap: Tensor, side: str) -> float:
    """Share of a map's heat on the patient's `side`. Patient right is the image's left half."""
    half = heatmap.shape[-1] // 2
    columns = heatmap[:, :half] if side == "right" else heatmap[:, -half:]
    return float(columns.sum() / heatmap.sum().clamp(min=1e-9))


def side_shift(
    model: LatentDiffusion, pairs: Sequence[Example], **options: Unpack[GroundOptions]
) -> pd.DataFrame:
    """For pairs that name one side: heat that moves there, compared with the swapped phrase.

    Returns:
        Identity, side, share of heat on that side under the own and the swapped phrase, and their
        difference `shift`, positive if the model follows the word.

    Raises:
        ValueError: a phrase names no side, or both.
    """
    if wordless := [pair.phrase for pair in pairs if side_of(pair.phrase) is None]:
        raise ValueError(f"{wordless[0]!r} names no one side: choose by `one_sided`")
    swapped = [replace(pair, phrase=swap_sides(pair.phrase)) for pair in pairs]
    method, rows = G2G("swapping sides", model, options), []
    for (query, own), other, example in answers(method, pairs, swapped):
        assert other is not None
        side = str(side_of(query.phrase))
        shares = [share_of_side(found.values, side) for found in (own, other[1])]
        row = {"image_id": example.image_id, "subject_id": example.subject_id, "side": side}
        rows.append(row | {"own": shares[0], "swapped": shares[1], "shift": shares[0] - shares[1]})
    return pd.DataFrame(rows)


def one_sided(pairs: Sequence[Example]) -> list[Example]:
    """Pairs whose phrase names exactly one side as a word."""
    return [pair for pair in pairs if side_of(pair.phrase)]


@torch.no_grad()
def reconstruction_psnr(model: GroundingModel, images: Any) -> Tensor:
    """Peak signal-to-noise ratio [n], dB, of the autoencoder's reconstruction of images [n, S, S].

    Unfamiliar images are reconstructed worse.
    """
    pixels = torch.as_tensor(np.asarray(images)).float()[:, None]
    mean, _ = model.image_posterior(pixels)
    error = (model.decode(mean) - pixels.to(mean.device)).square().mean((1, 2, 3))
    return -10 * torch.log10(error).cpu()
