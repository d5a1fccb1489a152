"""Components: shapes, text states, loading small and Stable-Diffusion-shaped folders."""

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel

from g2g_utils import config, grounding, models
from g2g_utils.attention import find_layers
from g2g_utils.training import pretrain

CONFIG = config.load("smoke")
PHRASES = ["small left pleural effusion", "enlarged heart"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return pretrain.word_tokenizer(PHRASES, tmp_path_factory.mktemp("words"), 77)


def encoder(tokenizer):
    return pretrain.build_text_encoder(CONFIG.encoders["domain"], tokenizer, 77).eval()


def model(tokenizer):
    return models.GroundingModel(
        tokenizer=tokenizer,
        text_encoder=encoder(tokenizer),
        vae=models.build_vae(CONFIG.vae).eval(),
        unet=models.build_unet(CONFIG.unet, 4, 16, 32).eval(),
        scheduler=models.build_scheduler(CONFIG.unet),
        image_size=64,
        max_length=77,
        zero_padding=True,
    )


def test_shapes_of_a_small_model(tokenizer):
    small = model(tokenizer)
    assert small.latent_shape == (4, 16, 16)
    mean, std = small.image_posterior(torch.rand(2, 1, 64, 64))
    assert mean.shape == std.shape == (2, 4, 16, 16) and (std > 0).all()
    decoded = small.decode(mean)
    assert decoded.shape == (2, 1, 64, 64) and 0 <= decoded.min() and decoded.max() <= 1
    assert small.encode_phrases(PHRASES).shape == (2, 77, 32)


def test_latents_are_scaled_also_where_the_image_is_noised_once(tokenizer):
    small = model(tokenizer)
    small.vae.register_to_config(scaling_factor=0.25)
    images = torch.rand(1, 1, 64, 64)
    with torch.no_grad():
        raw = small.vae.encode(models.vae_input(small.vae, images)).latent_dist
    for part, unscaled in zip(small.image_posterior(images), (raw.mean, raw.std), strict=True):
        assert torch.allclose(part, unscaled * 0.25)
    seen = []
    original = small.add_noise
    object.__setattr__(small, "add_noise", lambda z, e, t: seen.append(z) or original(z, e, t))
    grounding.ground(small, images[0], PHRASES[0], sampling="gt_first", timesteps=2)
    spread = (seen[0] - raw.mean * 0.25).abs() / (raw.std * 0.25)
    assert spread.max() < 6  # one draw of the scaled posterior


def test_the_schedule_has_a_revision_of_its_own():
    pinned = CONFIG.unet.model_copy(update={"pretrained": "a/unet", "revision": "abc"})
    other = pinned.model_copy(update={"scheduler": "a/schedule"})
    assert other.schedule_revision is None
    assert other.model_copy(update={"scheduler_revision": "def"}).schedule_revision == "def"
    assert pinned.model_copy(update={"scheduler": "a/unet"}).schedule_revision == "abc"


def test_padding_is_zero_only_where_asked_and_never_changes_words(tokenizer):
    text, batch = encoder(tokenizer), models.tokenize(tokenizer, PHRASES, 77)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    kept, zeroed = (models.text_states(text, ids, mask, zero) for zero in (False, True))
    padding = mask == 0
    assert kept[padding].abs().min(-1).values.max() > 0
    assert (zeroed[padding] == 0).all() and torch.equal(kept[~padding], zeroed[~padding])


def test_the_text_encoder_gets_its_attention_mask(tokenizer):
    """Words' states don't depend on how much padding follows."""
    text = encoder(tokenizer)
    states = []
    for length in (20, 77):
        batch = models.tokenize(tokenizer, PHRASES[:1], length)
        states.append(models.text_states(text, batch["input_ids"], batch["attention_mask"])[0, :6])
    torch.testing.assert_close(states[0], states[1], atol=1e-5, rtol=1e-5)


def test_pixel_unshuffle_round_trips():
    vae = models.build_vae(CONFIG.vae)
    images = torch.rand(2, 1, 64, 64)
    assert models.vae_input(vae, images).shape == (2, 4, 32, 32)
    colours = torch.rand(2, 3, 64, 64)  # a grey VAE sees their mean
    torch.testing.assert_close(
        models.vae_input(vae, colours), models.vae_input(vae, colours.mean(1, keepdim=True))
    )
    torch.testing.assert_close(models.vae_output(vae, models.vae_input(vae, images)), images)


def test_cross_attention_starts_with_larger_queries_and_keys():
    plain = CONFIG.unet.model_copy(update={"query_key_gain": 1.0})
    with models.initialised(0):
        one = models.build_unet(plain, 4, 16, 32).state_dict()
    with models.initialised(0):
        more = models.build_unet(CONFIG.unet, 4, 16, 32).state_dict()
    for name in one:
        gain = CONFIG.unet.query_key_gain if ".attn2.to_q." in name or ".attn2.to_k." in name else 1
        torch.testing.assert_close(one[name] * gain, more[name])


def test_initialised_leaves_the_global_generator_alone():
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    with models.initialised(0):
        torch.rand(10)
    assert torch.equal(torch.rand(3), expected)


def test_schedule_is_stable_diffusions():
    scheduler = models.build_scheduler(CONFIG.unet)
    scheduler.set_timesteps(50)
    assert scheduler.timesteps[[0, -1]].tolist() == [981, 1]
    assert scheduler.alphas_cumprod[-1] == pytest.approx(0.0047, abs=1e-4)


def test_a_loaded_schedule_must_be_for_the_configured_prediction(tmp_path):
    DDIMScheduler(prediction_type="v_prediction").save_pretrained(tmp_path / "scheduler")
    loaded = config.Unet(scheduler=str(tmp_path), prediction="epsilon")
    with pytest.raises(config.ConfigError, match=r"'epsilon'.* is for 'v_prediction'"):
        models.build_scheduler(loaded)
    agreed = loaded.model_copy(update={"prediction": "v_prediction"})
    assert models.build_scheduler(agreed).config.prediction_type == "v_prediction"


def test_a_cxr_bert_shaped_checkpoint_loads_without_remote_code(tokenizer, tmp_path):
    """Keys as published: `bert.*`, and heads that a plain BertModel does not take."""
    bert = BertModel(
        BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=64,
        ),
        add_pooling_layer=False,
    )
    bert.save_pretrained(tmp_path)
    state = {f"bert.{k}": v for k, v in load_file(tmp_path / "model.safetensors").items()}
    state["cls_projection_head.dense_to_hidden.weight"] = torch.zeros(4, 32)
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save_pretrained(tmp_path)
    _, loaded = models.load_text_encoder(tmp_path)
    for name, value in bert.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


