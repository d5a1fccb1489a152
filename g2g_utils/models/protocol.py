"""The part of a latent diffusion model that grounding reads, as a type.

`GroundingModel` fits it, and so does any object with these attributes, for example a small one of a
test. Nothing inherits from it.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn


class LatentDiffusion(Protocol):
    """Tokenizer, text encoder, U-Net and noise schedule, with the image's way into the latents.

    Images are float [b, 1 or 3, S, S] in [0, 1]; latents are [b, c, h, w], already scaled.
    """

    @property
    def tokenizer(self) -> Any:
        """Fast tokenizer of the text encoder."""

    @property
    def text_encoder(self) -> nn.Module:
        """Text encoder; read only to notice that its weights changed."""

    @property
    def unet(self) -> nn.Module:
        """Denoising U-Net: called with latents, timesteps and text states, returns `.sample`."""

    @property
    def scheduler(self) -> Any:
        """Noise schedule; its `config` makes the DDIM scheduler of every run."""

    @property
    def image_size(self) -> int:
        """Side S of the images in pixels."""

    @property
    def max_length(self) -> int:
        """Number of tokens n to which phrases are padded and truncated."""

    @property
    def zero_padding(self) -> bool:
        """Whether the text states at padding positions are zero."""

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one latent."""

    @property
    def device(self) -> torch.device:
        """Device of the U-Net."""

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of the U-Net's weights."""

    def encode_text(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Text states [b, n, d] of token ids and their mask [b, n]."""

    def image_posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation [b, c, h, w] of the scaled latents of images."""

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Latents noised to `timesteps` [b] by the forward diffusion process."""
