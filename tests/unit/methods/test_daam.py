"""DAAM's aggregation against outputs of the authors' code, and as a method on a tiny model."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from g2g_utils import bbm, sampling
from g2g_utils.attention import Recorder, find_layers
from g2g_utils.grounding import ground
from g2g_utils.methods import daam
from g2g_utils.methods.base import Query
from g2g_utils.text import tokenize
from tests.duck import PHRASES, Model

SHARED = Path(os.environ.get("G2G_SHARED", Path(__file__).parents[4] / "shared"))
FULL = SHARED / "reference" / "daam" / "daam_open.npz"
CUT = Path(__file__).parents[2] / "vectors" / "daam.npz"
SIDES = {"mini": 16, "sd": 64}
KEEPS = {  # the option's name -> which keys (factor, layer, head) it keeps
    "default": lambda factor, layer, head: True,
    "normalized": lambda factor, layer, head: True,
    "layer1": lambda factor, layer, head: layer == 1,
    "head0": lambda factor, layer, head: head == 0,
    "factor1": lambda factor, layer, head: factor == 1,
    "factor2": lambda factor, layer, head: factor == 2,
}


class Vectors:
    """One case of the authors' outputs; the repository carries the small one."""

    def __init__(self, file, case):
        self.stored, self.case, self.side = np.load(file), case, SIDES[case]
        self.guided = file == FULL  # two halves of heads, of which DAAM keeps the second
        pieces = self["prompt"].item().split()
        self.pieces = [part for word in pieces for part in (word[:8], word[8:]) if part]

    def __getitem__(self, name):
        return self.stored[f"A.{self.case}.{name}"]

    def tensor(self, name):
        return torch.from_numpy(np.asarray(self[name]))

    def named(self, start):
        """Keys that begin so, without that beginning."""
        start = f"A.{self.case}.{start}."
        return [key.removeprefix(start) for key in self.stored.files if key.startswith(start)]

    def sums(self):
        """(factor, layer, head) -> sums over the steps [tokens, h, w], from the attention."""
        found = {}
        for step in self.named("attention"):
            layer = int(step.split(".l")[1])
            probs = self.tensor(f"attention.{step}")  # heads hw tokens
            if self.guided:
                probs = probs[len(probs) // 2 :]
            side = int(probs.shape[1] ** 0.5)
            for head, one in enumerate(probs):
                key = (self.side // side, layer, head)
                found[key] = found.get(key, 0) + one.T.unflatten(1, (side, side))
        return found

    def global_map(self, option):
        kept = [maps for key, maps in self.sums().items() if KEEPS[option](*key)]
        count = len(self.pieces) + 2
        return daam.global_map(kept, (self.side, self.side), count, option == "normalized")


@pytest.fixture(
    scope="module",
    params=[
        (CUT, "mini"),
        pytest.param((FULL, "mini"), marks=pytest.mark.slow),
        pytest.param((FULL, "sd"), marks=pytest.mark.slow),
    ],
    ids=["cut", "full", "full-sd"],
)
def vectors(request):
    """The repository's part, then the full vectors."""
    if not request.param[0].is_file():
        pytest.skip(f"no full vectors at {FULL}; the repository's part was tested (G2G_SHARED)")
    return Vectors(*request.param)


def close(ours, theirs, tolerance=1e-6):
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= tolerance


def test_sums_over_the_steps(vectors):
    sums = vectors.sums()
    for name in vectors.named("raw"):
        key = tuple(int(part[1:]) for part in name.split("."))
        close(sums.pop(key), vectors.tensor(f"raw.{name}"))
    assert not sums


@pytest.mark.parametrize("option", KEEPS)
def test_global_and_word_maps(vectors, option):
    found = vectors.global_map(option)
    close(found, vectors.tensor(f"global.{option}"))
    for word in ("effusion", "cardiomegaly", "small"):
        parts = [part for part in (word[:8], word[8:]) if part]
        tokens = daam.word_tokens(vectors.pieces, parts)
        close(found[tokens].mean(0), vectors.tensor(f"word.{option}.{word}"))


def test_tokens_of_words_and_phrases(vectors):
    for name in vectors.named("merge_indices"):
        parts = [part for part in (name[:8], name[8:]) if part]
        assert daam.word_tokens(vectors.pieces, parts) == vectors[f"merge_indices.{name}"].tolist()
    phrase = daam.word_tokens(vectors.pieces, ["small", "effusion"])
    close(vectors.global_map("default")[phrase].mean(0), vectors.tensor("word.default.phrase"))


@pytest.mark.parametrize("width, height", [(64, 64), (48, 80)])
def test_maps_in_the_image(vectors, width, height):
    heat = vectors.tensor("word.default.cardiomegaly")
    name, size = f"expand.{width}x{height}", (height, width)
    for key, options in ((name, {}), (f"{name}.absolute", {"absolute": True})):
        close(daam.expand_as(heat, size, compat="published", **options), vectors.tensor(key), 1e-5)
    mask = daam.expand_as(heat, size, compat="published", threshold=0.4)
    assert torch.equal(mask.bool(), vectors.tensor(f"{name}.threshold0.4"))
    assert daam.expand_as(heat, size).shape == size  # ours stands upright


def test_expansion_keeps_places_of_images_that_are_not_square():
    heat = torch.zeros(8, 8)
    heat[1, 6] = 1  # top right
    wide = daam.expand_as(heat, (40, 120))
    assert np.unravel_index(int(wide.argmax()), wide.shape) in [(7, 97), (7, 96), (7, 98)]
    assert (wide.min(), wide.max()) == (0, pytest.approx(1))


def test_enlarged_maps_are_never_negative_and_the_clamp_comes_before_the_mean():
    spike, flat = torch.zeros(1, 4, 4), torch.full((1, 8, 8), 0.05)
    spike[0, 1, 1] = 1
    assert torch.nn.functional.interpolate(spike[None], (8, 8), mode="bicubic").min() < -0.01
    found = daam.global_map([spike, flat], (8, 8), tokens=1)
    assert found.min() == pytest.approx(0.025)  # clamping the mean would give less


def test_unknown_words_and_missing_layers_are_errors():
    for word in (["cyst"], ["small", "lung"], []):
        with pytest.raises(ValueError, match="does not occur"):
            daam.word_tokens(["small", "effusion"], word)
    with pytest.raises(ValueError, match="no attention"):
        daam.global_map([], (8, 8), 3)


# -- as a method --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model():
    return Model()


@pytest.fixture(scope="module")
def image():
    return torch.rand(1, 32, 32, generator=torch.Generator().manual_seed(1))


def test_a_map_is_the_aggregation_of_what_the_heads_saw(model, image):
    """By hooks of the test's own on the attention's projections, one timestep at a time."""
    (found,) = daam.DAAM("daam", model, timesteps=3).ground([Query(image, PHRASES[0])])
    phrase = tokenize(model.tokenizer, PHRASES[0], model.max_length)
    layers = {n: m for n, m in find_layers(model.unet).items() if "mid" not in n}
    inputs, sums = {}, {}
    hooks = [
        module.register_forward_pre_hook(
            lambda m, args, kwargs, n=n: inputs.update({n: args[0]}), with_kwargs=True
        )
        for n, module in layers.items()
    ]
    states = model.encode_text(phrase.input_ids, phrase.attention_mask)
    posterior = sampling.posterior(model, [image])
    with torch.no_grad():
        for t in sampling.timesteps(model, 3):
            model.unet(sampling.noised(model, posterior, t, 0)[0], t, states)
            for name, module in layers.items():
                queries, keys = module.to_q(inputs[name])[0], module.to_k(states)[0]
                side = int(len(queries) ** 0.5)
                width = queries.shape[1] // module.heads
                for head in range(module.heads):
                    part = slice(head * width, (head + 1) * width)
                    scores = queries[:, part] @ keys[:, part].T / width**0.5
                    maps = scores.softmax(-1).T.unflatten(1, (side, side))
                    sums[name, head] = sums.get((name, head), 0) + maps
    for hook in hooks:
        hook.remove()
    assert len(sums) == 2 * len(layers)
    maps = daam.global_map(sums.values(), (16, 16), phrase.end + 1)
    heat = maps[1:4].mean(0)
    expected = (heat - heat.min()) / (heat.max() - heat.min())
    assert (found.values - expected).abs().max() < 1e-4


def test_it_differs_from_the_mean_over_heads_by_the_clamp_alone(model, image):
    """So on layers of the latents' size it is G2G's own activation map."""
    layers = [n for n, m in find_layers(model.unet).items() if n.startswith("down_blocks.0")]
    ours = ground(model, image, "opacity", timesteps=3, keep_last=3, layers=layers)
    sums = daam.HeadSums()
    phrase = tokenize(model.tokenizer, "opacity", model.max_length)
    states = model.encode_text(phrase.input_ids, phrase.attention_mask)
    request = sampling.Request(
        images=[image], phrases=["opacity"], states=states, timesteps=3, windows=[range(3)]
    )
    recorder = Recorder(model.unet, [sums], 1, layers=layers)
    sampling.run(model, sampling.ground_truth(model, request), lambda _: recorder)
    maps = daam.global_map(sums.keys(0), (16, 16), phrase.end + 1)
    assert (bbm.minmax(maps[1]) - ours.activation).abs().max() < 1e-4


def test_settings_act_and_rows_are_counted(model, image):
    rows = []
    hook = model.unet.conv_in.register_forward_pre_hook(lambda m, args: rows.append(len(args[0])))
    plain, normal, other = (
        daam.DAAM("daam", model, timesteps=4, **changes).ground([Query(image, PHRASES[1])])[0]
        for changes in ({}, {"normalize": True}, {"filter": "all"})
    )
    hook.remove()
    assert sum(rows) == 3 * 4
    assert (plain.values - normal.values).abs().max() > 1e-3
    assert (plain.values - other.values).abs().max() > 1e-3


def test_words_that_the_maximum_length_cuts_off_are_named(model, image):
    long = " ".join(["left effusion"] * 6)
    (found,) = daam.DAAM("daam", model, timesteps=2).ground([Query(image, long)])
    assert found.exists and found.note == "cut off: left effusion"
