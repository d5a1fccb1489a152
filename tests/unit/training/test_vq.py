"""Training of the film tokenizer: the codebook's start, unused codes, resuming."""

import numpy as np
import pytest
import torch

from g2g_utils.config import VqSettings
from g2g_utils.models import vq as model
from g2g_utils.training import fit as loop
from g2g_utils.training import vq

SMALL = VqSettings.model_validate(
    {"codes": 8, "code_width": 4, "channels": [8], "warmup": 2, "steps": 8, "restart_every": 2,
     "batch_size": 2, "checkpoint_every": 3}
)  # fmt: skip


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    plain = loop.Options
    monkeypatch.setattr(vq, "Options", lambda *a, **k: plain(*a, **k, tensorboard=False))


@pytest.fixture
def films():
    return np.random.default_rng(0).integers(0, 255, (6, 16, 16), dtype=np.uint8)


def test_the_codebook_starts_at_the_centres_of_latents():
    module = vq.Counted(model.build(SMALL, 0))
    points = torch.arange(8.0)[:, None].expand(8, 4).repeat(4, 1)
    module.start(points, 0)
    book = module.vq.quantize.embedding.weight[:, 0]
    torch.testing.assert_close(book.sort().values, torch.arange(8.0))
    with pytest.raises(ValueError, match="7 latents for 8 codes"):
        module.start(points[:7], 0)


def test_codes_that_nothing_takes_move_onto_latents():
    module = vq.Counted(model.build(SMALL, 0))
    module.count(torch.tensor([[0, 1], [1, 2]]))
    before = module.vq.quantize.embedding.weight.detach().clone()
    latents = torch.full((5, 4), 9.0)
    assert module.restart(latents, loop.seeded(0)) == 5
    after = module.vq.quantize.embedding.weight
    assert torch.equal(after[:3], before[:3]) and (after[3:] == 9).all()
    assert not module.used.any()


def test_a_run_that_was_stopped_goes_on_to_the_same_weights(films, tmp_path, monkeypatch):
    vq.train(films, SMALL, tmp_path / "whole", 0)
    original = vq.losses

    def stopping(*given):
        loss = original(*given)

        def some(step, *more):
            if step == 5:
                raise KeyboardInterrupt
            return loss(step, *more)

        return some

    monkeypatch.setattr(vq, "losses", stopping)
    with pytest.raises(KeyboardInterrupt):
        vq.train(films, SMALL, tmp_path / "parts", 0)
    monkeypatch.setattr(vq, "losses", original)
    found = vq.train(films, SMALL, tmp_path / "parts", 0)
    whole, parts = (model.load(tmp_path / name) for name in ("whole", "parts"))
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        assert torch.equal(a, b)
    assert found["metrics"]["codes_used"] >= 2


def test_what_nothing_used_is_taken_up(films, tmp_path):
    longer = SMALL.model_copy(update={"steps": 30})
    found = vq.train(films, longer, tmp_path, 0)
    assert found["metrics"]["codes_used"] >= 6
