"""One language of films and reports: layout, collation, and answers held to their form."""

import pytest
import torch
from transformers import GPTNeoXForCausalLM

from g2g_utils.models import cyclic
from tests.duck import Model

CELLS, CODES = 4, 6


@pytest.fixture(scope="module")
def words():
    return cyclic.language(Model().tokenizer, CODES, CELLS, 24)


@pytest.fixture(scope="module")
def network(words):
    return cyclic.build(words, 16, 1, 2, 0).eval()


def test_words_keys_and_codes_follow_each_other(words):
    assert words.words == 15 and words.base == 21 and words.size == 27
    film = words.prompt("report", [0, 5, 1, 1], ["left", "edema"])
    key = {name: ids[0] for name, ids in words.keys.items()}
    left, edema = words.words_of("left edema")
    assert film[:5] == [key["read"], 21, 26, 22, 22] and film[-1] == key["answer"]
    assert film[5] == key["keywords"] and film[6] == left and film[-2] == edema
    report = words.prompt("film", "small edema", [3])
    assert report[0] == key["draw"] and report[3:] == [key["patches"], 24, key["answer"]]
    assert words.prompt("film", "edema", [])[-2:] == [edema, key["answer"]]  # no hint, no key


@pytest.mark.parametrize(
    ("direction", "given", "hints", "said"),
    [
        ("report", [0, 6], (), "code 6 is not in the book of 6"),
        ("film", "edema", [-1], "code -1"),
        ("film", "left edema " * 10, (), "a prompt of 22 tokens leaves no room for a film in a "
         "context of 24"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_line(words, direction, given, hints, said):
    with pytest.raises(ValueError, match=said):
        words.prompt(direction, given, hints)


def test_an_unknown_word_has_ids_too(words):
    assert words.words_of("zebra") == [words.tokenizer.unk_token_id]


def test_whole_answers_are_read_back(words):
    film = [*words.codes_of([1, 2, 3, 0]), words.end]
    assert words.film(film).tolist() == [1, 2, 3, 0]
    for broken in (film[:-1], film[1:], [*film[:2], 5, 24, words.end], [], [words.end]):
        assert words.film(broken) is None
    report = [*words.words_of("small left effusion ."), words.end]
    assert words.report(report) == "small left effusion."
    for broken in ([words.end], report[:-1], [words.base, words.end], []):
        assert words.report(broken) is None
    assert cyclic.tidy("a left - sided edema , small .") == "a left-sided edema, small."


def test_given_tokens_and_fillings_have_no_label(words):
    batch = cyclic.collate([cyclic.Record([1, 2], [3, 4]), cyclic.Record([5], [6])], 0)
    assert batch.ids.tolist() == [[1, 2, 3, 4], [5, 6, 0, 0]]
    assert batch.labels.tolist() == [[-100, -100, 3, 4], [-100, 6, -100, -100]]
    assert batch.mask.tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]


def test_an_answer_that_is_held_is_always_whole(words, network):
    films = [words.prompt("report", [k, 1, 2, 3], ["edema"] * (k % 2)) for k in range(5)]
    texts = cyclic.write(network, words, films, "report", batch=2)
    assert all(words.report(answer) for answer in texts)
    asked = [words.prompt("film", text, ()) for text in ("edema", "small left effusion", "opacity")]
    drawn = cyclic.write(network, words, asked, "film", top_p=0.9, seed=1)
    assert all(words.film(answer) is not None for answer in drawn)
    again = cyclic.write(network, words, asked, "film", top_p=0.9, seed=1)
    other = cyclic.write(network, words, asked, "film", top_p=0.9, seed=2)
    assert drawn == again and drawn != other
    free = cyclic.write(network, words, asked, "film", top_p=1.0, constrained=False)
    assert any(words.film(answer) is None for answer in free)


def test_an_answer_does_not_depend_on_its_neighbours(words, network):
    films = [words.prompt("report", [k, 1, 2, 3], ["edema"] * k) for k in range(3)]
    room = [words.room(len(film)) for film in films]
    together = cyclic.write(network, words, films, "report")
    for k, film in enumerate(films):
        (alone,) = cyclic.write(network, words, [film], "report")
        cut = min(*room, len(alone)) - 1
        assert together[k][:cut] == alone[:cut]


def test_a_written_report_leaves_room_for_a_film():
    words = cyclic.language(Model().tokenizer, CODES, CELLS, 40)
    report = "edema " * (words.room(8) - 1)
    assert words.prompt("film", report, range(5))


def test_a_published_model_takes_codes_and_low_rank_updates(words):
    network = GPTNeoXForCausalLM(cyclic.build(words, 16, 1, 2, 0).config)
    larger = cyclic.language(words.tokenizer, 40, CELLS, 24)
    adapted = cyclic.extended(network, larger, 2, 4)
    assert adapted.get_input_embeddings().weight.shape[0] == larger.size
    learn = {name for name, p in adapted.named_parameters() if p.requires_grad}
    assert any("lora_A" in name for name in learn) and any("embed_in" in name for name in learn)
    assert not any(name.endswith("mlp.dense_h_to_4h.weight") for name in learn)


def test_low_rank_updates_are_read_back(words, tmp_path):
    def fresh():
        with cyclic.initialised(0):
            network = GPTNeoXForCausalLM(cyclic.build(words, 16, 1, 2, 0).config)
            return cyclic.extended(network, words, 2, 4).eval()

    trained = fresh()
    with torch.no_grad():
        for weight in trained.parameters():
            if weight.requires_grad:
                weight += 0.1
    trained.save_pretrained(tmp_path)
    ids = torch.tensor([[1, 5, 22, 24]])
    again = cyclic.with_updates(fresh(), tmp_path)
    torch.testing.assert_close(again(ids).logits, trained(ids).logits)
    assert not torch.allclose(fresh()(ids).logits, trained(ids).logits)


def test_the_published_layout_needs_one_token_for_the_end(words):
    with pytest.raises(ValueError, match="add it as one"):
        cyclic.published_language(words.tokenizer, CODES, CELLS, 999)
    tokenizer = Model().tokenizer
    tokenizer.add_tokens(["### End"])
    found = cyclic.published_language(tokenizer, CODES, CELLS, 999)
    assert found.base == found.words == 16 and found.end == 15
    assert len(found.prompt("report", [0, 1, 2, 3], ["edema"])) > 20
