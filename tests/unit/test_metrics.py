import math

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import roc_auc_score

from g2g_utils import metrics
from g2g_utils.bench.statistics import averages, bootstrap, class_averages, paired
from g2g_utils.metrics import (
    auc_roc,
    balanced_iou,
    contrast_to_noise,
    evaluate,
    iou,
    pointing_game,
    rasterise,
    threshold_iou,
)

SCORES = (contrast_to_noise, threshold_iou, pointing_game, auc_roc)
quick = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
maps = hnp.arrays(np.float64, (6, 7), elements=st.integers(0, 50).map(float))
targets = hnp.arrays(np.bool_, (6, 7))


def usable(heat, target):
    assume(heat.max() > heat.min() and 2 <= target.sum() <= target.size - 2)


@quick
@given(maps, targets, st.floats(0.01, 100), st.floats(-5, 5))
def test_scores_ignore_scale_and_shift(heat, target, scale, shift):
    usable(heat, target)
    scaled = np.round(heat * 2**7) * 2.0 ** round(math.log2(scale)) + round(shift)
    for score in (contrast_to_noise, pointing_game, auc_roc):
        expected = score(heat, target)
        assert score(scaled, target) == pytest.approx(expected, rel=1e-6, nan_ok=True)
    # exact thresholds can move by rounding, so scale by powers of two alone
    assert threshold_iou(heat * 4, target) == pytest.approx(threshold_iou(heat, target))


@quick
@given(maps, targets)
def test_scores_ignore_flips(heat, target):
    usable(heat, target)
    for axis in (0, 1):
        flipped = np.flip(heat, axis).copy(), np.flip(target, axis).copy()
        for score in SCORES:
            expected = score(heat, target)
            assert score(*flipped) == pytest.approx(expected, abs=1e-9, nan_ok=True)


@quick
@given(maps, targets)
def test_bounds_and_signs(heat, target):
    usable(heat, target)
    for score in (threshold_iou, pointing_game, auc_roc):
        assert 0 <= score(heat, target) <= 1
    assert contrast_to_noise(-heat, target) == pytest.approx(
        -contrast_to_noise(heat, target), nan_ok=True
    )
    assert auc_roc(-heat, target) == pytest.approx(1 - auc_roc(heat, target))
    assert auc_roc(heat, target) == pytest.approx(roc_auc_score(target.ravel(), heat.ravel()))


@quick
@given(targets, targets)
def test_iou_properties(mask, target):
    assume(0 < target.sum() < target.size)
    assert 0 <= iou(mask, target) <= 1 and 0 <= balanced_iou(mask, target) <= 1
    assert iou(target, target) == balanced_iou(target, target) == 1
    assert balanced_iou(mask, target) == pytest.approx(balanced_iou(~mask, ~target))
    if mask.any():
        assert iou(mask, target) == pytest.approx(iou(target, mask))


boxes = st.lists(st.tuples(*[st.integers(0, 9)] * 2, *[st.integers(1, 9)] * 2), max_size=4)


@quick
@given(boxes, boxes)
def test_boxes_unite(first, second):
    both = rasterise(first + second, 10)
    assert torch.equal(both, rasterise(first, 10) | rasterise(second, 10))
    assert torch.equal(both, rasterise(second + first + second, 10))


def test_whole_boxes_are_slices_and_scale_as_numbers():
    target = rasterise([[2, 1, 3, 4]], (8, 10))
    expected = torch.zeros(8, 10, dtype=torch.bool)
    expected[1:5, 2:5] = True
    assert torch.equal(target, expected)
    assert torch.equal(rasterise([[20, 10, 30, 40]], (8, 10), source_size=(80, 100)), expected)
    assert not rasterise([], 4).any()


def test_published_resizing_lets_boxes_grow():
    boxes = [[103, 203, 50, 50]]
    exact = rasterise(boxes, 64, source_size=1024)
    grown = rasterise(boxes, 64, source_size=1024, compat="published")
    assert (exact & ~grown).sum() == 0 and grown.sum() > exact.sum()
    with pytest.raises(ValueError, match="compat"):
        rasterise(boxes, 64, compat="other")


def test_cnr_by_hand():
    heat, target = torch.tensor([[1.0, 3.0], [0.0, 2.0]]), torch.tensor([[1, 1], [0, 0]]).bool()
    assert contrast_to_noise(heat, target) == pytest.approx((2 - 1) / math.sqrt(2 + 2))


