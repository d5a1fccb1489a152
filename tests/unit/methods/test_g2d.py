"""G2D as a method: which features ground, prompts that are subtracted, rows without a network."""

import pytest
import torch
from torch.nn import functional as F

from g2g_utils import config
from g2g_utils.config import ConfigError
from g2g_utils.experiment import products
from g2g_utils.methods import g2d as method
from g2g_utils.methods import registry
from g2g_utils.methods.base import Query
from g2g_utils.models import g2d
from tests.duck import PHRASES, Model

SIDE = 32


@pytest.fixture(scope="module")
def joint():
    model = Model()
    width = model.text_encoder.config.hidden_size
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = g2d.G2D(g2d.Shape(SIDE, width, joint=16, heads=2)).eval()
    return method.Joint(network, model.tokenizer, model.text_encoder, model.max_length)


def ground(joint, phrase, **row):
    image = torch.rand(1, SIDE, SIDE, generator=torch.Generator().manual_seed(2))
    asked = method.Dense("g2d", SIDE, joint, registry.G2DRow(**row))
    return asked.ground([Query(image, phrase)])[0].values


def test_a_map_is_the_cosine_of_value_features(joint):
    image = torch.rand(1, SIDE, SIDE, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        pixels = joint.network.dense(image[None])[0]
        text = joint.words(PHRASES[0])[0]
    cosines = F.cosine_similarity(pixels, text[:, None, None], dim=0)
    large = F.interpolate(cosines[None, None], (SIDE, SIDE), mode="bilinear")[0, 0]
    assert torch.allclose(ground(joint, PHRASES[0]), large, atol=1e-6)


def test_prompts_are_subtracted_by_their_mean(joint):
    own, *others = (ground(joint, phrase) for phrase in PHRASES)
    found = ground(joint, PHRASES[0], against=PHRASES[1:])
    assert torch.allclose(found, own - sum(others) / len(others), atol=1e-6)
    none = ground(joint, PHRASES[0], against=[PHRASES[0]])
    assert none.abs().max() < 1e-6


def test_attention_reads_no_words(joint):
    maps = [ground(joint, phrase, features="attention") for phrase in PHRASES]
    assert all(torch.equal(maps[0], one) for one in maps[1:])
    assert maps[0].min() >= 0 and maps[0].mean() < 1 / 16  # the rest is on the mean pixel


def test_a_row_without_its_network_is_one_line():
    table = {"g2d": {"kind": "g2d", "network": "nothing"}}
    with pytest.raises(ConfigError, match="no G2D network 'nothing': choose from ps"):
        products.plan(config.load("smoke", methods=table))
    with pytest.raises(ConfigError, match="give the profile a section g2d"):
        products.plan(config.load("smoke", methods=table, g2d=None))


def test_products_of_the_arms():
    arms = {"ps": {}, "vla": {"target": "none"}, "heads-3": {"heads": 3}}
    some = config.load("smoke", g2d={"arms": arms, "seeds": (0, 1), "text": "domain"})
    plan = products.plan(some)
    assert {"g2d-warmup/4-s0", "g2d-warmup/4-s1", "g2d-warmup/3-s0", "g2d/vla-s1"} <= set(plan)
    assert "g2d-warmup/3-s1" in plan["g2d/heads-3-s1"]
    assert "g2d-warmup/4-s0" in plan["g2d/ps-s0"]
    longer = config.load("smoke", g2d={"arms": arms, "text": "domain", "steps": 7})
    keys = [[products.key(c, n) for c in (some, longer)] for n in ("g2d-warmup/4-s0", "g2d/ps-s0")]
    assert keys[0][0] == keys[0][1] and keys[1][0] != keys[1][1]
    begun = config.load("smoke", g2d={"arms": arms, "text": "domain", "start": "data/r50.pth"})
    assert products.key(begun, "g2d-warmup/4-s0") != keys[0][0]
