"""Probes of encoders, tokens, images and trainings, against numbers known beforehand."""

from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from g2g_utils.bench import encoder_probes, sanity, token_probes
from g2g_utils.data.record import Example
from g2g_utils.methods.base import HeatMap
from g2g_utils.plots import charts
from g2g_utils.training import diagnostics
from tests.duck import Model

PHRASES = ["small left effusion", "left effusion in the lung", "right edema", "opacity"]
VECTORS = {"small": 1.0, "left": 2.0, "right": 3.0, "effusion": 5.0, "edema": 5.5, "opacity": -4.0}


def pair(phrase, image=None, name="i"):
    image = np.full((32, 32), 0.5, np.float32) if image is None else image
    return Example(image, phrase, "Edema", ((4, 4, 8, 8),), name, f"patient {name}", "test")


@pytest.fixture(scope="module")
def model():
    return Model()


@pytest.fixture(scope="module")
def words(model):
    """A tokenizer, and an encoder whose state of a word is its number in VECTORS, else 0."""
    table = torch.zeros(20, 1)
    for word, value in VECTORS.items():
        table[model.tokenizer.convert_tokens_to_ids(word)] = value

    def encoder(input_ids, attention_mask):
        return SimpleNamespace(last_hidden_state=table[input_ids])

    return model.tokenizer, encoder


@pytest.fixture
def axes():
    figure, ax = plt.subplots()
    yield ax
    plt.close(figure)


# -- encoders -----------------------------------------------------------------------------------


def test_states_stand_at_their_words(words):
    states, tokens = encoder_probes.states_of(*words, PHRASES, 12)
    assert states.shape == (4, 12, 1)
    for one, phrase, text in zip(states, tokens, PHRASES, strict=True):
        assert phrase.text == text
        for word in phrase.words:
            assert one[list(word.tokens), 0].tolist() == [VECTORS.get(word.text, 0.0)]


def test_phrase_vectors_are_centred_means_of_content_words(words):
    means = [(1 + 2 + 5) / 3, (2 + 5 + 0) / 3, (3 + 5.5) / 2, -4]  # lung is content, in and the not
    found = encoder_probes.phrase_vectors(*words, PHRASES, 12)
    expected = np.array(means) - np.mean(means)
    assert found[:, 0].tolist() == pytest.approx(expected.tolist(), abs=1e-6)


def test_cosines():
    found = encoder_probes.cosines(torch.tensor([[3.0, 4.0], [6.0, 8.0], [-4.0, 3.0]]))
    torch.testing.assert_close(found, torch.tensor([[1, 1, 0], [1, 1, 0], [0, 0, 1.0]]))


def test_neighbours_are_the_nearest_words(model):
    angles = {"left": 0, "right": 10, "effusion": 120, "edema": 140, "opacity": 230}
    table = torch.zeros(20, 2)
    for word, angle in angles.items():
        row = model.tokenizer.convert_tokens_to_ids(word)
        table[row] = torch.tensor([np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))])

    def encoder(input_ids, attention_mask):
        return SimpleNamespace(last_hidden_state=table[input_ids])

    phrases = ["left effusion", "right edema", "Left opacity"]
    asked = ["left", "effusion", "unheard"]
    found = encoder_probes.neighbours(model.tokenizer, encoder, phrases, asked, 12, count=2)
    assert {word: near[0] for word, near in found.items()} == {"left": "right", "effusion": "edema"}
    assert all(len(near) == 2 and word not in near for word, near in found.items())
    many = encoder_probes.neighbours(model.tokenizer, encoder, phrases, asked, 12, count=99)
    assert sorted(many["left"]) == ["edema", "effusion", "opacity", "right"]


