"""Load and save weights in the folders of diffusers and transformers.

Nothing is unpickled and no remote code is run.
"""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
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

from g2g_utils import config as configuration
from g2g_utils.models import monai, registry
from g2g_utils.models.components import SD_SCHEDULE, add_projection
from g2g_utils.models.supported import check_supported

Part = TypeVar("Part", AutoencoderKL, UNet2DConditionModel)


class MissingWeights(FileNotFoundError):
    """Weights that are not on disk. The message names the place searched and the fix."""


def adopt(unet: UNet2DConditionModel, folder: Path) -> None:
    """Take over a trained U-Net's weights, except those that read the text, which stay as built."""
    trained = load_file(folder / "diffusion_pytorch_model.safetensors")
    reading = tuple(f".attn2.{name}." for name in ("to_q", "to_k", "to_v"))
    kept = {n: w.float() for n, w in trained.items() if not any(r in n for r in reading)}
    fresh = {n: w for n, w in unet.state_dict().items() if any(r in n for r in reading)}
    wanted = {n: w.shape for n, w in unet.state_dict().items() if n not in fresh}
    if {n: w.shape for n, w in kept.items()} != wanted:
        raise ValueError(f"{folder}: a U-Net of another shape; delete the folder and make it again")
    unet.load_state_dict(fresh | kept)


TEXT_MODELS: dict[str, type[PreTrainedModel]] = {  # by the model type in a checkpoint's config.json
    "bert": BertModel,
    "cxr-bert": BertModel,  # its own class is remote code; its states are a plain BERT's
    "roberta": RobertaModel,
    "clip": CLIPTextModel,
    "clip_text_model": CLIPTextModel,
}

HEADS = (  # other weights that a checkpoint may hold
    "cls.", "cls_projection_head.", "lm_head.", "pooler.", "bert.pooler.", "roberta.pooler.",
    "vision_model.", "visual_projection.", "text_projection.", "logit_scale",
)  # fmt: skip

BUFFERS = ("position_ids",)  # stored by old versions, computed by new ones


def load_text_encoder(
    source: str | Path, revision: str | None = None, subfolder: str | None = None
) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """Tokenizer and text encoder of a folder, hub id or name in `registry.REGISTRY`.

    BERT, CXR-BERT, RoBERTa or CLIP, chosen by the config's model type. CXR-BERT loads as a plain
    `BertModel`, whose last hidden state equals its remote-code class's. No remote code is run.

    Args:
        source: folder, hub id or registered name.
        revision: of a hub id.
        subfolder: the encoder's folder in a pipeline, whose tokenizer lies in `tokenizer`.

    Raises:
        MissingWeights: weights are absent or do not fit; the message names the fix.
    """
    source, revision = registry.resolve(str(source), revision)
    options = _options(revision)
    folder = {"subfolder": subfolder} if subfolder else {}
    config = f"{subfolder}/config.json" if subfolder else "config.json"
    with _explained(source, registry.expected(source), revision, config), quiet():
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
    _check_words(tokenizer, encoder, place, registry.command(source, revision))
    return tokenizer, encoder.eval()


