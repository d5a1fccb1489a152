"""Costs are computed from the profile; the dry run says what is missing; docs/running.md agrees."""

import re
import subprocess

import pytest
import yaml

from g2g_utils import config
from g2g_utils.experiment import costs, plan


@pytest.fixture(scope="module")
def standins(script):
    return script("tests/standins.py")


def test_costs_of_the_paper_follow_from_its_settings():
    settings = config.load("paper")
    found = costs.costs(settings, step_seconds=2.0)
    assert found.runs == 9 and found.samples == 256
    assert found.parameters == found.trained == 859_520_964  # Stable Diffusion 1.5's U-Net
    assert found.gpu_hours == pytest.approx(9 * 30000 * 8 * 2 / 3600)
    assert found.latents == 377110 * 2 * 4 * 64 * 64 * 2
    assert found.memory == 5 * 4 * found.parameters
    assert costs.costs(settings).gpu_hours is None
    assert "not measured" in "\n".join(costs.costs(settings).lines())


def test_accumulation_and_lora_count(standins, tmp_path):
    sd = str(standins.stable_diffusion(tmp_path))
    settings = config.load("open", **{"unet.pretrained": sd, "adaptation.lora_rank": 4})
    found = costs.costs(settings, step_seconds=1.0)
    assert found.samples == 32 and found.gpu_hours == pytest.approx(2 * 6000 * 8 / 3600)
    from g2g_utils import models

    unet = models.load_unet(sd)
    assert sum(p.numel() for p in unet.parameters()) == found.parameters
    models.adapt_unet(unet, settings.adaptation, 32)
    assert sum(p.numel() for p in unet.parameters() if p.requires_grad) == found.trained


def test_released_weights_cost_no_training():
    settings = config.load("paper", **{"adaptation.released": "FelixNuetzel/cxr_bert_ldm"})
    assert costs.costs(settings, step_seconds=1.0).gpu_hours == 0
    assert any("unet_ema/config.json of FelixNuetzel" in line for line in costs.missing(settings))


def test_what_is_missing_is_listed_and_what_is_there_is_not(standins, tmp_path):
    absent = "\n".join(costs.missing(config.load("paper", **{"data.root": str(tmp_path / "no")})))
    for part in ("mimic_cxr: ", "no such folder", "hf download openai/clip", "--include 'unet/*'"):
        assert part in absent
    world = standins.real_profile(tmp_path, films=4) | {"methods.biovil.image": None}
    (optional,) = costs.missing(config.load("open", **world))
    assert optional.startswith("optional: ") and "convert monai" in optional
    standins.mimic_cxr(tmp_path / "mimic")
    present = {"data.root": str(tmp_path / "mimic")}
    assert not [x for x in costs.missing(config.load("paper", **present)) if x.startswith("mimic")]


@pytest.fixture
def missing(standins, tmp_path):
    """What is said to be missing of the data of `paper`, whose parts the test may take away."""
    standins.mimic_cxr(tmp_path / "mimic")
    standins.ms_cxr_coco(tmp_path / "coco")
    standins.chestxray14(tmp_path / "nih")
    roots = {"data": "mimic", "data.validation_from": "nih", "data.test_from": "coco"}
    own = {f"{part}.root": str(tmp_path / name) for part, name in roots.items()}

    def said(**more):
        lines = costs.missing(config.load("paper", **own | more))
        return [line for line in lines if not line.startswith(("weights", "optional"))]

    return said


def test_any_edition_of_a_table_will_do(missing, tmp_path):
    assert missing() == []
    next((tmp_path / "coco").iterdir()).unlink()
    (line,) = missing()
    assert "ms_cxr" in line and ".csv or " in line and ".json" in line


def test_absent_images_and_reports_of_mimic_are_listed(missing, tmp_path):
    (tmp_path / "mimic" / "files").rename(tmp_path / "moved")
    images, reports = missing()
    assert "mimic_cxr: no images such" in images and "no reports such" in reports
    (tmp_path / "mimic" / "mimic-cxr-reports.zip").touch()
    assert missing() == [images]
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "moved").rename(tmp_path / "elsewhere" / "files")
    assert missing(**{"data.images": str(tmp_path / "elsewhere")}) == []


