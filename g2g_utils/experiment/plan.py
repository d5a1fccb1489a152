"""What a profile makes: products, what they depend on, their keys, and where finished ones lie.

A product is a folder below build/<profile>/ (or shipped in weights/<profile>/) that ends with
run.json. Its name ends with the hash of the settings that determine it, so that runs with other
settings lie beside each other and nothing computed is ever overwritten.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from g2g_utils import runs, tagger
from g2g_utils.config import ROOT, Config, ConfigError, Section

TABLES = (".csv", ".csv.gz", ".json", ".json.gz")
_OPTIONAL = ("subfolder", "lora_rank", "scheduler_revision", "untuned")  # often absent
_OF_TEXT = ("steps", "text_learning_rate", "attention_lr_scale", "dropout")  # of no foundation
RECIPE = 1  # raise when a recipe below changes what it makes
SCORES = 3  # raise when evaluations or baselines score otherwise, or more
SAMPLED = 1  # raise when fidelity measures otherwise, or more


def plan(config: Config) -> dict[str, list[str]]:
    """Every product of the profile and the products it needs, in an order that can be made."""
    products: dict[str, list[str]] = {"pairs": []}
    if not config.vae.pretrained:
        products["vae"] = ["pairs"]
    products["latents"] = ["pairs", *(["vae"] if "vae" in products else [])]
    for name, encoder in config.encoders.items():
        if not encoder.pretrained:
            products[f"encoders/{name}"] = ["pairs"]
    if config.unet.foundation_steps and not config.unet.pretrained:
        products["foundation"] = ["pairs", "latents"]
    for arm, spec in config.training.arms.items():
        wanted = (f"encoders/{spec.encoder}", "foundation")
        needs = ["pairs", "latents", *(name for name in wanted if name in products)]
        if loaded_unet(config, arm) is None:
            products |= {f"ldm/{arm}-s{seed}": needs for seed in seeds(config, arm)}
    products["classifier"] = ["pairs"]
    products["baselines"] = [n for n in ("pairs", "vae", "encoders/domain") if n in products]
    networks = [n for n in ("classifier", "encoders/generic") if n in products]
    for arm, spec in config.training.arms.items():
        for item in (f"{arm}-s{seed}" for seed in seeds(config, arm)):
            models = (f"ldm/{item}", "vae", f"encoders/{spec.encoder}")
            needs = [name for name in models if name in products]
            needs += [name for name in products.get(models[0], []) if name not in needs]
            products[f"evaluation/{item}"] = needs
            if not spec.control:
                products[f"fidelity/{item}"] = [*needs, *networks]
    return products


def seeds(config: Config, arm: str) -> tuple[int, ...]:
    """Seeds that an arm is trained with; of one that is not trained, the first stands for it."""
    own = config.training.arms[arm].seeds
    found = config.training.seeds if own is None else own
    return found if loaded_unet(config, arm) is None else found[:1]


def loaded_unet(config: Config, arm: str) -> tuple[str, str | None] | None:
    """Source and revision of the U-Net that an arm loads as it is; None: it is trained here."""
    if config.training.arms[arm].untuned:
        return str(config.unet.pretrained), config.unet.revision
    if config.unet.pretrained and config.adaptation.released:
        return str(config.adaptation.released), config.adaptation.revision
    return None


def parameters(config: Config, name: str) -> dict[str, Any]:
    """The part of the configuration that determines a product, without its dependencies'."""
    kind, _, item = name.partition("/")
    base: dict[str, Any] = {"recipe": RECIPE, "image_size": config.image_size}
    if kind == "pairs":
        return base | _training_data(config)
    if kind in ("vae", "latents"):
        return base | {"vae": config.vae.model_dump()}
    if kind == "encoders":
        return base | {
            "encoder": _dump(config.encoders[item]),
            "text": config.text.max_length,
        }
    if kind == "classifier":
        return base | {"steps": config.fidelity.classifier_steps}
    if kind in ("evaluation", "fidelity", "baselines"):
        section = config.fidelity if kind == "fidelity" else config.evaluation
        own: dict[str, Any] = {kind: section.model_dump(), "data": config.data.model_dump()}
        own |= {"name": name, "scores": SAMPLED if kind == "fidelity" else SCORES}
        maps: dict[str, Any] = (
            {"grounding": config.grounding.model_dump()} if kind == "evaluation" else {}
        )
        maps |= {} if kind == "fidelity" else {"tagger": tagger.name()}
        loaded = _biovil(config) if kind == "baselines" else _loaded_parts(config, name)
        return base | own | maps | loaded
    training = config.training.model_dump(exclude={"arms", "seeds", "live_steps", "log_every"})
    if kind == "foundation":
        shared = {name: training[name] for name in training if name not in _OF_TEXT}
        unet = _dump(config.unet)
        return base | {"training": shared, "unet": unet, "seed": config.data.seed}
    if kind == "ldm":
        arm, seed = arm_and_seed(config, item)
        spec = _dump(config.training.arms[arm], exclude={"seeds", "control"})
        unet, text = _dump(config.unet), config.text.model_dump()
        recipe = {"arm": spec, "seed": seed, "training": training, "unet": unet, "text": text}
        return base | recipe | _pretrained_parts(config, arm)
    raise ConfigError(f"unknown product {name!r}: choose one of {', '.join(plan(config))}")


