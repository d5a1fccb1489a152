"""Information maps: how much better a phrase predicts the noise that was really added.

Ground-truth sampling shows the U-Net the image's latent z_t = α_t z + σ_t ε. The noise ε̂(z_t, c)
that it predicts under a phrase c is compared with its prediction under a condition ∅, for the
*same* ε. The gain of the phrase at a latent place p is

    G(p) = Σ_t w_t mean_ε Σ_channels [(ε − ε̂(z_t, ∅))² − (ε − ε̂(z_t, c))²](p).

With weights="nats", half the integral over log-SNR, G estimates log p(z|c) − log p(z|∅) place by
place (Kong et al., Interpretable Diffusion via Information Decomposition, ICLR 2024); its sum over
p is what diffusion classifiers compare (Li et al., ICCV 2023; on radiographs arXiv 2502.03687).
Other weights sum to one: G is then a difference of squared errors, not nats. The non-negative D(p)
puts (ε̂(z_t, c) − ε̂(z_t, ∅))² in the bracket. It asks what the phrase would draw, not whether this
image agrees.

Several conditions are averaged. The default compares with the empty prompt ("what does the phrase
add?") and with a normal impression ("what does it explain that is not normal?").
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from g2g_utils import bbm, sampling
from g2g_utils.attention import CrossAttentionRecorder, Layers
from g2g_utils.models.protocol import LatentDiffusion
from g2g_utils.text import Filter, PhraseTokens, select_tokens, stack, tokenize

Weights = Literal["noise", "flat", "nats"]
Image = Tensor | npt.NDArray[np.float32]

NORMAL = "no acute cardiopulmonary process. the lungs are clear"
SMOOTH = 3 / 32  # width of the Gaussian, of the latent's side: 1.5 places of 16
SOFTNESS = 0.5  # of the softplus, in root mean squares of the smoothed gain
NO_EMPTY = (
    "this model never saw dropped captions, so the empty prompt is no unconditional state: the "
    "gain compares the phrase with an unfamiliar prompt and doesn't say what the phrase adds"
)


@dataclass(frozen=True, kw_only=True)
class Options:
    """Settings of a measurement. Every field is a keyword of `measure`.

    An image costs T x draws U-Net rows for every phrase and every condition. Its phrases share the
    rows of the conditions.
    """

    timesteps: int = 10  # T, in DDIM's spacing
    draws: int = 2  # noise draws per timestep
    conditions: tuple[str, ...] = ("", NORMAL)  # prompts to compare with, averaged; "": the empty
    weights: Weights = "noise"  # see `step_weights`; "noise" was chosen on validation
    seed: int = 0  # of the noise
    layers: Layers | None = None  # of the attention recorded beside
    filter: Filter = "lexical"  # of the attention's tokens
    batch_size: int = 64  # U-Net rows in one forward; maps don't depend on it
    dropped_captions: bool = True  # the model was trained with them; if not, "" warns
    spacy_model: object = None

    def __post_init__(self) -> None:
        for name in ("timesteps", "draws", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: at least one")
        if isinstance(self.conditions, str) or not self.conditions:
            raise ValueError(f"conditions={self.conditions!r}: give a tuple of at least one prompt")
        if self.weights not in ("noise", "flat", "nats"):
            raise ValueError(f"weights={self.weights!r}: choose noise, flat or nats")

    def rows(self, phrases: int = 1) -> int:
        """U-Net rows of one image with this number of phrases."""
        return self.timesteps * self.draws * (phrases + len(self.conditions))


@dataclass(frozen=True, eq=False)
class Information:
    """Information of a phrase about an image, for the model. Tensors are float32 on the CPU.

    H, W is the latent resolution, C the number of conditions.
    """

    phrase: str
    conditions: tuple[str, ...]
    steps: Tensor  # mean gain over every condition and timestep, unweighted [C, T, H, W]
    differences: Tensor  # D, weighted, per condition [C, H, W]
    weights: Tensor  # w_t [T]
    timesteps: tuple[int, ...]  # descending
    nats: bool  # the gain is in nats per latent place
    tokens: tuple[int, ...]  # those that ground
    phrase_tokens: PhraseTokens = field(repr=False)
    token_maps: Tensor = field(repr=False)  # mean attention of the same forwards [tokens, H, W]

    @property
    def gains(self) -> Tensor:
        """G over every condition [C, H, W], signed, not smoothed."""
        return torch.einsum("t,cthw->chw", self.weights, self.steps)

    @property
    def gain(self) -> Tensor:
        """G [H, W], mean over the conditions."""
        return self.gains.mean(0)

    @property
    def totals(self) -> tuple[float, ...]:
        """Sum of the gain over the image, for every condition: evidence for the phrase."""
        return tuple(self.gains.double().sum((-2, -1)).tolist())

    @property
    def total(self) -> float:
        """Mean of the totals: the evidence that calibrated best (docs/miniature_log.md)."""
        return sum(self.totals) / len(self.totals)

    @property
    def nbytes(self) -> int:
        """Memory of the maps."""
        return sum(t.nbytes for t in (self.steps, self.differences, self.token_maps))

    @property
    def attention(self) -> Tensor:
        """Activation map of the same forwards [H, W], min-max scaled."""
        return bbm.minmax(self.token_maps[list(self.tokens)].mean(0))

    def heatmap(self, sigma: float = SMOOTH, softness: float = SOFTNESS) -> Tensor:
        """The gain as a heat map [H, W] in [0, 1]; see `positive`."""
        return bbm.minmax(positive(smooth(self.gain, sigma), softness))

    def product(self, sigma: float = SMOOTH, softness: float = SOFTNESS) -> Tensor:
        """Information × attention [H, W] in [0, 1]: the heat map times the root of attention."""
        return bbm.minmax(self.heatmap(sigma, softness) * self.attention.sqrt())


# -- measuring ------------------------------------------------------------------------------------


@torch.no_grad()
def measure(
    model: LatentDiffusion, image: Image, phrases: Sequence[str], **options: object
) -> list[Information]:
    """Information maps of phrases of one image, from shared noise.

    Noise is drawn for (seed, image, timestep, draw), the first draw being that of ground-truth
    sampling: maps depend on neither the batch size nor the other phrases, up to rounding.

    Args:
        model: the latent diffusion model.
        image: [S, S], [1, S, S] or [3, S, S] in [0, 1].
        phrases: at least one.
        **options: fields of `Options`.

    Raises:
        ValueError: for a phrase equal to a condition, more timesteps than the noise schedule has,
            or an image of another size or range.
        PhraseError: for a phrase without words to ground.
    """
    chosen = Options(**options)  # type: ignore[arg-type]
    _check(model, phrases, chosen)
    words = [tokenize(model.tokenizer, phrase, model.max_length) for phrase in phrases]
    tokens = [select_tokens(w, chosen.filter, spacy_model=chosen.spacy_model) for w in words]
    times = sampling.timesteps(model, chosen.timesteps)
    weights = step_weights(model, times, chosen.weights)
    recorder = CrossAttentionRecorder(
        model.unet,
        [range(phrase.end + 1) for phrase in words],
        "mean",
        rows_per_step=len(words),
        layers=chosen.layers,
    )
    states = model.encode_text(*stack(words))  # k n d
    steps, squares = _compare(model, image, states, times, recorder, chosen)  # k c t h w
    maps, differences = recorder.maps().cpu(), torch.einsum("t,kcthw->kchw", weights, squares)
    return [
        Information(
            phrase=phrase.text,
            conditions=chosen.conditions,
            steps=steps[k],
            differences=differences[k],
            weights=weights,
            timesteps=tuple(times),
            nats=chosen.weights == "nats",
            tokens=tuple(tokens[k]),
            phrase_tokens=phrase,
            token_maps=maps[k, : phrase.end + 1].clone(),
        )
        for k, phrase in enumerate(words)
    ]


def word_information(
    model: LatentDiffusion, image: Image, phrase: str, **options: object
) -> dict[str, Tensor]:
    """Information of every content word given the rest of the phrase: word -> signed map [H, W].

    It is the gain of the phrase minus that of the phrase without the word, from the same noise. A
    word that occurs twice is left out everywhere; the only word of a phrase has the whole gain.
    """
    words = tokenize(model.tokenizer, phrase, model.max_length)
    chosen = Options(**options)  # type: ignore[arg-type]
    tokens = set(select_tokens(words, chosen.filter, spacy_model=chosen.spacy_model))
    content = dict.fromkeys(w.text for w in words.words if tokens & set(w.tokens))
    rests = {word: rest for word in content if (rest := leave_out(phrase, word))}
    found = measure(model, image, [phrase, *rests.values()], **{**options, "filter": "all"})
    without = {word: other.gain for word, other in zip(rests, found[1:], strict=True)}
    return {w: found[0].gain - without[w] if w in without else found[0].gain for w in content}


def leave_out(phrase: str, word: str) -> str:
    """The phrase without a word, spaces tidied; "" if no word is left."""
    rest = re.sub(rf"(?<!\w){re.escape(word)}(?!\w)", " ", phrase, flags=re.IGNORECASE)
    rest = re.sub(r"\s+([.,;:])", r"\1", " ".join(rest.split())).strip(" ,;:-")
    return rest if re.search(r"\w", rest) else ""


# -- maps -----------------------------------------------------------------------------------------


def smooth(maps: Tensor, sigma: float = SMOOTH) -> Tensor:
    """Maps [..., H, W] under a Gaussian of `sigma` times their side; edges repeat."""
    for axis in (-1, -2) if sigma > 0 else ():
        width = sigma * maps.shape[axis]
        reach = max(1, int(4 * width + 0.5))
        taps = torch.exp(-0.5 * (torch.arange(-reach, reach + 1.0) / width) ** 2).to(maps)
        rows = maps.transpose(axis, -1)
        flat = rows.reshape(-1, 1, rows.shape[-1])  # n 1 side
        flat = F.pad(flat, (reach, reach), mode="replicate")
        out = F.conv1d(flat, (taps / taps.sum())[None, None])
        maps = out.reshape(rows.shape).transpose(axis, -1)
    return maps


def positive(gain: Tensor, softness: float = SOFTNESS) -> Tensor:
    """softplus(gain / (softness · rms)): negative gain fades out, order is kept [..., H, W].

    rms: root mean square of each map, so the result has no unit; a map of zeros stays constant.
    """
    scale = gain.square().mean((-2, -1), keepdim=True).sqrt().clamp(min=1e-12)
    return F.softplus(gain / (softness * scale))


# -- noise ----------------------------------------------------------------------------------------


def log_snr(model: LatentDiffusion, timesteps: Sequence[int]) -> Tensor:
    """λ_t = log(α_t² / σ_t²) [T], float64."""
    kept = _kept(model, timesteps)
    return torch.log(kept) - torch.log1p(-kept)


def step_weights(model: LatentDiffusion, timesteps: Sequence[int], kind: Weights) -> Tensor:
    """w_t [T], float32, of timesteps in descending order.

    "nats": half the trapezoid rule over log-SNR from the first to the last timestep, without the
    part beyond them. "flat": 1 / T. "noise": proportional to σ_t². These two sum to one.
    """
    if kind == "nats":
        if len(timesteps) < 2:
            raise ValueError('weights="nats" integrate over log-SNR: at least two timesteps')
        gaps = log_snr(model, timesteps).diff() / 2
        return ((F.pad(gaps, (1, 0)) + F.pad(gaps, (0, 1))) / 2).float()
    kept = _kept(model, timesteps)
    raw = 1 - kept if kind == "noise" else torch.ones_like(kept)
    return (raw / raw.sum()).float()


def predicted_noise(
    model: LatentDiffusion, noisy: Tensor, timesteps: Tensor, states: Tensor
) -> Tensor:
    """ε̂ [m, k, c, h, w], float32, of latents [m, c, h, w] at timesteps [m] under states [k, n, d].

    The scheduler's prediction type tells the output of the U-Net: for z_t = α z + σ ε it is ε
    ("epsilon"), α ε − σ z ("v_prediction") or z ("sample").
    """
    m, k = len(noisy), len(states)
    times = timesteps.to(noisy.device).repeat_interleave(k)
    out: Tensor = model.unet(noisy.repeat_interleave(k, 0), times, states.repeat(m, 1, 1)).sample
    out, latents = out.float().reshape(m, k, *noisy.shape[1:]), noisy.float()[:, None]
    kept = _kept(model, timesteps.tolist()).to(noisy.device, torch.float32).view(m, 1, 1, 1, 1)
    alpha, sigma = kept.sqrt(), (1 - kept).sqrt()
    kind = model.scheduler.config.prediction_type
    if kind == "epsilon":
        return out
    if kind == "v_prediction":
        return alpha * out + sigma * latents
    if kind == "sample":
        return (latents - alpha * out) / sigma
    raise ValueError(f"prediction_type={kind!r}: known are epsilon, v_prediction and sample")


# -- details --------------------------------------------------------------------------------------


def _compare(
    model: LatentDiffusion,
    image: Image,
    given: Tensor,
    times: Sequence[int],
    recorder: CrossAttentionRecorder,
    options: Options,
) -> tuple[Tensor, Tensor]:
    """Gain and squared difference, mean over the draws [k, c, t, h, w], streamed over forwards."""
    film = sampling.posterior(model, [sampling.check_image(model, image)])
    against = torch.cat([_states(model, prompt) for prompt in options.conditions])  # c n d
    shape = (len(given), len(against), len(times), *model.latent_shape[1:])
    gains, squares = torch.zeros(shape), torch.zeros(shape)
    cells = [(step, draw) for step in range(len(times)) for draw in range(options.draws)]
    for some in _chunks(cells, max(1, options.batch_size // max(len(given), len(against)))):
        shown = [sampling.noised(model, film, times[i], options.seed, d) for i, d in some]
        noisy, noise = (torch.cat(parts) for parts in zip(*shown, strict=True))  # m c h w
        rows, at = torch.tensor([times[i] for i, _ in some]), torch.tensor([i for i, _ in some])
        base = predicted_noise(model, noisy, rows, against)[:, None]  # m 1 c ...
        with recorder:
            own = predicted_noise(model, noisy, rows, given)[:, :, None]  # m k 1 ...
        truth = noise.float()[:, None, None]
        gain = (truth - base).square().sum(-3) - (truth - own).square().sum(-3)  # m k c h w
        square = (own - base).square().sum(-3)
        gains.index_add_(2, at, gain.movedim(0, 2).cpu())
        squares.index_add_(2, at, square.movedim(0, 2).cpu())
    return gains / options.draws, squares / options.draws


def _check(model: LatentDiffusion, phrases: Sequence[str], options: Options) -> None:
    """Refuse questions without an answer, one line each."""
    known = {" ".join(prompt.lower().split()) for prompt in options.conditions}
    for phrase in phrases:
        if " ".join(phrase.lower().split()) in known - {""}:
            raise ValueError(f"phrase {phrase!r} is a condition too: its gain over itself is 0")
    longest = model.scheduler.config.num_train_timesteps
    if options.timesteps > longest:
        raise ValueError(f"timesteps={options.timesteps}: the noise schedule has {longest}")
    if not phrases:
        raise ValueError("no phrases: give at least one")
    if "" in known and not options.dropped_captions:
        warnings.warn(NO_EMPTY, stacklevel=3)


def _states(model: LatentDiffusion, prompt: str) -> Tensor:
    """Text states [1, n, d] of a prompt, which may be empty."""
    if not prompt.strip():
        return sampling.empty_states(model)
    return model.encode_text(*stack([tokenize(model.tokenizer, prompt, model.max_length)]))


def _kept(model: LatentDiffusion, timesteps: Sequence[int]) -> Tensor:
    """α_t² [T], float64, on the CPU."""
    kept: Tensor = model.scheduler.alphas_cumprod.cpu()[list(timesteps)].double()
    return kept


def _chunks(cells: Sequence[tuple[int, int]], size: int) -> Iterator[Sequence[tuple[int, int]]]:
    return (cells[i : i + size] for i in range(0, len(cells), size))
