"""What a login node fetches: every model of a profile, by id and revision, and what is missing."""

import sys

import huggingface_hub
import pytest

from g2g_utils import config


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


def test_a_missing_model_is_one_line_and_status_1(fetch, monkeypatch, capsys):
    asked = []

    def snapshot_download(source, **options):
        asked.append(source)
        if "BiomedVLP" in source:
            raise OSError("no route to the hub\nmore")
        return "/cache/" + source

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
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
