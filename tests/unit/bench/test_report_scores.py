"""Scores of reports: variants of overlap against known values, and facts read from words."""

import numpy as np
import pytest
from torchmetrics.functional.text.rouge import rouge_score

from g2g_utils.bench import report_scores as scores
from g2g_utils.data import phantoms

A = "There is a small left pleural effusion. No pneumothorax."
B = "small left effusion, no evidence of pneumothorax"


def test_words_are_lower_case_without_punctuation():
    assert scores.words("Right-sided, 2 cm.") == ["right", "sided", "2", "cm"]


def test_bleu_is_that_of_the_corpus():
    assert scores.bleu([A], [A], 4) == pytest.approx(1)
    assert scores.bleu(["a b c d"], ["a b x d"], 1) == pytest.approx(3 / 4)
    assert scores.bleu(["a b"], ["a b c d"], 1) == pytest.approx(np.exp(-1))  # brevity


@pytest.mark.parametrize(("a", "b"), [(A, B), (B, A), ("one two", "two one"), ("x", "y")])
def test_rouge_with_equal_weights_is_the_library_s(a, b):
    library = float(rouge_score(a, b, rouge_keys="rougeL")["rougeL_fmeasure"])
    assert scores.rouge_l(a, b, beta=1) == pytest.approx(library, abs=1e-6)


def test_rouge_weighs_recall():
    assert scores.rouge_l("a b", "a b c d", beta=1.2) < scores.rouge_l("a b c d", "a b", beta=1.2)
    assert scores.rouge_l("", "a") == 0


@pytest.mark.parametrize(
    ("report", "sides", "denied"),
    [
        (A, {"Pleural Effusion": {"left"}}, {"Pneumothorax"}),
        ("no effusion or edema. dense right consolidation", {"Consolidation": {"right"}},
         {"Pleural Effusion", "Edema"}),
        ("Mild left patchy pneumonia with marked perihilar interstitial edema of both lungs",
         {"Pneumonia": {"left"}, "Edema": {"bilateral"}}, set()),
        ("mild right vascular congestion with edema", {"Edema": {"right"}}, set()),
        ("large left pneumothorax with a visible pleural line", {"Pneumothorax": {"left"}}, set()),
        ("the heart size appears markedly increased; left-sided pacemaker",
         {"Cardiomegaly": set()}, set()),
        ("no acute chest disease. the heart is normal in size", {}, set()),
    ],
)  # fmt: skip
def test_statements_are_read(report, sides, denied):
    found = scores.read(report)
    assert found.sides == sides and found.denied == denied


def test_zones_are_read():
    found = scores.read("opacity in the right mid lung zone and basal atelectasis on the left")
    assert found.zones == {"Lung Opacity": {"mid"}, "Atelectasis": {"lower"}}


def test_the_phantoms_own_reports_agree_with_their_facts():
    facts = [
        frozenset((f.finding, f.side, f.zone, f.size) for f in one)
        for one in phantoms.facts(120, 3, "train", size=32)
    ]
    reports = [example.phrase for example in phantoms.generate(120, 3, "train", size=32)]
    rows = scores.table(reports, reports, ["p"] * 120, facts)
    assert (rows["finding_f1"] == 1).all() and (rows["false_denials"] == 0).all()
    assert rows["side"].dropna().mean() == 1 and rows["zone"].dropna().mean() > 0.97
    assert (rows["rouge_l"] == 1).all()


def test_agreement_counts_wrong_findings_sides_and_denials():
    facts = frozenset({("Edema", "left", "upper", "small"), ("Pneumonia", "right", None, "small")})
    found = scores.agreement("right upper edema and left effusion. no pneumonia", facts)
    assert found == {"finding_f1": 0.5, "false_denials": 1, "side": 0, "zone": 1}
    empty = scores.agreement("normal chest", frozenset())
    assert empty["finding_f1"] == 1 and np.isnan(empty["side"])


def test_the_most_frequent_report_is_a_training_report():
    assert scores.most_frequent(["Edema.", "clear lungs", "edema", "clear"]) == "Edema."


def test_the_nearest_film_has_the_least_squared_difference():
    rng = np.random.default_rng(0)
    training = rng.integers(0, 255, (1500, 6, 6), dtype=np.uint8)
    images = (training[[1200, 3]] / 255 + 0.001).astype(np.float32)
    assert scores.nearest(images, training).tolist() == [1200, 3]


def test_meteor_by_exact_words_counts_matches_and_runs():
    assert scores.meteor("no effusion", "edema") == 0
    same = "small left effusion with mild edema"
    assert scores.meteor(same, same) == pytest.approx(1 - 0.5 / 6**3)
    swapped = scores.meteor("edema and effusion", "effusion and edema")
    assert swapped == pytest.approx(1 - 0.5 * (3 / 3) ** 3)  # three runs of one word
    part = scores.meteor("small effusion", "small left effusion")
    mean = 1 * (2 / 3) / (0.9 * 1 + 0.1 * 2 / 3)  # recall counts nine times
    assert part == pytest.approx(mean * (1 - 0.5 * (2 / 2) ** 3))
