"""Numerical parity with outputs of the published code on small random inputs.

The repository carries a part of the reference vectors (tests/vectors, cut by its cut.py); where the
full ones lie in $G2G_SHARED/reference, the same tests run over them too.
"""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel

from g2g_utils import bbm, masks, metrics
from g2g_utils.attention import CrossAttentionRecorder, Stack

SHARED = Path(os.environ.get("G2G_SHARED", Path(__file__).parents[3] / "shared"))
SOURCES = {"cut": Path(__file__).parents[1] / "vectors", "full": SHARED / "reference"}
CURVES = ("linear", "quadratic", "mixture")


@pytest.fixture(scope="module", params=["cut", pytest.param("full", marks=pytest.mark.slow)])
def folder(request):
    """Folder of reference vectors: those of the repository, then the full ones."""
    path = SOURCES[request.param]
    if request.param == "full" and not path.is_dir():
        pytest.skip(f"no full vectors at {path}; the repository's part was tested (G2G_SHARED)")
    return path


def tensor(array):
    return torch.from_numpy(np.asarray(array)).float()


def network(spec, inputs):
    """The reference U-Net; weights are stored one by one, or as one array sorted by name."""
    unet = UNet2DConditionModel(**spec["config"]).eval()
    state = dict(sorted(unet.state_dict().items()))
    if "weights" in inputs.files:
        parts = tensor(inputs["weights"]).split([w.numel() for w in state.values()])
        state = {k: part.view_as(state[k]) for k, part in zip(state, parts, strict=True)}
    else:
        state = {k: tensor(inputs[f"w.{k}"]) for k in state}
    unet.load_state_dict(state)
    return unet


@pytest.fixture(scope="module")
def spec(folder):
    return json.loads((folder / "unet.json").read_text())


@pytest.fixture(scope="module")
def reference(folder):
    return np.load(folder / "unet_outputs.npz")


@pytest.fixture(scope="module")
def recorded(folder, spec):
    """Recorders over the reference runs: GT layers, start-token and text biases."""
    inputs = np.load(folder / "unet_inputs.npz")
    unet = network(spec, inputs)
    runs = {
        "gt": CrossAttentionRecorder(unet, keep="layers", also=[Stack([0], dtype=torch.float32)]),
        "text": CrossAttentionRecorder(unet, spec["tokens"], keep="steps"),
    }
    states = tensor(inputs["ehs"])
    for name, run in runs.items():
        latents = inputs["lat_tx" if name == "text" else "lat_gt"]
        with run, torch.no_grad():
            for sample, t in zip(latents, inputs["timesteps"], strict=True):
                unet(tensor(sample), int(t), states)
    return runs


def test_layers_come_in_the_published_order(spec, recorded):
    assert recorded["gt"].layers == spec["layers"]


def test_token_and_layer_means(spec, recorded, reference):
    maps = recorded["gt"].maps()  # b l n h w
    tokens = spec.get("positions", list(range(maps.shape[2])))
    assert_close(maps.mean(1)[:, tokens], reference["token_mean"], 5e-3)
    layers = reference["layer_mean_token1"]
    assert_close(maps[: len(layers), :, 1], layers, 5e-3)


def test_activation_bias_and_curves(spec, recorded, reference):
    start = recorded["gt"].accumulators[1]
    size = recorded["gt"].latent_size
    activations = recorded["gt"].mean(spec["tokens"])
    for b in range(len(spec["tokens"])):
        samples = start.sample(b), recorded["text"].sample(b)
        first, second = (list(maps.by_step().values()) for maps in samples)  # each T h w
        means = bbm.native_mean(first, size), bbm.native_mean(second, size)
        for mean, kind in zip(means, ("image", "text"), strict=True):
            ours = (bbm.minmax(mean) * 255).to(torch.uint8)
            theirs = torch.from_numpy(reference[f"{kind}_bias_{b}"])
            assert (ours.int() - theirs.int()).abs().max() <= 2
        c = bbm.confidence(*means)
        assert c == pytest.approx(float(reference[f"confidence_{b}"]), abs=1e-3)
        assert_close(bbm.minmax(activations[b]), reference[f"activation_{b}"], 5e-3)
        m = bbm.interaction_native(first, second, size)
        assert_close(m, reference[f"interaction_{b}"], 8e-3)
        for curve in CURVES:
            assert_close(bbm.merge(activations[b], m, c, curve), reference[f"{curve}_{b}"], 8e-3)


def test_bias_merging(folder):
    stored = np.load(folder / "bbm.npz")
    cases = [key.removeprefix("confidence_") for key in stored.files if "confidence" in key]
    assert len(cases) >= 3
    for k in cases:
        image, text, activation = (
            tensor(stored[f"{n}_{k}"]) for n in ("image_bias", "text_bias", "activation")
        )
        c = bbm.confidence(image.mean((0, 1, 2)), text.mean((0, 1, 2)))
        assert c == pytest.approx(float(stored[f"confidence_{k}"]), abs=1e-3)
        m = bbm.interaction(image[:, :, 0], text)
        assert_close(m, stored[f"interaction_{k}"], 8e-3)
        a = activation.reshape(-1, *activation.shape[-2:]).mean(0)  # the part carries the mean
        for curve in CURVES:
            assert_close(bbm.merge(a, m, c, curve), stored[f"{curve}_{k}"], 8e-3)


@pytest.mark.parametrize("k", range(4))
def test_mask_and_metrics(reference, k):
    heat = tensor(reference[f"heat_{k}"])
    mask = masks.gmm_mask(heat)
    assert (mask != torch.from_numpy(reference[f"mask_{k}"])).double().mean() <= 2e-3
    found = metrics.evaluate(heat, reference[f"boxes_{k}"], 512)
    ours = [found[n] for n in ("cnr", "iou", "balanced_iou", "pointing", "auc_roc")]
    assert ours == pytest.approx(list(reference[f"metrics_{k}"]), abs=1e-3)


def assert_close(ours, theirs, tolerance):
    assert ours.shape == theirs.shape
    assert (ours - tensor(theirs)).abs().max() < tolerance
