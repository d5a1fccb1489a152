"""Recipes: how each kind of product is made, and what it is made from.

A new kind is one function here: `@product(kind, ...)` says which items a profile has, what they
need, which settings determine them and which job of the workflow makes them. The order of this
file is an order in which all can be made. Heavy imports happen inside the functions.
"""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from g2g_utils import runs, tagger
from g2g_utils.config import (
    AdaMatchSettings,
    Config,
    ConfigError,
    CyclicSettings,
    G2DSettings,
    Section,
)
from g2g_utils.experiment import apart, parts, plan
from g2g_utils.experiment.make import ensure
from g2g_utils.experiment.plan import needs
from g2g_utils.experiment.product import arm_and_seed, present, product
from g2g_utils.runs import places

if TYPE_CHECKING:
    from g2g_utils.training.finetune import Pairs

TABLES = (".csv", ".csv.gz", ".json", ".json.gz")
_OPTIONAL = (  # in keys only where set
    "subfolder", "lora_rank", "scheduler_revision", "untuned", "pictures", "pipeline",
)  # fmt: skip
_OF_TEXT = ("steps", "text_learning_rate", "attention_lr_scale", "dropout")  # of no foundation
SAMPLED = 1  # raise when fidelity measures otherwise, or more
RETRIEVED = 1  # raise when retrieval ranks otherwise, or more
WRITTEN = 1  # raise when reports and films of the cycle are scored otherwise, or more
CLASSIFIED = 8000  # training images at most that the classifier of findings sees


def dump(section: Section, exclude: set[str] | None = None) -> dict[str, Any]:
    """A section's settings for a key; optional ones count only where they are set."""
    found = section.model_dump(exclude=exclude or set())
    return {k: v for k, v in found.items() if k not in _OPTIONAL or v not in (None, False)}


# ---------------------------------------------------------------- training data


def _training_data(config: Config, item: str) -> dict[str, Any]:
    """Settings that decide which images are trained on; of files also their tables' content.

    Patients of MS-CXR are left out, and those whom validation and test take from the source.
    """
    data = config.data
    if data.source == "phantoms":
        return {"data": data.model_dump(include={"source", "root", "train", "seed", "world"})}
    fields = {"source", "root", "train", "seed", "images", "reports"}
    if data.source == "radiographs":
        fields |= {"repeats", "implants", "implant_world", "drawn", "world"}
    held = [h for h in (data.validation_from, data.test_from) if h]
    roots = [data.root, data.reports, *(h.root for h in held if h.source == "ms_cxr")]
    return {
        "data": data.model_dump(include=fields),
        "own": [split for split in ("validation", "test") if not getattr(data, f"{split}_from")],
        "tables": {str(root): _tables(places.ROOT / root.expanduser()) for root in roots if root},
    }


def _tables(place: Path) -> dict[str, str]:
    """Digests of a table, or of the tables that lie in a folder, by name."""
    files = [place] if place.is_file() else [p for end in TABLES for p in place.glob(f"*{end}")]
    return {file.name: runs.once(runs.file_digest, file) for file in sorted(files)}


@product("pairs", parameters=_training_data, needs=lambda config, item: [])
def pairs(config: Config, item: str, folder: Path) -> None:
    """Training images with their texts: images.npy (phantoms; films stay files), texts.json."""
    import numpy as np

    from g2g_utils import text
    from g2g_utils.data import films, sources

    examples = sources.examples(config, "train")
    captions = [example.phrase for example in examples]
    regions = [
        {"phrase": r.phrase, "finding": r.finding, "boxes": r.boxes, "image": i}
        for i, example in enumerate(examples)
        for r in example.regions
    ]
    if all(isinstance(example.image, Path) for example in examples):
        labels = [text.named_findings(caption) for caption in captions]
        texts = parts.Texts(
            captions,
            labels,
            regions,
            image_ids=[example.image_id for example in examples],
            subject_ids=[example.subject_id for example in examples],
            files=[str(example.image) for example in examples],
        )
    else:
        labels = [
            sorted({r.finding for r in example.regions}) or text.named_findings(example.phrase)
            for example in examples
        ]
        texts = parts.Texts(captions, labels, regions)
        images = np.stack([example.load(config.image_size) for example in examples])
        with runs.atomic(folder / "images.npy") as temporary, open(temporary, "wb") as stream:
            np.save(stream, films.to_bytes(images))
    runs.write_json(folder / "texts.json", asdict(texts))


