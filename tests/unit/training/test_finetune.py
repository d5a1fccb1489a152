"""Fine-tuning: batches, noise, conditioning dropout, arms, exact resume."""

from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from g2g_utils import config, models
from g2g_utils.training import finetune, pretrain

CONFIG = config.load("smoke")
CAPTIONS = [f"small left effusion number {'abcdefgh'[i]}" for i in range(8)]


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Tokenizer, fresh U-Net and encoder makers, pairs: all tiny and random."""
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer = pretrain.word_tokenizer(CAPTIONS, folder, CONFIG.text.max_length)

    def make():
        with models.initialised(0):
            encoder = pretrain.build_text_encoder(CONFIG.encoders["domain"], tokenizer, 77)
            return models.build_unet(CONFIG.unet, 4, 8, 32), encoder

    generator = torch.Generator().manual_seed(1)
    mean = torch.randn((8, 4, 8, 8), generator=generator)
    return SimpleNamespace(
        tokenizer=tokenizer,
        make=make,
        pairs=finetune.Pairs(mean, torch.full_like(mean, 0.1), tuple(CAPTIONS)),
        scheduler=models.build_scheduler(CONFIG.unet),
    )


def tune(parts, folder, *, arm=None, seed=0, **changes):
    options = CONFIG.training.model_copy(update=changes)
    unet, encoder = parts.make()
    finetune.fine_tune(
        parts.pairs,
        unet,
        models.Conditioning(parts.tokenizer, encoder, 77, zero_padding=True),
        parts.scheduler,
        arm or config.Arm(encoder="domain"),
        options,
        folder,
        seed=seed,
    )
    return unet, encoder


def test_every_sample_comes_once_an_epoch_in_an_order_of_its_own():
    epochs = [
        torch.cat([finetune.batch_indices(e * 2 + s, 4, 8, seed=3) for s in range(2)])
        for e in range(3)
    ]
    for epoch in epochs:
        assert sorted(epoch.tolist()) == list(range(8))
    assert len({tuple(epoch.tolist()) for epoch in epochs}) == 3
    straddling = finetune.batch_indices(1, 5, 8, seed=3)  # positions 5..9 cross an epoch
    assert straddling[:3].tolist() == epochs[0][5:].tolist()


@dataclass
class Processes:
    num_processes: int
    process_index: int


def test_two_processes_see_different_halves_of_the_same_batch():
    ids = finetune.batch_indices(0, 6, 8, seed=0)
    halves = [finetune.share(ids, Processes(2, rank)) for rank in range(2)]
    assert torch.equal(torch.cat(halves), ids) and not set(halves[0].tolist()) & set(
        halves[1].tolist()
    )
    with pytest.raises(ValueError, match=r"batch size 6 .*4 processes"):
        finetune.share(ids, Processes(4, 0))


def test_processes_share_an_update_whatever_their_number():
    options = CONFIG.training.model_copy(update={"batch_size": 4, "accumulate": 6})
    for processes, steps in {1: 6, 2: 3, 3: 2, 6: 1, 12: 1}.items():
        assert finetune.accumulation(options, processes) == steps
    with pytest.raises(config.ConfigError, match=r"24 samples .*5 processes"):
        finetune.accumulation(options, 5)


def test_noise_depends_on_sample_and_step_alone():
    shape = torch.Size((4, 8, 8))
    whole = finetune.draw(torch.tensor([3, 5, 7]), 11, shape, 1000, CONFIG.training, 0)
    part = finetune.draw(torch.tensor([7]), 11, shape, 1000, CONFIG.training, 0)
    for name in ("posterior", "noise", "timesteps", "dropped"):
        assert torch.equal(getattr(whole, name)[2], getattr(part, name)[0])
    other = finetune.draw(torch.tensor([7]), 12, shape, 1000, CONFIG.training, 0)
    assert not torch.equal(other.noise, part.noise)


def test_timestep_density_grows_linearly_when_asked():
    ids, shape = torch.arange(3000), torch.Size((1,))
    for density, expected in (("uniform", 1 / 2), ("linear", 2 / 3)):
        options = CONFIG.training.model_copy(update={"timestep_density": density})
        drawn = finetune.draw(ids, 0, shape, 1000, options, 0).timesteps.float() / 1000
        assert drawn.mean() == pytest.approx(expected, abs=0.02)
        assert 0 <= drawn.min() and drawn.max() < 1


def test_a_foundation_learns_without_text(parts, tmp_path):
    unet, _ = parts.make()
    before = {name: weight.clone() for name, weight in unet.state_dict().items()}
    finetune.pretrain(
        parts.pairs, unet, parts.scheduler, CONFIG.training, tmp_path, seed=0, steps=4
    )
    after = load_file(tmp_path / "unet" / "diffusion_pytorch_model.safetensors")
    for name in after:
        if ".attn2.to_v." in name:  # nothing to read, nothing learnt (weight decay aside)
            assert torch.allclose(after[name], before[name], rtol=1e-2, atol=1e-6), name
    assert not torch.allclose(after["conv_in.weight"], before["conv_in.weight"], atol=1e-5)


def test_the_unconditional_embedding_reaches_the_unet(parts):
    """Conditioning dropout acts: dropped rows show the U-Net the empty prompt's text states."""
    unet, encoder = parts.make()
    seen = []
    unet.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["encoder_hidden_states"]), with_kwargs=True
    )
    text = models.Conditioning(parts.tokenizer, encoder, 77, zero_padding=True)
    module = finetune.Denoising(unet, text, learnable=False)
    tokens = models.tokenize(parts.tokenizer, CAPTIONS[:3], 77)
    nothing = models.tokenize(parts.tokenizer, [""], 77)
    dropped = torch.tensor([True, False, True])
    ids, mask = finetune.drop_conditioning(
        tokens["input_ids"],
        tokens["attention_mask"],
        (nothing["input_ids"], nothing["attention_mask"]),
        dropped,
    )
    module(torch.randn(3, 4, 8, 8), torch.tensor([1, 2, 3]), ids, mask)
    empty = models.text_states(encoder, nothing["input_ids"], nothing["attention_mask"], True)[0]
    given = models.text_states(encoder, tokens["input_ids"], tokens["attention_mask"], True)
    torch.testing.assert_close(seen[0][0], empty)
    torch.testing.assert_close(seen[0][2], empty)
    torch.testing.assert_close(seen[0][1], given[1])
    assert (given[1] - empty).abs().max() > 0.01


