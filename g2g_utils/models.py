"""Components of the latent diffusion model: build small ones, load real ones, one class for both.

All weights live in diffusers/transformers folder format; nothing is unpickled and no remote code
is run. The same functions load the miniature's components and Stable Diffusion 1.5 + CXR-BERT.
"""

from __future__ import annotations

import hashlib
import pickle
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from peft import LoraConfig
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    AutoTokenizer,
    BertModel,
    BertTokenizerFast,
    CLIPTextModel,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    RobertaModel,
)
from transformers.utils import logging

from g2g_utils import catalogue, encoders
from g2g_utils import config as configuration

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


class MissingWeights(FileNotFoundError):
    """Weights that are not on disk; the message says what was looked for and how to get it."""


@dataclass(frozen=True, eq=False)
class GroundingModel:
    """Tokenizer, text encoder, VAE, U-Net and noise schedule that ground phrases together.

    Images enter as float [b, 1 or 3, S, S] in [0, 1]; latents are [b, c, h, w], already scaled.
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
        """Device of the U-Net; inputs are moved there."""
        return next(self.unet.parameters()).device  # unet.device walks all modules: 5 ms

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of the U-Net's weights."""
        return next(self.unet.parameters()).dtype

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> GroundingModel:
        """The same model on another device; modules are moved in place."""
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
        decoded = self.vae.decode(latents / self.vae.config.scaling_factor).sample
        return vae_output(self.vae, decoded)

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Latents noised to `timesteps` [b] by the forward diffusion process."""
        return self.scheduler.add_noise(latents, noise.to(latents), timesteps.to(latents.device))


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
    """Weights made inside depend on `seed` alone; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def tokenize(tokenizer: PreTrainedTokenizerBase, texts: list[str], max_length: int) -> Any:
    """Token ids and attention mask [b, max_length] of texts: padded, truncated."""
    return tokenizer(
        texts, padding="max_length", truncation=True, max_length=max_length, return_tensors="pt"
    )


def text_states(
    encoder: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor, zero_padding: bool = False
) -> Tensor:
    """Last hidden states [b, n, d]; the encoder gets its attention mask, the U-Net gets none.

    With `zero_padding` the states at padding positions are zero, so that padding is the same
    neutral attention sink under every encoder.
    """
    states = encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
    return states * attention_mask[..., None].to(states.dtype) if zero_padding else states


def unshuffle_factor(vae: AutoencoderKL) -> int:
    """Pixel-unshuffle factor in front of the VAE: 2 for 4 channels, 1 for 1 or 3."""
    channels = vae.config.in_channels
    return 1 if channels in (1, 3) else round(channels**0.5)


