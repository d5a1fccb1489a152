"""What `ground` says of its model: how good it was on test films, beside the prior."""

import pandas as pd
import pytest

from g2g_utils.bench import statistics
from g2g_utils.config import load
from g2g_utils.experiment import products, skill

MODEL = "radiographs/ldm/domain-frozen-s0"


def row(low: float) -> dict:
    """Numbers of a finding whose difference to the prior has this lower end."""
    ends = {"cnr": [1.5, 1.2, 1.8], f"cnr over {skill.PRIOR}": [0.2, low, 0.4]}
    return {"pairs": 9, "patients": 8, "attention": ends, skill.PRIOR: {"cnr": [1.3, 1.0, 1.5]}}


@pytest.mark.parametrize(
    ("phrase", "findings"),
    [
        ("patchy opacity, maybe pneumonia", ["Airspace Opacity"]),
        ("Left pleural effusion with atelectasis", ["Atelectasis", "Pleural Effusion"]),
        ("a mass, or a nodule", ["Mass", "Nodule"]),
        ("scoliosis", []),
    ],
)
def test_findings_of_a_phrase(phrase, findings):
    assert skill.named(phrase) == findings


def test_what_is_said(monkeypatch):
    known = {"findings": {"Airspace Opacity": row(0.1), "Pleural Effusion": row(-0.1)}}
    monkeypatch.setattr(skill, "measured", lambda *args: known)
    config = load("radiographs")

    def said(phrase: str, method: str = "attention") -> dict:
        return skill.statement(config, MODEL, phrase, method)["skill"]

    good, weak = said("right lung opacity"), said("opacity above an effusion")
    assert good["no_better_than_prior"] is False and weak["no_better_than_prior"] is True
    assert "better than knowing" in good["said"] and "NO better than" in weak["said"]
    assert MODEL in good["said"] and list(weak["findings"]) == list(known["findings"])
    for unknown in (said("scoliosis"), said("opacity", "information")):
        assert unknown["no_better_than_prior"] is None and "not measured" in unknown["said"]
    assert skill.statement(load("miniature"), MODEL, "opacity", "attention") == {}


def test_the_product_compares_with_the_priors(monkeypatch, tmp_path):
    config = load("radiographs", **{"evaluation.bootstrap": 50})
    assert "skill/domain-frozen" in products.plan(config)
    assert not any(name.startswith("skill/") for name in products.plan(load("miniature")))
    methods = ["attention", "attention, phantoms only", skill.PRIOR, skill.SIDED]
    rows = [
        dict.fromkeys(skill.COLUMNS, 1.0 - 0.1 * k)
        | dict(zip(statistics.PAIR, (f"i{p}", f"p{p}", "opacity", "Mass"), strict=True))
        | {"method": method}
        for k, method in enumerate(methods)
        for p in range(4)
    ]
    monkeypatch.setattr(
        "g2g_utils.experiment.scores.scores", lambda config, labels: pd.DataFrame(rows)
    )
    skill.skill(config, "domain-frozen", tmp_path)
    (found,) = skill.runs.read_json(tmp_path / skill.FILE)["findings"].values()
    assert found["pairs"] == found["patients"] == 4
    assert found["attention"][f"cnr over {skill.PRIOR}"] == [0.2, 0.2, 0.2]
    assert found["attention"][f"cnr over {skill.SIDED}"] == [0.3, 0.3, 0.3]


def test_the_shipped_skill_is_of_the_profile():
    known = skill.measured(load("radiographs"), "domain-frozen")
    assert known is not None and set(known["findings"]) >= {"Airspace Opacity", "Pleural Effusion"}
