"""Fine-tuning from a pretrained U-Net: whole, LoRA, projected, released; keys; whole plan."""

import json

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from g2g_utils import config, models
from g2g_utils.experiment import plan, products
from g2g_utils.runs import places

ARM = "ldm/domain-frozen-s4200"


@pytest.fixture(scope="module")
def standins(script):
    return script("tests/standins.py")


@pytest.fixture(scope="module")
def world(standins, tmp_path_factory):
    """Overrides of `open` on stand-ins; Stable Diffusion 1.5's case: equal widths."""
    return standins.real_profile(tmp_path_factory.mktemp("real"), films=36)


@pytest.fixture(scope="module")
def wide(standins, tmp_path_factory):
    """Stable Diffusion 2.1's case: the cross-attention is wider than the text states."""
    return standins.real_profile(tmp_path_factory.mktemp("wide"), films=6, width=48)


@pytest.fixture
def load(world, monkeypatch, tmp_path):
    monkeypatch.setenv("G2G_BUILD", str(tmp_path / "build"))

    def load(overrides=None, **changes):
        return config.load("open", **{**(overrides or world), **changes})

    return load


def probe(unet, width):
    """Output of a U-Net [1, 4, 8, 8] for a fixed input and text states of a width."""
    generator = torch.Generator().manual_seed(3)
    latents = torch.randn((1, 4, 8, 8), generator=generator)
    states = torch.randn((1, 77, width), generator=generator)
    with torch.no_grad():
        return unet.eval()(latents, 500, encoder_hidden_states=states).sample


def trained(settings, monkeypatch, arm="domain-frozen"):
    """Output of the U-Net as it was trained, and the model that is loaded afterwards."""
    seen = {}
    original = models.save_unet

    def spy(unet, folder):
        seen["output"] = probe(unet, 32)
        return original(unet, folder)

    with monkeypatch.context() as patch:
        patch.setattr(models, "save_unet", spy)
        products.ensure(settings, f"ldm/{arm}-s4200")
    return seen["output"], products.model(settings, arm)


@pytest.mark.slow
def test_every_product_of_a_real_profile_is_made(load):
    """From files to tables: latents, all arms, baselines, evaluation, fidelity."""
    settings = load()
    with pytest.warns(UserWarning, match="validation and test share 4 patients"):
        for name in products.plan(settings):
            assert (products.ensure(settings, name) / "run.json").is_file(), name
    table = products.scores(settings)
    arms = table[table["arm"].notna()]
    assert set(arms["arm"]) == {"domain-frozen", "generic-frozen", "untuned"} and len(arms) == 12
    assert "mean box per finding" in set(table["method"])
    assert "BioViL-like" not in set(table["method"])  # its checkpoint is not there
    curves = products.scores(settings, "curves").groupby(["arm", "curve"]).size()
    assert len(curves) == 2 * 4 and set(curves) == {2}


def test_fine_tuning_starts_from_the_pretrained_unet(load, world, monkeypatch):
    settings = load(**{"training.learning_rate": 0.0})
    output, model = trained(settings, monkeypatch)
    start = models.load_unet(world["unet.pretrained"])
    torch.testing.assert_close(output, probe(start, 32))
    assert model.unet.config.encoder_hid_dim is None  # equal widths: no projection
    moved, _ = trained(load(), monkeypatch)
    assert (moved - output).abs().max() > 1e-3


@pytest.mark.parametrize("rank", [0, 4])
def test_what_was_trained_is_what_is_loaded(load, world, monkeypatch, rank):
    settings = load(**{"adaptation.lora_rank": rank})
    output, model = trained(settings, monkeypatch)
    torch.testing.assert_close(probe(model.unet, 32), output, atol=1e-5, rtol=1e-5)
    start = probe(models.load_unet(world["unet.pretrained"]), 32)
    assert (output - start).abs().max() > 1e-3
    folder = products.find(settings, ARM)
    assert (folder / "unet").is_dir() == (rank == 0)
    if rank:
        weights = load_file(folder / "unet_lora" / "pytorch_lora_weights.safetensors")
        assert all("lora_A" in name or "lora_B" in name for name in weights)
        assert {value.shape[0] for name, value in weights.items() if "lora_A" in name} == {rank}


