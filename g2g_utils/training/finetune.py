"""Fine-tuning of the U-Net on image-text pairs under a frozen or learnable text encoder.

Paper, section 4: AdamW, warm-up and cosine, gradient clipping, EMA, conditioning dropout. The
published script drops the conditioning after the optimiser step, where it cannot act; here it
replaces the token ids by the empty prompt's before the text encoder runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from torch import Tensor, nn
from torch.nn import functional as F

from g2g_utils import models, runs
from g2g_utils.config import Arm, ConfigError, Training
from g2g_utils.runs import arrays
from g2g_utils.training.fit import Modules, Options, fit, seeded, trainable

PREPROCESSING = 1  # raise when the way from an image file to the VAE's input changes


@dataclass(frozen=True)
class Pairs:
    """Training pairs: posteriors of latents, memory-mapped from disk, and captions."""

    mean: Tensor  # [n, c, h, w] mean of the scaled latents' posterior, float16 on disk
    std: Tensor  # [n, c, h, w] its standard deviation
    captions: tuple[str, ...]  # n

    def __len__(self) -> int:
        return len(self.captions)


def cache_latents(
    vae: AutoencoderKL, images: Any, folder: Path, ids: Sequence[str], batch_size: int | None = None
) -> None:
    """Write mean and deviation of the latents' posterior to arrays on disk; resumes.

    Args:
        vae: its weights are part of what the arrays are checked against.
        images: [n, S, S], uint8 or floats in [0, 1], read by slices: an array, a memory map or
            `data.films.Films`. One batch of them is in memory at a time.
        folder: receives mean.npy and std.npy, [n, c, h, w] float16.
        ids: one for each image; together they tell the images apart.
        batch_size: None: 64, but no more pixels than 8 images of 512 x 512 have.
    """
    side = images.shape[-1]
    batch = batch_size or max(1, min(64, 8 * 512**2 // side**2))
    key = runs.digest([PREPROCESSING, side, models.weights_digest(vae)])

    @torch.no_grad()
    def make(rows: range) -> dict[str, Any]:
        mean, std = _posterior(vae, images[rows.start : rows.stop])
        return {"mean": mean.cpu().half().numpy(), "std": std.cpu().half().numpy()}

    arrays.write(folder, ids, make, key=key, name="latents", batch=batch)


def _posterior(vae: AutoencoderKL, images: Any) -> tuple[Tensor, Tensor]:
    """Posterior of the scaled latents of images [b, S, S], uint8 or in [0, 1]."""
    pixels = torch.as_tensor(np.array(images))  # a copy: memory maps are read-only
    pixels = pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels
    return models.image_posterior(vae, pixels.reshape(-1, 1, *pixels.shape[-2:]).to(vae.device))


def load_pairs(folder: Path, captions: list[str]) -> Pairs:
    """Map what `cache_latents` wrote. Raises ValueError if the number of captions differs."""
    mean, std = (torch.from_numpy(arrays.read(folder, name)) for name in ("mean", "std"))
    if len(captions) != len(mean):
        raise ValueError(
            f"{folder}: {len(mean)} latents but {len(captions)} captions; delete the "
            "folder and make it again"
        )
    return Pairs(mean, std, tuple(captions))


def batch_indices(step: int, batch_size: int, n: int, seed: int) -> Tensor:
    """Sample ids [batch_size] of a step: shuffled anew every epoch, each sample once an epoch."""
    positions = torch.arange(step * batch_size, (step + 1) * batch_size)
    orders = {
        epoch: torch.randperm(n, generator=seeded(seed, 1, epoch))
        for epoch in set((positions // n).tolist())
    }
    return torch.stack([orders[int(p) // n][int(p) % n] for p in positions])


def accumulation(options: Training, processes: int) -> int:
    """Micro-steps of an update in each of several processes.

    Together they always see the batch_size x accumulate samples of the update: a training gives the
    same result with one process or many.

    Raises:
        ConfigError: these samples cannot be shared by the processes.
    """
    samples = options.batch_size * options.accumulate
    steps = max(1, options.accumulate // processes)
    if samples % (steps * processes):
        raise ConfigError(
            f"{samples} samples of an update (training.batch_size x accumulate) cannot be shared "
            f"by {processes} processes: use a divisor of {samples}"
        )
    return steps


def share(indices: Tensor, accelerator: Accelerator) -> Tensor:
    """This process's part of a global batch. Parts are equal; the batch must divide."""
    processes = accelerator.num_processes
    if len(indices) % processes:
        raise ValueError(
            f"batch size {len(indices)} cannot be shared by {processes} processes: use a multiple"
        )
    part: Tensor = indices.chunk(processes)[accelerator.process_index]
    return part


