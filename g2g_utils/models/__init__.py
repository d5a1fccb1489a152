"""Models: components, checkpoints, the registry of text encoders, image-text branches."""

from __future__ import annotations

import torch

from g2g_utils.config import Config
from g2g_utils.models.checkpoints import (
    MissingWeights,
    adopt,
    build_scheduler,
    load_adapted,
    load_scheduler,
    load_text_encoder,
    load_unet,
    load_vae,
    readable,
    save_unet,
)
from g2g_utils.models.components import (
    LORA_TARGETS,
    SD_SCHEDULE,
    Conditioning,
    GroundingModel,
    adapt_unet,
    build_unet,
    build_vae,
    image_posterior,
    initialised,
    text_states,
    tokenize,
    unshuffle_factor,
    vae_input,
    vae_output,
    weights_digest,
)

__all__ = [
    "LORA_TARGETS",
    "SD_SCHEDULE",
    "Conditioning",
    "GroundingModel",
    "MissingWeights",
    "adapt_unet",
    "adopt",
    "build_scheduler",
    "build_unet",
    "build_vae",
    "image_posterior",
    "initialised",
    "load",
    "load_adapted",
    "load_scheduler",
    "load_text_encoder",
    "load_unet",
    "load_vae",
    "readable",
    "save_unet",
    "text_states",
    "tokenize",
    "unshuffle_factor",
    "vae_input",
    "vae_output",
    "weights_digest",
]


def load(
    config: Config,
    arm: str | None = None,
    seed: int | None = None,
    device: torch.device | str = "cpu",
) -> GroundingModel:
    """Load the grounding model of a profile's arm and seed, as `experiment.assemble.load` does.

    The one import that points upwards: `models.load` is the public name.
    """
    from g2g_utils.experiment import assemble

    return assemble.load(config, arm, seed, device)
