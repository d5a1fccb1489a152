"""The converter of MONAI's latent diffusion models, against MONAI's arithmetic."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from g2g_utils import models
from g2g_utils.config import ConfigError
from g2g_utils.models import monai
from tests import monai_like

SHARED = Path(os.environ.get("G2G_SHARED", Path(__file__).parents[4] / "shared"))
VECTORS = SHARED / "reference" / "vilouras"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The authors' files, the converted folder and what both hold."""
    root = tmp_path_factory.mktemp("monai")
    net, weights = monai_like.save(root / "theirs" / "models")
    said = []
    folder = monai.convert(
        root / "theirs", root / "ours", groups=monai_like.GROUPS, tell=said.append
    )
    return net, weights, folder, said


@pytest.mark.skipif(not VECTORS.is_dir(), reason="needs ../shared/reference/vilouras")
def test_the_unet_computes_what_monai_computes():
    given = np.load(VECTORS / "reference_open.npz")
    weights = monai_like.unet_names(load_file(VECTORS / "unet_open.safetensors"))
    unet = monai.convert_unet(weights, groups=8)
    x, context, wanted = (torch.from_numpy(given[f"U.{n}"]) for n in ("x", "context", "out"))
    with torch.no_grad():
        out = unet(x, given["U.t"].item(), encoder_hidden_states=context).sample
    assert (out - wanted).abs().max() < 2e-5


def test_the_published_unet_fits():
    weights = monai_like.published()
    assert len(weights) == 496 and sum(w.numel() for w in weights.values()) == 263_636_995
    unet = monai.convert_unet(weights)
    assert unet.config.down_block_types[0] == "DownBlock2D" and unet.config.norm_eps == 1e-6
    names = [n for n, m in unet.named_modules() if n.endswith("attn2")]
    assert len(names) == 11 and {unet.get_submodule(n).heads for n in names} == {1}


def test_the_published_autoencoder_fits(monkeypatch):
    monkeypatch.setattr(monai_like, "CHANNELS", (64, 128, 128, 128))
    weights = monai_like.autoencoder()
    assert len(weights) == 162 and sum(w.numel() for w in weights.values()) == 4_607_848
    vae = monai.convert_vae(weights)
    assert vae.config.scaling_factor == 0.3 and vae.config.latent_channels == 3


def test_the_autoencoder_computes_what_monai_computes(made):
    _, weights, folder, _ = made
    vae = models.load_vae(folder)
    images = torch.rand(2, 1, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        mean, std = monai_like.moments(weights, images)
        found = models.image_posterior(vae, images)
        assert torch.equal(models.vae_input(vae, images), images)  # no centring to [-1, 1]
        for ours, theirs in zip(found, (mean, std), strict=True):
            assert ours.shape == (2, 3, 8, 8)
            torch.testing.assert_close(ours, 0.3 * theirs, rtol=1e-5, atol=1e-6)
        decoded = monai_like.decode(weights, mean)
        torch.testing.assert_close(vae.decode(mean).sample, decoded, rtol=1e-5, atol=1e-5)
        assert torch.equal(models.vae_output(vae, decoded), decoded.clamp(0, 1))
        plain = monai_like.vae_of(folder).encode(images).latent_dist.mean
        assert (plain - mean).abs().max() > 1e-2  # the activation that only `load_vae` takes out


def test_other_autoencoders_keep_their_range():
    from diffusers import AutoencoderKL

    vae = AutoencoderKL(norm_num_groups=8, block_out_channels=(8,))
    images = torch.rand(1, 1, 8, 8)
    assert torch.equal(models.vae_input(vae, images), images.expand(-1, 3, -1, -1) * 2 - 1)
    assert torch.equal(models.vae_output(vae, images * 2), (images * 2 / 2 + 0.5).clamp(0, 1))
    assert isinstance(monai.restore(vae).encoder.conv_act, torch.nn.SiLU)


def test_a_folder_appears_when_it_is_whole(made, tmp_path, monkeypatch):
    net, _, folder, said = made
    assert monai.missing(folder) == "" and len(said) == 2 and "1 head" in said[0]
    unet = models.load_unet(folder)
    states = net.state_dict()
    assert all(torch.equal(weight, states[name]) for name, weight in unet.state_dict().items())
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    source = folder.parent / "theirs"
    monai.convert(source, folder, groups=monai_like.GROUPS, tell=said.append)
    assert "before" in said[-1]
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*")}

    def stop(weights, groups):
        raise KeyboardInterrupt

    monkeypatch.setattr(monai, "convert_vae", stop)
    with pytest.raises(KeyboardInterrupt):
        monai.convert(source, tmp_path / "new", groups=monai_like.GROUPS)
    assert not list(tmp_path.iterdir())


def test_heads_are_said_and_change_the_unet(made, tmp_path):
    source, said = made[2].parent / "theirs", []
    folder = monai.convert(
        source, tmp_path / "two", heads=2, groups=monai_like.GROUPS, tell=said.append
    )
    assert "2 heads" in said[0]
    attention = models.load_unet(folder).mid_block.attentions[0].transformer_blocks[0].attn2
    assert attention.heads == 2


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda u, v: u.unlink(), "no diffusion_model.pth"),
        (lambda u, v: v.unlink(), "no autoencoder.pth"),
        (lambda u, v: u.write_bytes(u.read_bytes()[:900]), "damaged"),
        (lambda u, v: v.write_text("<html>"), "damaged"),
        (lambda u, v: torch.save({"state_dict": {}}, u), "no state dict"),
        (lambda u, v: torch.save(monai_like.unet().state_dict(), u), "of another layout"),
        (lambda u, v: u.write_bytes(v.read_bytes()), "of another layout"),
        (lambda u, v: v.write_bytes(u.read_bytes()), "it has attention"),
        (lambda u, v: _leave_out(u, "out.0.bias"), "no conv_norm_out.bias"),
        (lambda u, v: _leave_out(v, "post_quant_conv.conv.bias"), "no post_quant_conv.bias"),
        (lambda u, v: _leave_out(v, "quant_conv_mu.conv.bias"), "quant_conv_mu"),
    ],
)
def test_other_files_are_one_line(made, tmp_path, spoil, said):
    monai_like.save(tmp_path / "theirs")
    spoil(tmp_path / "theirs" / monai.UNET_FILE, tmp_path / "theirs" / monai.VAE_FILE)
    with pytest.raises(ConfigError, match=said) as error:
        monai.convert(tmp_path / "theirs", tmp_path / "ours", groups=monai_like.GROUPS)
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["theirs"]


def _leave_out(file, name):
    weights = torch.load(file, weights_only=True)
    del weights[name]
    torch.save(weights, file)


def test_wrong_heads_groups_and_places_are_one_line(made, tmp_path):
    source = made[2].parent / "theirs"
    with pytest.raises(ConfigError, match="heads = 5 does not divide"):
        monai.convert(source, tmp_path / "a", heads=5, groups=8)
    with pytest.raises(ConfigError, match="groups = 32 does not divide"):
        monai.convert(source, tmp_path / "a")
    (tmp_path / "b").mkdir()
    with pytest.raises(ConfigError, match="remove it or name another"):
        monai.convert(source, tmp_path / "b", groups=8)
