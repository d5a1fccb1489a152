"""Pseudo masks of G2D (NeurIPS 2024, section 3.2): from attention to a target for the decoder.

Attention [b, heads, h, w] is averaged over heads, enlarged to the image, cut at a percentile and
smoothed. Arrays in, arrays out; no gradient passes. The paper's body mask and bilateral filter are
absent from the authors' code; `compat="published"` is without them.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

BODY_LEVEL = 0.08  # grey in [0, 1] above which a pixel may be body; lungs are dark, so not Otsu's
COLOUR = 0.5  # width of the bilateral filter's colour term; below 0.2 identity, above 2 a blur


def aggregate(attention: Tensor) -> Tensor:
    """Mean over heads, [b, heads, h, w] -> [b, 1, h, w], float32 (half precision has ties)."""
    return attention.detach().float().mean(1, keepdim=True)


def enlarge(maps: Tensor, size: int, how: str = "nearest") -> Tensor:
    """Maps [b, m, h, w] at `size` pixels a side, by "nearest" neighbour or "bilinear"."""
    options = {"align_corners": False} if how == "bilinear" else {}
    return F.interpolate(maps, size=(size, size), mode=how, **options)


def body_mask(images: Tensor, level: float = BODY_LEVEL) -> Tensor:
    """Body [b, H, W], bool, of grey images [b, H, W] in [0, 1].

    The largest connected part above `level`, its holes filled. All pixels of an image that has none
    above `level`.
    """
    found = np.ones(tuple(images.shape), bool)
    for k, bright in enumerate((images > level).numpy()):
        parts, count = ndimage.label(bright)
        if count:
            largest = np.bincount(parts.ravel())[1:].argmax() + 1
            found[k] = ndimage.binary_fill_holes(parts == largest)
    return torch.from_numpy(found)


def quantile_mask(
    maps: Tensor,
    share: float | None,
    body: Tensor | None = None,
    of: str = "whole",
    strict: bool = True,
) -> Tensor:
    """Pixels of maps [b, m, H, W] above their own quantile `share`, bool.

    Args:
        share: of the values below the threshold (linear interpolation); None: the mean instead.
        body: [b, H, W], bool: scores outside become 0 and are never foreground.
        of: "whole": quantile of the whole map, zeros outside the body included; "body": of the
            scores within the body.
        strict: > the threshold; False: >=.
    """
    if body is not None:
        maps = maps * body[:, None]
    flat = maps.flatten(2)  # b m hw
    if of == "body" and body is not None:
        inside = body[:, None].expand_as(maps).flatten(2)
        flat = flat.masked_fill(~inside, math.nan)
    edge = flat.nanmean(2) if share is None else torch.nanquantile(flat, share, dim=2)
    edge = edge[..., None, None]
    mask = maps > edge if strict else maps >= edge
    return mask if body is None else mask & body[:, None]


def mixture_edge(values: Tensor, iterations: int = 50) -> Tensor:
    """Thresholds [b]: the mean of two Gaussians' means, fitted to the values of each row [b, n].

    Expectation-maximisation from the means of the lower and upper half.
    """
    x = values.double()
    low, high = x.amin(1, keepdim=True), x.amax(1, keepdim=True)
    x = (x - low) / (high - low).clamp(min=1e-12)
    share = (x > x.median(1, keepdim=True).values).double()  # of the second Gaussian
    for _ in range(iterations):
        part = torch.stack([1 - share, share])  # 2 b n
        total = part.sum(2).clamp(min=1e-9)
        mean = (part * x).sum(2) / total
        spread = (part * (x - mean[..., None]).square()).sum(2) / total + 1e-6
        log = total.log()[..., None] - spread.log()[..., None] / 2
        log = log - (x - mean[..., None]).square() / (2 * spread[..., None])
        share = log.softmax(0)[1]
    return mean.mean(0) * (high - low)[:, 0] + low[:, 0]


def bilateral(mask: Tensor, radius: int, space: float, colour: float = COLOUR) -> Tensor:
    """Bilateral filter of masks [..., H, W] of zeros and ones; the border is replicated.

    Weights are Gaussians of distance (width `space`, pixels, cut at `radius`) and of difference
    (width `colour`). Two values have one difference only, so that its weight is one number and the
    filter follows from a Gaussian blur: the result is exact, and separable.
    """
    kernel = torch.exp(
        -torch.arange(-radius, radius + 1, dtype=torch.float64).square() / (2 * space**2)
    ).to(mask.dtype if mask.is_floating_point() else torch.float32)
    ones = mask.to(kernel.dtype).reshape(-1, 1, *mask.shape[-2:])
    padded = F.pad(ones, (radius,) * 4, mode="replicate")
    near = F.conv2d(F.conv2d(padded, kernel[None, None, None]), kernel[None, None, :, None])
    far = kernel.sum() ** 2 - near
    other = math.exp(-1 / (2 * colour**2))  # weight of a pixel of the other value
    inside, outside = near / (near + other * far), other * near / (other * near + far)
    return torch.where(ones > 0.5, inside, outside).view(mask.shape)


def pseudo_mask(
    attention: Tensor,
    size: int,
    *,
    quantile: float | None = 0.85,
    mixture: bool = False,
    how: str = "nearest",
    body: Tensor | None = None,
    of: str = "whole",
    smooth: bool = True,
    per_head: bool = False,
    compat: str | None = None,
) -> Tensor:
    """Pseudo masks [b, 1, S, S] in [0, 1] of attention [b, heads, h, w].

    Args:
        size: S, side of the image in pixels.
        quantile: share of the map below the threshold; None: the threshold is the map's mean.
        mixture: the threshold is that of two Gaussians instead (`mixture_edge`).
        how: enlarges by "nearest" neighbour or "bilinear".
        body: [b, S, S], bool; None: the whole image.
        of: see `quantile_mask`.
        smooth: bilateral filter, its width half a cell of the attention.
        per_head: cut every head's map on its own: [b, heads, S, S].
        compat: "published": no body, no smoothing, as the authors' code.
    """
    if compat not in (None, "published"):
        raise ValueError(f'compat={compat!r}: None or "published"')
    if compat == "published":
        body, smooth = None, False
    maps = attention.detach().float() if per_head else aggregate(attention)
    large = enlarge(maps, size, how)
    if mixture:
        edge = mixture_edge(maps.flatten(2).flatten(0, 1)).view(*maps.shape[:2], 1, 1)
        mask = large > edge if body is None else (large > edge) & body[:, None]
    else:
        mask = quantile_mask(large, quantile, body, of)
    if not smooth:
        return mask.float()
    space = size / attention.shape[-1] / 2
    return bilateral(mask.float(), max(1, round(2 * space)), space)
