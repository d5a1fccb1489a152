"""The zero-shot method against outputs of its authors' code, and on a tiny model."""

import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from safetensors.torch import load_file

from g2g_utils import metrics_vilouras, sampling
from g2g_utils.attention import find_layers
from g2g_utils.methods import zero_shot_ldm as method
from g2g_utils.methods.base import Query
from g2g_utils.text import tokenize
from tests.duck import PHRASES, Model

SHARED = Path(os.environ.get("G2G_SHARED", Path(__file__).parents[4] / "shared"))
FULL = SHARED / "reference" / "vilouras" / "reference_open.npz"
CUT = Path(__file__).parents[2] / "vectors" / "vilouras.npz"
LAYERS = ("03", "04", "06", "07")  # that the authors read


@pytest.fixture(scope="module", params=[CUT, FULL], ids=["cut", "full"])
def stored(request):
    if not request.param.is_file():
        pytest.skip(f"no full vectors at {FULL}; the repository's part was tested (G2G_SHARED)")
    return np.load(request.param)


def close(ours, theirs, tolerance=1e-6):
    theirs = torch.as_tensor(np.asarray(theirs))
    assert ours.shape == theirs.shape
    assert (ours.double() - theirs.double()).abs().max() <= tolerance


# -- from attention to heat --------------------------------------------------------------------


@pytest.mark.parametrize("case", ["phrase64", "phrase128", "word64", "onestep64", "latent16"])
def test_aggregation(stored, case):
    if f"A.{case}.args" not in stored.files:
        pytest.skip("not in the repository's part")
    first, last, start, stop, side = stored[f"A.{case}.args"]
    maps = []
    for layer in LAYERS:
        phrase = torch.from_numpy(stored[f"A.attention.{layer}"])[start:stop, -1]  # t hw n
        maps.append(phrase[..., first:last].mean(-1).reshape(-1, 8, 8))
    mean, constant, count = method.aggregate(maps, int(side))
    assert (constant, count) == (0, 4 * (stop - start))
    close(mean, stored[f"A.{case}.unsmoothed"])
    made = method.postprocess(mean, 2.5)
    close(made.smoothed, stored[f"A.{case}.smoothed"])
    close(made.scaled, stored[f"A.{case}.normalised"])
    assert made.threshold == pytest.approx(float(stored[f"A.{case}.otsu"]), abs=1e-6)
    assert (made.mask.numpy() != stored[f"A.{case}.mask"]).sum() <= 2
    close(made.heat, stored[f"A.{case}.final"])


@pytest.mark.parametrize("case", range(4))
def test_postprocessing_of_smooth_noisy_two_level_and_skewed_maps(stored, case):
    raw = torch.from_numpy(stored[f"B.{case}.raw"])
    blurred = method.postprocess(raw, 2.5)
    close(blurred.smoothed, stored[f"B.{case}.gaussian"])
    made = method.postprocess(raw, 0)
    close(made.scaled, stored[f"B.{case}.normalised"])
    assert made.threshold == pytest.approx(float(stored[f"B.{case}.otsu2"][0]), abs=1e-6)
    assert np.array_equal(made.mask.numpy(), stored[f"B.{case}.mask2"])
    close(made.heat, stored[f"B.{case}.final"])


def test_scaling_comes_before_the_mean_and_before_the_enlargement():
    strong, weak = torch.zeros(2, 1, 4, 4)
    strong[0, 0, 0], weak[0, 3, 3] = 1.0, 0.01
    mean, _, _ = method.aggregate([strong, weak], 16)
    after, _, _ = method.aggregate([strong, weak], 16, scaled=False)
    assert mean[-1, -1] == mean[0, 0] == pytest.approx(0.5)
    assert after[-1, -1] < 0.02 * after[0, 0]


def test_constant_maps_are_left_out_and_counted():
    flat, peak = torch.full((2, 4, 4), 0.1), torch.zeros(1, 4, 4)
    peak[0, 1, 1] = 1
    mean, constant, count = method.aggregate([flat, peak], 8)
    assert (constant, count) == (2, 3) and mean.max() > 0.5
    assert method.aggregate([flat], 8) == (None, 2, 2)
    assert method.postprocess(torch.zeros(8, 8), 1.0) is None


def test_the_window_is_by_index():
    assert method.step_window(300) == range(120, 180)
    assert method.step_window(50) == range(20, 30)
    assert method.step_window(10) == range(4, 6)


