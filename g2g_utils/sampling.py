"""Inputs of the U-Net while maps are recorded (paper, section 3.1 and Appendix A).

Ground-truth sampling shows it the real image's latents, noised to every timestep; inversion walks
the image to noise without any drawn number; the other inputs are steps of DDIM sampling. Every
random number comes from a generator made for a key, such as
(seed, image, timestep). Results therefore do not depend on the split into batches, and phrases and
models are compared on the same noise.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from diffusers import DDIMScheduler
from numpy.typing import NDArray
from torch import Tensor

from g2g_utils.cache import Cache
from g2g_utils.models.protocol import LatentDiffusion

Inversion = Literal["R", "P"]

# Latents of inverted films by (weights, film, T, variant, steps), on the CPU; 2.9 MB a film at the
# size of a 512-pixel model with T = 300.
TRAJECTORIES = Cache(128 * 2**20)


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
    return Posterior(*model.image_posterior(batch), tuple(map(digest, images)))


def digest(image: Tensor) -> str:
    """Identity of an image's pixels."""
    return hashlib.blake2b(image.cpu().numpy().tobytes(), digest_size=8).hexdigest()


def noise(model: LatentDiffusion, key: tuple[object, ...], draws: int | None = None) -> Tensor:
    """Gaussian latents [c, h, w] or [draws, c, h, w], drawn on the CPU from the key alone."""
    hashed = hashlib.blake2b(repr(key).encode(), digest_size=7).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(hashed, "big"))
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


def prompt_states(model: LatentDiffusion, prompt: str) -> Tensor:
    """Text states [1, n, d] of a prompt."""
    encoded = model.tokenizer(
        prompt,
        max_length=model.max_length,
        padding="max_length",
        truncation=True,
        return_tensors="pt",
    )
    return model.encode_text(encoded["input_ids"], encoded["attention_mask"])


def empty_states(model: LatentDiffusion) -> Tensor:
    """Text states [1, n, d] of the empty prompt."""
    return prompt_states(model, "")


def scheduler(model: LatentDiffusion, count: int) -> DDIMScheduler:
    """A fresh DDIM scheduler on the model's noise schedule, set to `count` timesteps."""
    made = DDIMScheduler.from_config(model.scheduler.config)
    made.set_timesteps(count, device=model.device)
    return made


def timesteps(model: LatentDiffusion, count: int, input: str = "gt") -> list[int]:
    """The timesteps of a run with an input of `INPUTS`, noisiest first.

    They are `count`, but for inversion where `count` does not divide the steps of training: see
    `inversion_timesteps`.
    """
    if input.startswith("inversion"):
        return inversion_timesteps(model, count)[::-1]
    return [int(t) for t in scheduler(model, count).timesteps]


def fingerprint(model: LatentDiffusion) -> tuple[object, ...]:
    """Identity of a model's weights: changes when U-Net or text encoder are trained or swapped.

    Writes through `.data` (an EMA's `copy_to`) raise no version, so what attends to text is summed.
    """
    parts: list[object] = [repr(sorted(model.scheduler.config.items(), key=str))]
    for module in (model.unet, model.text_encoder):
        named = list(module.named_parameters())
        read = [w for n, w in named if "attn2.to_" in n] or [w for _, w in named]
        sums = torch.stack([w.detach().double().sum() for w in [*read, named[-1][1]]])
        written = sum(w._version for _, w in named)  # noqa: SLF001 (torch has no public name)
        parts += [id(module), written, tuple(sums.tolist())]
    return tuple(parts)


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


Forwards = Generator[Forward, Tensor, Any]  # gets each forward's prediction back


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
    """Run the U-Net over an input, each forward inside its context, predictions handed back.

    A context may end its forward early, where the input reads no prediction (`READS_NONE`).
    """
    with torch.no_grad():
        forward = next(forwards, None)
        while forward is not None:
            predicted: Any = None
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


def _start(model: LatentDiffusion, asked: Request) -> Tensor:
    """Pure noise [b, c, h, w] for every phrase."""
    return torch.stack([noise(model, (asked.seed, phrase, "start")) for phrase in asked.phrases])


