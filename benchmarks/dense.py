"""G2D in the miniature: arms of pre-training, and what their networks are worth.

python benchmarks/dense.py train ARM SEED            # resumes; with its warm-up
python benchmarks/dense.py segment ARM SEED [TASK…]  # CSVs to benchmarks/dense/
python benchmarks/dense.py score ARM SEED [WAY…]     # what needs no training
python benchmarks/dense.py report                    # claims and means, dense.json
"""

from __future__ import annotations

import sys
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from g2g_utils import config as configuration
from g2g_utils import metrics, runs
from g2g_utils.bench import benchmark, dense
from g2g_utils.data import phantoms, record
from g2g_utils.data.record import FINDINGS, Example
from g2g_utils.experiment import dense as experiment
from g2g_utils.experiment import products
from g2g_utils.methods import g2d as g2d_method
from g2g_utils.methods import registry
from g2g_utils.models import g2d
from g2g_utils.models.g2d import G2D
from g2g_utils.training import g2d as training
from g2g_utils.training import pseudo_masks
from g2g_utils.training.fit import seeded

ARMS = {
    "vla": {"target": "none"},
    "ps": {},
    "shuffled": {"target": "other"},
    "reconstruction": {"target": "image"},
    "p75": {"quantile": 0.75},
    "median": {"quantile": 0.5},
    "gmm": {"cut": "mixture"},
    "oracle": {"target": "lesions"},
    "centre": {"target": "mean"},
    "heads-1": {"heads": 1},
    "heads-3": {"heads": 3},
    "no-body": {"body": False},
    "no-smoothing": {"smooth": False},
    "per-head": {"per_head": True},
    "no-skips": {"skips": 0},
    "strong": {"weight": 3.0, "skips": 0},  # the decoder must work through the 8x8 map
}
PLACE = Path(__file__).parent / "dense"  # of the tables
POOL = 800  # training images of which labels are drawn: a tenth
LABELS = ((80, 5), (800, 1))  # labelled images and draws of them: 1 and 10 %
ALL, ALL_STEPS = ("vla", "ps"), 600  # arms that also see all labels, and for how many steps
TRANSFERS = ("encoder", "encoder-decoder")
GROUNDING = {  # ways to ground
    "value": {},
    "value, normal": {"against": ("no acute cardiopulmonary abnormality",)},
    "value, findings": {"against": tuple(finding.lower() for finding in FINDINGS)},
    "projected": {"features": "projected"},
    "attention": {"features": "attention"},
}
KEPT = ("value", "value, normal")  # ways whose rows are kept, beside their means
STEPS = {"warmup_steps": 300, "steps": 1000}


def load() -> configuration.Config:
    """The miniature with G2D's arms."""
    settings = {"arms": ARMS, "seeds": (0, 1, 2), "text": "mlm", **STEPS}
    return configuration.load("miniature", g2d=settings)


def train(arm: str, seed: str) -> None:
    """Make the network of an arm."""
    print(products.ensure(load(), f"g2d/{arm}-s{seed}"))


# ---------------------------------------------------------------- scores


def pictures(examples: list[Example]) -> torch.Tensor:
    """Images [n, 1, S, S] in [0, 1]."""
    return torch.from_numpy(np.stack([e.array() for e in examples]))[:, None].float()


@lru_cache
def films(split: str, count: int | None = None) -> list[Example]:
    """Images of a split; of the training split the first tenth, from which labels are drawn."""
    config = load()
    sizes = {"train": POOL, "validation": config.data.validation, "test": config.data.test}
    return phantoms.generate(count or sizes[split], config.data.seed, split, **config.data.world)


def fits(arm: str, task: str, every: bool) -> list[tuple[int, str, int]]:
    """Labelled images, transfer and draw of every decoder that is trained on an arm's encoder."""
    fresh_only = arm in ("vla", "random")  # their decoder is untrained: the same as `encoder`
    transfers = TRANSFERS[: 1 if fresh_only else 2]
    labels = ((load().data.train, 1),) if every else LABELS
    if task != "opacities":
        labels = labels[:1]
    return [(n, how, k) for n, draws in labels for k in range(draws) for how in transfers]


