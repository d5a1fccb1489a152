"""One contract over every source, and what the profiles make of them."""

import csv
import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from g2g_utils import config as configuration
from g2g_utils.config import ConfigError
from g2g_utils.data import (
    chestxray14,
    folder,
    mimic_cxr,
    ms_cxr,
    openi,
    phantoms,
    radiographs,
    rsna,
    siim,
    sources,
)
from g2g_utils.data.order import position
from g2g_utils.data.record import FINDINGS, Example, pairs
from g2g_utils.runs import places

CLASSES = {*FINDINGS, *chestxray14.CLASSES.values(), *radiographs.FINDINGS.values(), None}


@pytest.fixture(scope="module")
def standins(script):
    return script("tests/standins.py")


@pytest.fixture(scope="module")
def data(standins, tmp_path_factory):
    """Every source in one folder, as data/README.md lays them out."""
    root = tmp_path_factory.mktemp("data")
    for name in (
        "mimic_cxr",
        "ms_cxr",
        "chestxray14",
        "rsna",
        "siim",
        "openi",
        "folder",
        "radiographs",
    ):
        getattr(standins, name)(root / name)
    standins.ms_cxr_coco(root / "ms_cxr_coco")
    return root


LOADERS = {
    "phantoms": lambda d: phantoms.generate(3, 0, "test"),
    "mimic_cxr": lambda d: mimic_cxr.load(d / "mimic_cxr").examples,
    "ms_cxr": lambda d: ms_cxr.load(d / "ms_cxr", d / "mimic_cxr"),
    "ms_cxr_coco": lambda d: ms_cxr.load(d / "ms_cxr_coco", d / "mimic_cxr"),
    "chestxray14": lambda d: chestxray14.load(d / "chestxray14"),
    "rsna": lambda d: rsna.load(d / "rsna"),
    "siim": lambda d: siim.load(d / "siim", masks=True, negatives=True),
    "openi": lambda d: openi.load(d / "openi").examples,
    "folder": lambda d: folder.load(d / "folder" / "pairs.csv"),
    "radiographs": lambda d: radiographs.pairs(d / "radiographs"),
    "captions": lambda d: radiographs.captioned(d / "radiographs", "train"),
}


def keeps_contract(example: Example) -> None:
    """What every consumer of examples may rely on."""
    assert isinstance(example.image, Path | np.ndarray)
    assert example.phrase and example.phrase == example.phrase.strip()
    assert "\n" not in example.phrase and example.finding in CLASSES
    assert isinstance(example.image_id, str) and isinstance(example.subject_id, str)
    assert example.image_id and example.subject_id and example.split in sources.SPLITS
    image = example.array()
    assert image.dtype == np.float32 and image.ndim == 2
    assert 0 <= image.min() <= image.max() <= 1
    height, width = image.shape
    for x, y, w, h in example.boxes:
        assert w > 0 and h > 0 and x >= -1 and y >= -1
        assert x + w <= width + 1 and y + h <= height + 1
    assert example.load(16).shape == (16, 16)
    assert example.framed(16).load().shape == (16, 16)


@pytest.mark.parametrize("name", LOADERS)
def test_every_source_keeps_the_contract(name, data):
    examples = LOADERS[name](data)
    assert examples
    for example in examples:
        keeps_contract(example)
    keys = [(e.image_id, e.phrase, e.finding) for e in pairs(examples)]
    assert len(keys) == len(set(keys))


@pytest.fixture
def load(data, tmp_path, monkeypatch):
    """A profile whose data roots are the stand-ins; build/ is a temporary folder."""
    monkeypatch.setenv("G2G_BUILD", str(tmp_path / "build"))

    def load(profile, **overrides):
        roots = {"data.root": str(data / ("openi" if profile == "open" else "mimic_cxr"))}
        roots["data.validation_from.root"] = str(data / "chestxray14")
        held = "chestxray14" if profile == "open" else "ms_cxr"
        roots["data.test_from.root"] = str(data / held)
        if profile == "paper":
            roots["data.test_from.images"] = str(data / "mimic_cxr")
        return configuration.load(profile, **roots | overrides)

    return load


