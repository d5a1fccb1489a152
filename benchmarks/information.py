"""Information maps beyond the benchmark's rows: quality against cost, and every training arm.

    python benchmarks/information.py curve [SEED …]   # validation: several T and draws
    python benchmarks/information.py arms [ARM …]     # test: every arm and seed, cheap
    python benchmarks/information.py sd               # cost at Stable Diffusion's size, T = 1
    python benchmarks/information.py report           # all, into information.json

`curve` scores the product and the information alone for T timesteps × d noise draws, without the
other phrase; its cost is counted in U-Net rows of one phrase. `arms` measures all arms, controls
included, on the first 96 test pairs against their own attention, paired. Rows of pairs are kept in
build/miniature/information, so that a stopped run goes on; the report holds means and 95 %
intervals over patients. `sd` times one phrase on a U-Net of random weights.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from g2g_utils import config as configuration
from g2g_utils import grounding, runs
from g2g_utils.bench import benchmark, statistics
from g2g_utils.experiment import parts, products
from g2g_utils.information import Options, measure
from g2g_utils.methods.base import HeatMap, Query
from g2g_utils.methods.information import DRAWS, InformationMaps, options
from g2g_utils.methods.registry import InformationRow
from g2g_utils.runs import places

OUT = Path(__file__).with_suffix(".json")
SETTINGS = ((3, 1), (5, 1), (10, 1), (10, 2), (10, 4), (20, 1), (20, 2))  # T, draws
PAIRS = 96  # test pairs of an arm: the first ones
METRICS = ["cnr", "auc_roc", "pointing", "threshold_iou", "balanced_iou", "specificity"]
CONFIG = configuration.load("miniature")
FOLDER = places.build(CONFIG) / "information"


def both(query: Query, found: HeatMap) -> dict[str, HeatMap]:
    """The product and the information alone, from one measurement."""
    told = found.capture
    return {"product": HeatMap(told.product()), "alone": HeatMap(told.heatmap())}


def measured(name: str, method: InformationMaps, split: str, others: bool) -> pd.DataFrame:
    """Scores of a method on the pairs of a split; kept, and read again, under a name."""
    file = FOLDER / f"{name}.csv"
    if not file.is_file():
        pairs = parts.evaluation_pairs(CONFIG, split)[:PAIRS]
        table = benchmark.score(
            method, pairs, others=others, variants=both, size=CONFIG.image_size, title=name
        )
        with runs.atomic(file) as temporary:
            table.to_csv(temporary, index=False)
    return statistics.read_rows(file)


def method(arm: str, seed: int, **changes: Any) -> InformationMaps:
    """Information maps of an arm with the profile's options, some of them changed."""
    row = InformationRow(arm=arm, cost="cheap")
    model = parts.Parts(CONFIG).model(arm, seed)
    return InformationMaps(arm, model, True, options(CONFIG, row) | changes)


def curve(*seeds: str) -> pd.DataFrame:
    """Validation scores of T timesteps × d draws; columns T, draws, rows, seed, variant."""
    arm, found = next(iter(CONFIG.training.arms)), []
    for seed in map(int, seeds or CONFIG.seeds(arm)):
        model = parts.Parts(CONFIG).model(arm, seed)
        row = InformationRow(arm=arm)
        for T, draws in SETTINGS:
            asked = options(CONFIG, row) | {"timesteps": T, "draws": draws}
            name = f"curve-s{seed}-T{T}-d{draws}"
            table = measured(name, InformationMaps(name, model, True, asked), "validation", False)
            cost = Options(timesteps=T, draws=draws).rows()
            found.append(table.assign(T=T, draws=draws, rows=cost, seed=seed))
    return pd.concat(found, ignore_index=True)


def arms(*names: str) -> Iterator[tuple[str, pd.DataFrame]]:
    """Test scores of every arm: its own attention, the product and the information alone."""
    for arm in names or [arm for arm in CONFIG.training.arms if arm != "foundation"]:
        tables = []
        for seed in CONFIG.seeds(arm):
            told = measured(f"{arm}-s{seed}", method(arm, seed), "test", True)
            tables.append(told.assign(seed=seed))
            if arm == next(iter(CONFIG.training.arms)):
                twice = method(arm, seed, draws=DRAWS["default"])
                told = measured(f"default-{arm}-s{seed}", twice, "test", True)
                variant = told["variant"] + ", default cost"
                tables.append(told.assign(seed=seed, variant=variant))
        yield arm, pd.concat(tables, ignore_index=True)


