"""Scores of the profile's methods on the test pairs: the tables of the benchmark.

One product per row of `methods:` and seed, `scores/<row>-s<seed>`; `scores/<row>` for a method that
is not trained here.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from g2g_utils import runs, tagger
from g2g_utils.config import Config, ConfigError
from g2g_utils.experiment import apart, parts
from g2g_utils.experiment.make import ensure
from g2g_utils.experiment.product import product
from g2g_utils.experiment.recipes import loaded_parts, model_needs
from g2g_utils.methods.registry import Row, rows

if TYPE_CHECKING:
    import pandas as pd

    from g2g_utils.methods.base import Grounder

SCORES = 4  # raise when pairs are scored otherwise, or more
PART = 128  # pairs after which a product keeps its rows
FILE = "scores.csv"
KEPT = ["cnr", "auc_roc", "pointing", "specificity"]  # means that the product's record shows

View = Literal["own", "all layers", "curves"]


def items(config: Config) -> dict[str, tuple[Row, int | None]]:
    """Row and seed of every item, in the profile's order."""
    return {
        name if seed is None else f"{name}-s{seed}": (row, seed)
        for name, row in rows(config).items()
        for seed in (config.seeds(row.arm) if row.arm else (None,))
    }


def _item(config: Config, item: str) -> tuple[Row, int | None]:
    found = items(config)
    if item not in found:
        raise ConfigError(f"unknown product 'scores/{item}': choose one of {', '.join(found)}")
    return found[item]


def _needs(config: Config, item: str) -> list[str]:
    row, seed = _item(config, item)
    made = model_needs(config, row.arm, seed) if row.arm and seed is not None else []
    return [*made, *row.kind.needs(config, row.settings)]


def _parameters(config: Config, item: str) -> dict[str, Any]:
    row, _ = _item(config, item)
    method = {"kind": row.kind.name, **row.settings.model_dump(mode="json")}
    own = {
        "method": method,
        "name": item,
        "scores": SCORES,
        "tagger": tagger.name(config.grounding.spacy_model),
    }
    data = {
        "evaluation": config.evaluation.model_dump(exclude={"bootstrap"}),
        "data": config.data.model_dump(),
    }
    loaded = loaded_parts(config, row.arm) if row.arm else {}
    return own | data | loaded | dict(row.kind.depends(config, row.settings))


def _bundle(config: Config, item: str) -> str:
    """One job makes all rows of a trained U-Net; one those of methods that are not trained here."""
    row, seed = _item(config, item)
    return f"results/{row.arm}-s{seed}" if row.arm else "references"


@product("scores", items=items, needs=_needs, parameters=_parameters, bundle=_bundle)
def score(config: Config, item: str, folder: Path) -> dict[str, Any]:
    """Metrics of a method's maps: scores.csv, one row per pair and variant of the map.

    Nothing is written for a method whose files are absent, or that has no map here.
    """
    from g2g_utils.bench import benchmark

    row, seed = _item(config, item)
    if item == next(iter(items(config))):
        apart.warn_of_shared(config)
    found = _built(config, row, seed)
    if found is None:
        return {}
    many = row.kind.variants(found, row.settings)
    asked, variants = many or (found, None)
    pairs = parts.evaluation_pairs(config)
    others = benchmark.draw_others(pairs, config.image_size)  # the same for all methods
    count = min(len(pairs), row.kind.pairs(config, row.settings))

    def some(part: slice) -> pd.DataFrame:
        return benchmark.score(
            asked,
            pairs[:count][part],
            others=others[:count][part],
            variants=variants,
            measure=row.kind.measure,
            size=config.image_size,
            title=f"{row.label}, pairs from {part.start}",
        )

    table = in_parts(folder / "parts", count, some, PART).drop(columns="method")
    if variants is None:
        table.insert(0, "variant", "own")
    _write_table(folder / FILE, table)
    shutil.rmtree(folder / "parts")
    own = table[table["variant"].isin(["own", getattr(row.settings, "curve", None)])]
    known = own[KEPT].mean().dropna()  # specificity is unknown where all pairs have one phrase
    return {"metrics": {name: round(float(value), 5) for name, value in known.items()}}


