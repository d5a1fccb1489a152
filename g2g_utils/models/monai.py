"""Latent diffusion models of MONAI's generative package as folders of diffusers.

The published one is `cxr_image_synthesis_latent_diffusion_model`: two state dicts, one of a U-Net,
one of an autoencoder, for 512 x 512 chest X-rays and the text encoder of Stable Diffusion 2.1. The
names of monai-generative 0.2 are read; sizes are taken from the weights.

The autoencoder differs from diffusers' in three ways. It has no activation before the last
convolution of encoder and decoder, and images in [0, 1]: the folder's config.json says so
(`out_activation`, `image_range`), and `load_vae` restores it. It has no middle block, and one
residual block less a level of the decoder: the surplus ones add zero. Mean and log variance have a
convolution each: they are the rows of diffusers' one.
"""

from __future__ import annotations

import os
import pickle
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn

from g2g_utils import runs
from g2g_utils.config import ConfigError

Weights = dict[str, Tensor]

UNET_FILE, VAE_FILE = "diffusion_model.pth", "autoencoder.pth"
PARTS = ("unet", "vae", "scheduler")
RECORD = "converted.json"  # written last
SCALE = 0.3  # of the latents; a constant of the authors' sampler, not in the weights
GROUPS, EPS = 32, 1e-6  # of every group norm
SCHEDULE: dict[str, Any] = {
    "beta_start": 0.0015,
    "beta_end": 0.0205,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "clip_sample": False,
}
SOURCE = (  # where the weights are
    "hf download MONAI/cxr_image_synthesis_latent_diffusion_model, or its zip in the releases of "
    "Project-MONAI/model-zoo"
)

BARE = (r"(?<!samplers\.0)\.conv\.(weight|bias)$", r".\1")  # MONAI's wrapper of convolutions
UNET_NAMES = (  # in this order
    (r"^time_embed\.0\.", "time_embedding.linear_1."),
    (r"^time_embed\.2\.", "time_embedding.linear_2."),
    (r"^middle_block\.resnet_1\.", "mid_block.resnets.0."),
    (r"^middle_block\.attention\.", "mid_block.attentions.0."),
    (r"^middle_block\.resnet_2\.", "mid_block.resnets.1."),
    (r"^out\.0\.", "conv_norm_out."),
    (r"^out\.2\.conv\.", "conv_out."),
    (r"\.downsampler\.op\.conv\.", ".downsamplers.0.conv."),
    (r"\.upsampler\.conv\.conv\.", ".upsamplers.0.conv."),
    (r"\.skip_connection\.conv\.", ".conv_shortcut."),
    (r"\.ff\.linear1\.", ".ff.net.0.proj."),
    (r"\.ff\.linear2\.", ".ff.net.2."),
    BARE,
)


