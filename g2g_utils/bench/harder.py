"""The benchmark's table in a harder world: findings implanted into real normal radiographs.

The models have seen drawn anatomy only. This measures how much of their grounding survives on real
anatomy.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from tqdm.auto import tqdm

from g2g_utils.bench import statistics
from g2g_utils.bench.benchmark import score
from g2g_utils.config import Config
from g2g_utils.data import phantoms, record
from g2g_utils.data.record import Example
from g2g_utils.experiment import products
from g2g_utils.methods.g2g import G2G

PRIOR_IMAGES = 512  # training phantoms whose boxes make the mean-box rows


def examples(config: Config, folder: Path, split: str, count: int) -> list[Example]:
    """The profile's first `count` phantoms of a split, drawn into the radiographs of `folder`.

    Images of one patient serve one split.

    Raises:
        ValueError: the folder has no image for this split.
    """
    world = {**config.data.world, "backgrounds": str(folder)}
    return phantoms.generate(count, config.data.seed, split, **world)


def methods(config: Config, folder: Path, images: int) -> pd.DataFrame:
    """All metrics on the pairs of `images` test phantoms, one row per pair, seed and method.

    Methods as in `statistics.methods`: every compared arm and seed, the first arm's map of another
    phrase, maps without skill (mean boxes of training phantoms with such backgrounds), and the
    discriminative baseline if the profile trains one.
    """
    pairs = record.pairs(examples(config, folder, "test", images))
    trained = record.pairs(examples(config, folder, "train", min(PRIOR_IMAGES, config.data.train)))
    regions = [{"finding": pair.finding, "boxes": pair.boxes} for pair in trained]
    options, tables = products.grounding_options(config), []
    trainings = [(arm, seed) for arm in config.training.compared for seed in config.seeds(arm)]
    for arm, seed in tqdm(trainings, desc="real backgrounds"):
        method = G2G(arm, products.model(config, arm, seed), options)
        tables.append(score(method, pairs, progress=False).assign(arm=arm, seed=seed))
    baselines, rival = products.no_skill_methods(config, regions=regions), products.rival(config)
    found = [score(method, pairs, progress=False) for method in [*baselines, rival] if method]
    return statistics.methods(pd.concat(tables, ignore_index=True), *found)
