"""Ground a phrase in an image: maps, bias merging, mask and metrics in one call (paper, section 3).

`ground` takes one image and phrase, `ground_batch` many, `evaluate` a data set. All randomness
comes from generators made for (seed, image, timestep): results don't depend on how a batch is
split, and phrases and models are compared on the same noise.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from g2g_utils import bbm, metrics, sampling
from g2g_utils.attention import CrossAttentionRecorder, Keep, Layers, matches, upsample
from g2g_utils.masks import gmm_mask
from g2g_utils.models.protocol import LatentDiffusion
from g2g_utils.text import Filter, PhraseTokens, select_tokens, stack, tokenize

Sampling = Literal["gt", "gt_first", "cfg", "text"]
Bias = dict[str, Tensor]  # layer -> T h w, native resolution, float16
Explicit = Sequence[int | str]

_CACHE_SIZE = 128
_cache: OrderedDict[tuple[Any, ...], Bias] = OrderedDict()


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to ground; every field is a keyword of `ground`, `ground_batch` and `evaluate`.

    filter: content tokens: "lexical", "disease" or "all". timesteps: T; keep_last: k least noisy
    steps of the activation map (default 4/5 of T, as published); the biases use all T.
    curve: None (no bias merging), "linear", "quadratic" or "mixture". text_guidance: scale while
    the text bias is sampled; 1 needs no unconditional half. sampling: "gt" (the image's latent
    noised to every step; guidance could have no effect, so none is run), "gt_first" (noised once,
    then DDIM under `guidance`), "cfg" (from noise, under `guidance`), "text" (from noise, without).
    layers: names, blocks or map heights; None: all. batch_size: U-Net rows in one forward.
    keep: "mean", or "layers" or "all" to keep maps apart in `Grounding.maps`.
    """

    filter: Filter = "lexical"
    timesteps: int = 50
    keep_last: int | None = None
    curve: bbm.Curve | None = None
    text_guidance: float = 16.0
    guidance: float = 16.0
    sampling: Sampling = "gt"
    layers: Layers | None = None
    seed: int = 0
    batch_size: int = 16
    keep: Literal["mean", "layers", "all"] = "mean"
    spacy_model: Any = None
    compat: str | None = None

    def __post_init__(self) -> None:
        if self.sampling not in ("gt", "gt_first", "cfg", "text"):
            raise ValueError(f"sampling={self.sampling!r}: choose gt, gt_first, cfg or text")
        if self.keep not in ("mean", "layers", "all"):
            raise ValueError(f"keep={self.keep!r}: choose mean, layers or all")
        if not 1 <= self.last <= self.timesteps:
            raise ValueError(f"keep_last={self.keep_last} of timesteps={self.timesteps}")
        if self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size}: at least one row")

    @property
    def last(self) -> int:
        """Number of least noisy steps in the activation map."""
        if self.keep_last is not None:
            return self.keep_last
        return max(1, round(0.8 * self.timesteps))

    @property
    def guided(self) -> bool:
        """Whether the activation's sampling needs an unconditional half."""
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
    """What grounding a phrase gives; maps are float32 on the CPU at latent resolution [H, W].

    heatmap: the result in [0, 1] (activation, or merged by the bias curve); activation: scaled
    mean map of the content tokens; interaction, confidence: None without bias merging; mask:
    foreground; tokens, words: those that ground; token_maps: mean map of every token from start
    to end, unscaled [tokens, H, W]; maps: layer -> kept maps in native resolution, keep="layers"
    [tokens, h, w], keep="all" [k, tokens, h, w]; timesteps: all T, the last k of which made the
    activation; metrics: of `metrics.evaluate` where boxes were given.
    """

    phrase: str
    heatmap: Tensor
    activation: Tensor
    interaction: Tensor | None
    confidence: float | None
    mask: Tensor
    words: tuple[str, ...]
    tokens: tuple[int, ...]
    phrase_tokens: PhraseTokens = field(repr=False)
    token_maps: Tensor = field(repr=False)
    layers: tuple[str, ...]
    timesteps: tuple[int, ...]
    keep_last: int
    metrics: dict[str, float | str]
    maps: dict[str, Tensor] = field(default_factory=dict, repr=False)

    def word_map(self, word: str | int) -> Tensor:
        """Mean map [H, W] of one word's tokens, unscaled."""
        return self.token_maps[self.phrase_tokens.tokens_of(word)].mean(0)

    def select(
        self,
        tokens: Sequence[int] | None = None,
        layers: Layers | None = None,
        steps: Sequence[int] | None = None,
    ) -> Tensor:
        """Scaled mean map [H, W] of chosen tokens, layers and kept steps (what `keep` allows)."""
        chosen = list(self.tokens if tokens is None else tokens)
        _need_some("tokens", chosen, len(self.token_maps))
        _need_some("steps", steps, self.keep_last)
        size = (self.token_maps.shape[-2], self.token_maps.shape[-1])
        if layers is None and steps is None:
            return bbm.minmax(self.token_maps[chosen].mean(0))
        names = [n for n, m in self.maps.items() if matches(n, (m.shape[-2], m.shape[-1]), layers)]
        if not names or (steps is not None and self.maps[names[0]].ndim == 3):
            need = "all" if steps is not None else "layers"
            raise ValueError(f"no maps of layers={layers!r}, steps={steps}: keep={need!r} has them")
        found = []
        for name in names:
            maps = self.maps[name].float()
            maps = maps[None] if maps.ndim == 3 else maps  # k tokens h w
            kept = maps if steps is None else maps[list(steps)]
            found.append(upsample(kept[:, chosen].mean((0, 1)), size))
        return bbm.minmax(torch.stack(found).mean(0))