def test_dropout_changes_what_is_learned(parts, tmp_path):
    never = tune(parts, tmp_path / "never", dropout=0.0, steps=3)[0].state_dict()
    always = tune(parts, tmp_path / "always", dropout=1.0, steps=3)[0].state_dict()
    name = next(n for n in never if "attn2.to_v" in n)
    assert not torch.equal(never[name], always[name])


def test_a_frozen_encoder_stays_and_a_learnable_one_moves_and_is_saved(parts, tmp_path):
    before = parts.make()[1].state_dict()
    frozen = tune(parts, tmp_path / "frozen", steps=3)[1].state_dict()
    assert all(torch.equal(before[n], frozen[n]) for n in before)
    assert not (tmp_path / "frozen" / "text_encoder").exists()
    arm = config.Arm(encoder="domain", learnable=True)
    moved = tune(parts, tmp_path / "learnable", arm=arm, steps=3)[1].state_dict()
    assert any(not torch.equal(before[n], moved[n]) for n in before)
    saved = load_file(tmp_path / "learnable" / "text_encoder" / "model.safetensors")
    assert all(torch.equal(value, moved[name]) for name, value in saved.items())


@pytest.mark.parametrize("learnable", [False, True])
def test_a_killed_fine_tuning_resumes_to_the_same_weights(parts, tmp_path, monkeypatch, learnable):
    arm = config.Arm(encoder="domain", learnable=learnable)
    settings = {"steps": 6, "checkpoint_every": 2}
    whole = tune(parts, tmp_path / "whole", arm=arm, **settings)[0].state_dict()
    original = finetune.batch_indices

    def crash(step, *rest):
        if step == 3:
            raise KeyboardInterrupt
        return original(step, *rest)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(finetune, "batch_indices", crash)
        tune(parts, tmp_path / "killed", arm=arm, **settings)
    resumed = tune(parts, tmp_path / "killed", arm=arm, **settings)[0].state_dict()
    assert all(torch.equal(whole[n], resumed[n]) for n in whole)


def test_shuffled_captions_describe_other_images(parts, tmp_path):
    straight = tune(parts, tmp_path / "straight", steps=3)[0].state_dict()
    arm = config.Arm(encoder="domain", shuffled=True)
    permuted = tune(parts, tmp_path / "permuted", arm=arm, steps=3)[0].state_dict()
    assert any(not torch.equal(straight[n], permuted[n]) for n in straight)


def test_cached_latents_come_back_and_must_match_the_captions(tmp_path):
    vae = models.build_vae(CONFIG.vae)
    images = torch.rand(5, 1, 64, 64)
    finetune.cache_latents(vae, images, tmp_path, list("abcde"), batch_size=2)
    pairs = finetune.load_pairs(tmp_path, list("abcde"))
    mean, std = models.image_posterior(vae, images)
    torch.testing.assert_close(pairs.mean.float(), mean.detach(), atol=2e-3, rtol=2e-3)
    torch.testing.assert_close(pairs.std.float(), std.detach(), atol=2e-3, rtol=2e-3)
    with pytest.raises(ValueError, match="5 latents but 4 captions"):
        finetune.load_pairs(tmp_path, list("abcd"))
