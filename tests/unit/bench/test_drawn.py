"""Scores of drawn films: agreement with findings, and NIQE of this world."""

import numpy as np
import pytest
import torch
from scipy.stats import gennorm

from g2g_utils.bench import drawn, fidelity
from g2g_utils.data.record import FINDINGS


def test_agreement_is_the_overlap_of_findings():
    seen = [{"Edema"}, {"Edema", "Pneumonia"}, set(), set()]
    asked = [{"Edema"}, {"Edema"}, set(), {"Edema"}]
    assert drawn.overlap(seen, asked).round(3).tolist() == [1, 0.667, 1, 0]


def test_the_classifier_names_what_it_finds_likelier_than_not():
    classifier = fidelity.build_classifier(0).eval()
    with torch.no_grad():
        classifier["head"].weight.zero_()
        classifier["head"].bias.fill_(-1)
        classifier["head"].bias[1] = 1
    films = torch.rand(3, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    assert drawn.findings(classifier, films, batch=2) == [{FINDINGS[1]}] * 3


@pytest.mark.parametrize("shape", [0.7, 1.0, 2.0])
def test_the_shape_of_a_generalised_normal_is_found(shape):
    x = gennorm.rvs(shape, size=(1, 200_000), random_state=0)
    found = drawn.asymmetric(x)[0]
    assert abs(found[0] - shape) < 0.05 * shape and abs(found[1]) < 0.05
    wider = drawn.asymmetric(np.where(x < 0, 2 * x, x))[0]
    assert abs(wider[2] / wider[3] - 4) < 0.2 and wider[1] < 0


def films(n, seed, noise=0.0):
    rng = np.random.default_rng(seed)
    side = np.linspace(0, 6, 64)
    smooth = np.sin(side[:, None] + rng.uniform(0, 6, (n, 1, 1))) * np.cos(side) * 0.3 + 0.5
    grain = rng.normal(0, 0.03 + noise, (n, 64, 64))
    return np.clip(smooth + grain, 0, 1)


def test_niqe_grows_with_damage():
    good = drawn.statistics_of(films(40, 0))
    assert good.shape == (160, 36) and np.isfinite(good).all()
    same, noisy = drawn.niqe(films(40, 1), good), drawn.niqe(films(40, 1, 0.1), good)
    blurred = films(40, 1)
    blurred = (blurred + np.roll(blurred, 1, 1) + np.roll(blurred, 1, 2)) / 3
    assert same < noisy and same < drawn.niqe(blurred, good)
    assert drawn.niqe(films(40, 0), good) < 1e-6
    assert np.isfinite(drawn.statistics_of(np.zeros((1, 64, 64)))).all()
    with pytest.raises(ValueError, match="patches have 32"):
        drawn.statistics_of(np.zeros((1, 16, 16)))
