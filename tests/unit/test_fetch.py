"""What a login node fetches: every model of a profile, by id and revision, and what is missing."""

import sys

import huggingface_hub
import pytest

from g2g_utils import config

IMAGE = "biovil_image_resnet50_proj_size_128.pt"


@pytest.fixture
def fetch(script):
    return script("workflow/fetch.py")


def test_every_model_of_the_paper_is_fetched_and_phantoms_need_none(fetch):
    found = fetch.wanted(config.load("paper", **{"vae.revision": "abc", "unet.revision": "abc"}))
    diffusion = found[("stable-diffusion-v1-5/stable-diffusion-v1-5", "abc")]
    assert diffusion == ["vae/*", "unet/*", "scheduler/*"]
    assert ("microsoft/BiomedVLP-CXR-BERT-specialized", None) in found
    released = config.load("paper", **{"adaptation.released": "FelixNuetzel/cxr_bert_ldm"})
    assert ("FelixNuetzel/cxr_bert_ldm", None) in fetch.wanted(released)
    assert fetch.wanted(config.load("smoke")) == {}


def test_what_is_wanted_are_hub_ids_of_the_encoders_that_arms_use(fetch):
    arms = {"biovil-t": {"encoder": "biovil-t"}, "radbert": {"encoder": "radbert"}}
    found = fetch.wanted(config.load("paper", **{"training.arms": arms}))
    assert {source for source, _ in found} == {
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
        "microsoft/BiomedVLP-BioViL-T",
        "StanfordAIMI/RadBERT",
        "microsoft/BiomedVLP-CXR-BERT-specialized",  # reads the phrases for BioViL
    }
    assert ("microsoft/BiomedVLP-BioViL-T", "v1.0") in found
    own = {"kind": "clip", "pretrained": "some/pipeline", "subfolder": "text_encoder"}
    found = fetch.wanted(config.load("paper", **{"encoders.generic": own}))
    assert found["some/pipeline", None] == ["text_encoder/*", "tokenizer/*"]
    assert not any("CLIP-ViT-H" in source for source, _ in found)  # of no arm


def test_biovils_image_model_goes_where_the_profile_looks_for_it(fetch, monkeypatch, tmp_path):
    asked = []

    def hf_hub_download(source, file, revision, local_dir):
        asked.append((source, revision))
        (local_dir / file).parent.mkdir(parents=True, exist_ok=True)
        (local_dir / file).write_text("weights")
        return str(local_dir / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hf_hub_download)
    place = tmp_path / "biovil" / "own.pt"
    task = fetch.models(config.load("paper", **{"methods.biovil.image": str(place)}))[IMAGE]
    assert [task(), task()] == [str(place)] * 2 and place.read_text() == "weights"
    assert asked == [("microsoft/BiomedVLP-CXR-BERT-specialized", "v1.1")]  # once
    assert fetch.models(config.load("smoke")) == {}


def test_a_missing_model_is_one_line_and_status_1(fetch, monkeypatch, capsys):
    asked = []

    def snapshot_download(source, **options):
        asked.append(source)
        if "BiomedVLP" in source:
            raise OSError("no route to the hub\nmore")
        return "/cache/" + source

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr(fetch, "fetch_file", str)
    monkeypatch.setattr(fetch.check, "main", lambda arguments: 0)
    monkeypatch.setattr(sys, "argv", ["fetch.py", "paper"])
    with pytest.raises(SystemExit) as stopped:
        fetch.main()
    said = capsys.readouterr()
    assert stopped.value.code == 1 and len(asked) >= 3
    lines = said.err.strip().splitlines()
    assert "BiomedVLP" in lines[0] and "no route" in lines[0] and "1 of" in lines[1]
    assert "/cache/stable-diffusion" in said.out


def test_local_folders_and_failed_data_checks(fetch, monkeypatch, tmp_path):
    assert fetch.fetch(str(tmp_path), None, []) == str(tmp_path)
    monkeypatch.setattr(fetch.check, "main", lambda arguments: 1)
    monkeypatch.setattr(sys, "argv", ["fetch.py", "smoke"])
    with pytest.raises(SystemExit) as stopped:
        fetch.main()
    assert stopped.value.code == 1
