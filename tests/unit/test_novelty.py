"""Novelty: features that do not depend on the rest, distances that are Mahalanobis's, verdicts."""

import json

import numpy as np
import pytest
import torch
from scipy.spatial.distance import mahalanobis

from g2g_utils import novelty
from tests import duck


class Model(duck.Model):
    """The duck with a decoder: the exact inverse of its projection."""

    def decode(self, latents):
        return torch.nn.functional.pixel_shuffle(latents / 2 + 0.5, 2)


@pytest.fixture(scope="module")
def model():
    return Model()


@pytest.fixture(scope="module")
def films():
    """Smooth images [32, 32] of one kind."""
    draw, grid = np.random.default_rng(0), np.mgrid[0:32, 0:32].astype(np.float32) / 32
    return [
        (0.5 + 0.3 * np.sin(3 * grid[0] + draw.random()) * np.cos(2 * grid[1])).astype(np.float32)
        for _ in range(24)
    ]


def test_features_have_the_documented_length_and_repeat(model, films):
    found = novelty.features(model, films[0])
    assert found.shape == (2 + novelty.TIMESTEPS + 2 * 4,) and found.dtype == torch.float32
    assert torch.isfinite(found).all()
    assert torch.equal(found, novelty.features(model, films[0]))
    assert not torch.equal(found, novelty.features(model, films[0], seed=1))
    colour = novelty.features(model, torch.as_tensor(films[0])[None].expand(3, -1, -1))
    noise = slice(2, 2 + novelty.TIMESTEPS)  # drawn for the pixels, colours included
    assert torch.allclose(np.delete(found, noise), np.delete(colour, noise), atol=1e-4)


def test_the_error_of_the_autoencoder_is_a_root_mean_square(model, films, monkeypatch):
    monkeypatch.setattr(model, "decode", lambda z: Model.decode(model, z) + 0.01)
    error, relative = novelty.features(model, films[0])[:2].exp().tolist()
    assert error == pytest.approx(0.01, rel=1e-3)
    assert relative == pytest.approx(0.01 / films[0].std(ddof=1), rel=1e-3)


def test_distances_are_those_of_scipy_and_shrink_to_zero_at_the_mean():
    draw = np.random.default_rng(1)
    rows = [torch.tensor(draw.normal(size=5)) for _ in range(40)]
    reference = novelty.fit(rows, rows[:9])
    other = draw.normal(size=5)
    expected = mahalanobis(other, reference.mean, reference.precision)
    assert float(reference.distance(other)) == pytest.approx(expected)
    assert float(reference.distance(reference.mean)) == pytest.approx(0, abs=1e-9)


def test_the_limit_keeps_the_usual_share_of_validation_images():
    flat = np.eye(1)
    reference = novelty.Reference(np.zeros(1), flat, np.arange(1.0, 21.0))
    assert reference.limit == 20  # 19 of 20 are 95 %; the limit itself is not beyond the limit
    kept = [reference.judge(np.array([d])).flagged for d in (1.0, 20.0, 20.1)]
    assert kept == [False, False, True]
    assert reference.judge(np.array([20.1])).usual == 0
    assert reference.judge(np.array([11.0])).usual == 0.5


def test_a_reference_survives_json():
    rows = [torch.randn(4, generator=torch.Generator().manual_seed(s)) for s in range(9)]
    reference = novelty.fit(rows[:6], rows[6:])
    again = novelty.from_json(json.loads(json.dumps(reference.as_json())))
    assert again.limit == reference.limit
    assert float(again.distance(rows[0])) == float(reference.distance(rows[0]))


def test_foreign_pictures_are_farther_than_held_back_ones(model, films):
    found = [novelty.features(model, film) for film in films]
    reference = novelty.fit(found[:16], found[16:])
    noise = np.random.default_rng(0).random((32, 32), np.float32)
    for foreign in (noise, 1 - films[0], np.zeros((32, 32), np.float32)):
        assert reference.judge(novelty.features(model, foreign)).flagged


@pytest.mark.parametrize(("training", "validation"), [(1, 3), (5, 0)])
def test_too_few_images_are_one_line(training, validation):
    rows = [torch.zeros(3)] * 9
    with pytest.raises(ValueError, match=r"novelty is calibrated on at least two and one"):
        novelty.fit(rows[:training], rows[:validation])
