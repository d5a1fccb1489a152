"""Is the phrase true of the film? Totals of information on phantoms, whose truth is known.

Four kinds of false phrases, each against true phrases of the same films: an absent finding, the
right finding on the wrong side, in the wrong zone, and a denied finding that is there. Writes one
row per question with every score; `information_presence.json` holds the areas under the curve.

    python benchmarks/information_presence.py measure validation 64 validation.csv
    python benchmarks/information_presence.py measure test 100 test.csv
    python benchmarks/information_presence.py report validation.csv test.csv
"""

from __future__ import annotations

import json
import random
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from tqdm.auto import tqdm

from g2g_utils import config as configuration
from g2g_utils import information, models
from g2g_utils.data import sources
from g2g_utils.data.phantoms import OPAQUE
from g2g_utils.data.phantoms.wording import NEGATIONS
from g2g_utils.data.record import FINDINGS, Example, Region
from g2g_utils.methods import biovil, two_tower
from g2g_utils.text import side_of, swap_sides

KINDS = ("absent", "side", "zone", "denied")
ZONES = {"upper": "lower", "lower": "upper", "mid": "lower", "middle": "upper"}
OUT = Path(__file__).with_suffix(".json")


def other_zone(phrase: str) -> str | None:
    """The phrase with its zone moved, or None where it names none."""
    moved = re.sub(r"\b(upper|lower|middle|mid)\b", lambda m: ZONES[m.group()], phrase, count=1)
    return moved if moved != phrase else None


def alone(region: Region, regions: tuple[Region, ...]) -> bool:
    """Whether a film shows this finding only once, so that moving it makes it false."""
    return sum(r.finding == region.finding for r in regions) == 1


def questions(film: Example, pool: list[Region], draw: random.Random) -> Iterator[tuple]:
    """(kind, truth, phrase) of a film; every false phrase has a true one of its kind."""
    present = {region.finding for region in film.regions}
    absent = [f for f in FINDINGS if f not in present]
    absent = [f for f in absent if f != "Lung Opacity" or not present & set(OPAQUE)]
    for region in film.regions:
        strangers = [other for other in pool if other.finding in absent]
        yield "absent", True, region.phrase
        yield "absent", False, draw.choice(strangers).phrase
        if side_of(region.phrase) and alone(region, film.regions):
            yield "side", True, region.phrase
            yield "side", False, swap_sides(region.phrase)
        if alone(region, film.regions) and (moved := other_zone(region.phrase)):
            yield "zone", True, region.phrase
            yield "zone", False, moved
        yield "denied", False, "no " + draw.choice(NEGATIONS[region.finding])
        yield "denied", True, "no " + draw.choice(NEGATIONS[draw.choice(absent)])


@torch.no_grad()
def ask(film: Example, asked: list[tuple], model: object, joint: object, side: int) -> list[dict]:
    """Scores of a film's questions."""
    image = torch.as_tensor(film.framed(side).array())[None]
    phrases = dict.fromkeys(phrase for _, _, phrase in asked)
    swapped = {p: swap_sides(p) for p in phrases if side_of(p)}
    every = list(dict.fromkeys([*phrases, *swapped.values()]))
    options = {"layers": ["up"], "batch_size": 64, "filter": "all"}
    found = dict(zip(every, information.measure(model, image, every, **options), strict=True))
    patches = joint.patches(image)
    scores = {}
    for phrase in phrases:
        told, without = found[phrase], found[phrase].totals
        peak = information.smooth(told.gain).max()
        maps = told.token_maps[list(told.tokens)].mean(0)
        cosines = two_tower.cosine_map(patches, joint.words(phrase), joint.sigma)
        beaten = found[swapped[phrase]].totals[0] if phrase in swapped else -np.inf
        scores[phrase] = {
            "empty": without[0],
            "normal": without[1],
            "both": sum(without) / 2,
            "peak": float(peak),
            "margin": max(-1e6, min(without[0], without[0] - beaten)),
            "difference": float(told.differences[0].sum()),
            "attention": float(maps.max()),
            "cosine": float(cosines.max()),
        }
    name = {"image_id": film.image_id, "subject_id": film.subject_id}
    return [name | {"kind": k, "truth": t, "phrase": p} | scores[p] for k, t, p in asked]


def measure(split: str, count: int, file: str, arm: str = "domain-frozen", seed: int = 0) -> None:
    """Ask the questions of the first films of a split and write their scores."""
    config = configuration.load("miniature")
    films = [film for film in sources.examples(config, split) if film.regions]
    pool, draw = [region for film in films for region in film.regions], random.Random(0)
    model = models.load(config, arm, seed)
    from g2g_utils.experiment import plan

    joint = biovil.load(plan.find(config, "encoders/domain"), config.text.max_length)
    joint = biovil.miniature(joint, "biovil", config.image_size)
    rows = []
    for film in tqdm(films[:count]):
        asked = list(questions(film, pool, draw))
        rows += ask(film, asked, model, joint, config.image_size)
    pd.DataFrame(rows).to_csv(file, index=False)


def interval(table: pd.DataFrame, score: str, n: int = 200) -> list[float]:
    """Area under the ROC curve with its percentile interval over patients."""
    code, names = pd.factorize(table["subject_id"])
    truth, values = table["truth"].to_numpy(bool), table[score].to_numpy(float)
    counts = np.random.default_rng(0).multinomial(len(names), [1 / len(names)] * len(names), n)
    areas = [roc_auc_score(truth, values, sample_weight=count[code]) for count in counts]
    ends = np.quantile(areas, [0.025, 0.975])
    return [round(float(v), 3) for v in (roc_auc_score(truth, values), *ends)]


def report(validation: str, test: str) -> None:
    """Areas of every score and kind, and the calibration of the chosen one."""
    before, after = pd.read_csv(validation), pd.read_csv(test)
    scores = list(after.columns[after.columns.get_loc("phrase") + 1 :])
    found: dict[str, object] = {}
    for name, table in (("validation", before), ("test", after)):
        found[name] = {
            kind: {"n": len(some)} | {score: interval(some, score) for score in scores}
            for kind, some in table.groupby("kind")
        }
        print(name)
        for kind, areas in found[name].items():
            print(" ", kind, areas)
    found["calibration"] = calibrate(before, after)
    print(found["calibration"])
    OUT.write_text(json.dumps(found, indent=1) + "\n")


def calibrate(before: pd.DataFrame, after: pd.DataFrame, score: str = "both") -> dict:
    """Logistic curve (Platt) of a score fitted on validation; its errors on test."""
    told = ["absent", "side"]  # zones and denials are not told apart by any score
    before, after = (t[t["kind"].isin(told)] for t in (before, after))
    spread = float(before[score].std())
    fit = LogisticRegression(C=1e6).fit(before[[score]] / spread, before["truth"])
    given = fit.predict_proba(after[[score]] / spread)[:, 1]
    truth = after["truth"].to_numpy(bool)
    no, yes = given < 0.5, given >= 0.5
    return {
        "score": score,
        "slope": float(fit.coef_[0, 0] / spread),
        "intercept": float(fit.intercept_[0]),
        "brier": float(np.mean((given - truth) ** 2)),
        "said_absent_but_true": float(truth[no].mean()),
        "said_there_but_false": float((~truth[yes]).mean()),
    }


if __name__ == "__main__":
    word, *rest = sys.argv[1:]
    if word == "measure":
        measure(rest[0], int(rest[1]), rest[2], *rest[3:4], *map(int, rest[4:5]))
    else:
        report(*rest)