# -- inversion ---------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [300, 250, 50, 100, 1000, 999, 7])
def test_timesteps(stored, count):
    model = SimpleNamespace(scheduler=DDIMScheduler())
    expected = stored[f"D.timesteps.{count}"].tolist()
    assert sampling.inversion_timesteps(model, count) == expected
    assert sampling.timesteps(model, count, "inversion") == expected[::-1]


@pytest.mark.parametrize("schedule", ["D.alphas_cumprod", "D.sd_alphas_cumprod"])
def test_levels_of_both_variants(stored, schedule):
    kept = stored[schedule]
    ends = (0.00085, 0.012) if "sd" in schedule else (0.0015, 0.0205)
    scheduler = DDIMScheduler(
        beta_start=ends[0], beta_end=ends[1], beta_schedule="scaled_linear", steps_offset=1
    )
    repository, package = (
        sampling.inversion_moves(SimpleNamespace(scheduler=scheduler), 50, kind) for kind in "RP"
    )
    assert [m.time for m in repository] == list(range(19, 1000, 20)) == [m.time for m in package]
    starts = [m.start for m in repository]
    assert starts[0] == 1
    assert starts[1:] == pytest.approx(kept[19:-1:20], abs=1e-7)
    assert [m.end for m in repository] == pytest.approx(kept[19::20], abs=1e-7)
    assert [m.start for m in package] == pytest.approx(kept[19::20], abs=1e-7)
    assert [m.end for m in package] == pytest.approx([*kept[39::20], 0], abs=1e-7)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("start, end", [(0.9, 0.4), (0.4, 0.9), (0.9, 0.0)])
def test_a_move_keeps_image_and_noise(prediction, start, end):
    clean, noise = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0)).double()
    given = {
        "epsilon": noise,
        "sample": clean,
        "v_prediction": start**0.5 * noise - (1 - start) ** 0.5 * clean,
    }[prediction]
    latents = start**0.5 * clean + (1 - start) ** 0.5 * noise
    moved = sampling.move(latents, given, sampling.Move(5, start, end), prediction)
    torch.testing.assert_close(
        moved, (end**0.5 * clean + (1 - end) ** 0.5 * noise).float(), atol=1e-5, rtol=0
    )


def test_what_a_move_cannot_do_is_one_line():
    x = torch.zeros(1)
    with pytest.raises(ValueError, match="begins at clean latents"):
        sampling.move(x, x, sampling.Move(1, 1.0, 0.9), "sample")
    with pytest.raises(ValueError, match="prediction type 'flow'"):
        sampling.move(x, x, sampling.Move(1, 0.9, 0.8), "flow")
    for count in (0, 1001):
        with pytest.raises(ValueError, match=f"inversion in {count} timesteps"):
            sampling.inversion_timesteps(Model(), count)


class Published(Model):
    """The vectors' network and text states; latents are given, the phrase's ids too."""

    def __init__(self, stored, prediction="v_prediction", ends=(0.0015, 0.0205)):
        self.stored = stored
        self.unet = UNet2DConditionModel(
            sample_size=16,
            block_out_channels=(16, 32),
            down_block_types=("CrossAttnDownBlock2D",) * 2,
            up_block_types=("CrossAttnUpBlock2D",) * 2,
            layers_per_block=2,
            attention_head_dim=1,
            cross_attention_dim=24,
            norm_num_groups=8,
            norm_eps=1e-6,
        ).eval()
        self.unet.load_state_dict(load_file(FULL.parent / "unet_open.safetensors"))
        start, end = ends
        self.scheduler = DDIMScheduler(
            beta_start=start,
            beta_end=end,
            beta_schedule="scaled_linear",
            prediction_type=prediction,
        )
        self.text_encoder = torch.nn.Linear(1, 1)
        self.empty = torch.from_numpy(stored["D.context"])[:1]

    def tokenizer(self, text, **_):
        ids = torch.tensor([[1] + [2] * 11])
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def encode_text(self, input_ids, attention_mask):
        if self.empty is not None:
            return self.empty
        tables = (torch.from_numpy(self.stored[f"E.{n}_table"]) for n in ("embedding", "position"))
        embedding, position = tables
        return torch.tanh(embedding[input_ids] + position)


needs_network = pytest.mark.skipif(not FULL.is_file(), reason=f"no full vectors at {FULL}")