def segmentation(network: G2D, arm: str, task: str, every: bool) -> dict[str, pd.DataFrame]:
    """Dice of every validation and test image (published rule) by run: labels/transfer/draw."""
    findings, thin = dense.TASKS[task]
    train = films("train", load().data.train if every else None)
    known = dense.levels(network, pictures(train))
    truth = dense.task_masks(train, findings, network.shape.side)
    asked, goal, rows = {}, {}, {}
    for split in ("validation", "test"):
        some = films(split)
        asked[split] = dense.levels(network, pictures(some))
        goal[split] = dense.task_masks(some, findings, network.shape.side)
        names = [(e.image_id, e.subject_id) for e in some]
        rows[split] = pd.DataFrame(names, columns=["image", "subject"])
        rows[split]["positive"] = goal[split].flatten(1).any(1).int().numpy()
    for count, how, draw in fits(arm, task, every):
        some = dense.draw_labels(truth, count, draw, thin)
        unet = dense.fit_decoder(
            network, [m[some] for m in known], truth[some],
            fresh=how == "encoder", draw=draw, **({"steps": ALL_STEPS} if every else {}),
        )  # fmt: skip
        for split, maps in asked.items():
            scores = dense.published_dice(dense.predict(unet, maps), goal[split])
            rows[split][f"{count}/{how}/{draw}"] = scores.numpy().round(4)
    return rows


def grounding(joint: g2d_method.Joint, features: str) -> pd.DataFrame:
    """CNR, AUC, pointing, specificity; recall, IoU and Dice at validation's best threshold."""
    side = joint.network.shape.side
    row = registry.G2DRow(**GROUNDING[features])
    method = g2d_method.Dense(features, side, joint, row)
    pairs = {s: record.pairs(films(s)) for s in ("validation", "test")}
    pairs["test"] = pairs["test"][: load().evaluation.pairs]
    table = benchmark.score(method, pairs["test"], measure="quick", progress=False)
    heat = {s: maps_of(method, some) for s, some in pairs.items()}
    goal = {s: torch.stack([metrics.rasterise(p.boxes, side) for p in q]) for s, q in pairs.items()}
    threshold = dense.best_threshold(heat["validation"], goal["validation"])
    for name, values in dense.overlaps(heat["test"] > threshold, goal["test"]).items():
        table[name] = values.numpy()
    kept = ["image_id", "subject_id", "cnr", "auc_roc", "pointing"]
    return table[[*kept, "specificity", "recall", "iou", "dice"]].round(3)


def maps_of(method: object, pairs: list[Example]) -> torch.Tensor:
    """Maps [n, S, S] of pairs."""
    found = [
        metrics.resize(own.values, method.image_size)
        for (_, own), _, _ in benchmark.answers(method, pairs, progress=False)
    ]
    return torch.stack(found)


@torch.no_grad()
def masks(network: G2D) -> tuple[pd.DataFrame, dict]:
    """IoU of pseudo masks with lesions by test image and cut; means of the other numbers."""
    test = films("test")
    images = pictures(test)
    attention = network(images, decode=False).attention
    lesions = dense.task_masks(test, FINDINGS, network.shape.side)
    scores = dense.mask_scores(attention, lesions, pseudo_masks.body_mask(images[:, 0]))
    table = pd.DataFrame([(e.image_id, e.subject_id) for e in test], columns=["image", "subject"])
    table = table.join(pd.DataFrame({c: s["iou"].numpy().round(4) for c, s in scores.items()}))
    means = {
        cut: {k: round(float(v.nanmean()), 4) for k, v in one.items()}
        for cut, one in scores.items()
    }
    large = metrics.resize(attention.mean(1), network.shape.side)
    there = lesions.flatten(1).any(1)
    auc = metrics.auc_roc(large[there], lesions[there])
    return table, {"masks": means, "auc": float(auc.mean()), **dense.spread(attention)}


@torch.no_grad()
def classification(joint: g2d_method.Joint) -> dict:
    """Linear probe from 1 and 10 % of labels, and zero-shot: macro AUC over the findings."""
    network, train, test = joint.network, films("train"), films("test")
    pooled = [dense.levels(network, pictures(x))[0].mean((2, 3)).numpy() for x in (train, test)]
    truth, goal = dense.labels(train), dense.labels(test)
    found: dict = {}
    for count, draws in LABELS:
        aucs = []
        for draw in range(draws):
            rows = torch.randperm(len(train), generator=seeded(21, draw))[:count].numpy()
            given = dense.linear_probe(pooled[0][rows], truth[rows], pooled[1])
            aucs.append(round(dense.macro_auc(goal, given), 4))
        found[f"linear/{count}"] = aucs
    prompts = [[f"{no}{f.lower()}" for f in FINDINGS] for no in ("", "no ")]
    vectors = [torch.cat([joint.words(text) for text in some]) for some in prompts]
    scores = dense.zero_shot(network(pictures(test), decode=False).image, *vectors)
    return found | {"zero-shot": round(dense.macro_auc(goal, scores), 4)}


