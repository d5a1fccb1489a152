"""AdaMatch's training: what a step sees, resuming, and what is written."""

import numpy as np
import pytest
import torch

from g2g_utils import config
from g2g_utils.config import ConfigError, MatchArm
from g2g_utils.models import adamatch as model
from g2g_utils.training import adamatch
from g2g_utils.training import fit as loop
from tests.duck import Model

CAPTIONS = (
    "small left effusion .", "edema in the right lung", "opacity", "small opacity in the left lung"
)  # fmt: skip
LABELS = (("Pleural Effusion",), ("Edema",), ("Lung Opacity",), ("Lung Opacity",))
SHAPE = model.Shape(32, 16, (8, 16), joint=8)


@pytest.fixture
def pairs():
    images = np.random.default_rng(0).integers(0, 255, (4, 32, 32), dtype=np.uint8)
    return adamatch.Pairs(images, CAPTIONS, LABELS)


@pytest.fixture
def options(monkeypatch):
    quiet = loop.Options
    monkeypatch.setattr(adamatch, "Options", lambda *a, **k: quiet(*a, **k, tensorboard=False))
    smoke = config.load("smoke").adamatch
    return smoke.model_copy(
        update={"batch_size": 3, "classify_steps": 2, "steps": 4, "checkpoint_every": 3}
    )


def trained(pairs, options, folder, arm=None, **more):
    duck = Model()
    network = adamatch.build(SHAPE, duck.text_encoder, 0)
    arm = arm or MatchArm.model_validate({})
    adamatch.train(network, duck.tokenizer, pairs, arm, options, folder, seed=0, length=12, **more)
    return network


def same(a, b):
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def test_owners_name_each_token_s_word():
    duck = Model()
    found = adamatch.read_captions(duck.tokenizer, CAPTIONS, 12, "all")
    assert found.owners[0].tolist()[:6] == [-1, 0, 1, 2, -1, -1]  # the full stop is no word
    assert found.owners[1].tolist()[:7] == [-1, 0, 1, 2, 3, 4, -1]
    content = adamatch.read_captions(duck.tokenizer, [*CAPTIONS, "in the"], 12, "content")
    assert content.owners[1].tolist()[:7] == [-1, 0, -1, -1, 1, 2, -1]
    assert content.owners[4].tolist()[:4] == [-1, 0, 1, -1]  # no content: all its words
    ids, mask, owners = found.rows(torch.tensor([2]))
    assert ids.shape == mask.shape == owners.shape == (1, 3)


def test_findings_come_first_and_then_the_contrast(pairs, options):
    duck, called = Model(), []

    class Spy(model.AdaMatch):
        def classify(self, images):
            called.append("findings")
            return super().classify(images)

        def patches(self, images):
            called.append("contrast")
            return super().patches(images)

    network = Spy(SHAPE, duck.text_encoder)
    tokens = adamatch.read_captions(duck.tokenizer, CAPTIONS, 12, "all")
    loss = adamatch.losses(pairs, tokens, MatchArm.model_validate({}), options, 0)
    for step in (1, 2):
        loss(step, {"network": network}, None).backward()
    assert called == ["findings", "contrast"]


def test_a_run_that_was_stopped_goes_on_to_the_same_weights(pairs, options, tmp_path, monkeypatch):
    whole = trained(pairs, options, tmp_path / "whole")
    original = adamatch.losses

    def stopping(*given):
        loss = original(*given)

        def some(step, *more):
            if step == 5:
                raise KeyboardInterrupt
            return loss(step, *more)

        return some

    monkeypatch.setattr(adamatch, "losses", stopping)
    with pytest.raises(KeyboardInterrupt):
        trained(pairs, options, tmp_path / "parts")
    monkeypatch.setattr(adamatch, "losses", original)
    again = trained(pairs, options, tmp_path / "parts")
    assert same(whole, again)


def test_fixed_patches_stay_and_adaptive_ones_move(pairs, options, tmp_path):
    fixed = MatchArm.model_validate({"adaptive": False})
    shape = model.Shape(32, 16, (8, 16), joint=8, adaptive=False)
    duck = Model()
    network = adamatch.build(shape, duck.text_encoder, 0)
    adamatch.train(network, duck.tokenizer, pairs, fixed, options, tmp_path, seed=0, length=12)
    moved = trained(pairs, options, tmp_path / "b")
    image = torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    start = model.anchors(4, 4)
    start = torch.cat([start - 0.0625, start + 0.0625], -1)
    assert torch.allclose(network.patches(image).boxes[0], start)
    assert not torch.equal(moved.patches(image).boxes[0], start)


def test_shuffled_captions_are_those_of_other_images(pairs, options, tmp_path):
    own = trained(pairs, options, tmp_path / "own")
    other = trained(pairs, options, tmp_path / "other", MatchArm.model_validate({"shuffled": True}))
    assert not same(own, other)


def test_weights_and_tokenizer_are_written(pairs, options, tmp_path):
    network = trained(pairs, options, tmp_path, steps=1)
    names = {path.name for path in tmp_path.iterdir()}
    assert {model.WEIGHTS, model.SHAPE, "config.json", "tokenizer.json", "log.jsonl"} <= names
    assert loop.read_log(tmp_path)[-1]["step"] == 3 and not network.training


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"adamatch.widths": [8]}, "widths"),
        ({"adamatch.depths": [1]}, "depths has not one entry"),
        ({"adamatch.heads": [3, 2]}, "8 is no multiple"),
        ({"adamatch.patch": 24}, "no multiple of 48 pixels"),
        ({"adamatch.arms": {"a": {"encoder": "none"}}}, "no encoder"),
        ({"adamatch.arms": {"a b": {}}}, "name it by letters"),
    ],
)
def test_unusable_settings_are_one_line(wrong, said):
    with pytest.raises(ConfigError, match=said):
        config.load("smoke", **wrong)
