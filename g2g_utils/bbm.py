"""Bimodal Bias Merging (paper section 3.2): refine an activation map by image and text bias.

Image bias B_I: start-token maps under ground-truth sampling. Text bias B_T: content-token maps
while sampling from noise. Pure maths on tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from skimage.metrics import structural_similarity
from torch import Tensor
from torch.nn import functional as F

Curve = Literal["linear", "quadratic", "mixture"]


def minmax(maps: Tensor) -> Tensor:
    """Maps [..., H, W] scaled to [0, 1] each. A constant map holds no contrast and becomes 0."""
    low, high = maps.amin((-2, -1), keepdim=True), maps.amax((-2, -1), keepdim=True)
    spread = high - low
    return (maps - low) / torch.where(spread == 0, torch.ones_like(spread), spread)


def interaction(image_bias: Tensor, text_bias: Tensor) -> Tensor:
    """Interaction map M [H, W] in [0, 1]: minmax of the mean over t, l, s of B_I[t,l] @ B_T[t,l,s].

    A mean of matrix products, not the product of means.

    Args:
        image_bias: [T, L, H, W], upsampled maps.
        text_bias: [T, L, S, H, W] or [T, L, H, W].

    Raises:
        ValueError: maps are not square, so that the product is not defined, or timesteps or layers
            differ.
    """
    text = text_bias.float()
    text = text.mean(2) if text.ndim == 5 else text  # linear in s: average first
    if image_bias.shape != text.shape:
        raise ValueError(f"image bias {tuple(image_bias.shape)} and text bias {tuple(text.shape)}")
    _need_square(image_bias)
    return minmax((image_bias.float() @ text).mean((0, 1)))


def interaction_native(
    image_bias: Sequence[Tensor], text_bias: Sequence[Tensor], size: tuple[int, int]
) -> Tensor:
    """The same M [H, W] from native-resolution maps, one [T, h, w] per layer: see `Products`."""
    products = Products(text_bias, size)
    products.add(image_bias)
    return products.interaction()


class Products:
    """Running sums that give M and the mean image bias of one pair, timestep after timestep.

    Nearest upsampling U by a whole factor f has U^T U = f, so the upsampled maps' product is the
    upsampled product times f. Nothing of size T x L x H x W is ever made, and memory does not grow
    with T.

    Args:
        text_bias: one [T, h, w] per layer in native resolution.
    """

    def __init__(self, text_bias: Sequence[Tensor], size: tuple[int, int]) -> None:
        self.size, self._text, self._steps = size, text_bias, 0
        self._products: list[Tensor] = []  # per layer h w (or H W)
        self._images: list[Tensor] = []  # per layer h w

    def add(self, image_bias: Sequence[Tensor]) -> None:
        """Add the next s timesteps: one [s, h, w] per layer.

        Raises:
            ValueError: shapes differ.
        """
        start, end = self._steps, self._steps + len(image_bias[0])
        text = [maps[start:end] for maps in self._text]
        if [m.shape for m in image_bias] != [m.shape for m in text]:
            raise ValueError("image and text bias differ in layers, timesteps or resolution")
        rows = [self._product(i.float(), t) for i, t in zip(image_bias, text, strict=True)]
        sums = [maps.float().sum(0) for maps in image_bias]
        self._products = _added(self._products, rows)
        self._images, self._steps = _added(self._images, sums), end

    def _product(self, image: Tensor, text: Tensor) -> Tensor:
        """Sum over the timesteps of one layer's upsampled products, before upsampling."""
        text = text.to(image.device).float()
        factor = self.size[0] // image.shape[-2]
        if self.size[0] % image.shape[-2] or self.size[1] % image.shape[-1]:
            image, text, factor = _nearest(image, self.size), _nearest(text, self.size), 1
        _need_square(image)
        return torch.einsum("sij,sjk->ik", image, text) * factor

    def interaction(self) -> Tensor:
        """Interaction map M [H, W] in [0, 1] of all T timesteps."""
        if self._steps != len(self._text[0]):
            raise ValueError(f"{self._steps} of {len(self._text[0])} timesteps were added")
        return minmax(self._mean(self._products))

    def merging(self) -> tuple[Tensor, float]:
        """Interaction map M [H, W] and confidence c of all T timesteps."""
        means = self._mean(self._images), native_mean(self._text, self.size)
        return self.interaction(), confidence(*means)

    def _mean(self, sums: list[Tensor]) -> Tensor:
        shown = [_nearest(s[None] / self._steps, self.size)[0] for s in sums]
        return torch.stack(shown).mean(0)

    @property
    def nbytes(self) -> int:
        """Bytes of the running sums."""
        return sum(t.numel() * t.element_size() for t in (*self._products, *self._images))


