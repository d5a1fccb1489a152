"""Ranks with ties, recall of facts, and recall among fewer candidates."""

import numpy as np
import pytest
import torch

from g2g_utils import models
from g2g_utils.bench import retrieval
from g2g_utils.models import adamatch
from g2g_utils.training.adamatch import read_captions
from tests.duck import PHRASES, Model


def test_ranks_count_better_candidates_and_share_ties():
    scores = np.array([[3.0, 1, 2, 0], [5, 4, 4, 4], [1, 1, 1, 1], [0, 1, 2, 3]])
    assert retrieval.ranks(scores).tolist() == [1, 3, 2.5, 1]


def test_reports_of_the_same_facts_are_right():
    right = retrieval.same_facts(["a", "b", "a"])
    scores = np.array([[1.0, 2, 3], [1, 0, 2], [3, 2, 1]])
    assert retrieval.ranks(scores, right).tolist() == [1, 3, 1]
    assert retrieval.ranks(scores).tolist() == [3, 3, 3]


@pytest.mark.parametrize("bad", ["no right", "nan"])
def test_queries_without_an_answer_are_refused(bad):
    scores, right = np.zeros((2, 2)), np.eye(2, dtype=bool)
    if bad == "nan":
        scores[0, 1] = np.nan
    else:
        right[1] = False
    with pytest.raises(ValueError, match="right candidate"):
        retrieval.ranks(scores, right)


def test_recall_of_random_order():
    assert retrieval.chance(np.eye(200, dtype=bool), 5) == pytest.approx(0.025)
    right = retrieval.same_facts(list("aab"))
    assert retrieval.chance(right, 1) == pytest.approx((2 / 3 + 2 / 3 + 1 / 3) / 3)
    assert retrieval.chance(right, 10) == 1


def test_among_fewer_candidates_is_what_drawing_them_gives():
    rng, total, above = np.random.default_rng(0), 40, 6
    others = np.arange(total - 1) < above  # those that score better
    drawn = [rng.choice(others, 9, replace=False).sum() for _ in range(20000)]
    for at in (1, 2, 5):
        found = retrieval.among(np.array([above + 1.0]), total, 10, at)
        assert found[0] == pytest.approx(np.mean(np.array(drawn) < at), abs=0.01)


def test_among_all_candidates_is_the_recall_itself():
    rank = np.array([1.0, 5, 6, 200])
    assert retrieval.among(rank, 200, 200, 5).tolist() == [1, 1, 0, 0]
    assert retrieval.among(rank, 200, 1, 1).tolist() == [1, 1, 1, 1]
    with pytest.raises(ValueError, match="201 candidates of 200"):
        retrieval.among(rank, 200, 201, 5)


@pytest.fixture
def rows():
    by_patch = np.array([[2.0, 1, 0], [3, 2, 1], [0, 1, 2]])
    by_word = np.array([[0.0, 3, 0], [1, 2, 5], [2, 1, 1]])
    return retrieval.table(by_patch, by_word, list("ppq"), list("xyz"), list("aab"))


def test_each_direction_has_its_own_score(rows):
    parts = dict(iter(rows.groupby("direction")["rank"]))
    assert parts["image to report"].tolist() == [1, 2, 1]
    assert parts["report to image"].tolist() == [3, 2, 2]
    assert rows["facts_rank"].tolist() == [1, 1, 1, 2, 1, 2]


def test_the_summary_names_recall_and_interval(rows):
    found = retrieval.summary(rows, resamples=100).set_index("direction")
    assert found.loc["image to report", "R@1"] == pytest.approx(200 / 3)
    assert found.loc["report to image", "median rank"] == 2
    assert (found["R@5"] == 100).all() and (found["R@1 low"] <= found["R@1"]).all()
    without = retrieval.table(np.eye(2), np.eye(2), ["a", "b"], ["x", "y"])
    assert not any(name.startswith("facts") for name in retrieval.summary(without, 50))


def test_recall_by_candidates_ends_at_all(rows):
    found = retrieval.recall_by_candidates(rows, [2, 50], at=(1,))
    assert sorted(set(found["candidates"])) == [2, 3]
    last = found[(found["candidates"] == 3) & (found["direction"] == "image to report")]
    assert last["recall"].item() == pytest.approx(200 / 3)
    assert last["chance"].item() == pytest.approx(100 / 3)


def test_the_best_caption_is_that_of_the_highest_similarity_whatever_the_chunk():
    duck = Model()
    with models.initialised(0):
        network = adamatch.AdaMatch(adamatch.Shape(32, 16, (8, 16)), duck.text_encoder).eval()
    images = torch.rand(5, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    captions = read_captions(duck.tokenizer, [*PHRASES, "left lung", "edema"], 12, "all")
    vectors = retrieval.patches(network, images, batch=2).vectors
    by_patch, by_word = retrieval.similarities(network, vectors, captions, batch=3)
    assert by_patch.shape == by_word.shape == (5, 5)
    for chunk in (2, 10):
        found = retrieval.best_captions(network, vectors, captions, chunk)
        assert found.tolist() == by_patch.argmax(1).tolist()
