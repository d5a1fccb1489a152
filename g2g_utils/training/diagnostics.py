"""What notebook 03 asks of a training: drawn noise, held-out losses, distances, finished logs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from g2g_utils import models
from g2g_utils.config import Config
from g2g_utils.data import sources
from g2g_utils.experiment import products
from g2g_utils.models import GroundingModel
from g2g_utils.training import finetune
from g2g_utils.training.fit import read_log, seeded

CAPTIONS = ("own caption", "stranger's caption")


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
    """Loss of several U-Nets on the validation films, under the own and a stranger's caption.

    Rows are films, by patient; columns (U-Net, caption). All see the same `draws` noises a film;
    the stranger is the next film.
    """
    films = sources.examples(config, "validation")
    images = torch.from_numpy(np.stack([f.load(config.image_size) for f in films]))[:, None]
    latents, _ = model.image_posterior(images)
    own = model.encode_phrases([film.phrase for film in films])
    found: dict[tuple[str, str], Tensor] = {}
    for name, unet in unets.items():
        unet.to(model.device)
        for kind, states in zip(CAPTIONS, (own, own.roll(1, 0)), strict=True):
            parts = [_losses(model, unet, latents, states, seed, k, draws) for k in range(draws)]
            found[name, kind] = torch.stack(parts).mean(0).cpu()
    patients = pd.Index([film.subject_id for film in films], name="subject_id")
    return pd.DataFrame({key: value.numpy() for key, value in found.items()}, index=patients)


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
    predicted = unet(noised, timesteps, encoder_hidden_states=states).sample
    return (predicted - target).square().mean((1, 2, 3))


def distance(shadow: Sequence[Tensor], module: dict[str, Tensor]) -> float:
    """Relative distance of averaged and raw weights of a checkpoint's trained U-Net.

    shadow: the averaged ones in the module's order, of all weights or of adapters alone; those of a
    text encoder that learned along follow and are left out. Raises ValueError where they don't fit.
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


def finished_logs(config: Config) -> dict[str, pd.DataFrame]:
    """Training logs of the arms and seeds that are made or shipped; none is trained for this."""
    logs = {}
    for name in products.plan(config):
        folder = products.find(config, name) if name.startswith("ldm/") else None
        if folder is not None and (folder / "log.jsonl").is_file():
            logs[name.removeprefix("ldm/")] = pd.DataFrame(read_log(folder))
    return logs


def draw_logs(ax: Any, logs: dict[str, pd.DataFrame], smooth: int = 15) -> None:
    """Smoothed losses: one colour an arm, one line a seed."""
    arms = [name.rpartition("-s")[0] for name in logs]
    colours = dict(zip(dict.fromkeys(arms), plt.colormaps["tab10"](range(10)), strict=False))
    for k, (arm, log) in enumerate(zip(arms, logs.values(), strict=True)):
        mean = log["loss"].rolling(smooth, min_periods=1).mean()
        label = arm if arm not in arms[:k] else None
        ax.plot(log["step"], mean, color=colours[arm], lw=1, alpha=0.8, label=label)
    ax.legend(ncols=2)
