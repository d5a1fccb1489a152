"""The method on information maps: one film at a time, notes for what cannot be grounded."""

from types import SimpleNamespace

import pytest
import torch

from g2g_utils import config, information
from g2g_utils.methods import information as method
from g2g_utils.methods import registry
from g2g_utils.methods.base import Query


@pytest.fixture
def asked(monkeypatch):
    """Phrases of every call of `measure`, which answers with maps of a ramp."""
    calls = []

    def measure(model, image, phrases, **options):
        calls.append(list(phrases))
        ramp = torch.arange(16.0).view(4, 4)
        tokens = SimpleNamespace(truncated=("base",) if "long" in phrases[0] else ())
        return [
            information.Information(
                phrase=phrase,
                conditions=("", information.NORMAL),
                steps=torch.stack([ramp, -ramp + 20])[:, None],
                differences=torch.zeros(2, 4, 4),
                weights=torch.ones(1),
                timesteps=(1,),
                nats=False,
                tokens=(1,),
                phrase_tokens=tokens,
                token_maps=torch.ones(3, 4, 4) * ramp.flip(0),
            )
            for phrase in phrases
        ]

    def tokens(tokenizer, phrase, length):
        if not phrase:
            raise method.PhraseError("empty phrase '': write at least one word")

    method.MEASURED.clear()
    monkeypatch.setattr(method.sampling, "fingerprint", lambda model: ("weights",))
    monkeypatch.setattr(method, "measure", measure)
    monkeypatch.setattr(method, "tokenize", tokens)
    monkeypatch.setattr(method, "select_tokens", lambda *words, **options: [1])
    return calls


def grounder(**options):
    model = SimpleNamespace(image_size=8, tokenizer=None, max_length=9)
    return method.InformationMaps("information", model, **options)


def test_rows_with_and_without_attention_share_a_measurement(asked):
    queries = [Query(torch.zeros(1, 8, 8), "effusion")]
    product = grounder(attention=True).ground(queries)
    alone = grounder(attention=False).ground(queries)
    assert asked == [["effusion"]] and product[0].capture is alone[0].capture
    grounder(options={"draws": 1}).ground(queries)
    grounder().ground([Query(torch.ones(1, 8, 8), "effusion")])
    assert len(asked) == 3


def test_phrases_of_a_film_are_measured_together(asked):
    one, two = torch.zeros(1, 8, 8), torch.zeros(1, 8, 8)
    queries = [Query(one, "effusion"), Query(one, "edema"), Query(two, "effusion")]
    found = grounder().ground(queries)
    assert asked == [["effusion", "edema"], ["effusion"]]
    assert [m.capture.phrase for m in found] == ["effusion", "edema", "effusion"]
    assert found[0].details == {"gain_0": 120.0, "gain_1": 200.0}


def test_what_cannot_be_grounded_gets_a_note(asked):
    film = torch.zeros(1, 8, 8)
    phrases = ["", "effusion", information.NORMAL.upper()]
    empty, good, same = grounder().ground([Query(film, phrase) for phrase in phrases])
    assert not empty.exists and "write at least one word" in empty.note
    assert not same.exists and "is the condition itself" in same.note
    assert good.exists and good.note == ""
    assert asked == [["effusion"]]


def test_attention_is_a_setting_and_truncation_is_said(asked):
    film = torch.zeros(1, 8, 8)
    both = grounder().ground([Query(film, "long effusion")])[0]
    alone = grounder(attention=False).ground([Query(film, "long effusion")])[0]
    assert torch.equal(both.values, both.capture.product())
    assert torch.equal(alone.values, alone.capture.heatmap())
    assert both.note == "cut off: base"


def test_rows_of_the_table():
    settings = {"kind": "information", "arm": "domain-frozen", "cost": "cheap"}
    kind, row = registry.parse("information", settings)
    profile = config.load("miniature")
    assert kind.arm(row) == "domain-frozen"
    options = information.Options(**method.options(profile, row))
    assert options.draws == 1 and options.rows() <= 3 * profile.grounding.timesteps
    default = registry.parse("information", {"kind": "information", "arm": "domain-frozen"})[1]
    assert information.Options(**method.options(profile, default)).rows() <= 8 * 10
    with pytest.raises(config.ConfigError, match="has no setting 'colour'"):
        registry.parse("information", settings | {"colour": "red"})
