"""Does the domain encoder lead over *all* layers in Stable Diffusion's layout? Writes layout.json.

    python benchmarks/layout.py [--train ARM SEED]

The shipped miniature models attend to the text at every level, and over all their layers the
domain encoder does not lead (figures/findings.json). Stable Diffusion has no cross-attention in its
deepest encoder and decoder blocks. Here the same recipe trains two arms with cross-attention at
16x16 and 8x8 only, and compares them on the test pairs, over all layers and over the decoder's;
intervals by bootstrap over patients. About 11 minutes a training on one core, checkpointed: two
processes with `--train` share the work. Nothing is chosen on these numbers.
"""

import argparse
from pathlib import Path
from typing import Any

import pandas as pd

from g2g_utils import config, grounding, products, runs, studies

RESULT = Path(__file__).with_name("layout.json")
LAYOUT = {"unet.attention_levels": [True, True, False], "unet.middle_attention": False}
ARMS, MEASURES = ("domain-frozen", "generic-frozen"), ("cnr", "auc_roc", "pointing", "specificity")


def scores(settings: config.Config, arm: str, seed: int) -> pd.DataFrame:
    """One row a test pair and view (all layers, the decoder's)."""
    options = products.grounding_options(settings)
    views = {"all": None, "decoder": options.pop("layers")}
    model = products.model(settings, arm, seed)
    pairs = products.evaluation_pairs(settings)
    found = grounding.evaluate(model, pairs, others=True, views=views, **options)
    return found.assign(arm=arm, seed=seed)


def summary(table: pd.DataFrame, resamples: int) -> dict[str, Any]:
    """Means of every arm, seed and view, and the difference of the two arms."""
    rows = []
    for view, part in table.groupby("view", sort=False):
        arms = {str(arm): rows for arm, rows in part.groupby("arm", sort=False)}
        for name, measured in arms.items():
            means = {m: list(studies.interval(measured, m, resamples)) for m in MEASURES}
            seeds = measured.groupby("seed")[list(MEASURES)].mean().round(3).to_dict("index")
            rows.append({"view": view, "arm": name, **means, "seeds": seeds})
        first, second = (arms[name] for name in ARMS)
        gaps = {m: list(studies.difference(first, second, m, resamples)) for m in MEASURES}
        rows.append({"view": view, "arm": f"{ARMS[0]} - {ARMS[1]}", **gaps})
    return {"rows": rows, "pairs": int(table.groupby(["image_id", "phrase"]).ngroups)}


def main() -> None:
    """Train one, or all that are missing and compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--train", nargs=2, metavar=("ARM", "SEED"), help="only this training")
    asked, settings = parser.parse_args().train, config.load("miniature", **LAYOUT)
    if asked:
        products.ensure(settings, f"ldm/{asked[0]}-s{asked[1]}")
        return
    seeds = settings.training.seeds
    table = pd.concat([scores(settings, arm, seed) for arm in ARMS for seed in seeds])
    found = summary(table, settings.evaluation.bootstrap)
    settled = {"layout": LAYOUT, "steps": settings.training.steps, "split": "test"}
    runs.write_json(RESULT, settled | found)


if __name__ == "__main__":
    main()
