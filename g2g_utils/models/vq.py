"""Films as tokens: a vector-quantised autoencoder (`diffusers.VQModel`), and published weights.

A film becomes a grid of codes, each the index of an entry of a codebook, and codes become a film.
Published weights of the original library (taming-transformers) have other names: `from_taming` maps
them.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from diffusers import VQModel
from torch import Tensor

from g2g_utils.config import VqSettings
from g2g_utils.models.components import initialised, vae_input, vae_output


def build(settings: VqSettings, seed: int) -> VQModel:
    """An untrained tokenizer of grey films, behind a pixel-unshuffle as the autoencoder has it."""
    levels, channels = len(settings.channels), settings.unshuffle**2
    with initialised(seed):
        vq = VQModel(
            in_channels=channels,
            out_channels=channels,
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            block_out_channels=settings.channels,
            latent_channels=settings.code_width,
            num_vq_embeddings=settings.codes,
            norm_num_groups=8,
            mid_block_add_attention=False,
        )
    vq.quantize.legacy = False  # else the library weighs the wrong term
    return vq


def load(folder: str | Path) -> VQModel:
    """A tokenizer in diffusers' layout; half precision is read as float32."""
    return VQModel.from_pretrained(folder, torch_dtype=torch.float32).eval()


@torch.no_grad()
def encode(vq: VQModel, images: Tensor, batch: int = 64) -> Tensor:
    """Codes [b, h w] of images [b, 1 or 3, S, S] in [0, 1], row by row."""
    found = []
    for some in torch.split(images, batch):
        latents = vq.encode(vae_input(vq, some)).latents
        found.append(vq.quantize(latents)[2][2].reshape(len(some), -1))
    return torch.cat(found)


@torch.no_grad()
def decode(vq: VQModel, codes: Tensor, batch: int = 64) -> Tensor:
    """Images [b, 1, S, S] in [0, 1] of codes [b, h w].

    Raises:
        ValueError: a code outside the codebook, or a number of codes that is no square.
    """
    count, side = vq.config.num_vq_embeddings, round(codes.shape[1] ** 0.5)
    if codes.min() < 0 or codes.max() >= count:
        wrong = int(codes[(codes < 0) | (codes >= count)][0])
        raise ValueError(f"code {wrong} is not in the book of {count}: encode with this tokenizer")
    if side**2 != codes.shape[1]:
        raise ValueError(f"{codes.shape[1]} codes make no square film")
    found = []
    for some in torch.split(codes, batch):
        shape = (len(some), side, side, vq.quantize.vq_embed_dim)
        entries = vq.quantize.get_codebook_entry(some.reshape(-1), shape)
        found.append(vae_output(vq, vq.decode(entries, force_not_quantize=True).sample))
    return torch.cat(found)


# ---------------------------------------------------------------- published weights

PUBLISHED_WIDTH = 128  # channels of its first level


def build_published(codes: int = 1024, width: int = 256, scale: int = 1) -> VQModel:
    """VQ-GAN of 256-pixel films in colour, f = 16, in the shape of the published one.

    scale: divides the widths, for tests.
    """
    widths = tuple(PUBLISHED_WIDTH * k // scale for k in (1, 1, 2, 2, 4))
    vq = VQModel(
        down_block_types=("DownEncoderBlock2D",) * 4 + ("AttnDownEncoderBlock2D",),
        up_block_types=("AttnUpDecoderBlock2D",) + ("UpDecoderBlock2D",) * 4,
        block_out_channels=widths,
        layers_per_block=2,
        latent_channels=width,
        num_vq_embeddings=codes,
        norm_num_groups=min(32, widths[0]),
    )
    vq.quantize.legacy = False
    return vq


_NAMES = (  # taming's name -> diffusers'; in this order
    (r"\.block\.(\d+)\.", r".resnets.\1."),
    (r"\.mid\.block_1\.", ".mid_block.resnets.0."),
    (r"\.mid\.block_2\.", ".mid_block.resnets.1."),
    (r"\.mid\.attn_1\.", ".mid_block.attentions.0."),
    (r"\.attn\.(\d+)\.", r".attentions.\1."),
    (r"\.(down|up)sample\.conv\.", r".\1samplers.0.conv."),
    (r"\.nin_shortcut\.", ".conv_shortcut."),
    (r"coder\.norm_out\.", "coder.conv_norm_out."),
    (r"(attentions\.\d+)\.norm\.", r"\1.group_norm."),
    (r"(attentions\.\d+)\.([qkv])\.", r"\1.to_\2."),
    (r"(attentions\.\d+)\.proj_out\.", r"\1.to_out.0."),
)


def diffusers_name(name: str, levels: int) -> str:
    """Name in diffusers of a weight of taming's VQ-GAN; the decoder counts its levels backwards."""
    name = re.sub(r"^encoder\.down\.", "encoder.down_blocks.", name)
    name = re.sub(
        r"^decoder\.up\.(\d+)", lambda m: f"decoder.up_blocks.{levels - 1 - int(m[1])}", name
    )
    for pattern, replacement in _NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def read_taming(path: Path, settings: VqSettings) -> VQModel:
    """A tokenizer from a published checkpoint: tensors alone are read, no pickled code.

    Raises:
        ValueError: no such file, or other objects in it.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ValueError(f"cyclic.vq.pretrained: no file {path}") from None
    except Exception as error:  # what torch refuses has many classes
        line = str(error).splitlines()[0]
        raise ValueError(f"{path}: not tensors alone ({line}); convert it to safetensors") from None
    vq = build_published(
        settings.codes, settings.code_width, PUBLISHED_WIDTH // settings.channels[0]
    )
    return from_taming(vq, state.get("state_dict", state))


def from_taming(vq: VQModel, state: dict[str, Tensor]) -> VQModel:
    """Load the weights of a taming checkpoint (its `state_dict`, loss and discriminator ignored).

    Raises:
        ValueError: a weight is missing, of another shape, or unknown.
    """
    levels, own = len(vq.config.block_out_channels), vq.state_dict()
    found = {}
    for name, value in state.items():
        if name.startswith("loss."):
            continue
        target = diffusers_name(name, levels)
        fits = target in own and own[target].numel() == value.numel()
        if not fits:
            raise ValueError(
                f"{name}: no such weight {target} of this size; is it a VQ-GAN f = 16?"
            )
        found[target] = value.reshape(own[target].shape)  # 1x1 convolutions become matrices
    if missing := sorted(set(own) - set(found)):
        raise ValueError(f"the checkpoint lacks {len(missing)} weights, first {missing[0]}")
    vq.load_state_dict(found)
    return vq.eval()
