"""Foreground masks of heat maps (paper section 3.3): Gaussian mixture, then an orphan filter."""

from __future__ import annotations

import math
import warnings

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from g2g_utils.bbm import minmax

TOLERANCE = 1e-3  # of the mean log-likelihood's change: EM ends
ITERATIONS = 100  # of EM at most
FLOOR = 1e-6  # added to the variances

Parameters = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]


def gmm_mask(heatmap: Tensor, seed: int = 0) -> Tensor:
    """Foreground [H, W], bool: values strictly above the mean of the two Gaussians' means.

    The mixture is fitted to the min-max scaled map at its own (latent) resolution; then orphan
    pixels are removed. A constant map has no foreground: the mask is empty.

    Raises:
        ValueError: the map is not 2-D, or holds NaN or infinity.
    """
    heatmap = torch.as_tensor(heatmap).detach()
    if heatmap.ndim != 2:
        raise ValueError(f"need one finite map [H, W], got {tuple(heatmap.shape)}")
    if bad := int((~torch.isfinite(heatmap)).sum()):
        raise ValueError(f"need one finite map [H, W]: {bad} values are NaN or infinite")
    scaled = minmax(heatmap.float().cpu())
    if scaled.max() == scaled.min():
        return torch.zeros(heatmap.shape, dtype=torch.bool, device=heatmap.device)
    _, means, _ = mixture(scaled, seed)
    return remove_orphans((scaled > float(np.mean(means))).to(heatmap.device))


def components(heatmap: Tensor, seed: int = 0) -> NDArray[np.float64]:
    """Means, standard deviations and weights [3, 2] of the mixture that `gmm_mask` fits.

    The background, with the lower mean, comes first. The cut is the mean of the two means.
    """
    weights, means, deviations = mixture(
        minmax(torch.as_tensor(heatmap).detach().float().cpu()), seed
    )
    return np.array([means, deviations, weights], float)[:, means.argsort()]


def mixture(scaled: Tensor, seed: int = 0) -> Parameters:
    """Weights, means and deviations [2] of a mixture of two Gaussians, by EM from 2-means.

    They are those of `sklearn.mixture.GaussianMixture(2, random_state=seed)` to the last digit: the
    same operations in float32, without the checks that take most of its time on a small map.

    Args:
        scaled: map [H, W] in [0, 1], whose values are the sample.
        seed: of 2-means.
    """
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    x = scaled.reshape(-1, 1).numpy()  # n 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # maps of one value, but for rounding
        labels = KMeans(2, n_init=1, random_state=seed).fit(x).labels_
    fitted = _maximised(x, np.eye(2, dtype=x.dtype)[labels])
    bound = -math.inf
    for _ in range(ITERATIONS):
        likelihood, shares = _expected(x, *fitted)
        fitted = _maximised(x, shares)
        before, bound = bound, likelihood
        if abs(bound - before) < TOLERANCE:
            break
    return fitted


def _maximised(x: NDArray[np.float32], shares: NDArray[np.float32]) -> Parameters:
    """M step: weights, means and deviations [2] from values [n, 1] and their shares [n, 2]."""
    counts = shares.sum(0) + 10 * np.finfo(x.dtype).eps
    means = (shares.T @ x)[:, 0] / counts
    variances = np.empty_like(means)
    for k in range(2):
        away = x - means[k]
        variances[k] = ((shares[:, k] * away.T) @ away)[0, 0] / counts[k]
    return counts / counts.sum(), means, np.sqrt(variances + np.float32(FLOOR))


def _expected(
    x: NDArray[np.float32],
    weights: NDArray[np.float32],
    means: NDArray[np.float32],
    deviations: NDArray[np.float32],
) -> tuple[float, NDArray[np.float32]]:
    """E step: mean log-likelihood, and each Gaussian's share [n, 2] of every value."""
    scales = 1 / deviations
    away = x * scales - means * scales
    logs = -0.5 * (math.log(2 * math.pi) + away * away) + np.log(scales) + np.log(weights)
    low, high = np.minimum(logs[:, 0], logs[:, 1]), np.maximum(logs[:, 0], logs[:, 1])
    total = np.log1p(np.exp(low - high)) + high
    return float(total.mean()), np.exp(logs - total[:, None])


def remove_orphans(mask: Tensor) -> Tensor:
    """Mask [H, W] after a majority vote: >= 5 of a 3 x 3 neighbourhood. The border stays."""
    if min(mask.shape) < 3:
        return mask.clone()  # all border
    kernel = torch.ones(1, 1, 3, 3, device=mask.device)
    votes = F.conv2d(mask[None, None].float(), kernel)[0, 0]  # interior only
    out = mask.clone()
    out[1:-1, 1:-1] = votes > 4.5
    return out
