"""U-Nets and VAEs that want more are told in one line, before anything is loaded or cached."""

import json

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from g2g_utils import config as configuration
from g2g_utils.config import ConfigError
from g2g_utils.experiment import costs, recipes
from g2g_utils.models import MissingWeights, image_posterior, load_unet
from g2g_utils.models.supported import check_supported, problems

SMALL = {
    "sample_size": 8, "block_out_channels": (8, 8), "layers_per_block": 1, "norm_num_groups": 4,
    "cross_attention_dim": 8, "attention_head_dim": 2,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}  # fmt: skip
WANTS_MORE = {
    "addition_embed_type": "text_time", "encoder_hid_dim_type": "image_proj",
    "num_class_embeds": 10, "class_embed_type": "timestep", "in_channels": 9, "out_channels": 8,
    "time_cond_proj_dim": 32, "only_cross_attention": True, "dual_cross_attention": True,
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn", "attention_type": "gated",
    "_class_name": "SD3Transformer2DModel",
}  # fmt: skip


@pytest.mark.parametrize("setting", WANTS_MORE)
def test_a_setting_that_wants_more_is_named(setting):
    with pytest.raises(
        ConfigError, match=setting if setting[0] != "m" else "SimpleCross"
    ) as caught:
        check_supported({setting: WANTS_MORE[setting]}, source="some/model")
    line = str(caught.value)
    assert line.startswith("some/model: unet/config.json: ") and "\n" not in line


NUMBERS = [None, 0, -1, "3", [3], {}, True, 2.5, float("nan")]
LISTS = [None, 5, "abc", [], [None], {}, [1, "a"]]
WRONG = {
    "vae": {
        "scaling_factor": [None, 0, "0.18", -1, float("inf"), [0.18], True],
        "shift_factor": [[0.1] * 4, "0.1", float("nan"), {}, True],
        "latent_channels": NUMBERS, "in_channels": [*NUMBERS, 2, 5],
        "block_out_channels": LISTS, "down_block_types": LISTS, "up_block_types": LISTS,
    },
    "unet": {
        "cross_attention_dim": [*NUMBERS, [32, 32], [32]], "in_channels": NUMBERS,
        "layers_per_block": ["4", -1, [], 2.5], "attention_head_dim": ["a", -8, [0, 0], {}],
        "block_out_channels": LISTS, "down_block_types": LISTS, "up_block_types": LISTS,
        "mid_block_type": [5, [], {}], "norm_num_groups": ["4", -1, [], 2.5],
        "freq_shift": ["a", None],
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("part", "setting", "value"),
    [(p, s, v) for p, settings in WRONG.items() for s, values in settings.items() for v in values],
)
def test_a_value_of_the_wrong_kind_is_named(part, setting, value):
    wrong = {setting: value}
    with pytest.raises(ConfigError, match=setting) as caught:
        check_supported(*((wrong, None) if part == "unet" else (None, wrong)), source="some/model")
    line = str(caught.value)
    assert line.startswith(f"some/model: {part}/config.json: ") and "\n" not in line


def test_values_that_are_fine_and_a_unet_that_reads_no_text():
    fine = {"scaling_factor": 1, "shift_factor": None, "in_channels": 4}
    assert problems({"attention_head_dim": [5, 10]}, fine) == []
    blind = {"down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"]}
    assert "nothing reads the text" in problems(blind | {"mid_block_type": None}, None)[0]


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "5", "NaN", "[" * 100_000])
def test_a_config_that_is_none_is_one_line(tmp_path, content):
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text(content)
    with pytest.raises(MissingWeights, match="no usable weights") as caught:
        load_unet(tmp_path)
    assert len(str(caught.value).splitlines()) == 1


def test_channels_of_both_must_agree():
    pix2pix, sixteen = {"in_channels": 8}, {"latent_channels": 16}
    assert "in_channels = 8" in problems(pix2pix, None)[0]
    assert "the VAE gives 16" in problems({}, sixteen)[0]
    assert problems({"in_channels": 16, "out_channels": 16}, sixteen) == []
    assert "latents_mean" in problems(None, {"latents_mean": [0.1]})[0]


def test_plain_models_and_the_miniature_are_fine():
    assert problems(UNet2DConditionModel(**SMALL).config, AutoencoderKL().config) == []


@pytest.mark.parametrize("where", ["load", "dry run", "latents"])
def test_it_is_said_everywhere_before_work_begins(tmp_path, where):
    (tmp_path / "unet").mkdir()
    wanted = {"_class_name": "UNet2DConditionModel", "addition_embed_type": "text_time"}
    (tmp_path / "unet" / "config.json").write_text(json.dumps(wanted))
    settings = configuration.load("open", **{"unet.pretrained": str(tmp_path)})
    if where == "dry run":
        assert any("addition_embed_type" in line for line in costs.unsupported(settings))
        return
    with pytest.raises(ConfigError, match="addition_embed_type = 'text_time'"):
        load_unet(tmp_path) if where == "load" else recipes.latents(settings, "", tmp_path)


def test_the_shift_of_a_vae_is_applied():
    torch.manual_seed(0)
    plain = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, scaling_factor=0.5).eval()
    images = torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        mean, deviation = image_posterior(plain, images)
        plain.register_to_config(shift_factor=0.25)
        shifted, same = image_posterior(plain, images)
    torch.testing.assert_close(shifted, mean - 0.125)
    torch.testing.assert_close(same, deviation)
