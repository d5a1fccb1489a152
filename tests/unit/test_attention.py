import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor2_0
from peft import LoraConfig, get_peft_model

from g2g_utils.attention import (
    AttentionMaps,
    CrossAttentionRecorder,
    Stack,
    find_layers,
    native_size,
    upsample,
)

TOKENS, WIDTH = 7, 16


def make_unet(**options):
    torch.manual_seed(0)
    settings = {
        "sample_size": 16,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "cross_attention_dim": WIDTH,
        "attention_head_dim": 2,
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    }
    return UNet2DConditionModel(**(settings | options)).eval()


@pytest.fixture(scope="module")
def unet():
    return make_unet()


def inputs(batch=2, size=(16, 16), seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 4, *size, generator=g), torch.randn(batch, TOKENS, WIDTH, generator=g)


@torch.no_grad()
def run(unet, recorder, times=(900, 1), batch=2, size=(16, 16)):
    outputs = []
    with recorder:
        for t in times:
            latents, states = inputs(batch, size, seed=t)
            outputs.append(unet(latents, t, states).sample)
    return outputs


def kept(unet, keep, tokens=None, **options):
    recorder = CrossAttentionRecorder(unet, tokens, keep, **options)
    run(unet, recorder)
    return recorder


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_linear_projection": True, "attention_head_dim": (2, 4)},
        {"upcast_attention": True},
    ],
)
@pytest.mark.parametrize("size", [(16, 16), (8, 24), (10, 14)])
def test_output_is_that_of_the_plain_unet(options, size):
    unet = make_unet(**options)
    recorded = run(unet, CrossAttentionRecorder(unet), size=size)
    for t, output in zip((900, 1), recorded, strict=True):
        latents, states = inputs(size=size, seed=t)
        with torch.no_grad():
            assert (unet(latents, t, states).sample - output).abs().max() < 1e-5


def test_an_encoder_mask_is_respected(unet):
    latents, states = inputs()
    mask = torch.ones(2, TOKENS, dtype=torch.bool)
    mask[:, 4:] = False
    with torch.no_grad(), CrossAttentionRecorder(unet) as recorder:
        masked = unet(latents, 5, states, encoder_attention_mask=mask).sample
    with torch.no_grad():
        plain = unet(latents, 5, states, encoder_attention_mask=mask).sample
    assert (plain - masked).abs().max() < 1e-5
    assert recorder.maps()[:, 4:].max() < 1e-6


def test_layers_in_forward_order(unet):
    names = list(find_layers(unet))
    calls = []
    hooks = [
        m.register_forward_hook(lambda *_, name=n: calls.append(name))
        for n, m in find_layers(unet).items()
    ]
    recorder = kept(unet, "mean")
    for hook in hooks:
        hook.remove()
    assert calls[: len(names)] == names == recorder.layers
    assert [n.split("_")[0] for n in names] == ["down"] * 2 + ["mid"] + ["up"] * 4


def test_maps_are_probabilities(unet):
    maps = kept(unet, "mean").maps()
    assert maps.shape == (2, TOKENS, 16, 16)
    assert torch.allclose(maps.sum(1), torch.ones(2, 16, 16), atol=1e-5)


def test_all_ways_of_keeping_agree(unet):
    tokens = [2, 3, 5]
    full = kept(unet, "all", dtype=torch.float32)
    mean, layers, steps = (
        kept(unet, k, tokens, dtype=torch.float32) for k in ("mean", "layers", "steps")
    )
    maps = full.maps(tokens)  # b t l n h w
    assert maps.shape == (2, 2, 7, 3, 16, 16)
    close = {"atol": 1e-6}
    assert torch.allclose(mean.maps(), maps.mean((1, 2)), **close)
    assert torch.allclose(layers.maps(), maps.mean(1), **close)
    assert torch.allclose(steps.maps(), maps.mean(3), **close)
    for one in (mean, layers, steps, full):
        found = one.mean(tokens) if one is full else one.mean()
        assert torch.allclose(found, maps.mean((1, 2, 3)), **close)
    assert torch.allclose(layers.mean([3], layers="up"), maps[:, :, 3:, 1].mean((1, 2)), **close)
    assert torch.allclose(steps.mean(steps=[1]), maps[:, 1].mean((1, 2)), **close)
    low = full.mean(tokens, layers=8, steps=[0])
    coarse = [i for i, n in enumerate(full.layers) if full.sizes[n] == (8, 8)]
    assert torch.allclose(low, maps[:, 0, coarse].mean((1, 2)), **close)
    assert full.sample(1)[full.layers[2]].shape == (2, TOKENS, 8, 8)