def network_of(config: configuration.Config, arm: str, seed: str) -> G2D:
    """The network of an arm, or an untrained one for the arm `random`."""
    if arm != "random":
        return g2d.load(products.ensure(config, f"g2d/{arm}-s{seed}"))
    width = config.encoders["mlm"].width
    return training.build(experiment.shape(config, 4, None, width), int(seed)).eval()


def folder(arm: str, seed: str) -> Path:
    """Folder of the scores of an arm and seed."""
    place = PLACE / f"{arm}-s{seed}"
    place.mkdir(parents=True, exist_ok=True)
    return place


def segment(arm: str, seed: str, *tasks: str) -> None:
    """Write the Dice of every image by task (default: all); `TASK-all`: from all labels."""
    config = load()
    for task in tasks or dense.TASKS:
        network = network_of(config, arm, seed)
        found = segmentation(network, arm, task.removesuffix("-all"), task.endswith("-all"))
        for split, rows in found.items():
            name = task if split == "test" else f"{task}-{split}"
            rows.to_csv(folder(arm, seed) / f"{name}.csv", index=False)
            there = rows[rows["positive"] == 1].mean(numeric_only=True).round(3)
            print(arm, seed, name, there.to_dict(), flush=True)


def score(arm: str, seed: str, *ways: str) -> None:
    """Write what a network is worth without training: masks, grounding, classification.

    ways: to ground, keys of GROUNDING; default: all.
    """
    config = load()
    place, network = folder(arm, seed), network_of(config, arm, seed)
    tokenizer, encoder = products.text_encoder(config, config.g2d.text)
    joint = g2d_method.Joint(network, tokenizer, encoder, config.text.max_length)
    table, summary = masks(network)
    table.to_csv(place / "masks.csv", index=False)
    summary |= classification(joint)
    for features in ways or GROUNDING:
        rows = grounding(joint, features)
        if features in KEPT:
            rows.to_csv(place / f"grounding-{features.replace(', ', '-')}.csv", index=False)
        summary[features] = rows.mean(numeric_only=True).round(4).to_dict()
    runs.write_json(place / "summary.json", summary)
    print(arm, seed, summary)


# ---------------------------------------------------------------- claims


SEGMENTATION = (  # claim, better and worse (arm, transfer)
    ("G1: ps > vla, encoder", ("ps", "encoder"), ("vla", "encoder")),
    ("G2: ps with decoder > vla, fresh", ("ps", "encoder-decoder"), ("vla", "encoder")),
    ("G4: ps > shuffled, encoder", ("ps", "encoder"), ("shuffled", "encoder")),
    ("G4: ps > shuffled, decoder", ("ps", "encoder-decoder"), ("shuffled", "encoder-decoder")),
    ("G4: ps > reconstruction, encoder", ("ps", "encoder"), ("reconstruction", "encoder")),
    ("G4: ps > reconstruction, decoder", ("ps", "encoder-decoder"),
     ("reconstruction", "encoder-decoder")),
    ("G5: 85th > 75th, encoder", ("ps", "encoder"), ("p75", "encoder")),
    ("G5: 75th > median, encoder", ("p75", "encoder"), ("median", "encoder")),
    ("G5: 85th > mixture, encoder", ("ps", "encoder"), ("gmm", "encoder")),
    ("G6: vla > shuffled, encoder", ("vla", "encoder"), ("shuffled", "encoder")),
    ("ceiling: oracle > vla, encoder", ("oracle", "encoder"), ("vla", "encoder")),
    ("ceiling: oracle with decoder > vla, fresh", ("oracle", "encoder-decoder"),
     ("vla", "encoder")),
)  # fmt: skip
LEVERS = (  # on validation images: choices, not results
    ("lever: weight 3 and no skips > vla, encoder", ("strong", "encoder"), ("vla", "encoder")),
    ("lever: weight 3 and no skips > ps, encoder", ("strong", "encoder"), ("ps", "encoder")),
    ("lever: weight 3 and no skips with decoder > ps with decoder",
     ("strong", "encoder-decoder"), ("ps", "encoder-decoder")),
)  # fmt: skip
CUT_CLAIMS = (("85th", "75th"), ("75th", "median"), ("85th", "mixture"), ("85th", "shuffled"))