# ---------------------------------------------------------------- autoencoder, text encoders


@product(
    "vae",
    items=lambda config: [] if config.vae.pretrained else [""],
    needs=lambda config, item: ["pairs"],
    parameters=lambda config, item: {"vae": config.vae.model_dump()},
)
def vae(config: Config, item: str, folder: Path) -> dict[str, Any]:
    """The latent autoencoder."""
    from g2g_utils.training import pretrain

    return pretrain.train_vae(parts.tensor_images(config), config.vae, folder, config.data.seed)


@product(
    "latents",
    needs=lambda config, item: ["pairs", "vae"],
    parameters=lambda config, item: {"vae": config.vae.model_dump()},
)
def latents(config: Config, item: str, folder: Path) -> None:
    """Posterior mean and standard deviation of every training image's latent."""
    from g2g_utils.experiment import assemble, costs
    from g2g_utils.training import finetune

    if wrong := costs.unsupported(config):  # before hours of encoding
        raise ConfigError("; ".join(wrong))
    images, encoder = parts.training_images(config), parts.vae(config)
    ids = parts.training_texts(config).files or [str(k) for k in range(len(images))]
    finetune.cache_latents(encoder.to(assemble.default_device(config)), images, folder, ids)


def _other_pictures(config: Config) -> list[str]:
    """Kinds of pictures, other than the profile's, that arms are trained on."""
    return list(
        dict.fromkeys(arm.pictures for arm in config.training.arms.values() if arm.pictures)
    )


@product(
    "pictures",
    items=_other_pictures,
    needs=lambda config, item: ["vae"],
    parameters=lambda config, item: {
        "train": config.data.train,
        "seed": config.data.seed,
        "vae": config.vae.model_dump(),
    },
)
def pictures(config: Config, item: str, folder: Path) -> None:
    """Latents and captions of other pictures, as many as the profile trains on.

    The autoencoder is the profile's own, so that a U-Net of these latents reads its films' too.
    """
    from g2g_utils.data.phantoms import glyphs
    from g2g_utils.training import finetune

    images, captions = glyphs.generate(config.data.train, config.data.seed, config.image_size)
    ids = [f"{item}-{k}" for k in range(len(images))]
    finetune.cache_latents(parts.vae(config), images.mean(1), folder, ids)  # in grey, as films are
    runs.write_json(folder / "captions.json", captions)


@product(
    "encoders",
    items=lambda config: [name for name, e in config.encoders.items() if not e.pretrained],
    needs=lambda config, item: ["pairs"],
    parameters=lambda config, item: {
        "encoder": dump(config.encoders[item]),
        "text": config.text.max_length,
    },
)
def encoder(config: Config, item: str, folder: Path) -> None:
    """A text encoder pre-trained by its objective; with an image branch where that has one."""
    import torch

    from g2g_utils.data.phantoms import glyphs
    from g2g_utils.training import pretrain

    spec = config.encoders[item]
    if spec.objective == "generic":
        arrays, captions = glyphs.generate(config.data.train, config.data.seed)
        images = torch.from_numpy(arrays)
    else:
        images, captions = parts.tensor_images(config), parts.training_texts(config).captions
    length = config.text.max_length
    pretrain.pretrain_encoder(
        spec, images, captions, folder, max_length=length, seed=config.data.seed
    )


# ---------------------------------------------------------------- U-Nets