@needs_network
@pytest.mark.parametrize("kind, prediction, guidance, ends, limit", [
    ("repo_step.v_prediction.g0", "v_prediction", 0, (0.0015, 0.0205), 1e-4),
    ("repo_step.v_prediction.g7", "v_prediction", 7, (0.0015, 0.0205), 1e-3),
    ("repo_step.epsilon.g0", "epsilon", 0, (0.0015, 0.0205), 1e-4),
    ("repo_step.epsilon.g1", "epsilon", 1, (0.0015, 0.0205), 2e-4),
    ("repo_step.sd_schedule.v_prediction.g0", "v_prediction", 0, (0.00085, 0.012), 1e-4),
])  # fmt: skip
def test_walks_of_the_published_network(kind, prediction, guidance, ends, limit):
    stored = np.load(FULL)
    model, latents = Published(stored, prediction, ends), torch.from_numpy(stored["D.latents"])
    moves, context = sampling.inversion_moves(model, 50), torch.from_numpy(stored["D.context"])
    walked = []

    def guided():
        x = latents
        for step in moves:
            rows = x.repeat(2, 1, 1, 1), torch.tensor(step.time), context
            empty, phrase = (yield sampling.Forward(*rows, range(0))).chunk(2)
            x = sampling.move(x, empty + guidance * (phrase - empty), step, prediction)
            walked.append(x)

    def plain():
        walked.extend((yield from sampling.walk(model, latents, moves))[1:])

    sampling.run(model, guided() if guidance else plain())
    for i, expected in zip(stored["D.n50.kept_steps"], stored[f"D.n50.{kind}"], strict=True):
        close(walked[i][0], expected, limit)


@needs_network
@pytest.mark.slow
@pytest.mark.parametrize("variant, key", [("R", "repo_step"), ("P", "package_step")])
def test_the_walk_of_334_moves(variant, key):
    stored = np.load(FULL)
    model, latents = Published(stored), torch.from_numpy(stored["D.latents"])
    moves, walked = sampling.inversion_moves(model, 300, variant), []
    assert len(moves) == 334

    def plain():
        walked.extend((yield from sampling.walk(model, latents, moves))[1:])

    sampling.run(model, plain())
    for i, expected in zip(
        stored["D.kept_steps"], stored[f"D.n300.{key}.v_prediction.g0"], strict=False
    ):
        close(walked[i][0], expected, 1e-4 if i <= 180 else 1e-3)


@needs_network
def test_one_forward_of_the_converted_network():
    stored = np.load(FULL)
    x, context = (torch.from_numpy(stored[f"U.{name}"]) for name in ("x", "context"))
    with torch.no_grad():
        found = Published(stored).unet(x, int(stored["U.t"][0]), context).sample
    close(found, stored["U.out"], 2e-5)


class Films(Published):
    """The vectors' way from a picture to a latent; phrases are known by their ids."""

    image_size, max_length = 512, 12

    def __init__(self, stored):
        super().__init__(stored)
        self.empty = None

    def image_posterior(self, images):
        pooled = torch.nn.functional.avg_pool2d(images[:, :1], 32)
        padded = torch.nn.functional.pad(pooled, (1,) * 4, mode="replicate")
        patches = torch.nn.functional.unfold(padded, 3)  # b 9 hw
        weights = torch.from_numpy(self.stored["E.projection"])
        mean = (weights @ patches).unflatten(2, (16, 16)) * 4 * 0.3
        return mean, torch.zeros_like(mean)


