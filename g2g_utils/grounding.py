"""Ground a phrase in an image: maps, bias merging, mask and metrics in one call (paper, section 3).

`ground` takes one image and phrase, `ground_batch` many. All randomness comes from generators made
for (seed, image, timestep): results don't depend on how a batch is split, and phrases and models
are compared on the same noise.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, TypedDict, Unpack

import torch
from numpy.typing import NDArray
from torch import Tensor

from g2g_utils import bbm, metrics, sampling
from g2g_utils.attention import (
    AttentionMaps,
    CrossAttentionRecorder,
    Keep,
    Layers,
    Recorder,
    Stack,
)
from g2g_utils.cache import Cache
from g2g_utils.masks import gmm_mask
from g2g_utils.metrics import Boxes
from g2g_utils.models.protocol import LatentDiffusion
from g2g_utils.text import Filter, PhraseTokens, Word, select_tokens, stack, tokenize

Sampling = Literal["gt", "gt_first", "cfg", "text", "inversion", "inversion_p"]
Kept = Literal["mean", "layers", "all"]
Image = Tensor | NDArray[Any]
Explicit = Sequence[int | str]

# Text biases by (weights, phrase, tokens, T, guidance, seed), on the CPU; 2.7 MB each at the size
# of Stable Diffusion with T = 50.
BIASES = Cache(384 * 2**20)


class GroundOptions(TypedDict, total=False):
    """Keywords of `ground` and `ground_batch`: the fields of `Options`, which explains them."""

    filter: Filter
    timesteps: int
    keep_last: int | None
    steps: tuple[int, int] | None
    curve: bbm.Curve | None
    text_guidance: float
    guidance: float
    sampling: Sampling
    layers: Layers | None
    seed: int
    batch_size: int
    keep: Kept
    spacy_model: Any
    compat: str | None


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of grounding. Every field is a keyword of `ground` and `ground_batch`."""

    filter: Filter = "lexical"
    """Content tokens: "lexical", "disease" or "all"."""

    timesteps: int = 50
    """Number of timesteps T."""

    keep_last: int | None = None
    """The activation map uses the k least noisy steps (default 4/5 of T, as published)."""

    steps: tuple[int, int] | None = None
    """First and last index, both included, of the steps that the activation map uses, noisiest 0.

    In place of `keep_last`. The biases use all T.
    """

    curve: bbm.Curve | None = None
    """None (no bias merging), "linear", "quadratic" or "mixture"."""

    text_guidance: float = 16.0
    """Guidance scale while the text bias is sampled; 1 needs no unconditional half."""

    guidance: float = 16.0
    """Guidance scale of the sampling inputs "gt_first" and "cfg"."""

    sampling: Sampling = "gt"
    """What the U-Net sees, see `sampling.INPUTS`.

    "gt": the image's latent noised to every step; guidance could have no effect, so none is run.
    "gt_first": noised once, then DDIM under `guidance`. "cfg": from noise, under `guidance`.
    "text": from noise, without. "inversion": the image walked to noise under the empty prompt;
    "inversion_p": by the authors' other rule.
    """

    layers: Layers | None = None
    """Names, blocks or map heights; None: all layers."""

    seed: int = 0
    """Seed of all noise."""

    batch_size: int = 16
    """U-Net rows in one forward."""

    keep: Kept = "mean"
    """"layers" or "all" hold layers, or layers and steps, apart in `Grounding.maps`."""

    spacy_model: Any = None
    """Pipeline, package or folder for the lexical filter, see `text.select_tokens`."""

    compat: str | None = None
    """"published": choose tokens as the published code does."""

    def __post_init__(self) -> None:
        if self.sampling not in sampling.INPUTS:
            *some, last = sampling.INPUTS
            raise ValueError(f"sampling={self.sampling!r}: choose {', '.join(some)} or {last}")
        if self.keep not in ("mean", "layers", "all"):
            raise ValueError(f"keep={self.keep!r}: choose mean, layers or all")
        if self.steps is not None and self.keep_last is not None:
            raise ValueError("steps and keep_last exclude each other: give one")
        if not 0 <= self.window.start < self.window.stop <= self.timesteps:
            given = f"keep_last={self.keep_last}" if self.steps is None else f"steps={self.steps}"
            raise ValueError(f"{given} of timesteps={self.timesteps}")
        if self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size}: at least one row")

    @property
    def window(self) -> range:
        """Indices of the timesteps in the activation map."""
        if self.steps is not None:
            return range(self.steps[0], self.steps[1] + 1)
        last = max(1, round(0.8 * self.timesteps)) if self.keep_last is None else self.keep_last
        return range(self.timesteps - last, self.timesteps)

    @property
    def guided(self) -> bool:
        """True if the activation's sampling needs an unconditional half."""
        return self.sampling in ("gt_first", "cfg") and self.guidance != 1

    @property
    def group(self) -> int:
        """Pairs that share forwards.

        One where latents are sampled: guidance amplifies the rounding that differs between batch
        sizes a thousandfold, and maps would depend on their neighbours.
        """
        return max(1, self.batch_size // self.timesteps) if self.sampling == "gt" else 1


@dataclass(frozen=True, eq=False)
class Grounding:
    """Result of grounding a phrase; maps are float32 on the CPU at latent resolution [H, W]."""

    phrase: str
    """The phrase as given."""

    heatmap: Tensor
    """The result in [0, 1]: the activation map, or what the bias curve merged."""

    activation: Tensor
    """Mean map of the content tokens, min-max scaled."""

    interaction: Tensor | None
    """Interaction map M of bias merging; None without."""

    confidence: float | None
    """Merging confidence c in [0, 1]; None without bias merging."""

    words: tuple[str, ...]
    """Words that ground."""

    tokens: tuple[int, ...]
    """Positions of the tokens that ground."""

    phrase_tokens: PhraseTokens = field(repr=False)
    """All words and tokens of the phrase."""

    token_maps: Tensor = field(repr=False)
    """Mean map of every token from start to end, unscaled [tokens, H, W]."""

    layers: tuple[str, ...]
    """Recorded layers in forward order."""

    timesteps: tuple[int, ...]
    """All T timesteps, noisiest first."""

    steps: tuple[int, int]
    """First and last index of the timesteps that made the activation map."""

    metrics: dict[str, float | str]
    """Scores of `metrics.evaluate`; empty where no boxes were given."""

    maps: AttentionMaps = field(repr=False)
    """Maps of the tokens from start to end with the axes that `keep` holds apart, float16.

    keep="layers": [1, tokens, h, w] a layer; "all": [k, tokens, h, w]; "mean": none but the token
    maps.
    """

    own_mask: Tensor | None = None
    """A method's own foreground; None: the mixture's."""

    @cached_property
    def mask(self) -> Tensor:
        """Foreground of the heat map, bool; the mixture is fitted when it is first asked for."""
        return gmm_mask(self.heatmap) if self.own_mask is None else self.own_mask

    @property
    def keep_last(self) -> int:
        """Number of timesteps in the activation map."""
        return self.steps[1] - self.steps[0] + 1

    def word_map(self, word: str | int | Word) -> Tensor:
        """Mean map [H, W] of one word's tokens, unscaled."""
        return self.token_maps[self.phrase_tokens.tokens_of(word)].mean(0)

    def select(
        self,
        tokens: Sequence[int] | None = None,
        layers: Layers | None = None,
        steps: Sequence[int] | None = None,
    ) -> Tensor:
        """Scaled mean map [H, W] of chosen tokens, layers and kept steps: `AttentionMaps.mean`."""
        chosen = self.tokens if tokens is None else tokens
        maps = self.maps
        if layers is None and steps is None:  # not rounded to float16
            maps = replace(maps, native={"mean": self.token_maps[None]})
        return bbm.minmax(maps.mean(chosen, layers, steps))


@dataclass(frozen=True, eq=False, kw_only=True)
class _Pair:
    """One image-phrase pair, ready to run."""

    image: Tensor  # 1|3 S S
    phrase: PhraseTokens
    tokens: Sequence[int]
    boxes: Boxes | None = None


# -- public -----------------------------------------------------------------------------------


def ground(
    model: LatentDiffusion,
    image: Image,
    phrase: str,
    *,
    finding: str | None = None,
    tokens: Explicit | None = None,
    boxes: Boxes | None = None,
    **options: Unpack[GroundOptions],
) -> Grounding:
    """Ground one phrase in one image.

    Args:
        model: tokenizer, text encoder, U-Net and noise schedule, such as a `GroundingModel`.
        image: [S, S], [1, S, S] or [3, S, S] in [0, 1], S = `model.image_size`.
        phrase: what to look for.
        finding: class, for filter="disease".
        tokens: explicit token positions or words, in place of the filter.
        boxes: [[x, y, w, h], ...] in image pixels, for metrics.
        options: see `Options`.

    Raises:
        PhraseError: for an empty phrase and one without content words.
        ValueError: for images of another size or range, and impossible options.
    """
    return ground_batch(
        model, [image], [phrase], findings=[finding], tokens=[tokens], boxes=[boxes], **options
    )[0]


def ground_batch(
    model: LatentDiffusion,
    images: Sequence[Image] | Tensor,
    phrases: Sequence[str],
    *,
    findings: Sequence[str | None] | None = None,
    tokens: Sequence[Explicit | None] | None = None,
    boxes: Sequence[Boxes | None] | None = None,
    **options: Unpack[GroundOptions],
) -> list[Grounding]:
    """Ground each phrase in its image; as `ground`, with one entry per pair."""
    chosen, none = Options(**options), [None] * len(phrases)
    pairs = [
        _prepare(model, chosen, image, phrase, finding=finding, tokens=explicit, boxes=known)
        for image, phrase, finding, explicit, known in zip(
            images, phrases, findings or none, tokens or none, boxes or none, strict=True
        )
    ]
    return [g for group in _chunks(pairs, chosen.group) for g in _ground(model, group, chosen)]


def text_bias(
    model: LatentDiffusion,
    phrase: str | PhraseTokens,
    *,
    tokens: Sequence[int] | None = None,
    timesteps: int = 50,
    text_guidance: float = 16.0,
    seed: int = 0,
    cache: Cache = BIASES,
) -> AttentionMaps:
    """Maps of a phrase's tokens, averaged over the tokens, while sampling from noise.

    DDIM, eta = 0, guided by the empty prompt at `text_guidance`. Depends on the phrase alone, so it
    is remembered per weights, phrase, tokens, T, guidance and seed.

    Args:
        model: as in `ground`.
        phrase: a phrase, or its tokens.
        tokens: positions; None: those of the lexical filter.
        timesteps: number of timesteps T.
        text_guidance: guidance scale; 1 needs no unconditional half.
        seed: of the initial noise.
        cache: where to look for it and remember it.

    Returns:
        Maps [T, 1, h, w] of every layer, float16, on the CPU.
    """
    words = phrase
    if isinstance(words, str):
        words = tokenize(model.tokenizer, words, model.max_length)
    chosen = list(select_tokens(words) if tokens is None else tokens)

    def sample() -> AttentionMaps:
        found = record_text(
            model,
            words,
            tokens=chosen,
            keep="steps",
            timesteps=timesteps,
            text_guidance=text_guidance,
            seed=seed,
        )
        return replace(found, native={name: maps.cpu() for name, maps in found.items()})

    padding = (model.max_length, model.zero_padding)
    key = (
        sampling.fingerprint(model),
        padding,
        words.text,
        tuple(chosen),
        timesteps,
        text_guidance,
        seed,
    )
    return cache.get(key, sample)


def clear_cache() -> None:
    """Forget all text biases."""
    BIASES.clear()


def record_text(
    model: LatentDiffusion,
    phrase: PhraseTokens,
    *,
    tokens: Sequence[int] | None = None,
    keep: Keep = "all",
    timesteps: int = 50,
    text_guidance: float = 16.0,
    seed: int = 0,
) -> AttentionMaps:
    """Maps of one phrase while sampling from noise (DDIM, eta = 0): all that the text bias needs.

    Args:
        model, phrase, timesteps, text_guidance, seed: as in `text_bias`.
        tokens: positions to record; None: all, padding included.
        keep: axes that are held apart, see `CrossAttentionRecorder`.
    """
    conditional = slice(1, None) if text_guidance != 1 else None
    recorder = CrossAttentionRecorder(model.unet, tokens, keep, rows=conditional)
    states = model.encode_text(phrase.input_ids, phrase.attention_mask)
    start = sampling.noise(model, (seed, phrase.text, "text bias"))[None]
    forwards = sampling.denoise(model, start, states, timesteps, text_guidance)
    sampling.run(model, forwards, lambda _: recorder)
    times = sampling.timesteps(model, timesteps)
    return replace(recorder.sample(), timesteps=tuple(times))


def record_image(
    model: LatentDiffusion,
    image: Image,
    phrase: str,
    *,
    timesteps: int = 50,
    seed: int = 0,
    batch_size: int = 16,
    layers: Layers | None = None,
) -> tuple[AttentionMaps, PhraseTokens]:
    """Maps of one pair under ground-truth sampling with every timestep, layer and token apart.

    Args:
        model, image, phrase: as in `ground`.
        timesteps, seed, batch_size, layers: as in `Options`.

    Returns:
        Maps [T, N, h, w] of every layer, float16, padding tokens included, and the phrase's tokens.
    """
    options = Options(
        timesteps=timesteps,
        keep_last=timesteps,
        seed=seed,
        batch_size=batch_size,
        layers=layers,
        filter="all",
        keep="all",
    )
    pair = _prepare(model, options, image, phrase)
    recorder = _record(model, [pair], options, padding=True)
    times = tuple(sampling.timesteps(model, timesteps))
    return replace(recorder.sample(), timesteps=times), pair.phrase


@dataclass(frozen=True, eq=False)
class Spread:
    """Mean and standard deviation [H, W] of a heat map over sampling seeds, and all [S, H, W]."""

    mean: Tensor
    std: Tensor
    heatmaps: Tensor


def spread(
    model: LatentDiffusion,
    image: Image,
    phrase: str,
    *,
    seeds: Sequence[int] = range(5),
    **options: Unpack[GroundOptions],
) -> Spread:
    """Spread of a heat map over sampling seeds.

    Args:
        model, image, phrase: as in `ground`.
        seeds: of the noise; at least one.
        options: as for `ground`; its `seed` is ignored.
    """
    found = []
    for seed in seeds:
        options["seed"] = seed
        found.append(ground(model, image, phrase, **options).heatmap)
    maps = torch.stack(found)
    return Spread(maps.mean(0), maps.std(0, unbiased=len(maps) > 1), maps)


# -- one group of pairs -------------------------------------------------------------------------


def _prepare(
    model: LatentDiffusion,
    options: Options,
    image: Image,
    phrase: str,
    *,
    finding: str | None = None,
    tokens: Explicit | None = None,
    boxes: Boxes | None = None,
) -> _Pair:
    """Check an image and choose the phrase's tokens."""
    pixels = sampling.check_image(model, image)
    words = tokenize(model.tokenizer, phrase, model.max_length)
    chosen = select_tokens(
        words,
        options.filter,
        finding,
        tokens,
        spacy_model=options.spacy_model,
        compat=options.compat,
    )
    return _Pair(image=pixels, phrase=words, tokens=chosen, boxes=boxes)


def _ground(
    model: LatentDiffusion, pairs: Sequence[_Pair], options: Options
) -> Iterator[Grounding]:
    """Record a group's maps in shared forwards, then finish pair by pair."""
    times = _times(model, options)
    biases = _Biases(model, pairs, options) if options.curve else None
    if biases is None or options.sampling == "gt":
        recorder = _record(model, pairs, options, biases)
    else:  # the image's expectation needs the image: its own ground-truth sampling
        recorder = _record(model, pairs, options)
        _record(model, pairs, replace(options, sampling="gt"), biases)
    for b, pair in enumerate(pairs):
        merging = biases.merging(b) if biases is not None else (None, None)
        yield _finish(model, pair, recorder.sample(b), merging, times, options)


def _times(model: LatentDiffusion, options: Options) -> tuple[int, ...]:
    """All T timesteps of the options' input. Raises ValueError where it has another number."""
    times = tuple(sampling.timesteps(model, options.timesteps, options.sampling))
    if len(times) != options.timesteps:
        raise ValueError(
            f"sampling={options.sampling!r} with timesteps={options.timesteps} walks {len(times)}: "
            f"choose a divisor of {model.scheduler.config.num_train_timesteps}"
        )
    return times


def _record(
    model: LatentDiffusion,
    pairs: Sequence[_Pair],
    options: Options,
    biases: _Biases | None = None,
    padding: bool = False,
) -> CrossAttentionRecorder:
    """Show the U-Net what the sampling input says; record the options' window.

    Args:
        model, pairs, options: of the group.
        biases: gets the start-token maps of every forward, of all T timesteps.
        padding: record the padding too, not only the tokens from start to end.
    """
    window, start = options.window, [] if biases is None else [biases.start]
    rows = slice(len(pairs), None) if options.guided else None
    stop = options.sampling in sampling.READS_NONE
    inside = CrossAttentionRecorder(
        model.unet,
        None if padding else [range(max(pair.phrase.end, *pair.tokens) + 1) for pair in pairs],
        options.keep,
        len(pairs),
        layers=options.layers,
        rows=rows,
        dtype=_dtype(options),
        also=start,
        stop=stop,
    )
    outside: AbstractContextManager[object] = nullcontext()
    if biases is not None:
        outside = Recorder(
            model.unet, start, len(pairs), layers=options.layers, rows=rows, stop=stop
        )
    asked = sampling.Request(
        images=[pair.image for pair in pairs],
        phrases=[pair.phrase.text for pair in pairs],
        states=model.encode_text(*stack([pair.phrase for pair in pairs])),
        timesteps=options.timesteps,
        windows=_windows(window, options.timesteps) if start else [window],
        seed=options.seed,
        guidance=options.guidance,
        batch_size=options.batch_size,
    )

    @contextmanager
    def recorded(forward: sampling.Forward) -> Iterator[None]:
        shown = forward.steps  # none: a forward that only leads to others
        with (inside if shown[0] in window else outside) if shown else nullcontext():
            yield
        if shown and biases is not None:
            biases.update()

    sampling.run(model, sampling.INPUTS[options.sampling](model, asked), recorded)
    return inside


def _windows(window: range, timesteps: int) -> list[range]:
    """All timesteps in up to three pieces: before, inside and after the window."""
    pieces = [range(window.start), window, range(window.stop, timesteps)]
    return [piece for piece in pieces if piece]


def _dtype(options: Options) -> torch.dtype:
    """Type of the maps that are kept for every timestep."""
    return torch.float16 if options.keep == "all" else torch.float32


class _Biases:
    """Bias merging of a group of pairs: text biases remembered, image biases streamed."""

    def __init__(self, model: LatentDiffusion, pairs: Sequence[_Pair], options: Options) -> None:
        self.start = Stack([0], average=True, dtype=_dtype(options))
        self._text = [
            text_bias(
                model,
                pair.phrase,
                tokens=pair.tokens,
                timesteps=options.timesteps,
                text_guidance=options.text_guidance,
                seed=options.seed,
            )
            for pair in pairs
        ]
        self._products: list[bbm.Products] = []

    def update(self) -> None:
        """Take the start-token maps of the timesteps that were recorded since the last call."""
        found = self.start.take()  # layer -> s b 1 h w
        if not self._products:
            native = [[bias[name][:, 0] for name in found] for bias in self._text]
            self._products = [bbm.Products(text, self.start.latent) for text in native]
        for b, products in enumerate(self._products):
            products.add([maps[:, b, 0] for maps in found.values()])

    def merging(self, b: int) -> tuple[Tensor, float]:
        """Interaction map [H, W] and confidence of one pair."""
        interaction, confidence = self._products[b].merging()
        return interaction.cpu(), confidence


def _finish(
    model: LatentDiffusion,
    pair: _Pair,
    recorded: AttentionMaps,
    merging: tuple[Tensor | None, float | None],
    times: tuple[int, ...],
    options: Options,
) -> Grounding:
    """Heat map, mask and metrics of one pair from its recorded maps."""
    phrase, tokens = pair.phrase, list(pair.tokens)
    token_maps = recorded.by_token().cpu()
    heatmap = activation = bbm.minmax(token_maps[tokens].mean(0))
    interaction, confidence = merging
    if options.curve and interaction is not None and confidence is not None:
        heatmap = bbm.minmax(bbm.merge(activation, interaction, confidence, options.curve))
    scores: dict[str, float | str] = {}
    if pair.boxes is not None:
        scores = metrics.evaluate(heatmap, pair.boxes, model.image_size)
    window, shown = options.window, range(phrase.end + 1)
    token_maps = token_maps[: len(shown)].clone()
    kept = {"mean": token_maps[None]}
    if options.keep != "mean":
        kept = {n: maps[:, : len(shown)].half().cpu() for n, maps in recorded.items()}
    return Grounding(
        phrase=phrase.text,
        heatmap=heatmap,
        activation=activation,
        interaction=interaction,
        confidence=confidence,
        words=tuple(w.text for w in phrase.words if set(w.tokens) & set(tokens)),
        tokens=tuple(tokens),
        phrase_tokens=phrase,
        token_maps=token_maps,
        layers=recorded.layers,
        timesteps=times,
        steps=(window[0], window[-1]),
        metrics=scores,
        maps=replace(
            recorded,
            native=kept,
            timesteps=tuple(times[i] for i in window),
            tokens=tuple(shown),
        ),
    )


# -- details ------------------------------------------------------------------------------------


def _chunks(items: Sequence[_Pair], size: int) -> Iterator[Sequence[_Pair]]:
    return (items[i : i + size] for i in range(0, len(items), size))
