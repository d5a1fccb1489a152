"""Streaming capture of a U-Net's cross-attention maps (paper section 3.1, "Attention maps").

For layer l, timestep t and head h, P = softmax(Q K^T / sqrt(d)) is [hw, tokens]. A map is the head
mean, reshaped to [h, w] and nearest-upsampled to the latent size. Only running float32 sums stay in
memory, unless more is asked for; self-attention keeps its fused kernel.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

Keep = Literal["mean", "layers", "steps", "all"]
Tokens = Sequence[int] | Sequence[Sequence[int]]
Layers = str | int | Sequence[str | int]

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
    """Whether a layer is asked for: by name or its beginning ("up_blocks.1"), by block ("down") or
    by resolution (map height).
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


class CrossAttentionRecorder:
    """Records cross-attention maps of all forwards of `unet` inside a `with` block.

    unet: any diffusers `UNet2DConditionModel`, also with LoRA adapters or wrapped by PEFT.
    tokens: positions to record: one list for all samples or one list per sample (ragged);
        None records all positions, kept apart.
    keep: "mean" (sum over steps and layers) | "layers" (sum over steps) | "steps" (steps x layers,
        mean over the tokens) | "all" (steps x layers x tokens); the latter two in native resolution
        and `dtype` (float16).
    rows_per_step: samples b per timestep where s timesteps are stacked in a forward's batch of
        s*b rows, step-major: [step 0 sample 0..b-1, step 1 sample 0..b-1, ...]. None: s = 1.
    layers: record only these (name, block, map height, or several); others keep their kernel.
    step_tokens: tokens whose steps x layers maps are kept too, read with `native` (BBM's bias).
    rows: slice of every forward's batch to record, e.g. the conditional half under guidance.

    Results are readable after the block. Entering again adds to them. The U-Net's output is
    unchanged up to the rounding of unfused attention. Raises RuntimeError on re-entrant use and for
    a forward after one that failed midway (its first layers are in the sums already), and
    TypeError where a layer has a custom processor that this one could not stand in for.
    """

    def __init__(
        self,
        unet: nn.Module,
        tokens: Tokens | None = None,
        keep: Keep = "mean",
        rows_per_step: int | None = None,
        *,
        layers: Layers | None = None,
        step_tokens: Tokens | None = None,
        rows: slice | None = None,
        dtype: torch.dtype = torch.float16,
    ) -> None:
        if keep not in ("mean", "layers", "steps", "all"):
            raise ValueError(f"keep={keep!r}: choose mean, layers, steps or all")
        self.keep, self.tokens, self.rows_per_step = keep, tokens, rows_per_step
        self.step_tokens = tokens if keep == "steps" else step_tokens
        self._attn, self._wanted = find_layers(unet), layers
        ends = {n.split(".")[-1]: m for n, m in unet.named_modules() if "conv_" in n}
        self._stem, self._head = ends["conv_in"], ends.get("conv_out")
        self._rows, self._dtype = rows or slice(None), dtype
        self._keeps_steps = keep == "steps" or step_tokens is not None
        self._originals: dict[str, Any] = {}
        self._hooks: list[Any] = []
        self._running = False  # a forward has begun and not ended
        self._latent: tuple[int, int] | None = None
        self._steps = 0
        self._stacked = 0  # timesteps in the running forward
        self._batch = 0
        self._index: dict[str, tuple[Tensor, Tensor] | None] = {}
        self._sizes: dict[str, tuple[int, int]] = {}
        self._sums: dict[Any, Tensor] = {}
        self._full: dict[str, list[Tensor]] = {}
        self._bias: dict[str, list[Tensor]] = {}

    # -- hooking ----------------------------------------------------------------------------

    def __enter__(self) -> CrossAttentionRecorder:
        """Replace the cross-attention processors of this U-Net."""
        self._refuse()
        begin = self._stem.register_forward_pre_hook(self._begin_forward)
        self._hooks = [begin]
        if self._head is not None:
            self._hooks.append(self._head.register_forward_hook(self._end_forward))
        for name, attn in self._attn.items():
            if matches(name, None, self._wanted) or not _only_names(self._wanted):
                self._originals[name] = attn.processor
                attn.processor = _Capture(self, name, attn.processor)
        if not self._originals:
            self._restore()
            raise ValueError(f"layers={self._wanted!r} matches none of {list(self._attn)}")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Put the processors back, whatever happened."""
        self._restore()

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
        rows = len(range(*self._rows.indices(len(args[0]))))
        batch, latent = self.rows_per_step or rows, (args[0].shape[-2], args[0].shape[-1])
        if rows % batch:
            raise ValueError(f"{rows} rows are no multiple of rows_per_step={batch}")
        if self._steps and (batch, latent) != (self._batch, self._latent):
            raise ValueError(
                f"samples and latents changed from {self._batch} x {self._latent} to "
                f"{batch} x {latent}: use one recorder for each"
            )
        self._batch, self._latent, self._stacked = batch, latent, rows // batch
        self._steps += self._stacked
        self._running = self._head is not None

    def _end_forward(self, *_: Any) -> None:
        self._running = False

    # -- recording --------------------------------------------------------------------------

    def _record(self, layer: str, probs: Tensor, heads: int) -> None:
        """Add one layer's probabilities [rows * heads, hw, n] to what is kept."""
        size = self._sizes[layer]
        probs = probs.detach().unflatten(0, (-1, heads))[self._rows]  # rows heads hw n
        means = probs.mean(1, dtype=torch.float32).unflatten(0, (-1, self._batch))  # s b hw n
        if self._keeps_steps:
            maps, valid = self._select(means, "step_tokens")  # s b k hw
            mean = (maps * valid[None, ..., None]).sum(2) / valid.sum(1)[None, :, None]
            kept = mean.unflatten(-1, size).to(self._dtype)
            self._bias.setdefault(layer, []).append(kept)
        if self.keep == "all":
            maps = self._select(means, "tokens")[0].unflatten(-1, size)
            self._full.setdefault(layer, []).append(maps.to(self._dtype))
        elif self.keep != "steps":
            maps = self._select(means.sum(0, keepdim=True), "tokens")[0][0].unflatten(-1, size)
            key = size if self.keep == "mean" else layer
            self._sums[key] = self._sums[key].add_(maps) if key in self._sums else maps.clone()

    def _select(self, means: Tensor, which: str) -> tuple[Tensor, Tensor]:
        """Maps [s, b, k, hw] of the wanted tokens of [s, b, hw, n], and which of b x k are real."""
        s, b, hw, n = means.shape
        if which not in self._index:
            wanted = getattr(self, which)
            rows = _ragged(list(range(n)) if wanted is None else wanted, b, n)
            self._index[which] = _padded(rows, means.device)
        index, valid = self._index[which]  # type: ignore[misc]
        if getattr(self, which) is None:
            return means.transpose(-1, -2), valid
        where = index[None, :, None, :].expand(s, b, hw, index.shape[1])
        return means.gather(-1, where).transpose(-1, -2), valid

    # -- reading ----------------------------------------------------------------------------

    @property
    def layers(self) -> list[str]:
        """Names of the recorded layers in forward order (before the first forward: of all)."""
        return [name for name in self._attn if name in self._sizes] or list(self._attn)

    @property
    def steps(self) -> int:
        """Timesteps recorded so far."""
        return self._steps

    @property
    def sizes(self) -> dict[str, tuple[int, int]]:
        """Native (height, width) of every recorded layer."""
        return {name: self._sizes[name] for name in self.layers if name in self._sizes}

    @property
    def latent_size(self) -> tuple[int, int]:
        """(H, W) of the latents, the size of all upsampled maps."""
        self._need_results()
        assert self._latent is not None
        return self._latent

    @property
    def nbytes(self) -> int:
        """Bytes that the kept maps take."""
        lists = [*self._full.values(), *self._bias.values(), list(self._sums.values())]
        return sum(t.numel() * t.element_size() for kept in lists for t in kept)

    def mean(
        self,
        tokens: Tokens | None = None,
        layers: Layers | None = None,
        steps: Sequence[int] | None = None,
    ) -> Tensor:
        """Mean maps [B, H, W], float32, over tokens, layers and steps: the raw activation map.

        tokens default to each sample's recorded ones. Raises ValueError for a choice that `keep`
        no longer allows or a token that was not recorded.
        """
        self._check(tokens, layers, steps)
        if self.keep == "mean":
            parts = [(m, 1 / (self._steps * len(self.layers))) for m in self._sums.values()]
        else:
            names = self._pick_layers(layers)
            parts = [(self._layer(n, steps).mean(1), 1 / len(names)) for n in names]
        total = torch.zeros(())
        for native, weight in parts:  # b k h w
            share = upsample(self._token_mean(native, tokens), self.latent_size) * weight
            total = share if total.ndim == 0 else total.add_(share)
        return total

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
        self._check(tokens, layers, steps)
        size = self.latent_size
        if self.keep == "mean":
            total = torch.stack([upsample(m, size) for m in self._sums.values()]).sum(0)
            return self._token_axis(total / (self._steps * len(self.layers)), tokens)
        names = self._pick_layers(layers)
        found = [upsample(self._layer(name, steps), size) for name in names]  # b t n h w
        if self.keep == "steps":
            return torch.stack([m.squeeze(2) for m in found], 2)
        out = torch.stack([self._token_axis(m, tokens) for m in found], 2)  # b t l n h w
        return out.squeeze(1) if self.keep == "layers" else out

    def native(self, layers: Layers | None = None) -> list[Tensor]:
        """Per layer the maps of `step_tokens` (or keep="steps"), [B, T, h, w], not upsampled."""
        self._need_results()
        if not self._bias:
            raise ValueError('native maps need keep="steps" or step_tokens=...')
        return [torch.cat(self._bias[name]).transpose(0, 1) for name in self._pick_layers(layers)]

    def drain(self) -> dict[str, Tensor]:
        """Layer -> what `native` gives, of the steps since the last call; then forget it."""
        found = dict(zip(self.layers, self.native(), strict=True))
        self._bias = {}
        return found

    def native_tokens(self, layer: str, steps: Sequence[int] | None = None) -> Tensor:
        """One layer's token maps, not upsampled: keep="all" [B, T, N, h, w], "layers" T = 1."""
        self._need_results()
        if self.keep not in ("all", "layers"):
            raise ValueError(f'keep={self.keep!r} holds no maps per layer: use "layers" or "all"')
        return self._layer(layer, steps)

    def _layer(self, name: str, steps: Sequence[int] | None) -> Tensor:
        """One layer's kept maps [b, t, n, h, w]; t or n is 1 where that axis was averaged."""
        if self.keep == "layers":
            return self._sums[name][:, None] / self._steps
        if self.keep == "steps":
            kept = torch.cat(self._bias[name]).transpose(0, 1)[:, :, None]
        else:
            kept = torch.cat(self._full[name]).transpose(0, 1)
        if steps is None:
            return kept.float()
        if outside := [step for step in steps if not -self._steps <= step < self._steps]:
            raise ValueError(f"steps {outside} are not among the {self._steps} that were recorded")
        return kept[:, list(steps)].float()

    def _pick_layers(self, wanted: Layers | None) -> list[str]:
        names = [n for n in self.layers if matches(n, self._sizes.get(n), wanted)]
        if not names:
            raise ValueError(f"layers={wanted!r} matches none of {self.sizes}")
        return names

    def _positions(self, tokens: Tokens | None) -> tuple[Tensor, Tensor]:
        """Indices [b, k] into the recorded token axis, and which of them are real."""
        index, valid = self._index["tokens"]  # type: ignore[misc]
        if tokens is None:
            return torch.arange(index.shape[1], device=index.device).expand_as(index), valid
        recorded = [r[v].tolist() for r, v in zip(index, valid, strict=True)]
        rows = []
        for sample, (wanted, have) in enumerate(
            zip(_ragged(tokens, len(index), None), recorded, strict=True)
        ):
            if missing := [t for t in wanted if t not in have]:
                raise ValueError(f"tokens {missing} of sample {sample} were not recorded: {have}")
            rows.append([have.index(t) for t in wanted])
        return _padded(rows, index.device)

    def _token_mean(self, native: Tensor, tokens: Tokens | None) -> Tensor:
        """[b, h, w]: mean of [b, k, h, w] over the wanted tokens."""
        if self.keep == "steps":
            return native.squeeze(1)
        where, valid = self._positions(tokens)
        weights = torch.zeros(native.shape[:2], device=native.device)
        weights.scatter_add_(1, where, valid.float()).div_(valid.sum(1, keepdim=True))
        return torch.einsum("bkhw,bk->bhw", native.float(), weights)

    def _token_axis(self, maps: Tensor, tokens: Tokens | None) -> Tensor:
        """Wanted tokens of [b, ..., n, h, w]; padding of ragged choices is NaN."""
        where, valid = self._positions(tokens)
        out = torch.stack([m.index_select(-3, i) for m, i in zip(maps, where, strict=True)])
        shape = [len(valid)] + [1] * (out.ndim - 4) + [valid.shape[1], 1, 1]
        return out if valid.all() else out.masked_fill(~valid.view(shape), float("nan"))

    def _check(self, tokens: object, layers: object, steps: object) -> None:
        """Refuse a selection over an axis that was averaged away."""
        self._need_results()
        if steps is not None and self.keep not in ("steps", "all"):
            raise ValueError(f'keep={self.keep!r} averaged the steps: use "steps" or "all"')
        if layers is not None and self.keep == "mean":
            raise ValueError('keep="mean" averaged the layers: use "layers", "steps" or "all"')
        if tokens is not None and self.keep == "steps":
            raise ValueError('keep="steps" averaged the tokens: use "all"')

    def _need_results(self) -> None:
        if not self._sizes:
            raise RuntimeError("nothing recorded yet: call the U-Net inside the `with` block")


