"""Charts draw what the tables say: bars, dots, intervals, empty cells, one file a figure."""

from collections.abc import Iterator
from dataclasses import dataclass

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from g2g_utils.bench.statistics import Interval
from g2g_utils.plots import charts

UNKNOWN = Interval(np.nan, np.nan, np.nan)


@pytest.fixture(autouse=True)
def close_figures() -> Iterator[None]:
    yield
    plt.close("all")


@pytest.fixture
def table() -> pd.DataFrame:
    cells = {"cnr": [Interval(1.2, 1.0, 1.4), Interval(-0.1, -0.3, 0.1)]}
    index = pd.Index(["domain-frozen", "random"], name="method")
    return pd.DataFrame({**cells, "specificity": [Interval(0.5, 0.3, 0.7), UNKNOWN]}, index=index)


def bar_ends(fig: Figure, panel: int) -> list[float]:
    return [round(p.get_x() + p.get_width(), 6) for p in fig.axes[panel].patches]


def test_readable_shows_intervals_labels_and_dashes(table: pd.DataFrame) -> None:
    shown = charts.readable(table)
    assert list(shown.columns) == ["CNR", "specificity"]
    assert shown.loc["domain-frozen", "CNR"] == "1.20 [1.00, 1.40]"
    assert shown.loc["random", "specificity"] == "–"
    assert charts.readable(pd.DataFrame({"x": [None, 0.126, "a"]}))["x"].tolist() == [
        "–",
        "0.13",
        "a",
    ]


def test_bars_end_at_the_estimates_and_skip_unknown_ones(table: pd.DataFrame) -> None:
    fig = charts.bars(table, ["cnr", "specificity"], title="claim")
    assert bar_ends(fig, 0) == [1.2, -0.1]
    assert bar_ends(fig, 1) == [0.5]
    assert fig.axes[0].get_title("left") or fig.axes[0].get_title() == "CNR"
    assert fig.get_suptitle() == "claim"


def test_bars_start_at_chance_and_carry_one_dot_a_seed(table: pd.DataFrame) -> None:
    dots = pd.DataFrame(
        {"method": ["domain-frozen"] * 3, "seed": [0, 1, 2], "cnr": [1.1, 1.2, 1.3]}
    )
    fig = charts.bars(table, ["cnr"], dots, zero={"cnr": 0.5})
    assert {round(p.get_x(), 6) for p in fig.axes[0].patches} == {0.5}
    drawn = [line.get_xdata() for line in fig.axes[0].lines if line.get_marker() == "o"]
    assert [list(values) for values in drawn] == [[1.1, 1.2, 1.3]]


@dataclass
class Made:
    id: str
    claim: str
    estimate: float
    low: float
    high: float

    @property
    def holds(self) -> bool:
        return self.low > 0


def test_forest_fills_only_what_holds() -> None:
    fig = charts.forest(
        [Made("F1-a", "a > b", 0.3, 0.1, 0.5), Made("F1-b", "c > d", 0.1, -0.1, 0.3)]
    )
    faces = [line.get_markerfacecolor() for line in fig.axes[0].lines if line.get_marker() == "o"]
    assert faces[0] != "white" and faces[1] == "white"
    assert [text.get_text() for text in fig.axes[0].get_yticklabels()] == ["F1: a > b", "F1: c > d"]


def test_verdicts_are_written_beside_the_dots() -> None:
    made = [Made("F1-a", "a > b", 0.3, 0.1, 0.5), Made("F3-b", "c > d", -0.3, -0.5, -0.1)]
    (ax,) = charts.verdicts(made, {"F3-b": "against c"}, "two").axes
    assert [text.get_text() for text in ax.texts] == ["holds  +0.30", "reversed  -0.30"]
    assert [text.get_text() for text in ax.get_yticklabels()] == ["a > b", "against c"]


def test_dots_show_every_row_of_every_method() -> None:
    one = pd.DataFrame({"cnr": [Interval(1, 0, 2), Interval(3, 2, 4)]}, index=["up", "all"])
    fig = charts.dots({"a": one, "b": one}, ["cnr"], "layers")
    drawn = [line for line in fig.axes[0].lines if line.get_marker() == "o"]
    assert [list(line.get_xdata()) for line in drawn] == [[1, 3], [1, 3]]
    assert [text.get_text() for text in fig.axes[0].get_yticklabels()] == ["up", "all"]


def test_curve_weights_are_those_of_merge() -> None:
    import torch

    from g2g_utils import bbm

    a, m = torch.tensor([[0.0, 1.0], [0.25, 0.5]]), torch.tensor([[0.4, 0.2], [1.0, 0.0]])
    for name, weights in charts.CURVES.items():
        for c in (0.0, 0.3, 1.0):
            wa, wam, wm = weights(c)
            merged = bbm.merge(a, m, c, name)  # type: ignore[arg-type]
            assert torch.allclose(merged, wa * a + wam * a * m + wm * m, atol=1e-6)


def test_mean_interval_averages_end_by_end() -> None:
    cells = pd.Series([Interval(1.0, 0.0, 2.0), Interval(3.0, 2.0, 6.0)])
    assert charts.mean_interval(cells) == Interval(2.0, 1.0, 4.0)


def test_the_other_charts_draw_every_row() -> None:
    grid = pd.DataFrame([[1.0, np.nan], [-0.5, 0.2]], index=["a", "b"], columns=["x", "y"])
    field = charts.field(grid, "CNR").axes[0]
    assert len(field.texts) == 3 and len(field.patches) == 1  # the largest is framed
    lines = pd.DataFrame({"cnr": [Interval(1, 0.9, 1.1), Interval(2, 1.9, 2.1)]}, index=[1, 10])
    fig = charts.lines({"arm": lines}, ["cnr"], "T", log=True)
    assert [t.get_text() for t in fig.axes[0].get_xticklabels()] == ["1", "10"]
    points = pd.DataFrame(
        {"arm": ["a", "b"], "cnr": [1, 2], "frechet": [3, 4], "low": [2, 3], "high": [4, 6]}
    )
    assert len(charts.fidelity_scatter(points).axes[0].containers) == 2
    shares = charts.shares(pd.DataFrame({"micro": [0.4, 0.6], "macro": [0.5, 0.5]}))
    assert bar_ends(shares, 0) == [40.0, 60.0]
    assert charts.histogram([0.1, 0.2, 0.3], "c").axes[0].texts[0].get_text() == " median 0.20"
    assert len(charts.paired_points([1, 2], [2, 1], ("x", "y")).axes[0].lines) == 2
    assert len(charts.curve_weights([0.1]).axes) == 3


def test_empty_overlap_marks_the_score() -> None:
    mask, box = np.zeros((2, 20, 20), bool)
    mask[:2, :5], box[10:, :4] = True, True
    fig = charts.empty_overlap(mask, box, 0.4)
    assert fig.get_suptitle() == "No overlap, yet balanced IoU 0.40"
    points = [line.get_xydata()[0] for line in fig.axes[1].lines if line.get_marker() == "o"]
    assert np.allclose(points, [[box.mean(), 0.4]])
