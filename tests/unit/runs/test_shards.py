"""Sharded caches: resumable, damage noticed, a full disk said in one line, lazy reading."""

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
from g2g_utils.runs import records, shards
from g2g_utils.training import finetune

IDS = [f"film-{k}" for k in range(10)]
VALUES = torch.arange(60.0).reshape(10, 2, 3)


class Maker:
    """Makes rows of VALUES and notes which; `stop_at` fails there, as a killed run would."""

    def __init__(self, stop_at=None):
        self.made, self.stop_at = [], stop_at

    def __call__(self, rows):
        if self.stop_at in rows:
            raise KeyboardInterrupt
        if len(rows) > 2:  # not the probe
            self.made.append((rows.start, rows.stop))
        return {"mean": VALUES[rows.start : rows.stop].half(), "std": torch.ones(len(rows), 1)}


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "PROBE", 2)

    def write(make=None, ids=IDS, key="vae", rows=4):
        make = make or Maker()
        shards.write(tmp_path, ids, make, key=key, name="latents", rows=rows)
        return make.made

    return write


def column(folder, name="mean"):
    return shards.Column(folder, "latents", name)


def test_what_was_written_is_read_row_by_row(write, tmp_path, capsys):
    assert write() == [(0, 4), (4, 8)]  # and the last two rows
    found = column(tmp_path)
    assert found.shape == VALUES.shape and len(found) == 10
    rows = torch.tensor([[9, 0], [4, 3]])
    assert torch.equal(found[rows], VALUES[rows]) and torch.equal(found[7], VALUES[7])
    assert torch.equal(found[2:9], VALUES[2:9]) and found[[]].shape == (0, 2, 3)
    assert column(tmp_path, "std").shape == (10, 1)
    with torch.autocast("cpu", torch.bfloat16):  # where a training step reads them
        assert torch.equal(found[rows], VALUES[rows]) and found[rows].dtype == torch.float32
    said = capsys.readouterr().err
    assert "10 of 10 items to make, 3 of 3 shards, 160 B" in said and "about 0 s" in said
    assert write() == [] and capsys.readouterr().err == ""


def test_a_killed_run_goes_on_at_the_next_shard(write, tmp_path, capsys):
    with pytest.raises(KeyboardInterrupt):
        write(Maker(stop_at=5))
    first = tmp_path / "latents-00000-of-00003.safetensors"
    made = first.stat().st_mtime_ns
    (tmp_path / ".latents-00001-of-00003.safetensors.77.tmp").write_bytes(b"torn")
    assert write() == [(4, 8)]
    assert first.stat().st_mtime_ns == made and torch.equal(column(tmp_path)[:], VALUES)
    assert "6 of 10 items to make, 2 of 3 shards" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        f"latents-0000{k}-of-00003.safetensors" for k in range(3)
    ]


@pytest.mark.parametrize("cut", [1, 100, -10])
def test_a_truncated_shard_is_noticed_and_made_again(write, tmp_path, capsys, cut):
    write()
    path = tmp_path / "latents-00001-of-00003.safetensors"
    path.write_bytes(path.read_bytes()[:cut])
    if cut != -10:  # the header itself
        with pytest.raises(shards.ShardError, match=r"00001-of-00003.*delete it and run again"):
            column(tmp_path)[:]
    capsys.readouterr()
    assert write() == [(4, 8)]
    assert "warning" in (said := capsys.readouterr().err) and "truncated or damaged" in said
    assert torch.equal(column(tmp_path)[:], VALUES)


def test_other_weights_images_or_divisions_make_what_they_touch_again(write, tmp_path, capsys):
    write()
    changed = [*IDS[:5], "another film", *IDS[6:]]
    assert write(ids=changed) == [(4, 8)]
    assert "made from other images or weights" in capsys.readouterr().err
    assert write(ids=changed, key="other vae") == [(0, 4), (4, 8)]
    write(ids=changed, key="other vae", rows=5)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_full_disk_is_one_line_and_keeps_what_is_done(write, tmp_path, monkeypatch):
    """/dev/full refuses every byte, as a full disk does."""
    original = Path.write_bytes

    def full(path, content):
        target = Path("/dev/full") if "00001-of" in path.name else path
        return original(target, content)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(shards.ShardError) as caught:
            write()
    message = str(caught.value)
    assert "00001-of-00003" in message and "No space left on device" in message
    assert "G2G_BUILD" in message and "\n" not in message
    assert [p.name for p in tmp_path.iterdir()] == ["latents-00000-of-00003.safetensors"]
    assert write() == [(4, 8)]


