"""Tokenizers of the miniature's text encoders, and their pre-training in few steps."""

from collections import Counter

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file
from transformers import AutoTokenizer

from g2g_utils import config, models
from g2g_utils.data.phantoms import glyphs
from g2g_utils.models.image_text import load_image_text
from g2g_utils.training import fit, pretrain

SMOKE = config.load("smoke")
PLACES = ["left", "right", "upper", "lower"]
CAPTIONS = [f"bright spot {place}" for place in PLACES] * 4


@pytest.fixture(scope="module")
def images():
    """Images [16, 1, 32, 32] with the spot that their caption tells, on noise."""
    noise = torch.rand((16, 1, 32, 32), generator=torch.Generator().manual_seed(0)) * 0.4
    for k, image in enumerate(noise[:, 0]):
        rows, columns = {2: (8, 16), 3: (24, 16)}.get(k % 4, (16, 8 if k % 4 == 1 else 24))
        image[rows - 5 : rows + 5, columns - 5 : columns + 5] += 0.5
    return noise


@pytest.fixture
def frequent(monkeypatch):
    """Every step a line in the log, every second a checkpoint."""
    options, often = pretrain.Options, {"log_every": 1, "checkpoint_every": 2}
    monkeypatch.setattr(pretrain, "Options", lambda *a, **k: options(*a, **k | often))


def encoder(images, folder, objective, **changes):
    sizes = {"width": 16, "layers": 1, "heads": 2, "mlm_steps": 2, "steps": 2, "batch_size": 6}
    kind = "clip" if objective == "generic" else "bert"
    settings = config.Encoder(kind=kind, objective=objective, **sizes | changes)
    pretrain.pretrain_encoder(settings, images, CAPTIONS, folder, max_length=12, seed=0)


def losses(folder):
    return [row["loss"] for row in fit.read_log(folder)]


@pytest.mark.parametrize(
    "objective, expected",
    [
        ("domain", {"masked_language_loss": 4, "contrast": 2, "local_contrast": 2}),
        ("global", {"masked_language_loss": 4, "contrast": 2}),
        ("mlm", {"masked_language_loss": 4}),
        ("generic", {"contrast": 2}),
        ("random", {}),
    ],
)
def test_an_objective_is_made_of_its_losses(
    images, tmp_path, monkeypatch, frequent, objective, expected
):
    calls, parts = Counter(), []

    def watch(name):
        original = getattr(pretrain, name)

        def counted(*args):
            calls[name] += 1
            parts.append(original(*args))
            return parts[-1]

        monkeypatch.setattr(pretrain, name, counted)

    for name in ("masked_language_loss", "contrast", "local_contrast"):
        watch(name)
    encoder(images, tmp_path, objective, mlm_steps=0 if objective == "generic" else 2)
    assert calls == expected
    if expected:
        assert sum(losses(tmp_path)) == pytest.approx(sum(part.item() for part in parts), abs=1e-5)
    assert (tmp_path / "biovil.safetensors").exists() == ("contrast" in expected)
    tokenizer, saved = models.load_text_encoder(tmp_path)
    tokens = models.tokenize(tokenizer, CAPTIONS[:2], 12)
    states = models.text_states(saved, tokens["input_ids"], tokens["attention_mask"])
    assert states.shape == (2, 12, 16) and states.isfinite().all()


@pytest.mark.parametrize("objective", ["domain", "generic"])
def test_an_encoder_learns(images, tmp_path, frequent, objective):
    steps = {"mlm_steps": 0, "steps": 30, "learning_rate": 5e-3, "batch_size": 8}
    encoder(images, tmp_path, objective, **steps)
    values = losses(tmp_path)
    assert sum(values[-5:]) < 0.8 * sum(values[:5])


def test_the_image_branch_is_saved_as_it_was_trained(images, tmp_path, frequent):
    encoder(images, tmp_path, "domain")
    branch, heads = load_image_text(tmp_path)
    before = fit.read_checkpoint(tmp_path)["modules"]["all"]  # of step 2 of 4
    for name, module in (("image", branch), ("heads", heads)):
        for key, weight in module.state_dict().items():
            earlier = before[f"{name}.{key}"]
            assert weight.shape == earlier.shape and not torch.equal(weight, earlier), key
    patches, pooled = branch(images[:3])
    assert patches.shape == (3, 16, 8, 8) and pooled.shape == (3, 16)


@pytest.mark.parametrize("what", ["encoder", "vae"])
def test_a_killed_pretraining_resumes_to_the_same_weights(
    images, tmp_path, monkeypatch, frequent, what
):
    def run(folder):
        if what == "vae":
            settings = SMOKE.vae.model_copy(update={"steps": 5, "batch_size": 2})
            pretrain.train_vae(images, settings, folder, seed=0)
            return load_file(folder / "diffusion_pytorch_model.safetensors")
        encoder(images, folder, "domain")
        return load_file(folder / "model.safetensors")

    whole = run(tmp_path / "whole")
    original, seen = pretrain.seeded, []

    def crash(*numbers):
        seen.append(numbers[-1])
        if numbers[-1] == 3 and seen.count(3) == 1:
            raise KeyboardInterrupt
        return original(*numbers)

    monkeypatch.setattr(pretrain, "seeded", crash)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed")
    resumed = run(tmp_path / "killed")
    assert seen.count(0) == seen.count(1) == 1  # it went on from the checkpoint after step 1
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_vae_learns_and_knows_the_scale_of_its_latents(images, tmp_path, frequent):
    settings = SMOKE.vae.model_copy(update={"steps": 30, "batch_size": 4, "learning_rate": 5e-3})
    found = pretrain.train_vae(images, settings, tmp_path, seed=0)
    values = losses(tmp_path)
    assert sum(values[-5:]) < 0.6 * sum(values[:5])
    vae = AutoencoderKL.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        given = models.vae_input(vae, images)
        latents = vae.encode(given).latent_dist.mean * vae.config.scaling_factor
        rebuilt = models.vae_output(vae, vae(given).sample)
    assert float(latents.std()) == pytest.approx(1, abs=1e-3)
    psnr = -10 * (rebuilt - images).square().mean().log10()
    assert found == {"metrics": {"psnr_db": pytest.approx(float(psnr), abs=0.01)}}


def test_the_byte_pair_tokenizer_is_the_same_each_time(tmp_path):
    """Left alone, the trainer numbers the ends of words in the random order of a hash map."""
    _, captions = glyphs.generate(300, 0)
    made = [pretrain.byte_tokenizer(captions, tmp_path / str(k), 77) for k in range(3)]
    first = made[0].backend_tokenizer.to_str()
    assert all(tokenizer.backend_tokenizer.to_str() == first for tokenizer in made)


def test_the_byte_pair_tokenizer_survives_its_folder(tmp_path):
    _, captions = glyphs.generate(100, 0)
    made = pretrain.byte_tokenizer(captions, tmp_path, 77)
    again = AutoTokenizer.from_pretrained(tmp_path)
    phrase = "Small left pneumothorax."
    assert made(phrase)["input_ids"] == again(phrase)["input_ids"]
    assert made.all_special_ids == [0, 1] and made.eos_token_id == made.pad_token_id == 1
    pieces = made.convert_ids_to_tokens(made(phrase)["input_ids"])
    assert "".join(pieces[1:-1]).replace("</w>", " ") == "small left pneumothorax . "