def _need_some(name: str, chosen: Sequence[int] | None, number: int) -> None:
    """Refuse an empty choice, and one beyond what there is (negative numbers would wrap)."""
    if chosen is not None and not (len(chosen) and 0 <= min(chosen) and max(chosen) < number):
        raise ValueError(f"{name}={list(chosen)}: choose from 0 to {number - 1}, at least one")


@dataclass(frozen=True, eq=False)
class _Pair:
    """One image-phrase pair, ready to run."""

    image: Tensor  # 1|3 S S
    phrase: PhraseTokens
    tokens: list[int]
    boxes: Any


# -- public -----------------------------------------------------------------------------------


def ground(
    model: LatentDiffusion,
    image: Tensor | np.ndarray,
    phrase: str,
    *,
    finding: str | None = None,
    tokens: Explicit | None = None,
    boxes: Any = None,
    **options: Any,
) -> Grounding:
    """Ground one phrase in one image [H, W], [1, H, W] or [3, H, W] in [0, 1].

    finding: class, for filter="disease"; tokens: explicit token positions or words; boxes:
    [[x, y, w, h], ...] in image pixels, for metrics; other keywords: see `Options`. Raises
    ValueError for an empty phrase, one without content words, and images of another size.
    """
    return ground_batch(
        model, [image], [phrase], findings=[finding], tokens=[tokens], boxes=[boxes], **options
    )[0]


