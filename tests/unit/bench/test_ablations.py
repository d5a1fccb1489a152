"""Summaries, paired differences, averages and ranks of long result tables; audit arithmetic."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from g2g_utils import metrics
from g2g_utils.bench import ablations, audit
from g2g_utils.data.record import Example


def rows(values: list[float], seed: int = 0, **more: object) -> pd.DataFrame:
    """One row a pair: two pairs a patient, two findings."""
    n = len(values)
    return pd.DataFrame(
        {
            "image_id": [f"i{k}" for k in range(n)],
            "subject_id": [f"p{k // 2}" for k in range(n)],
            "finding": ["Edema" if k % 2 else "Pneumonia" for k in range(n)],
            "phrase": [f"phrase {k}" for k in range(n)],
            "seed": seed,
            "cnr": values,
            **more,
        }
    )


def test_difference_pairs_rows_and_averages_seeds_first() -> None:
    first = pd.concat([rows([2.0, 3.0, 4.0, 5.0], 0), rows([4.0, 5.0, 6.0, 7.0], 1)])
    second = rows([1.0, 2.0, 3.0, 4.0])[::-1]  # the order of rows doesn't matter
    gap = ablations.difference(first, second, "cnr", 100)
    assert gap.value == pytest.approx(2.0)
    assert gap.low == pytest.approx(2.0) and gap.high == pytest.approx(2.0)


def test_difference_leaves_out_pairs_that_one_side_lacks() -> None:
    gap = ablations.difference(rows([2.0, np.nan, 4.0]), rows([1.0, 1.0, 1.0]), "cnr", 50)
    assert gap.value == pytest.approx(2.0)


def test_rows_without_a_finding_count() -> None:
    some = rows([0.0] * 3 + [1.0] * 7).assign(finding=["Edema"] * 3 + [None] * 7)
    assert ablations.interval(some, "cnr", 50).value == pytest.approx(0.7)
    assert ablations.per_class(some, "cnr").loc["micro average", "cnr"] == pytest.approx(0.7)
    assert metrics.averages(some[["finding", "cnr"]]).loc["micro", "cnr"] == pytest.approx(0.7)
    nameless = some.assign(finding=None)
    assert ablations.interval(nameless, "cnr", 50).value == pytest.approx(0.7)
    assert ablations.difference(nameless, nameless, "cnr", 50).value == 0


def test_summary_says_how_many_pairs_and_marks_unknown_columns() -> None:
    table = pd.concat(
        [rows([1.0, 3.0], method="a", seed=0), rows([np.nan, np.nan], method="b", seed=0)]
    )
    found = ablations.summary(table, "method", ["cnr", "missing"], 50)
    assert found.loc["a", "cnr"].value == pytest.approx(2.0)
    assert found.loc["a", "pairs"] == 2
    assert np.isnan(found.loc["b", "cnr"].value)
    assert found["missing"].isna().all()


def test_per_class_ends_with_three_named_averages() -> None:
    table = pd.concat([rows([1.0, 3.0]), rows([1.0], image_id="other")])
    found = ablations.per_class(table, "cnr")
    assert list(found.index[-3:]) == ["micro average", "macro average", "paper average"]
    assert found.loc["Pneumonia", "pairs"] == 2
    assert found.loc["micro average", "cnr"] == pytest.approx(5 / 3)
    assert found.loc["macro average", "cnr"] == pytest.approx(2.0)
    assert found.loc["paper average", "cnr"] == pytest.approx((4 * 1 + 1 * 3) / 5)


def test_methods_joins_arms_swapped_map_and_baselines() -> None:
    arms = pd.concat(
        [
            rows([2.0, 3.0], arm="x", other_cnr=[0.5, 1.0]),
            rows([1.0, 1.0], arm="y", other_cnr=[0.0, 0.0]),
        ]
    )
    joined = ablations.methods(arms, rows([0.0, 0.0], method="random"), rows([0.7, 0.8]))
    counts = joined.groupby("method").size().to_dict()
    assert counts == {
        "x": 2, "y": 2, "its map of another phrase": 2, "BioViL-like": 2, "random": 2
    }  # fmt: skip
    swapped = joined[joined["method"] == "its map of another phrase"]
    assert swapped["cnr"].tolist() == [0.5, 1.0]


def test_summary_counts_pairs_with_a_score_by_finding_too() -> None:
    table = rows([1.0, 2.0, np.nan, 4.0], method="a").assign(image_id="one", phrase="same")
    assert (
        ablations.summary(table, "method", ["cnr"], 50).loc["a", "pairs"] == 3
    )  # patient, finding


def test_a_row_finds_its_pair_where_others_have_no_row(tmp_path: Path) -> None:
    pairs = [
        Example(np.zeros((8, 8)), phrase, finding, ((0.0, 0.0, 2.0, 2.0),), "007", "01", "test")
        for phrase, finding in (("left", None), ("left", "Edema"), ("right", "Edema"))
    ]
    table = pd.DataFrame([ablations.identity(pair) for pair in pairs[1:]])
    table.to_csv(tmp_path / "rows.csv", index=False)
    read = ablations.read_rows(tmp_path / "rows.csv")
    assert [ablations.pair_of(row, pairs) for _, row in read.iterrows()] == pairs[1:]
    with pytest.raises(ValueError, match="no pair"):
        ablations.pair_of(read.iloc[0], pairs[2:])


def test_ranked_takes_fixed_ranks() -> None:
    table = rows([5.0, np.nan, 1.0, 3.0, 4.0])
    assert ablations.ranked(table, "cnr", (0, 0.34, 1))["cnr"].tolist() == [5.0, 4.0, 1.0]


def test_priors_know_at_most_the_finding() -> None:
    image = np.zeros((32, 32), np.float32)
    spots = {"Edema": (2.0, 2.0, 8.0, 8.0), "Pneumonia": (20.0, 20.0, 8.0, 8.0)}
    pairs = [
        Example(image, f"{finding} here", finding, (box,), f"i{k}", f"p{k}", "test")
        for k, (finding, box) in enumerate(spots.items())
    ]
    regions = [{"finding": finding, "boxes": [box]} for finding, box in spots.items()]
    table = ablations.no_skill_rows(pairs, regions, 32, 8).set_index("method")
    for blind in ("random", "centre prior", "mean box"):
        assert table.loc[blind, "specificity"].tolist() == [0, 0]
    assert (table.loc["mean box per finding", "specificity"] > 1).all()


# -- audit --------------------------------------------------------------------------------------


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
    assert gaps.loc["as printed", "CNR"] == pytest.approx(0.07)
    assert gaps.loc["macro", "CNR"] == pytest.approx(0.27)
    assert gaps.loc["n²", "CNR"] == pytest.approx(0.22)
    marked = (audit.PAPER_AVERAGES.map(lambda cell: cell.endswith("*"))).sum(axis=1)
    assert (marked == 2).all()


def test_reweighted_means_of_methods() -> None:
    table = rows([1.0, 3.0], method="a")
    counts = pd.Series({"Edema": 1, "Pneumonia": 3})
    found = audit.reweighted(table, counts, "cnr").loc["a"]
    assert found["micro"] == pytest.approx((3 * 1 + 1 * 3) / 4)
    assert found["macro"] == pytest.approx(2.0)
    assert found["n²"] == pytest.approx((9 * 1 + 1 * 3) / 10)


def test_the_papers_averages_stand_beside_ours():
    rows = [("arm", "Edema", 0.2, 1.0), ("arm", "Pneumonia", 0.4, 3.0), ("other", "Edema", 0, 0)]
    table = pd.DataFrame(rows, columns=["method", "finding", "balanced_iou", "cnr"])
    counts = pd.Series({"Edema": 1, "Pneumonia": 3})
    found = audit.beside_paper(table, counts)
    ldm = found.loc["LDM, CXR-BERT"]
    assert ldm.loc["here: arm", "CNR"].to_dict() == {"micro": "2.5", "macro": "2", "n²": "2.8"}
    assert ldm.loc["paper, on MS-CXR", ("CNR", "n²")] == "1.21 *"
    assert list(found.loc["BioViL"].index) == ["paper, on MS-CXR"]  # not run here
    more = pd.concat([table, table[:2].assign(method="BioViL-like", cnr=1.0)])
    assert (
        audit.beside_paper(more, counts).loc[("BioViL", "here: BioViL-like"), ("CNR", "macro")]
        == "1"
    )


def test_boxes_resized_as_pictures_grow_and_less_in_finer_frames() -> None:
    found = audit.growth([[(10.0, 10.0, 20.0, 20.0)]], 64, 1000, (64, 256))
    assert found["64²"] > found["256²"] > 0


def test_effects_cover_metrics_that_both_have() -> None:
    found = audit.effects(rows([2.0, 2.0]), rows([1.0, 1.5]), 50)
    assert found["cnr"].value == pytest.approx(0.75)
    assert np.isnan(found["auc_roc"].value)


def test_batch_scores_are_those_of_single_maps() -> None:
    maps = [torch.rand(8, 8, generator=torch.Generator().manual_seed(k)) for k in range(3)]
    boxes = [[4.0, 4.0, 12.0, 8.0]]
    together = ablations.batch_scores(maps, boxes, 32)
    alone = [ablations.quick_scores(heatmap, boxes, 32) for heatmap in maps]
    assert [row["cnr"] for row in together] == pytest.approx([row["cnr"] for row in alone])
    full = metrics.evaluate(maps[0], boxes, 32)
    for name in ("cnr", "auc_roc", "pointing"):
        assert together[0][name] == pytest.approx(full[name])


def test_methods_are_compared_over_the_seeds_both_have() -> None:
    three = pd.concat([rows([1.0, 2.0], seed, method="three") for seed in (0, 1, 2)])
    one, none = rows([0.0, 0.0], 0, method="one"), rows([0.0, 0.0], method="none")
    table = pd.concat([three, one, none.assign(seed=np.nan)])
    first, second, seeds = ablations.on_common_seeds(table, "three", "one")
    assert seeds == [0] and len(first) == len(second) == 2
    first, second, seeds = ablations.on_common_seeds(table, "none", "three")
    assert seeds == [0, 1, 2] and len(first) == 2 and len(second) == 6
    assert ablations.on_common_seeds(table, "one", "absent")[1].empty


def test_a_difference_that_nobody_measured_is_unknown() -> None:
    unknown = rows([1.0, 2.0]).assign(cnr=np.nan)
    assert np.isnan(ablations.difference(unknown, rows([0.0, 0.0]), "cnr", 10).value)
