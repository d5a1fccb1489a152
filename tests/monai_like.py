"""A small latent diffusion model in the names and the arithmetic of monai-generative 0.2.

Written from the layout's description; random weights. The U-Net's arithmetic is pinned by the
reference vectors, the autoencoder's is spelt out here with plain functions of torch.
"""

import re
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch.nn import functional as F

from g2g_utils.models import monai

GROUPS = 8
WIDE = [("time_embedding.linear_1", "time_embed.0"), ("time_embedding.linear_2", "time_embed.2")]
BACK = [  # from diffusers' names
    *WIDE,
    ("mid_block.resnets.0.", "middle_block.resnet_1."),
    ("mid_block.attentions.0.", "middle_block.attention."),
    ("mid_block.resnets.1.", "middle_block.resnet_2."),
    ("conv_norm_out.", "out.0."),
    ("conv_out.", "out.2.conv."),
    ("downsamplers.0.conv.", "downsampler.op.conv."),
    ("upsamplers.0.conv.", "upsampler.conv.conv."),
    ("conv_shortcut.", "skip_connection.conv."),
    ("ff.net.0.proj.", "ff.linear1."),
    ("ff.net.2.", "ff.linear2."),
]


def unet_names(weights):
    """Weights of a U-Net under MONAI's names."""
    found = {}
    for name, weight in weights.items():
        for new, old in BACK:
            name = name.replace(new, old)
        name = re.sub(
            r"(conv1|conv2|conv_in|proj_in|proj_out)\.(weight|bias)$", r"\1.conv.\2", name
        )
        found[name] = weight
    return found


def unet(text_width=24, heads=1):
    """A small U-Net of the published topology: no attention at the finest of three levels."""
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=3,
        out_channels=3,
        block_out_channels=(8, 16, 24),
        down_block_types=("DownBlock2D", *["CrossAttnDownBlock2D"] * 2),
        up_block_types=(*["CrossAttnUpBlock2D"] * 2, "UpBlock2D"),
        layers_per_block=2,
        attention_head_dim=heads,
        cross_attention_dim=text_width,
        norm_num_groups=GROUPS,
        norm_eps=1e-6,
    ).eval()


CHANNELS, LAYERS, LATENT = (8, 16, 16, 16), 2, 3


def autoencoder(seed=0):
    """Random weights of a small autoencoder under MONAI's names."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}

    def conv(name, out, taken, side=3):
        kernel = torch.randn(out, taken, side, side, generator=generator)
        weights[f"{name}.conv.weight"] = kernel / (taken * side**2) ** 0.5
        weights[f"{name}.conv.bias"] = 0.1 * torch.randn(out, generator=generator)

    def norm(name, count):
        weights[f"{name}.weight"] = 1 + 0.1 * torch.randn(count, generator=generator)
        weights[f"{name}.bias"] = 0.1 * torch.randn(count, generator=generator)

    def side(name, channels, taken, given, sampler):
        conv(f"{name}.blocks.0", channels[0], taken)
        number, width = 1, channels[0]
        for level, count in enumerate(channels):
            for _ in range(LAYERS):
                block = f"{name}.blocks.{number}"
                norm(f"{block}.norm1", width)
                conv(f"{block}.conv1", count, width)
                norm(f"{block}.norm2", count)
                conv(f"{block}.conv2", count, count)
                if width != count:
                    conv(f"{block}.nin_shortcut", count, width, 1)
                number, width = number + 1, count
            if level < len(channels) - 1:
                conv(f"{name}.blocks.{number}.{sampler}", count, count)
                number += 1
        norm(f"{name}.blocks.{number}", width)
        conv(f"{name}.blocks.{number + 1}", given, width)

    side("encoder", CHANNELS, 1, LATENT, "conv")
    side("decoder", CHANNELS[::-1], LATENT, 1, "conv")
    for name in ("quant_conv_mu", "quant_conv_log_sigma", "post_quant_conv"):
        conv(name, LATENT, LATENT, 1)
    return weights


def run(weights, side, x):
    """Encoder or decoder: every block in turn, no activation before the last convolution."""
    count = 1 + max(int(n.split(".")[2]) for n in weights if n.startswith(f"{side}.blocks."))
    for number in range(count):
        x = _block(weights, f"{side}.blocks.{number}", x, side == "encoder")
    return x


def moments(weights, images):
    """Mean and standard deviation of the unscaled latents."""
    h = run(weights, "encoder", images)
    mean = _conv(weights, "quant_conv_mu", h, 0)
    return mean, (_conv(weights, "quant_conv_log_sigma", h, 0).clamp(-30, 20) / 2).exp()


def decode(weights, latents):
    """Images of unscaled latents."""
    return run(weights, "decoder", _conv(weights, "post_quant_conv", latents, 0))


def _conv(weights, name, x, padding=1, stride=1):
    kernel, bias = (weights[f"{name}.conv.{end}"] for end in ("weight", "bias"))
    return F.conv2d(x, kernel, bias, stride=stride, padding=padding)


def _norm(weights, name, x):
    return F.group_norm(x, GROUPS, weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-6)


def _block(weights, name, x, down):
    if f"{name}.conv.conv.weight" in weights:
        if down:
            return _conv(weights, f"{name}.conv", F.pad(x, (0, 1, 0, 1)), 0, 2)
        return _conv(weights, f"{name}.conv", F.interpolate(x, scale_factor=2.0, mode="nearest"))
    if f"{name}.conv.weight" in weights:
        return _conv(weights, name, x)
    if f"{name}.weight" in weights:
        return _norm(weights, name, x)
    h = _conv(weights, f"{name}.conv1", F.silu(_norm(weights, f"{name}.norm1", x)))
    h = _conv(weights, f"{name}.conv2", F.silu(_norm(weights, f"{name}.norm2", h)))
    short = f"{name}.nin_shortcut"
    return h + (_conv(weights, short, x, 0) if f"{short}.conv.weight" in weights else x)


def published():
    """State dicts of the published sizes without memory, under the authors' names."""
    with torch.device("meta"):
        down = ["DownBlock2D", *["CrossAttnDownBlock2D"] * 2]
        unet = UNet2DConditionModel(
            in_channels=3, out_channels=3, block_out_channels=(256, 512, 768),
            down_block_types=down, up_block_types=[n.replace("Down", "Up") for n in down[::-1]],
            layers_per_block=2, attention_head_dim=1, cross_attention_dim=1024, norm_eps=1e-6,
        )  # fmt: skip
    return unet_names(unet.state_dict())


def save(folder: Path, text_width=24, heads=1):
    """The two files of a small model in a folder; its U-Net and its autoencoder's weights."""
    folder.mkdir(parents=True, exist_ok=True)
    net, weights = unet(text_width, heads), autoencoder()
    torch.save(unet_names(net.state_dict()), folder / monai.UNET_FILE)
    torch.save(weights, folder / monai.VAE_FILE)
    return net, weights


def vae_of(folder: Path) -> AutoencoderKL:
    """What a plain `from_pretrained` makes of a converted autoencoder."""
    return AutoencoderKL.from_pretrained(folder / "vae").eval()