def in_parts(
    place: Path, count: int, score: Callable[[slice], pd.DataFrame], size: int
) -> pd.DataFrame:
    """A table of `count` pairs, kept part by part: a killed job goes on after the last part."""
    import pandas as pd

    from g2g_utils.bench import statistics

    found = []
    for start in range(0, count, size):
        path = place / f"{start:06}.csv"
        if not path.is_file():
            _write_table(path, score(slice(start, start + size)))
        found.append(statistics.read_rows(path))
    return pd.concat(found, ignore_index=True)


def _write_table(path: Path, table: pd.DataFrame) -> None:
    """A table as CSV, written atomically."""
    with runs.atomic(path) as temporary:
        table.to_csv(temporary, index=False)


# ---------------------------------------------------------------- reading


def scores(
    config: Config, view: View = "own", labels: Collection[str] | None = None
) -> pd.DataFrame:
    """Scores of the profile's methods, in its order; what is missing is made.

    Args:
        config: the profile.
        view: "own": each method's map, of all rows without bias merging. "all layers": the same
            rows, where a method's map is of chosen layers its map over all. "curves": the rows with
            bias merging; column `curve` tells the plain map ("none") and the merged ones apart.
        labels: of the rows that are wanted (default: all).

    Returns:
        One row per pair, method (column `method`: its label) and seed, with `arm` and the metrics.
        `arm` is the training arm whose own map it is, empty for every other method; `seed` is empty
        for methods that are not trained here.

    Raises:
        ConfigError: the profile lists no such method.
    """
    import numpy as np
    import pandas as pd

    from g2g_utils.bench import statistics

    found = []
    for item, (row, seed) in items(config).items():
        if row.merged != (view == "curves") or (labels is not None and row.label not in labels):
            continue
        file = ensure(config, f"scores/{item}") / FILE
        if file.is_file():
            table = _viewed(statistics.read_rows(file), view)
            arm = row.arm if row.kind.name == "g2g" else None
            own = {"method": row.label, "arm": arm, "seed": np.nan if seed is None else seed}
            found.append(table.assign(**own))
    if not found:
        raise ConfigError(f"profile {config.profile!r} has no methods to show: see its `methods:`")
    return pd.concat(found, ignore_index=True)


def _viewed(table: pd.DataFrame, view: View) -> pd.DataFrame:
    """A product's rows of one view."""
    if view == "curves":
        return table.rename(columns={"variant": "curve"})
    wanted = view if view in set(table["variant"]) else "own"
    return table[table["variant"] == wanted].drop(columns="variant")


def method(config: Config, name: str, seed: int | None = None) -> Grounder | None:
    """The method of a row of the profile's table; None, with a line, where its files are absent.

    Raises:
        ConfigError: the table has no such row.
    """
    known = rows(config)
    if name not in known:
        raise ConfigError(f"no method {name!r} in {config.profile}: choose from {', '.join(known)}")
    row = known[name]
    return _built(config, row, seed)


def _built(
    config: Config, row: Row, seed: int | None, regions: Sequence[dict[str, Any]] | None = None
) -> Grounder | None:
    """The method of a row; None, with a line, where its files are absent."""
    from g2g_utils.experiment import costs

    if line := costs.absent_pipeline(config, row.arm):
        print(f"no {row.label}: {line}")
        return None
    return row.kind.build(parts.Parts(config, regions), row.label, row.settings, seed)


def methods(
    config: Config, regions: Sequence[dict[str, Any]] | None = None
) -> Iterator[tuple[Grounder, int | None]]:
    """Every method with its seed, one at a time: all rows but merged ones and control arms.

    regions: whose boxes make the mean boxes (default: `prior_regions`).
    """
    for row, seed in items(config).values():
        if row.merged or (row.arm and config.training.arms[row.arm].control):
            continue
        if found := _built(config, row, seed, regions):
            yield found, seed


def compared(config: Config) -> list[str]:
    """Labels of the methods that are compared, in the profile's order: no controls, no merged."""
    arms = config.training.arms
    return [
        row.label
        for name, row in rows(config).items()
        if not row.merged
        and not config.methods[name].control
        and not (row.arm and arms[row.arm].control)
    ]
