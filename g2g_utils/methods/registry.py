"""Kinds of methods by name: what each needs, what it costs, how it is built.

A row of a profile's `methods:` table names a kind and the kind's settings. The row's name is the
method's name in every table. `check` refuses an unusable row before anything runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from pydantic import ValidationError

from g2g_utils.config import Config, ConfigError, Section
from g2g_utils.methods.base import Grounder, HeatMap, Query
from g2g_utils.models.protocol import LatentDiffusion

MODULES = ("g2g", "daam", "information", "biovil", "no_skill")  # each registers its kinds on import
Variants = Callable[[Query, HeatMap], Mapping[str, HeatMap]]


class Parts(Protocol):
    """Parts that an experiment offers to the methods it builds."""

    config: Config

    def model(self, arm: str, seed: int) -> LatentDiffusion:
        """The diffusion model of a training arm."""
        ...

    def product(self, name: str) -> Path:
        """Folder of a product such as `encoders/domain`, made if it is missing."""
        ...

    def latent_size(self) -> tuple[int, int]:
        """Channels and side of the profile's latents."""
        ...

    def regions(self) -> Sequence[Mapping[str, Any]]:
        """Training regions: `finding` and `boxes` in the profile's frame."""
        ...


@dataclass(frozen=True)
class Kind:
    """One kind of method."""

    name: str
    settings: type[Section]  # of a row; unknown and missing ones are errors
    build: Callable[
        [Parts, str, Any, int | None], Grounder | None
    ]  # parts, row's name, settings, seed
    citation: str
    licence: str
    cost: str  # in U-Net rows a phrase, or in its own words
    arm: Callable[[Any], str | None] = lambda settings: None  # training arm, whose seeds it has
    needs: Callable[[Config, Any], Sequence[str]] = lambda config, settings: ()  # products, no arms
    variants: Callable[[Config, Any], Variants | None] = lambda config, settings: None
    depends: Callable[[Config, Any], Mapping[str, Any]] = lambda config, settings: {}  # for keys


KINDS: dict[str, Kind] = {}


def register(kind: Kind) -> Kind:
    """Add a kind to the registry.

    Raises:
        ValueError: if another kind has this name.
    """
    if kind.name in KINDS:
        raise ValueError(f"two kinds of method are called {kind.name!r}: rename one")
    KINDS[kind.name] = kind
    return kind


def kinds() -> dict[str, Kind]:
    """All kinds by name; imports their modules."""
    for module in MODULES:
        import_module(f"g2g_utils.methods.{module}")
    return KINDS


def parse(row: str, settings: Mapping[str, Any]) -> tuple[Kind, Section]:
    """Kind and checked settings of one row of the `methods:` table.

    Raises:
        ConfigError: for an unknown kind, or a missing, unknown or unusable setting; the message
            names the row and the fix.
    """
    known, given = kinds(), dict(settings)
    name = given.pop("kind", None)
    if name not in known:
        said = "has no kind" if name is None else f"has the unknown kind {name!r}"
        raise ConfigError(f"methods.{row} {said}: choose one of {', '.join(sorted(known))}")
    try:
        return known[name], known[name].settings.model_validate(given)
    except ValidationError as error:
        problems = "; ".join(_problems(error, known[name]))
        raise ConfigError(f"methods.{row} ({name}): {problems}") from None


def _problems(error: ValidationError, kind: Kind) -> Iterator[str]:
    """One text per unusable setting."""
    fields = ", ".join(kind.settings.model_fields) or "none"
    for item in error.errors():
        key = ".".join(map(str, item["loc"]))
        if item["type"] == "missing":
            yield f"needs the setting {key!r}"
        elif item["type"] == "extra_forbidden":
            yield f"has no setting {key!r}; its settings: {fields}"
        else:
            yield f"{key} = {item['input']!r}: {item['msg'].removeprefix('Value error, ')}"


def check(config: Config, table: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse a `methods:` table with an unusable row, or with a row of an unknown training arm."""
    for row, settings in table.items():
        kind, parsed = parse(row, settings)
        arm = kind.arm(parsed)
        if arm is not None and arm not in config.training.arms:
            arms = ", ".join(config.training.arms)
            raise ConfigError(f"methods.{row}.arm = {arm!r} is no training arm: choose from {arms}")
