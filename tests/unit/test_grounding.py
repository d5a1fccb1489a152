"""Grounding on a tiny random model: two blocks on 16 x 16 latents, word-level BERT."""

import dataclasses

import pytest
import torch
from peft import LoraConfig

from g2g_utils import bbm, grounding, sampling
from g2g_utils.attention import CrossAttentionRecorder, upsample
from g2g_utils.cache import Cache
from g2g_utils.grounding import GroundOptions, ground, ground_batch, spread, text_bias
from g2g_utils.text import tokenize
from tests.duck import BOXES, FAST, PHRASES, Model


@pytest.fixture(scope="module")
def model():
    return Model()


@pytest.fixture(scope="module")
def images():
    return torch.rand(3, 1, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def forwards(model):
    """Rows of every U-Net forward."""
    rows = []
    hook = model.unet.conv_in.register_forward_pre_hook(lambda m, args: rows.append(len(args[0])))
    yield rows
    hook.remove()


def test_result(model, images):
    found = ground(model, images[0], PHRASES[0], boxes=BOXES[0], **FAST)
    assert found.heatmap.shape == found.mask.shape == (16, 16)
    assert (found.heatmap.min(), found.heatmap.max()) == (0, 1)
    assert found.words == ("small", "left", "effusion") and found.tokens == (1, 2, 3)
    assert found.token_maps.shape == (5, 16, 16)  # start, three words, end
    assert torch.equal(found.heatmap, bbm.minmax(found.token_maps[1:4].mean(0)))
    assert torch.equal(found.word_map("left"), found.token_maps[2])
    assert len(found.timesteps) == 5 and found.timesteps[-1] == 1 and found.keep_last == 3
    assert (found.interaction, found.confidence) == (None, None)
    assert set(found.metrics) >= {"cnr", "balanced_iou", "auc_roc", "note"}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"curve": "mixture"},
        {"sampling": "cfg"},
        {"sampling": "gt_first"},
        {"sampling": "text", "curve": "linear"},
        {"timesteps": 1, "keep_last": 1, "curve": "quadratic"},
    ],
)
def test_any_batch_split_gives_the_same_maps(model, images, options):
    whole = ground_batch(model, images, PHRASES, batch_size=16, **(FAST | options))
    for rows in (1, 4, 11):
        split = ground_batch(model, images, PHRASES, batch_size=rows, **(FAST | options))
        for a, b in zip(whole, split, strict=True):
            assert (a.heatmap - b.heatmap).abs().max() < 1e-5
    single = ground(model, images[2], PHRASES[2], **(FAST | options))
    assert (single.heatmap - whole[2].heatmap).abs().max() < 1e-5


def test_noise_follows_seed_image_and_step(model, images):
    maps = {s: ground(model, images[0], PHRASES[0], seed=s, **FAST).heatmap for s in (0, 1)}
    again = ground(model, images[0].numpy()[0], PHRASES[0], seed=0, **FAST).heatmap
    assert torch.equal(maps[0], again)
    assert not torch.allclose(maps[0], maps[1], atol=1e-4)


def test_the_global_generator_is_left_alone(model, images):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first = ground(model, images[0], "edema", curve="mixture", **FAST).heatmap
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(4)
    grounding.clear_cache()
    again = ground(model, images[0], "edema", curve="mixture", **FAST).heatmap
    assert torch.equal(first, again)


def test_only_needed_rows_run(model, images, forwards):
    ground(model, images[0], PHRASES[0], batch_size=2, **FAST)
    assert sum(forwards) == 3  # last k alone, no unconditional half
    grounding.clear_cache()
    forwards.clear()
    ground(model, images[0], PHRASES[0], curve="linear", **FAST)
    assert sum(forwards) == 5 + 2 * 5  # all T for the image bias, guided text bias
    forwards.clear()
    ground(model, images[0], PHRASES[0], curve="linear", **FAST)
    assert sum(forwards) == 5  # text bias remembered
    forwards.clear()
    ground(model, images[0], PHRASES[0], curve="linear", text_guidance=1, **FAST)
    assert sum(forwards) == 5 + 5


