"""Presence said in words: what is calibrated, what is not, and what can't be read."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from g2g_utils import config, runs
from g2g_utils.bench.presence import Calibration, Question
from g2g_utils.experiment import presence, products
from g2g_utils.experiment.presence import Calibrated, calibrated, statement
from g2g_utils.runs import places

ERRORS = {"wrong": [0.1, 0.05, 0.15], "absent": [0.7, 0.6, 0.8], "side": [0.6, 0.5, 0.7]}
AREAS = {"denied finding": {"presence": [0.5, 0.4, 0.6]}}
KNOWN = Calibrated(Calibration(1.0, 0.0, 0.3), ERRORS, AREAS)


def test_a_phrase_below_the_threshold_is_not_supported_with_its_error():
    found = statement("left effusion", -2.0, KNOWN)
    assert found["supported"] is False and found["probability"] == pytest.approx(0.1192)
    assert found["said"] == (
        "not supported by this film (p = 0.12; on phantoms this is wrong for 10% of true phrases)"
    )
    assert found["errors"] == ERRORS and "no statement about a patient" in found["limits"]


def test_a_phrase_above_it_is_not_called_true():
    found = statement("left effusion", 9.0, KNOWN)
    assert found["supported"] is True and "p > 0.99" in found["said"]
    assert "does not speak against" in found["said"]
    assert "30% of absent findings and 40% of wrong sides" in found["said"]
    assert "p < 0.01" in statement("left effusion", -9.0, KNOWN)["said"]


def test_a_denial_gets_no_probability():
    found = statement("No effusion", 9.0, KNOWN)
    assert found["probability"] is None and found["supported"] is None
    assert "denies" in found["said"] and "0.50 on phantoms" in found["said"]


def test_what_is_not_calibrated_says_so_in_one_line_and_keeps_the_score(tmp_path, monkeypatch):
    monkeypatch.setenv("G2G_BUILD", str(tmp_path))
    monkeypatch.setattr(presence, "ensure", None)  # nothing may be made
    reason = calibrated(config.load("smoke"), "domain-frozen-s0")
    found = statement("left effusion", 1.234, reason)
    assert found["score"] == 1.234 and found["probability"] is None and found["supported"] is None
    assert "not calibrated" in found["said"] and "make presence/domain-frozen-s0" in found["said"]
    assert "\n" not in found["said"]


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"training.dropout": 0.0}, "no unconditional state"),
        ({"data.source": "folder", "data.root": "."}, "only phantoms know"),
    ],
)
def test_profiles_without_truth_or_an_unconditional_state_have_none(settings, why):
    other = config.load("smoke", **settings)
    assert why in calibrated(other, "domain-frozen-s0")
    assert not [name for name in products.plan(other) if name.startswith("presence")]
    with pytest.raises(config.ConfigError, match=why):
        presence.presence(other, "domain-frozen-s0", None)


def test_the_plan_has_one_for_every_seed_of_the_first_arm():
    plan = products.plan(config.load("miniature"))
    names = [name for name in plan if name.startswith("presence/")]
    assert names == [f"presence/domain-frozen-s{seed}" for seed in range(3)]
    assert {"ldm/domain-frozen-s0", "encoders/domain"} <= set(plan[names[0]])
    other = config.load("miniature", **{"grounding.timesteps": 20})
    assert products.key(other, names[0]) != products.key(config.load("miniature"), names[0])


def test_what_a_product_holds_is_read_again(tmp_path, monkeypatch):
    smoke, draw = config.load("smoke"), np.random.default_rng(0)
    truth = np.arange(80) % 2 == 0
    table = pd.DataFrame(
        {
            "image_id": [f"{i:03}" for i in range(80)],
            "subject_id": [f"{i:03}" for i in range(80)],
            "kind": np.where(np.arange(80) % 4 < 2, "absent", "side"),
            "truth": truth,
            "phrase": "edema",
            "presence": draw.normal(size=80) + truth,
            "total gain": 0.0,
            "maximum of attention": 0.0,
        }
    )
    monkeypatch.setenv("G2G_BUILD", str(tmp_path))
    monkeypatch.setattr(presence.parts, "model", lambda *given: SimpleNamespace(name="m"))
    monkeypatch.setattr(presence, "_built", lambda config: {})
    films, asked = list(range(80)), [[Question("absent", True, "?")]] * 80
    monkeypatch.setattr(presence, "_films", lambda *given: films)
    monkeypatch.setattr("g2g_utils.bench.presence.questions", lambda films: asked)
    monkeypatch.setattr(
        "g2g_utils.bench.presence.ask", lambda _, some, *given, **more: table.iloc[some]
    )
    folder = products.ensure(smoke, "presence/domain-frozen-s0")
    assert folder.parent.parent == places.build(smoke)
    record = runs.read_json(folder / presence.CALIBRATION)
    assert set(record["errors"]) == {"wrong", "absent", "side", "brier", "ece"}
    assert record["chosen on"] == "validation, 80 films"
    known = calibrated(smoke, "domain-frozen-s0")
    assert known.curve == Calibration(**record["curve"]) and known.curve.slope > 0
    again = products.questions(smoke)
    assert list(again["image_id"]) == list(table["image_id"]) and set(again["seed"]) == {0}
    assert np.allclose(again["presence"], table["presence"], rtol=1e-4)
    assert not {"maximum of attention"} & set(
        products.questions(smoke, "validation").dropna(axis=1)
    )


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_shipped_calibrations_are_those_of_these_settings_and_sound(seed, tmp_path, monkeypatch):
    monkeypatch.setenv("G2G_BUILD", str(tmp_path))
    known = calibrated(config.load("miniature"), f"domain-frozen-s{seed}")
    assert isinstance(known, Calibrated), known
    assert known.curve.slope > 0 and 0 < known.curve.threshold < 0.5
    assert known.errors["wrong"][0] < 0.3
    assert known.areas["absent finding"]["presence"][1] > 0.5
