"""Shared products of a profile (models, latents, arms): what they depend on, found or made once.

A product is a folder below build/<profile>/ that ends with run.json. `ensure` returns a sound one:
made before, shipped with the repository, or made now under a file lock, so that any number of
notebooks may ask at the same time. Heavy imports happen only when something is made.
"""

from __future__ import annotations

import shutil
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from g2g_utils import runs
from g2g_utils.config import Config, ConfigError
from g2g_utils.experiment.plan import (
    arm_and_seed,
    find,
    folder,
    inputs,
    key,
    loaded_unet,
    needs,
    parameters,
    plan,
)

__all__ = ["arm_and_seed", "ensure", "find", "folder", "key", "model", "needs", "plan", "tables"]

if TYPE_CHECKING:
    from g2g_utils.models import GroundingModel

REFERENCE = 2000  # training images whose features samples are compared with
PART = 128  # pairs after which an evaluation keeps what it has
CLASSIFIED = 8000  # training images at most that the classifier of findings sees


def ensure(config: Config, name: str) -> Path:
    """Folder of a product; made now, with what it needs, if there is none yet."""
    found = find(config, name)
    if found is not None:
        return found
    if runs.processes() > 1:
        return _make_together(config, name)
    with runs.lock(folder(config, name)):
        found = find(config, name)  # another process may have made it while we waited
        if found is None:
            found = _make(config, name)
    return found


def _make_together(config: Config, name: str) -> Path:
    """Build a product in all processes at once (fine-tuning under `accelerate launch`).

    No file lock: start only one launch a product. What it needs must be there already.
    """
    from accelerate import PartialState

    missing = [need for need in plan(config).get(name, []) if find(config, need) is None]
    if missing or not name.startswith("ldm/"):
        need = (missing or [name])[0]
        raise ConfigError(
            f"{runs.processes()} processes can fine-tune together, but {need} is made by one: "
            f"first run `python -m g2g_utils make {need} --profile {config.profile}`"
        )
    state = PartialState()
    if state.is_main_process:
        return _make(config, name, state.wait_for_everyone)
    place, (arm, seed) = folder(config, name), arm_and_seed(config, name.partition("/")[2])
    state.wait_for_everyone()
    fine_tune(config, arm, seed, place)  # ends the process group: nothing to wait for afterwards
    return place


def _make(config: Config, name: str, ready: Callable[[], None] = lambda: None) -> Path:
    """Build one product (the lock is held): dependencies first, run.json with its key last.

    ready() is called when the folder is there and holds nothing that cannot be resumed.
    """
    place = folder(config, name)
    if (place / "run.json").exists():  # finished but damaged: nothing to resume but shards
        _forget(place)
    place.mkdir(parents=True, exist_ok=True)
    ready()
    begin = time.time()
    if not config.retrain and (config.weights_dir / name / "run.json").is_file():
        why = "is of other settings than these, or damaged: it is made anew"
        print(f"weights/{config.profile}/{name} {why}", file=sys.stderr)
    kind, _, item = name.partition("/")
    extra = _BUILDERS[kind](config, item, place) or {}
    shutil.rmtree(place / "checkpoint", ignore_errors=True)
    settings = {"product": name, "key": key(config, name), "parameters": parameters(config, name)}
    runs.record(place, begin, **settings, inputs=inputs(config, name), **extra)
    return place


def _forget(place: Path) -> None:
    """Empty the folder of a damaged product, but for shards, each of which is checked anyway."""
    if any(place.glob("*-of-*.safetensors")):
        (place / "run.json").unlink()
    else:
        shutil.rmtree(place)


def _build_pairs(config: Config, item: str, folder: Path) -> None:
    import numpy as np

    from g2g_utils import text
    from g2g_utils.data import films, sources

    examples = sources.examples(config, "train")
    if isinstance(examples[0].image, Path):  # images stay in their files
        files = {"files": [str(example.image) for example in examples]}
    else:
        images = np.stack([example.load(config.image_size) for example in examples])
        with runs.atomic(folder / "images.npy") as temporary, open(temporary, "wb") as stream:
            np.save(stream, films.to_bytes(images))
        files = {}
    captions = [example.phrase for example in examples]
    regions = [
        {"phrase": r.phrase, "finding": r.finding, "boxes": r.boxes, "image": i}
        for i, example in enumerate(examples)
        for r in example.regions
    ]
    labels = [
        sorted({r.finding for r in example.regions})
        if not files
        else text.named_findings(example.phrase)
        for example in examples
    ]
    names = ("image_id", "subject_id") if files else ()
    ids = {f"{name}s": [getattr(example, name) for example in examples] for name in names}
    texts = {"captions": captions, "labels": labels, "regions": regions} | ids | files
    runs.write_json(folder / "texts.json", texts)


