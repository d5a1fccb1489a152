"""The table of products: one row per kind, registered beside the function that builds it.

A product is a folder that a profile makes once: trained weights, latents, a table of scores. Its
name is the kind, or KIND/ITEM where a profile has several of a kind (`ldm/domain-frozen-s0`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from g2g_utils.config import Config, ConfigError

Build = Callable[[Config, str, Path], dict[str, Any] | None]


def _one(config: Config) -> Sequence[str]:
    return [""]


@dataclass(frozen=True)
class Product:
    """One kind of product: which ones a profile has, what they depend on, how one is built."""

    kind: str
    build: Build  # (config, item, folder): fill the folder; returns what its record adds
    parameters: Callable[[Config, str], dict[str, Any]]  # settings that determine an item
    needs: Callable[[Config, str], Iterable[str]]  # products; the profile may lack some of them
    items: Callable[[Config], Sequence[str]] = _one  # of a profile; "" for the only one of a kind
    bundle: Callable[[Config, str], str] | None = None  # job that makes several (workflow)
    together: bool = False  # a group of processes may build one (`accelerate launch`)

    def names(self, config: Config) -> list[str]:
        """Names of the profile's products of this kind."""
        return [f"{self.kind}/{item}" if item else self.kind for item in self.items(config)]


KINDS: dict[str, Product] = {}  # in an order that can be made


def product(kind: str, **fields: Any) -> Callable[[Build], Build]:
    """Register the decorated function as the way to build a kind; `fields` are `Product`'s."""

    def register(build: Build) -> Build:
        KINDS[kind] = Product(kind, build, **fields)
        return build

    return register


def split(name: str) -> tuple[Product, str]:
    """The kind and item of a product's name; ConfigError if there is no such kind."""
    kind, _, item = name.partition("/")
    if kind not in KINDS:
        raise ConfigError(f"unknown product {name!r}: choose one of {', '.join(KINDS)}")
    return KINDS[kind], item


def present(config: Config, names: Iterable[str]) -> list[str]:
    """The names that are products of the profile, each once; others are loaded, not made."""
    return [name for name in dict.fromkeys(names) if name in split(name)[0].names(config)]


def arm_and_seed(config: Config, item: str) -> tuple[str, int]:
    """Split `domain-frozen-s0` into arm and seed; ConfigError if there is no such arm."""
    arm, _, seed = item.rpartition("-s")
    if arm not in config.training.arms or not seed.isdigit():
        known = ", ".join(config.training.arms)
        raise ConfigError(f"unknown arm or seed {item!r}: write ARM-sSEED with ARM one of {known}")
    return arm, int(seed)