def attention(arm: str) -> pd.DataFrame:
    """Scores of an arm's attention on the same pairs, from its products."""
    table = products.scores(CONFIG)
    first = {(p.image_id, p.phrase) for p in parts.evaluation_pairs(CONFIG)[:PAIRS]}
    same = [pair in first for pair in zip(table["image_id"], table["phrase"], strict=True)]
    return table[same & (table["arm"] == arm)]


def sd() -> dict[str, Any]:
    """Rows, seconds and peak memory of one phrase at Stable Diffusion's size, one timestep."""
    import attention as sizes  # benchmarks/attention.py

    model = sizes.build(sizes.SIZES["sd"], torch.device("cpu"))
    image = sizes.image_of(model)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    grounding.ground(model, image, sizes.PHRASE, timesteps=1, keep_last=1, curve=None)  # warm
    rows = {}
    plain = {"timesteps": 1, "keep_last": 1, "curve": None}
    asked = {"timesteps": 1, "draws": 1, "batch_size": 3, "conditions": ("", "no effusion")}
    calls = {
        "attention": lambda: grounding.ground(model, image, sizes.PHRASE, **plain),
        "information, cheap": lambda: measure(model, image, [sizes.PHRASE], **asked),
    }
    for name, call in calls.items():
        started = time.perf_counter()
        call()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        seconds = time.perf_counter() - started
        cost = 1 if name == "attention" else 3
        rows[name] = {"rows": cost, "seconds": seconds, "peak_gib": (peak - before) / 2**20}
    found = {"threads": torch.get_num_threads(), "timesteps": 1, **rows}
    runs.write_json(FOLDER / "sd.json", found)
    return found


def report() -> dict[str, Any]:
    """Means with intervals: the curve per cost and variant, the arms per variant and paired."""
    resamples = CONFIG.evaluation.bootstrap
    sized = FOLDER / "sd.json"
    found: dict[str, Any] = {"curve": [], "arms": []}
    if sized.is_file():
        found["sd"] = runs.read_json(sized)
    for (T, draws, rows, variant), some in curve().groupby(["T", "draws", "rows", "variant"]):
        numbers = {m: _interval(some, m, resamples) for m in METRICS if m in some}
        found["curve"].append({"T": T, "draws": draws, "rows": rows, "map": variant, **numbers})
    for arm, table in arms():
        plain = attention(arm)
        found["arms"].append({"arm": arm, "map": "attention", **_means(plain, resamples)})
        for variant, some in table.groupby("variant", sort=False):
            differences = {m: _difference(some, plain, m, resamples) for m in METRICS}
            row = {"arm": arm, "map": variant, **_means(some, resamples)}
            found["arms"].append(row | {"against_attention": differences})
    return found


def _means(table: pd.DataFrame, resamples: int) -> dict[str, list[float]]:
    return {metric: _interval(table, metric, resamples) for metric in METRICS}


def _interval(table: pd.DataFrame, metric: str, resamples: int) -> list[float]:
    found = statistics.interval(table, metric, resamples)
    return [round(float(v), 4) for v in (found.value, found.low, found.high)]


def _difference(one: pd.DataFrame, other: pd.DataFrame, metric: str, resamples: int) -> list[float]:
    found = statistics.difference(one, other, metric, resamples)
    return [round(float(v), 4) for v in (found.value, found.low, found.high)]


def main(word: str, *rest: str) -> None:
    """Measure a part, or report both."""
    if word == "curve":
        curve(*rest)
    elif word == "arms":
        for arm, table in arms(*rest):
            print(arm, table.groupby("variant")[METRICS].mean().round(3).to_dict("index"))
    elif word == "sd":
        print(sd())
    elif word == "report":
        runs.write_json(OUT, {"machine": runs.provenance(), **report()})
    else:
        raise SystemExit(f"unknown part {word!r}: curve, arms, sd or report")


if __name__ == "__main__":
    main(*sys.argv[1:])