def test_stacked_timesteps_equal_single_ones(unet):
    starts = [Stack([0], average=True, dtype=torch.float32) for _ in range(2)]
    one_by_one = kept(unet, "all", [1, 2], dtype=torch.float32, also=starts[:1])
    latents, states = (torch.cat(x) for x in zip(*(inputs(seed=t) for t in (900, 1)), strict=True))
    times = torch.tensor([900, 900, 1, 1])
    stacked = CrossAttentionRecorder(
        unet, [1, 2], "all", rows_per_step=2, dtype=torch.float32, also=starts[1:]
    )
    mean = CrossAttentionRecorder(unet, [1, 2], rows_per_step=2)
    for recorder in (stacked, mean):
        with recorder, torch.no_grad():
            unet(latents, times, states)
    assert stacked.steps == mean.steps == 2
    assert torch.allclose(stacked.maps(), one_by_one.maps(), atol=1e-6)
    assert torch.allclose(mean.mean(), one_by_one.mean(), atol=1e-6)
    each, together = (start.take() for start in starts)  # layer -> s b 1 h w
    assert list(each) == stacked.layers and not starts[0].take()
    for name, maps in each.items():
        assert maps.shape[:3] == (2, 2, 1) and torch.allclose(maps, together[name], atol=1e-6)
    with pytest.raises(ValueError, match="no multiple of rows_per_step=3"), torch.no_grad():
        with CrossAttentionRecorder(unet, rows_per_step=3):
            unet(latents, times, states)
    assert all(isinstance(m.processor, AttnProcessor2_0) for m in find_layers(unet).values())


def test_ragged_tokens(unet):
    full = kept(unet, "mean")
    ragged = kept(unet, "mean", [[1], [2, 4, 5]])
    everything = full.maps()
    assert torch.allclose(ragged.mean()[0], everything[0, 1], atol=1e-6)
    assert torch.allclose(ragged.mean()[1], everything[1, [2, 4, 5]].mean(0), atol=1e-6)
    maps = ragged.maps()
    assert maps.shape == (2, 3, 16, 16) and maps[0, 1:].isnan().all()
    assert not maps[1].isnan().any()
    assert torch.allclose(full.mean([[1], [2, 4, 5]]), ragged.mean(), atol=1e-6)
    assert torch.allclose(kept(unet, "steps", [[1], [2, 4, 5]]).mean(), ragged.mean(), atol=1e-3)
    with pytest.raises(ValueError, match=r"tokens \[3\] were not recorded: choose from \(1,\)"):
        ragged.mean([[3], [2]])


def test_rows_pick_the_conditional_half(unet):
    latents, states = inputs(4)
    half = CrossAttentionRecorder(unet, rows=slice(2, None))
    whole = CrossAttentionRecorder(unet)
    for recorder in (half, whole):
        with recorder, torch.no_grad():
            unet(latents, 5, states)
    assert torch.allclose(half.maps(), whole.maps()[2:], atol=1e-6)


def test_only_chosen_layers_are_captured(unet):
    up = kept(unet, "layers", layers="up")
    assert up.layers == [n for n in find_layers(unet) if n.startswith("up")]
    by_size = kept(unet, "layers", layers=[8, "mid"])
    assert set(by_size.sizes.values()) == {(8, 8)}
    full = kept(unet, "layers")
    assert torch.allclose(by_size.mean(), full.mean(layers=8), atol=1e-6)
    with pytest.raises(ValueError, match="matches none"), CrossAttentionRecorder(unet, layers="x"):
        pass


