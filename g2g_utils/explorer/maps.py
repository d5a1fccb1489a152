"""The explorer's capture of a pair: every attention map once, in columns. No widgets.

For any choice of tokens, layers and timesteps the answer is a mean over some of the maps, taken by
`AttentionMaps`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TypedDict

import torch
from torch import Tensor

from g2g_utils import bbm, grounding
from g2g_utils.attention import AttentionMaps, block_of
from g2g_utils.models.protocol import LatentDiffusion
from g2g_utils.plots import overlays
from g2g_utils.text import PhraseTokens

Progress = Callable[[str, int, int], None]  # what, done, total


@dataclass(frozen=True, eq=False)
class Capture:
    """Every map of a phrase: in an image (ground-truth sampling) or sampled from noise.

    maps: float16. Its columns N are the token positions start ... end and then, where there is
    padding, one for the mean of all padding positions.
    """

    phrase: PhraseTokens
    maps: AttentionMaps

    @property
    def nbytes(self) -> int:
        """Memory of the maps."""
        return self.maps.nbytes

    @property
    def layers(self) -> tuple[str, ...]:
        """Layer names in forward order."""
        return self.maps.layers

    @property
    def timesteps(self) -> tuple[int, ...]:
        """All T timesteps, noisiest first."""
        return self.maps.timesteps

    @property
    def columns(self) -> int:
        """Number of columns N."""
        return self.phrase.end + 1 + bool(self.phrase.padding)

    @property
    def padding_column(self) -> int | None:
        """The column of the padding, if there is any."""
        return self.phrase.end + 1 if self.phrase.padding else None

    def weight(self, column: int) -> int:
        """Number of token positions in a column."""
        return self.maps.counts[column]

    def positions(self, columns: Sequence[int]) -> list[int]:
        """Token positions of columns, as `grounding.ground(tokens=...)` takes them."""
        padding = self.padding_column
        return [p for c in columns for p in (self.phrase.padding if c == padding else (c,))]


def capture_image(
    model: LatentDiffusion,
    image: grounding.Image,
    phrase: str,
    *,
    timesteps: int,
    seed: int = 0,
    batch_size: int = 16,
    progress: Progress | None = None,
) -> Capture:
    """All maps of a phrase in an image [H, W] in [0, 1]. `progress` counts U-Net forwards."""
    forwards = -(-timesteps // batch_size)
    with _reported(model, "maps", forwards, progress):
        found, words = grounding.record_image(
            model, image, phrase, timesteps=timesteps, seed=seed, batch_size=batch_size
        )
    return _compact(found, words)


def capture_text(
    model: LatentDiffusion,
    phrase: PhraseTokens,
    *,
    timesteps: int,
    text_guidance: float = 16.0,
    seed: int = 0,
    progress: Progress | None = None,
) -> Capture:
    """All maps of a phrase while sampling from noise: the text bias of any tokens."""
    with _reported(model, "text bias", timesteps, progress):
        found = grounding.record_text(
            model, phrase, timesteps=timesteps, text_guidance=text_guidance, seed=seed
        )
    return _compact(found, phrase)


@contextmanager
def _reported(
    model: LatentDiffusion, what: str, total: int, progress: Progress | None
) -> Iterator[None]:
    """Count the forwards of the model's U-Net inside the block."""
    done = 0

    def count(*_: object) -> None:
        nonlocal done
        done += 1
        if progress:
            progress(what, min(done, total), total)

    hook = model.unet.register_forward_pre_hook(count)  # a forward may end early
    try:
        yield
    finally:
        hook.remove()


def _compact(found: AttentionMaps, words: PhraseTokens) -> Capture:
    """Columns of all maps, in float16 on the CPU. The padding becomes its mean."""
    native = {}
    for layer, full in found.items():  # t n h w
        parts = [full[:, : words.end + 1].float()]
        if words.padding:
            parts.append(full[:, list(words.padding)].float().mean(1, keepdim=True))
        native[layer] = torch.cat(parts, 1).half().cpu()
    counts = (*(1,) * (words.end + 1), *((len(words.padding),) if words.padding else ()))
    tokens = tuple(range(len(counts)))
    return Capture(words, replace(found, native=native, tokens=tokens, counts=counts))


# -- reductions -----------------------------------------------------------------------------------


class Over(TypedDict):
    """Axes that a reduction runs over, as `AttentionMaps` takes them."""

    layers: tuple[str, ...]
    steps: range


@dataclass(frozen=True)
class Selection:
    """Columns, layers and a range of timesteps (first and last index) of a capture."""

    columns: tuple[int, ...]
    layers: tuple[str, ...]
    steps: tuple[int, int]

    @property
    def over(self) -> Over:
        """Layers and timesteps as keywords of `AttentionMaps.mean` and its neighbours."""
        return {"layers": self.layers, "steps": range(self.steps[0], self.steps[1] + 1)}


def activation(capture: Capture, chosen: Selection) -> Tensor:
    """Mean map [H, W] over the selection, unscaled: the activation map before min-max."""
    return capture.maps.mean(chosen.columns, **chosen.over)


def merging(image: Capture, text: Capture, chosen: Selection) -> tuple[Tensor, float]:
    """Interaction map M [H, W] and confidence c of the chosen columns and layers.

    As in `grounding.ground`, both biases use all timesteps, whatever the activation uses.
    """
    text_bias = text.maps.by_step(chosen.columns, chosen.layers)
    image_bias = image.maps.by_step([image.phrase.start], chosen.layers)
    products = bbm.Products(list(text_bias.values()), image.maps.size)
    products.add(list(image_bias.values()))
    return products.merging()


# -- names of layers ------------------------------------------------------------------------------


def layer_labels(capture: Capture, short: bool = False) -> tuple[str, ...]:
    """Label of every layer, in forward order, as in all figures: 'up 1.0 (8×8)', short 'up 1.0'."""
    labels = overlays.layer_labels(dict(capture.maps.sizes))
    return tuple(label.rpartition(" ")[0] if short else label for label in labels)


def blocks(capture: Capture) -> dict[str, tuple[int, int]]:
    """Block ("down", "mid", "up") -> its first and last layer in forward order."""
    found: dict[str, tuple[int, int]] = {}
    for i, name in enumerate(capture.layers):
        first = found.get(block_of(name), (i, i))[0]
        found[block_of(name)] = (first, i)
    return found


def resolutions(capture: Capture) -> tuple[int, ...]:
    """Map heights that occur, largest first."""
    return tuple(sorted({height for height, _ in capture.maps.sizes.values()}, reverse=True))