def _training(config: Config) -> dict[str, Any]:
    """Settings of fine-tuning that all arms share."""
    return config.training.model_dump(exclude={"arms", "seeds", "live_steps", "log_every"})


@product(
    "foundation",
    items=lambda config: (
        [""] if config.unet.foundation_steps and not config.unet.pretrained else []
    ),
    needs=lambda config, item: ["pairs", "latents"],
    parameters=lambda config, item: {
        "training": {k: v for k, v in _training(config).items() if k not in _OF_TEXT},
        "unet": dump(config.unet),
        "seed": config.data.seed,
    },
)
def foundation(config: Config, item: str, folder: Path) -> None:
    """A U-Net that knows the images and no words: the small stand-in for Stable Diffusion's."""
    from g2g_utils import models
    from g2g_utils.training import finetune

    seed = config.data.seed
    unet = parts.untrained_unet(config, seed, config.encoders["domain"].width)
    captions = parts.training_texts(config).captions
    pairs = finetune.load_pairs(ensure(config, "latents"), captions)
    scheduler, steps = models.build_scheduler(config.unet), config.unet.foundation_steps
    finetune.pretrain(pairs, unet, scheduler, config.training, folder, seed=seed, steps=steps)


def _trained_arms(config: Config) -> list[str]:
    """ARM-sSEED of every U-Net that is fine-tuned here."""
    arms = [arm for arm in config.training.arms if config.loaded_unet(arm) is None]
    return [f"{arm}-s{seed}" for arm in arms for seed in config.seeds(arm)]


def _arm_needs(config: Config, item: str) -> list[str]:
    spec = config.training.arms[arm_and_seed(config, item)[0]]
    if spec.pictures:
        return [f"pictures/{spec.pictures}", f"encoders/{spec.encoder}"]
    return ["pairs", "latents", f"encoders/{spec.encoder}", "foundation"]


def _arm_parameters(config: Config, item: str) -> dict[str, Any]:
    arm, seed = arm_and_seed(config, item)
    spec = dump(config.training.arms[arm], exclude={"seeds", "control"})
    unet, text = dump(config.unet), config.text.model_dump()
    recipe = {"arm": spec, "seed": seed, "training": _training(config), "unet": unet, "text": text}
    return recipe | pretrained_parts(config, arm)


def pretrained_parts(config: Config, arm: str) -> dict[str, Any]:
    """Settings of loaded weights, which are no products: they determine what is trained on them."""
    encoder = config.encoders[config.training.arms[arm].encoder]
    found: dict[str, Any] = {}
    if encoder.pretrained:
        found["encoder"] = dump(encoder)
    if pipeline := plan.pipeline(config, arm):
        record = runs.sound_record(pipeline / "converted.json", ["sources"])
        return found | {"pipeline": [config.training.arms[arm].pipeline, record]}
    if config.unet.pretrained:
        exclude = {"released", "revision", "gradient_checkpointing"}  # the last: same gradients
        found["adaptation"] = config.adaptation.model_dump(exclude=exclude)
    return found


@product("ldm", items=_trained_arms, needs=_arm_needs, parameters=_arm_parameters, together=True)
def ldm(config: Config, item: str, folder: Path) -> None:
    """The U-Net of one arm and seed; a learnable arm's text encoder beside it."""
    fine_tune(config, *arm_and_seed(config, item), folder)


def training_pairs(config: Config, arm: str) -> Pairs:
    """Latents and captions that an arm is trained on: the profile's, or other pictures'."""
    from g2g_utils.training import finetune

    if other := config.training.arms[arm].pictures:
        place = ensure(config, f"pictures/{other}")
        return finetune.load_pairs(place, runs.read_json(place / "captions.json"))
    texts = parts.training_texts(config)
    apart.check_training(config, texts)
    return finetune.load_pairs(ensure(config, "latents"), texts.captions)


