"""Bring the models of a profile to a login node and check its data: ./run_all.sh fetch PROFILE.

Compute nodes often have no internet. Fetched files lie in the hub's cache (HF_HOME), which jobs
read with HF_HUB_OFFLINE=1. Exit status 1 if something is missing.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from g2g_utils import config as profiles
from g2g_utils import tagger
from g2g_utils.data import check
from g2g_utils.experiment import costs
from g2g_utils.methods.registry import File
from g2g_utils.models import registry

TEXT = ["*.json", "*.txt", "*.safetensors", "*.bin"]  # of a text encoder
LEFT = ["*fp16*", "*non_ema*", "*.ckpt", "*.msgpack", "*.h5", "*.onnx*", "*.ot"]  # never loaded


def wanted(config: profiles.Config) -> dict[tuple[str, str | None], list[str]]:
    """(hub id or folder, revision) -> patterns of the files that the profile loads."""
    found: dict[tuple[str, str | None], list[str]] = {}

    def add(source: str | None, revision: str | None, *patterns: str) -> None:
        if source:
            found.setdefault((source, revision), []).extend(patterns)

    add(config.vae.pretrained, config.vae.revision, "vae/*")
    add(config.unet.pretrained, config.unet.revision, "unet/*")
    add(config.unet.scheduler, config.unet.revision, "scheduler/*")
    add(config.adaptation.released, config.adaptation.revision, "unet*/*")
    for encoder in costs.used_encoders(config):
        if encoder.pretrained:
            inner = [f"{encoder.subfolder}/*", "tokenizer/*"] if encoder.subfolder else TEXT
            add(*registry.resolve(encoder.pretrained, encoder.revision), *inner)
    return found


def fetch(source: str, revision: str | None, patterns: list[str]) -> str:
    """Bring one model; return its place. Folders are only looked at."""
    from huggingface_hub import snapshot_download

    if Path(source).exists():
        return source
    return snapshot_download(
        source, revision=revision, allow_patterns=patterns, ignore_patterns=LEFT
    )


def fetch_file(file: File) -> str:
    """Bring a method's published file to the profile's place for it; return that place."""
    from huggingface_hub import hf_hub_download

    if not file.path.is_file():
        found = hf_hub_download(
            file.hub_id, file.name, revision=file.revision, local_dir=file.path.parent
        )
        Path(found).rename(file.path)
    return str(file.path)


def models(config: profiles.Config) -> dict[str, Callable[[], str]]:
    """Name of each model of a profile -> the function that fetches it and returns its place."""
    found: dict[str, Callable[[], str]] = {
        f"{source} ({revision or 'newest'})": partial(fetch, source, revision, patterns)
        for (source, revision), patterns in wanted(config).items()
    }
    found |= {file.name: partial(fetch_file, file) for file in costs.method_files(config)}
    return found


def fetch_tagger(config: profiles.Config) -> str:
    """Install scispaCy's model where the profile names it; one line on what came of it, or "".

    Nothing fails without: the word list stands in, and evaluations are named by it.
    """
    if config.grounding.spacy_model != tagger.SCISPACY:
        return ""
    if not tagger.installed():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
        run = subprocess.run([*command, tagger.SCISPACY_FILE], capture_output=True, text=True)
        if run.returncode:
            said = (run.stderr.strip().splitlines() or ["pip failed"])[-1]
            return f"optional: no scispaCy model, {tagger.NOTE} ({said})"
    return f"content words: {tagger.name(tagger.SCISPACY)}"


def main() -> None:
    """Fetch models, then check the data."""
    config = profiles.load(sys.argv[1])
    missing, tasks = 0, models(config)
    if not tasks:
        print(f"{config.profile}: no models to fetch, all are made here")
    for name, task in tasks.items():
        try:
            print(f"{name}: {task()}", flush=True)
        except Exception as error:  # the hub raises many kinds: each is one line here
            missing += 1
            line = (str(error).strip().splitlines() or [type(error).__name__])[0]
            print(f"error: {name}: {line}", file=sys.stderr)
    if line := fetch_tagger(config):
        print(line, flush=True)
    for arm in config.training.arms:
        if line := costs.absent_pipeline(config, arm):
            print(f"optional: {line}", flush=True)
    if missing:
        place = os.environ.get("HF_HOME", "~/.cache/huggingface")
        print(f"error: {missing} of {len(tasks)} models missing in {place}", file=sys.stderr)
    sys.exit(max(int(missing > 0), check.main([config.profile])))


if __name__ == "__main__":
    main()
