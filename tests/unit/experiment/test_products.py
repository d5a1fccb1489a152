"""Products: keys, finding, damage, and two processes asking for the same thing at once."""

import os
import subprocess
import sys
from dataclasses import replace

import pandas as pd
import pytest
import torch

from g2g_utils import config, runs
from g2g_utils.bench import benchmark
from g2g_utils.experiment import apart, products, recipes, scores
from g2g_utils.methods.g2g import G2G
from g2g_utils.runs import places

TINY = {
    "data.train": 16,
    "vae.steps": 2,
    "encoders.domain.mlm_steps": 1,
    "encoders.domain.steps": 1,
    "encoders.generic.steps": 1,
    "training.steps": 2,
    "training.seeds": [0],
    "fidelity.classifier_steps": 1,
}


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    monkeypatch.setenv("G2G_BUILD", str(tmp_path))
    return config.load("smoke", **TINY)


def test_the_plan_can_be_made_in_order():
    for profile in ("smoke", "miniature"):
        seen: set[str] = set()
        for name, needs in products.plan(config.load(profile)).items():
            assert set(needs) <= seen, name
            seen.add(name)


def test_keys_follow_what_matters_and_nothing_else(tiny):
    other = config.load("smoke", **TINY | {"training.learning_rate": 9.0, "training.live_steps": 3})
    live = config.load("smoke", **TINY | {"training.live_steps": 3})
    data = config.load("smoke", **TINY | {"data.seed": 5})
    arm = "ldm/domain-frozen-s0"
    assert products.key(tiny, "vae") == products.key(other, "vae")
    assert products.key(tiny, arm) != products.key(other, arm)
    assert products.key(tiny, arm) == products.key(live, arm)
    assert products.key(tiny, arm) != products.key(data, arm)  # through its dependencies
    assert products.key(tiny, arm) != products.key(tiny, "ldm/domain-frozen-s1")


def test_one_foundation_serves_every_arm_and_seed(tiny):
    shared = TINY | {"unet.foundation_steps": 2}
    with_one = config.load("smoke", **shared)
    plan = products.plan(with_one)
    films = (name for name in plan if name.startswith("ldm/") and "foundation" not in name)
    assert all("foundation" in plan[name] for name in films)
    longer = config.load("smoke", **shared | {"training.steps": 9, "training.dropout": 0.5})
    assert products.key(with_one, "foundation") == products.key(longer, "foundation")
    other = config.load("smoke", **shared | {"unet.foundation_steps": 1})
    assert products.key(with_one, "foundation") != products.key(other, "foundation")
    assert "foundation" not in products.plan(tiny)
    unets = [products.start_unet(with_one, seed, 32) for seed in (0, 1)]
    for (name, one), (_, two) in zip(*(u.named_parameters() for u in unets), strict=True):
        reads = any(f".attn2.{part}." in name for part in ("to_q", "to_k", "to_v"))
        assert torch.equal(one, two) != reads, name


def test_controls_have_their_own_seeds_and_no_fidelity():
    arms = {
        "domain-frozen": {"encoder": "domain"},
        "shuffled": {"encoder": "domain", "shuffled": True, "control": True, "seeds": [4]},
    }
    table = {"other": {"kind": "g2g", "arm": "shuffled"}}
    settings = config.load("smoke", **{"training.arms": arms, "methods": table})
    plan = products.plan(settings)
    assert "scores/other-s4" in plan and "ldm/shuffled-s0" not in plan
    assert "fidelity/shuffled-s4" not in plan and "fidelity/domain-frozen-s0" in plan
    assert settings.training.compared == ["domain-frozen"]


def test_an_arm_of_other_pictures_sees_no_film(tiny):
    plan = products.plan(tiny)
    assert plan["ldm/foundation-s0"] == ["pictures/glyphs", "encoders/generic"]
    folder = products.ensure(tiny, "pictures/glyphs")
    other = recipes.training_pairs(tiny, "foundation")
    assert len(other) == 16 and other.mean.shape[1:] == (4, 16, 16)
    assert other.captions == tuple(runs.read_json(folder / "captions.json"))
    assert not set(other.captions) & set(recipes.training_pairs(tiny, "generic-frozen").captions)
    spec = tiny.training.arms["generic-frozen"]
    assert "pictures" not in recipes.dump(spec)  # keys of arms without it stay
    shared = TINY | {"unet.foundation_steps": 2}  # of films: other arms start there
    assert "foundation" not in products.plan(config.load("smoke", **shared))["ldm/foundation-s0"]


