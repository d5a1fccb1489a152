"""Effects of the choice of metric, average and box on a number: the arithmetic of notebook 11."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations

import numpy as np
import pandas as pd

from g2g_utils import metrics
from g2g_utils.bench import statistics
from g2g_utils.data.record import Example
from g2g_utils.models import GroundingModel
from g2g_utils.runs import places
from g2g_utils.text import select_tokens, tokenize

MS_CXR_COUNTS = pd.Series(
    {
        "Atelectasis": 61,
        "Cardiomegaly": 333,
        "Consolidation": 117,
        "Edema": 46,
        "Lung Opacity": 82,
        "Pleural Effusion": 96,
        "Pneumonia": 182,
        "Pneumothorax": 245,
    },
    name="pairs",
)
"""Image-phrase pairs of each class of MS-CXR."""

AVERAGES = {"micro": 1, "macro": 0, "n²": 2}  # class weights are counts to this power
PAPER_TABLE = places.ROOT / "docs" / "paper" / "g2g_table1.csv"
PRINTED = "Weighted Avg."  # row of the paper's table
METRICS = {"balanced IoU": "balanced_iou", "CNR": "cnr"}


def paper_averages() -> pd.DataFrame:
    """Averages of the rows of the paper's Table 1, one a method, and the printed one.

    Columns are (metric, average); `printed` is the table's "Weighted Avg.".
    """
    table = pd.read_csv(PAPER_TABLE, comment="#")
    rows = table[table["class"] != PRINTED].rename(columns={"class": "finding"})
    printed = table[table["class"] == PRINTED].set_index("method")
    found = {}
    for metric, column in METRICS.items():
        means = reweighted(rows, MS_CXR_COUNTS, column)
        found[metric] = means.assign(printed=printed[column])
    return pd.concat(found, axis=1)


def printed_as() -> pd.Series:
    """For each method of the paper's Table 1 the average whose numbers are nearest to the printed.

    The distance is the sum over balanced IoU and CNR.
    """
    found = paper_averages()
    apart = pd.DataFrame(0.0, index=found.index, columns=list(AVERAGES))
    for metric in METRICS:
        apart += found[metric][list(AVERAGES)].sub(found[metric]["printed"], axis=0).abs()
    return apart.idxmin(axis=1).rename("printed average")


def paper_text() -> pd.DataFrame:
    """The paper's averages as text; the one that is printed is marked *."""
    found, printed = paper_averages(), printed_as()
    text: dict[tuple[str, str], pd.Series] = {}
    for metric in METRICS:
        for average in AVERAGES:
            marks = printed.map({average: " *"}).fillna("")
            text[metric, average] = found[metric][average].map("{:.3g}".format) + marks
    return pd.DataFrame(text)


def paper_gaps(method: str = "CXR-BERT LDM", baseline: str = "BioViL-L") -> pd.DataFrame:
    """Lead of a row of the paper over a baseline: as printed, and under each average."""
    found = paper_averages()
    gaps = {m: found[m].loc[method] - found[m].loc[baseline] for m in METRICS}
    rows = {"printed": "as printed"} | {name: name for name in AVERAGES}
    return pd.DataFrame(gaps).loc[list(rows)].rename(rows)


def class_weights(counts: pd.Series) -> pd.DataFrame:
    """Share of each class (rows) in each average (columns). Columns add up to 1."""
    shares = {name: counts.astype(float) ** power for name, power in AVERAGES.items()}
    table = pd.DataFrame(shares)
    return table / table.sum()


def weights_title(weights: pd.DataFrame) -> str:
    """Weight of the heaviest class under each average, as a sentence."""
    heaviest = str(weights["n²"].idxmax())
    row = weights.loc[heaviest]
    shares = ", ".join(f"{share:.0%} of {name}" for name, share in row.items())
    return f"{heaviest} carries {shares}"


def reweighted(table: pd.DataFrame, counts: pd.Series, column: str) -> pd.DataFrame:
    """Class means of a column of every method, averaged in three ways with given class counts.

    Classes that a method lacks are left out of its average. A method without any class has NaN.
    """
    means = table.groupby(["method", "finding"], sort=False)[column].mean().unstack()
    weights = class_weights(counts.reindex(means.columns).fillna(0))
    weights["macro"] = 1 / means.shape[1]  # classes absent from the counts still are classes
    return means.fillna(0) @ weights / (means.notna().astype(float) @ weights)


def beside_paper(table: pd.DataFrame, counts: pd.Series, biovil: str) -> pd.DataFrame:
    """Averages of the paper's Table 1 and of our rows for the same two methods, as text.

    Args:
        counts: pairs of each class.
        biovil: label of our row of BioViL's method.

    Returns:
        Rows (method, whose), columns (metric, average). A method that was not run has the paper's
        row alone.
    """
    ours = pd.concat({k: reweighted(table, counts, v) for k, v in METRICS.items()}, axis=1)
    here = {"CXR-BERT LDM": str(table["method"].iloc[0]), "BioViL": biovil}
    rows, printed = {}, paper_text()
    for method, name in here.items():
        rows[method, "paper, on MS-CXR"] = printed.loc[method]
        if name in ours.index:
            rows[method, f"here: {name}"] = ours.loc[name].map("{:.3g}".format)
    return pd.DataFrame(rows).T


def growth(
    boxes: Sequence[metrics.Boxes], side: int, film: int, frames: Sequence[int]
) -> pd.Series:
    """Mean relative growth of the boxes' area if resized as pictures, by side of the frame.

    Args:
        boxes: in pixels of a `side` x `side` image, drawn on an image of `film` pixels.
    """
    scaled = [np.asarray(own, float) * film / side for own in boxes]
    grown = {}
    for frame in frames:
        areas = [
            [metrics.rasterise(own, frame, source_size=film, compat=compat).sum() for own in scaled]
            for compat in (None, "published")
        ]
        exact, published = np.array(areas, float)
        grown[f"{frame}²"] = float(np.mean(published / exact - 1))
    return pd.Series(grown, name="growth of the area")


def swaps(table: pd.DataFrame, first: str, second: str) -> list[tuple[str, str]]:
    """Pairs of rows that two metrics order differently, each by more than the intervals' ends.

    Args:
        table: rows of methods, columns of `statistics.Interval`.
    """

    ends = {
        column: {str(name): (cell.low, cell.high) for name, cell in table[column].items()}
        for column in (first, second)
    }

    def above(a: str, b: str, column: str) -> bool:
        return bool(ends[column][a][0] > ends[column][b][1])

    return [
        (a, b)
        for a, b in permutations(map(str, table.index), 2)
        if above(a, b, first) and above(b, a, second)
    ]


def effects(
    first: pd.DataFrame, second: pd.DataFrame, resamples: int
) -> dict[str, statistics.Interval]:
    """Mean paired change first - second of every shared metric, with its interval."""
    names = ("cnr", "specificity", "auc_roc", "iou", "balanced_iou")
    shared = [name for name in names if name in first and name in second]
    nothing = statistics.Interval(np.nan, np.nan, np.nan)
    found = {name: statistics.difference(first, second, name, resamples) for name in shared}
    return {name: found.get(name, nothing) for name in names}


def lost_tokens(model: GroundingModel, pairs: Sequence[Example]) -> float:
    """Share of the content words' tokens that are not the first piece of their word."""
    kept = total = 0
    for pair in pairs:
        words = tokenize(model.tokenizer, pair.phrase, model.max_length)
        kept += len(select_tokens(words, compat="published"))
        total += len(select_tokens(words))
    return 1 - kept / total