def tables(arm: str, file: str) -> dict[int, pd.DataFrame]:
    """The tables of an arm by seed, as far as they are there."""
    found = {k: PLACE / f"{arm}-s{k}" / f"{file}.csv" for k in load().g2d.seeds}
    return {k: pd.read_csv(path) for k, path in found.items() if path.is_file()}


def claim(
    text: str, better: dict[int, pd.DataFrame], worse: dict[int, pd.DataFrame], columns: list
) -> dict:
    """Verdict on a difference over the seeds that both have; columns: pairs (better, worse)."""
    seeds = sorted(set(better) & set(worse))
    if not seeds:
        return {"claim": text, "verdict": "not run", "seeds": []}
    some = better[seeds[0]]
    gaps = [better[k][a].to_numpy(float) - worse[k][b] for k in seeds for a, b in columns]
    gap = np.stack(gaps, 1)
    if "positive" in some:
        gap[some["positive"] == 0] = np.nan
    people = some["subject" if "subject" in some else "subject_id"]
    value, low, high = (round(end, 4) for end in dense.crossed(gap, list(people)))
    verdict = "holds" if low > 0 else "reversed" if high < 0 else "not shown"
    if len(seeds) < len(load().g2d.seeds):
        verdict = f"preliminary: {verdict}"
    return {"claim": text, "verdict": verdict, "seeds": seeds, "gap": [value, low, high]}


def report() -> None:
    """Print the claims G1 to G6 and the means, and write them to dense.json."""
    found, (count, draws) = [], LABELS[0]
    asked = {task: SEGMENTATION for task in dense.TASKS} | {"opacities-validation": LEVERS}
    for task, comparisons in asked.items():
        if not any(PLACE.glob(f"*/{task}.csv")):
            continue
        for text, (first, one), (second, other) in comparisons:
            columns = [(f"{count}/{one}/{k}", f"{count}/{other}/{k}") for k in range(draws)]
            both = tables(first, task), tables(second, task)
            found.append(claim(f"{text}, {task} of {count} labels", *both, columns))
    for way, words in (("value", "plain cosines"), ("value-normal", "cosines less normal")):
        first, second = (tables(arm, f"grounding-{way}") for arm in ("ps", "vla"))
        for name, metric in (("cnr", "CNR"), ("iou", "IoU"), ("dice", "Dice")):
            text = f"G3: ps > vla, {metric} of {words}"
            found.append(claim(text, first, second, [(name, name)]))
    for one, other in CUT_CLAIMS:
        own = tables("ps", "masks")
        found.append(claim(f"G5: masks, IoU of {one} > {other}", own, own, [(one, other)]))
    means = {path.name: summary(path) for path in sorted(PLACE.glob("*-s*"))}
    for row in found:
        print(row["verdict"], row["claim"], row.get("gap", ""), row["seeds"])
    runs.write_json(PLACE.with_suffix(".json"), {"claims": found, "networks": means})


def summary(place: Path) -> dict:
    """Means of a network's tables: positives' Dice, the published one, and predicting nothing."""
    known = runs.read_json(place / "summary.json") if (place / "summary.json").is_file() else {}
    kinds = (*dense.TASKS, "opacities-all", "opacities-validation")
    for task in kinds:
        if not (place / f"{task}.csv").is_file():
            continue
        rows = pd.read_csv(place / f"{task}.csv")
        there = rows["positive"] == 1
        for name in sorted({c.rpartition("/")[0] for c in rows if c.count("/") == 2}):
            scores = rows[[c for c in rows if c.startswith(f"{name}/")]].mean(axis=1)
            dice = {"positives": scores[there].mean(), "published": scores.mean()}
            known[f"{task}, {name}"] = {k: round(float(v), 4) for k, v in dice.items()}
        known[f"{task}, nothing predicted"] = {
            "positives": 0.0,
            "published": float(1 - there.mean()),
        }
    return known


if __name__ == "__main__":
    word, *rest = sys.argv[1:]
    {"train": train, "score": score, "segment": segment, "report": report}[word](*rest)
