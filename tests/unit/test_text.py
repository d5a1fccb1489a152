import importlib.util
import json
import os
import unicodedata
import warnings
from pathlib import Path

import pytest
import spacy
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import BertTokenizerFast, CLIPTokenizerFast, PreTrainedTokenizerFast

from g2g_utils import tagger, text
from g2g_utils.data.plain import CHANGED, normalise, plain
from g2g_utils.text import select_tokens, tokenize

ROOT = Path(__file__).resolve().parents[2]
PHRASE = "Small left-sided pleural effusion/atelectasis, 2.5 cm; LEFT effusion"


@pytest.fixture(scope="module")
def bert():
    pieces = "small left right lower - , ; / . 2 5 c ##m pl ##eural e ##ffusion at ##electasis"
    pieces += " ##sided sided no of the is in lobe edema pneumonia"
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *pieces.split()]
    return BertTokenizerFast(vocab={name: i for i, name in enumerate(names)})


@pytest.fixture(scope="module")
def clip():
    """Byte pairs set up like CLIP's: lower case, end-of-word mark, end token as padding."""
    raw = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token="<|endoftext|>"))
    raw.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    split = pre_tokenizers.Split(
        Regex(r"'s|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"),
        behavior="removed",
        invert=True,
    )
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.pre_tokenizer = pre_tokenizers.Sequence([split, level])
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|startoftext|>", "<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    raw.train_from_iterator(["small left pleural effusion"] * 9, trainer)
    raw.decoder = decoders.ByteLevel()
    ends = [(t, raw.token_to_id(t)) for t in ("<|endoftext|>", "<|startoftext|>")]
    raw.post_processor = processors.BertProcessing(*ends)
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        bos_token="<|startoftext|>",
        eos_token="<|endoftext|>",
        unk_token="<|endoftext|>",
        pad_token="<|endoftext|>",
    )


@pytest.fixture(params=["bert", "clip"])
def tokenizer(request):
    return request.getfixturevalue(request.param)


def texts(phrase, tokens):
    return list(dict.fromkeys(phrase.word_at(t) for t in tokens))


def test_words_follow_characters_not_spaces(tokenizer):
    phrase = tokenize(tokenizer, PHRASE, 60)
    words = "Small left sided pleural effusion atelectasis 2.5 cm LEFT effusion".split()
    assert [w.text for w in phrase.words] == words
    assert all(PHRASE[w.start : w.end] == w.text for w in phrase.words)
    assert phrase.truncated == ()
    spread = [t for w in phrase.words for t in w.tokens]
    assert spread == sorted(set(spread)) and set(spread) <= set(phrase.inner)
    assert (phrase.start, len(phrase.pieces)) == (0, 60)
    assert phrase.padding == tuple(range(phrase.end + 1, 60))
    assert phrase.attention_mask.sum() == phrase.end + 1


def test_all_pieces_of_a_word(bert):
    phrase = tokenize(bert, "no pleural effusion", 12)
    assert phrase.tokens_of("pleural") == [2, 3]
    assert phrase.pieces[2:4] == ("pl", "##eural")
    assert select_tokens(phrase, "all", compat="published") == [1, 2, 4]
    assert select_tokens(phrase, "all") == [1, 2, 3, 4, 5]


def test_repeated_words_and_phrases(tokenizer):
    phrase = tokenize(tokenizer, PHRASE, 60)
    both = phrase.tokens_of("effusion")
    first, second = (phrase.tokens_of("effusion", occurrence=i) for i in (0, 1))
    assert both == first + second and len(first) == len(second) > 0
    pair = phrase.tokens_of("pleural") + phrase.tokens_of("effusion", 0)
    assert phrase.tokens_of("Pleural effusion") == pair
    with pytest.raises(ValueError, match=r"no word 'edema'.*Small"):
        phrase.tokens_of("edema")


def test_unknown_words_keep_their_token(bert):
    phrase = tokenize(bert, "zzz effusion", 8)
    assert phrase.pieces[1] == "[UNK]"
    assert phrase.tokens_of("zzz") == [1]