def _check_words(
    tokenizer: PreTrainedTokenizerBase, encoder: PreTrainedModel, place: str, command: str
) -> None:
    """Refuse a tokenizer that knows few of the encoder's words: its file is missing."""
    known, wanted = len(tokenizer), encoder.config.vocab_size
    if known < wanted / 2:
        bert = isinstance(encoder, BertModel)
        raise MissingWeights(
            f"the tokenizer at {place} knows {known} words, its encoder {wanted}: expected is "
            f"{registry.BERT_WORDS if bert else registry.BYTE_PAIRS}; run `{command}`"
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
    """VAE of a folder or hub id, or of the subfolder `vae` of a Stable Diffusion pipeline."""
    source = registry.at_home(source)
    check_supported(None, stored_config(source, "vae", revision), source)
    vae = _load(AutoencoderKL, source, "vae", revision)
    check_supported(None, vae.config, source)
    return monai.restore(vae)


def load_unet(source: str | Path, revision: str | None = None) -> UNet2DConditionModel:
    """U-Net of a folder or hub id: subfolder `unet_ema` (the released one), else `unet`."""
    given, source = str(source), registry.at_home(source)
    released = source.endswith("cxr_bert_ldm") or (Path(source) / "unet_ema").is_dir()
    subfolder = "unet_ema" if released else "unet"
    check_supported(stored_config(source, subfolder, revision), source=source)
    unet = _load(UNet2DConditionModel, source, subfolder, revision)
    check_supported(unet.config, source=source)
    if source != given:  # what is made of it names no place of this machine
        unet.register_to_config(_name_or_path=given)
    return unet


def _load(cls: type[Part], source: str | Path, subfolder: str, revision: str | None) -> Part:
    """`cls.from_pretrained` as float32, in evaluation mode, with errors explained."""
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


def stored_config(
    source: str | Path, subfolder: str, revision: str | None
) -> dict[str, Any] | None:
    """The config.json of a part on this machine, or None; nothing is fetched."""
    own = Path(registry.at_home(source)) / "config.json"
    found = (
        own if own.is_file() else registry.find(str(source), f"{subfolder}/config.json", revision)
    )
    try:
        read = json.loads(found.read_text("utf-8")) if found else None
    except (ValueError, RecursionError):  # said when it is loaded
        return None
    return read if isinstance(read, dict) else None


LORA_FOLDER, PROJECTION = "unet_lora", "text_projection.safetensors"


def save_unet(unet: UNet2DConditionModel, folder: Path) -> None:
    """Write `unet/`; for LoRA only the adapter (and projection), as `unet_lora/`."""
    if not getattr(unet, "peft_config", None):
        unet.save_pretrained(folder / "unet")
        return
    unet.save_lora_adapter(folder / LORA_FOLDER)
    if unet.encoder_hid_proj is not None:
        save_file(unet.encoder_hid_proj.state_dict(), folder / LORA_FOLDER / PROJECTION)


def load_adapted(config: configuration.Config, folder: Path) -> UNet2DConditionModel:
    """Load the U-Net that `save_unet` wrote, a LoRA merged into the profile's pretrained one."""
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
def quiet() -> Iterator[None]:
    """Silence transformers' progress bars and key reports; `_check_keys` checks the keys."""
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


UNREADABLE = (  # errors of reading: files missing, damaged, or no weights
    OSError, ValueError, RuntimeError, EOFError, pickle.UnpicklingError, SafetensorError,
    AttributeError, TypeError, LookupError, ArithmeticError, AssertionError,
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


@contextmanager
def _explained(
    source: str | Path, files: str, revision: str | None = None, config: str = "config.json"
) -> Iterator[None]:
    """Turn a failed download and a missing or damaged file into one sentence, `MissingWeights`.

    The weights lie beside `config`.
    """
    try:
        yield
    except MissingWeights:
        raise
    except UNREADABLE as error:
        place = registry.find(str(source), config, revision)
        weights = registry.weights(place.parent) if place else []
        if damaged := next((file for file in weights if not readable(file)), None):
            again = f"--force-download --include '{Path(config).with_name(damaged.name)}'"
            command = registry.command(str(source), revision, again)
            raise MissingWeights(f"{damaged} is damaged: fetch it again, `{command}`") from error
        fix = "name another folder in the profile, or a hub id to fetch"
        if not registry.is_folder(str(source)):
            fix = (
                f"on a machine with internet run `{registry.command(str(source), revision)}` and "
                "try again (HF_HUB_OFFLINE=1 then works without), or name a local folder in the "
                "profile"
            )
        reason = (str(error).splitlines() or [""])[0]
        raise MissingWeights(
            f"no usable weights at {source}: {reason} - expected are {files}; {fix}"
        ) from error


def build_scheduler(config: configuration.Unet) -> DDIMScheduler:
    """The noise schedule: the profile's, else that of Stable Diffusion 1.5.

    A loaded schedule states what the U-Net predicts, and `config.prediction` must agree.
    """
    if not config.scheduler:
        return DDIMScheduler(**SD_SCHEDULE, prediction_type=config.prediction)
    loaded = load_scheduler(config.scheduler, config.schedule_revision)
    if loaded.config.prediction_type != config.prediction:
        raise configuration.ConfigError(
            f"unet.prediction = {config.prediction!r}, but the schedule of {config.scheduler} is "
            f"for {loaded.config.prediction_type!r}: set unet.prediction to that, or name another "
            "unet.scheduler"
        )
    return loaded


def load_scheduler(source: str | Path, revision: str | None = None) -> DDIMScheduler:
    """Noise schedule of a folder or hub id, from its subfolder `scheduler`."""
    with _explained(source, "scheduler/scheduler_config.json", revision):
        return DDIMScheduler.from_pretrained(source, subfolder="scheduler", **_options(revision))
