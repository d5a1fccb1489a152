"""What the explorer keeps of a pair, and the reductions that every control asks for. No widgets.

A `Capture` holds every cross-attention map once; whichever tokens, layers and timesteps are chosen,
the answer is a mean over some of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from g2g_utils import bbm, grounding
from g2g_utils.attention import CrossAttentionRecorder, block_of, upsample
from g2g_utils.text import PhraseTokens

Progress = Callable[[str, int, int], None]  # what, done, total


@dataclass(frozen=True, eq=False)
class Capture:
    """Every map of a phrase: in an image (ground-truth sampling) or sampled from noise.

    maps: layer -> [T, N, h, w], float16, native resolution. Columns N are the token positions
    start ... end and then, where there is padding, one for the mean of all padding positions.
    """

    phrase: PhraseTokens
    maps: dict[str, Tensor]
    timesteps: tuple[int, ...]
    size: tuple[int, int]  # of the latents

    @property
    def nbytes(self) -> int:
        """Memory of the maps."""
        return sum(m.numel() * m.element_size() for m in self.maps.values())

    @property
    def layers(self) -> tuple[str, ...]:
        """Layer names in forward order."""
        return tuple(self.maps)

    @property
    def columns(self) -> int:
        """Number of columns N."""
        return self.phrase.end + 1 + bool(self.phrase.padding)

    @property
    def padding_column(self) -> int | None:
        """The column of the padding, if there is any."""
        return self.phrase.end + 1 if self.phrase.padding else None

    def weight(self, column: int) -> int:
        """How many token positions a column stands for."""
        return len(self.phrase.padding) if column == self.padding_column else 1

    def positions(self, columns: Sequence[int]) -> list[int]:
        """Token positions of columns, as `grounding.ground(tokens=...)` takes them."""
        padding = self.padding_column
        return [p for c in columns for p in (self.phrase.padding if c == padding else (c,))]


def capture_image(
    model: Any,
    image: Any,
    phrase: str,
    *,
    timesteps: int,
    seed: int = 0,
    batch_size: int = 16,
    progress: Progress | None = None,
) -> Capture:
    """All maps of a phrase in an image [H, W] in [0, 1]; progress counts U-Net forwards."""
    forwards = -(-timesteps // batch_size)
    with _reported(model, "maps", forwards, progress):
        recorder, words, times = grounding.record_image(
            model, image, phrase, timesteps=timesteps, seed=seed, batch_size=batch_size
        )
    return _compact(recorder, words, times)


def capture_text(
    model: Any,
    phrase: PhraseTokens,
    *,
    timesteps: int,
    text_guidance: float = 16.0,
    seed: int = 0,
    progress: Progress | None = None,
) -> Capture:
    """All maps of a phrase while sampling from noise: the text bias of whichever tokens."""
    with _reported(model, "text bias", timesteps, progress):
        recorder = grounding.record_text(
            model, phrase, timesteps=timesteps, text_guidance=text_guidance, seed=seed
        )
    return _compact(recorder, phrase, tuple(range(timesteps)))


@contextmanager
def _reported(model: Any, what: str, total: int, progress: Progress | None) -> Iterator[None]:
    """Count the forwards of the model's U-Net while inside."""
    done = 0

    def count(*_: Any) -> None:
        nonlocal done
        done += 1
        if progress:
            progress(what, min(done, total), total)

    hook = model.unet.register_forward_hook(count)
    try:
        yield
    finally:
        hook.remove()


def _compact(
    recorder: CrossAttentionRecorder, words: PhraseTokens, times: tuple[int, ...]
) -> Capture:
    """Columns of a recorder's maps, in float16 on the CPU; the padding becomes its mean."""
    maps = {}
    for layer in recorder.layers:
        full = recorder.native_tokens(layer)[0]  # t n h w
        parts = [full[:, : words.end + 1]]
        if words.padding:
            parts.append(full[:, list(words.padding)].mean(1, keepdim=True))
        maps[layer] = torch.cat(parts, 1).half().cpu()
    return Capture(words, maps, times, recorder.latent_size)