def test_truncation_is_reported(bert):
    phrase = tokenize(bert, "small left pleural effusion", 6)  # room for 4 pieces
    assert [w.text for w in phrase.words] == ["small", "left", "pleural"]
    assert phrase.truncated == ("effusion",)
    assert tokenize(bert, "small left pleural effusion", 5).truncated == ("pleural", "effusion")


def test_a_word_cut_in_the_middle_is_reported_and_keeps_its_pieces(tokenizer):
    whole = tokenize(tokenizer, "small left zebra-atelectasis", 60)
    assert whole.truncated == ()
    last = whole.words[-1].tokens
    assert len(last) > 1
    cut = tokenize(tokenizer, "small left zebra-atelectasis", last[-1] + 1)  # one piece short
    assert cut.truncated == ("atelectasis",)
    assert cut.words[-1].tokens == last[:-1]
    assert len(cut.pieces) == last[-1] + 1 and cut.padding == ()
    with pytest.raises(ValueError, match="cut off: atelectasis"):
        cut.tokens_of("edema")


@pytest.mark.parametrize(
    ("phrase", "words"),
    [
        ("x-ray: left/right", ["x", "ray", "left", "right"]),
        ("effusion,edema", ["effusion", "edema"]),
        ("3.5 x 2 cm", ["3.5", "x", "2", "cm"]),
        ("LEFT Left left", ["LEFT", "Left", "left"]),
        ("T4-T5", ["T4", "T5"]),
        ("patient's edema", ["patient's", "edema"]),
    ],
)
def test_every_word_has_its_own_tokens(tokenizer, phrase, words):
    found = tokenize(tokenizer, phrase, 60)
    assert [w.text for w in found.words] == words
    tokens = [t for w in found.words for t in w.tokens]
    assert all(w.tokens for w in found.words) and len(tokens) == len(set(tokens))
    assert all(found.tokens_of(i) == list(w.tokens) for i, w in enumerate(found.words))


@pytest.mark.parametrize("phrase", ["", "  ", " ,.- "])
def test_empty_phrases_are_refused(bert, phrase):
    with pytest.raises(ValueError, match="empty phrase"):
        tokenize(bert, phrase, 8)


def test_slow_tokenizers_are_refused():
    with pytest.raises(TypeError, match="use_fast"):
        tokenize(object(), "edema", 8)


def test_the_word_list_is_the_default_whatever_is_installed(tokenizer, monkeypatch):
    monkeypatch.delenv(tagger.MODEL_VARIABLE, raising=False)
    monkeypatch.setattr(tagger, "installed", lambda: "en_core_sci_sm")
    assert tagger.name() == tagger.WORD_LIST
    phrase = tokenize(tokenizer, "There is no effusion in both of the lower lobes", 60)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert texts(phrase, select_tokens(phrase)) == ["effusion", "lower", "lobes"]


def test_scispacy_without_a_model_says_so_once(tokenizer, monkeypatch):
    monkeypatch.delenv(tagger.MODEL_VARIABLE, raising=False)
    monkeypatch.setattr(tagger, "installed", lambda: None)
    assert tagger.name(tagger.SCISPACY) == tagger.WORD_LIST
    tagger.loaded.cache_clear()
    tokenizer.spacy_model = tagger.SCISPACY  # as `experiment.assemble` does for a profile
    try:
        phrase = tokenize(tokenizer, "no effusion", 60)
    finally:
        del tokenizer.spacy_model
    with pytest.warns(UserWarning, match="pip install"):
        chosen = select_tokens(phrase)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the warning comes once
        assert phrase.content() == chosen


@pytest.mark.parametrize(
    ("phrase", "kept"),
    [
        ("mildly enlarged, likely early cardiomegaly", "enlarged likely early cardiomegaly"),
        ("not above the other hemidiaphragm", "other hemidiaphragm"),
        ("prior to the prior film", "prior film"),
        ("No focal consolidation on both sides", "focal consolidation sides"),
        ("bottom of the full left side", "bottom full left side"),
    ],
)
def test_the_word_list_keeps_what_a_tagger_keeps(bert, phrase, kept):
    words = text.content_words(tokenize(bert, phrase, 60))
    assert " ".join(word.text for word in words) == kept


