"""The baseline of benchmarks/attention.py: store everything, guidance on, text bias always.

Written from the description of the published code. An unconditional half runs with ground-truth
(GT) sampling and with text bias, one timestep per forward (2T + 2T rows per pair). Every layer,
also self-attention, runs un-fused (diffusers' `AttnProcessor`). The maps of all tokens,
cross-attention layers and timesteps are upsampled and kept in float16. The text bias is sampled
whether or not it is used. It draws the same noise as `g2g_utils.grounding`, so that the maps can be
compared.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor

from g2g_utils import bbm, sampling
from g2g_utils.attention import find_layers, native_size, upsample
from g2g_utils.masks import gmm_mask
from g2g_utils.models.protocol import LatentDiffusion
from g2g_utils.text import PhraseTokens, tokenize

Stored = dict[str, list[Tensor]]  # layer -> one [tokens, H, W], float16, a timestep


@contextmanager
def storing(unet: Any, latent: tuple[int, int]) -> Iterator[Stored]:
    """Run all attention un-fused and keep the conditional row's maps of every cross-attention."""
    originals, layers = unet.attn_processors, find_layers(unet)
    stored: Stored = {name: [] for name in layers}
    unet.set_attn_processor(AttnProcessor())
    for name, attn in layers.items():
        attn.get_attention_scores = _keep(attn, stored[name], latent)
    try:
        yield stored
    finally:
        for attn in layers.values():
            del attn.get_attention_scores
        unet.set_attn_processor(originals)


def _keep(attn: Any, kept: list[Tensor], latent: tuple[int, int]) -> Any:
    """`attn.get_attention_scores` that also keeps the maps of the last (conditional) row."""
    plain = attn.get_attention_scores

    def scores(query: Tensor, key: Tensor, mask: Tensor | None = None) -> Tensor:
        probs = plain(query, key, mask)  # rows*heads hw n
        mean = probs.unflatten(0, (-1, attn.heads))[-1].mean(0).T  # n hw
        native = mean.unflatten(-1, native_size(mean.shape[-1], latent))
        kept.append(upsample(native, latent).half())
        return probs

    return scores


@torch.no_grad()
def ground(
    model: LatentDiffusion,
    image: Tensor,
    phrase: str,
    tokens: Sequence[int],
    timesteps: int,
    text_guidance: float = 16.0,
    curve: bbm.Curve = "mixture",
) -> dict[str, Any]:
    """Maps [H, W] with and without bias merging, the seconds of each, and bytes kept for maps.

    Keys: activation, heatmap (merged), interaction, confidence, seconds_without, seconds, nbytes.
    """
    start = now()
    words = tokenize(model.tokenizer, phrase, model.max_length)
    states = model.encode_text(words.input_ids, words.attention_mask)
    image_maps = _ground_truth(model, image, states, timesteps)
    text_maps = _text(model, words, states, timesteps, text_guidance)
    activation = bbm.minmax(image_maps[:, :, tokens].float().mean((0, 1, 2)))
    gmm_mask(activation.cpu())
    without = now()
    image_bias, text_bias = image_maps[:, :, 0], text_maps[:, :, tokens]  # t l H W, t l s H W
    interaction = bbm.interaction(image_bias, text_bias)
    means = image_bias.float().mean((0, 1)), text_bias.float().mean((0, 1, 2))
    confidence = bbm.confidence(*means)
    heatmap = bbm.minmax(bbm.merge(activation, interaction, confidence, curve))
    gmm_mask(heatmap.cpu())
    return {
        "activation": activation.cpu(),
        "heatmap": heatmap.cpu(),
        "interaction": interaction.cpu(),
        "confidence": confidence,
        "seconds_without": without - start,
        "seconds": now() - start,
        "nbytes": 2 * (image_maps.numel() + text_maps.numel()),
    }


def _ground_truth(model: LatentDiffusion, image: Tensor, states: Tensor, timesteps: int) -> Tensor:
    """Maps [T, L, n, H, W] under GT sampling; half of the rows and all predictions are unused."""
    images = sampling.posterior(model, [sampling.check_image(model, image)])
    both = torch.cat([sampling.empty_states(model), states])
    with storing(model.unet, model.latent_shape[1:]) as stored:
        for t in sampling.timesteps(model, timesteps):
            latents, _ = sampling.noised(model, images, t, 0)
            model.unet(latents.repeat(2, 1, 1, 1), t, both)
    return _stacked(stored)


def _text(
    model: LatentDiffusion, words: PhraseTokens, states: Tensor, timesteps: int, guidance: float
) -> Tensor:
    """Maps [T, L, n, H, W] while sampling from noise under guidance."""
    start = sampling.noise(model, (0, words.text, "text bias"))[None]
    with storing(model.unet, model.latent_shape[1:]) as stored:
        sampling.run(model, sampling.denoise(model, start, states, timesteps, guidance))
    return _stacked(stored)


def _stacked(stored: Stored) -> Tensor:
    """Maps [T, L, n, H, W] of what was stored by layer."""
    return torch.stack([torch.stack(maps) for maps in stored.values()], 1)


def now() -> float:
    """Seconds on a clock: a GPU's wall time once it has finished, else CPU time of this process."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()
