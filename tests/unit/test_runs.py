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