def test_two_meanings_of_miou():
    """A mask of 5 % that misses a 15 % box: .40 under one meaning of mIoU, 0 under the other."""
    mask, target = torch.zeros(100, 100), torch.zeros(100, 100)
    mask[:5], target[50:65] = 1, 1
    assert balanced_iou(mask, target) == pytest.approx(0.40, abs=5e-3)
    assert threshold_iou(mask, target) == 0


def test_batches_are_scored_row_by_row():
    g = torch.Generator().manual_seed(0)
    heat, target = torch.rand(5, 8, 9, generator=g), torch.rand(5, 8, 9, generator=g) > 0.7
    for score in SCORES:
        rows = [score(h, t) for h, t in zip(heat, target, strict=True)]
        assert score(heat, target).tolist() == pytest.approx(rows)
    rows = [iou(h > 0.5, t) for h, t in zip(heat, target, strict=True)]
    assert iou(heat > 0.5, target).tolist() == pytest.approx(rows)


def test_degenerate_rows_of_a_batch_leave_the_others_alone():
    g = torch.Generator().manual_seed(1)
    heat, target = torch.rand(4, 6, 6, generator=g), torch.rand(4, 6, 6, generator=g) > 0.6
    target[1], heat[2] = False, 0.5
    mask = heat > 0.5
    for score in SCORES:
        rows = [score(h, t) for h, t in zip(heat, target, strict=True)]
        assert score(heat, target).tolist() == pytest.approx(rows, nan_ok=True)
        assert math.isnan(rows[1]) and math.isfinite(rows[0]) and math.isfinite(rows[3])
    for score in (iou, balanced_iou):
        rows = [score(h, t) for h, t in zip(mask, target, strict=True)]
        assert score(mask, target).tolist() == pytest.approx(rows, nan_ok=True)
        assert math.isnan(rows[1]) and math.isfinite(rows[0])
    heat[3, 0, 0] = math.inf
    with pytest.raises(ValueError, match="1 NaN or infinite"):
        contrast_to_noise(heat, target)


@quick
@given(targets, targets, st.sampled_from([0, 1]))
def test_mask_scores_ignore_flips(mask, target, axis):
    flipped = np.flip(mask, axis).copy(), np.flip(target, axis).copy()
    for score in (iou, balanced_iou):
        assert score(*flipped) == pytest.approx(score(mask, target), nan_ok=True)


@quick
@given(maps, st.integers(-6, 6))
def test_evaluate_ignores_positive_scaling(heat, power):
    assume(heat.max() > heat.min())
    box = [[1, 2, 3, 4]]
    first, second = (
        evaluate(torch.tensor(h), box, (12, 14), mask=torch.tensor(heat > heat.mean()))
        for h in (heat, heat * 2.0**power)
    )
    assert first.pop("note") == second.pop("note")
    assert first == pytest.approx(second, nan_ok=True)


def test_degenerate_cases_have_defined_answers():
    heat, empty = torch.rand(8, 8), torch.zeros(8, 8, dtype=torch.bool)
    half = empty.clone()
    half[:4] = True
    flat = torch.full((8, 8), 0.3, dtype=torch.float64)  # its mean is not 0.3: rounding
    assert math.isnan(contrast_to_noise(torch.where(half, flat, flat / 3), half))
    assert all(math.isnan(score(heat, empty)) for score in SCORES)
    assert math.isnan(iou(half, empty)) and math.isnan(balanced_iou(half, empty))
    assert math.isnan(auc_roc(heat, ~empty)) and math.isnan(contrast_to_noise(heat, ~empty))
    assert math.isnan(contrast_to_noise(flat, half)) and math.isnan(threshold_iou(flat, half))
    assert auc_roc(flat, half) == pointing_game(flat, half) == 0.5
    assert iou(empty, half) == 0 and balanced_iou(empty, half) == 0.25
    for score in SCORES:
        with pytest.raises(ValueError, match="1 NaN"):
            score(torch.where(torch.arange(64).view(8, 8) == 3, torch.nan, heat), half)
    with pytest.raises(ValueError, match="need equal"):
        iou(half, torch.zeros(4, 4))
    for bad in (heat, torch.full((8, 8), torch.nan)):
        with pytest.raises(ValueError, match="a mask has the values 0 and 1"):
            evaluate(heat, [(1.0, 1.0, 4.0, 4.0)], 8, mask=bad)
        with pytest.raises(ValueError, match="a mask has the values 0 and 1"):
            iou(half, bad)
    with pytest.raises(ValueError, match="at least one threshold"):
        threshold_iou(heat, half, ())
    with pytest.raises(ValueError, match="choose micro, macro or paper"):
        bootstrap([1.0, 2.0], average="mean")


