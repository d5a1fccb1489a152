"""Hints: both books come from training pairs alone, codes keep their rank, controls."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from g2g_utils import models
from g2g_utils.models import adamatch
from g2g_utils.training import hints
from g2g_utils.training.adamatch import read_captions
from tests.duck import PHRASES, Model


@pytest.fixture(scope="module")
def duck():
    return Model()


@pytest.fixture(scope="module")
def network(duck):
    with models.initialised(0):
        return adamatch.AdaMatch(adamatch.Shape(32, 16, (8, 16)), duck.text_encoder).eval()


def unit(*shape, seed=0):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_the_book_of_words_has_the_most_frequent_of_each_group(duck):
    captions = ["small left effusion .", "left left edema in the lung", "left edema"]
    found = hints.textual_book(duck.tokenizer, captions, hints.GROUPS, 1)
    assert found == ["edema", "left", "small"]  # no sign among them
    assert hints.known_groups(captions) is hints.GROUPS
    other = hints.known_groups(["der Herzschatten ist breit"])
    assert list(other) == ["word"]


def test_keywords_are_those_of_the_best_patch():
    words = torch.eye(3)
    patches = F.normalize(
        torch.tensor([[[0.0, 1, 0], [0, 0.9, 0.1]], [[1, 0, 0], [0, 0, 1]]]), dim=-1
    )
    scores = hints.keyword_scores(patches, words, batch=1)
    assert hints.keywords(scores, ["a", "b", "c"], 2) == [["b", "c"], ["a", "c"]]  # ties by place


def test_a_keyword_is_read_alone(network, duck):
    both = hints.word_vectors(network, duck.tokenizer, ["left", "edema"], 12)
    one = hints.word_vectors(network, duck.tokenizer, ["edema"], 12)
    torch.testing.assert_close(both[1:], one)
    with pytest.raises(ValueError, match="single words"):
        hints.word_vectors(network, duck.tokenizer, ["left edema"], 12)


def test_cells_are_those_covered_by_half():
    assert hints.covered_cells((0.0, 0.0, 0.5, 0.5), 4) == [0, 1, 4, 5]
    assert hints.covered_cells((0.25, 0.25, 0.5, 0.4), 4) == [5]
    assert hints.covered_cells((0.25, 0.25, 0.5, 0.3), 4) == [5]  # less than half: the most
    assert hints.covered_cells((0.99, 0.99, 1.0, 1.0), 4) == [15]


def test_codes_of_key_patches_keep_their_rank_and_come_once():
    book = hints.VisualBook(torch.eye(3), ((7, 3), (3, 0), (5,)), torch.tensor([0, 1, 2]))
    words = F.normalize(torch.tensor([[0.1, 0.9, 0.2], [1.0, 0.0, 0.1]]), dim=-1)
    assert book.match(words, 2, 9) == [7, 3, 0, 5]
    assert book.match(words, 1, 2) == [7, 3]
    assert book.match(words, 1, 9, without=0) == [3, 0, 5]
    assert 0 not in book.match(words[1:], 1, 9)  # code 0 has no place of its own


def test_the_visual_book_holds_training_films_alone(network, duck):
    captions = read_captions(duck.tokenizer, PHRASES, 12, "all")
    patches = (
        unit(3, 16, network.shape.joint),
        torch.rand(3, 16, 2, generator=torch.Generator().manual_seed(1)).repeat(1, 1, 2),
    )
    codes = np.arange(48).reshape(3, 16)
    book = hints.visual_book(network, patches, captions, codes, pairs=2, words=2, margin=0.1)
    assert len(set(book.owners.tolist())) == 2 and len(book.codes) == len(book.vectors) <= 4
    for owner, own in zip(book.owners.tolist(), book.codes, strict=True):
        assert all(code // 16 == owner for code in own)
    found = hints.keypatches(network, book, captions, per_word=9, top=99, training=True)
    for row, own in enumerate(found):
        assert not any(code // 16 == row for code in own)  # not from its own film
    free = hints.keypatches(network, book, captions, per_word=9, top=99)
    assert set(free[0]) == {code for own in book.codes for code in own}


def test_true_hints_are_the_film_s_own():
    facts = frozenset({("Pleural Effusion", "left", None, "small"), ("Edema", None, "mid", None)})
    assert hints.true_keywords(facts, 9) == ["edema", "mid", "pleural", "effusion", "left", "small"]
    assert hints.true_keywords(facts, 2) == ["edema", "mid"]
    codes = np.arange(16) + 30
    assert hints.true_patches(codes, [(0, 0, 32, 16), (16, 0, 16, 32)], 64, 9) == [30, 31, 35]


def test_shuffled_hints_are_those_of_another():
    rows = list(range(50))
    other = hints.shuffled(rows, 0)
    assert sorted(other) == rows and all(a != b for a, b in zip(rows, other, strict=True))
    assert other == hints.shuffled(rows, 0) != hints.shuffled(rows, 1)