def fine_tune(config: Config, arm: str, seed: int, folder: Path, steps: int | None = None) -> None:
    """Fine-tune one arm into `folder`; `steps` shortens it (notebook 03 shows such a run live)."""
    from g2g_utils import models
    from g2g_utils.experiment import assemble
    from g2g_utils.training import finetune

    spec = config.training.arms[arm]
    tokenizer, encoder = parts.text_encoder(config, spec.encoder)
    assemble.check_length(config, arm, encoder)
    start = parts.untrained_unet if spec.pictures else parts.start_unet
    unet = start(config, seed, encoder.config.hidden_size, spec.lora_rank)
    pairs = training_pairs(config, arm)
    text = models.Conditioning(tokenizer, encoder, config.text.max_length, config.text.zero_padding)
    finetune.fine_tune(
        pairs,
        unet,
        text,
        models.build_scheduler(config.unet),
        spec,
        config.training,
        folder,
        seed=seed,
        steps=steps,
        name=f"{arm} seed {seed}",
    )


# ---------------------------------------------------------------- AdaMatch

_OF_PVT = ("mlp_ratios", "pretrained", "revision", "text_layers")  # in keys only where set


def match_settings(config: Config) -> AdaMatchSettings:
    """The profile's `adamatch:` section; ConfigError where it has none."""
    if config.adamatch is None:
        raise ConfigError(f"profile {config.profile!r} has no section adamatch: add one")
    return config.adamatch


def match_item(config: Config, item: str) -> tuple[str, int]:
    """Arm and seed of ARM-sSEED, an AdaMatch network."""
    arm, _, seed = item.rpartition("-s")
    known = match_settings(config).arms
    if arm not in known or not seed.isdigit():
        raise ConfigError(f"no AdaMatch {item!r}: write ARM-sSEED, ARM one of {', '.join(known)}")
    return arm, int(seed)


def _match_items(config: Config) -> list[str]:
    """ARM-sSEED of every network that the profile trains."""
    found = config.adamatch
    return [f"{arm}-s{seed}" for arm in found.arms for seed in found.seeds] if found else []


def _match_parameters(config: Config, item: str) -> dict[str, Any]:
    settings = match_settings(config)
    arm, seed = match_item(config, item)
    shared = settings.model_dump(exclude={"arms", "seeds", "checkpoint_every"})
    shared = {k: v for k, v in shared.items() if v is not None or k not in _OF_PVT}
    own = settings.arms[arm]
    found = {"adamatch": shared, "arm": own.model_dump(), "seed": seed}
    content = (
        {"tagger": tagger.name(config.grounding.spacy_model)} if own.words == "content" else {}
    )
    encoder = {"encoder": dump(config.encoders[own.encoder]), "text": config.text.max_length}
    return found | encoder | content


@product(
    "adamatch",
    items=_match_items,
    needs=lambda config, item: [
        "pairs",
        f"encoders/{match_settings(config).arms[match_item(config, item)[0]].encoder}",
    ],
    parameters=_match_parameters,
)
def adamatch(config: Config, item: str, folder: Path) -> None:
    """An AdaMatch network of an arm and seed: findings first, then patches against words."""
    match(config, *match_item(config, item), folder)