def hooks(module):
    return [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]  # noqa: SLF001


def test_processors_come_back_after_errors_and_nesting_is_refused(unet):
    before = dict(unet.attn_processors)
    with pytest.raises(KeyError), CrossAttentionRecorder(unet):
        raise KeyError
    assert unet.attn_processors == before
    with CrossAttentionRecorder(unet) as outer:
        selfs = [p for n, p in unet.attn_processors.items() if ".attn1." in n]
        assert all(isinstance(p, AttnProcessor2_0) for p in selfs)
        for again in (outer, CrossAttentionRecorder(unet)):
            with pytest.raises(RuntimeError, match="already active"), again:
                pass
    assert unet.attn_processors == before
    assert not hooks(unet.conv_in)


def test_an_error_inside_the_unet_leaves_a_usable_recorder(unet):
    before = dict(unet.attn_processors)
    latents, states = inputs()
    recorder = CrossAttentionRecorder(unet, [1])
    with pytest.raises(RuntimeError), recorder, torch.no_grad():
        unet(latents, 5, states[..., :3])
    assert unet.attn_processors == before and not hooks(unet.conv_in)
    with pytest.raises(RuntimeError, match="failed midway: use a new recorder"):
        run(unet, recorder)  # its sums hold the layers before the error
    assert unet.attn_processors == before and not hooks(unet.conv_out)
    fresh = CrossAttentionRecorder(unet, [1])
    run(unet, fresh)
    assert unet.attn_processors == before and fresh.mean().isfinite().all()


def test_other_unets_are_left_alone(unet):
    other = make_unet()
    with CrossAttentionRecorder(unet), CrossAttentionRecorder(other, layers="up"):
        kinds = {n: type(p) for n, p in other.attn_processors.items() if ".attn2." in n}
    with CrossAttentionRecorder(unet):
        assert all(isinstance(p, AttnProcessor2_0) for p in other.attn_processors.values())
    assert {k.__name__ for k in kinds.values()} == {"_Capture", "AttnProcessor2_0"}


def test_custom_processors_are_refused():
    class Custom(AttnProcessor2_0):
        pass

    unet = make_unet()
    unet.set_attn_processor(Custom())
    with pytest.raises(TypeError, match="custom processor Custom"), CrossAttentionRecorder(unet):
        pass


@pytest.mark.parametrize("wrapped", [False, True])
def test_lora(wrapped):
    unet = make_unet()
    lora = LoraConfig(r=2, target_modules=["to_q", "to_k", "to_v"], init_lora_weights=False)
    adapted = get_peft_model(unet, lora) if wrapped else unet
    if not wrapped:
        unet.add_adapter(lora)
    recorder = CrossAttentionRecorder(adapted)
    latents, states = inputs()
    with torch.no_grad():
        plain = adapted(latents, 3, states).sample
        with recorder:
            recorded = adapted(latents, 3, states).sample
    assert (plain - recorded).abs().max() < 1e-5
    assert recorder.layers == list(find_layers(make_unet()))


def test_non_square_and_odd_latents(unet):
    recorder = CrossAttentionRecorder(unet, [1], "layers")
    run(unet, recorder, size=(6, 10), times=(1,))
    assert recorder.maps().shape == (2, 7, 1, 6, 10)
    assert set(recorder.sizes.values()) == {(6, 10), (3, 5)}
    assert native_size(12, (5, 7)) == (3, 4)
    with pytest.raises(ValueError, match="13 positions"):
        native_size(13, (8, 8))
    assert upsample(torch.eye(2), (4, 4)).sum() == 8


def test_memory_does_not_grow_with_steps(unet):
    sizes = []
    for times in ((1,), (1, 2, 3, 4)):
        recorder = CrossAttentionRecorder(unet)
        run(unet, recorder, times=times)
        sizes.append(recorder.nbytes)
    assert sizes[0] == sizes[1] == 2 * TOKENS * (16 * 16 + 8 * 8) * 4


