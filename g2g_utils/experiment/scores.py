"""Scores of the test pairs: what the benchmark's tables are read from."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from g2g_utils import runs, tagger
from g2g_utils.config import ROOT, Config
from g2g_utils.experiment import apart, parts
from g2g_utils.experiment.make import ensure
from g2g_utils.experiment.plan import plan
from g2g_utils.experiment.product import arm_and_seed, product
from g2g_utils.experiment.recipes import dump, loaded_parts, model_needs

SCORES = 3  # raise when evaluations or baselines score otherwise, or more
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
    there = (ROOT / config.biovil.expanduser()).is_file()
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
    from g2g_utils import grounding
    from g2g_utils.bench import ablations

    grounded = parts.model(config, *arm_and_seed(config, item))
    pairs, options = parts.evaluation_pairs(config), parts.grounding_options(config)
    views = {"pairs": options["layers"]}
    if options["layers"] is not None:  # the paper's map, over all layers, beside the profile's
        views["all_layers"] = None
    others = grounding.draw_others(pairs, config.image_size)

    def plain(rows: slice) -> Any:
        return grounding.evaluate(
            grounded, pairs[rows], others=others[rows], views=views, **options
        )

    both = _in_parts(folder / "parts" / "plain", len(pairs), plain)
    for view, rows in both.groupby("view"):
        _write_table(folder / f"{view}.csv", rows.drop(columns="view"))
    table = both[both["view"] == "pairs"]
    if not config.training.arms[arm_and_seed(config, item)[0]].control:
        count = min(len(pairs), config.evaluation.bias_pairs)
        merged = _in_parts(
            folder / "parts" / "merged",
            count,
            lambda rows: ablations.curves(
                grounded, pairs[:count][rows], others=others[:count][rows], **options
            ),
        )
        _write_table(folder / "curves.csv", merged)
    shutil.rmtree(folder / "parts")
    means = table[["cnr", "auc_roc", "pointing", "specificity"]].mean()
    known = means.dropna()  # specificity is unknown where all pairs have one phrase
    return {"metrics": {name: round(float(value), 5) for name, value in known.items()}}


def _in_parts(place: Path, count: int, score: Callable[[slice], Any]) -> Any:
    """A table of `count` pairs, scored and kept part by part: a killed evaluation goes on there."""
    import pandas as pd

    from g2g_utils.bench import ablations

    parts = []
    for start in range(0, count, PART):
        path = place / f"{start:06}.csv"
        if not path.is_file():
            _write_table(path, score(slice(start, start + PART)))
        parts.append(ablations.read_rows(path))
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
    from g2g_utils.bench import ablations

    apart.warn_of_shared(config)
    pairs, side = parts.evaluation_pairs(config), config.image_size
    _, latent = parts.latent_size(config)
    regions = parts.prior_regions(config)
    _write_table(folder / "no_skill.csv", ablations.no_skill_rows(pairs, regions, side, latent))
    baseline = rival(config)
    if baseline is None:
        return
    _write_table(folder / "biovil.csv", ablations.biovil_rows(baseline, pairs, side))


def rival(config: Config) -> Any:
    """The discriminative baseline: the miniature BioViL, the published one, or None (it says why).

    The published one needs its image checkpoint, `config.biovil`.
    """
    from g2g_utils.data import sources
    from g2g_utils.methods import biovil

    domain, length, checkpoint = config.encoders["domain"], config.text.max_length, config.biovil
    if not domain.pretrained:
        return biovil.load(ensure(config, "encoders/domain"), length)
    if checkpoint is not None and sources.resolve(checkpoint).is_file():
        place = sources.resolve(checkpoint)
        return biovil.published(place, domain.pretrained, domain.revision, length)
    print(f"no BioViL: {checkpoint or 'biovil'} is not there; {biovil.FETCH}")
    return None


def _write_table(path: Path, table: Any) -> None:
    """A table as CSV, written atomically."""
    with runs.atomic(path) as temporary:
        table.to_csv(temporary, index=False)


def tables(config: Config, file: str, arms: list[str] | None = None) -> Any:
    """All rows of a results file ("pairs.csv" or "curves.csv") over arms and seeds."""
    import pandas as pd

    from g2g_utils.bench import ablations

    parts = []
    for name in plan(config):
        kind, _, item = name.partition("/")
        arm = item.rpartition("-s")[0]
        if kind == "evaluation" and (arms is None or arm in arms):
            table = ablations.read_rows(ensure(config, name) / file)
            parts.append(table.assign(arm=arm, seed=int(item.rpartition("-s")[2])))
    return pd.concat(parts, ignore_index=True)
