"""Dice as published and of positives, MGCA's and MedKLIP's numbers, few labels, frozen encoders."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from g2g_utils.bench import dense
from g2g_utils.data import phantoms
from g2g_utils.models import g2d
from g2g_utils.training import g2d as training

VECTORS = Path(__file__).parents[2] / "vectors" / "g2d.npz"


@pytest.fixture(scope="module")
def vectors():
    stored = np.load(VECTORS)
    return {name: torch.from_numpy(np.asarray(stored[name])) for name in stored.files
            if stored[name].dtype.kind != "U"}  # fmt: skip


def test_dice_of_mgca(vectors):
    logits, target = vectors["mgca/logits"], vectors["mgca/target"] > 0
    ours = dense.published_dice(logits.sigmoid() > 0.5, target)
    assert torch.allclose(ours, vectors["mgca/get_dice_single"].double(), atol=1e-5)
    assert float(ours.mean()) == pytest.approx(float(vectors["mgca/get_dice"]), abs=1e-5)
    nothing = dense.published_dice(torch.zeros_like(target), target).mean()
    assert float(nothing) == pytest.approx(
        float(vectors["mgca/get_dice_all_empty_prediction"]), abs=1e-5
    )
    assert float(nothing) == float((~target.flatten(1).any(1)).double().mean())


def test_loss_of_mgca(vectors):
    logits, target = vectors["mgca/logits"], vectors["mgca/target"].float()
    ours = dense.mixed_loss(logits, target)
    assert float(ours) == pytest.approx(float(vectors["mgca/mixed_loss"]), abs=1e-5)


def test_overlaps_of_medklip(vectors):
    known = vectors["medklip/labels"][:, 0] == 1
    found = dense.overlaps(vectors["medklip/pred"] > 0.008, vectors["medklip/seg"] > 0)
    for name in ("iou", "dice"):
        theirs = vectors[f"medklip/{name}"].double()
        assert torch.allclose(found[name][known], theirs, atol=1e-5)


def test_dice_of_empty_images():
    full, empty = torch.ones(1, 4, 4, dtype=torch.bool), torch.zeros(1, 4, 4, dtype=torch.bool)
    assert dense.published_dice(empty, empty) == 1 and dense.published_dice(full, empty) == 0
    assert dense.published_dice(empty, full) == 0 and dense.published_dice(full, full) == 1
    assert dense.positive_dice(empty, empty).isnan() and dense.positive_dice(empty, full) == 0


def test_the_threshold_has_the_best_dice():
    target = torch.zeros(3, 8, 8, dtype=torch.bool)
    target[:, 2:5, 2:5] = True
    maps = target * 0.5 + torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0)) * 0.4
    threshold = dense.best_threshold(maps, target)
    assert float(dense.overlaps(maps > threshold, target)["dice"].mean()) > 0.95


def test_labels_are_the_same_for_all_and_hold_the_finding():
    targets = torch.zeros(40, 4, 4, dtype=torch.bool)
    targets[::8] = True
    rows = dense.draw_labels(targets, 20, 3)
    assert torch.equal(rows, dense.draw_labels(targets, 20, 3)) and len(set(rows.tolist())) == 20
    assert not torch.equal(rows, dense.draw_labels(targets, 20, 4))
    thin = dense.draw_labels(targets, 40, 3, thin=True)
    assert len(thin) == 10 and targets[thin].flatten(1).any(1).sum() == 5
    with pytest.raises(ValueError, match="none of the 20 labelled images of draw 0"):
        dense.draw_labels(torch.zeros(40, 4, 4, dtype=torch.bool), 20, 0)
    with pytest.raises(ValueError, match="50 labels of 40 images"):
        dense.draw_labels(targets, 50, 0)


def test_masks_of_another_size_are_one_line():
    region = SimpleNamespace(finding="Edema", mask=np.zeros((8, 9), bool))
    film = SimpleNamespace(image_id="x1", regions=[region])
    assert not dense.task_masks([film], ["Pneumonia"], 8).any()
    with pytest.raises(ValueError, match="image x1: the mask of Edema is 8×9, the image 8×8"):
        dense.task_masks([film], ["Edema"], 8)
    with pytest.raises(ValueError, match="image x1"):
        dense.task_masks([film], None, 8)


@pytest.fixture(scope="module")
def films():
    return phantoms.generate(10, 0, "train", size=32)


@pytest.fixture(scope="module")
def network():
    return training.build(g2d.Shape(32, 10, joint=16, heads=2), 0)


@pytest.mark.parametrize("fresh", [True, False])
def test_frozen_means_frozen(network, films, fresh):
    before = {k: v.clone() for k, v in network.state_dict().items()}
    images = torch.from_numpy(np.stack([f.array() for f in films]))[:, None].float()
    maps = dense.levels(network, images)
    targets = dense.task_masks(films, dense.FINDINGS, 32)
    unet = dense.fit_decoder(network, maps, targets, fresh=fresh, draw=0, steps=3, batch=4)
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    encoder = network.img_model.encoder.state_dict()
    assert all(torch.equal(v, encoder[k]) for k, v in unet.encoder.state_dict().items())
    decoder = network.img_model.decoder.state_dict()
    assert any(not torch.equal(v, decoder[k]) for k, v in unet.decoder.state_dict().items())
    assert dense.predict(unet, maps).shape == targets.shape
    again = dense.fit_decoder(network, maps, targets, fresh=fresh, draw=0, steps=3, batch=4)
    pairs = zip(unet.state_dict().values(), again.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_probes():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 5))
    truth = np.stack([x[:, 0] > 0, x[:, 1] > 0, np.zeros(60, bool)], 1)
    scores = dense.linear_probe(x[:40], truth[:40], x[40:])
    assert dense.macro_auc(truth[40:], scores) > 0.9 and not scores[:, 2].any()
    prompts = torch.eye(3)
    found = dense.zero_shot(torch.eye(3)[:2], prompts, -prompts)
    assert np.allclose(found, [[2, 0, 0], [0, 2, 0]])


def test_masks_against_lesions():
    attention = torch.rand(4, 2, 8, 8, generator=torch.Generator().manual_seed(1))
    large = attention.mean(1).repeat_interleave(4, 1).repeat_interleave(4, 2)
    lesions = large > torch.quantile(large.flatten(1), 0.85, dim=1)[:, None, None]
    lesions[3] = False
    found = dense.mask_scores(attention, lesions)
    assert set(found) == {*dense.CUTS, "shuffled"}
    assert torch.allclose(found["85th"]["iou"][:3], torch.ones(3, dtype=torch.float64))
    assert all(s["iou"][3].isnan() and s["iou"][:3].isfinite().all() for s in found.values())
    same = dense.spread(attention[:1].expand(4, -1, -1, -1))
    assert (
        same["between"] == pytest.approx(0, abs=1e-9) and dense.spread(attention)["between"] > 0.5
    )


def test_intervals_over_patients_and_runs():
    rng = np.random.default_rng(0)
    people = [f"p{k // 2}" for k in range(60)]
    gap = 0.2 + rng.normal(size=(60, 1)) * 0.1 + rng.normal(size=(1, 5)) * 0.05
    found = dense.crossed(gap, people)
    assert found.low < found.value < found.high and found.low > 0
    same = gap.mean(1, keepdims=True) + np.zeros((60, 5))
    assert np.ptp(dense.crossed(same, people)[1:]) < np.ptp(found[1:])  # draws widen it
    gap[3] = np.nan
    assert dense.crossed(gap, people).value == pytest.approx(np.nanmean(gap))
    with pytest.raises(ValueError, match="no image counts"):
        dense.crossed(np.full((4, 2), np.nan), ["a"] * 4)