def ground_batch(
    model: LatentDiffusion,
    images: Sequence[Tensor | np.ndarray] | Tensor,
    phrases: Sequence[str],
    *,
    findings: Sequence[str | None] | None = None,
    tokens: Sequence[Explicit | None] | None = None,
    boxes: Sequence[Any] | None = None,
    **options: Any,
) -> list[Grounding]:
    """Ground each phrase in its image; as `ground`, with one entry per pair."""
    chosen, none = Options(**options), [None] * len(phrases)
    pairs = [
        _prepare(model, *row, chosen)
        for row in zip(
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
) -> Bias:
    """Content-token maps of a phrase while sampling from noise: layer -> [T, h, w], float16.

    DDIM, eta = 0, guided by the empty prompt at `text_guidance`. Depends on the phrase alone, so it
    is cached per (weights, phrase, tokens, T, guidance, seed). tokens default to the lexical ones.
    """
    words = phrase
    if isinstance(words, str):
        words = tokenize(model.tokenizer, words, model.max_length)
    chosen = list(select_tokens(words) if tokens is None else tokens)
    padding = (model.max_length, getattr(model, "zero_padding", False))
    key = (_fingerprint(model), padding, words.text, tuple(chosen), timesteps, text_guidance, seed)
    if key not in _cache:
        recorder = record_text(
            model,
            words,
            tokens=chosen,
            keep="steps",
            timesteps=timesteps,
            text_guidance=text_guidance,
            seed=seed,
        )
        _cache[key] = {n: m[0] for n, m in zip(recorder.layers, recorder.native(), strict=True)}
        while len(_cache) > _CACHE_SIZE:
            _cache.popitem(last=False)
    _cache.move_to_end(key)
    return _cache[key]


def record_text(
    model: LatentDiffusion,
    phrase: PhraseTokens,
    *,
    tokens: Sequence[int] | None = None,
    keep: Keep = "all",
    timesteps: int = 50,
    text_guidance: float = 16.0,
    seed: int = 0,
) -> CrossAttentionRecorder:
    """Recorder of one phrase while sampling from noise (DDIM, eta = 0): all the text bias needs."""
    conditional = slice(1, None) if text_guidance != 1 else None
    recorder = CrossAttentionRecorder(model.unet, tokens, keep, rows=conditional)
    states = model.encode_text(phrase.input_ids, phrase.attention_mask)
    start = sampling.noise(model, (seed, phrase.text, "text bias"))[None]
    forwards = sampling.denoise(model, start, states, timesteps, text_guidance)
    sampling.run(model, forwards, lambda _: recorder)
    return recorder


def record_image(
    model: LatentDiffusion, image: Tensor | np.ndarray, phrase: str, **options: Any
) -> tuple[CrossAttentionRecorder, PhraseTokens, tuple[int, ...]]:
    """Recorder of one pair under ground-truth sampling with every timestep, layer and token apart.

    What `ground(keep="all", keep_last=timesteps)` sees, padding tokens included; also the phrase's
    tokens and the T timesteps. options: timesteps, seed, batch_size, layers of `Options`.
    """
    steps = options.get("timesteps", Options.timesteps)
    chosen = Options(**options, filter="all", keep_last=steps, keep="all")
    pair = _prepare(model, image, phrase, None, None, None, chosen)
    early, late = _recorders(model, chosen, 1)
    _record(model, [pair], chosen, early, late)
    return late, pair.phrase, tuple(sampling.timesteps(model, chosen.timesteps))


def clear_cache() -> None:
    """Forget all text biases."""
    _cache.clear()


@dataclass(frozen=True, eq=False)
class Spread:
    """Mean and standard deviation [H, W] of a heat map over sampling seeds, and all [S, H, W]."""

    mean: Tensor
    std: Tensor
    heatmaps: Tensor


def spread(
    model: LatentDiffusion,
    image: Tensor | np.ndarray,
    phrase: str,
    *,
    seeds: Sequence[int] = range(5),
    **options: Any,
) -> Spread:
    """How much a heat map depends on the sampling noise; options as for `ground`."""
    options.pop("seed", None)
    maps = torch.stack([ground(model, image, phrase, seed=s, **options).heatmap for s in seeds])
    return Spread(maps.mean(0), maps.std(0, unbiased=len(maps) > 1), maps)


# -- one group of pairs -------------------------------------------------------------------------


def _prepare(
    model: LatentDiffusion,
    image: Tensor | np.ndarray,
    phrase: str,
    finding: str | None,
    tokens: Explicit | None,
    boxes: Any,
    options: Options,
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
    return _Pair(pixels, words, chosen, boxes)


def _ground(
    model: LatentDiffusion, pairs: Sequence[_Pair], options: Options
) -> Iterator[Grounding]:
    """Record a group's maps in shared forwards, then finish pair by pair."""
    early, late = _recorders(model, options, len(pairs))
    biases = _Biases(model, pairs, options) if options.curve else None
    if options.sampling == "gt":
        _record(model, pairs, options, early, late, biases)
    else:
        _record(model, pairs, options, early, late)
        if biases is not None:  # the image's expectation needs the image: always ground truth
            truth = replace(options, sampling="gt")
            _record(model, pairs, truth, *_recorders(model, truth, len(pairs)), biases)
    token_maps = _token_maps(late).cpu()
    times = sampling.timesteps(model, options.timesteps)
    for b, pair in enumerate(pairs):
        merging = biases.merging(b) if biases is not None else (None, None)
        yield _finish(model, pair, token_maps[b], merging, late, b, times, options)


def _recorders(
    model: LatentDiffusion, options: Options, pairs: int
) -> tuple[CrossAttentionRecorder | None, CrossAttentionRecorder]:
    """Recorders of the first T - k steps (start token only, None without bias) and the last k."""
    shared: dict[str, Any] = {
        "rows_per_step": pairs,
        "layers": options.layers,
        "rows": slice(pairs, None) if options.guided else None,
        "dtype": torch.float16 if options.keep == "all" else torch.float32,
    }
    start = [0] if options.curve else None
    late = CrossAttentionRecorder(model.unet, None, options.keep, step_tokens=start, **shared)
    if not options.curve or options.last == options.timesteps:
        return None, late
    return CrossAttentionRecorder(model.unet, [0], "steps", **shared), late


def _record(
    model: LatentDiffusion,
    pairs: Sequence[_Pair],
    options: Options,
    early: CrossAttentionRecorder | None,
    late: CrossAttentionRecorder,
    biases: _Biases | None = None,
) -> None:
    """Show the U-Net what the sampling input says: the first T - k steps to `early`, then `late`.

    biases: gets the start-token maps of every forward.
    """
    split = options.timesteps - options.last
    windows = [range(split)] if early is not None else []
    asked = sampling.Request(
        images=[pair.image for pair in pairs],
        phrases=[pair.phrase.text for pair in pairs],
        states=model.encode_text(*stack([pair.phrase for pair in pairs])),
        timesteps=options.timesteps,
        windows=[*windows, range(split, options.timesteps)],
        seed=options.seed,
        guidance=options.guidance,
        batch_size=options.batch_size,
    )

    @contextmanager
    def recorded(forward: sampling.Forward) -> Iterator[None]:
        recorder = late if forward.steps.start >= split else early
        with recorder or nullcontext():
            yield
        if biases is not None:
            biases.add(recorder)

    sampling.run(model, sampling.INPUTS[options.sampling](model, asked), recorded)


def _token_maps(recorder: CrossAttentionRecorder) -> Tensor:
    """Mean maps of all tokens [b, n, H, W] from whatever the recorder kept."""
    if recorder.keep == "mean":
        return recorder.maps()
    size = recorder.latent_size
    return torch.stack(
        [upsample(recorder.native_tokens(n).mean(1), size) for n in recorder.layers]
    ).mean(0)


class _Biases:
    """Bias merging of a group of pairs: text biases remembered, image biases streamed."""

    def __init__(self, model: Any, pairs: Sequence[_Pair], options: Options) -> None:
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
        self._layers: list[str] = []
        self._products: list[bbm.Products] = []

    def add(self, recorder: CrossAttentionRecorder | None) -> None:
        """Take the start-token maps of the timesteps that a recorder saw since the last call."""
        if recorder is None:
            return
        found = recorder.drain()  # layer -> b s h w
        if not self._products:
            self._layers, size = list(found), recorder.latent_size
            native = [[bias[name] for name in found] for bias in self._text]
            self._products = [bbm.Products(text, size) for text in native]
        for b, products in enumerate(self._products):
            products.add([maps[b] for maps in found.values()])

    def merging(self, b: int) -> tuple[Tensor, float]:
        """Interaction map [H, W] and confidence of one pair."""
        products, text = self._products[b], self._text[b]
        text_mean = bbm.native_mean([text[name] for name in self._layers], products.size)
        confidence = bbm.confidence(products.image_mean(), text_mean)
        return products.interaction().cpu(), confidence


def _finish(
    model: LatentDiffusion,
    pair: _Pair,
    token_maps: Tensor,
    merging: tuple[Tensor | None, float | None],
    late: CrossAttentionRecorder,
    b: int,
    times: list[int],
    options: Options,
) -> Grounding:
    """Heat map, mask and metrics of one pair from its recorded maps."""
    heatmap = activation = bbm.minmax(token_maps[pair.tokens].mean(0))
    interaction, confidence = merging
    if options.curve and interaction is not None and confidence is not None:
        heatmap = bbm.minmax(bbm.merge(activation, interaction, confidence, options.curve))
    mask = gmm_mask(heatmap)
    phrase = pair.phrase
    scores: dict[str, float | str] = {}
    if pair.boxes is not None:
        scores = metrics.evaluate(heatmap, pair.boxes, model.image_size, mask=mask)
    return Grounding(
        phrase=phrase.text,
        heatmap=heatmap,
        activation=activation,
        interaction=interaction,
        confidence=confidence,
        mask=mask,
        words=tuple(w.text for w in phrase.words if set(w.tokens) & set(pair.tokens)),
        tokens=tuple(pair.tokens),
        phrase_tokens=phrase,
        token_maps=token_maps[: phrase.end + 1].clone(),
        layers=tuple(late.layers),
        timesteps=tuple(times),
        keep_last=options.last,
        metrics=scores,
        maps=_kept(late, b, phrase.end + 1) if options.keep != "mean" else {},
    )


def _kept(recorder: CrossAttentionRecorder, b: int, tokens: int) -> dict[str, Tensor]:
    """Layer -> maps of one pair's tokens, float16, CPU: [k, tokens, h, w] or [tokens, h, w]."""
    kept = {n: recorder.native_tokens(n)[b, :, :tokens].half().cpu() for n in recorder.layers}
    return kept if recorder.keep == "all" else {n: maps[0] for n, maps in kept.items()}


# -- details ------------------------------------------------------------------------------------


def _chunks(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (items[i : i + size] for i in range(0, len(items), size))


def _fingerprint(model: LatentDiffusion) -> tuple[Any, ...]:
    """Identity of a model's weights: changes when U-Net or text encoder are trained or swapped.

    Writes through `.data` (an EMA's `copy_to`) raise no version, so what attends to text is summed.
    """
    parts: list[Any] = [repr(sorted(model.scheduler.config.items(), key=str))]
    for module in (model.unet, model.text_encoder):
        named = list(module.named_parameters())
        read = [w for n, w in named if "attn2.to_" in n] or [w for _, w in named]
        sums = torch.stack([w.detach().double().sum() for w in [*read, named[-1][1]]])
        parts += [id(module), sum(w._version for _, w in named), tuple(sums.tolist())]
    return tuple(parts)
