"""Inputs of the U-Net while maps are recorded (paper, section 3.1 and Appendix A).

Ground-truth sampling shows it the real image's latents, noised to every timestep; the other inputs
are steps of DDIM sampling. Every random number comes from a generator made for a key, such as
(seed, image, timestep). Results therefore do not depend on the split into batches, and phrases and
models are compared on the same noise.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import DDIMScheduler
from numpy.typing import NDArray
from torch import Tensor

from g2g_utils.models.protocol import LatentDiffusion


@dataclass(frozen=True, eq=False)
class Posterior:
    """Distribution of the scaled latents of b images, and the keys of their noise."""

    mean: Tensor  # b c h w
    std: Tensor  # b c h w
    digests: tuple[str, ...]  # of the pixels


def check_image(model: LatentDiffusion, image: Tensor | NDArray[np.generic]) -> Tensor:
    """Pixels [1 or 3, S, S], float32, of an image [S, S], [1, S, S] or [3, S, S].

    Raises:
        ValueError: for another size than the model's, or values outside [0, 1].
    """
    pixels = torch.as_tensor(image).float()
    pixels = pixels[None] if pixels.ndim == 2 else pixels
    side = model.image_size
    if pixels.ndim != 3 or pixels.shape[0] not in (1, 3) or tuple(pixels.shape[1:]) != (side, side):
        raise ValueError(f"image {tuple(pixels.shape)}: need [1 or 3, {side}, {side}] in [0, 1]")
    low, high = (float(end) for end in pixels.aminmax())
    if not -0.01 <= low <= high <= 1.01:  # resampling may overshoot a little
        raise ValueError(f"image has values from {low:g} to {high:g}: scale it to [0, 1]")
    return pixels


def posterior(model: LatentDiffusion, images: Sequence[Tensor]) -> Posterior:
    """Latents of checked images [1 or 3, S, S]. Grey ones are repeated in a batch with colours.

    See `check_image`. The same pixels give the same noise in every batch.
    """
    channels = max(len(image) for image in images)
    batch = torch.stack([image.expand(channels, -1, -1) for image in images])
    digests = (hashlib.blake2b(i.cpu().numpy().tobytes(), digest_size=8) for i in images)
    return Posterior(*model.image_posterior(batch), tuple(d.hexdigest() for d in digests))


def noise(model: LatentDiffusion, key: tuple[object, ...], draws: int | None = None) -> Tensor:
    """Gaussian latents [c, h, w] or [draws, c, h, w], drawn on the CPU from the key alone."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=7).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "big"))
    shape = model.latent_shape if draws is None else (draws, *model.latent_shape)
    return torch.randn(shape, generator=generator).to(model.device, model.dtype)


def noised(
    model: LatentDiffusion, images: Posterior, t: int, seed: int, draw: int = 0
) -> tuple[Tensor, Tensor]:
    """A fresh posterior sample of every image, noised to timestep t, and the noise in it.

    Args:
        model: gives the noise schedule.
        images: posterior of b images.
        t: timestep of the schedule, 0 to 999 for Stable Diffusion.
        seed: seed of posterior sample and noise, together with image and timestep.
        draw: number of the draw, if one (seed, image, t) is drawn several times.

    Returns:
        Latents and noise, [b, c, h, w] each.
    """
    more = (draw,) if draw else ()
    draws = [noise(model, (seed, digest, t, *more), 2) for digest in images.digests]
    eps, added = torch.stack(draws, 1)  # b c h w each
    latents = images.mean + images.std * eps
    return model.add_noise(latents, added, torch.full((len(latents),), t)), added


def empty_states(model: LatentDiffusion) -> Tensor:
    """Text states [1, n, d] of the empty prompt, the unconditional input."""
    encoded = model.tokenizer(
        "",
        max_length=model.max_length,
        padding="max_length",
        truncation=True,
        return_tensors="pt",
    )
    return model.encode_text(encoded["input_ids"], encoded["attention_mask"])


def scheduler(model: LatentDiffusion, count: int) -> DDIMScheduler:
    """A fresh DDIM scheduler on the model's noise schedule, set to `count` timesteps."""
    made = DDIMScheduler.from_config(model.scheduler.config)
    made.set_timesteps(count, device=model.device)
    return made


def timesteps(model: LatentDiffusion, count: int) -> list[int]:
    """The `count` timesteps of a run, noisiest first."""
    return [int(t) for t in scheduler(model, count).timesteps]


