"""Presence: balanced questions, areas under the curve, calibrations and their errors."""

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import roc_auc_score

from g2g_utils import information
from g2g_utils.bench import presence
from g2g_utils.bench.presence import SCORE, Calibration
from g2g_utils.data import phantoms
from g2g_utils.data.record import FINDINGS, Example, Region
from g2g_utils.methods.base import Given
from g2g_utils.text import named_findings, side_of, swap_sides
from tests.duck import Model


@pytest.fixture(scope="module")
def films():
    return [film for film in phantoms.generate(40, 0, "validation") if film.regions]


def table(n=400, groups=40, seed=0, lift=1.5):
    """Questions whose score is a normal number, raised where the phrase is true."""
    draw = np.random.default_rng(seed)
    truth = draw.random(n) < 0.5
    return pd.DataFrame(
        {
            "subject_id": draw.integers(0, groups, n).astype(str),
            "kind": np.where(np.arange(n) % 2, "absent", "side"),
            "truth": truth,
            SCORE: draw.normal(size=n) + lift * truth,
        }
    )


def test_every_false_phrase_has_a_true_one_of_its_film_and_kind(films):
    seen = set()
    for film, asked in zip(films, presence.questions(films), strict=True):
        kinds = [q.kind for q in asked]
        seen |= set(kinds)
        for kind in kinds:
            truths = [q.truth for q in asked if q.kind == kind]
            assert 2 * sum(truths) == len(truths), (film.image_id, kind)
    assert seen == set(presence.KINDS)


def test_false_phrases_are_false_and_true_ones_true(films):
    for film, asked in zip(films, presence.questions(films), strict=True):
        there = {region.finding for region in film.regions}
        own = {region.phrase for region in film.regions}
        for kind, truth, phrase in asked:
            if kind == "denied":
                assert phrase.startswith("no ")
                named = set(named_findings(phrase.removeprefix("no ")))
                assert truth == (not named & there), phrase
            else:
                assert truth == (phrase in own), phrase
            if kind == "absent" and not truth:
                assert not set(named_findings(phrase)) & there, phrase
            if kind == "side" and not truth:
                assert swap_sides(phrase) in own and side_of(phrase)


def test_questions_are_the_same_every_time_and_follow_the_seed(films):
    first = presence.questions(films)
    assert first == presence.questions(films) != presence.questions(films, seed=1)


def test_a_finding_shown_twice_is_not_moved():
    box = ((0, 0, 4, 4),)
    twice = tuple(
        Region(f"{side} upper lobe pneumonia", "Pneumonia", side, box) for side in ("left", "right")
    )
    film = Example(np.zeros((8, 8), np.float32), "", None, (), "i", "s", "test", twice)
    assert not {"side", "zone"} & {q.kind for q in presence.questions([film])[0]}


def test_other_zones():
    assert presence.other_zone("opacity in the upper zone") == "opacity in the lower zone"
    assert presence.other_zone("left effusion") is None


@pytest.mark.parametrize(("score", "expected"), [(1.0, 1.0), (-1.0, 0.0), (0.0, 0.5)])
def test_areas_of_perfect_reversed_and_constant_scores(score, expected):
    rows = table()
    rows[SCORE] = score * rows["truth"]
    value, low, high = presence.area(rows, SCORE)
    assert value == pytest.approx(expected)
    assert low == pytest.approx(expected) and high == pytest.approx(expected)


def test_an_area_is_that_of_scikit_learn_ties_included():
    rows = table()
    rows[SCORE] = rows[SCORE].round(0)
    value, low, high = presence.area(rows, SCORE)
    assert value == pytest.approx(roc_auc_score(rows["truth"], rows[SCORE]))
    assert low < value < high < low + 0.2
    random = presence.area(table(lift=0), SCORE)
    assert random.low < 0.5 < random.high


def test_intervals_are_over_patients():
    rows = table(60, groups=1000)
    copies = pd.concat([rows] * 9, ignore_index=True)  # no new patients: nothing is surer
    first, again = (presence.area(t, SCORE) for t in (rows, copies))
    assert again == pytest.approx(first)


def test_seeds_are_judged_apart():
    one, two = table(seed=1), table(seed=2)
    two[SCORE] += 100  # another scale is no advantage
    both = pd.concat([one.assign(seed=0), two.assign(seed=1)])
    alone = [presence.area(t, SCORE).value for t in (one, two)]
    assert presence.area(both, SCORE).value == pytest.approx(np.mean(alone))


def test_rows_without_a_score_are_left_out_and_one_sided_tables_refused():
    rows = table()
    some = rows.assign(**{SCORE: rows[SCORE].where(rows.index > 99)})
    assert presence.area(some, SCORE) == presence.area(rows[100:], SCORE)
    with pytest.raises(ValueError, match="true and false"):
        presence.area(rows[rows["truth"]], SCORE)


