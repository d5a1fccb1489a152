"""Grounding metrics of one map (paper section 4, "Metrics").

Maps are [H, W] or [B, H, W] (one answer per map); targets are boolean. The answers in degenerate
cases are fixed: a map with NaN or infinity is a ValueError; an empty or full target has no score
(NaN); a constant map has no CNR and no thresholded IoU (NaN), an AUC of one half, and a pointing
score equal to the target's share; an empty mask has the IoU 0 that follows from its definition.
`evaluate` names the case in `note`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.nn import functional as F

from g2g_utils.bbm import minmax
from g2g_utils.masks import gmm_mask

Size = int | tuple[int, int]
Boxes = Sequence[Sequence[float]] | NDArray[np.floating[Any]] | Tensor
THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5)
METRICS = (
    "cnr",
    "abs_cnr",
    "iou",
    "balanced_iou",
    "threshold_iou",
    "pointing",
    "auc_roc",
    "mask_fraction",
)


# -- targets ----------------------------------------------------------------------------------


def rasterise(
    boxes: Boxes, size: Size, *, source_size: Size | None = None, compat: str | None = None
) -> Tensor:
    """Union [H, W], bool, of boxes [x, y, w, h] in pixels of a frame of `size` (side or (H, W)).

    A pixel belongs to a box that holds its centre, so whole-number boxes are exact slices.

    Args:
        source_size: frame of the boxes, if it is another one; they are scaled as numbers.
        compat: "published" draws the boxes in the source frame and resizes the boolean picture, as
            the published code does: every touched pixel counts, so boxes grow.

    Raises:
        ValueError: a box is not four finite numbers, or has a negative size.
    """
    high, wide = _pair(size)
    source = _pair(source_size or size)
    array = _checked(boxes)
    if compat == "published":
        drawn = _draw(array, source)[None, None].double()
        return F.interpolate(drawn, (high, wide), mode="bilinear", antialias=True)[0, 0] > 0
    if compat is not None:
        raise ValueError(f'compat={compat!r}: None or "published"')
    scale = torch.tensor([wide / source[1], high / source[0]] * 2, dtype=array.dtype)
    return _draw(array * scale, (high, wide))


def _checked(boxes: Boxes) -> Tensor:
    """Boxes as a float64 tensor [n, 4]. Raises ValueError for anything else."""
    array = np.asarray(boxes, dtype=float)
    if array.size and (array.shape[-1] != 4 or array.ndim > 2):
        raise ValueError(f"boxes of shape {array.shape}: write one [x, y, width, height] a box")
    array = array.reshape(-1, 4)
    bad = ~np.isfinite(array).all(1) | (array[:, 2:] < 0).any(1)
    if bad.any():
        first = int(np.flatnonzero(bad)[0])
        raise ValueError(f"box {first} is {array[first].tolist()}: need finite x, y and w, h >= 0")
    return torch.as_tensor(array)


def _draw(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Pixels [H, W] whose centres lie in any of the boxes [n, 4]."""
    y, x = (torch.arange(n, dtype=boxes.dtype) + 0.5 for n in size)
    left, top, wide, high = boxes.T[..., None]  # n 1
    columns = (x >= left) & (x < left + wide)  # n W
    rows = (y >= top) & (y < top + high)  # n H
    inside: Tensor = rows[:, :, None] & columns[:, None, :]
    return inside.any(0)


# -- scores -----------------------------------------------------------------------------------


def contrast_to_noise(heatmap: ArrayLike | Tensor, target: ArrayLike | Tensor) -> float | Tensor:
    """CNR = (mean inside - mean outside) / sqrt(var inside + var outside), signed, unbiased.

    NaN if a side has fewer than two pixels, or the map is constant on both sides.
    """
    heat, inside, single = _flat(heatmap, target)
    (m1, v1), (m0, v0) = _moments(heat, inside), _moments(heat, ~inside)
    return _answer(_ratio(m1 - m0, (v1 + v0).sqrt()), single)