def test_bias_merging_follows_its_definition(model, images):
    found = ground(model, images[0], PHRASES[0], curve="quadratic", **FAST)
    bias = text_bias(model, PHRASES[0], timesteps=5)
    assert set(bias) == set(found.layers) and all(len(m) == 5 for m in bias.values())
    phrase = tokenize(model.tokenizer, PHRASES[0], model.max_length)
    times, recorder = found.timesteps, CrossAttentionRecorder(model.unet, [0], "steps")
    states = model.encode_text(phrase.input_ids, phrase.attention_mask)
    posterior = sampling.posterior(model, images[:1])
    with recorder, torch.no_grad():
        for t in times:
            model.unet(sampling.noised(model, posterior, t, 0)[0], t, states)
    image = recorder.maps()[0]  # t l h w
    text = torch.stack([upsample(bias[n][:, 0], (16, 16)) for n in found.layers], 1)
    m = bbm.interaction(image, text)
    c = bbm.confidence(image.mean((0, 1)), text.mean((0, 1)))
    assert found.confidence == pytest.approx(c, abs=1e-3)
    assert (found.interaction - m).abs().max() < 2e-3
    merged = bbm.merge(found.activation, found.interaction, found.confidence, "quadratic")
    assert torch.equal(found.heatmap, bbm.minmax(merged))


def test_a_trained_model_gets_a_new_text_bias(model, forwards):
    text_bias(model, "edema", timesteps=3)
    forwards.clear()
    text_bias(model, "edema", timesteps=3)
    assert not forwards
    with torch.no_grad():
        model.unet.conv_out.bias.add_(1e-3)
    text_bias(model, "edema", timesteps=3)
    assert sum(forwards) == 6
    with torch.no_grad():
        model.unet.conv_out.bias.sub_(1e-3)


def test_text_bias_is_remembered_per_phrase_seed_and_guidance(model, forwards):
    grounding.clear_cache()
    first = text_bias(model, "edema", timesteps=2, seed=0)
    assert sum(forwards) == 4
    for change in ({"seed": 1}, {"text_guidance": 4.0}, {"timesteps": 3}, {"tokens": [0]}):
        forwards.clear()
        other = text_bias(model, "edema", **({"timesteps": 2} | change))
        assert forwards and other is not first
    forwards.clear()
    assert text_bias(model, "edema", timesteps=2, seed=0) is first and not forwards
    other = text_bias(model, "edema", timesteps=2, seed=1)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_writes_that_raise_no_version_make_a_new_text_bias(model):
    grounding.clear_cache()
    first = text_bias(model, "edema", timesteps=2)
    key = next(w for n, w in model.unet.named_parameters() if ".attn2.to_k." in n)
    before = key.data.clone()
    key.data.mul_(3)  # as EMAModel.copy_to writes
    other = text_bias(model, "edema", timesteps=2)
    key.data.copy_(before)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_the_image_bias_sees_the_image_whatever_is_sampled(model, images):
    options = FAST | {"sampling": "text", "curve": "mixture"}
    a, b = (ground(model, image, "edema", **options) for image in images[:2])
    assert torch.allclose(a.activation, b.activation, atol=1e-4)  # from noise alone
    assert not torch.allclose(a.interaction, b.interaction, atol=1e-4)
    truth = ground(model, images[0], "edema", timesteps=5, keep_last=3, curve="mixture")
    assert torch.allclose(a.interaction, truth.interaction, atol=1e-4)


@pytest.mark.parametrize("sampling", ["gt", "gt_first", "cfg", "text"])
def test_sampling_inputs(model, images, forwards, sampling):
    a, b = ground_batch(model, images[:2], ["edema"] * 2, sampling=sampling, **FAST)
    rows = {"gt": 2 * 3, "gt_first": 20, "cfg": 20, "text": 10}[sampling]
    assert sum(forwards) == rows
    depends = not torch.allclose(a.heatmap, b.heatmap, atol=1e-4)
    assert depends == sampling.startswith("gt")  # the others never see the image


def test_guidance_leaves_ground_truth_maps_alone(model, images):
    one, two = (ground(model, images[0], "edema", guidance=g, **FAST).heatmap for g in (1.0, 16.0))
    assert torch.equal(one, two)


def test_choice_of_layers_and_kept_maps(model, images):
    whole = ground(model, images[0], PHRASES[0], keep="all", **FAST)
    layers = ground(model, images[0], PHRASES[0], keep="layers", **FAST)
    coarse = ground(model, images[0], PHRASES[0], layers=8, curve="linear", **FAST)
    assert 0 < len(coarse.layers) < len(whole.layers)
    assert (whole.select(layers=8) - coarse.activation).abs().max() < 5e-3
    assert (layers.select(layers=8) - coarse.activation).abs().max() < 5e-3
    assert (whole.heatmap - layers.heatmap).abs().max() < 5e-3
    assert whole.select(tokens=[2], steps=[2]).shape == (16, 16)
    for wrong in ({"steps": []}, {"tokens": []}, {"steps": range(-1, 2)}, {"tokens": [99]}):
        with pytest.raises(ValueError, match="choose from"):
            whole.select(**wrong)
    with pytest.raises(ValueError, match='keep="all" holds'):
        layers.select(steps=[0])
    plain = ground(model, images[0], PHRASES[0], **FAST)
    with pytest.raises(ValueError, match='keep="layers" or "all" holds'):
        plain.select(layers=8)
    assert torch.equal(plain.select(), plain.activation)