def test_areas_are_by_kind():
    found = presence.areas(table(), [SCORE], 50)
    assert list(found.index) == ["absent finding", "right finding, wrong side"]
    assert found["questions"].tolist() == [200, 200]
    part = table().query("kind == 'side'")
    assert found[SCORE].iloc[1] == presence.area(part, SCORE, 50)


def test_a_calibration_is_monotone_and_finds_the_curve_it_was_drawn_from():
    draw = np.random.default_rng(0)
    true = Calibration(2.0, -0.5, 0.0)
    rows = table(20000).assign(**{SCORE: draw.normal(size=20000)})
    rows["truth"] = draw.random(20000) < true.probability(rows[SCORE])
    found = presence.calibrate(rows)
    assert found.slope == pytest.approx(2, rel=0.1) and found.intercept == pytest.approx(
        -0.5, abs=0.1
    )
    values = found.probability(np.linspace(-1e3, 1e3, 999))
    assert (np.diff(values) >= 0).all() and 0 <= values[0] < values[-1] <= 1
    judged = presence.judged(found, rows)
    assert (~judged["supported"])[judged["truth"]].mean() == pytest.approx(presence.WRONG, abs=0.01)
    errors = presence.errors(judged, 50)
    assert errors["ece"].value < 0.03 and errors["brier"].value < 0.2


def test_a_score_that_says_the_opposite_gives_one_half_and_no_refusals():
    rows = table()
    rows[SCORE] *= -1
    found = presence.calibrate(rows)
    assert (found.probability(rows[SCORE]) == 0.5).all() and found.supported(rows[SCORE]).all()


def test_a_calibration_looks_at_kinds_that_the_gain_reads_alone():
    rows, noise = table(), table(seed=5, lift=-9).assign(kind="denied")
    assert presence.calibrate(rows) == presence.calibrate(pd.concat([rows, noise]))


def test_errors_are_shares_of_the_right_phrases():
    rows = pd.DataFrame(
        {
            "subject_id": list("abcdef"),
            "kind": ["absent", "absent", "side", "side", "side", "absent"],
            "truth": [True, False, True, False, False, True],
            SCORE: [2.0, -2.0, -2.0, -2.0, 2.0, 2.0],
        }
    )
    found = presence.errors(presence.judged(Calibration(1.0, 0.0, 0.5), rows), 50)
    assert found["wrong"].value == pytest.approx(1 / 3)
    assert found["absent"].value == 1 and found["side"].value == 0.5
    p = 1 / (1 + np.exp(-2))
    assert found["brier"].value == pytest.approx((4 * (1 - p) ** 2 + 2 * p**2) / 6)


def test_a_side_is_held_against_the_other_one():
    model, image = Model(), torch.rand(1, 32, 32)
    phrases = ["small left effusion", "edema"]
    options = {"timesteps": 3, "draws": 1}
    left, plain = presence.measure(model, image, phrases, **options)
    asked = ["small left effusion", "small right effusion", "edema"]
    own, other, third = (t.total for t in information.measure(model, image, asked, **options))
    assert left.score == pytest.approx(own - presence.OTHER_SIDE * max(0, other), abs=1e-3)
    assert plain.score == plain.told.total == pytest.approx(third, abs=1e-3)
    assert left.told.phrase == phrases[0]


def test_asking_gives_a_row_per_question_with_every_score(monkeypatch):
    monkeypatch.setattr(
        presence, "NEGATIONS", dict.fromkeys(FINDINGS, ("opacity",))
    )  # words it has
    model, box = Model(), ((2, 2, 9, 9),)
    regions = (Region("small left effusion", "Pleural Effusion", "left", box),)
    other = (Region("edema in the right lung", "Edema", "right", box),)
    image = np.random.default_rng(0).random((32, 32), np.float32)
    films = [
        Example(image, "", None, (), f"i{k}", f"s{k}", "test", r)
        for k, r in enumerate((regions, other))
    ]
    phrases = {q.phrase for own in presence.questions(films) for q in own}
    rival = Given("rival", 32, {p: torch.full((2, 2), float(len(p))) for p in phrases})
    asked = presence.questions(films)
    found = presence.ask(model, films, asked, {"rival": rival}, timesteps=2, draws=1, filter="all")
    assert len(found) == sum(map(len, presence.questions(films)))
    assert (found["rival"] == found["phrase"].str.len()).all()
    scores = found[[SCORE, presence.GAIN, presence.ATTENTION]]
    assert np.isfinite(scores.to_numpy()).all() and (found[presence.ATTENTION] > 0).all()
    assert set(found["subject_id"]) == {"s0", "s1"}
