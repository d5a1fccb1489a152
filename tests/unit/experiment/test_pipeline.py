"""An arm with a pipeline of its own: a converted model, from the authors' files to a map."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel

from g2g_utils import config, models
from g2g_utils.__main__ import main
from g2g_utils.experiment import costs, products
from g2g_utils.models import monai
from g2g_utils.training import pretrain
from tests import monai_like

PHRASE = "small left pleural effusion"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """The authors' files, a text encoder in Stable Diffusion 2.1's folders, a film."""
    root = tmp_path_factory.mktemp("pipeline")
    monai_like.save(root / "theirs")
    tokenizer = pretrain.byte_tokenizer([PHRASE], root / "sd" / "tokenizer", 77)
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "intermediate_size": 24, "num_hidden_layers": 1}
    ends = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    spec = CLIPTextConfig(
        vocab_size=len(tokenizer), num_attention_heads=2, hidden_act="gelu", **sizes, **ends
    )
    CLIPTextModel(spec).save_pretrained(root / "sd" / "text_encoder")
    grey = np.random.default_rng(0).integers(0, 255, (70, 90), dtype=np.uint8)
    Image.fromarray(grey).save(root / "film.png")
    return root


def settings(root, folder):
    """Overrides of a profile that has the converted model as an arm."""
    encoder = {"kind": "clip", "pretrained": str(root / "sd"), "subfolder": "text_encoder"}
    return {
        "encoders.sd21": encoder,
        "training.arms.cxr-ldm": {"encoder": "sd21", "pipeline": str(folder)},
        "methods": {"cxr-ldm": {"kind": "zero-shot-ldm", "arm": "cxr-ldm"}},
    }


def ground(root, folder, out):
    """Ground on the command line."""
    sets = [f"--set={k}={json.dumps(v)}" for k, v in settings(root, folder).items()]
    asked = ["--profile", "smoke", "--arm", "cxr-ldm", "--method", "zero-shot-ldm"]
    return main(["ground", str(root / "film.png"), PHRASE, *asked, *sets, "--out", str(out)])


@pytest.mark.parametrize("heads", [1, 2])
def test_from_the_authors_files_to_a_map(root, tmp_path, capsys, heads):
    folder = tmp_path / "ours"
    options = ["--heads", str(heads), "--groups", str(monai_like.GROUPS)]
    assert main(["convert", "monai", str(root / "theirs"), str(folder), *options]) == 0
    assert ground(root, folder, tmp_path / "out") == 0
    assert f"{heads} head" in capsys.readouterr().out
    (written,) = (tmp_path / "out").iterdir()
    report = json.loads((written / "grounding.json").read_text())
    assert report["heads"] == [heads] and len(report["timesteps"]) == 60
    assert (min(report["timesteps"]), max(report["timesteps"])) == (360, 537)
    wanted = ["down_blocks.2", "down_blocks.2", "mid_block", *["up_blocks.0"] * 3]
    assert [layer.split(".attentions")[0] for layer in report["layers"]] == wanted
    with np.load(written / "maps.npz") as maps:
        heat, mask = maps["heatmap"], maps["mask"]
    assert heat.shape == mask.shape == (64, 64) and np.array_equal(heat > 0, mask & (heat > 0))
    assert 0 < mask.mean() < 1 and heat.max() == 1


def test_the_parts_are_the_pipelines_own(root, tmp_path):
    folder = monai.convert(root / "theirs", tmp_path / "ours", groups=monai_like.GROUPS)
    found = config.load("smoke", **settings(root, folder))
    model = products.model(found, "cxr-ldm")
    assert model.latent_shape == (3, 8, 8) and model.vae.config.scaling_factor == 0.3
    assert model.scheduler.config.prediction_type == "v_prediction"
    assert float(model.scheduler.betas[-1]) == pytest.approx(0.0205)
    assert found.seeds("cxr-ldm") == found.training.seeds[:1]
    assert not [name for name in products.plan(found) if name.startswith("ldm/cxr-ldm")]
    key = products.key(found, "scores/cxr-ldm-s0")
    other = monai.convert(root / "theirs", tmp_path / "two", heads=2, groups=monai_like.GROUPS)
    folder.rename(tmp_path / "gone")
    other.rename(folder)
    assert products.key(found, "scores/cxr-ldm-s0") != key  # another model at the same place


@pytest.mark.parametrize("lost", ["vae/config.json", "converted.json", "unet"])
def test_half_a_folder_is_one_line(root, tmp_path, capsys, lost):
    folder = monai.convert(root / "theirs", tmp_path / "ours", groups=monai_like.GROUPS)
    (folder / lost).rename(tmp_path / "lost")
    capsys.readouterr()
    assert ground(root, folder, tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and f"has no {lost}" in said and "convert monai" in said
    assert not list((tmp_path / "out").glob("*"))


@pytest.mark.parametrize("profile", ["open", "paper"])
def test_absent_models_are_optional_and_said(profile, monkeypatch, capsys, tmp_path):
    found = config.load(profile, **{"training.arms.cxr-ldm.pipeline": str(tmp_path / "none")})
    assert products.method(found, "cxr-ldm") is None
    assert "no zero-shot LDM: " in capsys.readouterr().out
    told = [line for line in costs.missing(found) if "converted" in line or "convert monai" in line]
    assert len(told) == 1 and told[0].startswith("optional: ") and "hf download" in told[0]
    encoders = [encoder.pretrained for encoder in costs.used_encoders(found)]
    assert "stabilityai/stable-diffusion-2-1-base" not in encoders


def test_arms_with_a_pipeline_train_nothing():
    arm = {"encoder": "generic", "pipeline": "somewhere", "learnable": True}
    with pytest.raises(config.ConfigError, match="pipeline leaves no use"):
        config.load("smoke", **{"training.arms": {"a": arm}})


def test_a_text_encoder_of_another_width_is_refused(root, tmp_path):
    monai_like.save(tmp_path / "theirs", text_width=16)
    folder = monai.convert(tmp_path / "theirs", tmp_path / "ours", groups=monai_like.GROUPS)
    with pytest.raises(config.ConfigError, match="takes text states of width 16"):
        models.load(config.load("smoke", **settings(root, folder)), "cxr-ldm")