# -- reductions -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Selection:
    """Columns, layers and a range of timesteps (first and last index) of a capture."""

    columns: tuple[int, ...]
    layers: tuple[str, ...]
    steps: tuple[int, int]

    @property
    def span(self) -> slice:
        """The timesteps as a slice."""
        return slice(self.steps[0], self.steps[1] + 1)


def activation(capture: Capture, chosen: Selection) -> Tensor:
    """Mean map [H, W] over the selection, unscaled: the activation map before min-max."""
    return torch.stack(
        [
            upsample(_column_mean(capture, layer, chosen).mean(0)[None], capture.size)[0]
            for layer in chosen.layers
        ]
    ).mean(0)


def token_maps(capture: Capture, chosen: Selection) -> Tensor:
    """Mean map [N, H, W] of every column over the chosen layers and timesteps, unscaled."""
    return torch.stack(
        [
            upsample(capture.maps[layer][chosen.span].float().mean(0), capture.size)
            for layer in chosen.layers
        ]
    ).mean(0)


def token_means(capture: Capture, chosen: Selection) -> Tensor:
    """Mean attention [N] that every column gets over the chosen layers, timesteps and pixels."""
    return torch.stack(
        [capture.maps[layer][chosen.span].float().mean((0, 2, 3)) for layer in chosen.layers]
    ).mean(0)


def grid(capture: Capture, chosen: Selection) -> dict[str, Tensor]:
    """Layer -> maps [t, h, w] of the chosen columns: layers x timesteps, nothing averaged away."""
    return {layer: _column_mean(capture, layer, chosen) for layer in chosen.layers}


def merging(image: Capture, text: Capture, chosen: Selection) -> tuple[Tensor, float]:
    """Interaction map M [H, W] and confidence c of the chosen columns and layers.

    As in `grounding.ground`, both biases use all timesteps, whichever the activation uses.
    """
    every = Selection(chosen.columns, chosen.layers, (0, len(image.timesteps) - 1))
    image_bias = [image.maps[layer][:, image.phrase.start] for layer in chosen.layers]
    text_bias = [_column_mean(text, layer, every) for layer in chosen.layers]
    means = (bbm.native_mean(maps, image.size) for maps in (image_bias, text_bias))
    return bbm.interaction_native(image_bias, text_bias, image.size), bbm.confidence(*means)


def _column_mean(capture: Capture, layer: str, chosen: Selection) -> Tensor:
    """One layer's maps [t, h, w], averaged over the token positions of the chosen columns."""
    columns = list(chosen.columns)
    weights = torch.tensor([capture.weight(c) for c in columns], dtype=torch.float32)
    maps = capture.maps[layer][chosen.span, columns].float()  # t k h w
    return torch.einsum("tkhw,k->thw", maps, weights / weights.sum())


# -- names of layers ------------------------------------------------------------------------------


def layer_labels(capture: Capture, short: bool = False) -> tuple[str, ...]:
    """What to call the layers: position in forward order, block and resolution."""
    return tuple(
        f"{i} {block_of(name)}{m.shape[-2]}"
        if short
        else f"{i} {block_of(name)} {m.shape[-2]}×{m.shape[-1]}"
        for i, (name, m) in enumerate(capture.maps.items(), start=1)
    )


def blocks(capture: Capture) -> dict[str, tuple[int, int]]:
    """Block ("down", "mid", "up") -> its first and last layer in forward order."""
    found: dict[str, tuple[int, int]] = {}
    for i, name in enumerate(capture.layers):
        first = found.get(block_of(name), (i, i))[0]
        found[block_of(name)] = (first, i)
    return found


def resolutions(capture: Capture) -> tuple[int, ...]:
    """Map heights that occur, largest first."""
    return tuple(sorted({m.shape[-2] for m in capture.maps.values()}, reverse=True))