@dataclass(frozen=True)
class Noise:
    """Random draws of a batch: per sample id and step, whatever the split in processes."""

    posterior: Tensor  # [b, c, h, w] standard normal
    noise: Tensor  # [b, c, h, w] standard normal
    timesteps: Tensor  # [b] integers
    dropped: Tensor  # [b] booleans: caption replaced by the empty prompt


def draw(
    ids: Tensor, step: int, shape: torch.Size, train_timesteps: int, options: Training, seed: int
) -> Noise:
    """Draw noise for samples `ids` at `step`. Timesteps: uniform, or density linear in t."""
    rows = []
    for sample in ids.tolist():
        generator = seeded(seed, 2, step, sample)
        normal = torch.randn((2, *shape), generator=generator)
        u = torch.rand(2, generator=generator)
        rows.append((normal[0], normal[1], u[0], u[1] < options.dropout))
    posterior, noise, u, dropped = (torch.stack(column) for column in zip(*rows, strict=True))
    u = u.sqrt() if options.timestep_density == "linear" else u
    timesteps = (u * train_timesteps).long().clamp(max=train_timesteps - 1)
    return Noise(posterior, noise, timesteps, dropped)


class Denoising(nn.Module):
    """Text encoder and U-Net in one module, so that distributed wrappers see one forward."""

    def __init__(
        self, unet: UNet2DConditionModel, text: models.Conditioning, learnable: bool
    ) -> None:
        super().__init__()
        self.unet, self.text_encoder = unet, text.encoder
        self.text, self.learnable = text, learnable
        text.encoder.requires_grad_(learnable)

    def forward(self, latents: Tensor, timesteps: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """Prediction [b, c, h, w] for noised latents under token ids [b, n]."""
        with torch.set_grad_enabled(self.learnable and torch.is_grad_enabled()):
            states = self.text.states(ids, mask)
        predicted: Tensor = self.unet(latents, timesteps, encoder_hidden_states=states).sample
        return predicted


def denoising_loss(
    module: nn.Module,
    scheduler: DDIMScheduler,
    latents: Tensor,
    noise: Noise,
    ids: Tensor,
    mask: Tensor,
) -> Tensor:
    """Mean squared error of the prediction (noise or velocity) at the drawn timesteps."""
    device = latents.device
    timesteps, epsilon = noise.timesteps.to(device), noise.noise.to(device)
    noised = scheduler.add_noise(latents, epsilon, timesteps)
    velocity = scheduler.config.prediction_type == "v_prediction"
    target = scheduler.get_velocity(latents, epsilon, timesteps) if velocity else epsilon
    return F.mse_loss(module(noised, timesteps, ids, mask).float(), target)


def drop_conditioning(
    ids: Tensor, mask: Tensor, empty: tuple[Tensor, Tensor], dropped: Tensor
) -> tuple[Tensor, Tensor]:
    """Replace the rows of token ids and mask [b, n] marked in `dropped` by the empty prompt's."""
    return torch.where(dropped[:, None], empty[0], ids), torch.where(
        dropped[:, None], empty[1], mask
    )


class Wordless(nn.Module):
    """A U-Net without text: one token whose state is zero adds nothing to the images."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, latents: Tensor, timesteps: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """Prediction [b, c, h, w] for noised latents. Token ids and mask are ignored."""
        states = latents.new_zeros(len(latents), 1, self.unet.config.cross_attention_dim)
        predicted: Tensor = self.unet(latents, timesteps, encoder_hidden_states=states).sample
        return predicted


def _batch(
    pairs: Pairs,
    step: int,
    scheduler: DDIMScheduler,
    options: Training,
    seed: int,
    accelerator: Accelerator,
) -> tuple[Tensor, Noise, Tensor]:
    """This process's samples of a step: their ids, their noise, their latents on the device."""
    steps = accumulation(options, accelerator.num_processes)
    size = options.batch_size * options.accumulate // steps
    ids = share(batch_indices(step, size, len(pairs), seed), accelerator)
    count = scheduler.config.num_train_timesteps
    update = step // steps  # accumulated, shared or at once: the same noise
    noise = draw(ids, update, pairs.mean.shape[1:], count, options, seed)
    latents = pairs.mean[ids] + pairs.std[ids] * noise.posterior
    return ids, noise, latents.to(accelerator.device)


def _fit(
    name: str,
    module: nn.Module,
    groups: list[dict[str, Any]],
    loss: Any,
    folder: Path,
    options: Training,
    steps: int,
) -> None:
    """Train `module` for `steps` and leave it with its averaged weights."""
    budget = Options(
        steps=steps,
        warmup=options.warmup,
        clip=options.clip,
        ema=options.ema,
        accumulate=accumulation(options, runs.processes()),
        mixed_precision=options.mixed_precision,
        checkpoint_every=options.checkpoint_every,
        log_every=options.log_every,
    )
    ema = fit(
        name, {"denoising": module}, groups, loss, folder, budget,
        weight_decay=options.weight_decay, averaged="denoising",
    )  # fmt: skip
    if ema is not None:
        ema.copy_to(trainable(module))


def _use_fast_attention(unet: UNet2DConditionModel, options: Training) -> None:
    """Use plain attention for bf16 on a CPU: measured, steps are 1.6 times faster than fused."""
    if options.mixed_precision == "bf16" and not torch.cuda.is_available():
        unet.set_attn_processor(AttnProcessor())


def pretrain(
    pairs: Pairs,
    unet: UNet2DConditionModel,
    scheduler: DDIMScheduler,
    options: Training,
    folder: Path,
    *,
    seed: int,
    steps: int,
) -> None:
    """Train a U-Net to denoise without text and save `unet/` (EMA weights). Resumes."""
    module = Wordless(unet)
    module.train()
    _use_fast_attention(unet, options)
    nothing = torch.zeros(options.batch_size, 1, dtype=torch.long)

    def loss(step: int, modules: Modules, accelerator: Accelerator) -> Tensor:
        _, noise, latents = _batch(pairs, step, scheduler, options, seed, accelerator)
        none = nothing[: len(latents)].to(latents.device)
        return denoising_loss(modules["denoising"], scheduler, latents, noise, none, none)

    groups = [{"params": list(unet.parameters()), "lr": options.learning_rate}]
    _fit("foundation", module, groups, loss, folder, options, steps)
    module.eval()
    unet.set_attn_processor(AttnProcessor2_0())
    unet.save_pretrained(folder / "unet")


def parameter_groups(module: Denoising, options: Training) -> list[dict[str, Any]]:
    """Optimiser groups: U-Net, its cross-attention (scaled rate), the text encoder if learnable."""
    cross: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in module.unet.named_parameters():
        if not parameter.requires_grad:  # the frozen base of a LoRA
            continue
        (cross if ".attn2." in name else rest).append(parameter)
    rate = options.learning_rate
    groups = [
        {"params": rest, "lr": rate},
        {"params": cross, "lr": rate * options.attention_lr_scale},
    ]
    if module.learnable:
        text = list(module.text_encoder.parameters())
        groups.append({"params": text, "lr": options.text_learning_rate})
    return groups


def fine_tune(
    pairs: Pairs,
    unet: UNet2DConditionModel,
    text: models.Conditioning,
    scheduler: DDIMScheduler,
    arm: Arm,
    options: Training,
    folder: Path,
    *,
    seed: int,
    steps: int | None = None,
    name: str = "fine-tuning",
) -> None:
    """Train one arm and save `unet/` (EMA weights) and, if learnable, `text_encoder/`.

    Resumes from the checkpoint in `folder`. `steps` shortens the run for live demonstrations.
    """
    captions = list(pairs.captions)
    if arm.shuffled:  # control: every caption describes another image
        order = torch.randperm(len(captions), generator=seeded(seed, 3)).tolist()
        captions = [captions[i] for i in order]
    tokens, masks = text.tokens(captions)
    empty = text.tokens([""])
    module = Denoising(unet, text, arm.learnable)
    module.train()
    text.encoder.train(arm.learnable)
    _use_fast_attention(unet, options)

    def loss(step: int, modules: Modules, accelerator: Accelerator) -> Tensor:
        ids, noise, latents = _batch(pairs, step, scheduler, options, seed, accelerator)
        input_ids, mask = drop_conditioning(tokens[ids], masks[ids], empty, noise.dropped)
        device = accelerator.device
        return denoising_loss(
            modules["denoising"], scheduler, latents, noise, input_ids.to(device), mask.to(device)
        )

    groups = parameter_groups(module, options)
    _fit(name, module, groups, loss, folder, options, steps or options.steps)
    module.eval()
    unet.set_attn_processor(AttnProcessor2_0())
    if runs.rank():  # the first process of a group writes
        return
    models.save_unet(unet, folder)
    if arm.learnable:
        text.encoder.save_pretrained(folder / "text_encoder")
