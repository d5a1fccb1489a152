"""Training of the language model: records of both directions, what is left out, resuming."""

import numpy as np
import pytest
import torch

from g2g_utils import config
from g2g_utils.config import ConfigError, CyclicSettings
from g2g_utils.models import cyclic as model
from g2g_utils.training import cyclic
from g2g_utils.training import fit as loop
from tests.duck import PHRASES, Model

SETTINGS = CyclicSettings.model_validate(
    {"hints": ["none"], "steps": 6, "batch_size": 2, "checkpoint_every": 3, "width": 16,
     "layers": 1, "heads": 2}
)  # fmt: skip


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    plain = loop.Options
    monkeypatch.setattr(cyclic, "Options", lambda *a, **k: plain(*a, **k, tensorboard=False))


@pytest.fixture
def words():
    return model.language(Model().tokenizer, 6, 4, 24)


def told(reports=PHRASES):
    codes = np.random.default_rng(0).integers(0, 6, (len(reports), 4))
    return cyclic.Told(codes, reports, [["left"]] * len(reports), [[1, 2]] * len(reports))


def test_a_film_has_a_record_in_each_direction(words):
    found, long = cyclic.records(words, told())
    (read, draw), *_ = found
    assert long == 0 and len(found) == 3
    assert words.report(read.answer) == "small left effusion"
    assert words.film(draw.answer).tolist() == told().codes[0].tolist()
    assert read.prompt[1:5] == draw.answer[:-1] and draw.prompt[1:4] == read.answer[:-1]


def test_what_is_longer_than_the_context_is_left_out_and_counted(words, tmp_path, caplog):
    reports = [*PHRASES, "small left effusion in the right lung " * 3]
    network = model.build(words, 16, 1, 2, 0)
    found = cyclic.train(network, words, told(reports), SETTINGS, tmp_path, seed=0, steps=1)
    assert found["metrics"] == {"left_out": 1.0}
    assert "1 of 4 films are longer than the context" in caplog.text
    with pytest.raises(ValueError, match="no record fits a context of 24"):
        cyclic.train(network, words, told(reports[3:]), SETTINGS, tmp_path, seed=0)


def test_a_run_that_was_stopped_goes_on_to_the_same_weights(words, tmp_path, monkeypatch):
    def run(folder):
        network = model.build(words, 16, 1, 2, 0)
        cyclic.train(network, words, told(), SETTINGS, folder, seed=0)
        return network

    whole, original = run(tmp_path / "whole"), cyclic.losses

    def stopping(*given):
        loss = original(*given)

        def some(step, *more):
            if step == 4:
                raise KeyboardInterrupt
            return loss(step, *more)

        return some

    monkeypatch.setattr(cyclic, "losses", stopping)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts")
    monkeypatch.setattr(cyclic, "losses", original)
    for a, b in zip(whole.parameters(), run(tmp_path / "parts").parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.slow
def test_it_learns_which_report_and_film_belong_together(tmp_path):
    words = model.language(Model().tokenizer, 6, 4, 40)
    longer = SETTINGS.model_copy(update={"steps": 250, "batch_size": 3, "learning_rate": 5e-3})
    network, pairs = model.build(words, 32, 2, 2, 0), told()
    cyclic.train(network, words, pairs, longer, tmp_path, seed=0)
    asked = [words.prompt("report", codes, ["left"]) for codes in pairs.codes]
    answers = model.write(network, words, asked, "report", constrained=False)
    assert [words.report(answer) for answer in answers] == list(PHRASES)
    asked = [words.prompt("film", report, [1, 2]) for report in PHRASES]
    answers = model.write(network, words, asked, "film", constrained=False)
    assert [words.film(answer).tolist() for answer in answers] == pairs.codes.tolist()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"cyclic.words": "none"}, "cyclic.words = 'none' is not in encoders"),
        ({"cyclic.match": "none"}, "name its arm in cyclic.match"),
        ({"cyclic.vq.unshuffle": 5}, "no multiple of the 10 pixels of a code"),
        ({"cyclic.context": 70}, "a film alone has 64 codes"),
        ({"cyclic.heads": 3}, "no multiple of twice 3 heads"),
        ({"cyclic.hints": ["others"]}, "cyclic.hints"),
    ],
)
def test_unusable_settings_are_one_line(wrong, said):
    with pytest.raises(ConfigError, match=said):
        config.load("smoke", **wrong)
