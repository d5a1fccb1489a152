"""Components of the latent diffusion model: small ones are built, one class holds all parts.

The same functions and classes serve the miniature and Stable Diffusion 1.5 + CXR-BERT.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from peft import LoraConfig
from torch import Tensor
from torch.nn import functional as F
from transformers import BatchEncoding, PreTrainedModel, PreTrainedTokenizerBase

from g2g_utils import config as configuration
from g2g_utils.data.plain import plain

# Noise schedule of Stable Diffusion 1.5 (its scheduler_config.json).
SD_SCHEDULE: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "timestep_spacing": "leading",
}


@dataclass(frozen=True, eq=False)
class GroundingModel:
    """Tokenizer, text encoder, VAE, U-Net and noise schedule that ground phrases together.

    Images enter as float [b, 1 or 3, S, S] in [0, 1]. Latents are [b, c, h, w], already scaled.
    """

    tokenizer: PreTrainedTokenizerBase
    text_encoder: PreTrainedModel
    vae: AutoencoderKL
    unet: UNet2DConditionModel
    scheduler: DDIMScheduler
    image_size: int
    max_length: int
    zero_padding: bool = False
    name: str = ""

    @property
    def device(self) -> torch.device:
        """Device of the U-Net. Inputs are moved there."""
        weight: Tensor = next(self.unet.parameters())  # unet.device walks all modules: 5 ms
        return weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of the U-Net's weights."""
        weight: Tensor = next(self.unet.parameters())
        return weight.dtype

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> GroundingModel:
        """The same model on another device. Modules are moved in place."""
        wanted = {"device": device} | ({} if dtype is None else {"dtype": dtype})
        for module in (self.text_encoder, self.vae, self.unet):
            module.to(**wanted)
        return self

    @cached_property
    def latent_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one latent."""
        factor = unshuffle_factor(self.vae) * 2 ** (len(self.vae.config.block_out_channels) - 1)
        side = self.image_size // factor
        return self.vae.config.latent_channels, side, side

    @torch.no_grad()
    def encode_text(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Text states [b, n, d] of token ids [b, n]; see `text_states`."""
        ids, mask = input_ids.to(self.device), attention_mask.to(self.device)
        return text_states(self.text_encoder, ids, mask, self.zero_padding).to(self.dtype)

    def encode_phrases(self, phrases: list[str]) -> Tensor:
        """Text states [b, n, d] of phrases, padded and truncated to `max_length` tokens."""
        batch = tokenize(self.tokenizer, phrases, self.max_length)
        return self.encode_text(batch["input_ids"], batch["attention_mask"])

    @torch.no_grad()
    def image_posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation [b, c, h, w] of the scaled latents of images in [0, 1]."""
        return image_posterior(self.vae, images.to(self.device, self.dtype))

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Images [b, 1, S, S] in [0, 1] (grey) of scaled latents [b, c, h, w]."""
        shift = self.vae.config.shift_factor
        unscaled = latents / self.vae.config.scaling_factor
        decoded = self.vae.decode(unscaled + shift if shift else unscaled).sample
        return vae_output(self.vae, decoded)

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Latents noised to `timesteps` [b] by the forward diffusion process."""
        noised: Tensor = self.scheduler.add_noise(
            latents, noise.to(latents), timesteps.to(latents.device)
        )
        return noised


def weights_digest(module: torch.nn.Module) -> str:
    """Short hash of a module's weights and names."""
    total = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        total.update(name.encode())
        total.update(
            value.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes()
        )
    return total.hexdigest()[:12]