class _Capture:
    """Attention processor: plain attention that shows its probabilities to a recorder."""

    def __init__(self, recorder: CrossAttentionRecorder, layer: str, original: Any) -> None:
        self.recorder, self.layer, self.original = recorder, layer, original

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """Same result as diffusers' `AttnProcessor`; hidden states are [rows, hw, d]."""
        recorder = self.recorder
        size = native_size(hidden_states.shape[1], recorder._latent)  # type: ignore[arg-type]
        if not matches(self.layer, size, recorder._wanted):
            return self.original(
                attn, hidden_states, encoder_hidden_states, attention_mask=attention_mask, temb=temb
            )
        recorder._sizes[self.layer] = size
        residual, text = hidden_states, encoder_hidden_states
        text = hidden_states if text is None else text
        mask = attn.prepare_attention_mask(attention_mask, text.shape[1], len(text))
        if attn.group_norm is not None:
            hidden_states = attn.group_norm(hidden_states.transpose(1, 2)).transpose(1, 2)
        if attn.norm_cross:
            text = attn.norm_encoder_hidden_states(text)
        query, key, value = (
            attn.head_to_batch_dim(project(states))  # rows*heads hw d
            for project, states in (
                (attn.to_q, hidden_states),
                (attn.to_k, text),
                (attn.to_v, text),
            )
        )
        if attn.norm_q is not None:
            query, key = attn.norm_q(query), attn.norm_k(key)
        probs = attn.get_attention_scores(query, key, mask)  # rows*heads hw n
        recorder._record(self.layer, probs, attn.heads)
        out = attn.to_out[1](attn.to_out[0](attn.batch_to_head_dim(torch.bmm(probs, value))))
        return (out + residual if attn.residual_connection else out) / attn.rescale_output_factor


def _only_names(wanted: Layers | None) -> bool:
    """Whether a layer choice is by names and blocks alone, so known before the first forward."""
    if wanted is None or isinstance(wanted, str):
        return True
    return not isinstance(wanted, int) and all(isinstance(one, str) for one in wanted)


def _ragged(tokens: Tokens, batch: int, length: int | None) -> list[list[int]]:
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


def _padded(rows: list[list[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Index [b, k] of ragged rows, padded with 0, and the mask of real entries."""
    width = max(map(len, rows))
    index = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=device)
    lengths = torch.tensor([[len(row)] for row in rows], device=device)
    return index, torch.arange(width, device=device)[None] < lengths
