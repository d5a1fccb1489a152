"""Figures that explain: what they draw is what they are given."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch

from g2g_utils import masks
from g2g_utils.bench import token_probes
from g2g_utils.bench.statistics import Interval
from g2g_utils.plots import lessons

IMAGE = np.full((32, 32), 0.5, np.float32)
BOX = ((4, 4, 8, 8),)


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def peak(seed=0):
    """A map with a warm corner."""
    heat = 0.1 * torch.rand(16, 16, generator=torch.Generator().manual_seed(seed))
    heat[2:6, 2:6] += 0.8
    return (heat - heat.min()) / (heat.max() - heat.min())


def test_merged_values_start_at_a_and_end_at_m():
    fig = lessons.merged_values(((0.8, 0.2), (0.3, 0.3)), "claim")
    for ax, (a, m) in zip(fig.axes, ((0.8, 0.2), (0.3, 0.3)), strict=True):
        for line in ax.lines:
            assert line.get_ydata()[0] == pytest.approx(a)
            assert line.get_ydata()[-1] == pytest.approx(m)
    linear, quadratic, mixture = (line.get_ydata()[50] for line in fig.axes[1].lines)
    assert linear == pytest.approx(0.3) and quadratic < linear < mixture


def test_merging_effects_have_a_row_a_curve():
    gaps = {("arm", "linear"): Interval(0.1, 0.0, 0.2), ("arm", "mixture"): Interval(-1, -2, 0)}
    fig = lessons.merging_effects({"CNR": gaps, "IoU": gaps})
    assert [t.get_text() for t in fig.axes[0].get_yticklabels()] == ["arm, linear", "arm, mixture"]
    assert fig.axes[1].lines[3].get_xdata() == pytest.approx([-1])


def test_scatter_of_gains():
    fig = lessons.gain_scatter({"c": [0.1, 0.5]}, [0.0, -1.0])
    assert fig.axes[0].lines[0].get_xydata().tolist() == [[0.1, 0.0], [0.5, -1.0]]


def test_rows_of_maps_may_differ_in_length():
    rows = [("one", IMAGE, BOX, {"A": peak(), "M": peak(1)}), ("two", IMAGE, (), {"A": peak()})]
    fig = lessons.map_rows(rows, "claim")
    assert sum(ax.get_visible() for ax in fig.axes[:6]) == 5


def test_mixture_is_that_of_the_mask():
    heat = peak()
    means, spreads, weights = masks.components(heat)
    assert means[0] < 0.3 < 0.7 < means[1] and (spreads > 0).all() and abs(weights.sum() - 1) < 1e-6
    assert masks.gmm_mask(heat)[3, 3] and not masks.gmm_mask(heat)[12, 12]
    fig = lessons.mask_rows([("text", IMAGE, BOX, heat)], "claim")
    cut = fig.axes[0].lines[-1].get_xdata()[0]
    assert cut == pytest.approx(means.mean())


def test_populations_inside_and_outside():
    heat = peak().numpy()
    fig = lessons.two_populations(heat, heat > 0.5)
    outside, inside = (line.get_xdata()[0] for line in fig.axes[0].lines)
    assert outside == pytest.approx(heat[heat <= 0.5].mean()) and inside > 0.7


def test_shares_of_attention_end_at_one_and_show_the_even_share():
    columns = [*token_probes.GROUPS, token_probes.UNIFORM]
    shares = pd.DataFrame([[0.1, 0.2, 0.3, 0.15, 0.25, 0.6]], index=["arm"], columns=columns)
    (ax,) = lessons.attention_shares(shares).axes
    ends = [bar.get_x() + bar.get_width() for bar in ax.patches]
    assert ends == pytest.approx([0.1, 0.3, 0.6, 0.75, 1.0])
    ((x, _), _) = ax.collections[0].get_segments()[0]
    assert x == pytest.approx(0.4)


def test_grouped_intervals_are_drawn_at_their_ends():
    one, two = (Interval(v, v - 1, v + 2) for v in (3.0, 5.0))
    (ax,) = lessons.grouped_intervals(
        {"a": {"x": one, "y": two}, "b": {"x": two, "y": one}}, "CNR"
    ).axes
    assert [t.get_text() for t in ax.get_xticklabels()] == ["a", "b"]
    bars = ax.containers[0].lines[2][0].get_segments()
    assert [sorted(end[1] for end in bar) for bar in bars] == [[2, 5], [4, 7]]


def test_losses_are_compared_with_the_mean_of_the_arms():
    log = pd.DataFrame({"step": range(4), "loss": [4.0, 3.0, 2.0, 1.0]})
    other = log.assign(loss=log["loss"] + 2)
    fig = lessons.arm_losses({"a-s0": log, "a-s1": log, "b-s0": other}, smooth=1)
    assert len(fig.axes[0].lines) == 2
    assert fig.axes[1].lines[0].get_ydata().tolist() == [-1] * 4


def test_strips_of_films_name_rows_and_times():
    films = {"guidance 1": torch.rand(3, 8, 8), "guidance 4": torch.rand(3, 8, 8)}
    fig = lessons.film_strips(films, [901, 401, 0], "claim")
    assert [ax.get_ylabel() for ax in fig.axes][::3] == list(films)
    assert fig.axes[0].get_title() == "t = 901"


def test_similarity_has_a_colour_an_encoder():
    table = pd.DataFrame({"domain": [0.7, 1.0], "generic": [1.0, 1.0]}, index=["effusion", "left"])
    (ax,) = lessons.similarity_bars(table, "cosine").axes
    assert [line.get_label() for line in ax.lines] == ["domain", "generic"]
