"""The registry of text encoders: sizes from configs, CXR-BERT's own type, what is missing."""

import json

import pytest
import torch
from transformers import BertModel, RobertaConfig, RobertaModel

from g2g_utils import config, encoders, models

PHRASE = "small left effusion"


@pytest.fixture(scope="module")
def standins(script):
    return script("tests/standins.py")


@pytest.mark.parametrize("name", sorted(encoders.REGISTRY))
def test_missing_weights_name_hub_id_files_and_command(name, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    published = encoders.REGISTRY[name]
    with pytest.raises(models.MissingWeights) as caught:
        models.load_text_encoder(name)
    message = str(caught.value)
    assert f"hf download {published.hub_id}" in message and "\n" not in message
    assert published.weights in message and "config.json" in message
    assert (f"--revision {published.revision}" in message) == (published.revision is not None)
    assert published.revision or "pin the commit" in published.note


def test_the_paper_names_all_of_them():
    settings = config.load("paper")
    named = {encoders.resolve(str(e.pretrained))[0] for e in settings.encoders.values()}
    assert named >= {published.hub_id for published in encoders.REGISTRY.values()}
    kinds = {p.hub_id: p.kind for p in encoders.REGISTRY.values()}
    for encoder in settings.encoders.values():
        assert encoder.kind == kinds[encoders.resolve(str(encoder.pretrained))[0]]


def test_an_own_revision_wins():
    assert encoders.resolve("cxr-bert", "abc")[1] == "abc"
    assert encoders.resolve("some/folder") == ("some/folder", None)


def test_widths_and_lengths_come_from_configs(standins, tmp_path):
    read = [
        json.loads((make(tmp_path / make.__name__, 32) / "config.json").read_text())
        for make in (standins.bert, standins.cxr_bert, standins.clip)
    ]
    assert [encoders.sizes(tree) for tree in read] == [(32, 77)] * 3
    clip = {"model_type": "clip", "text_config": {"hidden_size": 5, "max_position_embeddings": 9}}
    assert encoders.sizes(clip) == (5, 9)
    assert encoders.sizes(RobertaConfig(max_position_embeddings=514).to_dict())[1] == 512


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


def test_more_tokens_than_positions_are_refused(standins, tmp_path):
    settings = config.load("paper", **{"text.max_length": 78})
    _, encoder = models.load_text_encoder(standins.clip(tmp_path))
    with pytest.raises(config.ConfigError, match=r"max_length = 78.*'generic' has 77 positions"):
        models.check_length(settings, "generic-frozen", encoder)
