"""The paper's tables beside ours: printed numbers and the same cells of the profile's scores.

Worlds differ (MS-CXR there, the profile's pairs here): directions may be compared, sizes may not. A
cell that no run measured says so.
"""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from g2g_utils.runs import places

PRINTED = places.ROOT / "docs" / "paper"
NOT_MEASURED = "not measured"
BY_CLASS = ("balanced_iou", "cnr")
# Row of the paper -> our method. Like BioViL-L, ours is trained with the local contrast too.
TABLE_1 = {
    "BioViL-L": "BioViL-like",
    "CLIP LDM": "generic-frozen",
    "CXR-BERT LDM": "domain-frozen",
    "CXR-BERT LDM + BBM": "domain-frozen + BBM",
}


def printed(name: str) -> pd.DataFrame:
    """A table of docs/paper as it was printed, by its name without suffix."""
    return pd.read_csv(PRINTED / f"{name}.csv", comment="#")


def merged_rows(curves: pd.DataFrame, arm: str, curve: str = "mixture") -> pd.DataFrame:
    """Rows of an arm under one merging curve, renamed "ARM + BBM"; see the view "curves"."""
    kept = curves[(curves["curve"] == curve) & (curves["method"].str.startswith(arm))]
    return kept.assign(method=f"{arm} + BBM")


def table_1(
    scores: pd.DataFrame, rows: Mapping[str, str] = TABLE_1, whole: str = "Weighted Avg."
) -> pd.DataFrame:
    """Table 1: classes × methods, printed and ours, as text "value ± spread over seeds".

    Args:
        scores: one row per pair, method and seed, with `finding` and the metrics.
        rows: row of the paper -> our method's name.
        whole: the paper's name of its last row. Ours is the mean over pairs.

    Returns:
        Rows: classes. Columns (metric, method of the paper, "paper" or "here").
    """
    theirs = printed("g2g_table1").set_index(["class", "method"])
    classes = list(theirs.index.unique("class"))
    cells = {}
    for metric in BY_CLASS:
        for row, ours in rows.items():
            found = theirs.xs(row, level="method")
            cells[metric, row, "paper"] = [
                _text(found.loc[c, metric], found.loc[c, f"{metric}_sd"]) for c in classes
            ]
            own = scores[scores["method"] == ours]
            cells[metric, row, "here"] = [
                seeds(own if c == whole else own[own["finding"] == c], metric) for c in classes
            ]
    return pd.DataFrame(cells, index=pd.Index(classes, name="class"))


def seeds(part: pd.DataFrame, metric: str) -> str:
    """Mean over the pairs and, of several seeds, the standard deviation of theirs."""
    values = part[metric].dropna() if metric in part else pd.Series(dtype=float)
    if values.empty:
        return NOT_MEASURED
    each = part.loc[values.index].groupby("seed")[metric].mean()
    return _text(each.mean() if len(each) else values.mean(), each.std() if len(each) > 1 else None)


def _text(value: float, spread: float | None) -> str:
    """A number with two digits, and ± its spread where there is one."""
    return f"{value:.2f}" + ("" if spread is None or pd.isna(spread) else f" ± {spread:.2f}")