GOLD = ROOT / "tests" / "vectors" / "tags.json"


def test_the_word_list_agrees_with_a_tagger_on_sentences_of_reports(record_property):
    shared = ROOT / ".." / "shared"
    folder = Path(os.environ.get("G2G_SHARED", shared)) / "realdata" / "formats" / "openi"
    if not (reports := folder / "indiana_reports.rows1-100.csv").exists():
        pytest.skip("no reports of OpenI: set G2G_SHARED (they are not shipped)")
    spec = importlib.util.spec_from_file_location("tag", GOLD.with_name("tag.py"))
    tag = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tag)
    gold, nlp, same = json.loads(GOLD.read_text()), tagger.load(), []
    sentences = {tag.digest(s): s for s in tag.sentences(reports)}
    for digest, expected in gold["content"].items():
        kept = tag.content(nlp(sentences[digest]), text.is_content)
        same += [a == b for a, b in zip(kept, expected, strict=True)]
    agreement = sum(same) / len(same)
    record_property("agreement", round(agreement, 3))
    print(f"{agreement:.3f} of {len(same)} words of {len(gold['content'])} sentences")
    assert len(gold["content"]) == 300 and agreement >= 0.97


def test_function_words_only(bert):
    phrase = tokenize(bert, "is in the of", 8)
    with pytest.raises(ValueError, match=r"'is in the of'.*filter='all'"):
        select_tokens(phrase)
    assert len(select_tokens(phrase, "all")) == 4


def test_part_of_speech_filter_of_a_saved_pipeline(bert, tmp_path, monkeypatch):
    nlp = spacy.blank("en")
    ruler = nlp.add_pipe("attribute_ruler")
    for word, tag in {"left": "ADJ", "effusion": "NOUN", "of": "ADP", "no": "DET"}.items():
        ruler.add([[{"LOWER": word}]], {"POS": tag})
    nlp.to_disk(tmp_path / "tagger")
    monkeypatch.setenv(tagger.MODEL_VARIABLE, str(tmp_path / "tagger"))
    assert tagger.name().startswith(str(tmp_path / "tagger")) and '"lang"' in tagger.name()
    phrase = tokenize(bert, "No effusion of left-sided", 12)
    assert texts(phrase, select_tokens(phrase)) == ["effusion", "left"]
    assert select_tokens(phrase, spacy_model=nlp) == select_tokens(phrase)
    monkeypatch.setenv(tagger.MODEL_VARIABLE, str(tmp_path / "nowhere"))
    with pytest.raises(OSError, match="nowhere"):
        select_tokens(phrase)
    with pytest.raises(ValueError, match="no parts of speech"):
        select_tokens(phrase, spacy_model=spacy.blank("en"))


def test_disease_filter_has_word_boundaries(bert):
    phrase = tokenize(bert, "Bronchopneumonia or PNEUMONIA, lower lobe", 16)
    assert texts(phrase, select_tokens(phrase, "disease", "Pneumonia")) == ["PNEUMONIA"]
    loose = select_tokens(phrase, "disease", "Pneumonia", compat="published")
    assert texts(phrase, loose) == ["Bronchopneumonia", "PNEUMONIA"]
    assert select_tokens(phrase, "disease", "Edema") == list(phrase.inner)  # none named: all
    with pytest.raises(ValueError, match="Atelectasis"):
        select_tokens(phrase, "disease")
    assert set(text.FINDINGS) <= set(text.VOCABULARY)


def test_explicit_tokens(bert):
    phrase = tokenize(bert, "no pleural effusion", 8)
    assert select_tokens(phrase, explicit=["pleural", 0]) == [0, 2, 3]
    with pytest.raises(ValueError, match="token 99"):
        select_tokens(phrase, explicit=[99])


def test_real_clip_class(clip):
    """transformers' own CLIP class tokenises and aligns like the set-up above."""
    state = json.loads(clip.backend_tokenizer.to_str())["model"]
    merges = [tuple(m) if isinstance(m, list) else tuple(m.split()) for m in state["merges"]]
    real = CLIPTokenizerFast(vocab=state["vocab"], merges=merges, pad_token="<|endoftext|>")
    phrase = tokenize(real, "Left-sided EFFUSION", 40)
    assert [w.text for w in phrase.words] == ["Left", "sided", "EFFUSION"]
    assert all(w.tokens for w in phrase.words)


