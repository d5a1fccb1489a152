"""The registry of text encoders: sizes from configs, CXR-BERT's own type, what is missing."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import BertModel, CLIPTextModel, RobertaConfig, RobertaModel

from g2g_utils import config, models
from g2g_utils.experiment import assemble, plan
from g2g_utils.models import registry

PHRASE = "small left effusion"


@pytest.fixture(scope="module")
def standins(script):
    return script("tests/standins.py")


@pytest.mark.parametrize("name", sorted(registry.REGISTRY))
def test_missing_weights_name_hub_id_files_and_command(name, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    published = registry.REGISTRY[name]
    with pytest.raises(models.MissingWeights) as caught:
        models.load_text_encoder(name)
    message = str(caught.value)
    assert f"hf download {published.hub_id}" in message and "\n" not in message
    assert published.weights in message and "config.json" in message
    assert (f"--revision {published.revision}" in message) == (published.revision is not None)
    assert published.revision or "pin the commit" in published.note


def test_the_paper_names_all_of_them():
    settings = config.load("paper")
    named = {registry.resolve(str(e.pretrained))[0] for e in settings.encoders.values()}
    assert named >= {published.hub_id for published in registry.REGISTRY.values()}
    kinds = {p.hub_id: p.kind for p in registry.REGISTRY.values()}
    for encoder in settings.encoders.values():
        if not encoder.subfolder:  # of a pipeline
            assert encoder.kind == kinds[registry.resolve(str(encoder.pretrained))[0]]


def test_an_own_revision_wins():
    assert registry.resolve("cxr-bert", "abc")[1] == "abc"
    assert registry.resolve("some/folder") == ("some/folder", None)


def test_shipped_folders_are_found_from_everywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    vae, unet = "weights/miniature/vae", "weights/miniature/ldm/domain-frozen-s0"
    assert registry.is_folder(vae) and registry.find(unet, "unet/config.json")
    assert models.load_vae(vae).config.latent_channels == 4
    assert models.load_unet(unet).config.cross_attention_dim == 64
    assert models.load_text_encoder("weights/miniature/encoders/domain")[1].config.hidden_size == 64
    assert registry.at_home("some/folder") == "some/folder"


def test_widths_and_lengths_come_from_configs(standins, tmp_path):
    read = [
        json.loads((make(tmp_path / make.__name__, 32) / "config.json").read_text())
        for make in (standins.bert, standins.cxr_bert, standins.clip)
    ]
    assert [registry.sizes(tree) for tree in read] == [(32, 77)] * 3
    clip = {"model_type": "clip", "text_config": {"hidden_size": 5, "max_position_embeddings": 9}}
    assert registry.sizes(clip) == (5, 9)
    assert registry.sizes(RobertaConfig(max_position_embeddings=514).to_dict())[1] == 512


def test_cxr_bert_of_its_own_model_type_loads_as_a_plain_bert(standins, tmp_path):
    """Its config.json asks for remote code, as the published one does; none is run."""
    plain, own = standins.bert(tmp_path / "bert"), standins.cxr_bert(tmp_path / "own")
    assert "auto_map" in json.loads((own / "config.json").read_text())
    tokenizer, encoder = models.load_text_encoder(own)
    assert type(encoder) is BertModel
    same, _ = models.load_text_encoder(plain)
    assert tokenizer(PHRASE).input_ids == same(PHRASE).input_ids
    batch = models.tokenize(tokenizer, [PHRASE], 20)
    with torch.no_grad():
        states = models.text_states(encoder, batch["input_ids"], batch["attention_mask"])
    assert states.shape == (1, 20, 32) and torch.isfinite(states).all()


def test_roberta_loads_and_other_types_are_refused(standins, tmp_path):
    small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes = small | {"intermediate_size": 64, "vocab_size": 60, "max_position_embeddings": 79}
    folder = standins.bert(tmp_path / "roberta")  # its tokenizer files
    RobertaModel(RobertaConfig(**sizes), add_pooling_layer=False).save_pretrained(folder)
    assert type(models.load_text_encoder(folder)[1]) is RobertaModel
    tree = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(tree | {"model_type": "gpt2"}))
    with pytest.raises(models.MissingWeights, match="model_type 'gpt2', known are bert"):
        models.load_text_encoder(folder)


def test_a_tokenizer_without_its_words_is_refused(standins, tmp_path):
    """Without the file transformers makes a tokenizer of special tokens: all words are unknown."""
    bert, clip = standins.cxr_bert(tmp_path / "bert"), standins.clip(tmp_path / "clip")
    (bert / "vocab.txt").unlink()
    (clip / "tokenizer.json").unlink()
    for folder, file in ((bert, r"vocab\.txt"), (clip, r"vocab\.json and merges\.txt, or")):
        fix = f"hf download HUB_ID --local-dir {folder}"
        with pytest.raises(models.MissingWeights, match=f"{folder} knows .*{file}.*{fix}"):
            models.load_text_encoder(folder)


@pytest.mark.parametrize("kind", ["safetensors", "bin", "page", "list"])
def test_damaged_weights_are_one_line_with_the_file(standins, tmp_path, kind):
    file = standins.cxr_bert(tmp_path) / "model.safetensors"
    if kind in ("bin", "list"):
        state, file = (
            load_file(file),
            file.rename(tmp_path / "other").with_name("pytorch_model.bin"),
        )
        torch.save(state if kind == "bin" else [1], file)
    if kind != "list":
        whole = file.read_bytes()
        file.write_bytes(b"<html>" if kind == "page" else whole[: len(whole) // 2])
    with pytest.raises(models.MissingWeights) as caught:
        models.load_text_encoder(tmp_path)
    assert file.name in str(caught.value) and "\n" not in str(caught.value)
    assert kind == "list" or f"{file} is damaged: fetch it again" in str(caught.value)


def test_weights_on_this_machine_are_found(tmp_path):
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "config.json").touch()
    for folder in (tmp_path, tmp_path / "vae"):
        assert registry.find(str(folder), "vae/config.json") == tmp_path / "vae" / "config.json"
    assert registry.find("nobody/nothing", "config.json") is None
    assert registry.find("~/no hub id", "config.json") is None
    names = ["model.fp16.safetensors", "training_args.bin", "pytorch_model.bin"]
    for name in names:
        (tmp_path / name).touch()
    assert [path.name for path in registry.weights(tmp_path)] == names[-1:]
    (tmp_path / "model.safetensors").touch()
    assert [path.name for path in registry.weights(tmp_path)] == ["model.safetensors"]


@pytest.fixture
def pipeline(standins, tmp_path):
    """Stable Diffusion's folders with a text encoder and its tokenizer beside it."""
    folder = standins.stable_diffusion(tmp_path / "sd")
    standins.clip(folder / "text_encoder").rename(folder / "both")
    for name, pattern in (("text_encoder", "[cm]*"), ("tokenizer", "tokenizer*")):
        (folder / name).mkdir()
        for file in (folder / "both").glob(pattern):
            file.rename(folder / name / file.name)
    return folder


