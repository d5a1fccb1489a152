"""Measure AdaMatch in small: retrieval, reports, boxes and grounding of the trained networks.

    python benchmarks/adamatch.py [PROFILE]

The reading of boxes (pool, Gaussian) is chosen on validation pairs by the first arm's CNR; results
are of the test pairs, with 95 % intervals over patients. Networks that are neither in the build nor
shipped are left out, and named. Writes benchmarks/adamatch.json.
"""

from __future__ import annotations

import sys
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from g2g_utils import bench, config, runs
from g2g_utils.bench import benchmark, report_scores, retrieval, sanity, statistics
from g2g_utils.config import Config
from g2g_utils.data import sources
from g2g_utils.experiment import parts, products, recipes
from g2g_utils.methods.adamatch import Joint, Matcher, load
from g2g_utils.models import adamatch
from g2g_utils.training.adamatch import read_captions

RESULT = Path(__file__).with_suffix(".json")
SIGMAS = (0.0, 1.5, 3.0, 5.0)
CANDIDATES = (25, 50, 128)
MEASURED = ("cnr", "specificity", "auc_roc", "pointing", "threshold_iou", "balanced_iou")


def networks(settings: Config) -> dict[str, Joint]:
    """Trained networks by ARM-sSEED."""
    found = {}
    for name in products.plan(settings):
        if name.startswith("adamatch/"):
            if (place := products.find(settings, name)) is None:
                print(f"{name} is not trained: left out", file=sys.stderr)
            else:
                found[name.removeprefix("adamatch/")] = load(place, settings.text.max_length)
    return found


