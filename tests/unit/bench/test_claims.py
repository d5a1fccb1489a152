"""findings.json: its schema, one entry an id, and a claim that holds only above zero."""

import json
from pathlib import Path

import jsonschema
import pytest

from g2g_utils import config as configuration
from g2g_utils import runs
from g2g_utils.bench import claims
from g2g_utils.bench.statistics import Interval
from g2g_utils.config import Config
from g2g_utils.runs import places


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.setenv("G2G_BUILD", str(tmp_path))
    return configuration.load("smoke")


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.1, 0.5, "holds"),
        (-0.1, 0.5, "not shown"),
        (0.0, 0.5, "not shown"),
        (-0.5, -0.1, "reversed"),
    ],
)
def test_a_claim_holds_only_if_its_interval_lies_above_zero(
    config: Config, low: float, high: float, verdict: str
) -> None:
    made = claims.claim(config, "F1-x", "a > b", Interval(0.3, low, high), [0, 1])
    assert made.holds is (verdict == "holds")
    assert str(made).startswith(f"a > b: {verdict}, +0.30 [")
    assert claims.verdicts([made]).startswith(f"- **{verdict}**: a > b")
    assert claims.said(made).startswith(f"**{verdict}** (+0.30 [")
    told = claims.told(made, holds="As holds.", reversed="As reversed.", not_shown="As not shown.")
    assert told == f"{claims.said(made)}. As {verdict}."


def test_what_matters_less_is_folded(config: Config) -> None:
    first, second = (
        claims.claim(config, name, f"{name} > c", Interval(0.3, 0.1, 0.5), [0]) for name in "ab"
    )
    text = claims.folded([first], [second], "seeds")
    assert text.index("a > c") < text.index("<summary>1 more: seeds</summary>") < text.index("b >")
    assert claims.folded([first], [], "seeds") == claims.verdicts([first])


def test_a_damaged_claim_does_not_hold(config: Config) -> None:
    nan = float("nan")
    with pytest.raises(ValueError, match="JSON"):
        claims.claim(config, "F1-x", "a > b", Interval(nan, nan, nan), [0])


def test_the_file_follows_the_schema_and_keeps_one_entry_an_id(config: Config) -> None:
    for value in (0.1, 0.2):
        gap = Interval(value, value - 0.05, value + 0.05)
        claims.claim(config, "F2", "c > d", gap, [0, 1, 2], "validation")
    claims.claim(config, "F1", "a > b", Interval(0.3, -0.1, 0.5), [0])
    rows = json.loads(claims.path(config).read_text())
    jsonschema.validate(rows, claims.SCHEMA)
    assert [(row["id"], row["estimate"]) for row in rows] == [("F1", 0.3), ("F2", 0.2)]
    assert claims.read(config) == rows
    assert rows[0]["run"].startswith("smoke-")


def test_findings_of_other_settings_are_dropped(config: Config) -> None:
    gap = Interval(0.3, 0.1, 0.5)
    claims.claim(config, "F1-old", "a > b", gap, [0])
    changed = configuration.load("smoke", **{"training.steps": 11})
    claims.path(changed).parent.mkdir(parents=True, exist_ok=True)
    claims.path(changed).write_text(claims.path(config).read_text())
    claims.claim(changed, "F1-new", "a > b", gap, [0])
    assert [row["id"] for row in claims.read(changed)] == ["F1-new"]


def test_what_is_rounded_to_zero_does_not_hold(config: Config) -> None:
    made = claims.claim(config, "F1", "a > b", Interval(0.1, 0.00003, 0.2), [0])
    assert made.low == 0 and not made.holds


def test_the_committed_findings_are_of_the_shipped_settings() -> None:
    settings = configuration.load("miniature")
    arms, rows = settings.training.arms, runs.read_json(places.ROOT / "figures" / "findings.json")
    jsonschema.validate(rows, claims.SCHEMA)
    assert {row["run"] for row in rows} == {runs.settings_id(settings)}
    assert {row["id"][:2] for row in rows} == {f"F{number}" for number in range(9)} | {"Z1", "G2"}
    assert len({row["id"] for row in rows}) == len(rows)
    for row in rows:
        assert row["holds"] == (row["low"] > 0) and row["low"] <= row["estimate"] <= row["high"]
        few = [a for a in arms if "shuffled" in a or a == "foundation"]  # fewer weights to ship
        trained = min([3, *(len(settings.seeds(a)) for a in few if a in row["id"])])
        trained = 1 if row["id"].startswith("G2D") else trained  # one network is shipped
        assert len(row["seeds"]) == trained and row["split"] == "test", row["id"]


def test_the_schema_refuses_what_is_no_finding() -> None:
    for bad in ([{"id": "F1"}], {"id": "F1"}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(bad, claims.SCHEMA)
