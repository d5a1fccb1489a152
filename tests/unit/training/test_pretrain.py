"""Tokenizers of the miniature's text encoders."""

from transformers import AutoTokenizer

from g2g_utils.data.phantoms import glyphs
from g2g_utils.training import pretrain


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
