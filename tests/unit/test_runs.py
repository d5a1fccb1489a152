"""Atomic writes, integrity and provenance of run directories."""

import json
import time

import numpy as np
import pytest

from g2g_utils import runs


def test_atomic_leaves_the_old_file_when_writing_fails(tmp_path):
    path = tmp_path / "metrics.json"
    runs.write_json(path, {"a": 1})
    with pytest.raises(RuntimeError), runs.atomic(path) as temporary:
        temporary.write_text("half a fi")
        raise RuntimeError("killed")
    assert json.loads(path.read_text()) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.json"]


def test_atomic_replaces_a_folder(tmp_path):
    for content in ("one", "two"):
        with runs.atomic(tmp_path / "checkpoint") as temporary:
            temporary.mkdir()
            (temporary / "state").write_text(content)
    assert (tmp_path / "checkpoint" / "state").read_text() == "two"


def test_json_refuses_nan_and_takes_arrays(tmp_path):
    with pytest.raises(ValueError):
        runs.write_json(tmp_path / "x.json", {"cnr": float("nan")})
    runs.write_json(tmp_path / "x.json", {"cnr": np.float32(0.5), "map": np.eye(2)})
    assert runs.read_json(tmp_path / "x.json")["map"] == [[1, 0], [0, 1]]
    (tmp_path / "x.json").write_text('{"torn": ')
    with pytest.raises(ValueError, match=r"x\.json.*damaged"):
        runs.read_json(tmp_path / "x.json")


def test_record_notices_a_changed_or_missing_output(tmp_path):
    (tmp_path / "weights.bin").write_bytes(b"abc")
    assert not runs.intact(tmp_path)
    runs.record(tmp_path, time.time(), parameters={"steps": 3})
    assert runs.intact(tmp_path)
    written = runs.read_json(tmp_path / "run.json")
    assert written["parameters"] == {"steps": 3}
    assert written["packages"]["torch"] and written["peak_memory_mib"] > 10
    (tmp_path / "weights.bin").write_bytes(b"abd")
    assert not runs.intact(tmp_path)
    (tmp_path / "weights.bin").unlink()
    assert not runs.intact(tmp_path)


def test_digest_is_stable_and_tells_values_apart():
    assert runs.digest({"b": 1, "a": (1, 2)}) == runs.digest({"a": [1, 2], "b": 1})
    assert runs.digest({"a": 1}) != runs.digest({"a": 2})


def test_reported_numbers_reach_the_run_and_nothing_else_does(tmp_path, monkeypatch):
    monkeypatch.delenv("G2G_METRICS", raising=False)
    runs.report({"cnr": 1.0})  # by hand: no run, no file
    monkeypatch.setenv("G2G_METRICS", str(tmp_path / "metrics.json"))
    runs.report({"cnr": np.float64(0.5), "pairs": 3})
    runs.report({"auc": float("nan")})
    assert runs.read_json(tmp_path / "metrics.json") == {"cnr": 0.5, "pairs": 3, "auc": None}
    with pytest.raises(TypeError, match=r"arm.*'domain'"):
        runs.report({"arm": "domain"})


def write_run(folder, **changes):
    base = {"parameters": {"seed": 0, "arm": "a"}, "metrics": {"cnr": 0.5}, "inputs": {"vae": "1"}}
    base["git"] = {"commit": "abc", "dirty": False}
    runs.write_json(folder / "run.json", {**base, **changes})


def test_compare_names_each_difference_and_the_metrics_gap(tmp_path, capsys):
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", parameters={"seed": 1, "arm": "a"}, metrics={"cnr": 0.75, "auc": 0.9})
    found = runs.compare(tmp_path / "a", tmp_path / "b" / "run.json")
    assert found == {
        "parameters": {"seed": (0, 1)},
        "metrics": {"cnr": (0.5, 0.75), "auc": (None, 0.9)},
    }
    assert runs.main(["compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    said = capsys.readouterr().out
    assert "seed" in said and "(+0.25)" in said and "commit" not in said
    assert runs.main(["compare", str(tmp_path / "a"), str(tmp_path / "a")]) == 0
    assert "no difference" in capsys.readouterr().out


def test_compare_says_what_is_no_run(tmp_path, capsys):
    assert runs.main(["compare", str(tmp_path), str(tmp_path)]) == 2
    assert f"{tmp_path} is no run" in capsys.readouterr().err


def test_a_record_holds_only_while_its_outputs_do(tmp_path):
    runs.write_json(tmp_path / "metrics.json", {"cnr": 0.5})
    outputs = {"metrics.json": runs.file_digest(tmp_path / "metrics.json")}
    runs.write_json(tmp_path / "run.json", {"outputs": outputs})
    assert runs.holds(tmp_path / "run.json", ["metrics.json"])
    (tmp_path / "metrics.json").write_text('{"cnr": 0.')
    assert not runs.holds(tmp_path / "run.json", ["metrics.json"])
    (tmp_path / "run.json").write_text('{"outputs"')
    assert not runs.holds(tmp_path / "run.json", ["metrics.json"])
