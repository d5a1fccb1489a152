"""Streaming capture of a U-Net's cross-attention maps (paper section 3.1, "Attention maps").

For layer l, timestep t and head h, P = softmax(Q K^T / sqrt(d)) is [hw, tokens]. A map is the head
mean, reshaped to [h, w] and nearest-upsampled to the latent size.

Three parts: a `Recorder` hooks into the U-Net, accumulators (`Mean`, `Stack`) keep what it sees,
and `AttentionMaps` are read. `CrossAttentionRecorder` is all three in one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

Keep = Literal["mean", "layers", "steps", "all"]
Tokens = Sequence[int] | Sequence[Sequence[int]]
Layers = str | int | Sequence[str | int]
Positions = tuple[tuple[int, ...], ...]  # of tokens, by sample

_LAYER = re.compile(r"(?:^|\.)((?:down_blocks|mid_block|up_blocks)\..*attn2)$")
_ORDER = {"down": 0, "mid": 1, "up": 2}
_REPLACEABLE = {
    "AttnProcessor",
    "AttnProcessor2_0",
    "FusedAttnProcessor2_0",
    "SlicedAttnProcessor",
    "XFormersAttnProcessor",
}


def find_layers(unet: nn.Module) -> dict[str, Any]:
    """Cross-attention layers of a U-Net by name, in forward order: down, mid, up.

    Names are those of the bare `UNet2DConditionModel`, also below wrappers such as PEFT's.
    """
    found = {
        match.group(1): module
        for name, module in unet.named_modules()
        if (match := _LAYER.search(name)) and getattr(module, "is_cross_attention", False)
    }
    if not found:
        raise ValueError(f"{type(unet).__name__} has no cross-attention layers named *.attn2")
    return dict(sorted(found.items(), key=lambda item: _ORDER[block_of(item[0])]))


def block_of(layer: str) -> str:
    """Block of a layer name: "down", "mid" or "up"."""
    return layer.split("_", 1)[0]


def matches(layer: str, size: tuple[int, int] | None, wanted: Layers | None) -> bool:
    """True if a layer is among the wanted ones.

    Layers are wanted by name or its beginning ("up_blocks.1"), by block ("down") or by map height.
    """
    if wanted is None:
        return True
    if isinstance(wanted, str):
        return wanted in (layer, block_of(layer)) or layer.startswith(f"{wanted}.")
    if isinstance(wanted, int):
        return size is not None and size[0] == wanted
    return any(matches(layer, size, one) for one in wanted)


def upsample(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Nearest-upsampled float32 maps [..., H, W] of native ones [..., h, w]."""
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps.float()
    flat = maps.float().reshape(-1, 1, *maps.shape[-2:])
    return F.interpolate(flat, size=size, mode="nearest").reshape(*maps.shape[:-2], *size)


