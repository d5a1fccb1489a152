"""Worth of a dense pre-training: segmentation from few labels, linear and zero-shot classification.

Protocols of G2D (Liu et al., NeurIPS 2024) after MGCA and MedKLIP, and what they leave unsaid: the
encoder is frozen with its BatchNorm statistics; Dice over images with the finding comes first, the
published Dice (1 for an empty image predicted empty) beside it with the row that predicts nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from torch.nn import functional as F

from g2g_utils import models
from g2g_utils.bench import statistics
from g2g_utils.data.record import FINDINGS, Example
from g2g_utils.models.g2d import G2D
from g2g_utils.training import pseudo_masks
from g2g_utils.training.fit import seeded

TASKS = {  # task -> its findings; whether training images without it are thinned to as many
    "opacities": (("Consolidation", "Lung Opacity", "Pneumonia"), False),  # as RSNA
    "pneumothorax": (("Pneumothorax",), True),  # as SIIM-ACR
}
Floats = NDArray[np.float64]


# ---------------------------------------------------------------- scores of masks


def overlaps(mask: Tensor, target: Tensor) -> dict[str, Tensor]:
    """Recall, precision, IoU and Dice [b] of bool masks [b, H, W]; NaN for an empty denominator."""
    a, b = mask.flatten(1), target.flatten(1)
    both, first, second = (x.sum(1).double() for x in (a & b, a, b))
    return {
        "recall": both / second,
        "precision": both / first,
        "iou": both / (first + second - both),
        "dice": 2 * both / (first + second),
    }


def published_dice(mask: Tensor, target: Tensor) -> Tensor:
    """Dice of each image [b] as published: 1 for an empty target predicted empty, 0 otherwise.

    Predicting nothing scores the share of images without the finding.
    """
    return overlaps(mask, target)["dice"].nan_to_num(1.0)


def positive_dice(mask: Tensor, target: Tensor) -> Tensor:
    """Dice of each image [b]; NaN for an empty target."""
    found = overlaps(mask, target)["dice"]
    return found.masked_fill(~target.flatten(1).any(1), float("nan"))


def best_threshold(maps: Tensor, targets: Tensor, count: int = 50) -> float:
    """The threshold with the best mean Dice of maps [n, H, W] above it; choose it on validation."""
    levels = torch.quantile(
        maps.flatten()[:: -(-maps.numel() // 2**20)], torch.linspace(0, 1, count)
    )
    scores = [float(overlaps(maps > t, targets)["dice"].mean()) for t in levels]
    return float(levels[int(np.argmax(scores))])


def crossed(
    differences: Floats, groups: Sequence[str], n: int = 2000, seed: int = 0
) -> statistics.Interval:
    """Mean of paired differences [images, runs], its 95 % interval over patients and over runs.

    Patients and runs (draws of labels, seeds) are resampled independently of each other. NaN where
    an image does not count.

    Raises:
        ValueError: no image counts.
    """
    known = np.isfinite(differences)
    if not known.any():
        raise ValueError("no image counts: the finding is on none of them")
    codes = np.unique(np.asarray(groups), return_inverse=True)[1]
    sums, counts = np.zeros((2, codes.max() + 1, differences.shape[1]))
    np.add.at(sums, codes, np.nan_to_num(differences))
    np.add.at(counts, codes, known)
    rng = np.random.default_rng(seed)
    people, runs = (rng.multinomial(k, np.full(k, 1 / k), n) for k in sums.shape)
    above, below = (((people @ table) * runs).sum(1) for table in (sums, counts))
    with np.errstate(invalid="ignore"):
        low, high = np.nanquantile(above / below, [0.025, 0.975])
    return statistics.Interval(float(sums.sum() / counts.sum()), float(low), float(high))


# ---------------------------------------------------------------- segmentation from few labels


def mixed_loss(logits: Tensor, target: Tensor) -> Tensor:
    """MGCA's loss: 10 focal (γ = 2) − log of the batch's Dice coefficient (smooth 1)."""
    entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    focal = ((1 - torch.exp(-entropy)) ** 2 * entropy).mean()
    chance = logits.sigmoid()
    dice = (2 * (chance * target).sum() + 1) / (chance.sum() + target.sum() + 1)
    return 10 * focal - dice.log()


def task_masks(examples: Sequence[Example], findings: Sequence[str] | None, side: int) -> Tensor:
    """Union [n, S, S], bool, of the masks of some findings; None: of all.

    Raises:
        ValueError: a mask is absent or of another size than the images.
    """
    found = np.zeros((len(examples), side, side), bool)
    for k, example in enumerate(examples):
        for region in example.regions:
            if findings is not None and region.finding not in findings:
                continue
            if region.mask is None or region.mask.shape != (side, side):
                size = "absent" if region.mask is None else "×".join(map(str, region.mask.shape))
                raise ValueError(
                    f"image {example.image_id}: the mask of {region.finding} is {size}, the image "
                    f"{side}×{side}: give every finding a mask of the image's size"
                )
            found[k] |= region.mask
    return torch.from_numpy(found)


def draw_labels(targets: Tensor, count: int, draw: int, thin: bool = False) -> Tensor:
    """Rows of `count` labelled images, the same for every network.

    thin: leave out images without the finding until there are no more than with it.

    Raises:
        ValueError: there are fewer images, or none of the drawn ones has the finding.
    """
    if count > len(targets):
        raise ValueError(f"{count} labels of {len(targets)} images: draw fewer")
    rows = torch.randperm(len(targets), generator=seeded(21, draw))[:count]
    there = targets[rows].flatten(1).any(1)
    if not there.any():
        raise ValueError(
            f"none of the {count} labelled images of draw {draw} has the finding: label more"
        )
    return torch.cat([rows[there], rows[~there][: int(there.sum())]]) if thin else rows


@torch.no_grad()
def levels(network: G2D, images: Tensor) -> list[Tensor]:
    """The frozen encoder's maps of images [n, 1, S, S], in evaluation mode."""
    encoder = network.img_model.encoder.eval()
    found = [encoder.maps(part) for part in torch.split(images, 64)]
    grouped = zip(*found, strict=True)
    return [torch.cat(maps).contiguous(memory_format=torch.channels_last) for maps in grouped]