def test_memory_is_that_of_the_tokens_and_resolutions_asked(unet):
    assert kept(unet, "mean", [1, 4]).nbytes == 2 * 2 * (16 * 16 + 8 * 8) * 4
    full = kept(unet, "all", [1, 4])  # two steps, native resolution, float16
    assert full.nbytes == 2 * 2 * 2 * sum(h * w for h, w in full.sizes.values()) * 2


def test_sums_of_a_half_precision_unet_are_float32():
    unet = make_unet().to(torch.bfloat16)
    latents, states = (x.bfloat16() for x in inputs())
    with torch.no_grad(), CrossAttentionRecorder(unet, [1, 2]) as recorder:
        for t in (900, 500, 1):
            unet(latents, t, states)
    assert recorder.nbytes == 2 * 2 * (16 * 16 + 8 * 8) * 4
    assert recorder.mean().dtype == torch.float32 and recorder.mean().isfinite().all()


def test_one_layer_by_its_name(unet):
    name = list(find_layers(unet))[3]
    one, full = kept(unet, "layers", [1], layers=name), kept(unet, "layers", [1])
    assert one.layers == [name]
    assert torch.allclose(one.mean(), full.mean(layers=name), atol=1e-6)


@pytest.mark.parametrize(
    ("keep", "choice", "message"),
    [
        ("mean", {"layers": "up"}, "layers were averaged"),
        ("layers", {"steps": [0]}, "steps were averaged"),
        ("steps", {"tokens": [1]}, "tokens were averaged"),
        ("layers", {"layers": 99}, "matches none"),
        ("mean", {"tokens": [99]}, "were not recorded"),
        ("all", {"steps": [0, 77]}, r"steps=\[0, 77\]: choose from 0 to 1"),
        ("all", {"steps": [-1]}, r"choose from 0 to 1"),
        ("all", {"tokens": []}, "no tokens asked for sample 0"),
    ],
)
def test_impossible_selections(unet, keep, choice, message):
    with pytest.raises(ValueError, match=message):
        kept(unet, keep, [1, 2]).mean(**choice)


def test_tokens_may_be_arrays(unet):
    want = kept(unet, "mean", [1, 2]).mean()
    for given in (torch.tensor([1, 2]), np.array([1, 2]), list(np.array([1, 2]))):
        assert torch.equal(kept(unet, "mean", given).mean(), want)
    rows = [[1, 2], [3, 4]]
    assert torch.equal(
        kept(unet, "mean", torch.tensor(rows)).mean(), kept(unet, "mean", rows).mean()
    )


def test_maps_of_a_sample_reduce_over_any_axis():
    maps = {"down_blocks.a": torch.rand(3, 2, 2, 2), "up_blocks.b": torch.rand(3, 2, 4, 4)}
    found = AttentionMaps(maps, (4, 4), tuple(maps), (9, 5, 1), (0, 7), (1, 3))
    down, up = (upsample(m, (4, 4)) for m in maps.values())  # t n H W
    close = {"atol": 1e-6}
    token = found.mean([7], steps=[0, 2])
    assert torch.allclose(token, (down[[0, 2], 1] + up[[0, 2], 1]).mean(0) / 2, **close)
    weighted = (up[:, 0] + 3 * up[:, 1]).mean(0) / 4  # the second column stands for three tokens
    assert torch.allclose(found.mean(layers="up"), weighted, **close)
    assert torch.allclose(found.by_step(layers=4)["up_blocks.b"].mean(0), weighted, **close)
    assert torch.allclose(found.by_token(), (down + up).mean(0) / 2, **close)
    assert torch.allclose(found.token_means(), found.by_token().mean((1, 2)), **close)
    assert torch.equal(found.upsampled([7])[:, 1, 0], up[:, 1])
    assert found.sizes == {"down_blocks.a": (2, 2), "up_blocks.b": (4, 4)}
    assert found.nbytes == 4 * 3 * 2 * (4 + 16)