def vae_input(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """Images [b, 1 or 3, S, S] in [0, 1] as the VAE wants them: in [-1, 1], its channel count.

    Colours are averaged where the VAE takes grey images.
    """
    factor, channels = unshuffle_factor(vae), vae.config.in_channels
    if factor > 1 or images.shape[1] != channels:
        images = images.mean(1, keepdim=True)
    if factor > 1:
        return F.pixel_unshuffle(images * 2 - 1, factor)
    return images.expand(-1, channels, -1, -1) * 2 - 1


def image_posterior(vae: AutoencoderKL, images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [b, c, h, w] of the scaled latents of images in [0, 1]."""
    posterior = vae.encode(vae_input(vae, images)).latent_dist
    return posterior.mean * vae.config.scaling_factor, posterior.std * vae.config.scaling_factor


def vae_output(vae: AutoencoderKL, decoded: Tensor) -> Tensor:
    """Grey images [b, 1, S, S] in [0, 1] of what the VAE's decoder returns."""
    factor = unshuffle_factor(vae)
    grey = F.pixel_shuffle(decoded, factor) if factor > 1 else decoded.mean(1, keepdim=True)
    return (grey / 2 + 0.5).clamp(0, 1)


def build_vae(config: configuration.Vae) -> AutoencoderKL:
    """A small, untrained AutoencoderKL of the configured sizes."""
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
    """A small, untrained U-Net in Stable Diffusion's block layout.

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


def adopt(unet: UNet2DConditionModel, folder: Path) -> None:
    """Take over a trained U-Net's weights, all but those that read the text, which stay as made."""
    trained = load_file(folder / "diffusion_pytorch_model.safetensors")
    reading = tuple(f".attn2.{name}." for name in ("to_q", "to_k", "to_v"))
    kept = {n: w.float() for n, w in trained.items() if not any(r in n for r in reading)}
    fresh = {n: w for n, w in unet.state_dict().items() if any(r in n for r in reading)}
    wanted = {n: w.shape for n, w in unet.state_dict().items() if n not in fresh}
    if {n: w.shape for n, w in kept.items()} != wanted:
        raise ValueError(f"{folder}: a U-Net of another shape; delete the folder and make it again")
    unet.load_state_dict(fresh | kept)


def build_scheduler(config: configuration.Unet) -> DDIMScheduler:
    """The noise schedule: loaded where the profile names one, else that of Stable Diffusion 1.5.

    A loaded one says itself what the U-Net predicts; `config.prediction` must agree.
    """
    if not config.scheduler:
        return DDIMScheduler(**SD_SCHEDULE, prediction_type=config.prediction)
    revision = config.schedule_revision
    options = _options(revision)
    with _explained(config.scheduler, "scheduler/scheduler_config.json", revision):
        loaded = DDIMScheduler.from_pretrained(config.scheduler, subfolder="scheduler", **options)
    if loaded.config.prediction_type != config.prediction:
        raise configuration.ConfigError(
            f"unet.prediction = {config.prediction!r}, but the schedule of {config.scheduler} is "
            f"for {loaded.config.prediction_type!r}: set unet.prediction to that, or name another "
            "unet.scheduler"
        )
    return loaded


TEXT_MODELS: dict[str, Any] = {  # by the model type in a checkpoint's config.json
    "bert": BertModel,
    "cxr-bert": BertModel,  # its own class is remote code; its states are a plain BERT's
    "roberta": RobertaModel,
    "clip": CLIPTextModel,
    "clip_text_model": CLIPTextModel,
}
HEADS = (  # what a checkpoint may hold beside the text states' weights
    "cls.", "cls_projection_head.", "lm_head.", "pooler.", "bert.pooler.", "roberta.pooler.",
    "vision_model.", "visual_projection.", "text_projection.", "logit_scale",
)  # fmt: skip
BUFFERS = ("position_ids",)  # stored by old versions, computed by new ones


def load_text_encoder(
    source: str | Path, revision: str | None = None, subfolder: str | None = None
) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """Tokenizer and text encoder of a folder, hub id or name in `encoders.REGISTRY`.

    BERT, CXR-BERT, RoBERTa or CLIP. `subfolder` is the encoder's in a pipeline, whose tokenizer
    lies in `tokenizer`.

    The class is chosen by the config's model type; CXR-BERT loads as a plain `BertModel`, whose
    last hidden state equals its remote-code class's. No remote code is run or asked for. Raises
    `MissingWeights` with the fix where weights are absent or do not fit.
    """
    source, revision = encoders.resolve(str(source), revision)
    options = _options(revision)
    folder = {"subfolder": subfolder} if subfolder else {}
    config = f"{subfolder}/config.json" if subfolder else "config.json"
    with _explained(source, encoders.expected(source), revision, config), _quiet():
        kind = PreTrainedConfig.get_config_dict(source, **folder, **options)[0].get("model_type")
        if kind not in TEXT_MODELS:
            known = ", ".join(TEXT_MODELS)
            raise ValueError(f"its config.json says model_type {kind!r}, known are {known}")
        tokens = {"subfolder": "tokenizer"} if subfolder else {}
        reader = BertTokenizerFast if kind == "cxr-bert" else AutoTokenizer
        tokenizer = reader.from_pretrained(source, **tokens, **options)
        bare = {} if TEXT_MODELS[kind] is CLIPTextModel else {"add_pooling_layer": False}
        encoder, info = TEXT_MODELS[kind].from_pretrained(
            source, dtype="float32", output_loading_info=True, **bare, **folder, **options
        )
        _check_keys(info, HEADS)
    place = f"{source}/tokenizer" if subfolder else source
    _check_words(tokenizer, encoder, place, encoders.command(source, revision))
    return tokenizer, encoder.eval()


def _check_words(
    tokenizer: PreTrainedTokenizerBase, encoder: PreTrainedModel, place: str, command: str
) -> None:
    """Refuse a tokenizer of few of the encoder's words: without its file all are unknown."""
    known, wanted = len(tokenizer), encoder.config.vocab_size
    if known < wanted / 2:
        bert = isinstance(encoder, BertModel)
        raise MissingWeights(
            f"the tokenizer at {place} knows {known} words, its encoder {wanted}: expected is "
            f"{encoders.BERT_WORDS if bert else encoders.BYTE_PAIRS}; run `{command}`"
        )


def _check_keys(info: dict[str, Any], heads: tuple[str, ...] = ()) -> None:
    """Refuse weights that lack a key, or hold one that is neither wanted nor of a known head."""
    missing = sorted(info["missing_keys"])
    unknown = sorted(
        key
        for key in info["unexpected_keys"]
        if not key.startswith(heads) and not key.endswith(BUFFERS)
    )
    unfit = sorted(str(key) for key in info["mismatched_keys"])
    for what, keys in (("missing", missing), ("unexpected", unknown), ("of other shapes", unfit)):
        if keys:
            raise ValueError(f"{len(keys)} weights are {what}, such as {keys[0]}")


def load_vae(source: str | Path, revision: str | None = None) -> AutoencoderKL:
    """VAE of a folder or hub id; a Stable Diffusion pipeline's `vae` subfolder is found."""
    return _load(AutoencoderKL, source, "vae", revision)


def load_unet(source: str | Path, revision: str | None = None) -> UNet2DConditionModel:
    """U-Net of a folder or hub id: subfolder `unet_ema` (the released one), else `unet`."""
    released = str(source).endswith("cxr_bert_ldm") or (Path(source) / "unet_ema").is_dir()
    return _load(UNet2DConditionModel, source, "unet_ema" if released else "unet", revision)


def _load(cls: Any, source: str | Path, subfolder: str, revision: str | None) -> Any:
    """`cls.from_pretrained`, as float32, in evaluation mode, errors explained."""
    folder = {} if (Path(source) / "config.json").is_file() else {"subfolder": subfolder}
    files = f"{subfolder}/config.json and {subfolder}/diffusion_pytorch_model.safetensors"
    with _explained(source, files, revision, f"{subfolder}/config.json"):
        # without safetensors diffusers falls back to torch.load(weights_only=True)
        model, info = cls.from_pretrained(
            source, torch_dtype=torch.float32, output_loading_info=True, **folder,
            **_options(revision),
        )  # fmt: skip
        _check_keys(info)
    return model.eval()


# ---------------------------------------------------------------- adapting pretrained weights

LORA_TARGETS = ("to_q", "to_k", "to_v", "to_out.0")  # attention, as diffusers' own scripts
LORA_FOLDER, PROJECTION = "unet_lora", "text_projection.safetensors"


def adapt_unet(
    unet: UNet2DConditionModel, config: configuration.Adaptation, text_width: int
) -> UNet2DConditionModel:
    """Prepare a pretrained U-Net for fine-tuning, in place: projection, LoRA, checkpointing.

    A linear projection of the text states is added only where their width is not the one of the
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
    """Project text states of another width than the cross-attention's, by diffusers' own layer."""
    width = unet.config.cross_attention_dim
    known = unet.config.encoder_hid_dim
    if text_width == (known or width):
        return
    if known:
        raise ValueError(f"the U-Net projects states of width {known}, the encoder's {text_width}")
    unet.register_to_config(encoder_hid_dim=text_width, encoder_hid_dim_type="text_proj")
    unet.encoder_hid_proj = torch.nn.Linear(text_width, width)


def save_unet(unet: UNet2DConditionModel, folder: Path) -> None:
    """Write `unet/`, or for LoRA only the adapter (and projection) as `unet_lora/`."""
    if not getattr(unet, "peft_config", None):
        unet.save_pretrained(folder / "unet")
        return
    unet.save_lora_adapter(folder / LORA_FOLDER)
    if unet.encoder_hid_proj is not None:
        save_file(unet.encoder_hid_proj.state_dict(), folder / LORA_FOLDER / PROJECTION)


def load_adapted(config: configuration.Config, folder: Path) -> UNet2DConditionModel:
    """The U-Net that `save_unet` wrote; a LoRA is merged into the profile's pretrained U-Net."""
    if not (folder / LORA_FOLDER).is_dir():
        return load_unet(folder)
    assert config.unet.pretrained is not None  # the configuration's own check
    unet = load_unet(config.unet.pretrained, config.unet.revision)
    extra = folder / LORA_FOLDER / PROJECTION
    if extra.is_file():
        weights = load_file(extra)
        add_projection(unet, weights["weight"].shape[1])
        unet.encoder_hid_proj.load_state_dict(weights)
    with _explained(folder / LORA_FOLDER, "pytorch_lora_weights.safetensors"):
        unet.load_lora_adapter(str(folder / LORA_FOLDER), prefix=None, use_safetensors=True)
    unet.fuse_lora()
    unet.unload_lora()
    return unet.requires_grad_(False).eval()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' progress bars and tables of keys, which `_check_keys` judges."""
    shown, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()


def _options(revision: str | None) -> dict[str, str]:
    """Keyword for a pinned revision, if there is one."""
    return {"revision": revision} if revision else {}


UNREADABLE = (  # what reading raises: files missing, damaged, of something other than weights
    OSError, ValueError, RuntimeError, EOFError, pickle.UnpicklingError, SafetensorError,
    AttributeError, TypeError,
)  # fmt: skip


def readable(file: Path) -> bool:
    """False for a truncated file of weights, and for a web page or pointer in its place."""
    if file.suffix != ".safetensors":
        with file.open("rb") as stream:
            return zipfile.is_zipfile(file) or stream.read(1) == b"\x80"  # PyTorch before 1.6
    try:
        with safe_open(file, "pt"):
            return True
    except (SafetensorError, OSError):
        return False


class _explained:
    """Context manager that turns a failed download, missing or damaged file into `MissingWeights`.

    The weights lie beside `config`.
    """

    def __init__(
        self, source: object, files: str, revision: str | None = None, config: str = "config.json"
    ) -> None:
        self.source, self.files, self.revision = str(source), files, revision
        self.config = config

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, UNREADABLE) and not isinstance(error, MissingWeights):
            if damaged := self.damaged():
                again = f"--force-download --include '{Path(self.config).with_name(damaged.name)}'"
                command = encoders.command(self.source, self.revision, again)
                raise MissingWeights(
                    f"{damaged} is damaged: fetch it again, `{command}`"
                ) from error
            reason = (str(error).splitlines() or [""])[0]
            raise MissingWeights(
                f"no usable weights at {self.source}: {reason} - expected are {self.files}; "
                f"{self.fix()}"
            ) from error

    def damaged(self) -> Path | None:
        """The first file of weights that is there and cannot be read."""
        config = encoders.find(self.source, self.config, self.revision)
        files = encoders.weights(config.parent) if config else []
        return next((file for file in files if not readable(file)), None)

    def fix(self) -> str:
        """What to do: fetch a hub id, or look at a folder."""
        if Path(self.source).is_absolute() or Path(self.source).exists():
            return "name another folder in the profile, or a hub id to fetch"
        command = encoders.command(self.source, self.revision)
        return (
            f"on a machine with internet run `{command}` and try again "
            "(HF_HUB_OFFLINE=1 then works without), or name a local folder in the profile"
        )


def locate(config: configuration.Config, name: str) -> Path:
    """Folder of a finished product such as `vae` or `ldm/arm-s0`, else `MissingWeights`."""
    found = catalogue.find(config, name)
    if found is not None:
        return found
    raise MissingWeights(
        f"{name} of profile {config.profile!r} is neither below {config.build_dir} nor shipped: "
        f"run `python -m g2g_utils make {name} --profile {config.profile}`"
    )


def load(
    config: configuration.Config,
    arm: str | None = None,
    seed: int | None = None,
    device: torch.device | str = "cpu",
) -> GroundingModel:
    """The grounding model of one arm (default: the first) and seed (default: the first)."""
    arm = arm or next(iter(config.training.arms))
    if arm not in config.training.arms:
        known = ", ".join(config.training.arms)
        raise configuration.ConfigError(f"unknown arm {arm!r}: choose one of {known}")
    seed = config.training.seeds[0] if seed is None else seed
    name = f"ldm/{arm}-s{seed}"
    tokenizer, encoder = arm_text_encoder(config, arm, seed)
    check_length(config, arm, encoder)
    if loaded := catalogue.loaded_unet(config, arm):
        unet = load_unet(*loaded)
        check_width(config, arm, encoder, unet)
    else:
        unet = load_adapted(config, locate(config, name))
    model = GroundingModel(
        tokenizer=tokenizer,
        text_encoder=encoder,
        vae=load_vae(config.vae.pretrained or locate(config, "vae"), config.vae.revision),
        unet=unet,
        scheduler=build_scheduler(config.unet),
        image_size=config.image_size,
        max_length=config.text.max_length,
        zero_padding=config.text.zero_padding,
        name=f"{config.profile}/{name}",
    )
    return model.to(device)


def check_length(config: configuration.Config, arm: str, encoder: PreTrainedModel) -> None:
    """Refuse more tokens than an encoder has positions for (RoBERTa needs two for itself)."""
    _, positions = encoders.sizes(encoder.config.to_dict())
    if config.text.max_length > positions:
        name = config.training.arms[arm].encoder
        raise configuration.ConfigError(
            f"text.max_length = {config.text.max_length}, but encoder {name!r} has {positions} "
            "positions: lower it"
        )


def check_width(
    config: configuration.Config, arm: str, encoder: PreTrainedModel, unet: UNet2DConditionModel
) -> None:
    """Refuse a loaded U-Net that takes text states of another width than the encoder's."""
    wanted = unet.config.encoder_hid_dim or unet.config.cross_attention_dim
    if encoder.config.hidden_size != wanted:
        name = config.training.arms[arm].encoder
        raise configuration.ConfigError(
            f"training.arms.{arm}: its U-Net is loaded as it is and takes text states of width "
            f"{wanted}, but encoder {name!r} has {encoder.config.hidden_size}: name the encoder "
            "that it was trained with"
        )


def default_device(config: configuration.Config) -> str:
    """A GPU for profiles at Stable Diffusion's size, where there is one; else the CPU."""
    return "cuda" if config.unet.pretrained and torch.cuda.is_available() else "cpu"


def arm_text_encoder(
    config: configuration.Config, arm: str, seed: int
) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """Tokenizer and text encoder of an arm; a learnable arm's encoder is the fine-tuned one."""
    spec = config.training.arms[arm]
    encoder = config.encoders[spec.encoder]
    source = encoder.pretrained or locate(config, f"encoders/{spec.encoder}")
    tokenizer, text_encoder = load_text_encoder(source, encoder.revision, encoder.subfolder)
    if spec.learnable:
        folder = locate(config, f"ldm/{arm}-s{seed}") / "text_encoder"
        with _quiet():
            text_encoder = type(text_encoder).from_pretrained(folder, dtype="float32").eval()
    return tokenizer, text_encoder