def test_a_single_pixel_has_no_variance_and_the_note_says_so():
    found = evaluate(torch.rand(8, 8), [(2.0, 2.0, 1.0, 1.0)], np.int64(8))
    assert math.isnan(found["cnr"]) and found["note"] == "one pixel inside or outside"


def test_evaluate_keeps_other_scores_beside_an_empty_mask():
    heat = torch.rand(16, 16, generator=torch.Generator().manual_seed(0))
    found = evaluate(heat, [[0, 0, 32, 32]], 64, mask=torch.zeros(16, 16, dtype=torch.bool))
    assert set(found) == {*metrics.METRICS, "note"}
    assert found["note"] == "empty mask" and found["iou"] == found["mask_fraction"] == 0
    assert 0 < found["auc_roc"] < 1 and found["abs_cnr"] == abs(found["cnr"])
    assert evaluate(torch.ones(8, 8), [[0, 0, 9, 9]], 64)["note"] == "constant map, empty mask"
    assert evaluate(heat, [[70, 70, 9, 9]], 64)["note"] == "empty target"
    with pytest.raises(ValueError, match="NaN"):
        evaluate(torch.full((8, 8), torch.nan), [[0, 0, 9, 9]], 64)


TABLE = pd.DataFrame({"finding": ["a", "a", "a", "b"], "cnr": [1.0, 2.0, 3.0, 6.0]})


def test_three_averages():
    found = averages(TABLE)["cnr"]
    assert dict(found) == pytest.approx({"micro": 3, "macro": 4, "paper": (9 * 2 + 1 * 6) / 10})
    holes = pd.concat([TABLE, pd.DataFrame({"finding": ["b", "c"], "cnr": [np.nan] * 2})])
    assert dict(averages(holes)["cnr"]) == pytest.approx(dict(found))
    means, counts = pd.DataFrame({"cnr": {"a": 2.0, "b": 6.0}}), pd.Series({"a": 3, "b": 1})
    assert dict(class_averages(means, counts)["cnr"]) == pytest.approx(dict(found))


def test_bootstrap_covers_and_resamples_patients():
    rng = np.random.default_rng(0)
    patients = np.repeat(np.arange(40), 5)
    values = rng.normal(size=40)[patients] + 0.01 * rng.normal(size=200)
    grouped, single = bootstrap(values, patients), bootstrap(values)
    assert grouped.low < grouped.value < grouped.high
    assert grouped.value == single.value == pytest.approx(values.mean())
    assert grouped.high - grouped.low > 1.5 * (single.high - single.low)
    assert bootstrap(values, patients) == grouped  # same seed
    assert bootstrap(values, [f"p{p}" for p in patients]) == grouped
    assert "[" in str(grouped)


def test_bootstrap_of_other_averages_and_pairs():
    for average in ("micro", "macro", "paper"):
        found = bootstrap(TABLE.cnr, classes=TABLE.finding, average=average, n=50)
        assert found.value == pytest.approx(averages(TABLE).cnr[average])
    shifted = paired(TABLE.cnr + 1, TABLE.cnr, n=50)
    assert tuple(shifted) == pytest.approx((1, 1, 1))
    assert bootstrap([1, np.nan, 3], n=20).value == 2
    with pytest.raises(ValueError, match="no finite"):
        bootstrap([np.nan])
    with pytest.raises(ValueError, match="needs classes"):
        bootstrap([1.0], average="macro")
    with pytest.raises(ValueError, match="2 labels for 3"):
        bootstrap([1, 2, 3], ["a", "b"])


@pytest.mark.parametrize(
    ("boxes", "words"),
    [
        ([[1, 2, 3, 4, 0, 0.9]], "write one"),
        ([[0, 0, 4, 4], [1, 1, float("nan"), 2]], "box 1"),
        ([[5, 5, -2, 3]], "box 0"),
    ],
)
def test_what_is_no_box_is_refused(boxes, words):
    with pytest.raises(ValueError, match=words):
        metrics.rasterise(boxes, 16)


def test_masks_are_boolean_however_written():
    heat = torch.rand(8, 8, generator=torch.Generator().manual_seed(0))
    mask, boxes = heat > 0.6, [[4, 4, 8, 9]]
    found = [
        metrics.evaluate(heat, boxes, 20, mask=m)
        for m in (mask, mask.to(torch.uint8) * 255, mask.float())
    ]
    assert found[0] == found[1] == found[2]
    with pytest.raises(ValueError, match="threshold the map first"):
        metrics.iou(heat, mask)