def test_the_text_encoder_of_a_pipeline_is_named_by_its_subfolder(pipeline):
    own = {"kind": "clip", "pretrained": str(pipeline), "subfolder": "text_encoder"}
    settings = config.load("paper", **{"encoders.generic": own})
    tokenizer, encoder = assemble.arm_text_encoder(settings, "generic-frozen", 0)
    assert type(encoder) is CLIPTextModel and len(tokenizer) == encoder.config.vocab_size
    (pipeline / "tokenizer" / "tokenizer.json").unlink()
    with pytest.raises(models.MissingWeights, match=f"{pipeline}/tokenizer knows 2 words"):
        assemble.arm_text_encoder(settings, "generic-frozen", 0)


def test_a_subfolder_changes_keys_only_where_it_is_set(pipeline):
    keys = [
        plan.key(config.load("paper", **{"encoders.generic": own}), "ldm/generic-frozen-s4200")
        for encoder in [{"kind": "clip", "pretrained": str(pipeline)}]
        for own in (encoder, encoder | {"subfolder": None}, encoder | {"subfolder": "other"})
    ]
    assert keys[0] == keys[1] != keys[2]


def test_a_subfolder_of_nothing_is_refused():
    with pytest.raises(config.ConfigError, match=r"subfolder = 'text_encoder' .* pretrained"):
        config.load("smoke", **{"encoders.generic.subfolder": "text_encoder"})


def test_more_tokens_than_positions_are_refused(standins, tmp_path):
    settings = config.load("paper", **{"text.max_length": 78})
    _, encoder = models.load_text_encoder(standins.clip(tmp_path))
    with pytest.raises(config.ConfigError, match=r"max_length = 78.*'generic' has 77 positions"):
        assemble.check_length(settings, "generic-frozen", encoder)
