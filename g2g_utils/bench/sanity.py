"""Is a map evidence? One grounding beside maps that know nothing and beside the swapped side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from g2g_utils import metrics
from g2g_utils.bench.ablations import no_skill_rows
from g2g_utils.config import Config
from g2g_utils.data.record import Example
from g2g_utils.experiment import products
from g2g_utils.grounding import Grounding, draw_others, evaluate, ground_batch
from g2g_utils.methods import no_skill
from g2g_utils.text import side_of, swap_sides

SCORES = ("cnr", "auc_roc", "pointing", "iou")
CANDIDATES = 64  # pairs among which another phrase is drawn
NO_SIDE = "small right apical pneumothorax"  # compared with phrases that name no side


def no_skill_maps(config: Config, image: Any, size: tuple[int, int]) -> dict[str, Tensor]:
    """Maps [h, w] that do not know the phrase; "mean box" is that of the training regions."""
    maps = {
        "random": no_skill.random_map(size),
        "centre prior": no_skill.centre_prior(size),
        "brightness": no_skill.brightness(torch.as_tensor(np.asarray(image))[None], size),
    }
    if config.data.source == "phantoms":
        boxes = [region["boxes"] for region in products.training_texts(config).regions]
        maps["mean box"] = no_skill.mean_box(boxes, config.image_size, size)
    return maps


def other_phrase(config: Config, example: Example) -> str:
    """A test phrase of another finding that lies elsewhere (`draw_others`); "" without boxes.

    One of the first `CANDIDATES` pairs: films are opened for the frame of their boxes.
    """
    if not example.boxes:
        return ""
    pairs = products.evaluation_pairs(config)[:CANDIDATES]
    return draw_others([example, *pairs], config.image_size)[0]


def compare(
    config: Config, example: Example, result: Grounding, other: Grounding | None = None
) -> pd.DataFrame:
    """The model's map and no-skill maps: scores where boxes are known, and likeness.

    likeness: correlation of each map with the model's; near 1 means that a map which knows
    nothing of the phrase looks the same. other: the grounding of `other_phrase`, for the model's
    specificity; that of maps which know no phrase is 0.
    """
    size = (result.heatmap.shape[-2], result.heatmap.shape[-1])
    maps = {"model": result.heatmap, **no_skill_maps(config, example.array(), size)}
    rows = []
    for name, heatmap in maps.items():
        found = metrics.evaluate(heatmap, example.boxes, config.image_size) if example.boxes else {}
        scores = {score: found[score] for score in SCORES if score in found}
        if other is not None and example.boxes:
            swapped = other.heatmap if name == "model" else heatmap
            lost = metrics.evaluate(swapped, example.boxes, config.image_size)["cnr"]
            scores["specificity"] = float(found["cnr"]) - float(lost)
        rows.append({"map": name, **scores, "likeness": correlation(heatmap, result.heatmap)})
    return pd.DataFrame(rows).set_index("map").round(2)


def beside_no_skill(
    config: Config, model: Any, pairs: Sequence[Example], **options: Any
) -> pd.DataFrame:
    """Metrics of the model and of maps without skill, one row a pair and method."""
    others = draw_others(pairs, config.image_size)  # the same for every seed and for the priors
    tables = [evaluate(model, pairs, others=others, **options).assign(method="model")]
    if config.data.source == "phantoms":
        regions = products.training_texts(config).regions
        tables.append(no_skill_rows(pairs, regions, config.image_size, model.latent_shape[-1]))
    return pd.concat(tables, ignore_index=True)


def correlation(first: Tensor, second: Tensor) -> float:
    """Pearson correlation of two maps of one size; 0 where one is constant."""
    pair = torch.stack([first.flatten(), second.flatten()]).double()
    return float(torch.nan_to_num(torch.corrcoef(pair))[0, 1])


def contrary(phrase: str) -> str:
    """The phrase of the other side; where none is named, a phrase of another finding."""
    other = swap_sides(phrase)
    return other if other != phrase else NO_SIDE


def share_of_side(heatmap: Tensor, side: str) -> float:
    """Share of a map's heat on the patient's `side`: patient right is the image's left half."""
    half = heatmap.shape[-1] // 2
    columns = heatmap[:, :half] if side == "right" else heatmap[:, -half:]
    return float(columns.sum() / heatmap.sum().clamp(min=1e-9))


def side_shift(model: Any, pairs: Sequence[Example], **options: Any) -> pd.DataFrame:
    """For pairs that name one side: how much heat moves there, compared with the swapped phrase.

    Columns: identity, side, share of heat on that side under the own and the swapped phrase, and
    their difference `shift`, positive where the model follows the word. Raises ValueError for a
    phrase that names no side, or both.
    """
    rows = []
    for example in tqdm(pairs, desc="swapping sides", mininterval=2):
        side = side_of(example.phrase)
        if side is None:
            raise ValueError(f"{example.phrase!r} names no one side: choose by `one_sided`")
        image = example.framed(model.image_size).array()
        phrases = [example.phrase, swap_sides(example.phrase)]
        own, swapped = ground_batch(model, [image] * 2, phrases, **options)
        shares = [share_of_side(g.heatmap, side) for g in (own, swapped)]
        row = {"image_id": example.image_id, "subject_id": example.subject_id, "side": side}
        rows.append(row | {"own": shares[0], "swapped": shares[1], "shift": shares[0] - shares[1]})
    return pd.DataFrame(rows)


def one_sided(pairs: Sequence[Example]) -> list[Example]:
    """Pairs whose phrase names exactly one side, as a word of its own."""
    return [pair for pair in pairs if side_of(pair.phrase)]


@torch.no_grad()
def reconstruction_psnr(model: Any, images: Any) -> Tensor:
    """Peak signal-to-noise ratio [n], dB, of the autoencoder's reconstruction of images [n, S, S].

    What the autoencoder has never seen, it reconstructs worse.
    """
    pixels = torch.as_tensor(np.asarray(images)).float()[:, None]
    mean, _ = model.image_posterior(pixels)
    error = (model.decode(mean) - pixels.to(mean.device)).square().mean((1, 2, 3))
    return -10 * torch.log10(error).cpu()