def test_retrieval_ranks_count_the_films_that_come_before(words):
    """Texts are 1, 2, 3 in a plane; the cosine to a film falls with the angle between them."""
    tokenizer, _ = words

    def encoder(input_ids, attention_mask):
        states = torch.zeros(*input_ids.shape, 1)
        states[:, 0, 0] = torch.tensor([0.1, 0.2, 0.9])  # the start token of each text
        return SimpleNamespace(last_hidden_state=states)

    def turned(angle):
        return torch.cat([angle.cos(), angle.sin()], -1)

    joint = SimpleNamespace(
        tokenizer=tokenizer,
        text_encoder=encoder,
        max_length=12,
        heads=SimpleNamespace(sentence=turned),
        branch=lambda images: (None, turned(images.mean((2, 3)))),
    )
    levels = (0.15, 0.8, 0.7)  # brightness of the films
    films = [pair("edema", np.full((32, 32), level, np.float32)) for level in levels]
    assert encoder_probes.retrieval_ranks(joint, films).tolist() == [1, 3, 2]


def test_groups_are_marked_where_labels_change(axes):
    axes.imshow(np.zeros((6, 6)))
    encoder_probes.mark_groups(axes, ["a", "a", "a", "b", "b", "a"])
    lines = sorted({float(line.get_ydata()[0]) for line in axes.lines if line.get_xdata()[0] == 0})
    assert lines == [2.5, 4.5, 5.5] and len(axes.lines) == 6
    assert [(t.get_text(), t.get_position()[1]) for t in axes.texts] == [
        ("a", 1),
        ("b", 3.5),
        ("a", 5),
    ]
    encoder_probes.mark_groups(axes, ["a"], names=False)
    assert len(axes.texts) == 3


class Sided:
    """A method whose map lies on the named side; patient right is image left."""

    name, image_size = "sided", 32

    def ground(self, queries):
        heat = torch.zeros(len(queries), 16, 16)
        for row, query in zip(heat, queries, strict=True):
            columns = slice(0, 8) if "right" in query.phrase else slice(8, 16)
            row[:, columns] = torch.rand(16, 8, generator=torch.Generator().manual_seed(0)) + 1
        return [HeatMap(row) for row in heat]


def test_swapping_the_side_costs_where_the_map_follows_it():
    rows = [pair("right edema", name="a"), pair("edema", name="b"), pair("left edema", name="c")]
    found = encoder_probes.side_costs(Sided(), rows)  # boxes lie on the patient's right
    assert found["image_id"].tolist() == ["a", "c"] and found["subject_id"].iloc[1] == "patient c"
    right, left = found["cost"]
    assert right > 0.5 and left == pytest.approx(-right)
    assert found["cnr"].iloc[0] - found["cnr"].iloc[1] == pytest.approx(right)


def test_words_that_notice_a_swapped_side(model):
    cosines = encoder_probes.swap_cosines(model.tokenizer, model.text_encoder, "left effusion", 12)
    assert list(cosines) == ["left", "effusion"] and all(-1.01 < c < 1.01 for c in cosines.values())
    side, named = encoder_probes.mean_swap_cosines(
        model.tokenizer,
        model.text_encoder,
        ["left effusion", "edema"],
        ["Pleural Effusion", None],
        12,
    )
    assert side == pytest.approx(cosines["left"]) and named == pytest.approx(cosines["effusion"])


# -- tokens -------------------------------------------------------------------------------------


def test_maps_are_stacked():
    maps = [torch.rand(2, 3), torch.rand(2, 3)]
    assert torch.equal(token_probes.stacked(maps), torch.stack(maps))


def test_shares_of_attention_add_up_and_padding_is_even_without_preference(model):
    pairs = [pair(PHRASES[0], name="a"), pair(PHRASES[1], name="b")]
    found = token_probes.attention_mass(model, pairs, timesteps=2)
    groups = found[list(token_probes.GROUPS)]
    assert groups.sum(axis=1).tolist() == pytest.approx([1, 1], abs=1e-3)
    assert found["image_id"].tolist() == ["a", "b"]
    assert found[token_probes.UNIFORM].tolist() == [(12 - 5) / 12, (12 - 7) / 12]
    assert found["other words"].tolist()[0] == 0 < found["other words"].tolist()[1]
    even = Model()
    for name, weight in even.unet.named_parameters():
        if ".attn2.to_q." in name:
            nn.init.zeros_(weight)
    flat = token_probes.attention_mass(even, pairs, timesteps=2)
    assert flat["padding"].tolist() == pytest.approx(flat[token_probes.UNIFORM].tolist(), abs=1e-3)
    assert flat["content"].tolist() == pytest.approx([3 / 12, 3 / 12], abs=1e-3)


