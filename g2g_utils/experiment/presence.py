"""Presence on a profile's phantoms: questions with their scores, calibrated, and said in words.

One product per arm and seed, `presence/<arm>-s<seed>`: `questions.csv.gz` (validation and test) and
`calibration.json`. The miniature's are shipped beside its weights.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from g2g_utils import runs
from g2g_utils.config import Config, ConfigError
from g2g_utils.experiment import parts
from g2g_utils.experiment.make import ensure
from g2g_utils.experiment.plan import find
from g2g_utils.experiment.product import arm_and_seed, product
from g2g_utils.experiment.recipes import loaded_parts, model_needs
from g2g_utils.experiment.scores import in_parts
from g2g_utils.methods.registry import InformationRow, Row, rows

if TYPE_CHECKING:
    import pandas as pd

    from g2g_utils.bench.presence import Calibration
    from g2g_utils.bench.statistics import Interval
    from g2g_utils.methods.base import Grounder
    from g2g_utils.models import GroundingModel

PRESENCE = 1  # raise when questions are asked or scored otherwise
FILMS = 64  # of a split at most
PART = 16  # films after which a product keeps its rows
IDENTITY = ["image_id", "subject_id", "kind", "truth", "phrase"]
QUESTIONS, CALIBRATION = "questions.csv.gz", "calibration.json"
LIMITS = "it reads finding and side, neither zone nor denial; it is no statement about a patient"


# ---------------------------------------------------------------- the product


def _items(config: Config) -> list[str]:
    """The first arm's seeds, where the truth of phrases is known."""
    arm = next(iter(config.training.arms))
    return [] if _unknown(config) else [f"{arm}-s{seed}" for seed in config.seeds(arm)]


def _unknown(config: Config) -> str:
    """Why nothing can be calibrated in this profile; empty if it can."""
    data = config.data
    if data.source != "phantoms" or data.validation_from or data.test_from:
        return "only phantoms know which phrases are true"
    if not config.training.dropout:
        return "its model never saw dropped captions, so the empty prompt is no unconditional state"
    return ""


def _rivals(config: Config) -> list[Row]:
    """Rows of methods with a score of their own."""
    return [row for row in rows(config).values() if row.kind.name == "biovil"]


def _needs(config: Config, item: str) -> list[str]:
    rivals = [need for row in _rivals(config) for need in row.kind.needs(config, row.settings)]
    return [*model_needs(config, *arm_and_seed(config, item)), *rivals]


def _parameters(config: Config, item: str) -> dict[str, Any]:
    return {
        "presence": [PRESENCE, FILMS],
        "name": item,
        "timesteps": config.grounding.timesteps,
        "data": config.data.model_dump(include={"source", "validation", "test", "seed", "world"}),
        "rivals": [row.label for row in _rivals(config)],
        **loaded_parts(config, arm_and_seed(config, item)[0]),
    }


@product(
    "presence",
    items=_items,
    needs=_needs,
    parameters=_parameters,
    bundle=lambda config, item: f"results/{item}",
)
def presence(config: Config, item: str, folder: Path) -> dict[str, Any]:
    """Scores of all questions, a calibration chosen on validation, and its errors on test."""
    import pandas as pd

    from g2g_utils.bench import presence as bench

    if reason := _unknown(config):
        raise ConfigError(f"presence/{item} of {config.profile}: {reason}")
    model, rivals = parts.model(config, *arm_and_seed(config, item)), _built(config)
    found = {
        split: _asked(config, split, model, own, folder / "parts" / split)
        for split, own in (("validation", {}), ("test", rivals))
    }
    shutil.rmtree(folder / "parts")
    table = pd.concat([rows.assign(split=split) for split, rows in found.items()])
    with runs.atomic(folder / QUESTIONS) as temporary:
        packed: Any = {"method": "gzip", "mtime": 0}
        table.to_csv(temporary, index=False, float_format="%.5g", compression=packed)
    record = _measured(found["validation"], found["test"], list(rivals), config)
    runs.write_json(folder / CALIBRATION, record)
    return {"metrics": {kind: row[bench.SCORE][0] for kind, row in record["areas"].items()}}


def _asked(
    config: Config, split: str, model: GroundingModel, rivals: dict[str, Grounder], place: Path
) -> pd.DataFrame:
    """Scores of a split's questions, kept part by part; on validation only kinds that are read."""
    from g2g_utils.bench import presence as bench

    films, chosen = _films(config, split), options(config)
    asked, columns = bench.questions(films), None
    if split == "validation":  # for calibrations, which need no more
        asked = [[q for q in own if q.kind in bench.READ] for own in asked]
        columns = [*IDENTITY, bench.SCORE, bench.GAIN]

    def some(part: slice) -> pd.DataFrame:
        title = f"{model.name}, {split} from {part.start}"
        found = bench.ask(model, films[part], asked[part], rivals, title=title, **chosen)
        return found if columns is None else found[columns]

    return in_parts(place, len(films), some, PART)


