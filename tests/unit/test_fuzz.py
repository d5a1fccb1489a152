"""A thousand mutated inputs; `python tests/fuzz/run.py` runs twenty thousand."""

from pathlib import Path

import pytest

FUZZ = "tests/fuzz/run.py"


@pytest.mark.parametrize("seed", [1, 2])
def test_mutated_inputs_end_right_or_with_one_line(script, seed):
    fuzzer = script(FUZZ).fuzz(600, seed)
    assert fuzzer.faults == []
    ended = "\n".join(fuzzer.ended)
    for kind in ("image", "table", "report", "phrase", "profile", "same pixels", "same table"):
        assert f"{kind}" in ended


def test_what_is_not_mutated_is_read(script, tmp_path):
    run = script(FUZZ)
    fuzzer = run.Fuzzer(tmp_path, 0)
    for name, (_, load) in run.TABLES.items():
        load(fuzzer.roots[name.split()[0]])
    for name, content in fuzzer.images:
        (tmp_path / name).write_bytes(content)
        if name != "jll.dcm":  # its decoder is not part of the lock
            run.check_image(Path(tmp_path / name))
