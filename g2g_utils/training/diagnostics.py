"""Diagnostics of a training for notebook 03: drawn noise, held-out losses, distances, logs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from g2g_utils import models
from g2g_utils.config import Config
from g2g_utils.data import sources
from g2g_utils.models import GroundingModel
from g2g_utils.training import finetune
from g2g_utils.training.fit import seeded

CAPTIONS = ("own caption", "another image's caption")


def drawn_noise(config: Config, pairs: finetune.Pairs, batches: int, seed: int) -> pd.DataFrame:
    """Timesteps and dropped captions that the first batches of a training draw."""
    size, count = config.training.batch_size, models.SD_SCHEDULE["num_train_timesteps"]
    found = []
    for step in range(batches):
        ids = finetune.batch_indices(step, size, len(pairs), seed)
        noise = finetune.draw(ids, step, pairs.mean.shape[1:], count, config.training, seed)
        found.append(pd.DataFrame({"timestep": noise.timesteps, "dropped": noise.dropped}))
    return pd.concat(found, ignore_index=True)


@torch.no_grad()
def validation_losses(
    config: Config, model: GroundingModel, unets: dict[str, nn.Module], seed: int, draws: int = 4
) -> pd.DataFrame:
    """Loss of several U-Nets on validation images, under the own caption and another image's.

    Rows are images, by patient; columns are (U-Net, caption). All see the same `draws` noises per
    image. The other caption is that of the next image.
    """
    examples = sources.examples(config, "validation")
    images = torch.from_numpy(np.stack([e.load(config.image_size) for e in examples]))[:, None]
    latents, _ = model.image_posterior(images)
    own = model.encode_phrases([example.phrase for example in examples])
    found: dict[tuple[str, str], Tensor] = {}
    for name, unet in unets.items():
        unet.to(model.device)
        for kind, states in zip(CAPTIONS, (own, own.roll(1, 0)), strict=True):
            parts = [_losses(model, unet, latents, states, seed, k, draws) for k in range(draws)]
            found[name, kind] = torch.stack(parts).mean(0).cpu()
    patients = pd.Index([example.subject_id for example in examples], name="subject_id")
    return pd.DataFrame({key: value.numpy() for key, value in found.items()}, index=patients)


@torch.no_grad()
def caption_penalty(
    config: Config, model: GroundingModel, seed: int, draws: int = 4
) -> pd.DataFrame:
    """What another image's caption costs a model in loss, by timestep, on validation images.

    Args:
        draws: number of timesteps, evenly spaced.

    Returns:
        Rows are images, by patient; columns are timesteps.
    """
    examples = sources.examples(config, "validation")
    images = torch.from_numpy(np.stack([e.load(config.image_size) for e in examples]))[:, None]
    latents, _ = model.image_posterior(images)
    own, found = model.encode_phrases([example.phrase for example in examples]), {}
    for k in range(draws):
        wrong, right = (
            _losses(model, model.unet, latents, states, seed, k, draws)
            for states in (own.roll(1, 0), own)
        )
        level = int((k + 0.5) / draws * model.scheduler.config.num_train_timesteps)
        found[level] = (wrong - right).cpu().numpy()
    patients = pd.Index([example.subject_id for example in examples], name="subject_id")
    return pd.DataFrame(found, index=patients)


def _losses(
    model: GroundingModel,
    unet: nn.Module,
    latents: Tensor,
    states: Tensor,
    seed: int,
    k: int,
    draws: int,
) -> Tensor:
    """Squared error [b] of a U-Net's prediction at the k-th of `draws` noise levels."""
    scheduler = model.scheduler
    level = int((k + 0.5) / draws * scheduler.config.num_train_timesteps)
    noise = torch.randn(latents.shape, generator=seeded(seed, 31, k)).to(latents)
    timesteps = torch.full((len(latents),), level, device=latents.device)
    noised = scheduler.add_noise(latents, noise, timesteps)
    velocity = scheduler.config.prediction_type == "v_prediction"
    target = scheduler.get_velocity(latents, noise, timesteps) if velocity else noise
    predicted: Tensor = unet(noised, timesteps, encoder_hidden_states=states).sample
    return (predicted - target).square().mean((1, 2, 3))


def distance(shadow: Sequence[Tensor], module: dict[str, Tensor]) -> float:
    """Relative distance of averaged and raw weights of a checkpoint's trained U-Net.

    Args:
        shadow: averaged weights in the module's order, of all weights or of adapters alone. Those
            of a text encoder that learned along follow and are left out.

    Raises:
        ValueError: they do not fit the module.
    """
    unet = {name: value for name, value in module.items() if name.startswith("unet.")}
    raw = [value for name, value in unet.items() if "lora_" in name] or list(unet.values())
    if [w.shape for w in shadow[: len(raw)]] != [w.shape for w in raw]:
        raise ValueError("averaged and raw weights are not of the same U-Net")
    pairs = list(zip(shadow, raw, strict=False))
    gap, size = (
        sum(float(x.float().square().sum()) for x in part)
        for part in ([a - b for a, b in pairs], [b for _, b in pairs])
    )
    return float((gap / size) ** 0.5)