def fit_decoder(
    network: G2D, maps: Sequence[Tensor], targets: Tensor, *, fresh: bool, draw: int,
    steps: int = 200, batch: int = 16, rate: float = 2e-3,
) -> Any:  # fmt: skip
    """A U-Net of the network, its decoder trained on the encoder's maps; the network is unchanged.

    Args:
        maps: of `levels`, [n, ...] each.
        targets: [n, S, S], bool.
        fresh: start from an untrained decoder, the same for every network ("encoder"); else from
            the pre-trained one ("encoder-decoder").
        draw: seeds the decoder and the batches.
        rate: learning rate of AdamW (weight decay 0.05, as published), cosine to zero.
    """
    unet: Any = deepcopy(network.img_model)
    if fresh or network.shape.targets > 1:
        with models.initialised(draw):
            unet.shape = type(unet.shape)(**{**vars(unet.shape), "targets": 1})
            unet.decoder, unet.segmentation_head = unet.fresh()
    unet.to(memory_format=torch.channels_last)
    unet.encoder.eval().requires_grad_(False)
    for part in (unet.decoder, unet.segmentation_head):
        part.train().requires_grad_(True)
    learned = [p for p in unet.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        rows = torch.randint(len(targets), (batch,), generator=seeded(22, draw, step))
        logits = unet.decode([m[rows] for m in maps])[:, 0]
        loss = mixed_loss(logits, targets[rows].float())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    return unet.eval()


@torch.no_grad()
def predict(unet: Any, maps: Sequence[Tensor]) -> Tensor:
    """Masks [n, S, S], bool: probability above one half."""
    parts = zip(*(torch.split(m, 64) for m in maps), strict=True)
    return torch.cat([unet.decode(part)[:, 0] > 0 for part in parts])


# ---------------------------------------------------------------- classification


def labels(examples: Sequence[Example], findings: Sequence[str] = FINDINGS) -> NDArray[np.bool_]:
    """Findings of images, [n, findings]."""
    there = [{region.finding for region in example.regions} for example in examples]
    return np.array([[finding in found for finding in findings] for found in there])


def macro_auc(truth: NDArray[np.bool_], scores: Floats) -> float:
    """Mean area under the ROC curve over the columns that have both classes."""
    known = [k for k in range(truth.shape[1]) if 0 < truth[:, k].sum() < len(truth)]
    return float(np.mean([roc_auc_score(truth[:, k], scores[:, k]) for k in known]))


def linear_probe(
    train: Floats, truth: NDArray[np.bool_], test: Floats, strength: float = 0.1
) -> Floats:
    """Scores [m, findings] of test features [m, d] by logistic regression on frozen features.

    A column without both classes among the training labels scores 0.
    """
    found = np.zeros((len(test), truth.shape[1]))
    for k in range(truth.shape[1]):
        if 0 < truth[:, k].sum() < len(truth):
            line = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=500))
            found[:, k] = line.fit(train, truth[:, k]).decision_function(test)
    return found