def test_phrases_that_captions_contain_word_for_word():
    captions = ["There is a small left effusion.", "No edema."]
    phrases = ["Small left effusion", "left eff", "small effusion", "edema"]
    assert text.occurring(phrases, captions) == [True, False, False, True]


LIKE_LEFT_EFFUSION = [
    "\ufeffleft effusion", "left\u00a0effusion", "ｌｅｆｔ　effusion", "left\0effusion",
    "left ef\u00adfusion", "le\u200bft effusion", "left&nbsp;effusion", "left eﬀusion",
    '="left effusion"', "left\u2028effusion", "left\x0ceffusion", "left effus\u2060ion",
]  # fmt: skip


@pytest.mark.parametrize("typed", LIKE_LEFT_EFFUSION)
def test_what_looks_equal_is_tokenized_equally(tokenizer, typed):
    words = tokenize(tokenizer, "left effusion", 20)
    found = tokenize(tokenizer, typed, 20)
    assert found.input_ids.tolist() == words.input_ids.tolist() and found.typed == typed
    assert [w.text for w in found.words] == ["left", "effusion"]
    assert select_tokens(found) == select_tokens(words)
    left, effusion = (typed[w.start : w.end] for w in found.words)
    assert plain(left) == "left" and plain(effusion) == "effusion"
    assert text.side_of(typed) == "left" and text.swap_sides(typed).split()[0] == "right"
    assert text.occurring([typed], ["a left effusion."]) == [True]


@pytest.mark.parametrize("dash", "‐‑–—−")
def test_dashes_are_hyphens(tokenizer, dash):
    found = tokenize(tokenizer, f"left{dash}sided effusion", 20)
    assert (
        found.input_ids.tolist()
        == tokenize(tokenizer, "left-sided effusion", 20).input_ids.tolist()
    )


@pytest.mark.parametrize(
    "typed", ["nan", "None", "NULL", "N/A", "#N/A", "-", "—", "n.a.", "\ufeff"]
)
def test_phrases_that_spreadsheets_call_empty_are_refused(tokenizer, typed):
    for act in (lambda: tokenize(tokenizer, typed, 20), lambda: text.check_phrase(typed)):
        with pytest.raises(text.PhraseError, match="empty phrase"):
            act()


@pytest.mark.parametrize("typed", ["左侧胸腔积液", "левый плевральный выпот", "größer, größer"])
@pytest.mark.parametrize("filter", ["lexical", "all"])
def test_words_of_which_none_is_known_are_refused(bert, typed, filter):
    with pytest.raises(text.PhraseError, match="the text encoder knows no word of"):
        select_tokens(tokenize(bert, typed, 30), filter)


def test_some_unknown_words_are_named_once(bert, caplog):
    for _ in range(2):
        assert select_tokens(tokenize(bert, "größer left effusion", 30))
    assert caplog.text.count("the text encoder does not know größer") == 1


@given(st.text())
def test_plain_text_is_unicode_compatible_and_knows_where_it_came_from(typed):
    found = normalise(typed)
    assert len(found.text) == len(found.spans)
    assert list(found.spans) == sorted(found.spans)
    assert all(0 <= a < b <= len(typed) for a, b in found.spans)
    assert plain(found.text).isprintable() or set(found.text) & set("\t\n\r")


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126, exclude_characters="&=")))
def test_printable_ascii_stays_as_it_is(typed):
    assert normalise(typed) == (typed, tuple((i, i + 1) for i in range(len(typed))))


@given(
    st.text(
        st.characters(exclude_categories=["Cs", "Cc", "Cf", "Zl", "Zp"], exclude_characters='&="')
    )
)
def test_without_typography_it_is_nfkc(typed):
    kept = unicodedata.normalize("NFKC", typed)
    other = set(CHANGED) | set(map(chr, range(0xFE00, 0xFE10)))  # variants show nothing
    if not set(typed + kept) & other and kept.isprintable():
        assert unicodedata.normalize("NFKC", plain(typed)) == kept
