"""Copy a profile's trained products to weights/<profile>/ as float16, with their logs and hashes.

    python tools/ship_weights.py miniature

Run it after `./run_all.sh miniature --retrain`, or after a part of that: products that are not in
build/ and were shipped from the same settings stay. Its output is committed, so that the default
run starts from trained models. Each folder keeps the run.json of its training (settings, seeds,
machine, versions) with the hashes of the float16 files.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from g2g_utils import config, runs
from g2g_utils.experiment import products
from g2g_utils.runs import places

SHIPPED = ("vae", "encoders/", "classifier", "ldm/", "novelty/", "presence/", "g2d/", "skill/")
LIMIT_FILE, LIMIT_ALL = 5 * 2**20, 60 * 2**20


def half(source: Path, target: Path) -> None:
    """Save a safetensors file with floating tensors as float16."""
    tensors = load_file(source)
    cast = {n: t.half() if t.is_floating_point() else t for n, t in tensors.items()}
    if any(not torch.isfinite(t.float()).all() for t in cast.values()):
        raise ValueError(f"{source}: values beyond float16")
    save_file({n: t.contiguous() for n, t in cast.items()}, target, metadata={"format": "pt"})


def ship(source: Path, target: Path) -> None:
    """Copy one product: weights in float16, everything else unchanged, run.json last."""
    shutil.rmtree(target, ignore_errors=True)
    for path in sorted(source.rglob("*")):
        place = target / path.relative_to(source)
        unwanted = path.name == "run.json" or path.name.startswith((".", "events"))
        if path.is_dir() or unwanted:
            continue
        place.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".safetensors":
            half(path, place)
        else:
            shutil.copy(path, place)
    record = runs.read_json(source / "run.json")
    runs.write_json(
        target / "run.json",
        record | {"shipped_as": "float16", "outputs": runs.hashes(target)},
    )


def main(profile: str) -> int:
    """Ship every trained product of a profile; stop if something is missing or too large."""
    settings = config.load(profile, retrain=True)
    names = [name for name in products.plan(settings) if name.startswith(SHIPPED)]
    made = {name: products.find(settings, name) for name in names}
    shipped = config.load(profile)
    missing = [n for n in names if made[n] is None and products.find(shipped, n) is None]
    if missing:
        print(f"not trained yet: {', '.join(missing)}", file=sys.stderr)
        return 1
    for name, folder in made.items():
        if folder is not None:  # else what is shipped is still that of these settings
            ship(folder, places.weights(settings) / name)
    sizes = {p: p.stat().st_size for p in places.weights(settings).rglob("*") if p.is_file()}
    large = [str(p) for p, size in sizes.items() if size > LIMIT_FILE]
    print(f"{len(names)} products, {sum(sizes.values()) / 2**20:.1f} MiB")
    if large or sum(sizes.values()) > LIMIT_ALL:
        print(f"too large: {large or 'in all'}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
