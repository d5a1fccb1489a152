"""Assemble the grounding model of an arm and seed from products that are there."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from g2g_utils import config as configuration
from g2g_utils.experiment import costs, plan
from g2g_utils.models import (
    GroundingModel,
    MissingWeights,
    build_scheduler,
    load_adapted,
    load_scheduler,
    load_text_encoder,
    load_unet,
    load_vae,
    registry,
)
from g2g_utils.models.checkpoints import quiet
from g2g_utils.models.supported import check_supported
from g2g_utils.runs import places


def locate(config: configuration.Config, name: str) -> Path:
    """Folder of a finished product such as `vae` or `ldm/arm-s0`, else `MissingWeights`."""
    found = plan.find(config, name)
    if found is not None:
        return found
    raise MissingWeights(
        f"{name} of profile {config.profile!r} is neither below {places.build(config)} nor "
        f"shipped: run `python -m g2g_utils make {name} --profile {config.profile}`"
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
    pipeline = whole_pipeline(config, arm)
    tokenizer, encoder = arm_text_encoder(config, arm, seed)
    tokenizer.spacy_model = config.grounding.spacy_model  # `text.tokenize` hands it to its phrases
    check_length(config, arm, encoder)
    if loaded := config.loaded_unet(arm):
        unet = load_unet(pipeline) if pipeline else load_unet(*loaded)
        check_width(config, arm, encoder, unet)
    else:
        unet = load_adapted(config, locate(config, name))
    if pipeline:
        vae, scheduler = load_vae(pipeline), load_scheduler(pipeline)
    else:
        vae = load_vae(config.vae.pretrained or locate(config, "vae"), config.vae.revision)
        scheduler = build_scheduler(config.unet)
    model = GroundingModel(
        tokenizer=tokenizer,
        text_encoder=encoder,
        vae=vae,
        unet=unet,
        scheduler=scheduler,
        image_size=config.image_size,
        max_length=config.text.max_length,
        zero_padding=config.text.zero_padding,
        name=f"{config.profile}/{name}",
    )
    check_supported(model.unet.config, model.vae.config, model.name)
    return model.to(device)


def whole_pipeline(config: configuration.Config, arm: str) -> Path | None:
    """Folder of an arm's own pipeline (relative to the repository), None for other arms.

    Raises:
        MissingWeights: the folder lacks a file.
    """
    if line := costs.absent_pipeline(config, arm):
        raise MissingWeights(f"arm {arm}: {line}")
    return plan.pipeline(config, arm)


def check_length(config: configuration.Config, arm: str, encoder: PreTrainedModel) -> None:
    """Refuse more tokens than an encoder has positions for (RoBERTa needs two for itself)."""
    _, positions = registry.sizes(encoder.config.to_dict())
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
        with quiet():
            text_encoder = type(text_encoder).from_pretrained(folder, dtype="float32").eval()
    return tokenizer, text_encoder
