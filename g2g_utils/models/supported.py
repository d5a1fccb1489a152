"""Refusal, from config.json alone, of U-Nets and VAEs that want more than this package gives them.

A U-Net gets latents, timesteps and text states, nothing else; a VAE gives its latents scaled and
shifted by one number. Anything more would fail after hours, or be wrong silently.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from g2g_utils.config import ConfigError

UNSET: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "addition_embed_type": ((None,), "embeddings of sizes or pooled text (as SDXL's)"),
    "encoder_hid_dim_type": ((None, "text_proj"), "embeddings of images"),
    "class_embed_type": ((None,), "class labels"),
    "num_class_embeds": ((None,), "class labels"),
    "time_cond_proj_dim": ((None,), "an embedding of the guidance scale (as a consistency model)"),
    "attention_type": ((None, "default"), "grounding tokens (as GLIGEN's)"),
}
"""Settings of a U-Net's config: values that are fine, and what others want."""


def _whole(value: Any) -> bool:
    return type(value) is int and value > 0


def _number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _list(of: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """A test for lists of at least one item, each passing the test `of`."""
    return lambda value: isinstance(value, list | tuple) and len(value) > 0 and all(map(of, value))


def _name(value: Any) -> bool:
    return isinstance(value, str)


RULES: tuple[tuple[str, Callable[[Any], bool], str, str], ...] = (
    (
        "one positive whole number",
        _whole,
        "in_channels out_channels cross_attention_dim",
        "in_channels out_channels latent_channels layers_per_block norm_num_groups",
    ),
    ("a list of positive whole numbers", _list(_whole), "block_out_channels", "block_out_channels"),
    (
        "a list of names",
        _list(_name),
        "down_block_types up_block_types",
        "down_block_types up_block_types",
    ),
    (
        "a positive whole number, or a list of them",
        lambda value: _whole(value) or _list(_whole)(value),
        "layers_per_block attention_head_dim",
        "",
    ),
    ("a positive number", lambda value: _number(value) and value > 0, "", "scaling_factor"),
    ("a number", _number, "freq_shift norm_eps mid_block_scale_factor", ""),
    ("a number or null", lambda value: value is None or _number(value), "", "shift_factor"),
    ("a name or null", lambda value: value is None or _name(value), "mid_block_type", ""),
    (
        "a positive whole number or null",
        lambda value: value is None or _whole(value),
        "norm_num_groups",
        "",
    ),
)
"""Kinds of values, their test, and the settings of a U-Net and of a VAE that must be so."""
STANDARD = "UNet2DConditionModel"
OTHER_BLOCKS = ("SimpleCross", "KCrossAttn", "KAttention", "ResnetDownsample", "ResnetUpsample")


def _wrong(config: Mapping[str, Any], part: int) -> list[str]:
    """Settings of a U-Net (part 0) or a VAE (1) whose values are of the wrong kind."""
    return [
        f"{name} = {config[name]!r}: it must be {kind}"
        for kind, test, *settings in RULES
        for name in settings[part].split()
        if name in config and not test(config[name])
    ]


def unet_problems(unet: Mapping[str, Any]) -> Iterator[str]:
    """Requests of a U-Net's config that cannot be met, each with its setting."""
    kind = unet.get("_class_name", STANDARD)
    if kind != STANDARD:
        yield f"_class_name = {kind!r}: only {STANDARD} is grounded"
        return
    if wrong := _wrong(unet, 0):
        yield from wrong
        return
    for name, (fine, wanted) in UNSET.items():
        if unet.get(name) not in fine:
            yield f"{name} = {unet[name]!r}: it wants {wanted}"
    taken, given = unet.get("in_channels", 4), unet.get("out_channels", 4)
    if taken != given:
        yield f"in_channels = {taken}, out_channels = {given}: it wants more than latents"
    if unet.get("only_cross_attention") not in (None, False) and _any(unet["only_cross_attention"]):
        yield "only_cross_attention is set: its self-attention reads the text too, unrecorded"
    if unet.get("dual_cross_attention"):
        yield "dual_cross_attention is set: it wants two texts"
    names = [
        unet.get("mid_block_type"),
        *unet.get("down_block_types", ()),
        *unet.get("up_block_types", ()),
    ]
    for name in names:
        if name and any(part in name for part in OTHER_BLOCKS):
            yield f"block {name}: its attention has no layers named attn2"
            break
    blocks = ("down_block_types", "up_block_types", "mid_block_type")
    if not any("CrossAttn" in str(unet.get(name, "CrossAttn")) for name in blocks):
        yield f"{', '.join(blocks)} name no block with cross-attention: nothing reads the text"


def _any(setting: Any) -> bool:
    return any(setting) if isinstance(setting, list | tuple) else bool(setting)


def vae_problems(vae: Mapping[str, Any]) -> Iterator[str]:
    """Reasons why a VAE's latents are not scaled and shifted by one number each."""
    kind = vae.get("_class_name", "AutoencoderKL")
    if kind != "AutoencoderKL":
        yield f"_class_name = {kind!r}: only AutoencoderKL is used"
    yield from (wrong := _wrong(vae, 1))
    taken = vae.get("in_channels", 3)
    if not wrong and taken != 3 and math.isqrt(taken) ** 2 != taken:
        yield f"in_channels = {taken}: films have 1 or 3 channels, or a square number (unshuffled)"
    for name in ("latents_mean", "latents_std"):
        if vae.get(name) is not None:
            yield f"{name} is set: its latents are normalised channel by channel"


def problems(unet: Mapping[str, Any] | None, vae: Mapping[str, Any] | None) -> list[str]:
    """Everything that a U-Net, a VAE (None: unknown) or both together want in vain."""
    found = [f"unet/config.json: {line}" for line in unet_problems(unet or {})]
    found += [f"vae/config.json: {line}" for line in vae_problems(vae or {})]
    if unet is not None and vae is not None and not found:
        taken, given = unet.get("in_channels", 4), vae.get("latent_channels", 4)
        if taken != given:
            found.append(f"unet/config.json: in_channels = {taken}, but the VAE gives {given}")
    return found


def check_supported(
    unet: Mapping[str, Any] | None, vae: Mapping[str, Any] | None = None, source: object = ""
) -> None:
    """Refuse configs of a U-Net or VAE that want more than they get.

    Raises:
        ConfigError: one line with the source, the setting and the fix.
    """
    found = problems(unet, vae)
    if found:
        start = f"{source}: " if source else ""
        raise ConfigError(f"{start}{'; '.join(found)}; name a model like Stable Diffusion 1.5's")
