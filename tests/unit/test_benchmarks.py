"""The benchmark's baseline sees the same maps as the engine; its README shows its results."""

import json
import sys

import pytest
import torch


@pytest.fixture(scope="module")
def attention(script, root):
    sys.path.insert(0, str(root / "benchmarks"))
    yield script("benchmarks/attention.py")
    sys.path.remove(str(root / "benchmarks"))


def test_storing_everything_gives_the_same_maps(attention):
    model = attention.build(attention.SIZES["miniature"], torch.device("cpu"))
    before = dict(model.unet.attn_processors)
    equal = attention.against_baseline(model, 2, 16, 0.0, slow=True)
    assert model.unet.attn_processors == before
    assert equal["maps"]["activation"]["max"] < 5e-3
    assert equal["maps"]["merged"]["max"] < 2e-2
    assert equal["baseline_bytes"] == 2 * 2 * 2 * 77 * 16 * 16 * 6  # 2 passes, 2 steps, 6 layers
    assert set(equal["speedup"]) == {"without", "merged", "cached", "unguided", "one_row"}


def test_readme_shows_the_committed_results(attention, root):
    path, text = root / "benchmarks" / "attention.json", attention.README.read_text()
    if not path.is_file():
        pytest.skip("no benchmarks/attention.json: run python benchmarks/attention.py")
    found = json.loads(path.read_text())
    assert attention.render(text, found) == text, "run python benchmarks/attention.py --render"
    assert not any(one["quick"] for one in found.values())


def test_simulated_memory_counts_what_is_alive(script):
    memory = script("benchmarks/memory.py")
    with memory.FakeTensorMode(), memory.Alive() as alive:
        first = torch.empty(1000)
        view = first[:10]  # no storage of its own
        second = first * 2
        assert alive.now == 8000
        del second
        assert alive.now == 4000
        third = torch.cat([first, view])
        assert alive.now == alive.peak == 8040
        del third
    assert alive.peak == 8040


def test_simulated_memory_trains_what_the_cost_sheet_says(script, root):
    from g2g_utils import config
    from g2g_utils.experiment import costs

    rows = json.loads((root / "benchmarks" / "memory.json").read_text())["rows"]
    for rank in (0, 32):
        sheet = costs.costs(config.load("open", **{"adaptation.lora_rank": rank}))
        found = [row for row in rows if row["lora_rank"] == rank]
        assert found and {row["trained"] for row in found} == {sheet.trained}
        assert all(row["mixed_gb"] > sheet.memory / 1e9 for row in found)


@pytest.mark.slow
def test_pieces_for_a_gpu_run_on_the_cpu_in_small(attention, script, tmp_path):
    """Every piece writes rows with device, versions and settings; nothing is a timed test."""
    gpu = script("benchmarks/gpu.py")
    for name in gpu.PIECES:
        found = json.loads(gpu.run(name, gpu.tiny(), tmp_path).read_text())
        assert (
            found["rows"] and found["complete"] and found["device"] and found["versions"]["torch"]
        )
        for row in found["rows"]:
            known = row.get("seconds") or row.get("arms") or row.get("correlation")
            assert known, f"{name}: {row}"
    assert {"ground-bfloat16", "train-paper-lora-checkpointed", "capture"} <= set(gpu.PIECES)
    with pytest.raises(ValueError, match="no CUDA device"):
        gpu.full()