@pytest.mark.parametrize("rank", [0, 4])
def test_text_of_another_width_is_projected(load, wide, monkeypatch, rank):
    settings = load(wide, **{"adaptation.lora_rank": rank})
    output, model = trained(settings, monkeypatch)
    assert model.unet.config.encoder_hid_dim == 32 and model.unet.encoder_hid_proj.weight.shape == (
        48,
        32,
    )
    torch.testing.assert_close(probe(model.unet, 32), output, atol=1e-5, rtol=1e-5)
    with models.initialised(4200):
        fresh = torch.nn.Linear(32, 48)
    assert not torch.equal(fresh.weight, model.unet.encoder_hid_proj.weight)  # it learns


def test_a_lora_model_grounds(load):
    from g2g_utils import grounding

    settings = load(**{"adaptation.lora_rank": 2})
    model = products.model(settings)
    found = grounding.ground(
        model, torch.rand(1, 64, 64), "left effusion", **products.grounding_options(settings)
    )
    assert found.heatmap.shape == (8, 8) and torch.isfinite(found.heatmap).all()


def test_one_arm_may_be_a_lora_beside_full_ones(load):
    arms = {
        "domain-frozen": {"encoder": "domain"},
        "domain-lora": {"encoder": "domain", "lora_rank": 2},
    }
    settings = load(**{"training.arms": arms})
    full = products.untrained_unet(settings, 0, 32)
    adapted = products.untrained_unet(
        settings, 0, 32, settings.training.arms["domain-lora"].lora_rank
    )
    learn = [sum(p.numel() for p in u.parameters() if p.requires_grad) for u in (full, adapted)]
    assert 0 < learn[1] < learn[0] / 4
    keys = [products.key(settings, f"ldm/{arm}-s4200") for arm in arms]
    assert keys[0] == products.key(load(), ARM) and keys[0] != keys[1]
    made = products.ensure(settings, "ldm/domain-lora-s4200")
    assert (made / models.checkpoints.LORA_FOLDER).is_dir() and not (made / "unet").exists()


def test_gradient_checkpointing_learns_the_same(load, monkeypatch):
    plain, _ = trained(load(), monkeypatch)
    settings = load(**{"adaptation.gradient_checkpointing": True})
    assert products.key(settings, ARM) == products.key(load(), ARM)
    unet = products.untrained_unet(settings, 0, 32)
    assert unet.is_gradient_checkpointing
    folder = places.build(settings) / "checkpointed"
    products.fine_tune(settings, "domain-frozen", 4200, folder)
    assert torch.allclose(probe(models.load_unet(folder), 32), plain, atol=1e-4)


def test_a_learnable_clip_moves_and_is_loaded(load, world):
    arms = {"generic-learnable": {"encoder": "generic", "learnable": True}}
    settings = load(**{"training.arms": arms, "training.text_learning_rate": 1.0e-2})
    model = products.model(settings, "generic-learnable")
    _, start = models.load_text_encoder(world["encoders.generic.pretrained"])
    moved = [
        not torch.equal(value, start.state_dict()[name])
        for name, value in model.text_encoder.state_dict().items()
    ]
    assert any(moved)


def test_a_released_unet_is_evaluated_and_nothing_is_trained(load, world, tmp_path):
    released = tmp_path / "released"
    unet = models.load_unet(world["unet.pretrained"])
    with torch.no_grad():
        unet.conv_out.bias.add_(1.0)
    unet.save_pretrained(released / "unet_ema")
    settings = load(**{"adaptation.released": str(released)})
    # the weights belong to one encoder; what is untuned needs none
    assert list(settings.training.arms) == ["domain-frozen", "untuned"]
    plan = products.plan(settings)
    assert not [name for name in plan if name.startswith("ldm/")]
    assert "scores/domain-frozen-s4200" in plan
    torch.testing.assert_close(probe(products.model(settings).unet, 32), probe(unet, 32))
    products.ensure(settings, "scores/domain-frozen-s4200")


UNTUNED = {"encoder": "generic", "untuned": True, "control": True}


