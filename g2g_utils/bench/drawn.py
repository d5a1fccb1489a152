"""Scores of drawn films: agreement with the report that asked for them, and a NIQE of this world.

NIQE (Mittal et al. 2013) compares statistics of local contrast with those of good pictures. Its
published parameters are of photographs of more than 190 pixels; here the good pictures are real
training films, patches have 32 pixels (16 at half size), a set of films is scored as one, and no
patch is left out for blur. Numbers compare within one profile alone.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.special import gamma
from torch import Tensor, nn
from torch.nn import functional as F

from g2g_utils.bench import fidelity
from g2g_utils.data.record import FINDINGS

Array = NDArray[np.float64]

PATCH = 32  # pixels of a side at full size
WIDTH = 7 / 6  # deviation of the window of local contrast, in pixels
_SHAPES = np.arange(0.2, 10.0, 0.001)
_RATIOS = gamma(2 / _SHAPES) ** 2 / (gamma(1 / _SHAPES) * gamma(3 / _SHAPES))


# ---------------------------------------------------------------- agreement with a report


@torch.no_grad()
def findings(classifier: nn.ModuleDict, images: Tensor, batch: int = 64) -> list[set[str]]:
    """Findings that the classifier sees (probability above a half) in films [n, 1, S, S]."""
    found = []
    for some in torch.split(images, batch):
        logits = classifier["head"](F.silu(fidelity.features(classifier, some)))
        found += [{f for f, x in zip(FINDINGS, row, strict=True) if x > 0} for row in logits]
    return found


def overlap(seen: Sequence[Collection[str]], asked: Sequence[Collection[str]]) -> Array:
    """F1 [n] of the findings seen in each film against those asked for; 1 where both are none."""
    pairs = [(set(a), set(b)) for a, b in zip(seen, asked, strict=True)]
    return np.array([2 * len(a & b) / (len(a) + len(b)) if a or b else 1.0 for a, b in pairs])


# ---------------------------------------------------------------- NIQE of this world


def local_contrast(images: Array) -> Array:
    """Grey values [n, S, S] in [0, 255] less their local mean, over their local deviation."""
    sigma = (0, WIDTH, WIDTH)
    mean = gaussian_filter(images, sigma, truncate=3 / WIDTH)
    square = gaussian_filter(images**2, sigma, truncate=3 / WIDTH)
    found: Array = (images - mean) / (np.sqrt(np.abs(square - mean**2)) + 1)
    return found


def asymmetric(x: Array) -> Array:
    """Shape, mean, left and right variance [m, 4] of generalised normal samples x [m, k]."""
    left = np.sqrt(_mean(x**2, x < 0))
    right = np.sqrt(_mean(x**2, x > 0))
    skew = left / right
    flat = np.abs(x).mean(1) ** 2 / np.maximum((x**2).mean(1), 1e-12)
    ratio = flat * (skew**3 + 1) * (skew + 1) / (skew**2 + 1) ** 2
    place = np.searchsorted(_RATIOS, ratio).clip(0, len(_SHAPES) - 1)  # ratios grow with the shape
    shape = _SHAPES[place]
    scale = np.sqrt(gamma(1 / shape) / gamma(3 / shape))
    mean = (right - left) * gamma(2 / shape) / gamma(1 / shape) * scale
    return np.stack([shape, mean, left**2, right**2], 1)


def _mean(values: Array, where: NDArray[np.bool_]) -> Array:
    """Mean [m] of the values of a row where it holds; tiny where it holds nowhere."""
    found: Array = (values * where).sum(1) / np.maximum(where.sum(1), 1)
    return np.maximum(found, 1e-6)


def _patch_features(contrast: Array, side: int) -> Array:
    """18 features [n x patches, 18] of patches of local contrast [n, S, S]."""
    n, size = contrast.shape[0], contrast.shape[1] // side * side

    def cut(x: Array) -> Array:
        x = x[:, :size, :size].reshape(n, size // side, side, size // side, side)
        return x.transpose(0, 1, 3, 2, 4).reshape(-1, side * side)

    own = asymmetric(cut(contrast))
    parts = [own[:, :1], (own[:, 2:3] + own[:, 3:]) / 2]
    for shift in ((0, 1), (1, 0), (1, 1), (1, -1)):
        parts.append(asymmetric(cut(contrast * np.roll(contrast, shift, (1, 2)))))
    return np.concatenate(parts, 1)


def statistics_of(images: Array) -> Array:
    """NIQE's 36 features [n x patches, 36] of films [n, S, S] in [0, 1].

    Raises:
        ValueError: films smaller than a patch.
    """
    if images.shape[-1] < PATCH:
        raise ValueError(f"films of {images.shape[-1]} pixels: NIQE's patches have {PATCH}")
    grey = np.asarray(images, np.float64) * 255
    n, side = len(grey), grey.shape[-1] // 2 * 2
    half: Array = grey[:, :side, :side].reshape(n, side // 2, 2, side // 2, 2).mean((2, 4))
    fine = _patch_features(local_contrast(grey), PATCH)
    return np.concatenate([fine, _patch_features(local_contrast(half), PATCH // 2)], 1)


def niqe(images: Array, pristine: Array) -> float:
    """Distance of the features of films [n, S, S] to those of real films [m, 36]; 0: the same."""
    own = statistics_of(images)
    gap = own.mean(0) - pristine.mean(0)
    spread = (np.cov(own, rowvar=False) + np.cov(pristine, rowvar=False)) / 2
    return float(np.sqrt(max(0.0, gap @ np.linalg.pinv(spread) @ gap)))