@pytest.mark.parametrize("more", [{"shuffled": True}, {"pretrained": "somewhere"}])
def test_an_arm_of_other_pictures_is_a_new_training(more):
    arms = {"a": {"encoder": "generic", "pictures": "glyphs"}}
    start = more.pop("pretrained", None)
    arms["a"] |= more
    with pytest.raises(config.ConfigError, match=r"arms\.a\.pictures trains a new U-Net"):
        config.load("smoke", **{"training.arms": arms, "unet.pretrained": start})


@pytest.mark.parametrize("name", ["vea", "ldm/nope-s0", "ldm/domain-frozen"])
def test_unknown_products_are_refused_by_name(tiny, name):
    with pytest.raises(config.ConfigError, match=name.split("/")[-1]):
        products.ensure(tiny, name)


def test_a_product_is_made_once_and_again_when_damaged(tiny, capsys):
    folder = products.ensure(tiny, "vae")
    assert folder == products.folder(tiny, "vae") and not (folder / "checkpoint.pt").exists()
    weights = folder / "diffusion_pytorch_model.safetensors"
    made = weights.stat().st_mtime_ns
    products.ensure(tiny, "vae")
    assert weights.stat().st_mtime_ns == made
    content = weights.read_bytes()
    weights.write_bytes(content[:-7])
    products.ensure(tiny, "vae")
    assert "damaged" in capsys.readouterr().err
    assert weights.read_bytes() == content  # the same bits again


