"""One-factor ablation of the zero-shot method on the miniature's validation pairs, by seed.

    python benchmarks/zero_shot_ablation.py [ARM [SEED … [study | steps | trips]]]

With a piece named, rows are measured and kept below the build folder; without, all pieces are made
and written together. The choices are studied on every seed, steps and walks on the first.

Writes zero_shot_ablation.json: means, paired differences to the published choice with 95 %
intervals over patients, the number of steps T, and the error of walking films to noise and back.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from g2g_utils import runs, sampling
from g2g_utils.bench import benchmark, statistics, zero_shot
from g2g_utils.config import Config, load
from g2g_utils.data.record import Example
from g2g_utils.experiment import products
from g2g_utils.methods.zero_shot_ldm import ZeroShotLDM, step_window
from g2g_utils.models.protocol import LatentDiffusion
from g2g_utils.runs import places

COLUMNS = ["cnr", "auc_roc", "pointing", "threshold_iou", "balanced_iou", "specificity"]
COUNTS = (10, 50, 300)  # T; 50 is that of the study
TRIPS = (10, 50, 100, 300, 1000)
PIECES = ("study", "steps", "trips")
FILMS = 4  # that walk to noise and back
PLACE = Path(__file__).with_suffix(".json")


def steps(model: LatentDiffusion, pairs: list[Example], rows: int) -> pd.DataFrame:
    """Scores of the published choice at several T."""
    tables = []
    for count in COUNTS:
        asked = ZeroShotLDM(name="zero-shot", model=model, timesteps=count, batch_size=rows)
        table = benchmark.score(asked, pairs, title=f"T = {count}")
        tables.append(table.assign(choice=f"T = {count}"))
    return pd.concat(tables, ignore_index=True)


def trips(model: LatentDiffusion, pairs: list[Example]) -> pd.DataFrame:
    """Relative error of latents after the walk to noise and back, and the noise's deviation."""
    films = list({pair.image_id: pair for pair in pairs}.values())[:FILMS]
    images = [torch.as_tensor(film.load(model.image_size))[None] for film in films]
    latents = sampling.posterior(model, images).mean
    found = []
    for count in TRIPS:
        there, back = sampling.round_trip(model, latents, count)
        short = sampling.round_trip(model, latents, count, step_window(count).stop - 1)
        row = {"T": count, "error": lost(there, back), "error_from_window": lost(*short)}
        found.append(row | {"noise_std": float(there[-1].std())})
    return pd.DataFrame(found)


def lost(there: torch.Tensor, back: torch.Tensor) -> float:
    """Relative error of the films' latents after a way there and back, mean over films."""
    gap = (back[0] - there[0]).flatten(1).norm(dim=1) / there[0].flatten(1).norm(dim=1)
    return float(gap.mean())


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


def part(config: Config, arm: str, seed: int, piece: str) -> Path:
    """Rows of one seed and piece below the build folder, measured if they are missing."""
    folder = places.build(config) / "zero_shot_ablation"
    file = folder / f"{arm}-s{seed}-{piece}.csv"
    if not file.is_file():
        pairs, rows = products.evaluation_pairs(config, "validation"), config.grounding.batch_size
        model = products.model(config, arm, seed)
        if piece == "study":
            table = zero_shot.study(model, pairs, batch_size=rows)
        else:
            table = steps(model, pairs, rows) if piece == "steps" else trips(model, pairs)
        with runs.atomic(file) as temporary:
            table.assign(seed=seed).to_csv(temporary, index=False)
    return file


def measure(config: Config, arm: str, seeds: Sequence[int]) -> dict[str, Any]:
    """The whole study of one arm."""
    every = {
        piece: pd.concat([statistics.read_rows(part(config, arm, s, piece)) for s in some])
        for piece, some in (("study", seeds), ("steps", seeds[:1]), ("trips", seeds[:1]))
    }
    studied, n = every["study"], config.evaluation.bootstrap
    factors = studied.drop_duplicates("choice").set_index("choice")["factor"].fillna("")
    return {
        "pairs": studied.groupby(statistics.PAIR, dropna=False).ngroups,
        "seeds": list(seeds),
        "factors": factors.to_dict(),
        "choices": told(studied, zero_shot.AS_PUBLISHED, n),
        "timesteps": told(every["steps"], "T = 300", n),
        "there_and_back": every["trips"].to_dict("records"),
        "seed_of_timesteps_and_walks": seeds[0],
    }


def main(arm: str = "domain-frozen", *seeds: str) -> int:
    """Measure and write."""
    config = load("miniature")
    if seeds and seeds[-1] in PIECES:
        for seed in seeds[:-1]:
            part(config, arm, int(seed), seeds[-1])
        return 0
    found = runs.read_json(PLACE) if PLACE.is_file() else {}
    chosen = [int(seed) for seed in seeds] or list(config.seeds(arm))
    runs.write_json(PLACE, found | {arm: measure(config, arm, chosen)})
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
