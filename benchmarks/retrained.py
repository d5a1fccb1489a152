"""Compare a training from the same seed with the shipped weights; writes retrained.json.

    python benchmarks/retrained.py [ARM] [SEED]

Trains one arm of the miniature again from its seed, on the shipped autoencoder and text encoder (in
build/miniature/retrained, kept there and resumed), grounds the test pairs with it and with the
shipped weights, and reports the paired differences with 95 % intervals (bootstrap over patients)
and the distance of the weights. About 10 minutes on one core, nearly all of it training.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from g2g_utils import config, models, runs
from g2g_utils.bench import statistics
from g2g_utils.bench.benchmark import score
from g2g_utils.experiment import products
from g2g_utils.methods.g2g import G2G
from g2g_utils.runs import places

RESULT = Path(__file__).with_name("retrained.json")
MEASURES = ("cnr", "auc_roc", "pointing", "specificity")


def scores(settings: config.Config, model: models.GroundingModel) -> Any:
    """One row a test pair under the profile's grounding options."""
    options = products.grounding_options(settings)
    return score(G2G("retrained", model, options), products.evaluation_pairs(settings))


@torch.no_grad()
def farthest(first: nn.Module, second: nn.Module) -> dict[str, float]:
    """Largest difference of two networks' weights, and of the first's from itself in float16."""
    pairs = list(zip(first.parameters(), second.parameters(), strict=True))
    gap = max(float((a.float() - b.float()).abs().max()) for a, b in pairs)
    rounding = max(float((a.half().float() - a.float()).abs().max()) for a, _ in pairs)
    return {"largest_difference": gap, "float16_rounding": rounding}


def compare(arm: str, seed: int) -> dict[str, Any]:
    """Train the arm again, load the shipped one, compare metrics and weights."""
    begin, settings, name = time.time(), config.load("miniature"), f"ldm/{arm}-s{seed}"
    if settings.training.arms[arm].learnable:
        raise SystemExit(f"{arm}: its text encoder is trained too; choose a frozen arm")
    if products.find(settings, name) != places.weights(settings) / name:
        place = places.weights(settings) / name
        raise SystemExit(
            f"not shipped, or build/ has its own {name}: {place} would not be compared"
        )
    published = products.model(settings, arm, seed)
    folder = places.build(settings) / "retrained" / f"{arm}-s{seed}-{products.key(settings, name)}"
    products.fine_tune(settings, arm, seed, folder)
    retrained = replace(published, unet=models.load_unet(folder / "unet"))
    tables = [scores(settings, model) for model in (retrained, published)]
    n = settings.evaluation.bootstrap
    gaps = {m: list(statistics.difference(*tables, m, n)) for m in MEASURES}
    means = [{m: float(table[m].mean()) for m in MEASURES} for table in tables]
    return {
        "arm": f"{arm}-s{seed}",
        "pairs": len(tables[0]),
        "retrained": means[0],
        "shipped": means[1],
        "retrained_minus_shipped": gaps,
        "unet_weights": farthest(retrained.unet, published.unet),
        **runs.provenance(begin),
    }


def main(arm: str = "domain-frozen", seed: str = "0") -> int:
    """Compare one arm and write the result."""
    torch.set_num_threads(1)
    found = compare(arm, int(seed))
    runs.write_json(RESULT, found)
    for measure, (value, low, high) in found["retrained_minus_shipped"].items():
        print(f"{measure}: retrained - shipped {value:+.4f} [{low:+.4f}, {high:+.4f}]")
    print(found["unet_weights"])
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