# -- forwards of the U-Net ------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Forward:
    """One forward of the U-Net: s timesteps of b samples, rows step-major.

    Under guidance b unconditional rows come first.
    """

    latents: Tensor  # rows c h w
    timesteps: Tensor  # rows, or one for all
    states: Tensor  # rows n d
    steps: range  # indices among the T timesteps; empty: not recorded


Forwards = Generator[Forward, Tensor, None]  # gets each forward's prediction back


@dataclass(frozen=True, eq=False, kw_only=True)
class Request:
    """A request to an input: b image-phrase pairs and the T timesteps."""

    images: Sequence[Tensor]  # checked, 1|3 S S each
    phrases: Sequence[str]
    states: Tensor  # text states of the phrases, b n d
    timesteps: int  # T
    windows: Sequence[range]  # indices of the timesteps that are recorded, in order
    seed: int = 0
    guidance: float = 16.0
    batch_size: int = 16  # rows in one forward


def run(
    model: LatentDiffusion,
    forwards: Forwards,
    context: Callable[[Forward], AbstractContextManager[object]] = lambda _: nullcontext(),
) -> None:
    """Run the U-Net over an input, each forward inside its context, predictions handed back."""
    with torch.no_grad():
        forward = next(forwards, None)
        while forward is not None:
            with context(forward):
                predicted = model.unet(forward.latents, forward.timesteps, forward.states).sample
            try:
                forward = forwards.send(predicted)
            except StopIteration:
                forward = None


def ground_truth(model: LatentDiffusion, asked: Request) -> Forwards:
    """The images' latents, noised afresh to each timestep: several timesteps in one forward.

    Predictions are never used, so timesteps that are not recorded are not run, and guidance could
    have no effect.
    """
    times, images = timesteps(model, asked.timesteps), posterior(model, asked.images)
    pairs = len(asked.images)
    per_forward = max(1, asked.batch_size // pairs)
    for window in asked.windows:
        for start in range(window.start, window.stop, per_forward):
            steps = range(start, min(start + per_forward, window.stop))
            latents = torch.cat([noised(model, images, times[i], asked.seed)[0] for i in steps])
            rows = torch.tensor([times[i] for i in steps], device=latents.device)
            states = asked.states.repeat(len(steps), 1, 1)
            yield Forward(latents, rows.repeat_interleave(pairs), states, steps)


def ground_truth_first(model: LatentDiffusion, asked: Request) -> Forwards:
    """The images' latents noised to the last timestep of training, then DDIM under guidance."""
    final = model.scheduler.config.num_train_timesteps - 1
    start, _ = noised(model, posterior(model, asked.images), final, asked.seed)
    return denoise(model, start, asked.states, asked.timesteps, asked.guidance)


def guided(model: LatentDiffusion, asked: Request) -> Forwards:
    """DDIM from pure noise under classifier-free guidance."""
    return denoise(model, _start(model, asked), asked.states, asked.timesteps, asked.guidance)


def text_only(model: LatentDiffusion, asked: Request) -> Forwards:
    """DDIM from pure noise without guidance."""
    return denoise(model, _start(model, asked), asked.states, asked.timesteps)


INPUTS: dict[str, Callable[[LatentDiffusion, Request], Forwards]] = {
    "gt": ground_truth,
    "gt_first": ground_truth_first,
    "cfg": guided,
    "text": text_only,
}


def _start(model: LatentDiffusion, asked: Request) -> Tensor:
    """Pure noise [b, c, h, w] for every phrase."""
    return torch.stack([noise(model, (asked.seed, phrase, "start")) for phrase in asked.phrases])


def denoise(
    model: LatentDiffusion, latents: Tensor, states: Tensor, count: int, guidance: float = 1.0
) -> Forwards:
    """DDIM (eta = 0) in `count` steps from `latents` [b, c, h, w] under text `states` [b, n, d].

    With guidance other than 1 each forward has b rows under the empty prompt, then b conditional.
    """
    steps = scheduler(model, count)
    if guidance != 1:
        states = torch.cat([empty_states(model).expand(len(states), -1, -1), states])
    for i, t in enumerate(steps.timesteps):
        rows = latents.repeat(len(states) // len(latents), 1, 1, 1)
        predicted = yield Forward(rows, t, states, range(i, i + 1))
        if guidance != 1:
            without, given = predicted.chunk(2)
            predicted = without + guidance * (given - without)
        latents = steps.step(predicted, t, latents, eta=0.0).prev_sample