def iou(mask: ArrayLike | Tensor, target: ArrayLike | Tensor) -> float | Tensor:
    """Intersection over union of a mask and a target; NaN for an empty target."""
    mask, target, single = _masks(mask, target)
    score = _ratio((mask & target).sum(-1), (mask | target).sum(-1))
    return _answer(score.masked_fill(~target.any(-1), float("nan")), single)


def balanced_iou(mask: ArrayLike | Tensor, target: ArrayLike | Tensor) -> float | Tensor:
    """(IoU of foreground + IoU of background) / 2, which the paper calls mIoU.

    NaN for an empty or full target. Small masks that miss the target entirely still score well.
    """
    mask, target, single = _masks(mask, target)
    front = _ratio((mask & target).sum(-1), (mask | target).sum(-1))
    back = _ratio((~mask & ~target).sum(-1), (~mask | ~target).sum(-1))
    return _answer(_need_both((front + back) / 2, target), single)


def threshold_iou(
    heatmap: ArrayLike | Tensor,
    target: ArrayLike | Tensor,
    thresholds: Sequence[float] = THRESHOLDS,
) -> float | Tensor:
    """Mean IoU of the min-max scaled map above thresholds. The BioViL line of papers calls it mIoU.

    NaN for an empty target or a constant map.
    """
    if not len(thresholds):
        raise ValueError("threshold IoU needs at least one threshold")
    heat, target, single = _flat(heatmap, target)
    low, high = heat.amin(-1, keepdim=True), heat.amax(-1, keepdim=True)
    scaled = _ratio(heat - low, high - low)  # b hw, NaN where constant
    scores = []
    for threshold in thresholds:
        mask = scaled > threshold
        scores.append(_ratio((mask & target).sum(-1), (mask | target).sum(-1)))
    undefined = (high == low)[:, 0] | ~target.any(-1)
    return _answer(torch.stack(scores).mean(0).masked_fill(undefined, float("nan")), single)


def pointing_game(heatmap: ArrayLike | Tensor, target: ArrayLike | Tensor) -> float | Tensor:
    """Top-1: 1 if the map's maximum lies in the target (of several equal maxima, their share).

    In [0, 1]; NaN for an empty target.
    """
    heat, target, single = _flat(heatmap, target)
    top = heat == heat.amax(-1, keepdim=True)
    share = (top & target).sum(-1).double() / top.sum(-1)
    return _answer(share.masked_fill(~target.any(-1), float("nan")), single)


def auc_roc(heatmap: ArrayLike | Tensor, target: ArrayLike | Tensor) -> float | Tensor:
    """Area under the ROC curve over pixels, ties counted half; NaN for an empty or full target."""
    heat, target, single = _flat(heatmap, target)
    ordered = heat.sort(-1).values
    left = torch.searchsorted(ordered, heat)
    right = torch.searchsorted(ordered, heat, right=True)
    ranks = (left + right + 1).double() / 2  # mean rank of ties, from 1
    inside, outside = target.sum(-1).double(), (~target).sum(-1).double()
    excess = (ranks * target).sum(-1) - inside * (inside + 1) / 2
    return _answer(_need_both(_ratio(excess, inside * outside), target), single)


def evaluate(
    heatmap: Tensor, boxes: Boxes, size: Size, *, mask: Tensor | None = None, seed: int = 0
) -> dict[str, float | str]:
    """All metrics of one heat map [h, w] against the union of its boxes in a frame of `size`.

    The map is min-max scaled and bilinearly upsampled to the frame. The mask (default: `gmm_mask`
    of the map) is upsampled and rounded. `note` names degenerate cases ("" otherwise).

    Raises:
        ValueError: NaN or infinity in the map.
    """
    frame, target = _pair(size), rasterise(boxes, size)
    heatmap = torch.as_tensor(heatmap).detach()
    _finite(heatmap)
    small = gmm_mask(heatmap, seed) if mask is None else _binary(mask)
    heat = resize(minmax(heatmap.cpu().double()), frame)
    large = resize(small.detach().cpu().double(), frame).round().bool()
    cnr = contrast_to_noise(heat, target)
    scores: dict[str, Any] = {
        "cnr": cnr,
        "abs_cnr": abs(cnr),
        "iou": iou(large, target),
        "balanced_iou": balanced_iou(large, target),
        "threshold_iou": threshold_iou(heat, target),
        "pointing": pointing_game(heat, target),
        "auc_roc": auc_roc(heat, target),
        "mask_fraction": large.double().mean(),
    }
    return {name: float(score) for name, score in scores.items()} | {
        "note": _note(heat, large, target),
    }