def denoise(
    model: LatentDiffusion, latents: Tensor, states: Tensor, count: int, guidance: float = 1.0
) -> Generator[Forward, Tensor, Tensor]:
    """DDIM (eta = 0) in `count` steps from `latents` [b, c, h, w] under text `states` [b, n, d].

    It returns the last latents. With guidance other than 1 each forward has b rows under the empty
    prompt, then b conditional.
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
    return latents


def drawing(
    model: LatentDiffusion, phrase: str, count: int, guidance: float = 1.0, seed: int = 0
) -> Tensor:
    """Latents [count + 1, c, h, w] of a film drawn from noise by DDIM, at each step and at the end.

    Args:
        phrase: the prompt; "" for the empty one.
        count: number of timesteps.
        guidance: scale of classifier-free guidance; 1 for none.
        seed: of the initial noise, which does not depend on phrase and guidance.
    """
    start, seen = noise(model, (seed, "drawing"))[None], list[Tensor]()

    def kept() -> Forwards:
        states = prompt_states(model, phrase)
        seen.append((yield from watched(denoise(model, start, states, count, guidance))))

    def watched(inner: Generator[Forward, Tensor, Tensor]) -> Generator[Forward, Tensor, Tensor]:
        forward = next(inner)
        while True:
            seen.append(forward.latents[-1:])
            try:
                forward = inner.send((yield forward))
            except StopIteration as end:
                last: Tensor = end.value
                return last

    run(model, kept())
    return torch.cat(seen)


# -- inversion ------------------------------------------------------------------------------------


class Move(NamedTuple):
    """One DDIM move (eta = 0) of latents from one noise level to another."""

    time: int  # that the U-Net is told
    start: float  # cumulated alpha of the latents before the move; 1: clean
    end: float  # and after it


def inversion_timesteps(model: LatentDiffusion, count: int) -> list[int]:
    """Timesteps of an inversion, least noisy first: trailing spacing of k = 1000 // count.

    Vilouras et al. ask for 300 and walk ceil(1000 / 3) = 334.

    Raises:
        ValueError: `count` is not between 1 and the steps of training.
    """
    total = int(model.scheduler.config.num_train_timesteps)
    if not 1 <= count <= total:
        raise ValueError(f"inversion in {count} timesteps: choose 1 to {total}")
    stride = total // count
    return list(range((total - 1) % stride, total, stride))


def inversion_moves(model: LatentDiffusion, count: int, variant: Inversion = "R") -> list[Move]:
    """Moves from the clean latents to noise.

    Args:
        model: gives the noise schedule.
        count: number T that sets the spacing, see `inversion_timesteps`.
        variant: "R" moves from the level before t to that of t. "P" moves from the level of t to
            that after it, as the package does that the authors pinned; the last level is noise.
    """
    kept = DDIMScheduler.from_config(model.scheduler.config).alphas_cumprod.double().tolist()
    times = inversion_timesteps(model, count)
    stride = len(kept) // count
    if variant == "R":
        return [Move(t, 1.0 if t < stride else kept[t - stride], kept[t]) for t in times]
    ends = [t + stride for t in times]
    return [
        Move(t, kept[t], kept[end] if end < len(kept) else 0.0)
        for t, end in zip(times, ends, strict=True)
    ]


def move(latents: Tensor, predicted: Tensor, levels: Move, prediction: str) -> Tensor:
    """Latents after one DDIM move (eta = 0), in float32.

    Args:
        latents: at the level `levels.start`.
        predicted: output of the U-Net.
        levels: of the move; it may lead to noise or away from it.
        prediction: "epsilon", "v_prediction" or "sample".

    Raises:
        ValueError: for another prediction, and where "sample" leaves the noise of clean latents
            undefined.
    """
    x, out = latents.float(), predicted.float()
    signal, spread = levels.start**0.5, (1 - levels.start) ** 0.5
    if prediction == "v_prediction":
        clean, noise = signal * x - spread * out, signal * out + spread * x
    elif prediction == "epsilon":
        clean, noise = (x - spread * out) / signal, out
    elif prediction == "sample" and spread > 0:
        clean, noise = out, (x - signal * out) / spread
    elif prediction == "sample":
        raise ValueError("inversion R begins at clean latents, whose noise sample-prediction omits")
    else:
        raise ValueError(f"prediction type {prediction!r}: epsilon, v_prediction or sample")
    moved: Tensor = levels.end**0.5 * clean + (1 - levels.end) ** 0.5 * noise
    return moved


def walk(
    model: LatentDiffusion, latents: Tensor, moves: Sequence[Move], keep: range | None = None
) -> Generator[Forward, Tensor, Tensor]:
    """Move latents [b, c, h, w] under the empty prompt; nothing is recorded.

    Args:
        model: gives the empty prompt and the kind of prediction.
        latents: at the level where the first move starts.
        moves: one row a sample each.
        keep: indices of the latents to return, 0 before the first move; None: all.

    Returns:
        Kept latents [s, b, c, h, w], float32, on the CPU.
    """
    keep = range(len(moves) + 1) if keep is None else keep
    states = empty_states(model).expand(len(latents), -1, -1)
    prediction, kept = model.scheduler.config.prediction_type, []
    for i in range(keep.stop):
        if i in keep:
            kept.append(latents.float().cpu())
        if i < keep.stop - 1:
            time = torch.tensor(moves[i].time, device=latents.device)
            predicted = yield Forward(latents.to(model.dtype), time, states, range(0))
            latents = move(latents, predicted, moves[i], prediction)
    return torch.stack(kept)


@dataclass(frozen=True, eq=False)
class Trajectory:
    """Latents [s, c, h, w] of one film at neighbouring steps of its inversion, on the CPU."""

    latents: Tensor

    @property
    def nbytes(self) -> int:
        """Bytes of the latents."""
        return self.latents.numel() * self.latents.element_size()


def inversion(model: LatentDiffusion, asked: Request, variant: Inversion = "R") -> Forwards:
    """DDIM inversion of the images; phrases are shown the latents of the windows alone.

    The empty prompt moves the latents (Vilouras et al.: guidance 0), so a trajectory depends on the
    film alone and is remembered. Indices of the windows count from the noisiest step, as for all
    inputs. The U-Net sees the posterior's mean; no number is drawn, and seed and guidance have no
    effect.
    """
    last = len(inversion_timesteps(model, asked.timesteps)) - 1
    wanted = [last - i for window in asked.windows for i in window]
    kept = range(min(wanted), max(wanted) + 1)
    films = [digest(image) for image in asked.images]
    known = yield from _trajectories(model, asked, films, kept, variant)
    times, pairs = timesteps(model, asked.timesteps, "inversion"), len(films)
    per_forward = max(1, asked.batch_size // pairs)
    for window in asked.windows:
        for start in range(window.start, window.stop, per_forward):
            steps = range(start, min(start + per_forward, window.stop))
            seen = [known[film].latents[last - i - kept.start] for i in steps for film in films]
            rows = torch.tensor([times[i] for i in steps], device=model.device)
            yield Forward(
                torch.stack(seen).to(model.device, model.dtype),
                rows.repeat_interleave(pairs),
                asked.states.repeat(len(steps), 1, 1),
                steps,
            )


def _trajectories(
    model: LatentDiffusion, asked: Request, films: Sequence[str], kept: range, variant: Inversion
) -> Generator[Forward, Tensor, dict[str, Trajectory]]:
    """Trajectories of the films: remembered, or walked now, several films in one forward."""
    own = (fingerprint(model), asked.timesteps, variant, kept)
    images = dict(zip(films, asked.images, strict=True))
    there = [film for film in images if (own, film) in TRAJECTORIES]
    known = {film: TRAJECTORIES.get((own, film), _unknown) for film in there}
    missing = [film for film in images if film not in known]
    moves = inversion_moves(model, asked.timesteps, variant)
    for start in range(0, len(missing), asked.batch_size):
        some = missing[start : start + asked.batch_size]
        latents = posterior(model, [images[film] for film in some]).mean
        walked = yield from walk(model, latents, moves, kept)  # s b c h w
        for b, film in enumerate(some):
            made = Trajectory(walked[:, b].clone())
            known[film] = TRAJECTORIES.get((own, film), partial(_same, made))
    return known


def _same(made: Trajectory) -> Trajectory:
    return made


def _unknown() -> Trajectory:
    raise KeyError("a trajectory was forgotten while it was read")


def round_trip(
    model: LatentDiffusion, latents: Tensor, count: int, stop: int | None = None
) -> tuple[Tensor, Tensor]:
    """Walk latents [b, c, h, w] to noise (variant R) and back by DDIM over the same levels.

    A difference between the first and the last latents is the error of the inversion: the U-Net is
    asked at the latents before a move on the way there, and at those after it on the way back.

    Args:
        model: gives the U-Net, its empty prompt and the noise schedule.
        latents: of films, clean.
        count: number T that sets the spacing of the moves.
        stop: turn back after so many moves; None: after all.

    Returns:
        Latents [s + 1, b, c, h, w] on the way there, and on the way back in the same order.
    """
    there = inversion_moves(model, count)[:stop]
    back = [Move(m.time, m.end, m.start) for m in reversed(there)]
    found: list[Tensor] = []

    def both() -> Forwards:
        found.append((yield from walk(model, latents, there)))
        found.append((yield from walk(model, found[0][-1].to(model.device), back)))

    run(model, both())
    return found[0], found[1].flip(0)


READS_NONE = ("gt", "inversion", "inversion_p")
"""Inputs that read no prediction of the forwards that are recorded."""

INPUTS: dict[str, Callable[[LatentDiffusion, Request], Forwards]] = {
    "gt": ground_truth,
    "gt_first": ground_truth_first,
    "cfg": guided,
    "text": text_only,
    "inversion": partial(inversion, variant="R"),
    "inversion_p": partial(inversion, variant="P"),
}
