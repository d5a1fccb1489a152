"""BioViL: published file format and protocol on a stand-in, and the one cosine map of both."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch.nn import functional as F

from g2g_utils import config, models
from g2g_utils.bench.benchmark import score
from g2g_utils.data.record import Example
from g2g_utils.experiment import products
from g2g_utils.methods import biovil
from g2g_utils.methods.base import Query
from g2g_utils.methods.two_tower import cosine_map

IMAGE = np.random.default_rng(0).random((512, 512), np.float32)


@pytest.fixture(scope="module")
def standins(script):
    return script("tests/standins.py")


@pytest.fixture(scope="module")
def files(standins, tmp_path_factory):
    folder = tmp_path_factory.mktemp("biovil")
    image = standins.biovil_image(folder / "image.pt")
    return image, standins.cxr_bert(folder / "cxr_bert")


@pytest.fixture(scope="module")
def baseline(files):
    return biovil.published(files[0], str(files[1]), None, 77)


def heatmap(baseline, image, phrase):
    """The published one's map of an image [S, S]."""
    query = Query(torch.as_tensor(np.asarray(image, np.float32))[None], phrase)
    return baseline.grounder("BioViL").ground([query])[0].values


def test_keys_and_shapes_are_those_of_the_published_file(files):
    """Names as torchvision's ResNet-50 and BioViL's projector have them."""
    state = torch.load(files[0], weights_only=True)
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    trunk = "encoder.encoder."
    assert shapes[trunk + "conv1.weight"] == (64, 3, 7, 7)
    assert shapes[trunk + "layer1.0.downsample.0.weight"] == (256, 64, 1, 1)
    assert shapes[trunk + "layer4.2.conv3.weight"] == (2048, 512, 1, 1)
    assert shapes[trunk + "layer3.5.bn2.running_var"] == (256,)
    assert shapes["projector.model.0.weight"] == (128, 2048, 1, 1)
    assert shapes["projector.model.3.bias"] == (128,) and "projector.model.0.bias" not in shapes
    used = [n for n in shapes if n.startswith(trunk) and ".fc." not in n]
    assert sum(np.prod(shapes[n]) for n in used if "running" not in n and "num_" not in n) == (
        25557032 - 2049000  # torchvision's ResNet-50 without its last layer
    )


def test_the_map_follows_the_published_protocol(baseline):
    found = heatmap(baseline, IMAGE, "left effusion")
    pixels = (IMAGE - IMAGE.min()) / (IMAGE.max() - IMAGE.min())
    crop = torch.from_numpy(pixels[16:496, 16:496])[None, None].repeat(1, 3, 1, 1)
    with torch.no_grad():
        patches = F.normalize(baseline.image_model(crop)[0].permute(1, 2, 0), dim=-1)  # 15 15 128
        ids = baseline.tokenizer("left effusion", return_tensors="pt")
        start = baseline.text_encoder(**ids).last_hidden_state[:, 0]
        text = F.normalize(baseline.head(start), dim=-1)[0]
    grid = gaussian_filter((patches @ text).numpy(), (1.5, 1.5))
    assert patches.shape == (15, 15, 128) and found.shape == (32, 32)
    expected = np.kron(grid, np.ones((2, 2)))
    assert np.allclose(found[1:31, 1:31].numpy(), expected, atol=1e-5)
    assert np.allclose(found[0].numpy(), grid.min(), atol=1e-5)  # what the crop left out
    assert -1 <= grid.min() and grid.max() <= 1


def test_smaller_frames_are_enlarged_first(baseline):
    small = torch.from_numpy(IMAGE[::8, ::8].copy())
    assert biovil.prepare(small).shape == (1, 3, 480, 480)
    assert heatmap(baseline, small, "edema").shape == (32, 32)
    assert torch.isfinite(heatmap(baseline, np.zeros((64, 64)), "edema")).all()


@pytest.mark.parametrize("sigma", [0.0, 1.5])
def test_one_cosine_map_for_both(sigma):
    patches = torch.randn((5, 6, 7), generator=torch.Generator().manual_seed(0))
    text = torch.stack([patches[:, 2, 3], patches[:, 2, 3] * 4])
    found = cosine_map(patches, text, sigma)
    assert found.shape == (6, 7)
    if sigma:
        plain = cosine_map(patches, text).numpy()
        assert np.allclose(found, gaussian_filter(plain, sigma)) and float(found.max()) < 0.9
    else:
        assert int(found.argmax()) == 2 * 7 + 3 and float(found.max()) == pytest.approx(1.0)


@pytest.mark.parametrize("change", ["missing", "unexpected"])
def test_a_checkpoint_that_does_not_fit_is_refused(files, tmp_path, change):
    state = torch.load(files[0], weights_only=True)
    value = state.pop("encoder.encoder.layer2.0.conv1.weight")
    if change == "unexpected":
        state |= {"encoder.encoder.layer2.0.conv1.weight": value, "encoder.layer9.weight": value}
    torch.save(state, tmp_path / "other.pt")
    with pytest.raises(
        models.MissingWeights, match=rf"other\.pt does not fit BioViL.*(?i:{change})"
    ):
        biovil.published(tmp_path / "other.pt", str(files[1]), None, 77)


@pytest.mark.parametrize("content", ["half", "page", "list"])
def test_a_damaged_checkpoint_is_one_line_with_the_command(files, tmp_path, content):
    other = tmp_path / "other.pt"
    if content == "list":
        torch.save([1], other)
    else:
        other.write_bytes(b"<html>" if content == "page" else files[0].read_bytes()[:1000000])
    with pytest.raises(models.MissingWeights) as caught:
        biovil.published(other, str(files[1]), None, 77)
    said = str(caught.value)
    assert (
        str(other) in said
        and "`hf download microsoft/BiomedVLP-CXR-BERT-specialized biovil_image" in said
        and "\n" not in said
    )
    assert "--force-download" in said


def test_what_is_missing_is_named(files, standins, tmp_path):
    with pytest.raises(models.MissingWeights, match=r"hf download microsoft/\S+ biovil_image"):
        biovil.published(tmp_path / "none.pt", str(files[1]), None, 77)
    plain = standins.bert(tmp_path / "bert")  # no projection
    with pytest.raises(models.MissingWeights, match="dense_to_hidden"):
        biovil.published(files[0], str(plain), None, 77)


def test_rows_hold_the_clamped_thresholds_too(baseline):
    pair = Example(
        IMAGE, "left effusion", "Pleural Effusion", ((100, 100, 90, 90),), "a", "a", "test"
    )
    (row,) = score(baseline.grounder("BioViL"), [pair], progress=False).to_dict("records")
    assert 0 <= row["absolute_threshold_iou"] <= 1 and np.isfinite(row["cnr"])


def test_the_key_of_the_scores_follows_the_file(files, tmp_path):
    keys = {
        products.key(config.load("open", **{"methods.biovil.image": place}), "scores/biovil")
        for place in (None, str(tmp_path / "none.pt"), str(files[0]))
    }
    assert len(keys) == 3
