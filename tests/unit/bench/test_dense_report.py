"""Claims of the benchmark of G2D: verdicts, seeds, and claims whose tables are not there."""

import sys

import numpy as np
import pandas as pd
import pytest


@pytest.fixture(scope="module")
def benchmark(script):
    yield script("benchmarks/dense.py")
    sys.modules.pop("g2g_script_dense")


def table(shift, count=40):
    rng = np.random.default_rng(0)
    rows = {"image": range(count), "subject": range(count), "positive": [1] * count}
    runs = {f"80/encoder/{k}": rng.uniform(size=count) / 9 + shift for k in range(5)}
    return pd.DataFrame({**rows, **runs})


def test_verdicts(benchmark):
    columns = [(f"80/encoder/{k}",) * 2 for k in range(5)]
    low, high = {k: table(0.0) for k in range(4)}, {k: table(0.3) for k in range(3)}
    for better, worse, verdict in ((high, low, "holds"), (low, high, "reversed")):
        found = benchmark.claim("x", better, worse, columns)
        assert found["verdict"] == verdict and found["seeds"] == [0, 1, 2]
    assert benchmark.claim("x", low, low, columns)["verdict"] == "not shown"
    one = benchmark.claim("x", {0: high[0]}, low, columns)
    assert one["verdict"] == "preliminary: holds" and one["seeds"] == [0]
    assert benchmark.claim("x", high, {}, columns) == {
        "claim": "x",
        "verdict": "not run",
        "seeds": [],
    }


def test_the_committed_report_is_of_the_committed_tables(benchmark, root, monkeypatch):
    stored = benchmark.runs.read_json(root / "benchmarks" / "dense.json")
    kept = {}
    monkeypatch.setattr(benchmark.runs, "write_json", lambda path, rows: kept.update(rows))
    benchmark.report()
    assert kept == stored, "run python benchmarks/dense.py report"
