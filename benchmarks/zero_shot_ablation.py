"""One-factor ablation of the zero-shot method on the miniature's validation pairs, all seeds.

    python benchmarks/zero_shot_ablation.py [ARM]

Writes zero_shot_ablation.json: means, paired differences to the published choice with 95 %
intervals over patients, the number of steps T, and the error of walking films to noise and back.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from g2g_utils import runs, sampling
from g2g_utils.bench import benchmark, statistics, zero_shot
from g2g_utils.config import Config, load
from g2g_utils.data.record import Example
from g2g_utils.experiment import products
from g2g_utils.methods.zero_shot_ldm import ZeroShotLDM
from g2g_utils.models.protocol import LatentDiffusion

COLUMNS = ["cnr", "auc_roc", "pointing", "threshold_iou", "balanced_iou", "specificity"]
COUNTS = (10, 50, 300)  # T; 50 is that of the study
TRIPS = (10, 50, 100, 300)
FILMS = 8  # that walk to noise and back
PLACE = Path(__file__).with_suffix(".json")


def steps(model: LatentDiffusion, pairs: list[Example], rows: int) -> pd.DataFrame:
    """Scores of the published choice at several T."""
    tables = []
    for count in COUNTS:
        asked = ZeroShotLDM(name="zero-shot", model=model, timesteps=count, batch_size=rows)
        table = benchmark.score(asked, pairs, title=f"T = {count}")
        tables.append(table.assign(choice=f"T = {count}"))
    return pd.concat(tables, ignore_index=True)


def trips(model: LatentDiffusion, pairs: list[Example]) -> dict[str, dict[str, float]]:
    """Relative error of latents after the walk to noise and back, and the noise's deviation."""
    films = list({pair.image_id: pair for pair in pairs}.values())[:FILMS]
    images = [torch.as_tensor(film.load(model.image_size))[None] for film in films]
    latents = sampling.posterior(model, images).mean
    found = {}
    for count in TRIPS:
        there, back = sampling.round_trip(model, latents, count)
        gap = (back[0] - there[0]).flatten(1).norm(dim=1) / there[0].flatten(1).norm(dim=1)
        found[f"{count}"] = {
            "mean": float(gap.mean()),
            "largest": float(gap.max()),
            "noise_std": float(there[-1].std()),
        }
    return found


def told(table: pd.DataFrame, base: str, resamples: int) -> dict[str, Any]:
    """Means, and differences to one choice, by choice."""
    means = statistics.summary(table, "choice", COLUMNS, resamples)
    other = table.assign(
        choice=table["choice"].where(table["choice"] != base, zero_shot.AS_PUBLISHED)
    )
    gaps = zero_shot.compared(other, COLUMNS, resamples)
    return {
        str(name): {
            c: {"mean": row[c], "difference": gaps.get(str(name), {}).get(c)} for c in COLUMNS
        }
        for name, row in means.iterrows()
    }


def measure(config: Config, arm: str) -> dict[str, Any]:
    """The whole study of one arm."""
    pairs = products.evaluation_pairs(config, "validation")
    rows, choices, counts, walked = config.grounding.batch_size, [], [], {}
    for seed in config.seeds(arm):
        model = products.model(config, arm, seed)
        choices.append(zero_shot.study(model, pairs, batch_size=rows).assign(seed=seed))
        counts.append(steps(model, pairs, rows).assign(seed=seed))
        walked[f"{seed}"] = trips(model, pairs)
    n = config.evaluation.bootstrap
    table = pd.concat(choices)
    factors = table.drop_duplicates("choice").set_index("choice")["factor"].to_dict()
    return {
        "pairs": len(pairs),
        "seeds": list(config.seeds(arm)),
        "factors": factors,
        "choices": told(table, zero_shot.AS_PUBLISHED, n),
        "timesteps": told(pd.concat(counts), "T = 300", n),
        "there_and_back": walked,
    }


def main(arm: str = "domain-frozen") -> int:
    """Measure and write."""
    start = time.perf_counter()
    found = runs.read_json(PLACE) if PLACE.is_file() else {}
    found[arm] = measure(load("miniature"), arm)
    found[arm]["seconds"] = round(time.perf_counter() - start)
    runs.write_json(PLACE, found)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
