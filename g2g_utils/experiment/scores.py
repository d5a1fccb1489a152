"""Scores of the test pairs: what the benchmark's tables are read from."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from g2g_utils import runs, tagger
from g2g_utils.config import Config
from g2g_utils.experiment import apart, parts
from g2g_utils.experiment.make import ensure
from g2g_utils.experiment.plan import plan
from g2g_utils.experiment.product import arm_and_seed, product
from g2g_utils.experiment.recipes import dump, loaded_parts, model_needs
from g2g_utils.runs import places

SCORES = 3  # raise when evaluations or baselines score otherwise, or more
NO_SKILL = ("random", "centre prior", "mean box", "mean box per finding")
PART = 128  # pairs after which an evaluation keeps what it has


def _parameters(config: Config, kind: str, name: str) -> dict[str, Any]:
    return {
        kind: config.evaluation.model_dump(),
        "data": config.data.model_dump(),
        "name": name,
        "scores": SCORES,
        "tagger": tagger.name(),
    }


def _biovil(config: Config) -> dict[str, Any]:
    """BioViL's image branch, where the profile names one, and whether it is there."""
    if config.biovil is None:
        return {}
    there = (places.ROOT / config.biovil.expanduser()).is_file()
    texts = {"encoder": dump(config.encoders["domain"]), "text": config.text.max_length}
    return {"biovil": str(config.biovil), "there": there} | texts


@product(
    "evaluation",
    items=lambda config: [
        f"{arm}-s{seed}" for arm in config.training.arms for seed in config.seeds(arm)
    ],
    needs=lambda config, item: model_needs(config, *arm_and_seed(config, item)),
    parameters=lambda config, item: {
        **_parameters(config, "evaluation", f"evaluation/{item}"),
        "grounding": config.grounding.model_dump(),
        **loaded_parts(config, arm_and_seed(config, item)[0]),
    },
    bundle=lambda config, item: f"results/{item}",
)
def evaluation(config: Config, item: str, folder: Path) -> dict[str, Any]:
    """Scores of an arm's maps on the test pairs, plain and merged."""
    from g2g_utils.bench import ablations, benchmark
    from g2g_utils.methods import g2g

    arm, seed = arm_and_seed(config, item)
    grounded = parts.model(config, arm, seed)
    pairs, options = parts.evaluation_pairs(config), parts.grounding_options(config)
    views = {"pairs": options["layers"]}
    if options["layers"] is not None:  # the paper's map, over all layers, beside the profile's
        views["all_layers"] = None
    others = benchmark.draw_others(pairs, config.image_size)
    method = g2g.G2G(arm, grounded, options | {"layers": None, "keep": "layers"})

    def plain(rows: slice) -> Any:
        chosen = g2g.views(views)
        return benchmark.score(method, pairs[rows], others=others[rows], variants=chosen, by="view")

    both = _in_parts(folder / "parts" / "plain", len(pairs), plain)
    for view, rows in both.groupby("view"):
        _write_table(folder / f"{view}.csv", rows.drop(columns=["view", "method"]))
    table = both[both["view"] == "pairs"]
    if not config.training.arms[arm].control:
        count = min(len(pairs), config.evaluation.bias_pairs)
        merged = _in_parts(
            folder / "parts" / "merged",
            count,
            lambda rows: ablations.curves(
                grounded, pairs[:count][rows], others=others[:count][rows], **options
            ),
        )
        _write_table(folder / "curves.csv", merged.drop(columns="method"))
    shutil.rmtree(folder / "parts")
    means = table[["cnr", "auc_roc", "pointing", "specificity"]].mean()
    known = means.dropna()  # specificity is unknown where all pairs have one phrase
    return {"metrics": {name: round(float(value), 5) for name, value in known.items()}}


def _in_parts(place: Path, count: int, score: Callable[[slice], Any]) -> Any:
    """A table of `count` pairs, scored and kept part by part: a killed evaluation goes on there."""
    import pandas as pd

    from g2g_utils.bench import statistics

    parts = []
    for start in range(0, count, PART):
        path = place / f"{start:06}.csv"
        if not path.is_file():
            _write_table(path, score(slice(start, start + PART)))
        parts.append(statistics.read_rows(path))
    return pd.concat(parts, ignore_index=True)


@product(
    "baselines",
    needs=lambda config, item: ["pairs", "vae", "encoders/domain"],
    parameters=lambda config, item: {
        **_parameters(config, "baselines", "baselines"),
        **_biovil(config),
    },
    bundle=lambda config, item: "references",
)
def baselines(config: Config, item: str, folder: Path) -> None:
    """Scores of maps without skill and of the discriminative baseline."""
    import pandas as pd

    from g2g_utils.bench.benchmark import score

    apart.warn_of_shared(config)
    pairs = parts.evaluation_pairs(config)
    tables = [score(method, pairs) for method in no_skill_methods(config)]
    _write_table(folder / "no_skill.csv", pd.concat(tables, ignore_index=True))
    baseline = rival(config)
    if baseline is not None:
        _write_table(folder / "biovil.csv", score(baseline, pairs, size=config.image_size))


def no_skill_methods(
    config: Config, names: Sequence[str] = NO_SKILL, regions: Sequence[Any] | None = None
) -> list[Any]:
    """Baselines that read no words, by name; mean boxes only where there are regions.

    regions: whose boxes make the mean boxes (default: `prior_regions`).
    """
    from g2g_utils.bench import sanity

    _, latent = parts.latent_size(config)
    known = parts.prior_regions(config) if regions is None else regions
    return sanity.no_skill_methods(known, config.image_size, (latent, latent), names)


def rival(config: Config) -> Any:
    """The discriminative baseline: the miniature BioViL, the published one, or None (it says why).

    The published one needs its image checkpoint, `config.biovil`.
    """
    from g2g_utils.data import sources
    from g2g_utils.methods import biovil

    domain, length, checkpoint = config.encoders["domain"], config.text.max_length, config.biovil
    name = "BioViL-like"
    if not domain.pretrained:
        joint = biovil.load(ensure(config, "encoders/domain"), length)
        return biovil.miniature(joint, name, config.image_size)
    if checkpoint is not None and sources.resolve(checkpoint).is_file():
        place = sources.resolve(checkpoint)
        return biovil.published(place, domain.pretrained, domain.revision, length).grounder(name)
    print(f"no BioViL: {checkpoint or 'biovil'} is not there; {biovil.FETCH}")
    return None


def _write_table(path: Path, table: Any) -> None:
    """A table as CSV, written atomically."""
    with runs.atomic(path) as temporary:
        table.to_csv(temporary, index=False)


def tables(config: Config, file: str, arms: list[str] | None = None) -> Any:
    """All rows of a results file ("pairs.csv" or "curves.csv") over arms and seeds."""
    import pandas as pd

    from g2g_utils.bench import statistics

    parts = []
    for name in plan(config):
        kind, _, item = name.partition("/")
        arm = item.rpartition("-s")[0]
        if kind == "evaluation" and (arms is None or arm in arms):
            table = statistics.read_rows(ensure(config, name) / file)
            parts.append(table.assign(arm=arm, seed=int(item.rpartition("-s")[2])))
    return pd.concat(parts, ignore_index=True)
