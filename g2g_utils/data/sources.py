"""The data source that a profile names, as records."""

from __future__ import annotations

from typing import Any

from g2g_utils.config import Config, ConfigError
from g2g_utils.data import phantoms
from g2g_utils.data.record import Example


def examples(config: Config, split: str) -> list[Example]:
    """Examples of a split ("train", "validation" or "test"), as many as the profile asks for."""
    counts: dict[str, Any] = {
        "train": config.data.train,
        "validation": config.data.validation,
        "test": config.data.test,
    }
    if split not in counts:
        raise ConfigError(f"unknown split {split!r}: choose one of {', '.join(counts)}")
    if config.data.source == "phantoms":
        return phantoms.generate(counts[split], config.data.seed, split, **config.data.world)
    raise ConfigError(
        f"profile {config.profile!r}: the loader of data.source = {config.data.source!r} is not "
        "written yet; see data/README.md"
    )
