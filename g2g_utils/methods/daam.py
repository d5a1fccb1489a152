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
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from g2g_utils import bbm, sampling
from g2g_utils.attention import Accumulator, Recorder, Seen, Tokens
from g2g_utils.methods.base import HeatMap, Query, no_map
from g2g_utils.methods.registry import DAAMRow, Parts
from g2g_utils.models.protocol import LatentDiffusion
from g2g_utils.text import Filter, PhraseError, PhraseTokens, select_tokens, stack, tokenize

LAYERS = ("down", "up")  # DAAM does not look at the middle block


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


# ---------------------------------------------------------------- on the bench


class HeadSums(Accumulator):
    """Attention summed over timesteps, heads apart: layer -> [b, heads, n, h, w], float32.

    Tokens that are named start at position 0 without gaps. What follows a sample's own is not read.
    """

    def __init__(self, tokens: Tokens | None = None) -> None:
        super().__init__(tokens)
        self.sums: dict[str, Tensor] = {}

    def keep(self, layer: str, seen: Seen) -> None:
        """Add the layer's probabilities of the next timesteps, in float32."""
        summed = seen.probabilities.float().sum(0).movedim(-1, -2)  # b heads n hw
        maps = summed.reshape(*summed.shape[:-1], *seen.size)
        self.sums[layer] = self.sums[layer].add_(maps) if layer in self.sums else maps

    @property
    def nbytes(self) -> int:
        """Bytes of the sums."""
        return sum(t.numel() * t.element_size() for t in self.sums.values())

    def keys(self, b: int) -> list[Tensor]:
        """Sums [n, h, w] of one sample, one of every layer and head."""
        return [head for sums in self.sums.values() for head in sums[b]]


@dataclass(frozen=True, eq=False)
class DAAM:
    """DAAM's map of a phrase's content words, recorded while the U-Net sees the noised image."""

    name: str
    model: LatentDiffusion
    timesteps: int = 50
    filter: Filter = "lexical"
    normalize: bool = False
    batch_size: int = 16  # U-Net rows in one forward
    seed: int = 0

    @property
    def image_size(self) -> int:
        """Side of the model's frame."""
        return int(self.model.image_size)

    def ground(self, queries: Sequence[Query]) -> list[HeatMap]:
        """Heat maps [h, w] at latent resolution, scaled to [0, 1]."""
        found: dict[int, HeatMap] = {}
        asked: list[tuple[int, PhraseTokens, list[int]]] = []
        for row, query in enumerate(queries):
            try:
                asked.append((row, *self._words(query)))
            except PhraseError as error:
                found[row] = no_map(error)
        group = max(1, self.batch_size // self.timesteps)
        for start in range(0, len(asked), group):
            rows, phrases, chosen = zip(*asked[start : start + group], strict=True)
            sums = self._record([queries[row].image for row in rows], phrases)
            for b, row in enumerate(rows):
                found[row] = self._heat_map(sums, b, phrases[b], chosen[b])
        return [found[row] for row in range(len(queries))]

    def _words(self, query: Query) -> tuple[PhraseTokens, list[int]]:
        """A phrase's tokens, and the positions of those that ground."""
        phrase = tokenize(self.model.tokenizer, query.phrase, self.model.max_length)
        return phrase, select_tokens(phrase, self.filter, query.finding)

    def _record(self, images: Sequence[Tensor], phrases: Sequence[PhraseTokens]) -> HeadSums:
        """Attention of image-phrase pairs over all timesteps of ground-truth sampling."""
        sums = HeadSums([range(phrase.end + 1) for phrase in phrases])
        recorder = Recorder(self.model.unet, [sums], len(images), layers=LAYERS, stop=True)
        asked = sampling.Request(
            images=[sampling.check_image(self.model, image) for image in images],
            phrases=[phrase.text for phrase in phrases],
            states=self.model.encode_text(*stack(phrases)),
            timesteps=self.timesteps,
            windows=[range(self.timesteps)],
            seed=self.seed,
            batch_size=self.batch_size,
        )
        sampling.run(self.model, sampling.ground_truth(self.model, asked), lambda _: recorder)
        return sums

    def _heat_map(
        self, sums: HeadSums, b: int, phrase: PhraseTokens, chosen: Sequence[int]
    ) -> HeatMap:
        """The mean map of the chosen tokens of one pair."""
        maps = global_map(sums.keys(b), sums.latent, phrase.end + 1, self.normalize)
        cut = f"cut off: {' '.join(phrase.truncated)}" if phrase.truncated else ""
        return HeatMap(bbm.minmax(maps[list(chosen)].mean(0)).cpu(), note=cut)


def build(parts: Parts, name: str, row: DAAMRow, seed: int | None) -> DAAM:
    """The method of a training arm and seed, with the profile's options that it knows."""
    grounding = parts.config.grounding
    return DAAM(
        name,
        parts.model(row.arm, seed),
        timesteps=grounding.timesteps,
        filter=grounding.filter,
        normalize=row.normalize,
        batch_size=grounding.batch_size,
    )
