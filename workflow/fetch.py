"""On a login node: bring the models of a profile, check its data: ./run_all.sh fetch PROFILE.

Compute nodes often have no internet. What is fetched here lies in the hub's cache (HF_HOME), which
jobs read with HF_HUB_OFFLINE=1. Exit status 1 if something is missing.
"""

import os
import sys
from pathlib import Path

from g2g_utils import config as profiles
from g2g_utils.data import check

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
    for encoder in config.encoders.values():
        add(encoder.pretrained, encoder.revision, "*.json", "*.txt", "*.safetensors", "*.bin")
    return found


def fetch(source: str, revision: str | None, patterns: list[str]) -> str:
    """Bring one model; returns where it lies. Folders are only looked at."""
    from huggingface_hub import snapshot_download

    if Path(source).exists():
        return source
    return snapshot_download(
        source, revision=revision, allow_patterns=patterns, ignore_patterns=LEFT
    )


def main() -> None:
    """Models first, then the data."""
    config = profiles.load(sys.argv[1])
    missing = 0
    models = wanted(config)
    if not models:
        print(f"{config.profile}: no models to fetch, all are made here")
    for (source, revision), patterns in models.items():
        try:
            print(f"{source}: {fetch(source, revision, patterns)}", flush=True)
        except Exception as error:  # the hub raises many kinds: each is one line here
            missing += 1
            line = str(error).strip().splitlines()[0]
            print(f"error: {source} ({revision or 'newest'}): {line}", file=sys.stderr)
    if missing:
        place = os.environ.get("HF_HOME", "~/.cache/huggingface")
        print(f"error: {missing} of {len(models)} models missing in {place}", file=sys.stderr)
    sys.exit(max(int(missing > 0), check.main([config.profile])))


if __name__ == "__main__":
    main()