def choose(settings: Config, joint: Joint) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The reading with the best CNR of validation pairs, and all that were tried."""
    pairs = parts.evaluation_pairs(settings, "validation")
    tried = []
    choices = product((True, False), ("mean", "max"), SIGMAS, (True, False))
    for boxes, pool, sigma, centred in choices:
        if boxes or pool == "max":  # cells of the grid don't overlap
            method = Matcher("AdaMatch", joint, boxes, pool, sigma, centred)
            rows = bench.score(method, pairs, others=False, measure="quick", progress=False)
            own = {"boxes": boxes, "pool": pool, "sigma": sigma, "centred": centred}
            tried.append(own | {"cnr": rows["cnr"].mean()})
    best = max((row for row in tried if row["boxes"]), key=lambda row: row["cnr"])
    return {key: best[key] for key in ("pool", "sigma", "centred")}, tried


def interval(rows: pd.DataFrame, column: str, settings: Config) -> dict[str, float]:
    """Mean and interval over patients."""
    found = statistics.bootstrap(rows[column], rows["subject_id"], n=settings.evaluation.bootstrap)
    return {"value": found.value, "low": found.low, "high": found.high}


def difference(a: pd.Series, b: pd.Series, groups: pd.Series, settings: Config) -> dict[str, float]:
    """Paired difference a - b and its interval over patients."""
    found = statistics.paired(a, b, groups, n=settings.evaluation.bootstrap)
    return {"value": found.value, "low": found.low, "high": found.high}


def grounding(settings: Config, joints: dict[str, Joint], reading: dict[str, Any]) -> Any:
    """Test metrics of every network, by boxes and on the grid, beside rows without skill."""
    pairs = parts.evaluation_pairs(settings)
    others = benchmark.draw_others(pairs, settings.image_size)
    methods: dict[str, Any] = {}
    for name, joint in joints.items():
        methods[f"{name}, boxes"] = Matcher(name, joint, True, **reading)
        methods[f"{name}, grid"] = Matcher(name, joint, False, **reading)
    side = next(iter(joints.values())).network.shape.grid * 2
    rules = ["mean box", "mean box per finding"]
    regions = parts.prior_regions(settings)
    for method in sanity.no_skill_methods(regions, settings.image_size, (side, side), rules):
        methods[method.name] = method
    rows = {
        name: bench.score(method, pairs, others=others, size=settings.image_size)
        for name, method in methods.items()
    }
    table = {
        name: {column: interval(part, column, settings) for column in MEASURED}
        for name, part in rows.items()
    }
    gaps = {
        f"{a} - {b}": difference(rows[a]["cnr"], rows[b]["cnr"], rows[a]["subject_id"], settings)
        for a, b in compared(list(rows))
    }
    return {"pairs": len(pairs), "metrics": table, "differences of CNR": gaps}


def compared(names: list[str]) -> list[tuple[str, str]]:
    """Rows whose difference is reported: the first against all others, boxes against grid."""
    found = [(names[0], other) for other in names[1:]]
    own = [(n, n.replace("boxes", "grid")) for n in names[1:] if n.endswith("boxes")]
    return found + own


def retrieved(settings: Config, names: list[str]) -> Any:
    """Recall of every network, its chance, and among fewer candidates; differences to the first."""
    tables = {
        n: pd.read_csv(products.ensure(settings, f"retrieval/{n}") / "ranks.csv") for n in names
    }
    facts = parts.facts(settings, "test")
    count = settings.data.test
    rights = {"own": np.eye(count, dtype=bool)}
    if facts is not None:
        rights["facts"] = retrieval.same_facts(facts)
    chance = {
        kind: {f"R@{at}": 100 * retrieval.chance(right, at) for at in retrieval.AT}
        for kind, right in rights.items()
    }
    resamples = settings.evaluation.bootstrap
    found: dict[str, Any] = {"chance": chance, "networks": {}, "differences": {}}
    for name, rows in tables.items():
        found["networks"][name] = {
            "all": retrieval.summary(rows, resamples).to_dict("records"),
            "fewer": retrieval.recall_by_candidates(rows, CANDIDATES).to_dict("records"),
        }
    first, *rest = names
    for name, direction, at in product(rest, retrieval.DIRECTIONS, retrieval.AT):
        a, b = (t[t["direction"] == direction] for t in (tables[first], tables[name]))
        hits = [100.0 * (part["rank"] <= at).reset_index(drop=True) for part in (a, b)]
        key = f"{first} - {name}, {direction}, R@{at}"
        found["differences"][key] = difference(
            hits[0], hits[1], a["subject_id"].reset_index(drop=True), settings
        )
    return found


def reports(settings: Config, names: list[str]) -> Any:
    """Reports taken from the training set: the best match of each network, and without skill.

    Scores are of the test films; findings, sides and denials against the phantoms' facts.
    """
    texts, images = parts.training_texts(settings), parts.training_images(settings)
    examples = sources.examples(settings, "test")
    films = np.stack([example.load(settings.image_size) for example in examples])
    frequent = report_scores.most_frequent(texts.captions)
    written = {
        "most frequent training report": [frequent] * len(examples),
        "nearest training film's report": [
            texts.captions[k] for k in report_scores.nearest(films, images)
        ],
    }
    for name in names:
        arm, _ = recipes.match_item(settings, name)
        words = recipes.match_settings(settings).arms[arm].words
        joint, _, patches, _ = parts.matched(settings, name, words)
        captions = read_captions(joint.tokenizer, texts.captions, joint.max_length, words)
        best = retrieval.best_captions(joint.network, patches.vectors, captions)
        written[f"{name}, best match"] = [texts.captions[k] for k in best]
    facts = parts.facts(settings, "test")
    tables = {
        name: report_scores.table(
            some, [e.phrase for e in examples], [e.subject_id for e in examples], facts
        )
        for name, some in written.items()
    }
    found = {name: scored(rows, settings) for name, rows in tables.items()}
    plain, nearest, *matches = tables
    groups = tables[plain]["subject_id"]
    gaps = {
        f"finding F1, {a} - {b}": difference(
            tables[a]["finding_f1"], tables[b]["finding_f1"], groups, settings
        )
        for a in matches
        for b in (plain, nearest)
    }
    return {"scores": found, "differences": gaps}


def scored(rows: pd.DataFrame, settings: Config) -> dict[str, Any]:
    """Scores of one table of reports, with intervals but for BLEU, which is of the corpus."""
    columns = ("rouge_l", "finding_f1", "side", "zone", "false_denials")
    known = [column for column in columns if rows[column].notna().any()]
    return report_scores.corpus_bleu(rows) | {c: interval(rows, c, settings) for c in known}


@torch.no_grad()
def boxes(settings: Config, name: str) -> dict[str, float]:
    """Shares and sizes of a network's boxes on the test images."""
    arm, _ = recipes.match_item(settings, name)
    words = recipes.match_settings(settings).arms[arm].words
    joint, _, patches, _ = parts.matched(settings, name, words)
    shape = joint.network.shape
    corners = patches.boxes
    centres = (corners[..., :2] + corners[..., 2:]) / 2
    shift = (centres - adamatch.anchors(shape.grid, shape.grid)).norm(dim=-1) * shape.side
    floor = shape.smallest if shape.adaptive else 0.0
    return {
        "at the floor": float(adamatch.dead(corners, shape.grid, floor).float().mean()),
        "mean shift in pixels": float(shift.mean()),
        "mean side in pixels": float((corners[..., 2:] - corners[..., :2]).mean() * shape.side),
        "temperature": float(joint.network.temperature),
    }


def main(profile: str = "miniature") -> int:
    """Measure and write."""
    settings = config.load(profile)
    joints = networks(settings)
    if not joints:
        print(f"no AdaMatch network of {profile} is trained", file=sys.stderr)
        return 1
    reading, tried = choose(settings, next(iter(joints.values())))
    result = {
        "profile": profile,
        "chosen on validation": reading,
        "tried on validation": tried,
        "retrieval": retrieved(settings, list(joints)),
        "reports": reports(settings, list(joints)),
        "boxes": {name: boxes(settings, name) for name in joints},
        "grounding": grounding(settings, joints, reading),
    }
    runs.write_json(RESULT, result)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