def training_images(config: Config) -> Any:
    """Training images [n, S, S], uint8: a memory map, or files that are read when indexed."""
    import numpy as np

    from g2g_utils.data.films import Films

    made = ensure(config, "pairs")
    if (made / "images.npy").is_file():
        return np.load(made / "images.npy", mmap_mode="r")
    return Films(training_texts(config)["files"], config.image_size)


def training_texts(config: Config) -> dict[str, Any]:
    """Captions, finding labels and described regions (with boxes) of the training images."""
    return runs.read_json(ensure(config, "pairs") / "texts.json")


def _tensor_images(config: Config, rows: slice = slice(None)) -> Any:
    """Training images as float tensor [n, 1, S, S] in [0, 1], all in memory."""
    import torch

    return torch.from_numpy(training_images(config)[rows].copy())[:, None].float() / 255


def _build_vae(config: Config, item: str, folder: Path) -> dict[str, Any]:
    from g2g_utils.training import pretrain

    return pretrain.train_vae(_tensor_images(config), config.vae, folder, config.data.seed)


def _build_latents(config: Config, item: str, folder: Path) -> None:
    from g2g_utils.experiment import assemble
    from g2g_utils.training import finetune

    images, vae = training_images(config), _vae(config).to(assemble.default_device(config))
    ids = training_texts(config).get("files") or [str(k) for k in range(len(images))]
    finetune.cache_latents(vae, images, folder, ids)


def _build_encoder(config: Config, item: str, folder: Path) -> None:
    import torch

    from g2g_utils.data.phantoms import glyphs
    from g2g_utils.training import pretrain

    encoder = config.encoders[item]
    if encoder.objective == "generic":
        arrays, captions = glyphs.generate(config.data.train, config.data.seed)
        images = torch.from_numpy(arrays)
    else:
        images, captions = _tensor_images(config), training_texts(config)["captions"]
    length = config.text.max_length
    pretrain.pretrain_encoder(
        encoder, images, captions, folder, max_length=length, seed=config.data.seed
    )


def untrained_unet(config: Config, seed: int, text_width: int, lora_rank: int | None = None) -> Any:
    """A U-Net before any training here: the pretrained one, or a new one of the profile's shape.

    lora_rank: an arm's own, where it differs from the profile's.
    """
    from g2g_utils import models

    if config.unet.pretrained:
        unet = models.load_unet(config.unet.pretrained, config.unet.revision)
        own = {} if lora_rank is None else {"lora_rank": lora_rank}
        with models.initialised(seed):
            return models.adapt_unet(unet, config.adaptation.model_copy(update=own), text_width)
    channels, side = latent_size(config)
    with models.initialised(seed):
        return models.build_unet(config.unet, channels, side, text_width)


def latent_size(config: Config) -> tuple[int, int]:
    """Channels and side of a latent of the profile's VAE."""
    from g2g_utils import models

    vae = _vae(config)
    levels = len(vae.config.block_out_channels) - 1
    side = config.image_size // (models.unshuffle_factor(vae) * 2**levels)
    return vae.config.latent_channels, side


def _vae(config: Config) -> Any:
    from g2g_utils import models

    return models.load_vae(config.vae.pretrained or ensure(config, "vae"), config.vae.revision)


def start_unet(config: Config, seed: int, text_width: int, lora_rank: int | None = None) -> Any:
    """The U-Net every arm of a seed starts from: pretrained, the foundation's, or a new one."""
    from g2g_utils import models

    unet = untrained_unet(config, seed, text_width, lora_rank)
    if config.unet.foundation_steps and not config.unet.pretrained:
        models.adopt(unet, ensure(config, "foundation") / "unet")
    return unet


def _build_foundation(config: Config, item: str, folder: Path) -> None:
    """A U-Net that knows the images and no words: the small stand-in for Stable Diffusion's."""
    from g2g_utils import models
    from g2g_utils.training import finetune

    seed = config.data.seed
    unet = untrained_unet(config, seed, config.encoders["domain"].width)
    pairs = finetune.load_pairs(ensure(config, "latents"), training_texts(config)["captions"])
    scheduler, steps = models.build_scheduler(config.unet), config.unet.foundation_steps
    finetune.pretrain(pairs, unet, scheduler, config.training, folder, seed=seed, steps=steps)


