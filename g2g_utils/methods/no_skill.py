"""Maps that know nothing of the phrase, the image or both: what any grounding model has to beat.

All return float32 maps [H, W] that go through the same mask and metrics as a model's.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from g2g_utils.metrics import Boxes, Size, rasterise


def random_map(size: tuple[int, int], seed: int = 0) -> Tensor:
    """Uniform noise [H, W] in [0, 1]."""
    return torch.rand(size, generator=torch.Generator().manual_seed(seed))


def centre_prior(size: tuple[int, int], sigma: float = 0.25) -> Tensor:
    """Gaussian [H, W] around the image centre; sigma in image sides."""
    y, x = ((torch.arange(n) + 0.5) / n - 0.5 for n in size)
    return torch.exp(-(y[:, None] ** 2 + x[None] ** 2) / (2 * sigma**2))


def brightness(image: Tensor, size: tuple[int, int]) -> Tensor:
    """The image [1 or 3, S, S] itself, averaged down to [H, W]."""
    return F.adaptive_avg_pool2d(image.float().mean(0, keepdim=True)[None], size)[0, 0]


def mean_box(boxes: Sequence[Boxes], frame: Size, size: tuple[int, int]) -> Tensor:
    """Share of training samples [H, W] whose boxes cover each place.

    boxes: one list of [x, y, w, h] per sample, in pixels of `frame`. Raises ValueError for none.
    """
    if not boxes:
        raise ValueError("mean box of no samples: pass the training examples' boxes")
    total = torch.zeros(size)
    for sample in boxes:
        drawn = rasterise(sample, frame).float()[None, None]
        total += F.adaptive_avg_pool2d(drawn, size)[0, 0]
    return total / len(boxes)


def mean_box_per_finding(
    boxes: Sequence[Boxes], findings: Sequence[str], frame: Size, size: tuple[int, int]
) -> dict[str, Tensor]:
    """Mean training box [H, W] of each finding; one finding per sample."""
    grouped: dict[str, list[Boxes]] = defaultdict(list)
    for sample, finding in zip(boxes, findings, strict=True):
        grouped[finding].append(sample)
    return {finding: mean_box(lists, frame, size) for finding, lists in grouped.items()}
