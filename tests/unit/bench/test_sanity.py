"""What notebooks 00 to 05 compute: sides, likeness, nearness, ranks, token groups, distances."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from g2g_utils.bench import encoder_probes, sanity, token_probes
from g2g_utils.data.geometry import restore_box, transform_box
from g2g_utils.data.record import Example
from g2g_utils.methods.base import HeatMap
from g2g_utils.text import PhraseTokens, Word, check_phrase, side_of, swap_sides
from g2g_utils.training import diagnostics


def example(phrase: str) -> Example:
    return Example(np.zeros((8, 8), np.float32), phrase, None, (), "i", "s", "test")


def test_sides_are_swapped_as_words():
    phrase = "Left-sided effusion, right lung; leftover"
    assert swap_sides(phrase) == "Right-sided effusion, left lung; leftover"
    assert swap_sides(swap_sides(phrase)) == phrase
    assert swap_sides("LEFT effusion, Right") == "RIGHT effusion, Left"
    assert sanity.contrary("cardiomegaly") == sanity.NO_SIDE


def test_one_sided_pairs():
    phrases = ["left-sided edema", "left and right edema", "edema", "opacity in the right lung"]
    found = sanity.one_sided([example(p) for p in phrases])
    assert [p.phrase for p in found] == [phrases[0], phrases[3]]
    assert [side_of(p) for p in phrases] == ["left", None, None, "right"]
    assert side_of("LEFT, small") == "left" and side_of("leftover") is None


def test_side_shift_is_positive_where_the_model_follows_the_word(monkeypatch):
    def follows(self, queries):
        heat = torch.ones(len(queries), 4, 4)
        for row, query in zip(heat, queries, strict=True):
            row[:, slice(0, 2) if "right" in query.phrase.lower() else slice(2, 4)] = 3.0
        return [HeatMap(row) for row in heat]

    monkeypatch.setattr(sanity.G2G, "ground", follows)
    phrases = ["left effusion", "left-sided effusion", "LEFT edema", "Opacity, right."]
    model = SimpleNamespace(image_size=8)
    found = sanity.side_shift(model, [example(p) for p in phrases])
    assert found["side"].tolist() == ["left", "left", "left", "right"]
    assert found["shift"].tolist() == pytest.approx([0.5] * 4)
    with pytest.raises(ValueError, match="'edema' names no one side"):
        sanity.side_shift(model, [example("edema")])


def test_patient_right_is_image_left():
    heat = torch.zeros(4, 6)
    heat[:, :3] = 3.0
    heat[:, 3:] = 1.0
    assert sanity.share_of_side(heat, "right") == pytest.approx(0.75)
    assert sanity.share_of_side(heat, "left") == pytest.approx(0.25)


def test_correlation_of_maps():
    heat = torch.rand(5, 5, generator=torch.Generator().manual_seed(0))
    assert sanity.correlation(heat, 2 * heat + 1) == pytest.approx(1)
    assert sanity.correlation(heat, -heat) == pytest.approx(-1)
    assert sanity.correlation(heat, torch.ones(5, 5)) == 0


def test_boxes_come_back():
    box = (310.0, 120.0, 40.0, 25.0)
    there = transform_box(box, 500, 800, 64)
    assert restore_box(there, 500, 800, 64) == pytest.approx(box)


@pytest.mark.parametrize("filter", ["lexical", "disease", "all"])
def test_phrases_are_checked_without_a_tokenizer(filter):
    check_phrase("small left effusion", filter)
    with pytest.raises(ValueError, match="empty phrase"):
        check_phrase("?!", filter)
    if filter == "all":
        check_phrase("of the", filter)
    else:
        with pytest.raises(ValueError, match="function words only"):
            check_phrase("of the", filter)


def test_nearness_tells_labels_apart():
    vectors = torch.tensor([[1.0, 0.0], [1.0, 0.1], [-1.0, 0.0], [-1.0, 0.1], [0.0, 1.0]])
    gap = encoder_probes.nearness_gap(vectors, ["a", "a", "b", "b", None])
    assert (gap[:4] > 1.5).all() and np.isnan(gap[4])
    assert np.isnan(encoder_probes.nearness_gap(vectors, ["a", "b", "b", "b", "b"])[0])  # alone


def test_token_groups_hold_every_token_once():
    words = (Word("left", 0, 4, (1,)), Word("of", 5, 7, (2,)), Word("edema", 8, 13, (3, 4)))
    none = torch.empty(1, 0)
    phrase = PhraseTokens("left of edema", none, none, (), words, 0, 5, (6, 7), ())
    groups = token_probes.group_positions(phrase)
    assert tuple(groups) == token_probes.GROUPS
    assert groups["content"] == [1, 3, 4] and groups["other words"] == [2]
    assert sorted(i for some in groups.values() for i in some) == list(range(8))


def test_distance_of_averaged_weights():
    raw = {"unet.a": torch.tensor([3.0, 4.0]), "text_encoder.b": torch.tensor([9.0])}
    assert diagnostics.distance([torch.tensor([3.0, 4.0])], raw) == 0
    assert diagnostics.distance([torch.tensor([3.0, 4.5])], raw) == pytest.approx(0.1)
    adapted = raw | {"unet.lora_A.c": torch.tensor([1.0])}
    assert diagnostics.distance([torch.tensor([1.0])], adapted) == 0  # of adapters alone
    with pytest.raises(ValueError, match="not of the same U-Net"):
        diagnostics.distance([torch.tensor([1.0])], raw)


def test_drawn_noise_follows_the_profile():
    options = SimpleNamespace(batch_size=32, timestep_density="linear", dropout=0.25)
    sized = type("Pairs", (), {"mean": torch.zeros(64, 1, 2, 2), "__len__": lambda self: 64})()
    drawn = diagnostics.drawn_noise(SimpleNamespace(training=options), sized, batches=16, seed=0)
    assert len(drawn) == 512 and 600 < drawn["timestep"].mean() < 730
    assert 0.19 < drawn["dropped"].mean() < 0.31