def match(config: Config, arm: str, seed: int, folder: Path, steps: int | None = None) -> None:
    """Train one AdaMatch network into `folder`; `steps` shortens the contrast."""
    from transformers import PvtModel

    from g2g_utils.models.adamatch import Shape
    from g2g_utils.training import adamatch as training

    settings = match_settings(config)
    own = settings.arms[arm]
    texts = parts.training_texts(config)
    apart.check_training(config, texts)
    tokenizer, encoder = parts.text_encoder(config, own.encoder)
    start = None
    if settings.pretrained:
        start = PvtModel.from_pretrained(settings.pretrained, revision=settings.revision)
    if settings.text_layers:
        encoder.encoder.layer = encoder.encoder.layer[: settings.text_layers]
        encoder.config.num_hidden_layers = len(encoder.encoder.layer)
    shape = Shape(
        config.image_size, encoder.config.hidden_size, settings.widths, settings.depths,
        settings.heads, settings.reductions, settings.patch, settings.joint, own.adaptive,
        settings.smallest, settings.mlp_ratios or (), start.config.num_channels if start else 1,
    )  # fmt: skip
    pairs = training.Pairs(
        parts.training_images(config), tuple(texts.captions), tuple(map(tuple, texts.labels))
    )
    training.train(
        training.build(shape, encoder, seed, start), tokenizer, pairs, own, settings, folder,
        seed=seed, length=config.text.max_length, steps=steps, name=f"AdaMatch {arm} seed {seed}",
    )  # fmt: skip


@product(
    "retrieval",
    items=_match_items,
    needs=lambda config, item: [f"adamatch/{item}"],
    parameters=lambda config, item: {
        "data": config.data.model_dump(),
        "name": f"retrieval/{item}",
        "retrieved": RETRIEVED,
    },
    bundle=lambda config, item: "references",
)
def retrieval(config: Config, item: str, folder: Path) -> dict[str, Any]:
    """Ranks of the test reports for their images and of the images for their reports: ranks.csv."""
    from g2g_utils.bench import retrieval
    from g2g_utils.models.adamatch import dead

    words = match_settings(config).arms[match_item(config, item)[0]].words
    joint, examples, patches, captions = parts.matched(config, item, words)
    by_patch, by_word = retrieval.similarities(joint.network, patches.vectors, captions)
    rows = retrieval.table(
        by_patch, by_word, [e.subject_id for e in examples], [e.image_id for e in examples],
        parts.facts(config, "test"),
    )  # fmt: skip
    with runs.atomic(folder / "ranks.csv") as temporary:
        rows.to_csv(temporary, index=False)
    shape = joint.network.shape
    floor = shape.smallest if shape.adaptive else 0.0
    sides = (patches.boxes[..., 2:] - patches.boxes[..., :2]) * shape.side
    metrics = {
        f"{line['direction']}, {name}": round(float(value), 3)
        for line in retrieval.summary(rows, 100).to_dict("records")
        for name, value in line.items()
        if re.fullmatch(r"(facts )?R@\d+|median rank", str(name))
    }
    boxes = {
        "dead boxes": round(float(dead(patches.boxes, shape.grid, floor).float().mean()), 4),
        "mean side in pixels": round(float(sides.mean()), 3),
    }
    return {"metrics": metrics | boxes}


# ---------------------------------------------------------------- AdaMatch-Cyclic

_OF_HINTS = {"per_group", "keywords", "book_pairs", "pair_words", "word_patches", "keypatches"}
_OF_HINTS |= {"centred"}


def cyclic_settings(config: Config) -> CyclicSettings:
    """The profile's `cyclic:` section; ConfigError where it has none."""
    if config.cyclic is None:
        raise ConfigError(f"profile {config.profile!r} has no section cyclic: add one")
    return config.cyclic


def hints_from(config: Config) -> str:
    """ARM-sSEED of the AdaMatch network that finds the hints."""
    match = match_settings(config)
    return f"{cyclic_settings(config).match or next(iter(match.arms))}-s{match.seeds[0]}"


def _cyclic_one(config: Config) -> list[str]:
    return [""] if config.cyclic else []


def _needs_hints(config: Config) -> bool:
    return bool(config.cyclic) and not {"own", "shuffled"}.isdisjoint(cyclic_settings(config).hints)


def cyclic_item(config: Config, item: str) -> tuple[str, int]:
    """Hints and seed of HINTS-sSEED, a language model of films and reports."""
    kind, _, seed = item.rpartition("-s")
    known = cyclic_settings(config).hints
    if kind not in known or not seed.isdigit():
        raise ConfigError(f"no cycle {item!r}: write HINTS-sSEED, HINTS one of {', '.join(known)}")
    return kind, int(seed)