def native_mean(maps: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    """Mean [H, W] over timesteps and layers of native-resolution maps, one [T, h, w] per layer."""
    return torch.stack([_nearest(m.float().mean(0)[None], size)[0] for m in maps]).mean(0)


def confidence(image_bias: Tensor, text_bias: Tensor) -> float:
    """Merging confidence c in [0, 1]: structural similarity of the mean biases, negatives cut off.

    Both maps are [H, W], already averaged over timesteps, layers and tokens. They are compared as
    8-bit images by truncation, with scikit-image's defaults.

    Raises:
        ValueError: maps are smaller than its window, or hold NaN or infinity.
    """
    if not (torch.isfinite(image_bias).all() and torch.isfinite(text_bias).all()):
        raise ValueError("bias maps have NaN or infinite values: look for the cause upstream")
    first, second = (
        (minmax(bias.float()) * 255).to(torch.uint8).cpu().numpy()
        for bias in (image_bias, text_bias)
    )
    if min(first.shape) < 7:
        raise ValueError(f"maps of {first.shape} are smaller than the 7 x 7 similarity window")
    return max(0.0, float(structural_similarity(first, second, data_range=255)))


def merge(
    activation: Tensor, interaction: Tensor, confidence: float, curve: Curve = "mixture"
) -> Tensor:
    """Refined map [H, W] on the curve between activation A and interaction M at confidence c.

    linear: (1-c)A + cM; quadratic: (1-c)^2 A + 2c(1-c) A*M + c^2 M; mixture: (1-c)^2 A + c(1-c)(A +
    M + A*M) + c^2 M. The published code runs the mixture, which equals linear plus c(1-c) A*M, so
    it can exceed 1. A is min-max scaled here, the result is not.

    Raises:
        ValueError: maps of different sizes, or a confidence outside [0, 1].
    """
    if activation.shape != interaction.shape:
        raise ValueError(f"maps of {tuple(activation.shape)} and {tuple(interaction.shape)}")
    if not 0 <= confidence <= 1:
        raise ValueError(f"confidence {confidence}: need a number from 0 to 1")
    a, m, c = minmax(activation.float()), interaction.float(), confidence
    if curve == "linear":
        return (1 - c) * a + c * m
    if curve == "quadratic":
        return (1 - c) ** 2 * a + 2 * c * (1 - c) * (a * m) + c**2 * m
    if curve == "mixture":
        return (1 - c) ** 2 * a + c * (1 - c) * (a + m + a * m) + c**2 * m
    raise ValueError(f"curve={curve!r}: choose linear, quadratic or mixture")


def _added(sums: list[Tensor], more: list[Tensor]) -> list[Tensor]:
    """Running sums with another term; the first term starts them."""
    return [a + b for a, b in zip(sums, more, strict=True)] if sums else more


def _nearest(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps [t, h, w] nearest-upsampled to [t, H, W]."""
    return F.interpolate(maps[:, None], size=size, mode="nearest")[:, 0]


def _need_square(maps: Tensor) -> None:
    if maps.shape[-1] != maps.shape[-2]:
        raise ValueError(
            f"bias maps of {tuple(maps.shape[-2:])} are not square: the matrix product of the "
            "interaction map needs square latents; crop the image or use curve=None"
        )
