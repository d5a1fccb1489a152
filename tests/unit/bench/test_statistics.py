"""Summaries, paired differences, averages and ranks of long score tables."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from g2g_utils.bench import statistics
from g2g_utils.bench.benchmark import identity
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
    gap = statistics.difference(first, second, "cnr", 100)
    assert gap.value == pytest.approx(2.0)
    assert gap.low == pytest.approx(2.0) and gap.high == pytest.approx(2.0)


def test_difference_leaves_out_pairs_that_one_side_lacks() -> None:
    gap = statistics.difference(rows([2.0, np.nan, 4.0]), rows([1.0, 1.0, 1.0]), "cnr", 50)
    assert gap.value == pytest.approx(2.0)


def test_rows_without_a_finding_count() -> None:
    some = rows([0.0] * 3 + [1.0] * 7).assign(finding=["Edema"] * 3 + [None] * 7)
    assert statistics.interval(some, "cnr", 50).value == pytest.approx(0.7)
    assert statistics.per_class(some, "cnr").loc["micro average", "cnr"] == pytest.approx(0.7)
    assert statistics.averages(some[["finding", "cnr"]]).loc["micro", "cnr"] == pytest.approx(0.7)
    nameless = some.assign(finding=None)
    assert statistics.interval(nameless, "cnr", 50).value == pytest.approx(0.7)
    assert statistics.difference(nameless, nameless, "cnr", 50).value == 0


def test_summary_says_how_many_pairs_and_marks_unknown_columns() -> None:
    table = pd.concat(
        [rows([1.0, 3.0], method="a", seed=0), rows([np.nan, np.nan], method="b", seed=0)]
    )
    found = statistics.summary(table, "method", ["cnr", "missing"], 50)
    assert found.loc["a", "cnr"].value == pytest.approx(2.0)
    assert found.loc["a", "pairs"] == 2
    assert np.isnan(found.loc["b", "cnr"].value)
    assert found["missing"].isna().all()


def test_per_class_ends_with_three_named_averages() -> None:
    table = pd.concat([rows([1.0, 3.0]), rows([1.0], image_id="other")])
    found = statistics.per_class(table, "cnr")
    assert list(found.index[-3:]) == ["micro average", "macro average", "paper average"]
    assert found.loc["Pneumonia", "pairs"] == 2
    assert found.loc["micro average", "cnr"] == pytest.approx(5 / 3)
    assert found.loc["macro average", "cnr"] == pytest.approx(2.0)
    assert found.loc["paper average", "cnr"] == pytest.approx((4 * 1 + 1 * 3) / 5)


def test_methods_joins_arms_swapped_map_and_baselines() -> None:
    arms = pd.concat(
        [
            rows([2.0, 3.0], method="x", other_cnr=[0.5, 1.0], seed=0.0),
            rows([1.0, 1.0], method="y", other_cnr=[0.0, 0.0], seed=0.0),
            rows([0.7, 0.8], method="BioViL-like", seed=np.nan),
            rows([0.0, 0.0], method="random", seed=np.nan),
        ]
    )
    joined = statistics.methods(arms)
    order = ["x", "y", "its map of another phrase", "BioViL-like", "random"]
    assert joined["method"].unique().tolist() == order
    counts = joined.groupby("method").size().to_dict()
    assert counts == {
        "x": 2, "y": 2, "its map of another phrase": 2, "BioViL-like": 2, "random": 2
    }  # fmt: skip
    swapped = joined[joined["method"] == "its map of another phrase"]
    assert swapped["cnr"].tolist() == [0.5, 1.0]


def test_summary_counts_pairs_with_a_score_by_finding_too() -> None:
    table = rows([1.0, 2.0, np.nan, 4.0], method="a").assign(image_id="one", phrase="same")
    assert (
        statistics.summary(table, "method", ["cnr"], 50).loc["a", "pairs"] == 3
    )  # patient, finding


def test_a_row_finds_its_pair_where_others_have_no_row(tmp_path: Path) -> None:
    pairs = [
        Example(np.zeros((8, 8)), phrase, finding, ((0.0, 0.0, 2.0, 2.0),), "007", "01", "test")
        for phrase, finding in (("left", None), ("left", "Edema"), ("right", "Edema"))
    ]
    table = pd.DataFrame([identity(pair) for pair in pairs[1:]])
    table.to_csv(tmp_path / "rows.csv", index=False)
    read = statistics.read_rows(tmp_path / "rows.csv")
    assert [statistics.pair_of(row, pairs) for _, row in read.iterrows()] == pairs[1:]
    with pytest.raises(ValueError, match="no pair"):
        statistics.pair_of(read.iloc[0], pairs[2:])


def test_ranked_takes_fixed_ranks() -> None:
    table = rows([5.0, np.nan, 1.0, 3.0, 4.0])
    assert statistics.ranked(table, "cnr", (0, 0.34, 1))["cnr"].tolist() == [5.0, 4.0, 1.0]


def test_methods_are_compared_over_the_seeds_both_have() -> None:
    three = pd.concat([rows([1.0, 2.0], seed, method="three") for seed in (0, 1, 2)])
    one, none = rows([0.0, 0.0], 0, method="one"), rows([0.0, 0.0], method="none")
    table = pd.concat([three, one, none.assign(seed=np.nan)])
    first, second, seeds = statistics.on_common_seeds(table, "three", "one")
    assert seeds == [0] and len(first) == len(second) == 2
    first, second, seeds = statistics.on_common_seeds(table, "none", "three")
    assert seeds == [0, 1, 2] and len(first) == 2 and len(second) == 6
    assert statistics.on_common_seeds(table, "one", "absent")[1].empty


def test_a_difference_that_nobody_measured_is_unknown() -> None:
    unknown = rows([1.0, 2.0]).assign(cnr=np.nan)
    assert np.isnan(statistics.difference(unknown, rows([0.0, 0.0]), "cnr", 10).value)


def test_correlation_has_its_interval_around_it() -> None:
    x = np.arange(30.0)
    noise = np.random.default_rng(0).normal(size=30)
    found = statistics.correlation(x, x + 5 * noise, 200)
    assert 0 < found.low < found.value < found.high < 1
    assert found.value == pytest.approx(np.corrcoef(x, x + 5 * noise)[0, 1])
