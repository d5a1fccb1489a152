"""Frechet distances: closed form, intervals over images, gaps between arms, two networks."""

import numpy as np
import pytest
import torch
from scipy import linalg

from g2g_utils.bench import fidelity
from g2g_utils.models.image_text import ImageBranch


def normal(n: int, shift: float = 0.0, seed: int = 0) -> np.ndarray:
    """Features [n, 4] around `shift`, correlated."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, 4)) @ np.triu(np.ones((4, 4))) + shift


def test_distance_is_that_of_the_matrix_square_root() -> None:
    a, b = fidelity.moments(normal(300)), fidelity.moments(normal(300, 0.5, 1) * 1.3)
    root = linalg.sqrtm(a[1] @ b[1]).real
    expected = ((a[0] - b[0]) ** 2).sum() + np.trace(a[1] + b[1] - 2 * root)
    assert fidelity.frechet_of_moments(a, b) == pytest.approx(expected, rel=1e-6)
    assert fidelity.frechet_of_moments(a, a) == pytest.approx(0, abs=1e-6)


def test_too_few_images_are_refused() -> None:
    with pytest.raises(ValueError, match="4 samples for 4 features"):
        fidelity.moments(normal(4))


def test_interval_holds_the_estimate_and_is_never_negative() -> None:
    real = fidelity.moments(normal(500))
    near = fidelity.frechet_interval(normal(60, seed=1), real, 50)
    far = fidelity.frechet_interval(normal(60, 2.0, 2), real, 50)
    assert 0 <= near.low <= near.value <= near.high < far.low <= far.value <= far.high


def test_gap_is_positive_only_where_the_first_arm_is_further_away() -> None:
    real = fidelity.moments(normal(500))
    bad, good = [normal(80, 1.5, s) for s in (1, 2)], [normal(80, 0.0, s) for s in (3, 4)]
    assert fidelity.frechet_gap(bad, good, real, 50).low > 0
    assert fidelity.frechet_gap(good, bad, real, 50).high < 0
    same = fidelity.frechet_gap(good, good, real, 50)
    assert same.value == 0 and same.low < 0 < same.high


def test_networks_with_three_channels_take_grey_images() -> None:
    images = torch.rand(3, 1, 16, 16)
    for channels in (1, 3):
        network = torch.nn.ModuleDict({"branch": ImageBranch(channels, 8)})
        assert fidelity.extract(network, images, batch_size=2).shape == (3, 8)


def test_alike_images_have_a_similarity_of_one():
    generator = torch.Generator().manual_seed(0)
    one = torch.rand(1, 1, 64, 64, generator=generator)
    different = torch.rand(6, 1, 64, 64, generator=generator)
    assert fidelity.alikeness(one.expand(5, -1, -1, -1)) == pytest.approx([1, 1])
    found = fidelity.alikeness(different)
    assert found.shape == (3,) and (found < 0.5).all()
