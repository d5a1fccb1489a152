"""Foreground masks of heat maps (paper section 3.3): Gaussian mixture, then an orphan filter."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from torch import Tensor
from torch.nn import functional as F

from g2g_utils.bbm import minmax


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
    cut = float(np.mean(_fitted(scaled, seed).means_))
    return remove_orphans((scaled > cut).to(heatmap.device))


def components(heatmap: Tensor, seed: int = 0) -> NDArray[np.float64]:
    """Means, standard deviations and weights [3, 2] of the mixture that `gmm_mask` fits.

    The background, with the lower mean, comes first. The cut is the mean of the two means.
    """
    mixture = _fitted(minmax(torch.as_tensor(heatmap).detach().float().cpu()), seed)
    rows = [mixture.means_[:, 0], mixture.covariances_[:, 0, 0] ** 0.5, mixture.weights_]
    return np.array(rows)[:, mixture.means_[:, 0].argsort()]


def _fitted(scaled: Tensor, seed: int) -> GaussianMixture:
    """A mixture of two Gaussians, fitted to the values of a map [H, W] in [0, 1]."""
    mixture = GaussianMixture(2, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # maps of only two values
        return mixture.fit(scaled.reshape(-1, 1).numpy())


def remove_orphans(mask: Tensor) -> Tensor:
    """Mask [H, W] after a majority vote: >= 5 of a 3 x 3 neighbourhood. The border stays."""
    if min(mask.shape) < 3:
        return mask.clone()  # all border
    kernel = torch.ones(1, 1, 3, 3, device=mask.device)
    votes = F.conv2d(mask[None, None].float(), kernel)[0, 0]  # interior only
    out = mask.clone()
    out[1:-1, 1:-1] = votes > 4.5
    return out