def native_size(positions: int, latent: tuple[int, int]) -> tuple[int, int]:
    """Height and width of an attention map with so many positions in a U-Net that halves latents.

    Stride-2 convolutions round up, so odd and non-square latents are fine.
    """
    h, w = latent
    while h * w > positions:
        h, w = -(-h // 2), -(-w // 2)
    if h * w != positions:
        raise ValueError(f"{positions} positions are no power-of-two reduction of latents {latent}")
    return h, w


# -- reading --------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class AttentionMaps(Mapping[str, Tensor]):
    """Cross-attention maps of one sample: layer -> [T, N, h, w] in native resolution.

    An axis that was averaged has length 1; averaged layers are one entry of the latents' size.
    """

    native: Mapping[str, Tensor]
    size: tuple[int, int]  # of the latents, to which all reductions are upsampled
    layers: tuple[str, ...]  # recorded, in forward order, also where they were averaged
    timesteps: tuple[int, ...]  # recorded, noisiest first, also where they were averaged
    tokens: tuple[int, ...] | None  # position of each of N; None: averaged
    counts: tuple[int, ...] = ()  # token positions that each of N stands for; (): one each

    def __getitem__(self, layer: str) -> Tensor:
        """One layer's maps [T, N, h, w]."""
        return self.native[layer]

    def __iter__(self) -> Iterator[str]:
        """Names of the layers."""
        return iter(self.native)

    def __len__(self) -> int:
        """Number of layers that are held apart."""
        return len(self.native)

    @property
    def sizes(self) -> dict[str, tuple[int, int]]:
        """Layer -> height and width of its maps."""
        return {name: (m.shape[-2], m.shape[-1]) for name, m in self.native.items()}

    @property
    def nbytes(self) -> int:
        """Bytes of the maps."""
        return sum(m.numel() * m.element_size() for m in self.native.values())

    def mean(
        self,
        tokens: Sequence[int] | None = None,
        layers: Layers | None = None,
        steps: Sequence[int] | None = None,
    ) -> Tensor:
        """Mean map over tokens, layers and timesteps: the raw activation map.

        Args:
            tokens: positions that were recorded; None: all.
            layers: names, blocks or map heights; None: all.
            steps: indices of timesteps, noisiest first; None: all.

        Returns:
            Map [H, W], float32, unscaled.

        Raises:
            ValueError: for a choice on an axis that was averaged, of nothing, or of what was not
                recorded.
        """
        where, weights = self._columns(tokens)
        found = []
        for maps in self._chosen(layers, steps).values():  # t n h w
            picked = maps if where is None else maps[:, where]
            mean = picked.mean((0, 1)) if weights is None else _weighted(picked, weights).mean(0)
            found.append(upsample(mean, self.size))
        return torch.stack(found).mean(0)

    def by_token(self, layers: Layers | None = None, steps: Sequence[int] | None = None) -> Tensor:
        """Mean map of every token [N, H, W] over layers and timesteps, unscaled."""
        chosen = self._chosen(layers, steps).values()
        return torch.stack([upsample(maps.mean(0), self.size) for maps in chosen]).mean(0)

    def by_step(
        self,
        tokens: Sequence[int] | None = None,
        layers: Layers | None = None,
        steps: Sequence[int] | None = None,
    ) -> dict[str, Tensor]:
        """Layer -> maps [T, h, w] of every timestep, averaged over tokens, native resolution."""
        where, weights = self._columns(tokens)
        found = {}
        for name, maps in self._chosen(layers, steps).items():
            picked = maps if where is None else maps[:, where]
            found[name] = picked.mean(1) if weights is None else _weighted(picked, weights)
        return found

    def token_means(
        self, layers: Layers | None = None, steps: Sequence[int] | None = None
    ) -> Tensor:
        """Mean attention of every token [N] over places, layers and timesteps."""
        chosen = self._chosen(layers, steps).values()
        return torch.stack([maps.mean((0, 2, 3)) for maps in chosen]).mean(0)

    def upsampled(
        self,
        tokens: Sequence[int] | None = None,
        layers: Layers | None = None,
        steps: Sequence[int] | None = None,
    ) -> Tensor:
        """Maps [T, L, N, H, W] with nothing averaged any further."""
        where, _ = self._columns(tokens)
        chosen = self._chosen(layers, steps).values()
        found = torch.stack([upsample(maps, self.size) for maps in chosen], 1)
        return found if where is None else found[:, :, where]

    def _chosen(self, layers: Layers | None, steps: Sequence[int] | None) -> dict[str, Tensor]:
        """Layer -> maps [t, N, h, w], float32, of chosen layers and timesteps."""
        if layers is not None and set(self.native) != set(self.layers):
            raise ValueError('the layers were averaged: keep="layers" or "all" holds them apart')
        names = [n for n, size in self.sizes.items() if matches(n, size, layers)]
        if not names:
            raise ValueError(f"layers={layers!r} matches none of {self.sizes}")
        if steps is None:
            return {name: self.native[name].float() for name in names}
        if len(self.native[names[0]]) != len(self.timesteps):
            raise ValueError('the steps were averaged: keep="all" holds them apart')
        _need_some("steps", steps, len(self.timesteps))
        return {name: self.native[name].float()[list(steps)] for name in names}

    def _columns(self, tokens: Sequence[int] | None) -> tuple[list[int] | None, Tensor | None]:
        """Indices of tokens among N (None: all) and their weights (None: one each)."""
        if tokens is None:
            where = None
        elif self.tokens is None:
            raise ValueError('the tokens were averaged: keep="all" holds them apart')
        else:
            wanted = list(map(int, tokens))
            if not wanted or set(wanted) - set(self.tokens):
                raise ValueError(f"tokens {wanted} were not recorded: choose from {self.tokens}")
            where = [self.tokens.index(token) for token in wanted]
        counts = [self.counts[i] for i in where] if where and self.counts else self.counts
        if len(set(counts)) < 2:
            return where, None
        weights = torch.tensor(counts, dtype=torch.float32)
        return where, weights / weights.sum()


def _need_some(name: str, chosen: Sequence[int], number: int) -> None:
    """Refuse an empty choice, and one beyond what there is (negative numbers would wrap)."""
    if not (len(chosen) and 0 <= min(chosen) and max(chosen) < number):
        raise ValueError(f"{name}={list(chosen)}: choose from 0 to {number - 1}, at least one")


def _weighted(maps: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean [t, h, w] of [t, n, h, w]; the weights [n] add up to 1."""
    return torch.einsum("tnhw,n->thw", maps, weights.to(maps.device))


# -- accumulating ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Seen:
    """Attention of one layer in one forward. The mean over heads is taken once for all."""

    probabilities: Tensor  # s b heads hw n: timesteps, samples, heads, places, tokens
    size: tuple[int, int]  # of the layer's maps, h w
    latent: tuple[int, int]
    length: int  # token positions of the text
    tokens: Positions | None = None  # a sample's position of each of n; None: all in order

    @cached_property
    def mean(self) -> Tensor:
        """Mean over heads [s, b, hw, n], float32."""
        return self.probabilities.mean(2, dtype=torch.float32)


def _on_grid(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps [..., h, w] of [..., hw]."""
    return maps.reshape(*maps.shape[:-1], *size)


class Accumulator:
    """Keeps maps of chosen tokens of what a recorder sees; see `Mean` and `Stack`.

    tokens: positions: one list for all samples or one list per sample (ragged); None: all.
    """

    def __init__(self, tokens: Tokens | None = None) -> None:
        self.tokens = tokens
        self.latent = (0, 0)
        self._counts: dict[str, int] = {}  # layer -> timesteps
        self._index: tuple[Tensor, Tensor] | None = None
        self._where: dict[Positions | None, Tensor | None] = {}  # columns read; None: all in order

    def add(self, layer: str, seen: Seen) -> None:
        """Take one layer's attention of the next s timesteps."""
        self.latent = seen.latent
        self._counts[layer] = self._counts.get(layer, 0) + len(seen.probabilities)
        self.keep(layer, seen)

    def keep(self, layer: str, seen: Seen) -> None:
        """Keep the accumulator's part of it."""
        raise NotImplementedError

    @property
    def nbytes(self) -> int:
        """Bytes that the kept maps take."""
        raise NotImplementedError

    def sample(self, b: int) -> AttentionMaps:
        """The maps of one sample."""
        raise NotImplementedError

    def picked(self, means: Tensor, seen: Seen) -> tuple[Tensor, Tensor]:
        """Maps [s, b, k, hw] of the tokens of means [s, b, hw, n], and which of b x k are real."""
        s, b, hw, n = means.shape
        if self._index is None:
            every = list(range(seen.length)) if self.tokens is None else self.tokens
            self._index = _padded(_ragged(every, b, seen.length), means.device)
        index, valid = self._index
        if seen.tokens not in self._where:
            columns = index if seen.tokens is None else _columns_of(index, seen.tokens)
            same = columns.shape[1] == n and bool((columns == torch.arange(n).to(columns)).all())
            self._where[seen.tokens] = None if same else columns
        where = self._where[seen.tokens]
        if where is None:
            return means.transpose(-1, -2), valid
        where = where[None, :, None, :].expand(s, b, hw, where.shape[1])
        return means.gather(-1, where).transpose(-1, -2), valid

    def positions(self, b: int) -> tuple[int, ...]:
        """Token positions of one sample's maps."""
        if self._index is None:
            raise RuntimeError("nothing recorded yet: call the U-Net inside the `with` block")
        index, valid = self._index
        return tuple(index[b][valid[b]].tolist())

    def maps(self, native: Mapping[str, Tensor], tokens: tuple[int, ...] | None) -> AttentionMaps:
        """A sample's value object from its native maps."""
        steps = range(next(iter(self._counts.values())))
        return AttentionMaps(native, self.latent, tuple(self._counts), tuple(steps), tokens)


class Mean(Accumulator):
    """Running float32 sums over timesteps: over all layers too, unless they are held apart."""

    def __init__(self, tokens: Tokens | None = None, apart: bool = False) -> None:
        super().__init__(tokens)
        self._apart = apart
        self._sums: dict[str | tuple[int, int], Tensor] = {}  # layer or map size -> b k h w

    def keep(self, layer: str, seen: Seen) -> None:
        """Add the layer's maps to its sum, or to the sum of its map size."""
        maps, _ = self.picked(seen.mean.sum(0, keepdim=True), seen)
        native = _on_grid(maps[0], seen.size)  # b k h w
        key = layer if self._apart else seen.size
        known = self._sums.get(key)
        self._sums[key] = native.clone() if known is None else known.add_(native)

    @property
    def nbytes(self) -> int:
        """Bytes of the sums."""
        return sum(t.numel() * t.element_size() for t in self._sums.values())

    def sample(self, b: int) -> AttentionMaps:
        """Maps [1, N, h, w] of each layer, or one entry [1, N, H, W] for all layers."""
        tokens = self.positions(b)
        steps = next(iter(self._counts.values()))
        own = {key: sums[b, : len(tokens)] for key, sums in self._sums.items()}  # n h w
        if self._apart:
            return self.maps({str(k): m[None] / steps for k, m in own.items()}, tokens)
        total = torch.stack([upsample(m, self.latent) for m in own.values()]).sum(0)
        return self.maps({"mean": total[None] / (steps * len(self._counts))}, tokens)


class Stack(Accumulator):
    """Maps of every timestep and layer: of every token, or averaged over the tokens.

    dtype: of what is kept.
    """

    def __init__(
        self,
        tokens: Tokens | None = None,
        average: bool = False,
        dtype: torch.dtype = torch.float16,
    ) -> None:
        super().__init__(tokens)
        self._average, self._dtype = average, dtype
        self._kept: dict[str, list[Tensor]] = {}  # layer -> s b k h w of every forward

    def keep(self, layer: str, seen: Seen) -> None:
        """Append the layer's maps."""
        maps, valid = self.picked(seen.mean, seen)  # s b k hw
        if self._average:
            weights = valid[None, ..., None]
            maps = ((maps * weights).sum(2) / weights.sum(2))[:, :, None]
        kept = _on_grid(maps, seen.size).to(self._dtype)
        self._kept.setdefault(layer, []).append(kept)

    @property
    def nbytes(self) -> int:
        """Bytes of the kept maps."""
        return sum(t.numel() * t.element_size() for kept in self._kept.values() for t in kept)

    def sample(self, b: int) -> AttentionMaps:
        """Maps [T, N, h, w] of each layer; N is 1 where the tokens were averaged."""
        tokens = self.positions(b)
        native = {
            name: torch.cat([maps[:, b, : len(tokens)] for maps in kept])
            for name, kept in self._kept.items()
        }
        return self.maps(native, None if self._average else tokens)

    def take(self) -> dict[str, Tensor]:
        """Layer -> maps [s, b, k, h, w] of the timesteps since the last call; then forget them."""
        found = {name: torch.cat(kept) for name, kept in self._kept.items()}
        self._kept = {}
        return found


# -- hooking --------------------------------------------------------------------------------------


class _Enough(Exception):
    """Ends a forward after its last recorded layer."""


class Recorder:
    """Shows the cross-attention of all forwards of `unet` inside a `with` block to accumulators.

    Args:
        unet: any diffusers `UNet2DConditionModel`, also with LoRA adapters or wrapped by PEFT.
        accumulators: they keep the maps.
        rows_per_step: samples b per timestep, if s timesteps are stacked in a forward's batch of
            s*b rows, step-major: [step 0 sample 0..b-1, step 1 sample 0..b-1, ...]. None: s = 1.
        layers: show only these (name, block, map height, or several). Others keep their kernel, as
            self-attention does.
        rows: slice of every forward's batch to show, e.g. the conditional half under guidance.
        stop: end every forward, and with it the block, after the last recorded layer. For those
            who need no prediction; layers that are chosen by map height end it from the second
            forward on.

    Results are readable after the block. Entering again adds to them. Where every accumulator names
    its tokens, only their probabilities are computed, beside the fused kernel (CPU, float32), and
    the U-Net's output is unchanged; else it is up to the rounding of unfused attention.

    Raises:
        RuntimeError: on re-entrant use, and for a forward after one that failed midway (its first
            layers are in the sums already).
        TypeError: a layer has a custom processor that this one could not stand in for.
    """

    def __init__(
        self,
        unet: nn.Module,
        accumulators: Sequence[Accumulator],
        rows_per_step: int | None = None,
        *,
        layers: Layers | None = None,
        rows: slice | None = None,
        stop: bool = False,
    ) -> None:
        self.accumulators, self.rows_per_step = accumulators, rows_per_step
        self.stop = stop
        self._last = ""  # recorded layer; "": not known yet
        self._asked: tuple[int, Positions | None, Tensor | None] | None = None
        self._attn, self._wanted = find_layers(unet), layers
        ends = {n.split(".")[-1]: m for n, m in unet.named_modules() if "conv_" in n}
        self._stem, self._head = ends["conv_in"], ends.get("conv_out")
        self._twice = [m for m in unet.modules() if hasattr(m, "gradient_checkpointing")]
        self._rows = rows or slice(None)
        self._originals: dict[str, Any] = {}
        self._hooks: list[Any] = []
        self._running = False  # a forward has begun and not ended
        self._latent = (0, 0)
        self._batch = 0
        self.steps = 0  # timesteps seen
        self._sizes: dict[str, tuple[int, int]] = {}

    def __enter__(self) -> Self:
        """Replace the cross-attention processors of this U-Net."""
        self._refuse()
        self._hooks = [self._stem.register_forward_pre_hook(self._begin_forward)]
        if self._head is not None:
            self._hooks.append(self._head.register_forward_hook(self._end_forward))
        for name, attn in self._attn.items():
            if matches(name, None, self._wanted) or not _only_names(self._wanted):
                self._originals[name] = attn.processor
                attn.processor = _Capture(attn.processor, partial(self._watch, name))
        if not self._originals:
            self._restore()
            raise ValueError(f"layers={self._wanted!r} matches none of {list(self._attn)}")
        if _only_names(self._wanted):
            self._last = list(self._originals)[-1]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        """Put the processors back, whatever happened."""
        self._restore()
        return kind is _Enough

    @property
    def sizes(self) -> dict[str, tuple[int, int]]:
        """Layer -> height and width of its maps, in forward order."""
        return {name: self._sizes[name] for name in self._attn if name in self._sizes}

    @property
    def layers(self) -> list[str]:
        """Names of the recorded layers in forward order (before the first forward: of all)."""
        return list(self.sizes) or list(self._attn)

    @property
    def latent_size(self) -> tuple[int, int]:
        """(H, W) of the latents, the size of all upsampled maps."""
        self._need_results()
        return self._latent

    @property
    def nbytes(self) -> int:
        """Bytes that the kept maps take."""
        return sum(accumulator.nbytes for accumulator in self.accumulators)

    def _need_results(self) -> None:
        if not self._sizes:
            raise RuntimeError("nothing recorded yet: call the U-Net inside the `with` block")

    def _refuse(self) -> None:
        for name, attn in self._attn.items():
            kind = type(attn.processor).__name__
            if isinstance(attn.processor, _Capture):
                raise RuntimeError("a recorder is already active on this U-Net: leave it first")
            if kind not in _REPLACEABLE:
                raise TypeError(f"{name} has a custom processor {kind}: reset it before recording")

    def _restore(self) -> None:
        for hook in self._hooks:
            hook.remove()
        for name, processor in self._originals.items():
            self._attn[name].processor = processor
        self._originals = {}

    def _begin_forward(self, stem: nn.Module, args: tuple[Tensor, ...]) -> None:
        """Note the latent size and how many timesteps and samples the coming forward holds."""
        if self._running:
            raise RuntimeError("the forward before this one failed midway: use a new recorder")
        if torch.is_grad_enabled() and any(m.gradient_checkpointing for m in self._twice):
            raise RuntimeError(
                "gradient checkpointing runs every layer twice, so its maps would count twice: "
                "record under torch.no_grad() or call unet.disable_gradient_checkpointing()"
            )
        rows = len(range(*self._rows.indices(len(args[0]))))
        batch, latent = self.rows_per_step or rows, (args[0].shape[-2], args[0].shape[-1])
        if rows % batch:
            raise ValueError(f"{rows} rows are no multiple of rows_per_step={batch}")
        if self.steps and (batch, latent) != (self._batch, self._latent):
            raise ValueError(
                f"samples and latents changed from {self._batch} x {self._latent} to "
                f"{batch} x {latent}: use one recorder for each"
            )
        self._batch, self._latent = batch, latent
        self.steps += rows // batch
        self._running = self._head is not None

    def _end_forward(self, *_: object) -> None:
        self._running = False
        self._last = self.layers[-1]

    def _watch(self, layer: str, positions: int) -> _Watch | None:
        """Receiver of the attention of a layer with this many positions, or None."""
        size = native_size(positions, self._latent)
        if not matches(layer, size, self._wanted):
            return None
        self._sizes[layer] = size
        return _Watch(self._rows, self._index, partial(self._show, layer))

    def _index(self, length: int) -> Tensor | None:
        """Positions [b, k] of all tokens that accumulators name; None: all, or nearly all."""
        if self._asked is None or self._asked[0] != length:
            self._asked = (length, *self._union(length))
        return self._asked[2]

    def _union(self, length: int) -> tuple[Positions | None, Tensor | None]:
        named = [one.tokens for one in self.accumulators]
        known = [_ragged(one, self._batch, length) for one in named if one is not None]
        if not known or len(known) < len(named):
            return None, None
        rows = [sorted({t for one in known for t in one[b]}) for b in range(self._batch)]
        width = max(map(len, rows))
        if 2 * width > length:
            return None, None
        rows = [row + [row[-1]] * (width - len(row)) for row in rows]
        return tuple(map(tuple, rows)), torch.tensor(rows)

    def _show(self, layer: str, probabilities: Tensor, length: int) -> None:
        """Show the probabilities [rows, heads, hw, n] of one layer's rows to the accumulators."""
        stacked = probabilities.detach().reshape(-1, self._batch, *probabilities.shape[1:])
        tokens = None if self._asked is None or stacked.shape[-1] == length else self._asked[1]
        seen = Seen(stacked, self._sizes[layer], self._latent, length, tokens)
        for accumulator in self.accumulators:
            accumulator.add(layer, seen)
        if self.stop and layer == self._last:
            self._running = False
            raise _Enough


class CrossAttentionRecorder(Recorder):
    """Records cross-attention maps of all forwards inside a `with` block; see `Recorder`.

    Args:
        unet, rows_per_step, layers, rows, stop: as in `Recorder`.
        tokens: positions to record: one list for all samples or one list per sample (ragged);
            None records all positions, kept apart.
        keep: "mean" (sum over steps and layers) | "layers" (sum over steps) | "steps" (steps x
            layers, mean over the tokens) | "all" (steps x layers x tokens); the latter two in
            native resolution and `dtype` (float16).
        also: further accumulators that see the same attention.
    """

    def __init__(
        self,
        unet: nn.Module,
        tokens: Tokens | None = None,
        keep: Keep = "mean",
        rows_per_step: int | None = None,
        *,
        layers: Layers | None = None,
        rows: slice | None = None,
        dtype: torch.dtype = torch.float16,
        also: Sequence[Accumulator] = (),
        stop: bool = False,
    ) -> None:
        kinds: dict[str, Callable[[], Accumulator]] = {
            "mean": lambda: Mean(tokens),
            "layers": lambda: Mean(tokens, apart=True),
            "steps": lambda: Stack(tokens, average=True, dtype=dtype),
            "all": lambda: Stack(tokens, dtype=dtype),
        }
        if keep not in kinds:
            raise ValueError(f"keep={keep!r}: choose mean, layers, steps or all")
        self.keep, self._main = keep, kinds[keep]()
        super().__init__(
            unet, [self._main, *also], rows_per_step, layers=layers, rows=rows, stop=stop
        )

    def sample(self, b: int = 0) -> AttentionMaps:
        """Maps of one sample, with the axes that `keep` holds apart."""
        self._need_results()
        return self._main.sample(b)

    def mean(
        self,
        tokens: Tokens | None = None,
        layers: Layers | None = None,
        steps: Sequence[int] | None = None,
    ) -> Tensor:
        """Mean maps [B, H, W] of all samples: see `AttentionMaps.mean`.

        tokens: one list for all samples or one list per sample; None: each sample's recorded ones.
        """
        each = self._each(tokens)
        return torch.stack([sample.mean(own, layers, steps) for sample, own in each])

    def maps(
        self,
        tokens: Tokens | None = None,
        layers: Layers | None = None,
        steps: Sequence[int] | None = None,
    ) -> Tensor:
        """Upsampled float32 maps with the axes that were kept.

        "mean" [B, N, H, W] | "layers" [B, L, N, H, W] | "steps" [B, T, L, H, W] |
        "all" [B, T, L, N, H, W]. Where samples have different numbers of tokens, the rest of N
        is NaN.
        """
        each = [sample.upsampled(own, layers, steps) for sample, own in self._each(tokens)]
        wide = max(maps.shape[2] for maps in each)
        padding = [(0, 0, 0, 0, 0, wide - maps.shape[2]) for maps in each]
        padded = [F.pad(m, p, value=float("nan")) for m, p in zip(each, padding, strict=True)]
        averaged: dict[str, tuple[int, ...]] = {"mean": (1, 2), "layers": (1,), "steps": (3,)}
        return torch.stack(padded).squeeze(averaged.get(self.keep, ()))  # b t l n h w

    def _each(self, tokens: Tokens | None) -> list[tuple[AttentionMaps, list[int] | None]]:
        """Every sample with its tokens."""
        self._need_results()
        rows = [None] * self._batch if tokens is None else _ragged(tokens, self._batch)
        return [(self.sample(b), own) for b, own in enumerate(rows)]


@dataclass(frozen=True)
class _Watch:
    """Receiver of one layer's attention."""

    rows: slice  # of the batch
    index: Callable[[int], Tensor | None]  # text length -> positions [b, k] to show; None: all
    show: Callable[[Tensor, int], None]  # takes [rows, heads, hw, n] and the text length


class _Capture:
    """Attention processor: plain attention that shows its probabilities.

    Args:
        sink: from a number of positions to the receiver; None keeps the original processor.
    """

    def __init__(self, original: Any, sink: Callable[[int], _Watch | None]) -> None:
        self.original, self.sink = original, sink

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Any:
        """Same result as diffusers' `AttnProcessor`; hidden states are [rows, hw, d]."""
        watch = self.sink(hidden_states.shape[1])
        if watch is None:
            return self.original(
                attn, hidden_states, encoder_hidden_states, attention_mask=attention_mask, temb=temb
            )
        residual, text = hidden_states, encoder_hidden_states
        text = hidden_states if text is None else text
        mask = attn.prepare_attention_mask(attention_mask, text.shape[1], len(text))
        if attn.group_norm is not None:
            hidden_states = attn.group_norm(hidden_states.transpose(1, 2)).transpose(1, 2)
        if attn.norm_cross:
            text = attn.norm_encoder_hidden_states(text)
        states = _projected(attn, hidden_states, text)
        index = watch.index(text.shape[1]) if mask is None else None
        if index is not None and self._fuses(attn, *states):
            read = _fused(attn.heads, *states, watch, index)
        else:
            read = _unfused(attn, *states, mask, watch)
        out = attn.to_out[1](attn.to_out[0](read))
        return (out + residual if attn.residual_connection else out) / attn.rescale_output_factor

    def _fuses(self, attn: Any, query: Tensor, key: Tensor, value: Tensor) -> bool:
        """True where the fused kernel gives the logarithm of its sums, and nothing else differs."""
        known = type(self.original).__name__ == "AttnProcessor2_0"
        usual = attn.norm_q is None and attn.norm_k is None and query.shape[-1] == value.shape[-1]
        scaled = math.isclose(attn.scale, (query.shape[-1] // attn.heads) ** -0.5)
        here = query.device.type == "cpu" and query.dtype == torch.float32
        return known and usual and scaled and here


def _fused(
    heads: int, query: Tensor, key: Tensor, value: Tensor, watch: _Watch, index: Tensor
) -> Tensor:
    """Attention [rows, hw, heads*d] by the fused kernel; shows the tokens of an index [b, k].

    exp(q k^T / sqrt(d) - log of the kernel's sums) is the softmax over all tokens at few of them.
    """
    q, k, v = (t.view(*t.shape[:2], heads, -1).transpose(1, 2) for t in (query, key, value))
    out, sums = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)  # noqa: SLF001
    shown, keys = q[watch.rows], k[watch.rows]  # rows heads hw d, rows heads n d
    where = index.repeat(len(keys) // len(index), 1)[:, None, :, None]
    few = keys.gather(2, where.expand(-1, heads, -1, keys.shape[-1])) * keys.shape[-1] ** -0.5
    scores = few @ shown.transpose(-1, -2)  # rows heads k hw
    probs = scores.sub_(sums[watch.rows, :, None]).exp_()
    watch.show(probs.transpose(-1, -2), key.shape[1])
    return out.transpose(1, 2).flatten(2)  # type: ignore[no-any-return]


def _unfused(
    attn: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, watch: _Watch
) -> Tensor:
    """Attention [rows, hw, heads*d] by its formula; shows all tokens."""
    query, key, value = map(attn.head_to_batch_dim, (query, key, value))
    if attn.norm_q is not None:
        query, key = attn.norm_q(query), attn.norm_k(key)
    if query.dtype == torch.float16:  # products of large states overflow
        query, key, mask = query.float(), key.float(), mask if mask is None else mask.float()
    probs = attn.get_attention_scores(query, key, mask)  # rows*heads hw n
    each = probs.reshape(-1, attn.heads, *probs.shape[1:])
    watch.show(each[watch.rows], probs.shape[-1])
    read: Tensor = attn.batch_to_head_dim(torch.bmm(probs.to(value.dtype), value))
    return read


def _projected(attn: Any, states: Tensor, text: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values [rows, hw or n, heads*d]; fused weights are the ones in use."""
    if getattr(attn, "fused_projections", False) and hasattr(attn, "to_kv"):
        key, value = attn.to_kv(text).chunk(2, dim=-1)
        return attn.to_q(states), key, value
    return attn.to_q(states), attn.to_k(text), attn.to_v(text)


def _only_names(wanted: Layers | None) -> bool:
    """True if a layer choice is by names and blocks alone, so known before the first forward."""
    if wanted is None or isinstance(wanted, str):
        return True
    return not isinstance(wanted, int) and all(isinstance(one, str) for one in wanted)


def _ragged(tokens: Tokens, batch: int, length: int | None = None) -> list[list[int]]:
    """One token list per sample; checks their number and, where known, their range."""
    single = len(tokens) == 0 or np.ndim(tokens[0]) == 0
    rows = [list(map(int, row)) for row in ([tokens] * batch if single else tokens)]  # type: ignore
    if len(rows) != batch:
        raise ValueError(f"{len(rows)} token lists for {batch} samples (rows_per_step right?)")
    for sample, row in enumerate(rows):
        if not row:
            raise ValueError(f"no tokens asked for sample {sample}")
        if length is not None and not all(0 <= t < length for t in row):
            raise ValueError(f"tokens {row} of sample {sample} are not all in 0..{length - 1}")
    return rows


def _columns_of(index: Tensor, tokens: Positions) -> Tensor:
    """Columns [b, k] at which samples' tokens hold the positions of an index [b, k].

    Padding of the index, whose maps are not read, may point to any column.
    """
    both = zip(index.tolist(), tokens, strict=True)
    found = [[row.index(t) if t in row else 0 for t in own] for own, row in both]
    return torch.tensor(found, device=index.device)


def _padded(rows: list[list[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Index [b, k] of ragged rows, padded with 0, and the mask of real entries."""
    width = max(map(len, rows))
    index = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=device)
    lengths = torch.tensor([[len(row)] for row in rows], device=device)
    return index, torch.arange(width, device=device)[None] < lengths
