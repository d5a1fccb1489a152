"""The benchmark's table in a harder world: findings implanted into real normal radiographs.

The models have seen drawn anatomy only. This measures how much of their grounding survives on real
anatomy.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from g2g_utils.bench import statistics
from g2g_utils.bench.benchmark import score
from g2g_utils.config import Config
from g2g_utils.data import phantoms, record
from g2g_utils.data.record import Example
from g2g_utils.methods.base import Grounder

PRIOR_IMAGES = 512  # training phantoms whose boxes make the mean-box rows


def examples(config: Config, folder: Path, split: str, count: int) -> list[Example]:
    """The profile's first `count` phantoms of a split, drawn into the radiographs of `folder`.

    Images of one patient serve one split.

    Raises:
        ValueError: the folder has no image for this split.
    """
    world = {**config.data.world, "backgrounds": str(folder)}
    return phantoms.generate(count, config.data.seed, split, **world)


def regions(config: Config, folder: Path) -> list[dict[str, Any]]:
    """Findings and boxes of training phantoms drawn into the radiographs of `folder`."""
    count = min(PRIOR_IMAGES, config.data.train)
    trained = record.pairs(examples(config, folder, "train", count))
    return [{"finding": pair.finding, "boxes": pair.boxes} for pair in trained]


def scores(
    grounders: Iterable[tuple[Grounder, int | None]], pairs: Sequence[Example]
) -> pd.DataFrame:
    """All metrics of methods on pairs, one row per pair, seed and method (`statistics.methods`)."""
    found = [
        score(method, pairs, progress=False).assign(seed=np.nan if seed is None else seed)
        for method, seed in tqdm(grounders, desc="real backgrounds")
    ]
    return statistics.methods(pd.concat(found, ignore_index=True))