def text_encoder(config: Config, name: str) -> tuple[Any, Any]:
    """Tokenizer and text encoder of a name in `encoders`: published, or made here."""
    from g2g_utils import models

    encoder = config.encoders[name]
    source = encoder.pretrained or ensure(config, f"encoders/{name}")
    return models.load_text_encoder(source, encoder.revision, encoder.subfolder)


def fine_tune(config: Config, arm: str, seed: int, folder: Path, steps: int | None = None) -> None:
    """Fine-tune one arm into `folder`; `steps` shortens it (notebook 03 shows such a run live)."""
    from g2g_utils import models
    from g2g_utils.experiment import assemble
    from g2g_utils.training import finetune

    spec = config.training.arms[arm]
    tokenizer, encoder = text_encoder(config, spec.encoder)
    assemble.check_length(config, arm, encoder)
    unet = start_unet(config, seed, encoder.config.hidden_size, spec.lora_rank)
    texts = training_texts(config)
    _check_apart(config, texts)
    pairs = finetune.load_pairs(ensure(config, "latents"), texts["captions"])
    finetune.fine_tune(
        pairs, unet, tokenizer, encoder, models.build_scheduler(config.unet), spec,
        config.training, folder, seed=seed, max_length=config.text.max_length,
        zero_padding=config.text.zero_padding, steps=steps, name=f"{arm} seed {seed}",
    )  # fmt: skip


def _check_apart(config: Config, texts: dict[str, Any]) -> None:
    """Refuse to train on images or patients of validation or test pairs of the same collection."""
    from g2g_utils.data import sources

    ids, subjects = set(texts.get("image_ids", ())), set(texts.get("subject_ids", ()))
    if not ids:
        return  # phantoms: those of different splits are drawn apart
    for split in ("validation", "test"):
        held = sources.held_out(config, split)
        source, root = (held or config.data).source, (held or config.data).root
        shared = {source, config.data.source} == {"ms_cxr", "mimic_cxr"}
        if not shared and (source, root) != (config.data.source, config.data.root):
            continue  # other people: equal names mean nothing
        found = sources.examples(config, split)
        both = [e.image_id for e in found if e.image_id in ids or e.subject_id in subjects]
        if both:
            raise ConfigError(
                f"{len(both)} {split} pairs are of patients that are trained on, such as image "
                f"{both[0]}: delete {folder(config, 'pairs')} and look at "
                f"`python -m g2g_utils.data.check {config.profile}`"
            )


def _warn_of_shared(config: Config) -> None:
    """A warning if validation and test are of one collection and share patients."""
    from g2g_utils.data import sources

    one, other = (sources.held_out(config, split) for split in ("validation", "test"))
    if not one or not other or one.source != other.source:
        return  # drawn apart, or of other people: equal names mean nothing
    people = {e.subject_id for e in sources.examples(config, "validation")}
    found = sorted(people & {e.subject_id for e in sources.examples(config, "test")})
    if found:
        warnings.warn(
            f"validation and test share {len(found)} patients, such as {found[0]}: what is chosen "
            "on validation looks better on test than it is",
            stacklevel=2,
        )


def _build_ldm(config: Config, item: str, folder: Path) -> None:
    arm, seed = arm_and_seed(config, item)
    fine_tune(config, arm, seed, folder)