def convert(
    folder: Path,
    out: Path,
    *,
    heads: int = 1,
    groups: int = GROUPS,
    tell: Callable[[str], None] = print,
) -> Path:
    """Write `unet/`, `vae/` and `scheduler/` of the authors' two state dicts into a new folder.

    The folder appears when it is whole. Nothing is done if it is there and of the same files.

    Args:
        folder: has diffusion_model.pth and autoencoder.pth, or a folder `models` with them.
        out: the new folder.
        heads: of every attention; the weights do not tell. The published model has one.
        groups: of every group norm; the weights do not tell.
        tell: receives lines of progress.

    Returns:
        The new folder.

    Raises:
        ConfigError: a file is missing, is no state dict or of another layout; `out` is taken.
    """
    files = find_files(folder)
    about = {
        "sources": {name: runs.file_digest(path) for name, path in files.items()},
        "heads": heads,
        "groups": groups,
    }
    if out.exists():
        if _record(out) != about or missing(out):
            raise ConfigError(f"{out} is there and of something else: remove it or name another")
        tell(f"{out}: converted before, from the same files")
        return out
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        unet = convert_unet(read_weights(files[UNET_FILE]), heads, groups)
        tell(f"U-Net: {_count(unet)}, {heads} head{'s' if heads > 1 else ''}")
        unet.save_pretrained(temporary / "unet")
        del unet
        vae = convert_vae(read_weights(files[VAE_FILE]), groups)
        tell(f"autoencoder: {_count(vae)}, surplus blocks among them")
        vae.save_pretrained(temporary / "vae")
        DDIMScheduler(**SCHEDULE).save_pretrained(temporary / "scheduler")
        runs.write_json(temporary / RECORD, about)
        os.replace(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return out


def find_files(folder: Path) -> dict[str, Path]:
    """The authors' two files by name, in a folder or its subfolder `models`."""
    places = [folder, folder / "models"]
    found = {n: p / n for p in places for n in (UNET_FILE, VAE_FILE) if (p / n).is_file()}
    for name in (UNET_FILE, VAE_FILE):
        if name not in found:
            raise ConfigError(f"{folder}: no {name}, nor models/{name}; it is in {SOURCE}")
    return found


def missing(folder: Path) -> str:
    """The first file that a converted folder lacks, or "" if it is whole."""
    weights = "diffusion_pytorch_model.safetensors"
    parts = [f"{part}/{file}" for part in PARTS[:2] for file in ("config.json", weights)]
    wanted = [*parts, "scheduler/scheduler_config.json", RECORD]
    return next((file for file in wanted if not (folder / file).is_file()), "")


def how(folder: Path) -> str:
    """What to do where a converted folder is not whole."""
    again = f"remove {folder} and " if folder.exists() else ""
    return (
        f"{again}run `python -m g2g_utils convert monai THEIRS {folder}`, THEIRS with "
        f"{UNET_FILE} and {VAE_FILE} from {SOURCE} (data/README.md)"
    )


def _record(folder: Path) -> Any:
    """What a converted folder says about its sources; None if it says nothing."""
    try:
        return runs.read_json(folder / RECORD)
    except (OSError, ValueError):
        return None


def _count(module: nn.Module) -> str:
    return f"{sum(p.numel() for p in module.parameters()):,} weights"


def read_weights(file: Path) -> Weights:
    """A state dict from a file of `torch.save`, on the CPU; nothing else is unpickled."""
    try:
        found = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError) as error:
        reason = (str(error).splitlines() or ["unreadable"])[0][:120]
        raise ConfigError(f"{file} is damaged or no file of weights: {reason}") from None
    if not isinstance(found, Mapping) or not all(isinstance(w, Tensor) for w in found.values()):
        raise ConfigError(f"{file}: no state dict, whose values are all tensors: save that alone")
    return {str(name): weight.float() for name, weight in found.items()}


# ---------------------------------------------------------------- U-Net


def unet_name(name: str) -> str:
    """The name in diffusers of a weight of MONAI's U-Net."""
    for pattern, new in UNET_NAMES:
        name = re.sub(pattern, new, name)
    return name


def unet_config(weights: Mapping[str, Tensor], heads: int, groups: int) -> dict[str, Any]:
    """Sizes of the U-Net with these weights, in diffusers' terms.

    Raises:
        ConfigError: the weights are of another layout.
    """
    stem = _weight(weights, "conv_in.conv.weight", UNET_FILE)
    levels = _number(weights, r"^down_blocks\.(\d+)\.")
    channels = [
        len(_weight(weights, f"down_blocks.{i}.resnets.0.conv1.conv.weight", UNET_FILE))
        for i in range(levels)
    ]
    attends = [
        any(n.startswith(f"down_blocks.{i}.attentions.") for n in weights) for i in range(levels)
    ]
    read = next((w for n, w in weights.items() if n.endswith(".attn2.to_k.weight")), None)
    if read is None:
        raise ConfigError(f"{UNET_FILE}: no cross-attention (attn2): a U-Net that reads no text")
    _divides(heads, [c for c, yes in zip(channels, attends, strict=True) if yes], "heads")
    _divides(groups, channels, "groups")
    down = ["CrossAttnDownBlock2D" if yes else "DownBlock2D" for yes in attends]
    return {
        "sample_size": 64,
        "in_channels": stem.shape[1],
        "out_channels": len(_weight(weights, "out.2.conv.weight", UNET_FILE)),
        "block_out_channels": channels,
        "down_block_types": down,
        "up_block_types": [kind.replace("Down", "Up") for kind in reversed(down)],
        "layers_per_block": _number(weights, r"^down_blocks\.0\.resnets\.(\d+)\."),
        "attention_head_dim": heads,  # diffusers' name for the number of heads
        "cross_attention_dim": read.shape[1],
        "norm_num_groups": groups,
        "norm_eps": EPS,
    }


