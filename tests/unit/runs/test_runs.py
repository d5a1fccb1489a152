"""Atomic writes, integrity and provenance of run directories."""

import errno
import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from g2g_utils import runs
from g2g_utils.runs import files, places


def test_atomic_leaves_the_old_file_when_writing_fails(tmp_path):
    path = tmp_path / "metrics.json"
    runs.write_json(path, {"a": 1})
    with pytest.raises(RuntimeError), runs.atomic(path) as temporary:
        temporary.write_text("half a fi")
        raise RuntimeError("killed")
    assert json.loads(path.read_text()) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.json"]


def test_what_a_killed_writer_left_goes_and_a_living_ones_stays(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    name = f".x.json.{files.machine()}-%d.tmp"
    for left in (name % child.pid, name % os.getppid(), ".x.json.other-1.tmp", ".x.json.7.tmp"):
        (tmp_path / left).touch()
    runs.write_json(tmp_path / "x.json", 1)
    kept = {name % os.getppid(), ".x.json.other-1.tmp", ".x.json.7.tmp", "x.json"}
    assert {p.name for p in tmp_path.iterdir()} == kept
    assert runs.hashes(tmp_path).keys() == {"x.json"}


def test_what_is_hidden_is_no_output(tmp_path):
    (tmp_path / ".checkpoint.77.tmp").mkdir()
    (tmp_path / ".checkpoint.77.tmp" / "state.pt").write_bytes(b"torn")
    (tmp_path / "weights.bin").write_bytes(b"abc")
    assert runs.hashes(tmp_path).keys() == {"weights.bin"}


def test_each_writers_full_disk_is_recognised(tmp_path):
    with pytest.raises(RuntimeError) as caught:
        torch.save({"a": torch.zeros(3000)}, "/dev/full")
    assert runs.disk_is_full(caught.value, tmp_path)
    for error in (
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 1792 vs 1686"),
        OSError("1000000 requested and 262016 written"),
        OSError(errno.EDQUOT, "quota"),
    ):
        assert str(tmp_path) in runs.disk_is_full(error, tmp_path)
        with pytest.raises(ValueError) as outer:
            raise ValueError("no map") from error
        assert runs.disk_is_full(outer.value, tmp_path)
    assert runs.disk_is_full(OSError(errno.ENOENT, "no such file"), tmp_path) == ""


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


def test_a_damaged_record_is_none_and_named(tmp_path, capsys):
    path = tmp_path / "run.json"
    assert runs.sound_record(path) is None and capsys.readouterr().err == ""
    for text in ('{"ke', "[]", '{"key": "1"}', '{"key": "1", "outputs": []}', "\udcff"):
        path.write_bytes(text.encode(errors="surrogateescape"))
        assert runs.sound_record(path) is None
        assert f"warning: {path}: damaged" in capsys.readouterr().err
        assert not runs.intact(tmp_path)
    runs.write_json(path, {"key": "1", "outputs": {}})
    assert runs.sound_record(path) == {"key": "1", "outputs": {}}


def test_a_record_leads_to_a_product_that_can_be_read(tmp_path):
    record = tmp_path / "vae.json"
    runs.write_json(record, {"folder": tmp_path / "vae"})
    assert not runs.leads_to_product(record)
    runs.write_json(tmp_path / "vae" / "run.json", {"key": "1"})
    assert runs.leads_to_product(record)
    (tmp_path / "vae" / "run.json").write_text('{"ke')
    assert not runs.leads_to_product(record)
    record.write_text("[]")
    assert not runs.leads_to_product(record)


def test_new_code_is_a_change_and_other_new_files_and_figures_are_none(tmp_path):
    def git(*words):
        subprocess.run(["git", "-C", str(tmp_path), *words], check=True)

    git("init", "-q")
    (tmp_path / ".gitignore").write_text("build/\n")
    for path in ("g2g_utils/note.txt", "g2g_utils/build/x.py", "scratch.py"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    figure = tmp_path / "figures" / "findings.json"
    figure.parent.mkdir()
    figure.write_text("[]")
    git("add", ".gitignore", "figures")
    git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "-m", "one")
    figure.write_text("[1]")
    assert runs.git_state(tmp_path)["dirty"] is False
    (tmp_path / "g2g_utils" / "data").mkdir()
    (tmp_path / "g2g_utils" / "data" / "new.py").touch()
    assert runs.git_state(tmp_path)["dirty"] is True


def test_digest_is_stable_and_tells_values_apart():
    assert runs.digest({"b": 1, "a": (1, 2)}) == runs.digest({"a": [1, 2], "b": 1})
    assert runs.digest({"a": 1}) != runs.digest({"a": 2})


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run that has started; the environment is as before after the test."""
    monkeypatch.setenv("G2G_RUN", "")
    made = runs.Run(tmp_path / "n.current", "smoke-0.n.1", tmp_path / "n.json", tmp_path / "own")
    made.start()
    return made


def test_a_run_is_found_by_the_processes_that_it_starts(run):
    code = "from g2g_utils import runs; print(runs.Run.current())"
    told = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert told.strip() == str(run) and runs.Run.current() == run


def test_reported_numbers_reach_the_run(run):
    runs.report({"cnr": np.float64(0.5), "pairs": 3})
    runs.report({"auc": float("nan")})
    assert runs.read_json(run.metrics) == {"cnr": 0.5, "pairs": 3, "auc": None}
    with pytest.raises(TypeError, match=r"arm.*'domain'"):
        runs.report({"arm": "domain"})


def test_a_run_knows_its_figures_and_leaves_nothing_else(run, tmp_path):
    for name in ("b.png", "a.png", "b.png", "gone.png"):
        (tmp_path / name).touch()
        run.drew(tmp_path / name)
    (tmp_path / "gone.png").unlink()
    assert run.end() == [tmp_path / "a.png", tmp_path / "b.png"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.png", "b.png"]
    runs.report({"cnr": 1.0})  # by hand: no run, no file
    assert runs.Run.current() is None and not run.metrics.exists()


def test_figures_of_a_run_with_its_own_folder_go_there(run, monkeypatch):
    profile = type("Profile", (), {"profile": "miniature", "publishable": True})()
    assert places.figures(profile) == run.figures
    run.end()
    assert places.kept_figures(profile) == places.ROOT / "figures"
    assert places.figures(profile) == places.build(profile) / "figures"  # opened by hand
    profile.publishable = False
    assert places.kept_figures(profile) == places.build(profile) / "figures"