def test_too_little_space_is_said_before_it_starts(write, tmp_path, monkeypatch):
    monkeypatch.setattr(shards.shutil, "disk_usage", lambda folder: type("D", (), {"free": 100}))
    with pytest.raises(shards.ShardError, match=r"160 B are needed and 100 B are free.*G2G_BUILD"):
        write()
    assert not list(tmp_path.iterdir())


def test_no_images_at_all(write):
    with pytest.raises(shards.ShardError, match="list of images is empty"):
        write(ids=[])


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


def test_latents_do_not_depend_on_batches_and_shards(films, tmp_path, monkeypatch):
    vae = models.build_vae(config.load("smoke").vae)
    finetune.cache_latents(vae, films, tmp_path / "one", films.paths, batch_size=6)
    original = shards.write
    with monkeypatch.context() as patch:
        patch.setattr(shards, "write", lambda *a, **k: original(*a, **k, rows=4))
        finetune.cache_latents(vae, films, tmp_path / "two", films.paths, batch_size=2)
    one, two = (finetune.load_pairs(tmp_path / name, list("abcdef")) for name in ("one", "two"))
    assert len(list((tmp_path / "two").iterdir())) == 2
    torch.testing.assert_close(one.mean[:], two.mean[:], atol=2e-3, rtol=2e-3)
    with torch.no_grad():
        vae.encoder.conv_in.weight.add_(0.1)
    before = (tmp_path / "one" / "latents-00000-of-00001.safetensors").read_bytes()
    finetune.cache_latents(vae, films, tmp_path / "one", films.paths, batch_size=6)
    assert before != (tmp_path / "one" / "latents-00000-of-00001.safetensors").read_bytes()


def spoil(path):
    """Change bytes of a shard's tensors; its size and header stay."""
    content = bytearray(path.read_bytes())
    content[-4:] = bytes(byte ^ 255 for byte in content[-4:])
    path.write_bytes(content)


def test_a_spoilt_shard_is_noticed_and_made_again(write, tmp_path, capsys):
    write()
    runs.record(tmp_path, 0.0)
    assert runs.intact(tmp_path)
    path = tmp_path / "latents-00001-of-00003.safetensors"
    before = path.read_bytes()
    spoil(path)
    assert not runs.intact(tmp_path)
    capsys.readouterr()
    assert write() == [(4, 8)]
    assert f"{path} is damaged (its checksum" in capsys.readouterr().err
    assert path.read_bytes() == before and runs.intact(tmp_path)


def test_a_shard_is_read_once_a_process(write, tmp_path, monkeypatch):
    write()
    read = []
    original = records.file_digest
    monkeypatch.setattr(records, "LARGE", 1)
    monkeypatch.setattr(records, "file_digest", lambda path: read.append(path) or original(path))
    runs.record(tmp_path, 0.0)
    assert runs.intact(tmp_path) and runs.intact(tmp_path) and len(read) == 3


MEMORY = """
import resource, sys
from pathlib import Path
import torch
from g2g_utils.runs import records, shards
column = shards.Column(Path(sys.argv[1]), "latents", "mean")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for k in range(40):
    column[torch.randint(len(column), (8,), generator=torch.Generator().manual_seed(k))]
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, column.shape.numel() * 2 // 1024)
"""


def test_reading_batches_takes_little_memory(tmp_path):
    """Of 96 MiB of latents 320 rows of 32 KiB are read: what grows is far below the whole."""

    def make(rows):
        return {"mean": torch.zeros(len(rows), 4, 64, 64, dtype=torch.float16)}

    shards.write(tmp_path, [str(k) for k in range(3072)], make, key="k", name="latents", rows=512)
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    grown, whole = map(int, done.stdout.split())
    assert whole == 96 * 1024 and grown < whole / 3
