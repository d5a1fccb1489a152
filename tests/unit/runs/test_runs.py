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
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint"]


def write_state(folder, content):
    with runs.atomic(folder / "checkpoint") as temporary:
        temporary.mkdir()
        (temporary / "state").write_text(content)


def test_a_kill_while_a_folder_is_replaced_leaves_the_old_one(tmp_path, monkeypatch):
    write_state(tmp_path, "one")

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(runs.os, "replace", killed)
        write_state(tmp_path, "two")
    path = tmp_path / "checkpoint"
    assert not path.exists() and (runs.standing(path) / "state").read_text() == "one"
    write_state(tmp_path, "three")
    assert (runs.standing(path) / "state").read_text() == "three"
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint"]


def test_what_a_killed_writer_left_goes_and_a_living_ones_stays(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    name = f".x.json.{runs._machine()}-%d.tmp"
    for left in (name % child.pid, name % os.getppid(), ".x.json.other-1.tmp", ".x.json.7.tmp"):
        (tmp_path / left).mkdir()
    runs.write_json(tmp_path / "x.json", 1)
    kept = {name % os.getppid(), ".x.json.other-1.tmp", ".x.json.7.tmp", "x.json"}
    assert {p.name for p in tmp_path.iterdir()} == kept
    assert runs.hashes(tmp_path).keys() == {"x.json"}
    runs.tidy(tmp_path / "x.json")
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


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
        "metrics": {"cnr": (0.5, 0.75), "auc": (runs.ABSENT, 0.9)},
    }
    assert runs.main(["compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    said = capsys.readouterr().out
    assert "seed" in said and "(+0.25)" in said and "commit" not in said
    assert runs.main(["compare", str(tmp_path / "a"), str(tmp_path / "a")]) == 0
    assert "no difference" in capsys.readouterr().out


def test_compare_shows_where_values_part_and_tells_null_from_absent(tmp_path):
    long = "a frozen domain-specific text encoder, " * 3
    write_run(tmp_path / "a", parameters={"x": None, "n": 1, "p": long + "one"})
    write_run(tmp_path / "b", parameters={"n": "1", "p": long + "two"})
    lines = runs.describe(runs.compare(tmp_path / "a", tmp_path / "b")).splitlines()
    assert [line.split()[1:] for line in lines[1:3]] == [
        ["null", "->", "absent"],
        ["1", "->", '"1"'],
    ]
    assert 'one"' in lines[3] and 'two"' in lines[3] and len(lines[3]) < 130


def test_compare_says_what_is_no_run(tmp_path, capsys):
    assert runs.main(["compare", str(tmp_path), str(tmp_path)]) == 2
    assert f"{tmp_path} is no run" in capsys.readouterr().err
    (tmp_path / "run.json").write_text("[]")
    assert runs.main(["compare", str(tmp_path), str(tmp_path)]) == 2
    assert f"{tmp_path / 'run.json'}: damaged" in capsys.readouterr().err
