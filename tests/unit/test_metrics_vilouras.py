"""Metrics of Vilouras et al. against outputs of the authors' code, and in the frame of a film."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from g2g_utils import bench
from g2g_utils import metrics_vilouras as theirs
from g2g_utils.data.record import Example
from g2g_utils.methods.base import HeatMap
from tests.duck import examples

SHARED = Path(os.environ.get("G2G_SHARED", Path(__file__).parents[3] / "shared"))
FULL = SHARED / "reference" / "vilouras" / "reference_open.npz"
CUT = Path(__file__).parents[1] / "vectors" / "vilouras.npz"
NAMES = {"vilouras_cnr": "cnr", "vilouras_abs_cnr": "abs_cnr", "vilouras_miou": "miou"}
NAMES |= {"vilouras_auc": "auc"}


@pytest.fixture(scope="module", params=[CUT, FULL], ids=["cut", "full"])
def stored(request):
    if not request.param.is_file():
        pytest.skip(f"no full vectors at {FULL}; the repository's part was tested (G2G_SHARED)")
    return np.load(request.param)


@pytest.mark.parametrize("case", range(14))
def test_the_authors_numbers(stored, case):
    found = theirs.evaluate(stored[f"C.{case:02}.map"], stored[f"C.{case:02}.boxes"])
    for name, key in NAMES.items():
        limit = {"rel": 1e-5, "abs": 1e-6} if "cnr" in key else {"abs": 1e-6}
        assert found[name] == pytest.approx(float(stored[f"C.{case:02}.{key}"]), **limit)


def test_the_order_of_boxes_changes_the_ratio_and_nothing_else():
    heat = np.random.default_rng(0).random((20, 20), dtype=np.float32)
    boxes = [[0, 0, 6, 6], [10, 10, 8, 8]]
    one, two = theirs.evaluate(heat, boxes), theirs.evaluate(heat, boxes[::-1])
    assert one["vilouras_cnr"] != two["vilouras_cnr"]
    assert one["vilouras_miou"] == two["vilouras_miou"]


@pytest.mark.parametrize("height, width", [(20, 33), (33, 20), (20, 20)])
def test_a_map_returns_to_the_frame_of_its_image(height, width):
    heat = torch.arange(64.0).reshape(8, 8)
    frame = theirs.to_original(heat, height, width)
    assert frame.shape == (height, width)
    top, left = (height - 20) // 2, (width - 20) // 2
    inside = frame[top : top + 20, left : left + 20]
    assert np.isnan(frame).sum() == frame.size - 400 and not np.isnan(inside).any()
    assert inside[0, 0] == 0 and inside[-1, -1] == 63
    assert np.array_equal(inside[::5, ::5], heat.numpy()[::2, ::2])  # floor(i * 8 / 20)


def test_no_boxes_have_no_score():
    assert all(np.isnan(v) for v in theirs.evaluate(np.zeros((4, 4), np.float32), []).values())


class Half:
    """Heat of 0.3 on the left half; the other answer is none."""

    name, image_size = "half", 32

    def ground(self, queries):
        heat = torch.zeros(32, 32)
        heat[:, :16] = 0.3
        return [HeatMap(heat, absolute=heat) for _ in queries]


def test_the_bench_adds_them_when_asked():
    images = torch.rand(3, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    film = np.random.default_rng(0).random((40, 60), dtype=np.float32)
    wide = Example(film, "opacity", "Edema", ((10, 0, 20, 40),), "w", "w", "test")
    pairs = [*examples(images), wide]
    plain = bench.score(Half(), pairs, progress=False)
    more = bench.score(Half(), pairs, measure="vilouras", progress=False)
    assert set(more.columns) - set(plain.columns) == set(theirs.METRICS)
    assert plain.equals(more[plain.columns])
    last = more.iloc[-1]
    assert last["vilouras_miou"] == pytest.approx(2 / 5)  # the values are not rescaled
    assert last["threshold_iou"] == pytest.approx(1) and last["vilouras_auc"] == 1
    assert last["vilouras_cnr"] == pytest.approx(float(np.finfo(np.float32).max))
