"""Real films, finding by finding: every method beside where findings usually lie; sides swapped.

    python benchmarks/radiographs.py

Reads the scores of the profile `radiographs` (test patients, all seeds; what is missing is made)
and grounds the phrases that name a side once more with the other side. Writes radiographs.json:
means with 95 % intervals over patients, paired differences to the priors by finding and by finding
and side, and the targets that were set beforehand; radiographs.csv: one row a finding and method.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from g2g_utils import runs, text
from g2g_utils.bench import benchmark, statistics
from g2g_utils.config import Config, load
from g2g_utils.experiment import products
from g2g_utils.experiment.skill import PRIOR, SIDED
from g2g_utils.methods import registry
from g2g_utils.runs import places

COLUMNS = ["cnr", "auc_roc", "pointing", "threshold_iou", "specificity", "swap"]
OVER = ["cnr", "threshold_iou"]
ASKED = ("Airspace Opacity", "Pleural Effusion")  # to lie above the prior
AUC, SPECIFIC, SIDES = 0.80, 4, 3  # targets: AUC of the first; findings with a gain
PLACE = Path(__file__).with_suffix(".json")


def swaps(config: Config) -> pd.DataFrame:
    """CNR that a wrong side loses (column `swap`), for pairs that name one; kept in the build."""
    pairs = [pair for pair in products.evaluation_pairs(config) if text.side_of(pair.phrase)]
    others = [replace(pair, phrase=text.swap_sides(pair.phrase)) for pair in pairs]
    found = []
    for name, row, seed in _rows(config):
        item = name if seed is None else f"{name}-s{seed}"
        key = products.key(config, f"scores/{item}")
        file = places.build(config) / "swaps" / f"{item}-{key}.csv"
        if not file.is_file() and (method := products.method(config, name, seed)):
            table = benchmark.score(
                method, pairs, others=others, measure="quick", size=config.image_size
            )
            with runs.atomic(file) as temporary:
                table.to_csv(temporary, index=False)
        table = statistics.read_rows(file)[[*statistics.PAIR, "specificity"]]
        own = table.rename(columns={"specificity": "swap"})
        found.append(own.assign(method=row.label, seed=seed))
    return pd.concat(found, ignore_index=True)


def _rows(config: Config) -> Iterator[tuple[str, registry.Row, int | None]]:
    """Name, row and seed of every method."""
    for name, row in registry.rows(config).items():
        for seed in config.seeds(row.arm) if row.arm else (None,):
            yield name, row, seed


def per_finding(table: pd.DataFrame, resamples: int) -> dict[str, Any]:
    """Numbers of every finding and of all, by method."""
    groups = [*table.groupby("finding"), ("all", table)]
    return {str(name): _of_group(part, resamples) for name, part in groups}


def _of_group(part: pd.DataFrame, resamples: int) -> dict[str, Any]:
    by_method = dict(list(part.groupby("method", sort=False)))
    found: dict[str, Any] = {}
    for name, rows in by_method.items():
        own = {c: statistics.interval(rows, c, resamples) for c in COLUMNS}
        for prior in (PRIOR, SIDED):
            for column in OVER:
                gap = statistics.difference(rows, by_method[prior], column, resamples)
                own[f"{column} over {prior}"] = gap
        found[str(name)] = {c: [round(float(e), 4) for e in ends] for c, ends in own.items()}
    count = part.groupby(statistics.PAIR).ngroups
    return {"pairs": count, "patients": int(part["subject_id"].nunique()), "methods": found}


def targets(findings: dict[str, Any], method: str) -> dict[str, bool]:
    """Whether a method reaches what was asked for before it was measured."""
    each = {name: one["methods"][method] for name, one in findings.items() if name != "all"}

    def above(column: str) -> list[str]:
        return [name for name, one in each.items() if one[column][1] > 0]

    return {
        **{f"{f}: {c} above {PRIOR}": f in above(f"{c} over {PRIOR}") for f in ASKED for c in OVER},
        f"{ASKED[0]}: AUC >= {AUC}": each[ASKED[0]]["auc_roc"][0] >= AUC,
        f"specificity above 0 for {SPECIFIC} findings": len(above("specificity")) >= SPECIFIC,
        f"CNR above {SIDED} for {SIDES} findings": len(above(f"cnr over {SIDED}")) >= SIDES,
    }


def flat(findings: dict[str, Any]) -> pd.DataFrame:
    """One row a finding and method: means and the ends of their intervals."""
    return pd.DataFrame(
        {"finding": finding, "pairs": one["pairs"], "method": method}
        | {
            f"{column}{end}": value
            for column, ends in row.items()
            for end, value in zip(("", "_low", "_high"), ends, strict=True)
        }
        for finding, one in findings.items()
        for method, row in one["methods"].items()
    )


def main() -> int:
    """Measure, write and say what is reached."""
    config = load("radiographs")
    keys = [*statistics.PAIR, "method", "seed"]
    table = products.scores(config).merge(swaps(config), "left", on=keys)
    findings = per_finding(table, config.evaluation.bootstrap)
    reached = {name: targets(findings, name) for name in products.compared(config)}
    seeds = list(config.training.seeds)
    report = {"seeds": seeds, "split": "test", "findings": findings, "targets": reached}
    runs.write_json(PLACE, report)
    with runs.atomic(PLACE.with_suffix(".csv")) as temporary:
        flat(findings).to_csv(temporary, index=False)
    for name, own in reached.items():
        print(name, *(f"  {'yes' if ok else 'NO '} {what}" for what, ok in own.items()), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
