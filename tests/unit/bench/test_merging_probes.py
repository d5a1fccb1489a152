"""Probes of bias merging on a small table and the tiny model."""

import pandas as pd
import pytest

from g2g_utils.bench import merging_probes
from tests.duck import Model
from tests.unit.bench.test_probes import pair


def rows():
    """Two pairs, two seeds, a plain and a merged map."""
    found = []
    for name, seed, plain, merged, c in (
        ("a", 0, 1.0, 1.5, 0.1),
        ("a", 1, 1.0, 1.1, 0.3),
        ("b", 0, 2.0, 1.0, 0.6),
        ("b", 1, 2.0, 1.0, 0.6),
    ):
        same = {"image_id": name, "subject_id": name, "phrase": "p", "finding": "Edema"}
        same |= {"seed": seed, "confidence": c}
        found += [
            same | {"curve": "none", "cnr": plain},
            same | {"curve": "mixture", "cnr": merged},
        ]
    return pd.DataFrame(found)


def test_gains_are_means_over_seeds():
    found = merging_probes.gains(rows())
    assert found["image_id"].tolist() == ["a", "b"]
    assert found["gain"].tolist() == pytest.approx([0.3, -1.0])
    assert found["confidence"].tolist() == pytest.approx([0.2, 0.6])
    halves = merging_probes.by_confidence(found, 50)
    assert [gap.value for gap in halves.values()] == pytest.approx([0.3, -1.0])


def test_rank_correlation():
    assert merging_probes.rank_correlation([1, 2, 3], [2, 4, 9]) == pytest.approx(1)


def test_text_biases_are_scored_against_the_boxes():
    options = {"timesteps": 2, "text_guidance": 1.0, "layers": None}
    found = merging_probes.text_bias_scores(Model(), [pair("left effusion")], **options)
    assert len(found) == 1 and abs(found[0]) < 10
    maps = merging_probes.maps_of(Model(), pair("left effusion"), batch_size=4, **options)
    assert {one.shape for one in maps.values()} == {maps["A"].shape} and len(maps) == 5


def test_published_numbers():
    found = merging_probes.appendix_b()
    assert found.loc["linear", "cnr"] == 1.31 and found.loc["quadratic", "balanced_iou"] == 0.558
