"""Zero-shot grounding with an off-the-shelf latent diffusion model (Vilouras et al.).

Konstantinos Vilouras, Pedro Sanchez, Alison Q. O'Neil and Sotirios A. Tsaftaris: Zero-Shot Medical
Phrase Grounding with Off-the-shelf Diffusion Models, arXiv 2404.12920 and IEEE JBHI. The authors'
code is MIT (vios-s/ldm-phrase-grounding); nothing of it is here. This is the project's own code,
tested against outputs of theirs.

The film is walked to noise by DDIM inversion under the empty prompt. In the middle of the walk the
U-Net is shown the phrase, and its cross-attention is kept: all layers of the coarsest resolution.
Each (layer, step) map is the mean over the phrase's tokens, min-max scaled, enlarged and averaged;
the mean is blurred, scaled, and set to 0 up to Otsu's threshold. No noise is drawn.

Differences to the authors' code: layers are chosen by the height of their maps, where theirs names
four of the six by number; several heads are averaged (their rule reads one head); the blur is a
share of an attention cell, so that it means the same at every size (2.5 pixels of 32 there); maps
that are constant are left out and counted, where theirs end in NaN; the text encoder gets its
attention mask, as everywhere in this project. A walk costs one row a film and step, a phrase the
rows of the window alone: 239 rows in place of 668 at T = 300, for the same map.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from skimage.filters import threshold_multiotsu
from torch import Tensor, nn

from g2g_utils import metrics, sampling
from g2g_utils.attention import (
    AttentionMaps,
    CrossAttentionRecorder,
    Keep,
    Layers,
    block_of,
    find_layers,
)
from g2g_utils.methods.base import HeatMap, Query, no_map
from g2g_utils.methods.registry import Parts, ZeroShotLDMRow
from g2g_utils.models.protocol import LatentDiffusion
from g2g_utils.text import Filter, PhraseError, PhraseTokens, select_tokens, stack, tokenize

SIGMA = 2.5 / 32  # width of the blur in attention cells: 2.5 pixels of a 512-pixel map of 16 cells


def step_window(count: int) -> range:
    """Steps whose attention is read, counted from the clean end, of an inversion asked for `count`.

    Meant as 40 to 60 % of the walk; over the 334 steps of count = 300 it is 36 to 54 %.
    """
    middle, tenth = count // 2, 10 * count // 100
    return range(middle - tenth, middle + tenth)


def coarsest(unet: nn.Module) -> list[str]:
    """Cross-attention layers with the smallest maps, in forward order."""
    numbers = [re.search(r"(?:^|\.)down_blocks\.(\d+)$", name) for name, _ in unet.named_modules()]
    levels = 1 + max(int(found[1]) for found in numbers if found)
    halvings = {name: _halvings(name, levels) for name in find_layers(unet)}
    return [name for name, count in halvings.items() if count == max(halvings.values())]


def _halvings(layer: str, levels: int) -> int:
    """Times that a layer's maps are smaller than the latents, by its name."""
    if block_of(layer) == "mid":
        return levels - 1
    number = int(layer.split(".")[1])
    return number if block_of(layer) == "down" else levels - 1 - number


def aggregate(
    maps: Iterable[Tensor], side: int, scaled: bool = True
) -> tuple[Tensor | None, int, int]:
    """Mean [side, side] of token-mean maps over layers and steps, each min-max scaled before.

    Args:
        maps: per layer the maps [T, h, w] of its steps.
        side: of the result in pixels; maps are enlarged bilinearly.
        scaled: False averages the maps as they are.

    Returns:
        The mean (None where every map is constant), the number of constant maps, which are left
        out, and the number of all maps.
    """
    large: list[Tensor] = []
    count = 0
    for layer in maps:
        low, high = layer.amin((1, 2), keepdim=True), layer.amax((1, 2), keepdim=True)
        usable = (high > low).flatten()
        shown = ((layer - low) / (high - low) if scaled else layer)[usable]
        count += len(layer)
        large += metrics.resize(shown.float().cpu(), side) if len(shown) else ()
    mean = torch.stack(large).mean(0) if large else None  # in the authors' order, to the last digit
    return mean, count - len(large), count


@dataclass(frozen=True, eq=False)
class Masked:
    """A mean map after blur, min-max scaling and Otsu's threshold."""

    smoothed: Tensor  # h w
    scaled: Tensor  # h w, in [0, 1]
    threshold: float
    mask: Tensor  # h w, bool: above the threshold

    @property
    def heat(self) -> Tensor:
        """The scaled map where it is above the threshold, and 0 elsewhere."""
        return self.scaled * self.mask


def postprocess(mean: Tensor, sigma: float) -> Masked | None:
    """Blur, scale and threshold a mean map [h, w]; None if it is constant or not finite.

    The threshold is scikit-image's for two classes, whose lowest bin has level 1 and not 0: on
    skewed maps one of 256 bins above the textbook's.

    Args:
        mean: the map.
        sigma: of the Gaussian in pixels of the map (mirrored border, cut at 4 sigma); 0: none.
    """
    values = mean.float().cpu().numpy()
    smoothed = gaussian_filter(values, sigma) if sigma else values
    low, high = smoothed.min(), smoothed.max()
    if not high > low:
        return None
    scaled = (smoothed - low) / (high - low)
    threshold = float(threshold_multiotsu(scaled, classes=2)[0])
    mask = torch.from_numpy(scaled > np.float32(threshold))
    return Masked(torch.from_numpy(smoothed), torch.from_numpy(scaled), threshold, mask)


# ---------------------------------------------------------------- on the bench


