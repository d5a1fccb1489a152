"""Costs of a profile and its missing files, before anything runs: `python -m g2g_utils costs`.

All numbers are computed from the profile and from sizes of the models. Time needs a measured step
time; without one it reads "not measured".
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from g2g_utils.config import Config, Data, Encoder, HeldOut
from g2g_utils.data import chestxray14, mimic_cxr, ms_cxr, openi, rsna, siim, sources, tables
from g2g_utils.experiment import plan
from g2g_utils.methods.registry import File, rows
from g2g_utils.models import registry
from g2g_utils.runs import places

SD15_UNET: dict[str, Any] = {  # sizes of Stable Diffusion 1.5's U-Net, where its config is absent
    "sample_size": 64,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}
REDUCTION, CHANNELS = 8, 4  # of Stable Diffusion's VAE
WIDTH = 768  # of the published text encoders
FLOAT, HALF = 4, 2  # bytes
LOOKED_FOR: dict[str, tuple[tuple[str, ...], ...]] = {  # tables of a source, each in any edition
    "mimic_cxr": ((mimic_cxr.METADATA,), (mimic_cxr.SPLIT,)),
    "ms_cxr": (ms_cxr.TABLES,),
    "chestxray14": ((chestxray14.BOXES,),),
    "rsna": ((rsna.LABELS,),),
    "siim": (siim.TABLES,),
    "openi": ((openi.REPORTS, openi.XML_FOLDER), (openi.PROJECTIONS,)),
}
PATIENTS = 100  # of MIMIC-CXR; one of them must have an image and a report


@dataclass(frozen=True)
class Costs:
    """Costs of a profile's fine-tuning: bytes, hours (None: not measured), counts."""

    runs: int
    updates: int  # optimiser steps a run
    samples: int  # of an update, shared by all processes
    parameters: int  # of the U-Net
    trained: int  # of them
    latents: int  # bytes on disk at most
    weights: int  # bytes on disk of all runs
    checkpoint: int  # bytes on disk while a run lasts
    memory: int  # bytes on a GPU without activations
    gpu_hours: float | None

    def lines(self) -> list[str]:
        """The sheet, one fact per line."""
        hours = "not measured" if self.gpu_hours is None else f"{self.gpu_hours:.0f}"
        share = f"{self.trained / 1e6:.1f} of {self.parameters / 1e6:.1f} million weights"
        return [
            f"fine-tunings: {self.runs} of {self.updates} updates, {self.samples} samples each, "
            f"{share} trained",
            f"GPU-hours of fine-tuning: {hours}",
            f"disk: latents at most {_gb(self.latents)}, fine-tuned weights {_gb(self.weights)}, "
            f"one checkpoint {_gb(self.checkpoint)} while a run lasts",
            f"GPU memory: {_gb(self.memory)} for weights, gradients, optimiser and average; "
            "activations come on top (benchmarks/memory.py)",
        ]


def _gb(count: float) -> str:
    return f"{count / 1e9:.1f} GB"


def costs(config: Config, step_seconds: float | None = None) -> Costs:
    """Costs of fine-tuning all arms and seeds of a profile.

    Args:
        step_seconds: measured wall seconds of one forward and backward pass of
            `training.batch_size` samples on one GPU. None: GPU-hours are unknown.
    """
    options, adaptation = config.training, config.adaptation
    runs = sum(name.startswith("ldm/") for name in plan.plan(config))
    unet = unet_shape(config)
    total = sum(shape.numel() for _, shape in unet)
    trained = _lora_size(unet, adaptation.lora_rank) if adaptation.lora_rank else total
    side = config.image_size // REDUCTION
    passes = runs * options.steps * options.accumulate
    return Costs(
        runs=runs,
        updates=options.steps,
        samples=options.batch_size * options.accumulate,
        parameters=total,
        trained=trained,
        latents=config.data.train * 2 * CHANNELS * side**2 * HALF,
        weights=runs * trained * FLOAT,
        checkpoint=(total + 3 * trained) * FLOAT,  # weights, two moments, average
        memory=(total + 4 * trained) * FLOAT,  # and gradients
        gpu_hours=None if step_seconds is None else passes * step_seconds / 3600,
    )