def test_an_untuned_arm_is_the_pretrained_unet_and_trains_nothing(load, world):
    arms = {"domain-frozen": {"encoder": "domain"}, "untuned": UNTUNED}
    settings = load(**{"training.arms": arms, "training.seeds": [4200, 1759]})
    plan = products.plan(settings)
    found = [name for name in plan if "untuned" in name]
    assert found == ["scores/untuned-s4200"]  # it has no seeds, and as a control no fidelity
    start = models.load_unet(world["unet.pretrained"])
    assert torch.equal(probe(products.model(settings, "untuned").unet, 32), probe(start, 32))
    products.ensure(settings, found[0])
    table = pd.read_csv(products.find(settings, found[0]) / "scores.csv")
    assert len(table) == 4 and table["cnr"].notna().all()
    assert not list(places.build(settings).rglob("ldm*"))
    other = load(**{"training.arms": arms, "unet.pretrained": "elsewhere"})
    assert products.key(settings, found[0]) != products.key(other, found[0])
    assert products.key(settings, ARM) == products.key(load(), ARM)


def test_an_untuned_arm_stays_beside_released_weights(load, world):
    arms = {
        "domain-frozen": {"encoder": "domain"},
        "generic-frozen": {"encoder": "generic"},
        "untuned": UNTUNED,
    }
    settings = load(**{"training.arms": arms, "adaptation.released": "somewhere"})
    assert list(settings.training.arms) == ["domain-frozen", "untuned"]
    loaded = [settings.loaded_unet(arm)[0] for arm in settings.training.arms]
    assert loaded == ["somewhere", world["unet.pretrained"]]


def test_an_untuned_arm_that_cannot_be_is_refused(load, wide):
    with pytest.raises(config.ConfigError, match="nothing is trained in this arm"):
        load(**{"training.arms": {"untuned": {**UNTUNED, "learnable": True}}})
    with pytest.raises(config.ConfigError, match=r"untuned needs unet\.pretrained"):
        config.load("smoke", **{"training.arms": {"untuned": UNTUNED}})
    settings = load(wide, **{"training.arms": {"untuned": UNTUNED}})
    with pytest.raises(config.ConfigError, match="takes text states of width 48, but encoder"):
        products.model(settings)


def test_keys_follow_adaptation_and_loaded_weights(load):
    base = products.key(load(), ARM)
    for key, value in {
        "adaptation.lora_rank": 4,
        "unet.pretrained": "elsewhere",
        "encoders.domain.pretrained": "elsewhere",
        "encoders.domain.revision": "abc",
        "vae.revision": "abc",
    }.items():
        assert products.key(load(**{key: value}), ARM) != base, key
    name = "scores/domain-frozen-s4200"
    released = {"adaptation.released": "one"}
    keys = {
        products.key(load(**released, **more), name)
        for more in ({}, {"adaptation.revision": "abc"}, {"encoders.domain.revision": "abc"})
    }
    assert len(keys) == 3 and products.key(load(), name) not in keys


def test_shipped_products_keep_their_keys():
    """Weights that the repository ships are found: their keys did not change."""
    settings = config.load("miniature")
    records = sorted(places.weights(settings).rglob("run.json"))
    assert records
    for record in records:
        made = json.loads(record.read_text())
        assert plan.key(settings, made["product"]) == made["key"], made["product"]


@pytest.mark.parametrize("profile", ["smoke", "miniature"])
def test_adaptation_without_a_pretrained_unet_is_refused(profile):
    with pytest.raises(config.ConfigError, match=r"have no effect without unet\.pretrained"):
        config.load(profile, **{"adaptation.lora_rank": 4})


def test_released_weights_and_a_learnable_encoder_are_refused(load):
    arms = {"generic-learnable": {"encoder": "generic", "learnable": True}}
    with pytest.raises(config.ConfigError, match="must be frozen"):
        load(**{"adaptation.released": "somewhere", "training.arms": arms})


@pytest.mark.parametrize("change", ["missing", "unexpected"])
@pytest.mark.parametrize("part", ["unet", "cxr_bert"])
def test_weights_that_do_not_fit_are_refused(standins, tmp_path, part, change):
    if part == "unet":
        place = standins.stable_diffusion(tmp_path)
        file = place / "unet" / "diffusion_pytorch_model.safetensors"
        reader = models.load_unet
    else:
        place = standins.cxr_bert(tmp_path)
        file, reader = place / "model.safetensors", models.load_text_encoder
    state = load_file(file)
    name = next(iter(n for n in sorted(state) if "attn" in n or "attention" in n))
    value = state.pop(name)
    if change == "unexpected":
        state |= {name: value, "transformer.wte": value.clone()}
    save_file(state, file, metadata={"format": "pt"})
    with pytest.raises(models.MissingWeights, match=change):
        reader(place)
