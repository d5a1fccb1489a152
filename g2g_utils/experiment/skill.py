"""How well an arm grounds each finding on real test films, beside where that finding usually lies.

One product per compared arm of a pack of films, `skill/<arm>`, from the scores of all its seeds.
`ground` and the explorer say with every answer what it holds about the finding that was asked for.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from g2g_utils import runs
from g2g_utils.config import Config
from g2g_utils.data.radiographs import FINDINGS
from g2g_utils.experiment import scores
from g2g_utils.experiment.plan import find
from g2g_utils.experiment.product import product
from g2g_utils.methods.registry import Row, rows

if TYPE_CHECKING:
    import pandas as pd

    from g2g_utils.bench.statistics import Interval

SKILL = 1  # raise when it is measured otherwise
FILE = "skill.json"
PRIOR, SIDED = "mean box per finding", "mean box per finding and side"
COLUMNS = ("cnr", "auc_roc", "pointing", "threshold_iou", "specificity")
GAINS = ("cnr", "threshold_iou")  # also as differences to the priors


# ---------------------------------------------------------------- the product


def _items(config: Config) -> list[str]:
    """Compared arms of a pack of films, where the profile has the prior's row."""
    films = config.data.source == "radiographs" and PRIOR in _priors(config)
    return list(config.training.compared) if films else []


def _priors(config: Config) -> dict[str, str]:
    """Labels of the priors' rows by rule."""
    found = {
        row.settings.rule: row.label for row in rows(config).values() if row.kind.name == "no-skill"
    }
    return {rule: label for rule, label in found.items() if rule in (PRIOR, SIDED)}


def _own(config: Config, arm: str) -> dict[str, str]:
    """Labels of an arm's rows by the method of `ground` that they measure."""
    found = ((answers(row), row) for row in rows(config).values() if row.arm == arm)
    return {method: row.label for method, row in found if method}


def _needs(config: Config, item: str) -> list[str]:
    """Scores of the arm and of the priors."""
    read = {*_own(config, item).values(), *_priors(config).values()}
    return [
        f"scores/{name}" for name, (row, _) in scores.items(config).items() if row.label in read
    ]


def answers(row: Row) -> str | None:
    """The method of `ground` that a row of the benchmark measures, or None."""
    if row.kind.name == "g2g" and not row.merged:
        return "attention"
    if row.kind.name == "information":
        return "both" if row.settings.attention else "information"
    return None


@product(
    "skill",
    items=_items,
    needs=_needs,
    parameters=lambda config, item: {
        "skill": SKILL,
        "name": item,
        "bootstrap": config.evaluation.bootstrap,
    },
    bundle=lambda config, item: "references",
)
def skill(config: Config, item: str, folder: Path) -> dict[str, Any]:
    """Scores per finding of an arm's maps, and their differences to the priors: skill.json."""
    own, priors, n = _own(config, item), _priors(config), config.evaluation.bootstrap
    table = scores.scores(config, labels=[*own.values(), *priors.values()])
    found = {
        str(finding): _of_finding(part, own, priors, n)
        for finding, part in table.groupby("finding")
    }
    seeds = [int(seed) for seed in config.seeds(item)]
    runs.write_json(folder / FILE, {"arm": item, "seeds": seeds, "findings": found})
    return {"metrics": {name: one["attention"]["cnr"][0] for name, one in found.items()}}


def _of_finding(
    part: pd.DataFrame, own: Mapping[str, str], priors: Mapping[str, str], n: int
) -> dict[str, Any]:
    """Numbers of one finding by method and prior, each a mean with the ends of its interval."""
    from g2g_utils.bench import statistics

    by_label = {label: rows for label, rows in part.groupby("method")}
    found: dict[str, Any] = {
        "pairs": int(part.groupby(statistics.PAIR).ngroups),
        "patients": int(part["subject_id"].nunique()),
    }
    for name, label in {**own, **priors}.items():
        rows = by_label[label]
        found[name] = {c: _ends(statistics.interval(rows, c, n)) for c in COLUMNS}
        if name in own:
            found[name] |= {
                f"{column} over {rule}": _ends(
                    statistics.difference(rows, by_label[priors[rule]], column, n)
                )
                for rule in priors
                for column in GAINS
            }
    return found


def _ends(interval: Interval) -> list[float | None]:
    return [round(float(end), 4) if end == end else None for end in interval]


# ---------------------------------------------------------------- reading


def named(phrase: str) -> list[str]:
    """Findings of a pack that a phrase names, by the words of the token filter."""
    from g2g_utils.text import VOCABULARY

    words = set(re.findall(r"[a-z]+", phrase.lower()))
    found = (FINDINGS.get(name.lower()) for name, own in VOCABULARY.items() if words & own)
    return [finding for finding in dict.fromkeys(found) if finding]


def measured(config: Config, arm: str) -> dict[str, Any] | None:
    """What the product of an arm holds; None where it was not made, and nothing is made here."""
    if arm not in _items(config):
        return None
    place = find(config, f"skill/{arm}")
    return runs.read_json(place / FILE) if place else None


def statement(config: Config, model: str, phrase: str, method: str) -> dict[str, Any]:
    """How good an answer's model is at the finding that was asked for, for a JSON file.

    Args:
        config: the profile.
        model: name of the model, PROFILE/ldm/ARM-sSEED.
        phrase: as asked.
        method: of `ground`.

    Returns:
        `skill`, with `said`: one line; `findings`: numbers of each named finding, and of the prior;
        `no_better_than_prior`: True if that is so for one of them, None where nothing is known.
        Nothing in a profile that is not of a pack of films.
    """
    arm = model.rpartition("/")[2].rpartition("-s")[0]
    if config.data.source != "radiographs":
        return {}
    known = (measured(config, arm) or {"findings": {}})["findings"]
    table = {f: known[f] for f in named(phrase) if method in known.get(f, {})}
    found: dict[str, Any] = {"model": model, "findings": {}, "no_better_than_prior": None}
    if not table:
        why = "how good it is at this phrase was not measured"
        return {"skill": found | {"said": f"{model} answers; {why}"}}
    lines = [_line(finding, row, method) for finding, row in table.items()]
    found["findings"] = {f: {n: row[n] for n in (method, PRIOR)} for f, row in table.items()}
    found["no_better_than_prior"] = any(not _better(row, method) for row in table.values())
    return {"skill": found | {"said": f"{model} answers; {'; '.join(lines)}"}}


def _better(row: Mapping[str, Any], method: str) -> bool:
    """True if the maps' CNR lies above the prior's with its whole interval."""
    low = row[method][f"cnr over {PRIOR}"][1]
    return low is not None and low > 0


def _line(finding: str, row: Mapping[str, Any], method: str) -> str:
    """One finding's numbers in words."""
    gap, low, high = row[method][f"cnr over {PRIOR}"]
    verdict = "better than" if _better(row, method) else "NO better than"
    own, prior = row[method]["cnr"][0], row[PRIOR]["cnr"][0]
    return (
        f"for {finding.lower()} its maps are {verdict} knowing where that usually lies (CNR "
        f"{own:.2f} and {prior:.2f} on {row['pairs']} test pairs, difference {gap:+.2f} "
        f"[{low:+.2f}, {high:+.2f}])"
    )
