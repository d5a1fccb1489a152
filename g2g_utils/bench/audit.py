"""Effects of the choice of metric, average and box on a number: the arithmetic of notebook 11."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from g2g_utils import metrics
from g2g_utils.bench import statistics
from g2g_utils.data.record import Example
from g2g_utils.models import GroundingModel
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

# (balanced IoU, CNR) of rows of the paper's Table 1 under each average of its per-class numbers;
# None: not known to us. The printed average is the paper's "Weighted Avg.".
_PAPER: dict[str, dict[str, Any]] = {
    "LDM, CXR-BERT": {
        "printed": "n²",
        "n²": (0.54, 1.21),
        "macro": (0.522, 1.41),
        "micro": (0.523, 1.29),
    },
    "BioViL": {"printed": "macro", "n²": (0.250, 0.78), "macro": (0.266, 1.03), "micro": None},
    "BioViL-L": {"printed": "macro", "n²": (0.296, 0.99), "macro": (0.284, 1.14), "micro": None},
}
AVERAGES = {"micro": 1, "macro": 0, "n²": 2}  # class weights are counts to this power


def _paper_averages() -> pd.DataFrame:
    """Rows of methods; columns of (metric, average). The printed one is marked *."""
    rows: dict[str, dict[tuple[str, str], str]] = {}
    for method, row in _PAPER.items():
        rows[method] = {}
        for k, metric in enumerate(("balanced IoU", "CNR")):
            for average in AVERAGES:
                cell = row[average]
                mark = " *" if row["printed"] == average else ""
                rows[method][metric, average] = "–" if cell is None else f"{cell[k]:.3g}{mark}"
    return pd.DataFrame(rows).T


PAPER_AVERAGES = _paper_averages()
"""The paper's averages as text, printed ones marked."""


def paper_gaps(baseline: str = "BioViL-L") -> pd.DataFrame:
    """Lead of the paper's LDM over a baseline: as printed (two averages), and under one average."""
    ours, theirs = _PAPER["LDM, CXR-BERT"], _PAPER[baseline]
    pairs = {
        "as printed": (ours[ours["printed"]], theirs[theirs["printed"]]),
        "macro": (ours["macro"], theirs["macro"]),
        "n²": (ours["n²"], theirs["n²"]),
    }
    gaps = {name: np.subtract(*np.array(pair, float)) for name, pair in pairs.items()}
    return pd.DataFrame(gaps, index=["balanced IoU", "CNR"]).T.round(3)


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
    columns = {"balanced IoU": "balanced_iou", "CNR": "cnr"}
    ours = pd.concat({k: reweighted(table, counts, v) for k, v in columns.items()}, axis=1)
    here = {"LDM, CXR-BERT": str(table["method"].iloc[0]), "BioViL": biovil}
    rows = {}
    for method, name in here.items():
        rows[method, "paper, on MS-CXR"] = PAPER_AVERAGES.loc[method]
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
