import pytest
import torch
from sklearn.mixture import GaussianMixture

from g2g_utils.masks import gmm_mask, mixture, remove_orphans


def blob(size=32, centre=(10, 20), radius=6.0):
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    distance = (y - centre[0]) ** 2 + (x - centre[1]) ** 2
    return torch.exp(-distance / (2 * radius**2))


def test_the_bright_region_is_foreground():
    mask = gmm_mask(blob())
    assert mask.dtype == torch.bool and mask.shape == (32, 32)
    assert mask[10, 20] and not mask[31, 0] and 0 < mask.double().mean() < 0.5


def test_scale_and_shift_do_not_matter():
    heat = blob() + 0.05 * torch.rand(32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(gmm_mask(heat), gmm_mask(1e-4 * heat + 3))
    assert torch.equal(gmm_mask(heat, seed=0), gmm_mask(heat, seed=1))


@pytest.mark.parametrize("side", [8, 16, 33])
def test_the_mixture_is_scikit_learns(side):
    generator = torch.Generator().manual_seed(side)
    for power in (1, 2, 5):
        noisy = blob(side, (side // 3, side // 2), side / 6)
        heat = noisy + 0.1 * torch.rand(side, side, generator=generator) ** power
        expected = GaussianMixture(2, random_state=3).fit(heat.reshape(-1, 1).numpy())
        weights, means, deviations = mixture(heat, 3)
        assert weights.tolist() == expected.weights_.tolist()
        assert means.tolist() == expected.means_[:, 0].tolist()
        assert deviations.tolist() == (expected.covariances_[:, 0, 0] ** 0.5).tolist()


def test_orphans_go_and_the_border_stays():
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[2:5, 2:5] = True
    mask[6, 6] = mask[0, 7] = True
    mask[3, 3] = False
    filtered = remove_orphans(mask)
    assert not filtered[6, 6] and filtered[3, 3] and filtered[0, 7]
    assert filtered[2, 3] and not filtered[2, 2]  # 5 and 3 of 9


def test_degenerate_maps():
    assert not gmm_mask(torch.full((8, 8), 0.3)).any()
    two = torch.zeros(8, 8)
    two[:4] = 1
    assert gmm_mask(two).sum() == 32
    with pytest.raises(ValueError, match="NaN"):
        gmm_mask(torch.full((8, 8), float("nan")))
    with pytest.raises(ValueError, match="one finite map"):
        gmm_mask(torch.rand(1, 8, 8))
    assert gmm_mask(torch.tensor([[0.0, 1.0], [0.0, 1.0]])).tolist() == [[False, True]] * 2
    assert gmm_mask(two.requires_grad_()).sum() == gmm_mask(two.detach().numpy()).sum() == 32