def zero_shot(images: Tensor, positive: Tensor, negative: Tensor) -> Floats:
    """Difference of the cosines to "{finding}" and "no {finding}", [n, findings].

    Args:
        images: pooled vectors [n, d].
        positive, negative: prompts' vectors [findings, d].
    """
    unit = (F.normalize(x, dim=-1) for x in (images, positive, negative))
    films, there, absent = unit
    return (films @ there.T - films @ absent.T).double().numpy()


# ---------------------------------------------------------------- masks against lesions


CUTS: dict[str, dict[str, Any]] = {
    "85th": {},
    "75th": {"quantile": 0.75},
    "median": {"quantile": 0.5},
    "mixture": {"mixture": True},
    "85th, bilinear": {"how": "bilinear"},
}


def mask_scores(
    attention: Tensor, lesions: Tensor, bodies: Tensor | None = None
) -> dict[str, dict[str, Tensor]]:
    """Overlaps [b] of pseudo masks and true lesions by cut; no label was used for the masks.

    "shuffled" is the 85th percentile's mask of another image. Images without a lesion are NaN.

    Args:
        attention: [b, heads, h, w].
        lesions: [b, S, S], bool.
        bodies: [b, S, S], bool.
    """
    size, there = lesions.shape[-1], lesions.flatten(1).any(1)
    found = {}
    for name, options in CUTS.items():
        mask = pseudo_masks.pseudo_mask(attention, size, body=bodies, **options)[:, 0] > 0.5
        found[name] = overlaps(mask, lesions)
        if name == "85th":
            found["shuffled"] = overlaps(mask.roll(1, 0), lesions)
    return {
        name: {k: v.masked_fill(~there, float("nan")) for k, v in scores.items()}
        for name, scores in found.items()
    }


def spread(attention: Tensor) -> dict[str, float]:
    """How far attention [b, heads, h, w] is from a fixed prior, and its heads from each other.

    Returns:
        `between`: share of the variance of the mean map that lies between images; `heads`: mean
        correlation of two heads' maps of one image (NaN for one head).
    """
    maps = attention.mean(1).flatten(1).double()
    maps = maps - maps.mean(1, keepdim=True)
    between = float(maps.var(0, unbiased=False).mean() / maps.square().mean())
    heads = attention.flatten(2).double()
    count = heads.shape[1]
    heads = F.normalize(heads - heads.mean(2, keepdim=True), dim=2)
    near = (heads @ heads.mT).mean(0)
    same = float((near.sum() - near.trace()) / (count * (count - 1))) if count > 1 else float("nan")
    return {"between": between, "heads": same}