def _cyclic_items(config: Config) -> list[str]:
    found = config.cyclic
    return [f"{kind}-s{seed}" for kind in found.hints for seed in found.seeds] if found else []


@product(
    "vq",
    items=_cyclic_one,
    needs=lambda config, item: ["pairs"],
    parameters=lambda config, item: {
        "vq": cyclic_settings(config).vq.model_dump(exclude={"checkpoint_every"})
    },
)
def vq(config: Config, item: str, folder: Path) -> dict[str, Any]:
    """The tokenizer of films: trained, or published weights in diffusers' layout."""
    from g2g_utils.models import vq as tokenizer
    from g2g_utils.training import vq as training

    images = parts.training_images(config)
    if source := cyclic_settings(config).vq.pretrained:
        published = tokenizer.read_taming(source, cyclic_settings(config).vq)
        published.save_pretrained(folder)
        return {"metrics": training.measured(published, images)}
    return training.train(images, cyclic_settings(config).vq, folder, config.data.seed)


@product(
    "codes",
    items=_cyclic_one,
    needs=lambda config, item: ["pairs", "vq"],
    parameters=lambda config, item: {"data": config.data.model_dump()},
)
def codes(config: Config, item: str, folder: Path) -> dict[str, Any]:
    """Codes of the films of all splits: codes.npz."""
    from g2g_utils.experiment import cycle

    return cycle.encode(config, folder)


@product(
    "hints",
    items=lambda config: [""] if _needs_hints(config) else [],
    needs=lambda config, item: ["pairs", "codes", f"adamatch/{hints_from(config)}"],
    parameters=lambda config, item: cyclic_settings(config).model_dump(include=_OF_HINTS),
)
def hints(config: Config, item: str, folder: Path) -> dict[str, Any]:
    """Keywords of films and key patches of reports by AdaMatch, and the books they are from."""
    from g2g_utils.experiment import cycle

    return cycle.make_hints(config, folder)


def _cyclic_parameters(config: Config, item: str) -> dict[str, Any]:
    settings = cyclic_settings(config)
    kind, seed = cyclic_item(config, item)
    apart_from = {"hints", "seeds", "match", "vq", "checkpoint_every", "top_p", *_OF_HINTS}
    own = {"cyclic": settings.model_dump(exclude=apart_from), "hints": kind, "seed": seed}
    if kind == "oracle":
        own["prompt"] = settings.model_dump(include={"keywords", "keypatches"})
    return own


def _written_needs(config: Config, item: str) -> list[str]:
    found = ["pairs", "codes", f"encoders/{cyclic_settings(config).words}"]
    hinted = cyclic_item(config, item)[0] in ("own", "shuffled")
    return [*found, "hints"] if hinted else found


@product("cyclic", items=_cyclic_items, needs=_written_needs, parameters=_cyclic_parameters)
def cyclic(config: Config, item: str, folder: Path) -> dict[str, Any]:
    """The language model that writes reports and draws films, of one kind of hints and seed."""
    from g2g_utils.experiment import cycle

    return cycle.train(config, *cyclic_item(config, item), folder)


# ---------------------------------------------------------------- G2D


def dense_settings(config: Config) -> G2DSettings:
    """The profile's `g2d:` section; ConfigError where it has none."""
    if config.g2d is None:
        raise ConfigError(f"profile {config.profile!r} trains no G2D: give it a section g2d")
    return config.g2d


def _dense_heads(config: Config, arm: str) -> int:
    settings = dense_settings(config)
    return settings.arms[arm].heads or settings.heads


def _dense_item(config: Config, item: str) -> tuple[str, int]:
    """Arm and seed of a product `g2d/ARM-sSEED`."""
    arm, _, seed = item.rpartition("-s")
    known = dense_settings(config).arms
    if arm not in known or not seed.isdigit():
        raise ConfigError(f"no G2D {item!r}: write ARM-sSEED with ARM one of {', '.join(known)}")
    return arm, int(seed)


