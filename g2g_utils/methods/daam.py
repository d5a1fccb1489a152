"""DAAM's word heat maps on ground-truth sampling (Tang et al., "What the DAAM", ACL 2023).

DAAM explains images that a diffusion model draws: it sums the cross-attention of every layer and
head over the steps, enlarges each sum, and averages them. Here the same aggregation runs on the
attention that G2G records on the noised latents of a real image. The differences to G2G's own
aggregation are bicubic enlargement with a clamp at 0 in place of nearest, heads enlarged one by
one, the middle block left out, and all timesteps.

D_j = 1/|K| Σ_{k in K} max(0, bicubic(Σ_t P_{k,t,j})) for token j, where K are layers × heads and P
the attention probabilities.

Source: github.com/castorini/daam (MIT), read at 09564e0; this is an implementation of its own,
tested against vectors of the authors' code.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor
from torch.nn import functional as F


def enlarge(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Enlarge maps [..., h, w] to [..., H, W]: bicubic, clamped at 0; same size: unchanged."""
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    return _bicubic(maps, size).clamp(min=0)


def global_map(
    sums: Iterable[Tensor], size: tuple[int, int], tokens: int, normalize: bool = False
) -> Tensor:
    """The map of every token [tokens, H, W]: unweighted mean over the enlarged keys.

    Args:
        sums: per layer and head the attention [n, h, w] of all n tokens, summed over the timesteps.
        size: height and width of the latents.
        tokens: number of tokens from start to end, both counted; padding is cut off.
        normalize: divide each pixel by its sum over the tokens between start and end.

    Raises:
        ValueError: where `sums` is empty.
    """
    keys = list(sums)
    if not keys:
        raise ValueError("no attention to aggregate: choose layers and heads that exist")
    total = enlarge(keys[0][:tokens], size).clone()
    for maps in keys[1:]:
        total += enlarge(maps[:tokens], size)
    mean = total / len(keys)
    return mean / (mean[1:-1].sum(0, keepdim=True) + 1e-6) if normalize else mean


def word_tokens(pieces: Sequence[str], word: Sequence[str]) -> list[int]:
    """Token positions of every occurrence of a word's pieces in a prompt's pieces.

    A sequence of several words matches only as a whole.

    Args:
        pieces: the prompt's pieces, lower case, without marks of word ends and without special
            tokens. Position 0 is the start token.
        word: the word's pieces, likewise.

    Raises:
        ValueError: the word does not occur.
    """
    wanted, n = list(word), len(word)
    starts = [i for i in range(len(pieces) - n + 1) if list(pieces[i : i + n]) == wanted]
    if not wanted or not starts:
        raise ValueError(f"{' '.join(wanted)!r} does not occur in {' '.join(pieces)!r}")
    return [1 + start + k for start in starts for k in range(n)]


def expand_as(
    heat: Tensor,
    size: tuple[int, int],
    *,
    absolute: bool = False,
    threshold: float | None = None,
    compat: str | None = None,
) -> Tensor:
    """A word map in an image's frame [H, W], scaled to [0, 1] unless `absolute`.

    Args:
        heat: map [h, w] at latent resolution.
        size: height and width of the image.
        absolute: keep the values, with the overshoot of the enlargement.
        threshold: give 1 above it and 0 elsewhere; None or 0: no threshold.
        compat: "published" takes height for width, so that maps of images that are not square
            come out transposed in shape, as they do from the authors' code.
    """
    if compat == "published":
        size = (size[1], size[0])
    expanded = _bicubic(heat, size)
    if not absolute:
        low, high = expanded.aminmax()
        expanded = (expanded - low) / (high - low + 1e-8)
    return (expanded > threshold).float() if threshold else expanded


def _bicubic(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Bicubic [..., H, W] of [..., h, w]: a = -0.75, half-pixel centres, no antialiasing."""
    flat = maps.float().reshape(-1, 1, *maps.shape[-2:])
    out = F.interpolate(flat, size=size, mode="bicubic", align_corners=False)
    return out.reshape(*maps.shape[:-2], *size)
