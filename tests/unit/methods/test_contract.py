"""What every method of the registry keeps to; a new kind adds its rows to CASES."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertModel

from g2g_utils import config, models
from g2g_utils.config import ConfigError
from g2g_utils.methods import registry
from g2g_utils.methods.base import Query
from g2g_utils.models import adamatch, g2d
from g2g_utils.training import pretrain
from tests.duck import PHRASES, Model

CASES: dict[str, list[dict[str, Any]]] = {  # kind -> settings of its rows
    "adamatch": [{"sigma": 1.0}, {"boxes": False, "pool": "mean", "sigma": 0, "centred": False}],
    "biovil": [{}],
    "daam": [{"arm": "domain-frozen"}],
    "g2d": [{}, {"features": "projected"}, {"features": "attention"}, {"against": ["no edema"]}],
    "g2g": [{"arm": "domain-frozen"}, {"arm": "domain-frozen", "curve": "mixture"}],
    "information": [
        {"arm": "domain-frozen", "attention": False},
        {"arm": "domain-frozen", "cost": "cheap"},
    ],
    "zero-shot-ldm": [
        {"arm": "domain-frozen", "timesteps": 20},
        {"arm": "domain-frozen", "timesteps": 10, "sampling": "inversion_p", "layers": ["up"]},
        {"arm": "domain-frozen", "timesteps": 10, "sampling": "gt", "sigma": 0},
    ],
    "no-skill": [
        {"rule": rule}
        for rule in (
            "random",
            "centre prior",
            "brightness",
            "mean box",
            "mean box per finding",
            "mean box per finding and side",
        )
    ],
}
ROWS = [{"kind": kind} | settings for kind, rows in CASES.items() for settings in rows]
SIDE = 32


@dataclass
class Parts:
    """An experiment of tiny random models."""

    config: Any
    folder: Path

    def model(self, arm, seed):
        return Model()

    def product(self, name):
        return self.folder

    def latent_size(self):
        return 4, 16

    def regions(self):
        boxes = [[2, 4, 12, 12]], [[16, 8, 10, 20]]
        findings = "Edema", "Lung Opacity"
        return [{"finding": f, "boxes": b} for f, b in zip(findings, boxes, strict=True)]


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Settings of the smoke profile on 32 x 32 images, and a text encoder with an image branch."""
    steps = {"grounding.timesteps": 3, "grounding.keep_last": 2, "grounding.layers": None}
    settings, folder = config.load("smoke", image_size=SIDE, **steps), tmp_path_factory.mktemp("e")
    sizes = {"width": 16, "layers": 1, "heads": 2, "mlm_steps": 0, "steps": 1, "batch_size": 3}
    encoder = config.Encoder(kind="bert", objective="global", **sizes)
    length = settings.text.max_length
    with pytest.MonkeyPatch.context() as patch:
        options = pretrain.Options
        patch.setattr(pretrain, "Options", lambda *a, **k: options(*a, **k, tensorboard=False))
        images = torch.rand(3, 1, SIDE, SIDE)
        pretrain.pretrain_encoder(encoder, images, PHRASES, folder, max_length=length, seed=0)
    text = BertModel.from_pretrained(folder, add_pooling_layer=False)
    with models.initialised(0):
        adamatch.save(adamatch.AdaMatch(adamatch.Shape(SIDE, 16, (8, 16)), text), folder)
        g2d.save(g2d.G2D(g2d.Shape(SIDE, 16, joint=16, heads=2)), folder)
    return Parts(settings, folder)


@pytest.fixture(scope="module", params=ROWS, ids=lambda row: " ".join(map(str, row.values())))
def method(request, parts):
    """A method as the experiment builds it from its row."""
    found, row = registry.parse("a row", request.param)
    return found.build(parts, "a row", row, None)


@pytest.fixture(scope="module")
def images():
    """A grey and a colour image of noise."""
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.rand(n, SIDE, SIDE, generator=generator) for n in (1, 3))


@pytest.fixture(scope="module")
def queries(images):
    """Two phrases on the grey image, one on the colour image."""
    grey, colour = images
    findings = "Pleural Effusion", "Edema", "Lung Opacity"
    rows = zip((grey, grey, colour), PHRASES, findings, strict=True)
    return [Query(*row) for row in rows]


@pytest.fixture(scope="module")
def answers(method, queries):
    return method.ground(queries)


def test_a_map_is_finite_float32_on_the_cpu(method, answers):
    assert method.name == "a row" and method.image_size == SIDE
    assert len(answers) == 3
    for found in answers:
        values = found.values
        assert found.exists and found.note == "" and not values.requires_grad
        assert (values.dtype, values.device.type, values.ndim) == (torch.float32, "cpu", 2)
        assert min(values.shape) >= 8 and values.shape == answers[0].values.shape
        if found.mask is not None:
            assert found.mask.dtype == torch.bool and found.mask.shape == values.shape
        if found.absolute is not None:
            assert found.absolute.isfinite().all() and found.absolute.shape == values.shape
        assert all(isinstance(value, float) for value in found.details.values())


def test_the_same_answer_twice(method, queries, answers):
    state, before = torch.get_rng_state(), [query.image.clone() for query in queries]
    again = method.ground(queries)
    assert all(torch.equal(a.values, b.values) for a, b in zip(answers, again, strict=True))
    assert torch.equal(torch.get_rng_state(), state)  # and nobody's generator is drawn from
    assert all(torch.equal(q.image, image) for q, image in zip(queries, before, strict=True))


def test_the_same_answer_alone_and_in_a_batch_of_any_order(method, queries, answers):
    alone = [method.ground([query])[0] for query in queries]
    mixed = method.ground([queries[k] for k in (2, 1, 0)])[::-1]
    for found in (alone, mixed):
        for a, b in zip(answers, found, strict=True):
            torch.testing.assert_close(a.values, b.values, atol=1e-4, rtol=0)


@pytest.mark.parametrize("empty", ["", "  "])
def test_an_empty_phrase_is_a_note(method, queries, answers, empty):
    first, none, last = method.ground([queries[0], Query(queries[0].image, empty), queries[2]])
    assert not none.exists and none.values.isnan().all() and none.note
    for found, answer in ((first, answers[0]), (last, answers[2])):
        torch.testing.assert_close(found.values, answer.values, atol=1e-4, rtol=0)
    assert method.ground([]) == []


def test_every_kind_is_tested():
    assert set(CASES) == set(registry.KINDS)


@pytest.mark.parametrize("kind", CASES)
def test_a_kind_says_where_it_comes_from_and_what_it_costs(kind):
    found = registry.KINDS[kind]
    assert found.licence and found.cost
    assert re.search(r"\b(19|20)\d\d\b", found.citation) or found.citation.startswith("none")


@pytest.mark.parametrize("kind", CASES)
def test_a_setting_that_a_kind_does_not_have_is_refused(kind):
    with pytest.raises(ConfigError, match=rf"methods\.mine \({kind}\).*no setting 'depht'"):
        registry.parse("mine", {"kind": kind, "depht": 3, **CASES[kind][0]})
