"""The paper's numbers stand beside the right cells of ours."""

import numpy as np
import pandas as pd

from g2g_utils.bench import paper


def rows(method: str, finding: str, cnr: list[float], seed: float) -> pd.DataFrame:
    made = {"method": method, "finding": finding, "cnr": cnr, "balanced_iou": 0.5, "seed": seed}
    return pd.DataFrame(made)


SCORES = pd.concat(
    [
        rows("domain-frozen", "Edema", [1.0, 2.0], 0),
        rows("domain-frozen", "Edema", [2.0, 3.0], 1),
        rows("domain-frozen", "Pneumonia", [0.5], 0),
        rows("BioViL-like", "Edema", [1.0], np.nan),
    ],
    ignore_index=True,
)


def test_table_1_has_all_classes_and_says_what_was_not_measured():
    table = paper.table_1(SCORES)
    assert len(table) == 9
    assert table.loc["Edema", ("cnr", "CXR-BERT LDM", "paper")] == "1.35 ± 0.01"
    assert table.loc["Edema", ("cnr", "CXR-BERT LDM", "here")] == "2.00 ± 0.71"
    assert table.loc["Pneumonia", ("cnr", "CXR-BERT LDM", "here")] == "0.50"
    assert table.loc["Edema", ("cnr", "BioViL-L", "here")] == "1.00"
    assert table.loc["Edema", ("cnr", "CLIP LDM", "here")] == paper.NOT_MEASURED
    assert table.loc["Weighted Avg.", ("cnr", "CXR-BERT LDM", "here")] == "1.83 ± 0.94"


def test_merged_rows_are_named_after_their_arm():
    curves = SCORES.assign(curve=["mixture", "none"] * 3)
    found = paper.merged_rows(curves, "domain-frozen")
    assert set(found["method"]) == {"domain-frozen + BBM"} and len(found) == 3


def test_the_figure_leaves_out_what_was_not_measured():
    from g2g_utils.plots import paper as drawn

    fig = drawn.beside(paper.table_1(SCORES), "cnr", "CNR", "a claim")
    theirs, ours = fig.axes
    dots = next(line for line in ours.lines if line.get_label() == "CLIP LDM")
    assert len(theirs.lines) == 5 and np.isnan(np.asarray(dots.get_ydata(), float)).sum() == 0
    assert np.isnan(np.asarray(dots.get_xdata(), float)).all()
