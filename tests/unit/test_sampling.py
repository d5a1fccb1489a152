"""Inputs of the U-Net: keyed noise, the schedule, and one more input beside the table's."""

import pytest
import torch

from g2g_utils import sampling
from g2g_utils.grounding import ground
from tests.duck import Model


@pytest.fixture(scope="module")
def model():
    return Model()


@pytest.fixture(scope="module")
def images():
    return torch.rand(3, 1, 32, 32, generator=torch.Generator().manual_seed(1))


def test_noise_may_be_drawn_several_times(model, images):
    posterior = sampling.posterior(model, images[:2])
    first, again = (sampling.noised(model, posterior, 500, 0) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    latents, noise = sampling.noised(model, posterior, 500, 0, draw=1)
    assert not torch.allclose(latents, first[0]) and not torch.allclose(noise, first[1])
    alone, _ = sampling.noised(model, sampling.posterior(model, images[1:2]), 500, 0)
    assert torch.equal(alone[0], first[0][1])
    assert sampling.timesteps(model, 5) == sorted(sampling.timesteps(model, 5), reverse=True)


def test_noise_is_that_of_the_schedule(model, images):
    posterior = sampling.posterior(model, images[:1])
    latents, noise = sampling.noised(model, posterior, 999, 0)
    kept = model.scheduler.alphas_cumprod[999]
    assert (latents - (1 - kept).sqrt() * noise).abs().max() < 4 * kept.sqrt()
    assert noise.shape == latents.shape == (1, *model.latent_shape)


def test_grey_and_colour_mix_in_a_batch(model, images):
    colour = images[1].expand(3, -1, -1)
    both = sampling.posterior(model, [images[0], colour])
    assert torch.equal(both.mean[0], sampling.posterior(model, images[:1]).mean[0])
    assert both.digests[1] != sampling.posterior(model, images[1:2]).digests[0]


def test_guidance_doubles_the_rows(model):
    states, start = torch.zeros(2, 12, 16), sampling.noise(model, ("start",), 2)
    for guidance, rows in ((1.0, 2), (4.0, 4)):
        seen = []
        forwards = sampling.denoise(model, start, states, 3, guidance)
        sampling.run(model, forwards, lambda f, seen=seen: seen.append(f) or torch.no_grad())
        assert [len(f.latents) for f in seen] == [rows] * 3
        assert [list(f.steps) for f in seen] == [[0], [1], [2]]
        assert torch.equal(seen[0].latents[:2], start)


def test_drawing_starts_from_the_same_noise_under_any_guidance(model):
    plain, guided = (sampling.drawing(model, "left effusion", 3, g) for g in (1.0, 4.0))
    assert plain.shape == guided.shape == (4, *model.latent_shape)
    assert torch.equal(plain[0], guided[0]) and not torch.equal(plain[1], guided[1])
    empty = [sampling.drawing(model, "", 2, g) for g in (1.0, 4.0)]
    assert torch.allclose(*empty, atol=1e-4)


@pytest.mark.parametrize("curve", [None, "linear"])
def test_an_input_may_run_forwards_that_are_not_recorded(model, images, monkeypatch, curve):
    """As DDIM inversion does: a trajectory first, then the window of steps in one batch."""

    def twice(model, asked):
        for forward in sampling.ground_truth(model, asked):
            rows = forward.latents[:1], forward.timesteps[:1], forward.states[:1] * 0
            predicted = yield sampling.Forward(*rows, range(0))
            assert predicted.shape == rows[0].shape
            yield forward

    plain = ground(model, images[0], "edema", timesteps=5, steps=(1, 3), curve=curve)
    monkeypatch.setitem(sampling.INPUTS, "gt", twice)
    found = ground(model, images[0], "edema", timesteps=5, steps=(1, 3), curve=curve)
    assert torch.allclose(found.heatmap, plain.heatmap, atol=1e-6)