def test_truncated_latents_are_made_again_with_a_warning(tiny, capsys):
    folder = products.ensure(tiny, "latents")
    largest = max(folder.rglob("*.npy"), key=lambda path: path.stat().st_size)
    before = largest.read_bytes()
    largest.write_bytes(before[: len(before) // 2])
    assert products.ensure(tiny, "latents") == folder
    assert "damaged; it is made again" in capsys.readouterr().err
    assert largest.read_bytes() == before  # the same bits again


def test_changed_settings_make_it_anew(tiny):
    products.ensure(tiny, "vae")
    changed = config.load("smoke", **TINY | {"vae.steps": 3})
    assert products.find(changed, "vae") is None
    first = products.find(tiny, "vae")
    products.ensure(changed, "vae")
    assert products.find(changed, "vae") is not None
    assert products.find(tiny, "vae") == first  # what was computed before is still there


def test_shipped_weights_are_used_unless_retraining(tiny, monkeypatch, tmp_path):
    made = products.ensure(tiny, "vae")
    shipped = tmp_path / "shipped"
    monkeypatch.setattr(places, "weights", lambda config: shipped)
    shipped.mkdir()
    made.rename(shipped / "vae")
    assert products.find(tiny, "vae") == shipped / "vae"
    assert products.find(tiny.model_copy(update={"retrain": True}), "vae") is None


@pytest.mark.slow
def test_two_processes_make_one_product(tiny, tmp_path):
    settings = [item for key, value in TINY.items() for item in ("--set", f"{key}={value}")]
    command = [sys.executable, "-m", "g2g_utils", "make", "vae", "--profile", "smoke", *settings]
    both = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    texts = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0], texts
    assert sum("VAE: " in stderr for _, stderr in texts) == 1  # one trained, one waited
    assert products.find(tiny, "vae") == products.folder(tiny, "vae")


@pytest.mark.slow
def test_a_launch_of_two_processes_makes_one_training(tiny, tmp_path):
    for need in ("latents", "encoders/domain"):
        products.ensure(tiny, need)
    settings = [word for key, value in TINY.items() for word in ("--set", key, str(value))]
    launch, make = (str(places.ROOT / "workflow" / f"{n}.py") for n in ("launch", "make_product"))
    name, record = "ldm/domain-frozen-s0", tmp_path / "record.json"
    command = [sys.executable, launch, "2", "0", make, name, str(record), "--profile", "smoke"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_")}
    environment["PYTHONPATH"] = str(places.ROOT)
    run = subprocess.run(
        [*command, *settings], env=environment, capture_output=True, text=True, timeout=600
    )
    assert run.returncode == 0, run.stderr[-2000:]
    made = products.find(tiny, name)
    assert made is not None and str(made) in record.read_text()
    assert run.stdout.count(f"{name}: ") == 1  # two processes, one record


def test_a_model_makes_what_it_needs(tiny):
    arms = {"generic-learnable": {"encoder": "generic", "learnable": True}}
    tiny = config.load("smoke", **TINY | {"training.arms": arms})
    model = products.model(tiny, "generic-learnable", 0)
    assert model.latent_shape == (4, 16, 16)
    assert model.encode_phrases(["left effusion"]).shape == (1, 77, 32)


# -- the profile's table of methods ------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (
            {"kind": "g2g", "arm": "domain-frozen", "layers": ["nope"]},
            r"methods\.new \(g2g\): layers = .*'nope' is no layer",
        ),
        (
            {"kind": "information", "arm": "domain-frozen", "conditions": []},
            r"methods\.new \(information\): conditions",
        ),
        (
            {"kind": "no-skill", "rule": "random", "label": "its map of another phrase"},
            "is the name of another row",
        ),
        (
            {"kind": "zero-shot-ldm", "arm": "domain-frozen", "window": [30, 20]},
            r"methods\.new \(zero-shot-ldm\): window = .*name the first and the last step",
        ),
        (
            {"kind": "zero-shot-ldm", "arm": "domain-frozen", "timesteps": 5},
            r"methods\.new \(zero-shot-ldm\): timesteps = 5",
        ),
        ({"kind": "psychic"}, r"methods\.new has the unknown kind 'psychic': choose one of adama"),
        ({}, r"methods\.new has no kind: choose one of"),
        ({"kind": "g2g"}, r"methods\.new \(g2g\): needs the setting 'arm'"),
        ({"kind": "no-skill", "rule": "luck"}, r"methods\.new \(no-skill\): rule = 'luck'"),
        ({"kind": "no-skill", "rule": "random", "x": 1}, r"has no setting 'x'; its settings: rule"),
        ({"kind": "g2g", "arm": "nope"}, r"methods\.new\.arm = 'nope' is not there: choose from"),
        ({"kind": "biovil", "encoder": "nope"}, r"methods\.new\.encoder = 'nope' is not there"),
        (
            {"kind": "no-skill", "rule": "random", "label": "mean box"},
            r"methods\.mean-box and methods\.new are both called 'mean box'|methods\.new and",
        ),
    ],
)
def test_an_unusable_row_is_one_line_before_anything_runs(tiny, row, said):
    settings = config.load("smoke", **TINY | {"methods.new": row})
    with pytest.raises(config.ConfigError, match=said) as caught:
        products.plan(settings)
    assert "\n" not in str(caught.value)


def test_rows_have_usable_names(tmp_path):
    row = {"kind": "no-skill", "rule": "random"}
    with pytest.raises(config.ConfigError, match="row 'mean box': name it by letters"):
        config.load("smoke", **{"methods": {"mean box": row}})
    text = (config.CONFIGS / "smoke.yaml").read_text()
    twice = text.replace("  random: {", "  mean-box: {kind: no-skill, rule: random}\n  random: {")
    (tmp_path / "twice.yaml").write_text(twice)
    with pytest.raises(config.ConfigError, match="key 'mean-box' occurs twice"):
        config.load(str(tmp_path / "twice.yaml"))