def test_paper_trains_without_any_subject_of_ms_cxr(load, data):
    config = load("paper")
    train = sources.examples(config, "train")
    test = sources.examples(config, "test")
    assert {e.image_id for e in train} == {"aaaa0001", "aaaa0003", "aaaa0011"}
    assert {e.subject_id for e in test} == {"10000003"} and len(test) == 3
    assert not {e.subject_id for e in train} & {e.subject_id for e in test}
    official = {row[2] for row in csv_rows(data, "split") if row[3] == "train"}
    assert "10000003" in official  # MIMIC itself would train on this patient
    assert {e.split for e in train} == {"train"} and {e.split for e in test} == {"test"}


def csv_rows(data, name):
    with gzip.open(data / "mimic_cxr" / f"mimic-cxr-2.0.0-{name}.csv.gz", "rt") as file:
        return list(csv.reader(file))[1:]


def test_manifest_says_what_was_dropped_and_why(load):
    config = load("paper")
    first = sources.examples(config, "train")
    folder = sources.manifests(config)
    assert folder.is_relative_to(places.build(config))
    summary = json.loads((folder / "mimic_cxr-train.json").read_text())
    assert summary["kept"] == 3 and summary["other_splits"] == 2
    assert summary["dropped"] == {
        "subject of the evaluation data": 2,
        "not frontal": 2,
        "no report file": 1,
        "empty report": 1,
    }
    assert summary["text_from"] == {"impression": 2, "findings": 0, "last paragraph": 1}
    rows = list(csv.DictReader((folder / "mimic_cxr-train-dropped.csv").open()))
    reasons = {row["image_id"]: (row["reason"], row["detail"]) for row in rows}
    assert reasons["aaaa0002"] == ("not frontal", "LATERAL")
    assert reasons["aaaa0008"] == ("not frontal", "no view given")
    assert reasons["aaaa0009"] == ("no report file", "s50000008")
    again = sources.examples(config, "train")
    assert [vars(e) for e in again] == [vars(e) for e in first]


def test_the_manifest_is_read_again_only_under_the_same_key(load, monkeypatch):
    config = load("paper")
    sources.examples(config, "train")

    def never(*args, **kwargs):
        raise AssertionError("the reports were read again")

    monkeypatch.setattr(mimic_cxr, "load", never)
    sources.examples(config, "train")
    monkeypatch.setattr(mimic_cxr, "RECIPE", 99)
    with pytest.raises(AssertionError, match="again"):
        sources.examples(config, "train")


def test_images_that_arrive_later_are_taken(load, data, standins, tmp_path):
    root = standins.mimic_cxr(tmp_path / "mimic_cxr")
    film = next(root.rglob("aaaa0001.jpg"))
    film.rename(film.with_suffix(".part"))
    config = load("paper", **{"data.root": str(root)})
    assert "aaaa0001" not in {e.image_id for e in sources.examples(config, "train")}
    film.with_suffix(".part").rename(film)
    assert "aaaa0001" in {e.image_id for e in sources.examples(config, "train")}


def test_a_folder_may_hold_a_compressed_table(standins, tmp_path):
    plain = standins.folder(tmp_path) / "pairs.csv"
    plain.with_name("pairs.csv.gz").write_bytes(gzip.compress(plain.read_bytes()))
    plain.unlink()
    assert len(sources.boxed("folder", tmp_path)) == 2


def test_training_on_mimic_needs_the_table_of_ms_cxr(load):
    config = load("paper", **{"data.test_from": None})
    with pytest.raises(ConfigError, match=r"set data\.test_from"):
        sources.examples(config, "train")


def test_open_profile_divides_the_boxed_patients(load):
    config = load("open")
    train = sources.examples(config, "train")
    assert len(train) == 2 and not sources.credentialed(config)
    held = [e for s in ("validation", "test") for e in sources.examples(halves(load, 0.5), s)]
    assert len(held) == 4 and {e.split for e in held} == {"validation", "test"}
    subjects = [{e.subject_id for e in held if e.split == s} for s in ("validation", "test")]
    assert not subjects[0] & subjects[1]