@dataclass(frozen=True, eq=False, kw_only=True)
class ZeroShotLDM:
    """Attention of the middle of a film's way to noise, as a masked heat map."""

    name: str
    model: LatentDiffusion
    timesteps: int = 300  # sets the spacing of the steps
    sampling: str = "inversion"  # what the U-Net sees, of `sampling.INPUTS`
    layers: Layers | None = None  # None: those of the coarsest resolution
    window: range | None = None  # steps from the clean end; None: `step_window`
    sigma: float = SIGMA  # width of the blur, in cells of the coarsest map
    filter: Filter = "all"  # tokens: every piece of the phrase
    batch_size: int = 16  # U-Net rows in one forward
    films: int = 32  # films that walk together

    @property
    def image_size(self) -> int:
        """Side of the model's frame."""
        return int(self.model.image_size)

    @property
    def steps(self) -> range:
        """Steps whose attention is read, counted from the clean end."""
        return step_window(self.timesteps) if self.window is None else self.window

    @property
    def times(self) -> list[int]:
        """Timesteps of all steps, from the clean end."""
        return sampling.timesteps(self.model, self.timesteps, self.sampling)[::-1]

    @property
    def read(self) -> Layers:
        """Layers whose attention is read."""
        return coarsest(self.model.unet) if self.layers is None else self.layers

    def ground(self, queries: Sequence[Query]) -> list[HeatMap]:
        """Masked heat maps [S, S] in [0, 1]; `mask` is Otsu's."""
        found: dict[int, HeatMap] = {}
        asked: list[tuple[int, PhraseTokens, list[int]]] = []
        for row, query in enumerate(queries):
            try:
                asked.append((row, *self.words(query.phrase, query.finding)))
            except PhraseError as error:
                found[row] = no_map(error)
        for start in range(0, len(asked), self.batch_size):
            rows, phrases, chosen = zip(*asked[start : start + self.batch_size], strict=True)
            maps = self.record([queries[row].image for row in rows], phrases, chosen)
            for row, phrase, one in zip(rows, phrases, maps, strict=True):
                found[row] = self._heat_map(one, phrase)
        return [found[row] for row in range(len(queries))]

    def record(
        self,
        images: Sequence[Tensor],
        phrases: Sequence[PhraseTokens],
        tokens: Sequence[Sequence[int]],
        keep: Keep = "steps",
    ) -> list[AttentionMaps]:
        """Attention of pairs in the window, steps and layers apart, mean over heads.

        Args:
            images: checked or not, [1 or 3, S, S] each.
            phrases: one an image; films that follow each other share their walk.
            tokens: positions that are read, one list a phrase.
            keep: "steps" for the mean over the tokens, "all" for every token.
        """
        count, window = len(self.times), self.steps
        if not 0 <= window.start < window.stop <= count:
            raise ValueError(f"steps {window.start} to {window.stop - 1} of {count}: choose some")
        recorder = CrossAttentionRecorder(
            self.model.unet, tokens, keep, len(images), layers=self.read, dtype=torch.float32,
            stop=self.sampling in sampling.READS_NONE,
        )  # fmt: skip
        request = sampling.Request(
            images=[sampling.check_image(self.model, image) for image in images],
            phrases=[phrase.text for phrase in phrases],
            states=self.model.encode_text(*stack(phrases)),
            timesteps=self.timesteps,
            windows=[range(count - window.stop, count - window.start)],
            batch_size=self.batch_size,
        )
        forwards = sampling.INPUTS[self.sampling](self.model, request)
        sampling.run(self.model, forwards, lambda f: recorder if f.steps else nullcontext())
        return [recorder.sample(b) for b in range(len(images))]

    def blur(self, maps: AttentionMaps) -> float:
        """Width of the Gaussian in pixels of the frame."""
        return self.sigma * self.image_size / min(height for height, _ in maps.sizes.values())

    def words(self, phrase: str, finding: str | None = None) -> tuple[PhraseTokens, list[int]]:
        """A phrase's tokens, and the positions of those that ground."""
        found = tokenize(self.model.tokenizer, phrase, self.model.max_length)
        return found, select_tokens(found, self.filter, finding)

    def _heat_map(self, maps: AttentionMaps, phrase: PhraseTokens) -> HeatMap:
        """The answer to one query from its attention."""
        mean, constant, count = aggregate((m[:, 0] for m in maps.values()), self.image_size)
        sigma = self.blur(maps)
        made = None if mean is None else postprocess(mean, sigma)
        if made is None:
            return no_map(f"constant attention: {constant} of {count} maps")
        said = f"{constant} of {count} attention maps constant: left out" if constant else ""
        cut = f"cut off: {' '.join(phrase.truncated)}" if phrase.truncated else ""
        return HeatMap(
            made.heat,
            mask=made.mask,
            absolute=made.heat,
            note="; ".join(filter(None, (cut, said))),
            details={"sigma": sigma, "otsu": made.threshold},
            capture=made,
        )


def of_row(model: LatentDiffusion, name: str, row: ZeroShotLDMRow, rows: int) -> ZeroShotLDM:
    """The method of a model with the settings of a row; `rows` of the U-Net in one forward."""
    return ZeroShotLDM(
        name=name,
        model=model,
        timesteps=row.timesteps,
        sampling=row.sampling,
        layers=row.layers,
        window=None if row.window is None else range(row.window[0], row.window[1] + 1),
        sigma=row.sigma,
        filter=row.filter,
        batch_size=rows,
    )


def build(parts: Parts, name: str, row: ZeroShotLDMRow, seed: int | None) -> ZeroShotLDM:
    """The method of a training arm and seed."""
    return of_row(parts.model(row.arm, seed), name, row, parts.config.grounding.batch_size)