def test_absent_reports_of_openi_are_listed(standins, tmp_path):
    places = {"data.root": standins.openi(tmp_path / "openi")}
    for split in ("validation", "test"):
        places[f"data.{split}_from.root"] = standins.chestxray14(tmp_path / "nih")
    settings = config.load("open", **{key: str(place) for key, place in places.items()})
    assert not [line for line in costs.missing(settings) if line.startswith("openi")]
    (tmp_path / "openi" / "indiana_reports.csv").unlink()
    (line,) = [line for line in costs.missing(settings) if line.startswith("openi")]
    assert "no file indiana_reports*.csv" in line
    (tmp_path / "openi" / "ecgen-radiology").mkdir()
    assert not [line for line in costs.missing(settings) if line.startswith("openi")]


def test_a_config_without_weights_is_listed(standins, tmp_path):
    world = standins.real_profile(tmp_path, films=4) | {"methods.biovil.image": None}
    (tmp_path / "sd" / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    (tmp_path / "clip" / "model.safetensors").rename(tmp_path / "clip" / "training_args.bin")
    clip, unet = (x for x in costs.missing(config.load("open", **world)) if "cxr_ldm" not in x)
    assert f"no *.safetensors or *.bin of {tmp_path / 'clip'}" in clip
    assert f"no unet/*.safetensors or *.bin of {tmp_path / 'sd'}" in unet
    assert f"HUB_ID --local-dir {tmp_path / 'sd'} --include 'unet/*'" in unet


def test_a_text_encoder_in_a_pipeline_is_looked_for_there():
    own = {"kind": "clip", "pretrained": "some/pipeline", "subfolder": "text_encoder"}
    said = "\n".join(costs.missing(config.load("paper", **{"encoders.generic": own})))
    for part in ("text_encoder", "tokenizer"):
        assert f"hf download some/pipeline --include '{part}/*'" in said


@pytest.mark.parametrize("profile", ["paper", "open"])
def test_the_page_holds_the_computed_sheet(root, profile):
    text = (root / "docs" / "running.md").read_text()
    for line in costs.costs(config.load(profile)).lines():
        assert line in text, f"docs/running.md lacks: {line}"


def test_a_dry_run_calls_the_sheet(root):
    """The sheet comes before the graph of jobs, under --dry-run alone."""
    script = (root / "run_all.sh").read_text()
    before, _, after = script.partition("-m g2g_utils costs")
    assert "--dry-run" in before.rsplit("if [[", 1)[1] and "snakemake" in after
    assert subprocess.run(["bash", "-n", str(root / "run_all.sh")]).returncode == 0


def test_g2d_at_the_papers_size(root):
    """The commented lines of `paper` are a profile; its costs and what is absent are known."""
    text = (root / "configs" / "paper.yaml").read_text()
    block = re.search(r"(?m)^# g2d:\n(# {3}.*\n)+", text)[0]
    lines = [line.removeprefix("# ") for line in block.splitlines()]
    encoder = yaml.safe_load(re.search(r"# (clinicalbert: .*)", text)[1])
    row = yaml.safe_load(re.search(r"# (g2d: {kind.*)", text)[1])
    given = yaml.safe_load("\n".join(lines))["g2d"]
    settings = config.load(
        "paper",
        image_size=256,
        g2d=given,
        **{"encoders.clinicalbert": encoder["clinicalbert"], "methods.g2d": row["g2d"]},
    )
    assert {"g2d-warmup/4-s0", "g2d/vla-s0", "g2d/ps-s0", "scores/g2d"} <= set(plan.plan(settings))
    first, second = costs.dense_lines(settings)
    assert "3 trainings, 80200 updates of 256 films of 256x256 pixels, 33.0 million" in first
    assert "1.31 EFLOP" in first and "0.5 GB for weights" in second
    said = "\n".join(costs.missing(settings))
    assert "Bio_ClinicalBERT" in said and "no data/g2d/resnet50.pth" in said
    assert costs.dense_lines(config.load("paper")) == []