def resize(maps: Tensor, size: Size) -> Tensor:
    """Maps [..., h, w] bilinearly resized to `size` (align_corners=False, no antialiasing)."""
    flat = maps.reshape(-1, 1, *maps.shape[-2:])
    out = F.interpolate(flat, _pair(size), mode="bilinear", align_corners=False)
    return out.reshape(*maps.shape[:-2], *_pair(size))


def _note(heat: Tensor, mask: Tensor, target: Tensor) -> str:
    cases = {
        "empty target": not target.any(),
        "full target": bool(target.all()),
        "one pixel inside or outside": 1 in (int(target.sum()), int((~target).sum())),
        "constant map": bool(heat.max() == heat.min()),
        "empty mask": not mask.any(),
    }
    return ", ".join(name for name, met in cases.items() if met)


# -- details ----------------------------------------------------------------------------------


def _pair(size: Size) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, int | np.integer) else size
    return int(height), int(width)


def _finite(maps: Tensor) -> None:
    if bad := int((~torch.isfinite(maps)).sum()):
        raise ValueError(f"heat map has {bad} NaN or infinite values: look for the cause upstream")


def _flat(heatmap: object, target: object) -> tuple[Tensor, Tensor, bool]:
    """Maps [b, hw] as float64, targets [b, hw] as bool, and whether there was only one map."""
    heat, goal = torch.as_tensor(heatmap).double(), _binary(target)
    _finite(heat)
    if heat.shape != goal.shape or heat.ndim not in (2, 3):
        raise ValueError(f"map {tuple(heat.shape)} and target {tuple(goal.shape)}: need equal HxW")
    single = heat.ndim == 2
    heat, goal = (x[None] if single else x for x in (heat, goal))
    return heat.flatten(1).contiguous(), goal.flatten(1).to(heat.device), single


def _masks(mask: object, target: object) -> tuple[Tensor, Tensor, bool]:
    flat, goal, single = _flat(_binary(mask), target)
    return flat.bool(), goal, single


def _binary(mask: object) -> Tensor:
    """A mask or target as bool. Numbers other than 0 and 1 are refused, NaN among them."""
    values = torch.as_tensor(mask)
    if values.is_floating_point() and not ((values == 0) | (values == 1)).all():
        raise ValueError("a mask has the values 0 and 1 (or False, True): threshold the map first")
    return values != 0


def _moments(heat: Tensor, where: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased variance [b] of heat [b, hw] over a boolean choice of pixels."""
    number = where.sum(-1)
    mean = _ratio((heat * where).sum(-1), number)
    squares = ((heat - mean[:, None]).square() * where).sum(-1)
    most = heat.masked_fill(~where, -torch.inf).amax(-1)
    flat = most == heat.masked_fill(~where, torch.inf).amin(-1)  # rounding is no variance
    return mean, _ratio(squares.masked_fill(flat, 0), (number - 1).clamp(min=0))


def _ratio(above: Tensor, below: Tensor) -> Tensor:
    """Quotient as float64; NaN (never infinity) for a denominator of 0."""
    zero = below == 0
    quotient = above.double() / below.double().masked_fill(zero, 1)
    return quotient.masked_fill(zero, float("nan"))


def _need_both(score: Tensor, target: Tensor) -> Tensor:
    """Scores [b], NaN where the target [b, hw] is empty or full."""
    return score.masked_fill(~target.any(-1) | target.all(-1), float("nan"))


def _answer(score: Tensor, single: bool) -> float | Tensor:
    return float(score[0]) if single else score