def test_shifts_of_side_and_finding_words(model):
    phrases = ["left effusion", "edema", "opacity in the right lung"]
    pairs = [pair(phrase, name=phrase[0]) for phrase in phrases]
    found = token_probes.side_word_shifts(model, pairs, timesteps=2, keep_last=2)
    assert set(found["image_id"]) == {"l", "o"} and "side word" in set(found["word"])
    assert found["shift"].between(-0.5, 0.5).all()


# -- images and trainings -----------------------------------------------------------------------


def test_reconstruction_is_measured_in_decibels(model):
    images = torch.rand(2, 32, 32, generator=torch.Generator().manual_seed(0)).numpy()

    class Coarse(Model):
        def decode(self, latents):
            off = torch.tensor([0.1, 0.01]).view(2, 1, 1, 1)
            return torch.nn.functional.pixel_shuffle((latents + 1) / 2, 2) + off

    found = sanity.reconstruction_psnr(Coarse(), images)
    assert found.tolist() == pytest.approx([20, 40], abs=1e-2)


class Exact(nn.Module):
    """A U-Net that tells the noise of known latents, and is wrong by the text's state."""

    def __init__(self, latents, scheduler):
        super().__init__()
        self.latents, self.scheduler = latents, scheduler

    def forward(self, noised, timesteps, encoder_hidden_states):
        kept = self.scheduler.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
        noise = (noised - kept.sqrt() * self.latents) / (1 - kept).sqrt()
        return SimpleNamespace(sample=noise + encoder_hidden_states[:, :1, :1, None])


def test_held_out_losses_compare_own_and_others_captions(model, monkeypatch):
    films = [pair(f"film {k}", np.full((32, 32), k / 4, np.float32), str(k)) for k in range(3)]
    monkeypatch.setattr(diagnostics.sources, "examples", lambda config, split: films)
    config = SimpleNamespace(image_size=32)
    wrong = torch.tensor([0.5, 1.0, 2.0]).view(3, 1, 1)  # what each caption adds to the noise
    watched = SimpleNamespace(
        image_posterior=model.image_posterior,
        encode_phrases=lambda phrases: wrong,
        scheduler=model.scheduler,
        device=torch.device("cpu"),
    )
    images = torch.from_numpy(np.stack([film.image for film in films]))[:, None]
    unet = Exact(model.image_posterior(images)[0], model.scheduler)
    found = diagnostics.validation_losses(config, watched, {"one": unet}, seed=0)
    assert found.index.tolist() == ["patient 0", "patient 1", "patient 2"]
    own, other = (found["one", caption].tolist() for caption in diagnostics.CAPTIONS)
    assert own == pytest.approx([0.25, 1.0, 4.0], rel=1e-3)
    assert other == pytest.approx([4.0, 0.25, 1.0], rel=1e-3)  # the caption before


def test_logs_are_drawn_one_colour_an_arm(axes):
    log = pd.DataFrame({"step": [1, 2, 3, 4], "loss": [4.0, 2.0, 3.0, 1.0]})
    charts.training_curves(axes, {"a-s0": log, "a-s1": log, "b-s0": log}, smooth=2)
    first, second, third = axes.lines
    assert first.get_ydata().tolist() == [4, 3, 2.5, 2]
    assert first.get_color() is not None and np.array_equal(first.get_color(), second.get_color())
    assert not np.array_equal(first.get_color(), third.get_color())
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["a", "b"]