def convert_unet(weights: Weights, heads: int = 1, groups: int = GROUPS) -> UNet2DConditionModel:
    """MONAI's `DiffusionModelUNet` with cross-attention as diffusers' U-Net, to the same numbers.

    Raises:
        ConfigError: the weights are of another layout.
    """
    settings = unet_config(weights, heads, groups)
    with torch.device("meta"):
        unet = UNet2DConditionModel(**settings)
    _fill(unet, {unet_name(name): weight for name, weight in weights.items()}, UNET_FILE)
    return unet.eval()


# ---------------------------------------------------------------- autoencoder


def vae_config(weights: Mapping[str, Tensor], groups: int) -> dict[str, Any]:
    """Sizes of the autoencoder with these weights, in diffusers' terms, and how it differs."""
    if any(".to_q." in n or ".attn." in n or ".norm.weight" in n for n in weights):
        raise ConfigError(f"{VAE_FILE}: it has attention, which the published autoencoder has not")
    channels, layers = _levels(weights)
    stem = _weight(weights, "encoder.blocks.0.conv.weight", VAE_FILE)
    _divides(groups, channels, "groups")
    return {
        "in_channels": stem.shape[1],
        "out_channels": stem.shape[1],
        "latent_channels": len(_weight(weights, "quant_conv_mu.conv.weight", VAE_FILE)),
        "block_out_channels": channels,
        "down_block_types": ["DownEncoderBlock2D"] * len(channels),
        "up_block_types": ["UpDecoderBlock2D"] * len(channels),
        "layers_per_block": layers,
        "norm_num_groups": groups,
        "mid_block_add_attention": False,
        "scaling_factor": SCALE,
    }


def convert_vae(weights: Weights, groups: int = GROUPS) -> AutoencoderKL:
    """MONAI's `AutoencoderKL` without attention as diffusers', to the same numbers.

    Raises:
        ConfigError: the weights are of another layout.
    """
    settings = vae_config(weights, groups)
    with torch.device("meta"):
        vae = AutoencoderKL(**settings)
    fine = {n: torch.zeros(w.shape) for n, w in vae.state_dict().items() if _surplus(n, settings)}
    names = _vae_names(len(settings["block_out_channels"]), settings["layers_per_block"])
    fine |= {vae_name(name, names): weight for name, weight in weights.items()}
    _join_moments(fine)
    _fill(vae, fine, VAE_FILE)
    vae.register_to_config(out_activation=False, image_range=[0, 1])
    return restore(vae).eval()


def restore(vae: AutoencoderKL) -> AutoencoderKL:
    """Take out the activations that the config says the autoencoder does not have, in place."""
    if vae.config.get("out_activation") is False:
        vae.encoder.conv_act, vae.decoder.conv_act = nn.Identity(), nn.Identity()
    return vae


def vae_name(name: str, blocks: Mapping[str, str]) -> str:
    """The name in diffusers of a weight of MONAI's autoencoder; `blocks` are those of its lists."""
    if found := re.match(r"(?:en|de)coder\.blocks\.\d+", name):
        name = blocks.get(found[0], found[0]) + name[found.end() :]
    return re.sub(*BARE, name.replace("nin_shortcut", "conv_shortcut"))


def _levels(weights: Mapping[str, Tensor]) -> tuple[list[int], int]:
    """Channels of every level of the encoder, finest first, and residual blocks a level."""
    count = _number(weights, r"^encoder\.blocks\.(\d+)\.")
    kinds = "".join(
        "r" if f"encoder.blocks.{i}.conv1.conv.weight" in weights
        else "d" if f"encoder.blocks.{i}.conv.conv.weight" in weights
        else "o"
        for i in range(count)
    )  # fmt: skip
    found = re.fullmatch(r"o((?:r+d)*r+)oo", kinds)
    groups = found[1].split("d") if found else []
    if not found or len(set(groups)) > 1:
        raise ConfigError(
            f"{VAE_FILE}: of another layout (encoder.blocks: a convolution, levels of residual "
            f"blocks, a norm, a convolution are read); expected is monai-generative 0.2's, from "
            f"{SOURCE}"
        )
    ends = [i for i, kind in enumerate(kinds) if kind == "r" and kinds[i + 1] in "do"]
    return [len(weights[f"encoder.blocks.{i}.conv1.conv.weight"]) for i in ends], len(groups[0])


