"""Grounding metrics as Vilouras et al. compute them, for numbers of that family of papers.

They differ from `metrics`, so their names begin with `vilouras_`: the map is taken as it is and not
min-max scaled; boxes are counted one by one, in the frame of the original image; what the centre
crop removed is NaN there. The contrast-to-noise ratio depends on the order of the boxes, its
variances are biased, and a constant map inside and outside gives 3.4e38. AUC has five thresholds.
Source: the authors' code (MIT), by its description; see docs/methods.md.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from g2g_utils.metrics import THRESHOLDS, Boxes

METRICS = ("vilouras_cnr", "vilouras_abs_cnr", "vilouras_miou", "vilouras_auc")
CUTS = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the AUC

Array = NDArray[np.float32]
Slices = tuple[slice, slice]


def to_original(heat: Tensor, height: int, width: int) -> Array:
    """Map [height, width] in an image's frame of a map [s, s] of its centred square.

    Nearest pixels; NaN where the crop removed the image.
    """
    side = min(height, width)
    square = F.interpolate(heat[None, None].float(), size=(side, side), mode="nearest")[0, 0]
    frame = np.full((height, width), np.nan, dtype=np.float32)
    top, left = (height - side) // 2, (width - side) // 2
    frame[top : top + side, left : left + side] = square.cpu().numpy()
    return frame


def evaluate(heat: Array, boxes: Boxes) -> dict[str, float]:
    """All four metrics of a map [H, W] in the frame of its boxes [x, y, w, h]; NaN: no map there.

    NaN for all where there are no boxes.
    """
    places = _slices(boxes)
    if not places:
        return dict.fromkeys(METRICS, np.nan)
    ratios = contrast_to_noise(heat, places)
    return {
        "vilouras_cnr": float(np.mean(ratios)),
        "vilouras_abs_cnr": float(np.mean(np.abs(ratios))),
        "vilouras_miou": threshold_iou(heat, places),
        "vilouras_auc": binned_auc(heat, places),
    }


def contrast_to_noise(heat: Array, places: list[Slices]) -> list[float]:
    """Ratio of every box, in order: (mean in - mean out) / sqrt(var in + var out), biased.

    Outside is every pixel but the box and those before it; boxes after it count as outside. An
    undefined ratio is 0, an infinite one the largest float32.
    """
    left, found = heat.astype(np.float64), []
    for place in places:
        inside = _finite(left[place])
        left[place] = np.nan
        outside = _finite(left)
        found.append(_ratio(inside, outside))
    return found


def threshold_iou(heat: Array, places: list[Slices]) -> float:
    """Mean IoU of the map above 0.1 ... 0.5, not rescaled, with the union of the boxes."""
    target, scores = _union(heat, places), []
    for threshold in THRESHOLDS:
        mask = heat > np.float32(threshold)  # NaN is never above
        either = int((mask | target).sum())
        scores.append((mask & target).sum() / either if either else np.nan)
    return float(np.mean(scores))


def binned_auc(heat: Array, places: list[Slices]) -> float:
    """Area under the ROC curve through five thresholds; one half if a class is empty.

    Pixels without a map, and those below 0, drop out of both classes.
    """
    target = _union(heat, places)
    above = [heat >= np.float32(cut) for cut in reversed(CUTS)]
    hits = np.array([0] + [int((mask & target).sum()) for mask in above], dtype=float)
    alarms = np.array([0] + [int((mask & ~target).sum()) for mask in above], dtype=float)
    if not hits[-1] * alarms[-1]:
        return 0.5
    area = (np.diff(alarms) * (hits[1:] + hits[:-1]) / 2).sum()
    return float(area / (hits[-1] * alarms[-1]))


def _slices(boxes: Boxes) -> list[Slices]:
    """Rows and columns of boxes, whole pixels, cut at the frame's origin."""
    rows = np.rint(np.asarray(boxes, dtype=float).reshape(-1, 4)).astype(int)
    return [
        (slice(max(y, 0), max(y + h, 0)), slice(max(x, 0), max(x + w, 0))) for x, y, w, h in rows
    ]


def _union(heat: Array, places: list[Slices]) -> NDArray[np.bool_]:
    """Pixels of any box."""
    target = np.zeros(heat.shape, dtype=bool)
    for place in places:
        target[place] = True
    return target


def _finite(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return values[~np.isnan(values)]


def _ratio(inside: NDArray[np.float64], outside: NDArray[np.float64]) -> float:
    """Contrast over noise of two sets of values."""
    if not (len(inside) and len(outside)):
        return 0.0
    contrast, noise = inside.mean() - outside.mean(), np.sqrt(inside.var() + outside.var())
    if noise == 0:
        return float(np.sign(contrast) * np.finfo(np.float32).max)
    return float(contrast / noise)


def in_original(heat: Tensor, boxes: Boxes, height: int, width: int) -> dict[str, float]:
    """All four metrics of a map [s, s] of a centred square; boxes are pixels of the whole image."""
    return evaluate(to_original(torch.as_tensor(heat), height, width), boxes)
