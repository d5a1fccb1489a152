"""Averages, bootstrap intervals over patients and paired differences of score tables."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from g2g_utils.data.record import Example
from g2g_utils.methods.registry import OTHER_PHRASE

Numbers = NDArray[np.float64]
Codes = NDArray[np.int64]

PAIR = ["image_id", "subject_id", "phrase", "finding"]  # columns that identify the pair of a row


def averages(table: pd.DataFrame, by: str = "finding") -> pd.DataFrame:
    """Rows micro, macro and paper for every numeric column of one-row-per-sample results.

    micro: mean over samples; macro: mean of the class means; paper: class means weighted by their
    squared counts, as the published code computes. NaN scores are left out of the means and the
    counts.

    Raises:
        KeyError: the class column is missing.
    """
    numeric = table.select_dtypes("number").drop(columns=by, errors="ignore")
    groups = numeric.groupby(table[by], dropna=False)  # samples without a class are a class
    return class_averages(groups.mean(), groups.count())


def class_averages(means: pd.DataFrame, counts: pd.DataFrame | pd.Series) -> pd.DataFrame:
    """The three averages of class means [classes x metrics] given the classes' sample counts."""
    numbers = counts.to_frame() if isinstance(counts, pd.Series) else counts
    weights = np.broadcast_to(numbers.reindex(means.index).to_numpy(float), means.shape)
    rows = {
        name: _weighted(means.to_numpy(float), weights, power)
        for name, power in (("micro", 1), ("macro", 0), ("paper", 2))
    }
    return pd.DataFrame(rows, index=means.columns).T.rename_axis(index="average")


class Interval(NamedTuple):
    """An estimate with the ends of its percentile bootstrap interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def bootstrap(
    values: ArrayLike,
    groups: Sequence[Hashable] | NDArray[Any] | pd.Series | None = None,
    *,
    classes: Sequence[Hashable] | NDArray[Any] | pd.Series | None = None,
    average: str = "micro",
    n: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Percentile interval of an average of `values` [N], resampling groups (patients).

    For a paired difference pass the differences, or use `paired`. NaN values are left out.

    Args:
        groups: one label per value (default: each value its own).
        classes: one class per value, for the averages "macro" and "paper".
        average: "micro", "macro" or "paper".

    Raises:
        ValueError: no value is left, or labels are missing.
    """
    x = np.asarray(values, float)
    if average not in ("micro", "macro", "paper"):
        raise ValueError(f"average={average!r}: choose micro, macro or paper")
    if average != "micro" and classes is None:
        raise ValueError(f"average={average!r} needs classes, one per value")
    group, labels = _codes(groups, len(x)), np.zeros(len(x), int)
    if average != "micro":
        labels = _codes(classes, len(x))
    known = np.isfinite(x)
    if not known.any():
        raise ValueError("no finite values to bootstrap")
    shape = (group.max() + 1, labels.max() + 1)
    sums, counts = np.zeros(shape), np.zeros(shape)  # groups classes
    np.add.at(sums, (group[known], labels[known]), x[known])
    np.add.at(counts, (group[known], labels[known]), 1)
    drawn = np.random.default_rng(seed).multinomial(shape[0], np.full(shape[0], 1 / shape[0]), n)
    power = {"micro": 1, "macro": 0, "paper": 2}[average]
    estimate = _class_mean(sums.sum(0), counts.sum(0), power)
    spread = _class_mean(drawn @ sums, drawn @ counts, power)  # n
    tails = np.nanquantile(spread, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(estimate), *map(float, tails))


def correlation(x: ArrayLike, y: ArrayLike, n: int = 2000, seed: int = 0) -> Interval:
    """Pearson's correlation of x [N] and y [N], its interval by resampling their pairs."""
    points = np.stack([np.asarray(x, float), np.asarray(y, float)])
    picks = np.random.default_rng(seed).integers(points.shape[1], size=(n, points.shape[1]))
    with np.errstate(invalid="ignore", divide="ignore"):  # all picks the same point
        drawn = [float(np.corrcoef(points[:, pick])[0, 1]) for pick in picks]
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    return Interval(float(np.corrcoef(points)[0, 1]), float(low), float(high))


def paired(first: ArrayLike, second: ArrayLike, groups: Any = None, **options: Any) -> Interval:
    """Bootstrap of the mean paired difference first - second. Options as for `bootstrap`."""
    return bootstrap(np.asarray(first, float) - np.asarray(second, float), groups, **options)


