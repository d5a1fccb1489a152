"""Arithmetic of the metric audit: class weights, the paper's averages, growth of boxes."""

import numpy as np
import pandas as pd
import pytest

from g2g_utils.bench import audit
from g2g_utils.bench.statistics import Interval
from tests.unit.bench.test_statistics import rows


def test_class_weights_of_ms_cxr() -> None:
    weights = audit.class_weights(audit.MS_CXR_COUNTS)
    assert audit.MS_CXR_COUNTS.sum() == 1162
    assert np.allclose(weights.sum(), 1)
    assert weights.loc["Cardiomegaly", "micro"] == pytest.approx(333 / 1162)
    assert weights.loc["Cardiomegaly", "n²"] > 0.4
    assert audit.weights_title(weights).startswith(
        "Cardiomegaly carries 29% of micro, 12% of macro"
    )


def test_paper_gaps_mix_averages_only_as_printed() -> None:
    gaps = audit.paper_gaps()
    for name, lead in {"as printed": 0.07, "macro": 0.27, "n²": 0.22}.items():
        assert gaps.loc[name, "CNR"] == pytest.approx(lead, abs=0.01)
    assert audit.printed_as().to_dict() == {
        "BioViL": "macro",
        "BioViL-L": "macro",
        "CLIP LDM": "n²",
        "CXR-BERT LDM": "n²",
        "CXR-BERT LDM + BBM": "n²",
    }
    marked = audit.paper_text().map(lambda cell: cell.endswith("*")).sum(axis=1)
    assert (marked == 2).all()


def test_swaps_count_only_beyond_the_intervals() -> None:
    wide, far = Interval(1, 0, 2), Interval(5, 4, 6)
    table = pd.DataFrame(
        {"x": [wide, far, Interval(1.5, 1, 2)], "y": [far, wide, Interval(1, 0, 2)]},
        index=["a", "b", "c"],
    )
    assert audit.swaps(table, "x", "y") == [("b", "a")]


def test_reweighted_means_of_methods() -> None:
    table = rows([1.0, 3.0], method="a")
    counts = pd.Series({"Edema": 1, "Pneumonia": 3})
    found = audit.reweighted(table, counts, "cnr").loc["a"]
    assert found["micro"] == pytest.approx((3 * 1 + 1 * 3) / 4)
    assert found["macro"] == pytest.approx(2.0)
    assert found["n²"] == pytest.approx((9 * 1 + 1 * 3) / 10)


def test_the_papers_averages_stand_beside_ours():
    cells = [("arm", "Edema", 0.2, 1.0), ("arm", "Pneumonia", 0.4, 3.0), ("other", "Edema", 0, 0)]
    table = pd.DataFrame(cells, columns=["method", "finding", "balanced_iou", "cnr"])
    counts = pd.Series({"Edema": 1, "Pneumonia": 3})
    found = audit.beside_paper(table, counts, "BioViL-like")
    ldm = found.loc["CXR-BERT LDM"]
    assert ldm.loc["here: arm", "CNR"].to_dict() == {"micro": "2.5", "macro": "2", "n²": "2.8"}
    assert ldm.loc["paper, on MS-CXR", ("CNR", "n²")] == "1.21 *"
    assert list(found.loc["BioViL"].index) == ["paper, on MS-CXR"]  # not run here
    more = pd.concat([table, table[:2].assign(method="BioViL-like", cnr=1.0)])
    assert (
        audit.beside_paper(more, counts, "BioViL-like").loc[
            ("BioViL", "here: BioViL-like"), ("CNR", "macro")
        ]
        == "1"
    )


def test_boxes_resized_as_pictures_grow_and_less_in_finer_frames() -> None:
    found = audit.growth([[(10.0, 10.0, 20.0, 20.0)]], 64, 1000, (64, 256))
    assert found["64²"] > found["256²"] > 0


def test_effects_cover_metrics_that_both_have() -> None:
    found = audit.effects(rows([2.0, 2.0]), rows([1.0, 1.5]), 50)
    assert found["cnr"].value == pytest.approx(0.75)
    assert np.isnan(found["auc_roc"].value)