def test_a_stable_diffusion_shaped_folder_loads_through_the_same_code(tmp_path):
    """Three input channels, `vae`/`unet`/`scheduler` subfolders, eight-fold reduction."""
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=4,
    )
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=32,
        attention_head_dim=2,
    )
    vae.save_pretrained(tmp_path / "vae")
    unet.save_pretrained(tmp_path / "unet")
    DDIMScheduler(**models.SD_SCHEDULE).save_pretrained(tmp_path / "scheduler")
    loaded = models.load_vae(tmp_path)
    assert models.unshuffle_factor(loaded) == 1
    assert models.vae_input(loaded, torch.rand(1, 1, 64, 64)).shape == (1, 3, 64, 64)
    colours = torch.rand(1, 3, 64, 64)
    assert torch.equal(models.vae_input(loaded, colours), colours * 2 - 1)
    mean, _ = models.image_posterior(loaded, torch.rand(1, 1, 64, 64))
    assert mean.shape == (1, 4, 8, 8)
    assert models.load_unet(tmp_path).config.cross_attention_dim == 32
    settings = config.Unet(scheduler=str(tmp_path), prediction="epsilon")
    assert models.build_scheduler(settings).config.steps_offset == 1


def test_the_released_unet_is_found_in_its_subfolder(tmp_path):
    unet = models.build_unet(CONFIG.unet, 4, 16, 32)
    unet.save_pretrained(tmp_path / "unet_ema")
    assert models.load_unet(tmp_path).config.cross_attention_dim == 32