@needs_network
@pytest.mark.slow
@pytest.mark.parametrize("case, count", [(0, 300), (0, 50), (1, 50), (2, 50)])
def test_the_authors_script_end_to_end(case, count):
    """Three films of other shapes, at 512 pixels: the map, the mask and the four metrics."""
    stored = np.load(FULL)
    model, ids = Films(stored), stored[f"E.{case}.token_ids"]
    pixels = torch.from_numpy(stored[f"E.{case}.pixels"]).float()[None, None] / 255
    height, width = pixels.shape[2:]
    short = min(height, width)
    size = [int(512 * n / short) for n in (height, width)]
    film = torch.nn.functional.interpolate(pixels, size, mode="bilinear")[0]
    top, left = ((n - 512) // 2 for n in size)
    film = film[:, top : top + 512, left : left + 512]
    close(film[0, ::8, ::8], stored[f"E.{case}.input_sampled8"])
    padded = torch.tensor([[*ids.tolist(), *[2] * (12 - len(ids))]])
    phrase = SimpleNamespace(text="x", input_ids=padded, attention_mask=torch.ones_like(padded))
    layers = list(find_layers(model.unet))
    chosen = [layers[i] for i in (3, 4, 6, 7)]
    assert set(chosen) < set(method.coarsest(model.unet)) == {*chosen, layers[2], layers[5]}
    asked = method.ZeroShotLDM(name="theirs", model=model, timesteps=count, layers=chosen)
    (maps,) = asked.record([film], [phrase], [list(range(1, len(ids) - 1))])
    mean, _, _ = method.aggregate((m[:, 0] for m in maps.values()), 512)
    made = method.postprocess(mean, 2.5)
    expected = torch.from_numpy(stored[f"E.n{count}.{case}.heatmap512_sampled4"])
    ours = made.heat[::4, ::4]
    assert ((ours > 0) != (expected > 0)).sum() <= 8
    both = (ours > 0) & (expected > 0)
    assert (ours - expected)[both].abs().max() <= 1e-4
    boxes = stored[f"E.{case}.boxes"]
    found = metrics_vilouras.in_original(made.heat, boxes, height, width)
    names = {"cnrs": "abs_cnr", "nonabs_cnrs": "cnr", "mious": "miou", "aucrocs": "auc"}
    for theirs, name in names.items():
        if count == 300:
            value = stored[f"E.n300.0.{theirs}"][0]
        else:
            finding, place = ("Lung Opacity", 0) if case == 1 else ("Pleural Effusion", case // 2)
            value = stored[f"E.n50.{theirs}.{finding}"][place]
        assert found[f"vilouras_{name}"] == pytest.approx(value, abs=1e-3)
    if (key := f"E.n{count}.{case}.sim_map") in stored.files:
        frame = metrics_vilouras.to_original(made.heat, height, width)
        assert np.array_equal(np.isnan(frame), np.isnan(stored[key]))
        assert (np.nan_to_num(np.abs(frame - stored[key])) > 1e-4).sum() <= 8


# -- as a method --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model():
    return Model()


@pytest.fixture
def images():
    return torch.rand(3, 1, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def rows(model, monkeypatch):
    """Rows that the U-Net sees, forward by forward; and nothing remembered."""
    monkeypatch.setattr(sampling, "TRAJECTORIES", sampling.Cache(2**20))
    seen = []
    hook = model.unet.conv_in.register_forward_pre_hook(lambda m, args: seen.append(len(args[0])))
    yield seen
    hook.remove()


def test_the_first_phrase_costs_239_rows_and_another_60(model, images, rows):
    asked = method.ZeroShotLDM(name="zero-shot", model=model)
    (first,) = asked.ground([Query(images[0], PHRASES[0])])
    assert sum(rows) == 179 + 60
    assert rows.count(1) == 179 and len(rows) == 179 + 4  # the window goes 16 rows at a time
    rows.clear()
    asked.ground([Query(images[0], PHRASES[1])])
    assert sum(rows) == 60
    rows.clear()
    both = [Query(images[1], phrase) for phrase in PHRASES[:2]]
    asked.ground(both)
    assert sum(rows) == 179 + 2 * 60
    assert first.exists and first.details["sigma"] == pytest.approx(2.5 / 32 * 32 / 8)


def test_films_walk_together_and_fifty_steps_cost_39_rows(model, images, rows):
    asked = method.ZeroShotLDM(name="zero-shot", model=model, timesteps=50)
    found = asked.ground([Query(image, PHRASES[0]) for image in images])
    assert sum(rows) == 3 * 39 and rows.count(3) >= 29
    alone = asked.ground([Query(images[2].clone(), PHRASES[0])])  # the same pixels: remembered
    assert sum(rows) == 3 * 39 + 10
    torch.testing.assert_close(alone[0].values, found[2].values, atol=1e-4, rtol=0)


def test_memory_for_walks_is_bounded(model, images, rows, monkeypatch):
    walk = 4 * 16 * 16 * 4 * 10  # bytes of a window of ten float32 latents
    monkeypatch.setattr(sampling, "TRAJECTORIES", sampling.Cache(2 * walk))
    asked = method.ZeroShotLDM(name="zero-shot", model=model, timesteps=50)
    queries = [Query(image, PHRASES[0]) for image in images]
    first = asked.ground(queries)
    assert len(sampling.TRAJECTORIES) == 2 and sampling.TRAJECTORIES.nbytes == 2 * walk
    again = asked.ground(queries[::-1])[::-1]
    assert sum(rows) == 3 * 39 + (29 + 3 * 10)  # one film was forgotten
    for a, b in zip(first, again, strict=True):
        torch.testing.assert_close(a.values, b.values, atol=1e-4, rtol=0)


def test_changed_weights_walk_again(model, images, rows):
    asked = method.ZeroShotLDM(name="zero-shot", model=model, timesteps=50)
    asked.ground([Query(images[0], PHRASES[0])])
    with torch.no_grad():
        weight = next(w for n, w in model.unet.named_parameters() if "attn2.to_q" in n)
        weight.add_(0.1)
        asked.ground([Query(images[0], PHRASES[0])])
        weight.sub_(0.1)
    assert sum(rows) == 2 * 39


def test_the_map_is_the_attention_of_the_middle_steps(model, images):
    """Step by step, one row at a time, both prompts in every forward: the authors' way."""
    phrase = tokenize(model.tokenizer, PHRASES[0], model.max_length)
    states = torch.cat([sampling.empty_states(model),
                        model.encode_text(phrase.input_ids, phrase.attention_mask)])  # fmt: skip
    x, maps = sampling.posterior(model, [images[0]]).mean, {}
    layers = method.coarsest(model.unet)
    assert all(len(find_layers(model.unet)[n].to_q.weight) == 16 for n in layers)
    queries = {}
    hooks = [
        find_layers(model.unet)[name].register_forward_pre_hook(
            lambda m, args, kwargs, n=name: queries.update({n: args[0][1]}), with_kwargs=True
        )
        for name in layers
    ]
    with torch.no_grad():
        for i, step in enumerate(sampling.inversion_moves(model, 50)):
            out = model.unet(x.repeat(2, 1, 1, 1), step.time, states).sample
            for name in layers if 20 <= i < 30 else ():
                attn = find_layers(model.unet)[name]
                q, k = (p.unflatten(-1, (2, -1)).transpose(0, 1)
                        for p in (attn.to_q(queries[name]), attn.to_k(states[1])))  # fmt: skip
                scores = (q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).softmax(-1).mean(0)
                maps.setdefault(name, []).append(scores[:, list(phrase.inner)].mean(-1).view(8, 8))
            x = sampling.move(x, out[:1], step, "epsilon")
    for hook in hooks:
        hook.remove()
    mean, _, _ = method.aggregate((torch.stack(found) for found in maps.values()), 32)
    expected = method.postprocess(mean, 2.5 / 32 * 4)
    asked = method.ZeroShotLDM(name="zero-shot", model=model, timesteps=50)
    (found,) = asked.ground([Query(images[0], PHRASES[0])])
    assert (found.values - expected.heat).abs().max() < 1e-3
    assert torch.equal(found.mask, expected.mask)


def test_a_model_without_any_contrast_gets_a_note(images):
    model = Model()
    with torch.no_grad():
        for name, weight in model.unet.named_parameters():
            if ".attn2.to_k." in name:
                weight.zero_()
    asked = method.ZeroShotLDM(name="zero-shot", model=model, timesteps=10)
    (found,) = asked.ground([Query(images[0], PHRASES[0])])
    assert not found.exists and found.note == "constant attention: 8 of 8 maps"


def test_windows_and_layers_that_do_not_exist_are_one_line(model, images):
    asked = {"name": "zero-shot", "model": model, "timesteps": 10}
    with pytest.raises(ValueError, match="steps 8 to 12 of 10"):
        method.ZeroShotLDM(**asked, window=range(8, 13)).ground([Query(images[0], PHRASES[0])])
    with pytest.raises(ValueError, match="matches none of"):
        method.ZeroShotLDM(**asked, layers=["up_blocks.7"]).ground([Query(images[0], PHRASES[0])])
    with pytest.raises(ValueError, match=r"need \[1 or 3, 32, 32\]"):
        method.ZeroShotLDM(**asked).ground([Query(torch.rand(1, 32, 40), PHRASES[0])])


def test_the_walk_back_returns_to_the_film(model, images):
    latents = sampling.posterior(model, [images[0]]).mean
    errors = []
    for count in (10, 100):
        there, back = sampling.round_trip(model, latents, count)
        assert there.shape == back.shape == (count + 1, 1, 4, 16, 16)
        assert torch.equal(there[0], latents) and torch.equal(there[-1], back[-1])
        errors.append(float((back[0] - latents).norm() / latents.norm()))
    assert errors[1] < errors[0]