def _dump(section: Section, exclude: set[str] | None = None) -> dict[str, Any]:
    """A section's settings; optional ones that came later count only where they are set."""
    found = section.model_dump(exclude=exclude or set())
    return {k: v for k, v in found.items() if k not in _OPTIONAL or v not in (None, False)}


def _training_data(config: Config) -> dict[str, Any]:
    """What decides which images are trained on: of files also their tables' content.

    Patients of MS-CXR are left out, and what validation and test take from the training source.
    """
    data = config.data
    if data.source == "phantoms":
        return {"data": data.model_dump(include={"source", "root", "train", "seed", "world"})}
    fields = {"source", "root", "train", "seed", "images", "reports"}
    held = [h for h in (data.validation_from, data.test_from) if h]
    roots = [data.root, data.reports, *(h.root for h in held if h.source == "ms_cxr")]
    return {
        "data": data.model_dump(include=fields),
        "own": [split for split in ("validation", "test") if not getattr(data, f"{split}_from")],
        "tables": {str(root): _tables(ROOT / root.expanduser()) for root in roots if root},
    }


def _tables(place: Path) -> dict[str, str]:
    """Digests of a table, or of the tables that lie in a folder, by name."""
    files = [place] if place.is_file() else [p for end in TABLES for p in place.glob(f"*{end}")]
    return {file.name: runs.once(runs.file_digest, file) for file in sorted(files)}


def _pretrained_parts(config: Config, arm: str) -> dict[str, Any]:
    """Settings of loaded weights, which are no products: they determine what is trained on them."""
    encoder = config.encoders[config.training.arms[arm].encoder]
    parts: dict[str, Any] = {}
    if encoder.pretrained:
        parts["encoder"] = _dump(encoder)
    if config.unet.pretrained:
        exclude = {"released", "revision", "gradient_checkpointing"}  # the last: same gradients
        parts["adaptation"] = config.adaptation.model_dump(exclude=exclude)
    return parts


def _biovil(config: Config) -> dict[str, Any]:
    """BioViL's image branch, where the profile names one, and whether it is there."""
    if config.biovil is None:
        return {}
    there = (ROOT / config.biovil.expanduser()).is_file()
    texts = {"encoder": _dump(config.encoders["domain"]), "text": config.text.max_length}
    return {"biovil": str(config.biovil), "there": there} | texts


def _loaded_parts(config: Config, name: str) -> dict[str, Any]:
    """What an evaluation of a loaded U-Net depends on; a trained one's is in its product."""
    arm, _ = arm_and_seed(config, name.partition("/")[2])
    if loaded_unet(config, arm) is None:
        return {}
    parts = {"unet": config.unet, "vae": config.vae, "text": config.text}
    untuned = config.training.arms[arm].untuned
    fields = set() if untuned else {"released", "revision"}
    released = config.adaptation.model_dump(include=fields)
    sections: dict[str, Any] = {key: _dump(section) for key, section in parts.items()}
    return _pretrained_parts(config, arm) | sections | {"adaptation": released}


def arm_and_seed(config: Config, item: str) -> tuple[str, int]:
    """Split `domain-frozen-s0` into its arm and seed; unknown ones are errors."""
    arm, _, seed = item.rpartition("-s")
    if arm not in config.training.arms or not seed.isdigit():
        known = ", ".join(config.training.arms)
        raise ConfigError(f"unknown arm or seed {item!r}: write ARM-sSEED with ARM one of {known}")
    return arm, int(seed)


def key(config: Config, name: str) -> str:
    """Hash of everything in the configuration that determines a product."""
    own = parameters(config, name)
    return runs.digest([own, {dep: key(config, dep) for dep in needs(config, name)}])


def needs(config: Config, name: str) -> list[str]:
    """What a product needs made first; a seed beyond the configured ones needs what those need."""
    products = plan(config)
    if name not in products and name.startswith("ldm/"):
        arm, _ = arm_and_seed(config, name.removeprefix("ldm/"))
        name = f"ldm/{arm}-s{seeds(config, arm)[0]}"
    return products.get(name, [])


def inputs(config: Config, name: str) -> dict[str, str]:
    """Hash over the files of each product that a product was made from, as their records say."""
    found = {}
    for dep in needs(config, name):
        places = (folder(config, dep), config.weights_dir / dep)
        records = (runs.sound_record(place / "run.json") for place in places)
        if record := next(filter(None, records), None):
            found[dep] = runs.digest(record["outputs"])
    return found


def folder(config: Config, name: str) -> Path:
    """Where a product is made: its name and key below the profile's build folder."""
    return config.build_dir / f"{name}-{key(config, name)}"


def find(config: Config, name: str) -> Path | None:
    """Folder of a finished, sound product with the right key: made here or shipped; else None."""
    places = [folder(config, name)] + ([] if config.retrain else [config.weights_dir / name])
    wanted = key(config, name)
    for place in places:
        if _sound(place, wanted):
            return place
    return None


def _sound(folder: Path, wanted: str) -> bool:
    """True if the recorded key is the wanted one and no file is missing or damaged."""
    record = runs.sound_record(folder / "run.json")
    if record is None or record["key"] != wanted:
        return False
    if runs.intact(folder):
        return True
    print(f"warning: {folder} is damaged; it is made again", file=sys.stderr)
    return False