@pytest.mark.parametrize("sampled", ["gt", "cfg"])
def test_steps_are_a_window_of_the_timesteps(model, images, sampled):
    options = {"timesteps": 5, "sampling": sampled, "curve": "linear"}
    whole = ground(model, images[0], PHRASES[0], keep="all", steps=(0, 4), **options)
    middle = ground(model, images[0], PHRASES[0], steps=(1, 2), **options)
    assert (whole.select(steps=[1, 2]) - middle.activation).abs().max() < 5e-3
    assert middle.steps == (1, 2) and middle.keep_last == 2
    assert torch.allclose(middle.interaction, whole.interaction, atol=2e-3)  # of all T
    last = ground(model, images[0], PHRASES[0], steps=(2, 4), **options)
    same = ground(model, images[0], PHRASES[0], keep_last=3, **options)
    assert torch.equal(last.heatmap, same.heatmap)
    for wrong in ((3, 2), (-1, 2), (0, 5)):
        with pytest.raises(ValueError, match=r"steps=\("):
            ground(model, images[0], PHRASES[0], timesteps=5, steps=wrong)
    with pytest.raises(ValueError, match="exclude each other"):
        ground(model, images[0], PHRASES[0], timesteps=5, steps=(0, 1), keep_last=2)


def test_a_window_runs_only_its_rows(model, images, forwards):
    ground(model, images[0], PHRASES[0], timesteps=5, steps=(1, 2))
    assert sum(forwards) == 2


def test_keywords_are_the_options():
    fields = {f.name: f.type for f in dataclasses.fields(grounding.Options)}
    assert fields == {k: v.__forward_arg__ for k, v in GroundOptions.__annotations__.items()}


def test_text_biases_lie_on_the_cpu_within_their_bound(model):
    bias = text_bias(model, "edema", timesteps=2)
    size = bias.nbytes
    cache = Cache(limit=2 * size)
    for seed in range(4):
        text_bias(model, "edema", timesteps=2, seed=seed, cache=cache)
    assert len(cache) == 2 and cache.nbytes == 2 * size
    assert all(m.device.type == "cpu" and m.dtype == torch.float16 for m in bias.values())


def test_explicit_tokens_one_step_and_bad_input(model, images):
    one = ground(model, images[0], PHRASES[0], tokens=["left", 4], timesteps=1)
    assert one.tokens == (2, 4) and one.keep_last == 1
    with pytest.raises(ValueError, match=r"need \[1 or 3, 32, 32\]"):
        ground(model, images[0, 0, :16], "edema")
    for wrong in (images[0] * 255, images[0] * 2 - 1, images[0] * float("nan")):
        with pytest.raises(ValueError, match=r"scale it to \[0, 1\]"):
            ground(model, wrong, "edema", **FAST)
    with pytest.raises(ValueError, match="keep_last=9"):
        ground(model, images[0], "edema", timesteps=5, keep_last=9)
    with pytest.raises(TypeError, match="steps_of"):
        ground(model, images[0], "edema", steps_of=3)


def test_spread(model, images):
    found = spread(model, images[0], "edema", seeds=(0, 1, 2), **FAST)
    assert found.heatmaps.shape == (3, 16, 16) and found.std.max() > 0
    assert torch.allclose(found.mean, found.heatmaps.mean(0))
    assert torch.allclose(found.std, found.heatmaps.std(0))
    own = ground(model, images[0], "edema", seed=1, **FAST).heatmap
    assert torch.equal(found.heatmaps[1], own)
    assert not spread(model, images[0], "edema", seeds=[5], **FAST).std.any()


def test_a_unet_with_lora_grounds_alike_in_any_split(images):
    lora = LoraConfig(r=2, target_modules=["to_q", "to_k"], init_lora_weights=False)
    plain, adapted = Model(), Model()
    torch.manual_seed(1)
    adapted.unet.add_adapter(lora)
    adapted.unet.eval()
    before = ground(plain, images[0], "edema", **FAST).heatmap
    maps = [ground(adapted, images[0], "edema", batch_size=b, **FAST).heatmap for b in (1, 16)]
    assert (maps[0] - maps[1]).abs().max() < 1e-5
    assert (maps[0] - before).abs().max() > 1e-3