def test_a_plan_imports_nothing_heavy():
    code = (
        "import sys; from g2g_utils import config; from g2g_utils.experiment import plan; "
        "c = config.load('paper'); p = plan.plan(c); plan.key(c, list(p)[-1]); "
        "print([m for m in ('torch', 'pandas', 'diffusers', 'scipy') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout.strip() == "[]", run.stdout + run.stderr


# -- real data: what is trained on ------------------------------------------------------------


@pytest.fixture(scope="module")
def standins(script):
    return script("tests/standins.py")


@pytest.fixture
def real(standins, monkeypatch, tmp_path):
    """Loads `open` on a folder of films, with what is overridden."""
    monkeypatch.setenv("G2G_BUILD", str(tmp_path / "build"))
    world = standins.real_profile(tmp_path, films=40)

    def load(**more):
        return config.load("open", **world | more)

    return load


def test_other_patients_are_other_training_pairs(real):
    arm, alone = "ldm/domain-frozen-s4200", {"data.validation_from": None, "data.test_from": None}
    assert products.key(real(), arm) == products.key(real(**{"data.validation": 1}), arm)
    assert products.key(real(), arm) != products.key(real(**alone), arm)
    before = products.key(real(), arm)
    table = next(real().data.root.glob("*.csv"))
    table.write_text(table.read_text().replace("effusion", "oedema", 1))
    assert products.key(real(), arm) != before


def test_a_larger_ms_cxr_is_left_out_of_training(standins, tmp_path, monkeypatch):
    monkeypatch.setenv("G2G_BUILD", str(tmp_path / "build"))
    standins.mimic_cxr(tmp_path / "mimic")
    standins.ms_cxr(tmp_path / "all")
    row = {"dicom_id": "aaaa0007", "path": "files/p10/p10000004/s50000006/aaaa0007.jpg"}
    standins.ms_cxr(tmp_path / "some", rows=[standins.ms_cxr_row(**row)])
    films = str(tmp_path / "mimic")

    def load(name):
        held = {"source": "ms_cxr", "root": str(tmp_path / name), "images": films}
        both = {"data.validation_from": held, "data.test_from": held}
        return config.load("paper", **{"data.root": films, **both})

    products.ensure(load("some"), "pairs")
    trained_on = set(products.training_texts(load("all")).image_ids)
    tested = {pair.image_id for pair in products.evaluation_pairs(load("all"))}
    assert trained_on and tested and not trained_on & tested


def test_training_on_test_patients_is_refused(real, monkeypatch):
    settings = real(**{"data.validation_from": None, "data.test_from": None})
    products.ensure(settings, "pairs")
    held = products.evaluation_pairs(settings)[0]
    texts = products.training_texts(settings)
    apart.check_training(settings, texts)
    leaked = replace(texts, image_ids=[*texts.image_ids, held.image_id])
    with pytest.raises(config.ConfigError, match=rf"trained on, such as image {held.image_id}"):
        apart.check_training(settings, leaked)


def test_an_evaluation_that_was_stopped_goes_on_where_it_was(real, monkeypatch):
    monkeypatch.setattr(scores, "PART", 2)
    settings, name = real(), "scores/domain-frozen-s4200"
    count = len(products.evaluation_pairs(settings))
    scored, score = [], benchmark.score

    def stop_at(limit):
        def spy(method, pairs, **options):
            if len(scored) >= limit:
                raise KeyboardInterrupt
            scored.extend(pairs)
            return score(method, pairs, **options)

        return spy

    monkeypatch.setattr(benchmark, "score", stop_at(2))
    with pytest.raises(KeyboardInterrupt):
        products.ensure(settings, name)
    assert len(scored) == 2 < count
    monkeypatch.setattr(benchmark, "score", stop_at(count))
    made = products.ensure(settings, name)
    assert len(scored) == count  # none of them twice
    rows = pd.read_csv(made / "scores.csv")
    method = G2G("arm", products.model(settings), products.grounding_options(settings))
    expected = score(method, products.evaluation_pairs(settings))
    assert list(rows["image_id"]) == list(expected["image_id"])
    assert rows["cnr"].to_numpy() == pytest.approx(expected["cnr"].to_numpy(), abs=1e-4)
    assert rows["specificity"].to_numpy() == pytest.approx(
        expected["specificity"].to_numpy(), abs=1e-4, nan_ok=True
    )