def _dense_warmups(config: Config) -> list[str]:
    """HEADS-sSEED of the warm-ups: arms of one number of heads share one."""
    if config.g2d is None:
        return []
    heads = dict.fromkeys(_dense_heads(config, arm) for arm in config.g2d.arms)
    return [f"{h}-s{seed}" for h in heads for seed in config.g2d.seeds]


def _dense_recipe(config: Config, *but: str) -> dict[str, Any]:
    """Settings that all arms share."""
    settings = dense_settings(config)
    text = config.encoders[settings.text]
    shared = settings.model_dump(
        exclude={"arms", "seeds", "checkpoint_every", "live_steps", *but}, mode="json"
    )
    if settings.start is None:
        del shared["start"]
    return {"g2d": shared, "text": config.text.max_length, "encoder": dump(text)}


@product(
    "g2d-warmup",
    items=_dense_warmups,
    needs=lambda config, item: ["pairs", f"encoders/{dense_settings(config).text}"],
    parameters=lambda config, item: {"item": item} | _dense_recipe(config, "steps"),
)
def dense_warmup(config: Config, item: str, folder: Path) -> None:
    """G2D's image encoder, pooling and projectors after the contrast alone."""
    from g2g_utils.experiment import dense

    heads, seed = item.split("-s")
    dense.warm_up(config, int(heads), int(seed), folder)


@product(
    "g2d",
    items=lambda config: (
        [f"{arm}-s{seed}" for arm in config.g2d.arms for seed in config.g2d.seeds]
        if config.g2d
        else []
    ),
    needs=lambda config, item: [
        "pairs",
        f"encoders/{dense_settings(config).text}",
        f"g2d-warmup/{_dense_heads(config, _dense_item(config, item)[0])}"
        f"-s{_dense_item(config, item)[1]}",
    ],
    parameters=lambda config, item: (
        _dense_recipe(config)
        | {"arm": dense_settings(config).arms[_dense_item(config, item)[0]].model_dump()}
        | {"seed": _dense_item(config, item)[1]}
    ),
)
def dense_arm(config: Config, item: str, folder: Path) -> None:
    """A G2D network of one arm and seed."""
    from g2g_utils.experiment import dense

    dense.train(config, *_dense_item(config, item), folder)


# ---------------------------------------------------------------- evaluation


def _drawn_from_reports(config: Config) -> bool:
    """False for a pack of films: nobody wrote reports of them that samples could be drawn from."""
    return config.data.source != "radiographs"