def _vae_names(levels: int, layers: int) -> dict[str, str]:
    """Names in diffusers of MONAI's flat lists of blocks."""
    found: dict[str, str] = {}
    for side, block, sampler in (
        ("encoder", "down_blocks", "downsamplers"),
        ("decoder", "up_blocks", "upsamplers"),
    ):
        flat = ["conv_in"]
        for level in range(levels):
            flat += [f"{block}.{level}.resnets.{i}" for i in range(layers)]
            flat += [f"{block}.{level}.{sampler}.0"] if level < levels - 1 else []
        flat += ["conv_norm_out", "conv_out"]
        found |= {f"{side}.blocks.{i}": f"{side}.{name}" for i, name in enumerate(flat)}
    return found


def _surplus(name: str, settings: Mapping[str, Any]) -> bool:
    """True for weights of diffusers' blocks that MONAI's autoencoder does not have.

    At zero they make residual blocks that add nothing.
    """
    last = f".resnets.{settings['layers_per_block']}."
    return ".mid_block." in name or (name.startswith("decoder.up_blocks.") and last in name)


def _join_moments(weights: Weights) -> None:
    """Make the two convolutions of mean and log variance the rows of one, in place.

    The encoder's last convolution gets as many outputs again, which are zero and read by nobody.
    """
    for end in ("weight", "bias"):
        mean = _weight(weights, f"quant_conv_mu.{end}", VAE_FILE)
        rows = torch.cat([mean, _weight(weights, f"quant_conv_log_sigma.{end}", VAE_FILE)])
        wide = torch.cat([rows, torch.zeros_like(rows)], 1) if end == "weight" else rows
        del weights[f"quant_conv_mu.{end}"], weights[f"quant_conv_log_sigma.{end}"]
        weights[f"quant_conv.{end}"] = wide
        last = _weight(weights, f"encoder.conv_out.{end}", VAE_FILE)
        weights[f"encoder.conv_out.{end}"] = torch.cat([last, torch.zeros_like(last)])


# ---------------------------------------------------------------- both


def _number(weights: Mapping[str, Tensor], pattern: str) -> int:
    """One more than the largest number that a pattern finds in the names."""
    found = [int(m[1]) for m in (re.match(pattern, name) for name in weights) if m]
    return max(found, default=-1) + 1


def _weight(weights: Mapping[str, Tensor], name: str, file: str) -> Tensor:
    """A weight by name; ConfigError where the state dict is of another layout."""
    if name not in weights:
        raise ConfigError(
            f"{file}: of another layout, without {name}; expected is monai-generative 0.2's, from "
            f"{SOURCE}"
        )
    return weights[name]


def _divides(number: int, channels: list[int], what: str) -> None:
    """Refuse heads or groups into which the channels cannot be split."""
    if number < 1 or any(count % number for count in channels):
        raise ConfigError(f"{what} = {number} does not divide the channels {channels}")


def _fill(module: nn.Module, weights: Weights, file: str) -> None:
    """Give a module without memory its weights; ConfigError unless all fit and none is over."""
    wanted = {name: weight.shape for name, weight in module.state_dict().items()}
    problems = [f"no {name}" for name in wanted if name not in weights]
    problems += [f"{name} is not expected" for name in weights if name not in wanted]
    problems += [
        f"{name} has shape {tuple(weights[name].shape)}, not {tuple(shape)}"
        for name, shape in wanted.items()
        if name in weights and weights[name].shape != shape
    ]
    if problems:
        raise ConfigError(
            f"{file}: of another layout ({len(problems)} weights, such as: {problems[0]}); "
            f"expected is monai-generative 0.2's, from {SOURCE}"
        )
    module.load_state_dict(weights, assign=True)