def _build_classifier(config: Config, item: str, folder: Path) -> dict[str, Any]:
    import numpy as np
    import torch

    from g2g_utils.bench import fidelity

    labels = training_texts(config)["labels"]
    steps, seed = config.fidelity.classifier_steps, config.data.seed
    images = training_images(config)
    rows = np.arange(len(images))[:: -(-len(images) // CLASSIFIED)]  # evenly over the patients
    batches = np.array_split(rows, -(-len(rows) // 64))
    small = torch.cat([fidelity.reduced(images[batch]) for batch in batches])
    return fidelity.train_classifier(small, [labels[row] for row in rows], folder, steps, seed)


def grounding_options(config: Config) -> dict[str, Any]:
    """The profile's keywords for `grounding.ground`, without bias merging."""
    return config.grounding.model_dump(exclude={"curve"})


def evaluation_pairs(config: Config, split: str = "test") -> Any:
    """Image-phrase pairs of a split on which results are reported ("test") or choices made."""
    from g2g_utils.data import record, sources

    count = config.evaluation.pairs if split == "test" else config.evaluation.validation_pairs
    found = record.pairs(sources.examples(config, split))[:count]
    if not found:
        raise ConfigError(
            f"profile {config.profile!r} has no {split} pairs with boxes: look at "
            f"`python -m g2g_utils.data.check {config.profile}`"
        )
    return found


def _build_evaluation(config: Config, item: str, folder: Path) -> dict[str, Any]:
    from g2g_utils import grounding
    from g2g_utils.bench import ablations

    grounded = model(config, *arm_and_seed(config, item))
    pairs, options = evaluation_pairs(config), grounding_options(config)
    views = {"pairs": options["layers"]}
    if options["layers"] is not None:  # the paper's map, over all layers, beside the profile's
        views["all_layers"] = None
    others = grounding.draw_others(pairs, config.image_size)

    def plain(rows: slice) -> Any:
        return grounding.evaluate(
            grounded, pairs[rows], others=others[rows], views=views, **options
        )

    both = _in_parts(folder / "parts" / "plain", len(pairs), plain)
    for view, rows in both.groupby("view"):
        _write_table(folder / f"{view}.csv", rows.drop(columns="view"))
    table = both[both["view"] == "pairs"]
    if not config.training.arms[arm_and_seed(config, item)[0]].control:
        count = min(len(pairs), config.evaluation.bias_pairs)
        merged = _in_parts(
            folder / "parts" / "merged",
            count,
            lambda rows: ablations.curves(
                grounded, pairs[:count][rows], others=others[:count][rows], **options
            ),
        )
        _write_table(folder / "curves.csv", merged)
    shutil.rmtree(folder / "parts")
    means = table[["cnr", "auc_roc", "pointing", "specificity"]].mean()
    known = means.dropna()  # specificity is unknown where all pairs have one phrase
    return {"metrics": {name: round(float(value), 5) for name, value in known.items()}}


def _in_parts(place: Path, count: int, score: Callable[[slice], Any]) -> Any:
    """A table of `count` pairs, scored and kept part by part: a killed evaluation goes on there."""
    import pandas as pd

    from g2g_utils.bench import ablations

    parts = []
    for start in range(0, count, PART):
        path = place / f"{start:06}.csv"
        if not path.is_file():
            _write_table(path, score(slice(start, start + PART)))
        parts.append(ablations.read_rows(path))
    return pd.concat(parts, ignore_index=True)


def _build_baselines(config: Config, item: str, folder: Path) -> None:
    from g2g_utils.bench import ablations

    _warn_of_shared(config)
    pairs, side = evaluation_pairs(config), config.image_size
    _, latent = latent_size(config)
    regions = prior_regions(config)
    _write_table(folder / "no_skill.csv", ablations.no_skill_rows(pairs, regions, side, latent))
    baseline = rival(config)
    if baseline is None:
        return
    _write_table(folder / "biovil.csv", ablations.biovil_rows(baseline, pairs, side))


def rival(config: Config) -> Any:
    """The discriminative baseline: the miniature BioViL, the published one, or None (it says why).

    The published one needs its image checkpoint, `config.biovil`.
    """
    from g2g_utils.data import sources
    from g2g_utils.methods import biovil

    domain, length, checkpoint = config.encoders["domain"], config.text.max_length, config.biovil
    if not domain.pretrained:
        return biovil.load(ensure(config, "encoders/domain"), length)
    if checkpoint is not None and sources.resolve(checkpoint).is_file():
        place = sources.resolve(checkpoint)
        return biovil.published(place, domain.pretrained, domain.revision, length)
    print(f"no BioViL: {checkpoint or 'biovil'} is not there; {biovil.FETCH}")
    return None


def prior_regions(config: Config) -> list[dict[str, Any]]:
    """Regions whose boxes make the mean-box maps: `phrase`, `finding`, `boxes` in the frame.

    Those of training images; of validation pairs where training images have no boxes.
    """
    if regions := training_texts(config)["regions"]:
        return list(regions)
    framed = (pair.framed(config.image_size) for pair in evaluation_pairs(config, "validation"))
    return [
        {"phrase": pair.phrase, "finding": pair.finding, "boxes": pair.boxes}
        for pair in framed
        if pair.boxes
    ]


def _build_fidelity(config: Config, item: str, folder: Path) -> dict[str, Any]:
    import numpy as np

    from g2g_utils.bench import fidelity
    from g2g_utils.data import sources

    arm, seed = arm_and_seed(config, item)
    options = config.fidelity
    captions = [example.phrase for example in sources.examples(config, "test")]
    prompts = [captions[i % len(captions)] for i in range(options.samples)]
    images = fidelity.sample(
        model(config, arm, seed), prompts, steps=options.steps, guidance=options.guidance,
        seed=seed, batch_size=options.batch_size,
    )  # fmt: skip
    rows: list[dict[str, Any]] = []
    kept: dict[str, Any] = {"ms_ssim": fidelity.alikeness(images.cpu())}
    for name, network in feature_networks(config).items():
        fake = fidelity.extract(network, images)
        real = fidelity.moments(reference_features(config, network))
        rows.append({"features": name, **fidelity.fidelity_row(fake, real)})
        kept |= {name: fake.astype("float32"), f"{name}_mean": real[0], f"{name}_cov": real[1]}
    shown = (images[:16, 0] * 255).round().byte().numpy()
    with runs.atomic(folder / "samples.npy") as temporary, open(temporary, "wb") as stream:
        np.save(stream, shown)
    with runs.atomic(folder / "features.npz") as temporary, open(temporary, "wb") as stream:
        np.savez_compressed(stream, **kept)
    return {"metrics": rows[0], "networks": rows, "prompts": prompts[:16]}


def reference_features(config: Config, network: Any) -> Any:
    """Features [n, d] of the first training images, read a batch at a time."""
    import numpy as np

    from g2g_utils.bench import fidelity

    count = min(REFERENCE, len(training_images(config)))
    batches = (slice(k, min(k + 64, count)) for k in range(0, count, 64))
    parts = [fidelity.extract(network, _tensor_images(config, rows)) for rows in batches]
    return np.concatenate(parts)


def feature_networks(config: Config) -> dict[str, Any]:
    """Networks in whose features image fidelity is measured.

    "classifier": of the training images' findings, independent of every arm; "generic": image
    branch of the domain-agnostic task, where the profile trains one.
    """
    from g2g_utils.bench import fidelity

    networks = {"classifier": fidelity.load_classifier(ensure(config, "classifier"))}
    if "encoders/generic" in plan(config):
        networks["generic"] = fidelity.load_generic(ensure(config, "encoders/generic"))
    return networks


def fidelity_features(config: Config, arm: str, seed: int) -> dict[str, Any]:
    """Features of an arm's samples, and mean and covariance of the real ones, by network."""
    import numpy as np

    with np.load(ensure(config, f"fidelity/{arm}-s{seed}") / "features.npz") as file:
        return {name: file[name].astype(float) for name in file.files}


def _write_table(path: Path, table: Any) -> None:
    """A table as CSV, written atomically."""
    with runs.atomic(path) as temporary:
        table.to_csv(temporary, index=False)


def tables(config: Config, file: str, arms: list[str] | None = None) -> Any:
    """All rows of a results file ("pairs.csv" or "curves.csv") over arms and seeds."""
    import pandas as pd

    from g2g_utils.bench import ablations

    parts = []
    for name in plan(config):
        kind, _, item = name.partition("/")
        arm = item.rpartition("-s")[0]
        if kind == "evaluation" and (arms is None or arm in arms):
            table = ablations.read_rows(ensure(config, name) / file)
            parts.append(table.assign(arm=arm, seed=int(item.rpartition("-s")[2])))
    return pd.concat(parts, ignore_index=True)


_BUILDERS: dict[str, Any] = {
    "pairs": _build_pairs,
    "vae": _build_vae,
    "latents": _build_latents,
    "encoders": _build_encoder,
    "foundation": _build_foundation,
    "ldm": _build_ldm,
    "classifier": _build_classifier,
    "evaluation": _build_evaluation,
    "baselines": _build_baselines,
    "fidelity": _build_fidelity,
}


def model(
    config: Config, arm: str | None = None, seed: int | None = None, device: str | None = None
) -> GroundingModel:
    """The grounding model of an arm and seed, everything it needs made first if it is missing.

    device: by default a GPU for Stable Diffusion's size, where there is one, else the CPU.
    """

    from g2g_utils.experiment import assemble

    arm = arm or next(iter(config.training.arms))
    seed = config.training.seeds[0] if seed is None else seed
    if arm in config.training.arms:
        encoder = config.encoders[config.training.arms[arm].encoder]
        wanted = [] if config.vae.pretrained else ["vae"]
        wanted += [] if encoder.pretrained else [f"encoders/{config.training.arms[arm].encoder}"]
        wanted += [] if loaded_unet(config, arm) else [f"ldm/{arm}-s{seed}"]
        for name in wanted:
            ensure(config, name)
    return assemble.load(config, arm, seed, device or assemble.default_device(config))