def _class_mean(sums: Numbers, counts: Numbers, power: int) -> Numbers:
    """Averages [...] over classes [..., classes] of sums / counts weighted by counts^power."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return _weighted((sums / counts).T, counts.T, power)


def _weighted(means: Numbers, counts: Numbers, power: int) -> Numbers:
    """Mean over the first axis with weights counts^power. Empty classes are left out."""
    weights = np.where(np.isfinite(means) & (counts > 0), counts, 0.0)
    weights = np.where(weights > 0, weights**power, 0.0)
    with np.errstate(invalid="ignore"):
        mean: Numbers = (np.nan_to_num(means) * weights).sum(0) / weights.sum(0)
    return mean


def _codes(labels: object, length: int) -> Codes:
    """Whole numbers 0..k-1 for labels; without labels each value its own."""
    if labels is None:
        return np.arange(length)
    codes = pd.factorize(pd.Series(labels), use_na_sentinel=False)[0]
    if len(codes) != length:
        raise ValueError(f"{len(codes)} labels for {length} values")
    return codes


def read_rows(path: Path) -> pd.DataFrame:
    """Read a results table from a CSV. Identities of pairs stay text, as in the records ("007")."""
    return pd.read_csv(path, dtype=dict.fromkeys(PAIR, str))


def summary(
    table: pd.DataFrame, by: str, columns: Sequence[str], resamples: int, average: str = "micro"
) -> pd.DataFrame:
    """Mean and 95 % interval (bootstrap over patients) of columns for every value of `by`.

    `pairs` counts the pairs that have a score in the first column.
    """
    rows = []
    for value, part in table.groupby(by, sort=False):
        scored = part[part[columns[0]].notna()] if columns[0] in part else part
        row: dict[str, Any] = {by: value, "pairs": scored.groupby(PAIR, dropna=False).ngroups}
        for column in columns:
            row[column] = interval(part, column, resamples, average) if column in part else None
        rows.append(row)
    return pd.DataFrame(rows).set_index(by)


def interval(part: pd.DataFrame, column: str, resamples: int, average: str = "micro") -> Interval:
    """Mean of a column, first over seeds within a pair, with its interval over patients."""
    means = part.groupby(PAIR, sort=False, dropna=False)[column].mean()
    pairs = means.reset_index().dropna(subset=[column])
    if pairs.empty:
        return Interval(np.nan, np.nan, np.nan)
    return bootstrap(
        pairs[column], pairs["subject_id"], classes=pairs["finding"], average=average, n=resamples
    )


def on_common_seeds(
    table: pd.DataFrame, better: str, worse: str
) -> tuple[pd.DataFrame, pd.DataFrame, list[int]]:
    """Rows of two methods over the training seeds that both have, and those seeds.

    An untrained method has no seed (NaN) and is compared with all seeds of the other.
    """
    parts = [table[table["method"] == name] for name in (better, worse)]
    known = [{int(seed) for seed in part["seed"].dropna()} for part in parts]
    seeds: list[int] = sorted(known[0] & known[1] if all(known) else known[0] | known[1])
    first, second = (part[part["seed"].isna() | part["seed"].isin(seeds)] for part in parts)
    return first, second, seeds


def difference(first: pd.DataFrame, second: pd.DataFrame, column: str, resamples: int) -> Interval:
    """Paired difference of two methods on the same pairs, seeds averaged, over patients.

    NaN if no pair has a number on both sides.
    """
    means = [
        table.groupby(PAIR, sort=False, dropna=False)[column].mean() for table in (first, second)
    ]
    gap = (means[0] - means[1]).dropna().reset_index()
    if gap.empty:
        return Interval(np.nan, np.nan, np.nan)
    return bootstrap(gap[column], gap["subject_id"], n=resamples)


def pair_of(row: pd.Series, pairs: Sequence[Example]) -> Example:
    """The pair of a results row. Pairs without a row may lie in between."""
    wanted = [None if pd.isna(row[name]) else row[name] for name in PAIR]
    found = [pair for pair in pairs if [getattr(pair, name) for name in PAIR] == wanted]
    if not found:
        raise ValueError(f"no pair {wanted}: the table is of other data")
    return found[0]


def ranked(part: pd.DataFrame, column: str, shares: Sequence[float]) -> pd.DataFrame:
    """Rows at fixed ranks of a column: 0 the best, 0.5 the median, 1 the worst; no choosing."""
    known = part.dropna(subset=[column]).sort_values(column, ascending=False, kind="stable")
    return known.iloc[[round(share * (len(known) - 1)) for share in shares]]


def per_class(table: pd.DataFrame, column: str) -> pd.DataFrame:
    """Class means of a column with counts, then the three averages (micro, macro, paper)."""
    keys = ["image_id", "phrase", "finding"]
    pairs = table.groupby(keys, sort=False, dropna=False)[column].mean().reset_index()
    classes = pairs.groupby("finding", dropna=False)[[column]]
    means = classes.mean()
    counts = classes.count()
    averages = class_averages(means, counts)
    averages.index = [f"{name} average" for name in averages.index]
    table = pd.concat([means, averages])
    table["pairs"] = counts[column].reindex(table.index)
    return table


def methods(table: pd.DataFrame) -> pd.DataFrame:
    """Scores by `method` with the first method's map of another phrase as a method of its own.

    Its rows stand between the trained methods (with a `seed`) and the others.
    """
    trained = table["seed"].notna()
    first = table[table["method"] == table["method"].iloc[0]]
    swapped = other_phrase_rows(first, OTHER_PHRASE)
    return pd.concat([table[trained], swapped, table[~trained]], ignore_index=True)


def other_phrase_rows(table: pd.DataFrame, name: str) -> pd.DataFrame:
    """The other phrase's maps of a table as a method: their CNR against the own boxes."""
    keys = [column for column in (*PAIR, "seed") if column in table]
    return table[keys].assign(cnr=table["other_cnr"], method=name)