@product(
    "classifier",
    items=lambda config: [""] if _drawn_from_reports(config) else [],
    needs=lambda config, item: ["pairs"],
    parameters=lambda config, item: {"steps": config.fidelity.classifier_steps},
    bundle=lambda config, item: "references",
)
def classifier(config: Config, item: str, folder: Path) -> dict[str, Any]:
    """Classifier of findings, in whose features image fidelity is measured."""
    import numpy as np
    import torch

    from g2g_utils.bench import fidelity

    labels = parts.training_texts(config).labels
    steps, seed = config.fidelity.classifier_steps, config.data.seed
    images = parts.training_images(config)
    rows = np.arange(len(images))[:: -(-len(images) // CLASSIFIED)]  # evenly over the patients
    batches = np.array_split(rows, -(-len(rows) // 64))
    small = torch.cat([fidelity.reduced(images[batch]) for batch in batches])
    return fidelity.train_classifier(small, [labels[row] for row in rows], folder, steps, seed)


@product(
    "cycle",
    items=_cyclic_items,
    needs=lambda config, item: [
        f"cyclic/{item}", "vq", "classifier", "encoders/generic", *_written_needs(config, item),
    ],
    parameters=lambda config, item: {
        "data": config.data.model_dump(),
        "top_p": cyclic_settings(config).top_p,
        "samples": config.fidelity.samples,
        "written": WRITTEN,
    },
    bundle=lambda config, item: "references",
)  # fmt: skip
def cycle(config: Config, item: str, folder: Path) -> dict[str, Any]:
    """What a language model writes and draws of the test split, scored: reports.csv, films.csv."""
    from g2g_utils.experiment import cycle

    return cycle.evaluate(config, *cyclic_item(config, item), folder)


def model_needs(config: Config, arm: str, seed: int) -> list[str]:
    """Products that the model of an arm and seed is assembled from, and made from."""
    name, encoder = f"ldm/{arm}-s{seed}", config.training.arms[arm].encoder
    made = present(config, [name])
    return [name, "vae", f"encoders/{encoder}", *(n for dep in made for n in needs(config, dep))]


def loaded_parts(config: Config, arm: str) -> dict[str, Any]:
    """Settings of an arm's loaded U-Net; a trained one is a product with a key of its own."""
    if config.loaded_unet(arm) is None:
        return {}
    if config.training.arms[arm].pipeline:
        return pretrained_parts(config, arm) | {"text": dump(config.text)}
    sections = {"unet": config.unet, "vae": config.vae, "text": config.text}
    fields = set() if config.training.arms[arm].untuned else {"released", "revision"}
    released = config.adaptation.model_dump(include=fields)
    dumps: dict[str, Any] = {key: dump(section) for key, section in sections.items()}
    return pretrained_parts(config, arm) | dumps | {"adaptation": released}


def _fidelity_needs(config: Config, item: str) -> list[str]:
    return [*model_needs(config, *arm_and_seed(config, item)), "classifier", "encoders/generic"]


@product(
    "fidelity",
    items=lambda config: [
        f"{arm}-s{seed}"
        for arm in config.training.compared
        for seed in config.seeds(arm)
        if _drawn_from_reports(config)
    ],
    needs=_fidelity_needs,
    parameters=lambda config, item: {
        "fidelity": config.fidelity.model_dump(),
        "data": config.data.model_dump(),
        "name": f"fidelity/{item}",
        "scores": SAMPLED,
        **loaded_parts(config, arm_and_seed(config, item)[0]),
    },
    bundle=lambda config, item: f"results/{item}",
)
def fidelity(config: Config, item: str, folder: Path) -> dict[str, Any]:
    """Samples of an arm, their features, and how far they lie from the real ones."""
    import numpy as np

    from g2g_utils.bench import fidelity
    from g2g_utils.data import sources

    options = config.fidelity
    captions = [example.phrase for example in sources.examples(config, "test")]
    prompts = [captions[i % len(captions)] for i in range(options.samples)]
    images = fidelity.sample(
        parts.model(config, *arm_and_seed(config, item)), prompts, steps=options.steps,
        guidance=options.guidance, seed=arm_and_seed(config, item)[1],
        batch_size=options.batch_size,
    )  # fmt: skip
    rows: list[dict[str, Any]] = []
    kept: dict[str, Any] = {"ms_ssim": fidelity.alikeness(images.cpu())}
    for name, network in parts.feature_networks(config).items():
        fake = fidelity.extract(network, images)
        real = fidelity.moments(parts.reference_features(config, network))
        rows.append({"features": name, **fidelity.fidelity_row(fake, real)})
        kept |= {name: fake.astype("float32"), f"{name}_mean": real[0], f"{name}_cov": real[1]}
    shown = (images[:16, 0] * 255).round().byte().numpy()
    with runs.atomic(folder / "samples.npy") as temporary, open(temporary, "wb") as stream:
        np.save(stream, shown)
    with runs.atomic(folder / "features.npz") as temporary, open(temporary, "wb") as stream:
        np.savez_compressed(stream, **kept)
    return {"metrics": rows[0], "networks": rows, "prompts": prompts[:16]}
