"""Models: components, checkpoints, the registry of text encoders, image-text branches."""

from __future__ import annotations

from typing import Any

from g2g_utils.models.checkpoints import (
    MissingWeights as MissingWeights,
)
from g2g_utils.models.checkpoints import (
    adopt as adopt,
)
from g2g_utils.models.checkpoints import (
    build_scheduler as build_scheduler,
)
from g2g_utils.models.checkpoints import (
    load_adapted as load_adapted,
)
from g2g_utils.models.checkpoints import (
    load_text_encoder as load_text_encoder,
)
from g2g_utils.models.checkpoints import (
    load_unet as load_unet,
)
from g2g_utils.models.checkpoints import (
    load_vae as load_vae,
)
from g2g_utils.models.checkpoints import (
    readable as readable,
)
from g2g_utils.models.checkpoints import (
    save_unet as save_unet,
)
from g2g_utils.models.components import (
    LORA_TARGETS as LORA_TARGETS,
)
from g2g_utils.models.components import (
    SD_SCHEDULE as SD_SCHEDULE,
)
from g2g_utils.models.components import (
    GroundingModel as GroundingModel,
)
from g2g_utils.models.components import (
    adapt_unet as adapt_unet,
)
from g2g_utils.models.components import (
    build_unet as build_unet,
)
from g2g_utils.models.components import (
    build_vae as build_vae,
)
from g2g_utils.models.components import (
    image_posterior as image_posterior,
)
from g2g_utils.models.components import (
    initialised as initialised,
)
from g2g_utils.models.components import (
    text_states as text_states,
)
from g2g_utils.models.components import (
    tokenize as tokenize,
)
from g2g_utils.models.components import (
    unshuffle_factor as unshuffle_factor,
)
from g2g_utils.models.components import (
    vae_input as vae_input,
)
from g2g_utils.models.components import (
    vae_output as vae_output,
)
from g2g_utils.models.components import (
    weights_digest as weights_digest,
)


def load(*words: Any, **options: Any) -> GroundingModel:
    """Load the grounding model of a profile's arm and seed, as `experiment.assemble.load` does.

    The one import that points upwards: `models.load` is the public name.
    """
    from g2g_utils.experiment import assemble

    return assemble.load(*words, **options)