def dense_lines(config: Config) -> list[str]:
    """Costs of G2D's trainings, one fact per line; none where the profile has no `g2d:`.

    Arithmetic is three forwards of encoder and decoder a film; text states are computed once.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from g2g_utils.models import g2d

    if config.g2d is None:
        return []
    settings, side = config.g2d, config.image_size
    text = config.encoders[settings.text]
    width = WIDTH if text.pretrained else text.width
    with torch.device("meta"):
        shape = g2d.Shape(side, width, settings.encoder, settings.joint, settings.heads)
        network = g2d.G2D(shape).eval()
        with FlopCounterMode(display=False) as counted:
            network(torch.empty(1, 1, side, side))
    total = sum(p.numel() for p in network.parameters())
    names = [name for name in plan.plan(config) if name.startswith(("g2d/", "g2d-warmup/"))]
    arms = sum(name.startswith("g2d/") for name in names)
    steps = arms * settings.steps + (len(names) - arms) * settings.warmup_steps
    operations = 3 * counted.get_total_flops() * steps * settings.batch_size
    return [
        f"G2D: {len(names)} trainings, {steps} updates of {settings.batch_size} films of "
        f"{side}x{side} pixels, {total / 1e6:.1f} million weights, {operations / 1e18:.3g} EFLOP",
        f"G2D: memory {_gb(4 * total * FLOAT)} for weights, gradients and optimiser (activations "
        f"on top); weights on disk {_gb(len(names) * total * FLOAT)}",
    ]


def unet_shape(config: Config) -> list[tuple[str, Any]]:
    """Names and shapes of the U-Net's weights, from its config. No weights are made or read."""
    import torch
    from diffusers import UNet2DConditionModel

    source, sizes = config.unet.pretrained, SD15_UNET
    for subfolder in ("unet_ema", "unet"):
        if source and (Path(source) / subfolder / "config.json").is_file():
            sizes = UNet2DConditionModel.load_config(source, subfolder=subfolder)
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(sizes)
    return [(name, value.shape) for name, value in unet.named_parameters()]


def _lora_size(unet: list[tuple[str, Any]], rank: int) -> int:
    """Number of weights that a LoRA adds to the attention of the U-Net."""
    from g2g_utils.models import LORA_TARGETS

    ends = tuple(f".{target}.weight" for target in LORA_TARGETS)
    return sum(rank * (shape[0] + shape[1]) for name, shape in unet if name.endswith(ends))


# ---------------------------------------------------------------- what is missing on disk


def missing(config: Config) -> list[str]:
    """Tables, folders and weights that a profile names and that are absent, with the fix."""
    return [*_missing_data(config), *_missing_weights(config)]


def unsupported(config: Config) -> list[str]:
    """Settings of the profile's U-Nets and VAE that cannot work, from their config.json."""
    from g2g_utils.models.checkpoints import stored_config
    from g2g_utils.models.supported import problems

    place = config.vae
    vae = stored_config(place.pretrained, "vae", place.revision) if place.pretrained else None
    released = config.adaptation.released, "unet_ema", config.adaptation.revision
    found: dict[str, None] = {}
    for source, part, revision in (
        (config.unet.pretrained, "unet", config.unet.revision),
        released,
    ):
        unet = stored_config(source, part, revision) if source else None
        lines = problems(unet, vae)
        found |= dict.fromkeys(f"model: {source or place.pretrained}: {line}" for line in lines)
    return list(found)


def _missing_data(config: Config) -> Iterator[str]:
    data = config.data
    parts: list[Data | HeldOut] = [] if data.source == "phantoms" else [data]
    parts += [part for part in (data.validation_from, data.test_from) if part]
    places = {(part.source, part.root, part.images): None for part in parts}
    for source, root, images in places:
        assert root is not None  # the configuration's own check
        place = sources.resolve(root)
        found = [*_missing_tables(place, source)]
        if source == "mimic_cxr" and place.is_dir():
            found += _missing_studies(images or root, data.reports or root)
        yield from (f"{source}: {problem}" for problem in dict.fromkeys(found))


def _missing_tables(place: Path, source: str) -> Iterator[str]:
    """Complaints about absent tables of a folder. The place may be a table itself."""
    for patterns in LOOKED_FOR.get(source, (("*.csv",),)):
        try:
            if not place.is_file():
                tables.locate(place, *patterns)
        except tables.TableError as error:
            yield str(error)


def _missing_studies(images: Path, reports: Path) -> Iterator[str]:
    """Complaints if the first patients of MIMIC-CXR have no image or report."""
    archives = (sources.resolve(reports), sources.resolve(reports) / mimic_cxr.REPORTS)
    zipped = any(archive.is_file() for archive in archives)
    for what, root, pattern in (("images", images, "s*/*.jpg"), ("reports", reports, "s*.txt")):
        if what == "reports" and zipped:
            continue
        folder = mimic_cxr.folder_of(sources.resolve(root), "").parents[1]
        patients = islice(folder.glob("p*/p*"), PATIENTS)
        if not any(any(patient.glob(pattern)) for patient in patients):
            yield f"no {what} such as {folder}/p10/p10000032/{pattern}; {tables.README}"


