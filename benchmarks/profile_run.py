"""Where the CPU time of a profile's scores goes, by row of its bench; writes profile_run.json.

    python benchmarks/profile_run.py LABEL [--pairs N] [--profile P] [ROW …]

The first seed of every kind of row scores its first test pairs under a profiler that counts CPU
time, so that other processes on the machine hardly matter; seconds are scaled to the row's pairs
and summed over the rows and seeds of that kind. All products must be there: run the profile first.
Measurements of another LABEL stay in the file, so a change shows before and after. Profiling costs
a tenth to a third; compare rows with each other and labels with labels.
"""

from __future__ import annotations

import argparse
import cProfile
import os
import platform
import pstats
import resource
import sys
import time
from pathlib import Path
from typing import Any

from g2g_utils import config as profiles
from g2g_utils import runs
from g2g_utils.config import Config
from g2g_utils.experiment import parts, scores

RESULT = Path(__file__).with_suffix(".json")
PARTS = {  # cumulative seconds of these functions: file and name
    "U-Net": ("unet_2d_condition.py", "forward"),
    "masks": ("masks.py", "gmm_mask"),
    "text filter": ("text.py", "select_tokens"),
    "measuring, with its masks": ("benchmark.py", "_measured"),
    "specificity": ("benchmark.py", "_add_specificity"),
}


def kinds(config: Config) -> dict[str, list[str]]:
    """Items of the profile's scores by kind of row: its settings, but for the arm."""
    found: dict[str, list[str]] = {}
    for item, (row, _) in scores._items(config).items():  # noqa: SLF001
        settings = row.settings.model_dump(exclude={"arm", "label", "control", "encoder"})
        if row.kind.name == "no-skill":
            settings = {}
        shown = ", ".join(f"{k} {v}" for k, v in settings.items() if v not in (None, {}, False))
        found.setdefault(f"{row.kind.name}: {shown}" if shown else row.kind.name, []).append(item)
    return found


def measured(config: Config, item: str, count: int) -> dict[str, Any]:
    """CPU seconds of one product, scaled from its first `count` pairs, and where they go."""
    from g2g_utils.bench import benchmark

    row, seed = scores._item(config, item)  # noqa: SLF001
    pairs = parts.evaluation_pairs(config)
    others = benchmark.draw_others(pairs, config.image_size)
    total = min(len(pairs), row.kind.pairs(config, row.settings))
    method = scores._built(config, row, seed)  # noqa: SLF001
    if method is None:
        return {}
    asked, variants = row.kind.variants(method, row.settings) or (method, None)
    count = min(count, total)

    def score(some: slice) -> None:
        benchmark.score(
            asked,
            pairs[some],
            others=others[some],
            variants=variants,
            measure=row.kind.measure,
            size=config.image_size,
            progress=False,
        )

    score(slice(total - 1, total))  # what is imported and loaded once
    profiler = cProfile.Profile(time.process_time)
    profiler.enable()
    score(slice(0, count))
    profiler.disable()
    stats = pstats.Stats(profiler)
    took = {
        part: sum(row[3] for (file, _, name), row in table(stats) if (Path(file).name, name) == at)
        for part, at in PARTS.items()
    }
    shares = {part: round(seconds * total / count, 1) for part, seconds in took.items()}
    return {
        "item": item,
        "pairs": total,
        "cpu_s": round(stats.total_tt * total / count, 1),
    } | shares


def table(stats: pstats.Stats) -> Any:
    """Rows of a profile: (file, line, function) -> calls, calls, own and cumulative seconds."""
    return stats.stats.items()  # type: ignore[attr-defined]


def main() -> int:
    """Measure the kinds of rows and merge them into the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("label")
    parser.add_argument("rows", nargs="*", help="items of scores/ (default: one of every kind)")
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--profile", default="miniature")
    options = parser.parse_args()
    config = profiles.load(options.profile)
    rows = []
    for kind, items in kinds(config).items():
        asked = [item for item in options.rows if item in items] if options.rows else items[:1]
        for item in asked:
            row = measured(config, item, options.pairs)
            if row:
                peak = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10)
                sums = {"products": len(items), "all_cpu_s": round(row["cpu_s"] * len(items))}
                rows.append({"kind": kind} | row | sums | {"peak_mib_so_far": peak})
                print(rows[-1], flush=True)
    known = runs.read_json(RESULT) if RESULT.exists() else {}
    machine = {"cpu_count": os.cpu_count(), "system": platform.platform()}
    known[options.label] = {"machine": machine, "scaled_from_pairs": options.pairs, "rows": rows}
    runs.write_json(RESULT, known)
    return 0


if __name__ == "__main__":
    sys.exit(main())