@contextmanager
def initialised(seed: int) -> Iterator[None]:
    """Make weights inside depend on `seed` alone; the global generator is restored."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def tokenize(
    tokenizer: PreTrainedTokenizerBase, texts: list[str], max_length: int
) -> BatchEncoding:
    """Token ids and attention mask [b, max_length] of texts: read as plain, padded, truncated."""
    return tokenizer(
        [plain(text) for text in texts],
        padding="max_length",
        truncation=True,
        max_length=max_length,
        return_tensors="pt",
    )


def text_states(
    encoder: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor, zero_padding: bool = False
) -> Tensor:
    """Last hidden states [b, n, d]. The encoder gets its attention mask; the U-Net gets none.

    With `zero_padding` the states at padding positions are zero, so that padding is the same
    neutral attention sink under every encoder.
    """
    output = encoder(input_ids=input_ids, attention_mask=attention_mask)
    states: Tensor = output.last_hidden_state
    return states * attention_mask[..., None].to(states.dtype) if zero_padding else states


@dataclass(frozen=True, eq=False)
class Conditioning:
    """The way from a caption to the text states that condition the U-Net."""

    tokenizer: PreTrainedTokenizerBase
    encoder: PreTrainedModel
    max_length: int  # tokens; captions are padded and truncated
    zero_padding: bool = False  # of the states at padding positions

    def tokens(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Token ids and attention mask [b, max_length] of texts."""
        batch = tokenize(self.tokenizer, texts, self.max_length)
        return batch["input_ids"], batch["attention_mask"]

    def states(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Text states [b, n, d] of token ids and attention mask."""
        return text_states(self.encoder, ids, mask, self.zero_padding)


def unshuffle_factor(vae: AutoencoderKL) -> int:
    """Pixel-unshuffle factor in front of the VAE: 2 for 4 channels, 1 for 1 or 3."""
    channels = vae.config.in_channels
    return 1 if channels in (1, 3) else round(channels**0.5)


def image_range(vae: AutoencoderKL) -> tuple[float, float]:
    """Black and white of the VAE's images: -1 and 1, unless its config says otherwise."""
    low, high = vae.config.get("image_range") or (-1, 1)
    return low, high


def vae_input(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """Images [b, 1 or 3, S, S] in [0, 1] in the VAE's range, [-1, 1], and channel count.

    Colours are averaged for a VAE of grey images.
    """
    low, high = image_range(vae)
    factor, channels = unshuffle_factor(vae), vae.config.in_channels
    if factor > 1 or images.shape[1] != channels:
        images = images.mean(1, keepdim=True)
    if factor > 1:
        return F.pixel_unshuffle(images * (high - low) + low, factor)
    return images.expand(-1, channels, -1, -1) * (high - low) + low


def image_posterior(vae: AutoencoderKL, images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [b, c, h, w] of the scaled latents of images in [0, 1]."""
    posterior = vae.encode(vae_input(vae, images)).latent_dist
    shift, scale = vae.config.shift_factor, vae.config.scaling_factor
    mean = posterior.mean - shift if shift else posterior.mean
    return mean * scale, posterior.std * scale


def vae_output(vae: AutoencoderKL, decoded: Tensor) -> Tensor:
    """Grey images [b, 1, S, S] in [0, 1] from the output of the VAE's decoder."""
    factor = unshuffle_factor(vae)
    grey = F.pixel_shuffle(decoded, factor) if factor > 1 else decoded.mean(1, keepdim=True)
    low, high = image_range(vae)
    return (grey / (high - low) - low / (high - low)).clamp(0, 1)


def build_vae(config: configuration.Vae) -> AutoencoderKL:
    """Build a small, untrained AutoencoderKL of the configured sizes."""
    levels, channels = len(config.channels), config.unshuffle**2
    return AutoencoderKL(
        in_channels=channels,
        out_channels=channels,
        latent_channels=config.latent_channels,
        block_out_channels=config.channels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=1,
        norm_num_groups=8,
        mid_block_add_attention=False,
    )


def build_unet(
    config: configuration.Unet, latent_channels: int, sample_size: int, text_width: int
) -> UNet2DConditionModel:
    """Build a small, untrained U-Net in Stable Diffusion's block layout.

    Every level but the deepest has cross-attention, and so has the middle block, unless
    `attention_levels` and `middle_attention` say otherwise. Queries and keys of the cross-attention
    start `query_key_gain` times larger than usual: small models otherwise keep near-uniform
    attention for most of a short training.
    """
    down = tuple(
        "CrossAttnDownBlock2D" if attends else "DownBlock2D"
        for attends in config.levels_with_attention
    )
    unet = UNet2DConditionModel(
        sample_size=sample_size,
        in_channels=latent_channels,
        out_channels=latent_channels,
        block_out_channels=config.channels,
        down_block_types=down,
        mid_block_type="UNetMidBlock2DCrossAttn" if config.middle_attention else "UNetMidBlock2D",
        up_block_types=tuple(name.replace("Down", "Up") for name in reversed(down)),
        layers_per_block=config.layers_per_block,
        attention_head_dim=config.heads,  # diffusers' name for the number of heads
        cross_attention_dim=text_width,
        norm_num_groups=8,
    )
    with torch.no_grad():
        for name, weight in unet.named_parameters():
            if ".attn2.to_q." in name or ".attn2.to_k." in name:
                weight.mul_(config.query_key_gain)
    return unet


# ---------------------------------------------------------------- adapting pretrained weights

LORA_TARGETS = ("to_q", "to_k", "to_v", "to_out.0")  # attention, as diffusers' own scripts


def adapt_unet(
    unet: UNet2DConditionModel, config: configuration.Adaptation, text_width: int
) -> UNet2DConditionModel:
    """Prepare a pretrained U-Net for fine-tuning, in place: projection, LoRA, checkpointing.

    A linear projection of the text states is added only if their width differs from that of the
    U-Net's cross-attention (Stable Diffusion 1.5: 768, 2.1: 1024). With `lora_rank` all other
    weights are frozen.
    """
    add_projection(unet, text_width)
    if config.lora_rank:
        unet.requires_grad_(False)
        unet.add_adapter(
            LoraConfig(
                r=config.lora_rank,
                lora_alpha=config.lora_alpha,
                init_lora_weights="gaussian",
                target_modules=list(LORA_TARGETS),
            )
        )
        if unet.encoder_hid_proj is not None:
            unet.encoder_hid_proj.requires_grad_(True)
    if config.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    return unet


def add_projection(unet: UNet2DConditionModel, text_width: int) -> None:
    """Project text states of another width to the cross-attention's, by diffusers' own layer."""
    width = unet.config.cross_attention_dim
    known = unet.config.encoder_hid_dim
    if text_width == (known or width):
        return
    if known:
        raise ValueError(f"the U-Net projects states of width {known}, the encoder's {text_width}")
    unet.register_to_config(encoder_hid_dim=text_width, encoder_hid_dim_type="text_proj")
    unet.encoder_hid_proj = torch.nn.Linear(text_width, width)
