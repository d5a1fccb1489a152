import pytest
import torch

from g2g_utils import bbm
from g2g_utils.attention import upsample


def biases(t=3, size=16, seed=0):
    """Native-resolution image and text biases of three layers."""
    g = torch.Generator().manual_seed(seed)
    sides = (size, size // 2, size // 4)
    return tuple([torch.rand(t, s, s, generator=g) for s in sides] for _ in range(2))


def upsampled(maps, size):
    return torch.stack([upsample(m, size) for m in maps], 1)  # t l h w


def test_interaction_is_a_mean_of_products():
    image, text = (upsampled(m, (16, 16)) for m in biases())
    looped = sum(image[t, k] @ text[t, k] for t in range(3) for k in range(3)) / 9
    assert torch.allclose(bbm.interaction(image, text), bbm.minmax(looped), atol=1e-5)
    product_of_means = bbm.minmax(image.mean((0, 1)) @ text.mean((0, 1)))
    assert (product_of_means - bbm.interaction(image, text)).abs().max() > 1e-2


def test_interaction_over_tokens_is_linear():
    image = torch.rand(2, 3, 8, 8)
    text = torch.rand(2, 3, 4, 8, 8)
    looped = (image[:, :, None] @ text).mean((0, 1, 2))
    assert torch.allclose(bbm.interaction(image, text), bbm.minmax(looped), atol=1e-5)


@pytest.mark.parametrize("size", [16, 20])
def test_native_resolution_gives_the_same_interaction(size):
    """A whole factor uses the cheap product, any other upsamples first."""
    image, text = biases(size=16)
    frame = (size, size)
    full = bbm.interaction(upsampled(image, frame), upsampled(text, frame))
    assert torch.allclose(bbm.interaction_native(image, text, frame), full, atol=1e-5)
    mean = upsampled(image, frame).mean((0, 1))
    assert torch.allclose(bbm.native_mean(image, frame), mean, atol=1e-6)


def test_products_do_not_depend_on_how_timesteps_arrive():
    image, text = biases(size=16)
    whole, parts = bbm.Products(text, (16, 16)), bbm.Products(text, (16, 16))
    whole.add(image)
    for t in range(len(image[0])):
        parts.add([maps[t : t + 1] for maps in image])
        if t == 0:
            kept = parts.nbytes
    assert parts.nbytes == kept  # does not grow with T
    assert torch.allclose(parts.interaction(), whole.interaction(), atol=1e-6)
    mean = bbm.native_mean(image, (16, 16))
    together = bbm.confidence(mean, bbm.native_mean(text, (16, 16)))
    assert parts.merging()[1] == pytest.approx(together, abs=1e-3)


def test_products_need_every_timestep_once():
    image, text = biases(size=16)
    products = bbm.Products(text, (16, 16))
    products.add([maps[:1] for maps in image])
    with pytest.raises(ValueError, match="1 of"):
        products.interaction()
    with pytest.raises(ValueError, match="differ"):
        products.add(image)


def test_interaction_needs_square_and_alike_maps():
    with pytest.raises(ValueError, match="not square"):
        bbm.interaction(torch.rand(1, 1, 4, 6), torch.rand(1, 1, 4, 6))
    with pytest.raises(ValueError, match="text bias"):
        bbm.interaction(torch.rand(1, 2, 4, 4), torch.rand(1, 1, 4, 4))
    with pytest.raises(ValueError, match="1 of 2 timesteps"):
        bbm.interaction_native([torch.rand(1, 4, 4)], [torch.rand(2, 4, 4)], (4, 4))
    with pytest.raises(ValueError, match="differ"):
        bbm.interaction_native([torch.rand(2, 4, 4)], [torch.rand(2, 8, 8)], (8, 8))


def test_confidence_is_similarity_without_negatives():
    a = torch.rand(16, 16)
    assert bbm.confidence(a, 3 * a + 1) == pytest.approx(1)
    assert bbm.confidence(a, -a) == 0
    assert 0 <= bbm.confidence(a, torch.rand(16, 16)) < 1
    with pytest.raises(ValueError, match="smaller"):
        bbm.confidence(torch.rand(4, 4), torch.rand(4, 4))
    for bias in ((a, a * float("nan")), (a / 0, a)):
        with pytest.raises(ValueError, match="NaN or infinite"):
            bbm.confidence(*bias)


@pytest.mark.parametrize("curve", ["linear", "quadratic", "mixture"])
def test_curves_run_from_activation_to_interaction(curve):
    a, m = bbm.minmax(torch.rand(8, 8)), bbm.minmax(torch.rand(8, 8))
    assert torch.equal(bbm.merge(a, m, 0.0, curve), a)
    assert torch.equal(bbm.merge(a, m, 1.0, curve), m)
    assert torch.allclose(bbm.merge(5 * a + 2, m, 0.3, curve), bbm.merge(a, m, 0.3, curve))


def test_mixture_adds_the_overlap_to_the_linear_curve():
    a, m = bbm.minmax(torch.rand(8, 8)), bbm.minmax(torch.rand(8, 8))
    linear, mixture = (bbm.merge(a, m, 0.4, curve) for curve in ("linear", "mixture"))
    assert torch.allclose(mixture, linear + 0.24 * a * m, atol=1e-6)
    with pytest.raises(ValueError, match="cubic"):
        bbm.merge(a, m, 0.5, "cubic")
    for c in (-0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match="confidence"):
            bbm.merge(a, m, c)
    with pytest.raises(ValueError, match=r"\(8, 8\) and \(8,\)"):
        bbm.merge(a, m[0], 0.5)


def test_minmax_of_each_map_and_of_a_constant():
    maps = torch.stack([torch.arange(4.0).view(2, 2), torch.full((2, 2), 7.0)])
    scaled = bbm.minmax(maps)
    assert torch.allclose(scaled[0], maps[0] / 3) and not scaled[1].any()