def _measured(
    validation: pd.DataFrame, test: pd.DataFrame, rivals: list[str], config: Config
) -> dict[str, Any]:
    """The calibration of a model, and what it and every score reach on test."""
    from g2g_utils.bench import presence as bench

    calibration, n = bench.calibrate(validation), config.evaluation.bootstrap
    shown = [bench.SCORE, bench.GAIN, bench.ATTENTION, *rivals]
    errors = bench.errors(bench.judged(calibration, test), n)
    areas = bench.areas(test, shown, n)
    return {
        "curve": asdict(calibration),
        "score": bench.SCORE,
        "chosen on": f"validation, {validation['image_id'].nunique()} films",
        "measured on": f"test, {test['image_id'].nunique()} films",
        "errors": {name: _rounded(value) for name, value in errors.items()},
        "areas": {
            kind: {name: _rounded(row[name]) for name in shown} for kind, row in areas.iterrows()
        },
    }


def _films(config: Config, split: str) -> list[Any]:
    from g2g_utils.data import sources

    return [film for film in sources.examples(config, split) if film.regions][:FILMS]


def _built(config: Config) -> dict[str, Grounder]:
    """Rivals by the name of their column."""
    built = {
        row.label: row.kind.build(parts.Parts(config), row.label, row.settings, None)
        for row in _rivals(config)
    }
    return {name: rival for name, rival in built.items() if rival is not None}


def options(config: Config) -> dict[str, Any]:
    """Keywords of `bench.presence.measure`: those of the profile's information maps."""
    from g2g_utils.methods import information

    row = InformationRow.model_validate({"arm": next(iter(config.training.arms))})
    return information.options(config, row)


def _rounded(interval: Interval) -> list[float | None]:
    """Value and ends with four digits; None for an end that is unknown."""
    return [round(float(end), 4) if end == end else None for end in interval]


# ---------------------------------------------------------------- reading


def questions(config: Config, split: str = "test", arm: str | None = None) -> pd.DataFrame:
    """Questions of a split with their scores, of all seeds of an arm (column `seed`).

    Columns are those of `bench.presence.ask`. What is missing is made, minutes a seed.
    """
    import pandas as pd

    arm, found = arm or next(iter(config.training.arms)), []
    for seed in config.seeds(arm):
        file = ensure(config, f"presence/{arm}-s{seed}") / QUESTIONS
        table = pd.read_csv(file, dtype={"image_id": str, "subject_id": str})
        found.append(table[table["split"] == split].drop(columns="split").assign(seed=seed))
    return pd.concat(found, ignore_index=True)


def item_of(model: str) -> str:
    """ARM-sSEED of a model's name, PROFILE/ldm/ARM-sSEED."""
    return model.rpartition("/")[2]


@dataclass(frozen=True)
class Calibrated:
    """A calibration with its errors on test: rate, and the ends of its 95 % interval."""

    curve: Calibration
    errors: dict[str, list[float]]
    areas: dict[str, dict[str, list[float]]]


def calibrated(config: Config, item: str) -> Calibrated | str:
    """Calibration of a model ARM-sSEED, or the reason why there is none; nothing is made for it."""
    from g2g_utils.bench.presence import Calibration

    if reason := _unknown(config):
        return f"not calibrated here: {reason}"
    place = find(config, f"presence/{item}")
    if place is None:
        make = f"python -m g2g_utils make presence/{item} --profile {config.profile}"
        return f"{item} is not calibrated for these settings: `{make}` does it in minutes"
    record = runs.read_json(place / CALIBRATION)
    return Calibrated(Calibration(**record["curve"]), record["errors"], record["areas"])


def statement(phrase: str, score: float, known: Calibrated | str) -> dict[str, Any]:
    """What a film says of a phrase, for a JSON file.

    Args:
        phrase: as asked.
        score: of `bench.presence.measure`.
        known: what `calibrated` gave.

    Returns:
        `said`: one line of words; `score`; where it is calibrated and the phrase denies nothing,
        `probability`, `supported`, and the `errors` on phantoms that the line names.
    """
    from g2g_utils.text import DENIALS

    found: dict[str, Any] = {"score": round(score, 4), "probability": None, "supported": None}
    if isinstance(known, str):
        return found | {"said": f"{known} (score {score:.3g}, no probability)"}
    if DENIALS.search(phrase.lower()):
        area = known.areas.get("denied finding", {}).get("presence", [float("nan")])[0]
        why = f"area under the ROC curve {area:.2f} on phantoms" if area == area else "not tried"
        return found | {"said": f"not told for a phrase that denies: it can't be read ({why})"}
    probability, supported = (
        float(known.curve.probability(score)),
        bool(known.curve.supported(score)),
    )
    return found | {
        "probability": round(probability, 4),
        "supported": supported,
        "said": _said(probability, supported, known.errors),
        "errors": {name: known.errors[name] for name in ("wrong", "absent", "side")},
        "limits": LIMITS,
    }


def line(found: dict[str, Any]) -> str:
    """A statement in one line: what the film says, and what can't be read from it."""
    return "; ".join(filter(None, (found.get("said", ""), found.get("limits", ""))))


def _said(probability: float, supported: bool, errors: dict[str, list[float]]) -> str:
    """The line: what is said, its probability, and how often it is wrong."""
    p = f"p {'<' if probability < 0.01 else '='} {max(probability, 0.01):.2f}"
    if probability > 0.99:
        p = "p > 0.99"
    wrong, absent, side = (errors[name][0] for name in ("wrong", "absent", "side"))
    if not supported:
        return (
            f"not supported by this film ({p}; on phantoms this is wrong for {wrong:.0%} of true "
            "phrases)"
        )
    return (
        f"this film does not speak against the phrase ({p}; on phantoms it doesn't for "
        f"{1 - absent:.0%} of absent findings and {1 - side:.0%} of wrong sides either)"
    )