def test_a_foundation_gives_all_but_what_reads_the_text(tmp_path):
    with models.initialised(1):
        trained = models.build_unet(CONFIG.unet, 4, 16, 32)
    trained.save_pretrained(tmp_path)
    with models.initialised(2):
        unet = models.build_unet(CONFIG.unet, 4, 16, 32)
    before = {name: weight.clone() for name, weight in unet.state_dict().items()}
    models.adopt(unet, tmp_path)
    for name, weight in unet.state_dict().items():
        reads = any(f".attn2.{part}." in name for part in ("to_q", "to_k", "to_v"))
        expected = before[name] if reads else trained.state_dict()[name]
        assert torch.equal(weight, expected), name
    deeper = models.build_unet(CONFIG.unet.model_copy(update={"layers_per_block": 2}), 4, 16, 32)
    with pytest.raises(ValueError, match="another shape"):
        models.adopt(deeper, tmp_path)


@pytest.mark.parametrize("middle", [True, False])
@pytest.mark.parametrize("levels", [None, (True, False, True)])
def test_cross_attention_is_at_the_levels_asked_for(levels, middle):
    changes = {"attention_levels": levels, "middle_attention": middle}
    unet = models.build_unet(CONFIG.unet.model_copy(update=changes), 4, 16, 32)
    blocks = {name.rsplit(".attentions", 1)[0] for name in find_layers(unet)}
    expected = {
        None: {"down_blocks.0", "down_blocks.1", "up_blocks.1", "up_blocks.2"},
        (True, False, True): {"down_blocks.0", "down_blocks.2", "up_blocks.0", "up_blocks.2"},
    }
    assert blocks == expected[levels] | ({"mid_block"} if middle else set())


def test_a_level_without_a_choice_is_refused():
    with pytest.raises(config.ConfigError, match="2 entries for 3 channels"):
        config.load("smoke", **{"unet.attention_levels": [True, False]})


def test_missing_weights_name_the_place_and_the_command(tmp_path):
    with pytest.raises(models.MissingWeights, match=r"expected are vae/config\.json.*a hub id"):
        models.load_vae(tmp_path / "nowhere")
    with pytest.raises(models.MissingWeights, match=r"config\.json.*name another folder"):
        models.load_text_encoder(tmp_path / "nowhere")
    with pytest.raises(models.MissingWeights, match=r"hf download nobody/nothing --revision 7"):
        models.load_unet("nobody/nothing", "7")


@pytest.mark.parametrize("content", ["half", "page"])
def test_damaged_weights_name_the_file_and_the_command(tmp_path, content):
    models.build_unet(CONFIG.unet, 4, 16, 32).save_pretrained(tmp_path / "unet")
    file = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2] if content == "half" else b"<!doctype html>")
    with pytest.raises(models.MissingWeights) as caught:
        models.load_unet(tmp_path)
    assert f"{file} is damaged" in str(caught.value) and "\n" not in str(caught.value)
    command = f"hf download HUB_ID --local-dir {tmp_path} --force-download"
    assert f"`{command} --include 'unet/{file.name}'`" in str(caught.value)


def test_an_unknown_arm_is_refused():
    with pytest.raises(config.ConfigError, match=r"'doman-frozen'.*domain-frozen"):
        models.load(CONFIG, "doman-frozen")


def test_generic_tokenizer_knows_all_ascii_characters(tmp_path):
    tokens = pretrain.byte_tokenizer(["a red ball"], tmp_path, 77)
    unknown = tokens.convert_tokens_to_ids("<|endoftext|>")
    inner = np.array(tokens("left-sided effusion, 3/4 (small)").input_ids[1:-1])
    assert (inner != unknown).all()