def halves(load, cut):
    patients = sorted(position(p) for p in ("00000001", "00000002", "00030805"))
    cut = (patients[0] + patients[1]) / 2
    return load(
        "open",
        **{"data.validation_from.patients": [0, cut], "data.test_from.patients": [cut, 1]},
    )


def test_an_empty_split_is_an_error_with_the_next_step(load):
    config = load("open", **{"data.test_from.patients": [0.9999999, 1.0]})
    with pytest.raises(ConfigError, match=r"no test examples in .*data\.check open"):
        sources.examples(config, "test")
    with pytest.raises(ConfigError, match="unknown split 'dev'"):
        sources.examples(config, "dev")


def test_limits_take_the_same_images_every_time_with_all_their_phrases(load):
    config = load("paper", **{"data.test": 1})
    some = sources.examples(config, "test")
    everything = sources.examples(load("paper"), "test")
    ids = {e.image_id for e in some}
    assert len(ids) == 1
    assert [e.phrase for e in some] == [e.phrase for e in everything if e.image_id in ids]
    reordered = sources.limited(everything[::-1], 1)
    assert {e.image_id for e in reordered} == ids


def test_the_first_held_out_pairs_are_a_fair_sample(load, data, standins, tmp_path):
    classes, numbers = ("Mass", "Nodule", "Effusion"), range(60)
    lines = [f"{i:08d}_000.png,{classes[i // 20]},100,100,300,300" for i in numbers]
    header = "Image Index,Finding Label,Bbox [x,y,w,h],,,"
    (tmp_path / "BBox_List_2017.csv").write_text("\n".join([header, *lines]))
    for i in numbers:
        standins.film(tmp_path / "images" / f"{i:08d}_000.png", 16, 16)
    changes = {"data.test_from": {"source": "chestxray14", "root": str(tmp_path)}}
    found = sources.examples(load("open", **changes), "test")
    assert {e.finding for e in found[:12]} == {"Mass", "Nodule", "Pleural Effusion"}
    assert len(found) == 60


def test_one_source_without_splits_serves_all_three(load, data):
    shares = []
    for source in ("folder", "openi"):
        changes = {"data.source": source, "data.root": str(data / source)}
        config = load("open", **changes | {"data.validation_from": None, "data.test_from": None})
        shares.append([sources.own_share(config, split) for split in sources.SPLITS])
    assert shares[0] == shares[1] == [(0.0, 0.8), (0.8, 0.9), (0.9, 1.0)]
    config = load("open", **{"data.validation_from": None})
    assert sources.own_share(config, "train") == (0.0, 8 / 9)
    assert sources.own_share(load("open"), "train") == (0.0, 1.0)


def test_credentialed_profiles_are_known(load):
    assert sources.credentialed(load("paper"))
    assert not sources.credentialed(configuration.load("miniature"))


def test_no_header_field_of_a_dicom_is_kept(data):
    found = rsna.load(data / "rsna")
    assert "Doe" not in repr(found) and "secret" not in repr(found)
    assert b"Doe" in (data / "rsna" / "stage_2_train_images" / "p-2.dcm").read_bytes()


def test_profiles_hold_the_settings_of_the_paper():
    config = configuration.load("paper")
    t, g = config.training, config.grounding
    assert (t.steps, t.learning_rate, t.warmup, t.dropout) == (30000, 5e-5, 1000, 0.3)
    assert (t.seeds, t.weight_decay, t.clip) == ((4200, 1759, 6357), 0.01, 1.0)
    assert t.batch_size * t.accumulate == 256 and config.text.max_length == 77
    assert (g.timesteps, g.keep_last, g.text_guidance) == (65, 45, 16.0)
    assert config.image_size == configuration.load("open").image_size == 512


@pytest.mark.parametrize("profile", ["paper", "open"])
def test_profiles_comment_every_setting_once(profile):
    lines = (configuration.CONFIGS / f"{profile}.yaml").read_text().splitlines()
    keys = [line for line in lines if ":" in line and not line.lstrip().startswith("#")]
    leaves = [line for line in keys if not line.rstrip().split("#")[0].strip().endswith(":")]
    assert sum("#" in line for line in leaves) > 0.6 * len(leaves)
