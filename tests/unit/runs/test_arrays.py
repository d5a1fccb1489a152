"""Arrays in blocks: resumable, damage noticed, a full disk said in one line, memory-mapped."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from g2g_utils import config, models, runs
from g2g_utils.data.films import Films
from g2g_utils.data.images import ImageError
from g2g_utils.runs import arrays, records
from g2g_utils.training import finetune

IDS = [f"film-{k}" for k in range(10)]
VALUES = np.arange(60, dtype=np.float16).reshape(10, 2, 3)


class Maker:
    """Makes rows of VALUES and notes which; `stop_at` fails there, as a killed run would."""

    def __init__(self, stop_at=None):
        self.made, self.stop_at = [], stop_at

    def __call__(self, rows):
        if self.stop_at in rows:
            raise KeyboardInterrupt
        self.made.append((rows.start, rows.stop))
        mean = VALUES[rows.start : rows.stop]
        return {"mean": mean, "std": np.ones((len(rows), 1), np.float16)}


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.setattr(arrays, "PROBE", 1)

    def write(make=None, ids=IDS, key="vae", rows=4):
        make = make or Maker()
        arrays.write(tmp_path, ids, make, key=key, name="latents", batch=3, rows=rows)
        return make.made[2:]  # without the probe

    return write


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def same(folder, values=VALUES):
    return np.array_equal(arrays.read(folder, "mean"), values)


def test_rows_come_back_and_only_what_is_missing_is_made(write, tmp_path, capsys):
    assert write() == [(0, 3), (3, 4), (4, 7), (7, 8), (8, 10)]
    found = arrays.read(tmp_path, "mean")
    assert found.shape == VALUES.shape and found.dtype == np.float16 and same(tmp_path)
    assert arrays.read(tmp_path, "std").shape == (10, 1)
    said = capsys.readouterr().err
    assert "10 of 10 items to make, 3 of 3 blocks, 140 B" in said and "about 0 s" in said
    assert write() == [] and capsys.readouterr().err == ""
    assert files(tmp_path) == ["blocks.json", "mean.npy", "std.npy"]
    assert np.array_equal(np.load(tmp_path / "mean.npy"), VALUES)


def test_a_killed_run_goes_on_at_the_next_block(write, tmp_path, capsys):
    with pytest.raises(KeyboardInterrupt):
        write(Maker(stop_at=5))
    assert write() == [(4, 7), (7, 8), (8, 10)] and same(tmp_path)
    assert "6 of 10 items to make, 2 of 3 blocks" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["mean.npy", "std.npy"])
@pytest.mark.parametrize("cut", [0, 100, -1])
def test_a_truncated_file_is_noticed_and_its_end_made_again(write, tmp_path, capsys, cut, name):
    write()
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(arrays.ArrayError, match=rf"{name}.*delete .* and run again"):
        arrays.read(tmp_path, path.stem)
    capsys.readouterr()
    assert write() == ([(8, 10)] if cut == -1 else [(0, 3), (3, 4), (4, 7), (7, 8), (8, 10)])
    assert "rows 8 to 9 are damaged; they are made again" in capsys.readouterr().err
    assert same(tmp_path)


def test_a_spoilt_block_alone_is_made_again(write, tmp_path, capsys):
    write()
    runs.record(tmp_path, 0.0)
    assert runs.intact(tmp_path)
    path = tmp_path / "mean.npy"
    before = path.read_bytes()
    content = bytearray(before)
    content[-25] ^= 255  # in row 7
    path.write_bytes(content)
    assert not runs.intact(tmp_path)
    capsys.readouterr()
    assert write() == [(4, 7), (7, 8)]
    assert f"{tmp_path}: rows 4 to 7 are damaged" in capsys.readouterr().err
    assert path.read_bytes() == before and runs.intact(tmp_path)


def test_other_weights_images_or_divisions_make_all_again(write, tmp_path, capsys):
    write()
    changed = [*IDS[:5], "another film", *IDS[6:]]
    assert len(write(ids=changed)) == 5
    assert "made from other images or weights" in capsys.readouterr().err
    assert len(write(ids=changed, key="other vae")) == 5
    assert len(write(ids=changed, key="other vae", rows=5)) == 4
    assert len(write(ids=IDS[:7])) == 3 and same(tmp_path, VALUES[:7])


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"origin": 1}'])
def test_a_damaged_list_of_blocks_makes_all_again(write, tmp_path, capsys, text):
    write()
    (tmp_path / "blocks.json").write_text(text)
    assert len(write()) == 5 and same(tmp_path)
    assert "warning" in capsys.readouterr().err


def test_a_full_disk_is_one_line_and_keeps_what_is_done(write, tmp_path, monkeypatch):
    """/dev/full refuses every byte, as a full disk does."""

    def full(path, mode):
        return open("/dev/full" if (tmp_path / "blocks.json").exists() else path, mode)

    with monkeypatch.context() as patch:
        patch.setattr(arrays, "open", full, raising=False)
        with pytest.raises(arrays.ArrayError) as caught:
            write()
    message = str(caught.value)
    assert f"the disk of {tmp_path} is full" in message and "G2G_BUILD" in message
    assert "\n" not in message
    assert write() == [(4, 7), (7, 8), (8, 10)] and same(tmp_path)


def test_too_little_space_is_said_before_it_starts(write, tmp_path, monkeypatch):
    monkeypatch.setattr(arrays.shutil, "disk_usage", lambda folder: type("D", (), {"free": 100}))
    with pytest.raises(arrays.ArrayError, match=r"140 B are needed and 100 B are free.*G2G_BUILD"):
        write()
    assert not list(tmp_path.iterdir())


def test_no_images_at_all(write):
    with pytest.raises(arrays.ArrayError, match="list of images is empty"):
        write(ids=[])


def test_large_outputs_are_hashed_once_a_process(write, tmp_path, monkeypatch):
    write()
    read = []
    original = records.file_digest
    monkeypatch.setattr(records, "LARGE", 1)
    monkeypatch.setattr(records, "file_digest", lambda path: read.append(path) or original(path))
    runs.record(tmp_path, 0.0)
    assert runs.intact(tmp_path) and runs.intact(tmp_path) and len(read) == 3


# ---------------------------------------------------------------- latents of image files


@pytest.fixture
def films(tmp_path):
    (tmp_path / "films").mkdir()
    for k in range(6):
        pixels = np.random.default_rng(k).integers(0, 255, (70, 80), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "films" / f"{k}.png")
    return Films(sorted((tmp_path / "films").iterdir()), 64)


def test_films_are_read_when_asked(films):
    assert films.shape == (6, 64, 64) and films[1:3].shape == (2, 64, 64)
    assert np.array_equal(films[[4, 0]][0], films[4]) and films[4].dtype == np.uint8
    Path(films.paths[5]).unlink()
    assert films[:5].shape == (5, 64, 64)
    with pytest.raises(ImageError, match=r"5\.png: no such file"):
        films[3:]


def test_latents_do_not_depend_on_batches_and_blocks(films, tmp_path, monkeypatch):
    vae = models.build_vae(config.load("smoke").vae)
    finetune.cache_latents(vae, films, tmp_path / "one", films.paths, batch_size=6)
    original = arrays.write
    with monkeypatch.context() as patch:
        patch.setattr(arrays, "write", lambda *a, **k: original(*a, **k, rows=4))
        finetune.cache_latents(vae, films, tmp_path / "two", films.paths, batch_size=2)
    one, two = (finetune.load_pairs(tmp_path / name, list("abcdef")) for name in ("one", "two"))
    torch.testing.assert_close(one.mean, two.mean, atol=2e-3, rtol=2e-3)
    with torch.no_grad():
        vae.encoder.conv_in.weight.add_(0.1)
    before = (tmp_path / "one" / "mean.npy").read_bytes()
    finetune.cache_latents(vae, films, tmp_path / "one", films.paths, batch_size=6)
    assert before != (tmp_path / "one" / "mean.npy").read_bytes()


def test_latents_are_sampled_in_full_precision_under_autocast(write, tmp_path):
    write()
    mean = torch.from_numpy(arrays.read(tmp_path, "mean"))
    rows, noise = torch.tensor([[9, 0], [4, 3]]), torch.randn(2, 2, 2, 3)
    with torch.autocast("cpu", torch.bfloat16):  # where a training step reads them
        found = mean[rows] + mean[rows] * noise
    wanted = mean.float()[rows] + mean.float()[rows] * noise
    assert found.dtype == torch.float32 and torch.equal(found, wanted)


MEMORY = """
import resource, sys
from pathlib import Path
import torch
from g2g_utils.runs import arrays
column = torch.from_numpy(arrays.read(Path(sys.argv[1]), "mean"))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for k in range(40):
    column[torch.randint(len(column), (8,), generator=torch.Generator().manual_seed(k))]
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, column.shape.numel() * 2 // 1024)
"""


def test_reading_batches_takes_little_memory(tmp_path):
    """Of 384 MiB of latents 320 rows of 32 KiB are read: what grows is far below the whole."""

    def make(rows):
        return {"mean": np.zeros((len(rows), 4, 64, 64), np.float16)}

    ids = [str(k) for k in range(12288)]
    arrays.write(tmp_path, ids, make, key="k", name="latents", batch=512)
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    grown, whole = map(int, done.stdout.split())
    assert whole == 384 * 1024 and grown < whole / 3