def test_misuse(unet):
    with pytest.raises(RuntimeError, match="nothing recorded"):
        CrossAttentionRecorder(unet).mean()
    with pytest.raises(ValueError, match="keep='some'"):
        CrossAttentionRecorder(unet, keep="some")
    with pytest.raises(ValueError, match="no cross-attention"):
        find_layers(torch.nn.Linear(1, 1))
    with pytest.raises(ValueError, match=r"not all in 0\.\.6"):
        kept(unet, "mean", [7])
    with pytest.raises(ValueError, match="changed from"):
        recorder = kept(unet, "mean")
        run(unet, recorder, batch=3)


def test_fused_projections_that_changed_are_the_ones_recorded():
    unet = make_unet()
    unet.fuse_qkv_projections()
    with torch.no_grad():
        for attn in find_layers(unet).values():
            attn.to_kv.weight.mul_(-1.5)
    recorder = CrossAttentionRecorder(unet)
    (recorded,) = run(unet, recorder, times=(900,))
    latents, states = inputs(seed=900)
    with torch.no_grad():
        plain = unet(latents, 900, states).sample
    torch.testing.assert_close(recorded, plain, rtol=1e-4, atol=1e-5)


def test_gradient_checkpointing_while_recording_is_refused():
    unet = make_unet().train()
    unet.enable_gradient_checkpointing()
    recorder = CrossAttentionRecorder(unet)
    latents, states = inputs()
    with pytest.raises(RuntimeError, match=r"twice.*no_grad"), recorder:
        unet(latents, 900, states)
    assert run(unet, CrossAttentionRecorder(unet))


def test_scores_beyond_float16_stay_finite():
    unet = make_unet().half()
    for attn in find_layers(unet).values():
        attn.to_q.weight.data.mul_(3e3)
        attn.to_k.weight.data.mul_(3e3)
    recorder = CrossAttentionRecorder(unet)
    latents, states = inputs()
    with torch.no_grad(), recorder:
        unet(latents.half(), 900, states.half())
    assert torch.isfinite(recorder.mean()).all()


@torch.no_grad()
@pytest.mark.parametrize("layers", [None, "down", 8])
def test_few_tokens_beside_the_fused_kernel(unet, layers):
    """Equal maps to 1e-6, and the U-Net's own output to the last digit."""
    tokens = [[0, 1, 3], [0, 5]]
    options = {"rows_per_step": 2, "layers": layers, "dtype": torch.float32}
    few = CrossAttentionRecorder(unet, tokens, "all", **options)
    whole = CrossAttentionRecorder(unet, None, "all", **options)
    latents, states = inputs(4)
    plain = unet(latents, 7, states).sample
    with few:
        assert torch.equal(unet(latents, 7, states).sample, plain)
    with whole:
        unet(latents, 7, states)
    for b, own in enumerate(tokens):
        found, known = few.sample(b).upsampled(), whole.sample(b).upsampled(tokens=own)
        assert found.shape == known.shape and (found - known).abs().max() < 1e-6


@torch.no_grad()
@pytest.mark.parametrize(("layers", "ended"), [(None, 2), ("down", 2), (8, 1)])
def test_a_forward_may_end_after_the_last_recorded_layer(unet, layers, ended):
    """Equal maps to the last digit; a choice by height knows its last layer after one forward."""
    short = CrossAttentionRecorder(unet, [0, 2], "layers", layers=layers, stop=True)
    whole = CrossAttentionRecorder(unet, [0, 2], "layers", layers=layers)
    latents, states = inputs()
    outputs = []
    for _ in range(2):
        with short:
            outputs.append(unet(latents, 7, states).sample)
        with whole:
            unet(latents, 7, states)
    assert len(outputs) == 2 - ended and short.layers == whole.layers
    for b in range(2):
        one, other = short.sample(b), whole.sample(b)
        assert all(torch.equal(one[name], other[name]) for name in other)
