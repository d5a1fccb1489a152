"""The figures of the derivations show what their captions say."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from g2g_utils import config
from g2g_utils.masks import gmm_mask
from g2g_utils.plots import derivations

BOX = (3, 4, 5, 5)


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def covered(tail: float) -> float:
    heat = torch.as_tensor(derivations.blob((6, 5), 2.0, tail)).float()
    return float(gmm_mask(heat).float().sum()) / (BOX[2] * BOX[3])


def test_a_warm_tail_makes_the_mask_overshoot():
    assert covered(0.0) < 2 < covered(0.75)


def test_ddim_reaches_the_asked_world_and_guidance_takes_the_spread():
    alphas = np.cos(np.linspace(0.98, 0, 201) * np.pi / 2)
    start = np.random.default_rng(0).normal(size=4000)
    spread = {g: derivations.ddim(start, alphas, g)[-1] for g in (0, 1, 4)}
    assert np.mean(spread[1]) == pytest.approx(1, abs=0.1)
    assert np.std(spread[1]) == pytest.approx(0.5, abs=0.1)
    assert np.std(spread[0]) == pytest.approx(1, abs=0.1)
    assert np.std(spread[4]) < 0.3 and np.mean(spread[4]) > 1.1


def test_merging_curves_are_ordered_where_both_agree():
    lines = derivations.bezier().axes[1].lines
    linear, quadratic, mixture = (np.asarray(line.get_ydata()) for line in lines)
    assert np.allclose(linear, 0.8) and (quadratic <= linear + 1e-6).all()
    assert (mixture >= linear - 1e-6).all() and mixture.max() > 0.9


def test_populations_name_their_contrast():
    titles = [ax.get_title("left") or ax.get_title() for ax in derivations.populations().axes]
    numbers = [float(t.split("CNR ")[1]) for t in titles]
    assert numbers == pytest.approx([0, 1 / 2**0.5, 2.5 / 2**0.5], abs=0.1)


def test_layers_are_those_of_the_profile():
    sides = derivations.attention_sides(config.load("miniature"))
    assert [s for s, _ in sides.values()] == [16, 8, 8, 8, 16, 16]
    derivations.unet_diagram(sides)
    derivations.method_diagram()


def test_a_phantom_changes_where_its_findings_are():
    films, box = derivations.phantom(32)
    change = np.abs(films["what they change"])
    x, y, w, h = map(int, box)
    assert change[y : y + h, x : x + w].sum() > 0.7 * change.sum() > 0
    derivations.phantom_layers(films, box)
