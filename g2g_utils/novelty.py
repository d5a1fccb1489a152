"""How unlike its training images a picture is: is this a film of the kind the model knows at all?

A grounding model draws a map into anything, a photograph included. Three things show that a
picture is foreign: the autoencoder cannot rebuild it, the U-Net cannot tell the noise from it
without any text, and its latents have other means and spreads. These numbers are compared with
those of training images by their Mahalanobis distance; validation images say what is usual.

A picture that is not flagged is not thereby suitable: a mirrored film is as familiar as the film.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from g2g_utils import information, sampling
from g2g_utils.models.protocol import LatentDiffusion

TIMESTEPS = 8
USUAL = 0.95  # share of the validation images that must not be flagged
SMALLEST = 1e-5  # error of a picture that is rebuilt perfectly


class Rebuilding(LatentDiffusion, Protocol):
    """A latent diffusion model that can also draw its latents."""

    def decode(self, latents: Tensor) -> Tensor:
        """Images [b, 1, S, S] in [0, 1] of scaled latents [b, c, h, w]."""


@torch.no_grad()
def features(model: Rebuilding, image: Tensor | NDArray[np.generic], seed: int = 0) -> Tensor:
    """What the model finds odd about an image, [2 + T + 2c], float32, of c latent channels.

    Logarithms of: the autoencoder's root mean squared error, alone and relative to the image's
    contrast; the mean squared error of the unconditional noise prediction at T = 8 timesteps; the
    standard deviation of every latent channel. And its mean, as it is.

    Args:
        image: [S, S], [1, S, S] or [3, S, S] in [0, 1].
        seed: of the noise.
    """
    pixels = sampling.check_image(model, image)
    latents = sampling.posterior(model, [pixels])
    grey = pixels.mean(0)
    error = (model.decode(latents.mean)[0, 0].float().cpu() - grey).square().mean().sqrt()
    contrast = grey.std().clamp(min=1e-3)
    rebuilt = torch.stack([error, error / contrast]).clamp(min=SMALLEST).log()
    place = latents.mean[0].float().cpu()
    spread = place.std((1, 2)).clamp(min=SMALLEST).log()
    return torch.cat([rebuilt, _noise_errors(model, latents, seed), place.mean((1, 2)), spread])


def _noise_errors(model: LatentDiffusion, latents: sampling.Posterior, seed: int) -> Tensor:
    """Logarithm of the unconditional error at every timestep [T]."""
    times = sampling.timesteps(model, TIMESTEPS)
    shown = [sampling.noised(model, latents, t, seed) for t in times]
    noisy, noise = (torch.cat(parts) for parts in zip(*shown, strict=True))
    empty = sampling.empty_states(model)
    predicted = information.predicted_noise(model, noisy, torch.tensor(times), empty)[:, 0]
    errors: Tensor = (predicted - noise.float()).square().mean((1, 2, 3)).log().cpu()
    return errors


@dataclass(frozen=True, eq=False)
class Novelty:
    """How unlike the training images a picture is."""

    distance: float  # Mahalanobis
    limit: float  # distance beyond which a picture is flagged
    usual: float  # share of the validation images that are at least as far

    @property
    def flagged(self) -> bool:
        """True if the picture is unlike the images that the model was trained on."""
        return self.distance > self.limit


@dataclass(frozen=True, eq=False)
class Reference:
    """Features of training images: mean [F], precision [F, F]; distances of validation images."""

    mean: NDArray[np.float64]
    precision: NDArray[np.float64]
    distances: NDArray[np.float64]  # ascending

    @property
    def limit(self) -> float:
        """The smallest distance that at least `USUAL` of the validation images keep."""
        return float(np.quantile(self.distances, USUAL, method="higher"))

    def distance(self, found: Tensor | NDArray[np.generic]) -> NDArray[np.float64]:
        """Mahalanobis distances of features [..., F]."""
        away = np.asarray(found, np.float64) - self.mean
        squares: NDArray[np.float64] = np.einsum("...i,ij,...j->...", away, self.precision, away)
        distances: NDArray[np.float64] = np.sqrt(squares.clip(0))
        return distances

    def judge(self, found: Tensor | NDArray[np.generic]) -> Novelty:
        """The verdict on the features [F] of one picture."""
        distance = float(self.distance(found))
        farther = float((self.distances >= distance).mean())
        return Novelty(distance, self.limit, farther)

    def as_json(self) -> dict[str, Any]:
        """Numbers that JSON can hold; see `from_json`."""
        arrays = {"mean": self.mean, "precision": self.precision, "distances": self.distances}
        return {name: array.tolist() for name, array in arrays.items()}


def from_json(found: Mapping[str, Any]) -> Reference:
    """The reference that `as_json` wrote."""
    return Reference(*(np.array(found[name]) for name in ("mean", "precision", "distances")))


def fit(training: Sequence[Tensor], validation: Sequence[Tensor]) -> Reference:
    """The reference of a model, from the features of training and validation images.

    The covariance is shrunk by Ledoit and Wolf's rule, so that few images suffice.

    Raises:
        ValueError: fewer than two training images, or no validation image.
    """
    from sklearn.covariance import LedoitWolf

    if len(training) < 2 or not validation:
        count = f"{len(training)} training and {len(validation)} validation images"
        raise ValueError(f"{count}: novelty is calibrated on at least two and one")
    fitted = LedoitWolf().fit(torch.stack(list(training)).numpy())
    rough = Reference(fitted.location_, fitted.get_precision(), np.zeros(1))
    distances = np.sort(rough.distance(torch.stack(list(validation))))
    return Reference(rough.mean, rough.precision, distances)