def _missing_weights(config: Config) -> Iterator[str]:
    wanted: dict[tuple[str, str | None, str], None] = {}
    for source, revision, file in (
        (config.vae.pretrained, config.vae.revision, "vae/config.json"),
        (config.unet.pretrained, config.unet.revision, "unet/config.json"),
        (config.unet.scheduler, config.unet.schedule_revision, "scheduler/scheduler_config.json"),
        (config.adaptation.released, config.adaptation.revision, "unet_ema/config.json"),
    ):
        if source:
            wanted[source, revision, file] = None
    for encoder in used_encoders(config):
        if encoder.pretrained:
            place = registry.resolve(encoder.pretrained, encoder.revision)
            inner = [f"{encoder.subfolder}/config.json", "tokenizer/tokenizer_config.json"]
            files = inner if encoder.subfolder else ["config.json"]
            wanted |= {(*place, file): None for file in files}
    for source, revision, file in sorted(wanted, key=str):
        if absent := _absent(source, revision, file):
            part = ["--include", f"'{Path(file).parent}/*'"] if "/" in file else []
            fix = registry.command(source, revision, *part)
            yield f"weights: no {absent} of {source}: run `{fix}`"
    start = config.g2d and config.g2d.start
    if start and not (places.ROOT / start.expanduser()).is_file():
        yield f"weights: no {start}: put G2D's first weights there or drop g2d.start"
    for arm in config.training.arms:
        if line := absent_pipeline(config, arm):
            yield f"optional: {line}"
    for published in method_files(config):
        if not published.path.is_file():
            yield f"optional: no {published.path}: `{published.command}`"


def absent_pipeline(config: Config, arm: str | None) -> str:
    """What an arm's own pipeline lacks, and where to get it; "" if it is whole or has none."""
    folder = plan.pipeline(config, arm) if arm else None
    if folder is None:
        return ""
    from g2g_utils.models import monai

    absent = monai.missing(folder)
    return f"{folder} has no {absent}; {monai.how(folder)}" if absent else ""


def method_files(config: Config) -> list[File]:
    """Published files that the profile's methods read."""
    return [file for row in rows(config).values() for file in row.kind.files(row.settings)]


def used_encoders(config: Config) -> list[Encoder]:
    """Text encoders of the training arms and of methods that have none."""
    arms = config.training.arms.items()  # an absent pipeline leaves no use for its encoder
    used = {arm.encoder for name, arm in arms if not absent_pipeline(config, name)}
    used |= {name for row in rows(config).values() for name in row.kind.encoders(row.settings)}
    used |= {config.g2d.text} if config.g2d else set()
    return [encoder for name, encoder in config.encoders.items() if name in used]


def _absent(source: str, revision: str | None, file: str) -> str:
    """The absent file on this machine: a config, or the weights beside a config.json; or ""."""
    config = registry.find(source, file, revision)
    if config is None:
        return file
    if config.name == "config.json" and not registry.weights(config.parent):
        return str(Path(file).parent / "*.safetensors or *.bin")
    return ""


def sheet(config: Config, step_seconds: float | None = None) -> str:
    """Products and their state, costs, and missing files, for a dry run."""
    products = plan.plan(config)
    made = [name for name in products if plan.find(config, name) is not None]
    lines = [f"profile {config.profile}: {len(made)} of {len(products)} products are there"]
    lines += [
        f"  {'made' if name in made else 'to do':6} {name}"
        + (f"  <- {', '.join(needs)}" if needs else "")
        for name, needs in products.items()
    ]
    if config.unet.pretrained:
        lines += ["costs:", *(f"  {x}" for x in costs(config, step_seconds).lines())]
    if dense := dense_lines(config):
        lines += [] if config.unet.pretrained else ["costs:"]
        lines += [f"  {line}" for line in dense]
    absent = missing(config)
    lines += ["missing on disk:" if absent else "missing on disk: nothing that was looked for"]
    lines += [f"  {item}" for item in absent]
    wrong = unsupported(config)
    return "\n".join([*lines, *(["cannot be used:"] if wrong else []), *(f"  {x}" for x in wrong)])
