"""Parts of an experiment, read from its products: pairs, texts, models, features.

Every function makes the products that it reads if they are missing. Heavy imports happen inside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from g2g_utils import runs
from g2g_utils.config import Config, ConfigError
from g2g_utils.experiment.make import ensure
from g2g_utils.experiment.plan import find
from g2g_utils.experiment.product import KINDS, present
from g2g_utils.methods.registry import rows
from g2g_utils.runs import places

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from numpy.typing import NDArray
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from g2g_utils.data.record import Example
    from g2g_utils.methods.adamatch import Joint
    from g2g_utils.methods.base import Grounder
    from g2g_utils.models import GroundingModel
    from g2g_utils.models.adamatch import Patches
    from g2g_utils.training.adamatch import Captions

REFERENCE = 2000  # training images whose features samples are compared with

_SHARED: dict[tuple[Path, str, str, int], GroundingModel] = {}  # that a method last asked for


@dataclass(frozen=True)
class Texts:
    """Texts of the training images, one entry per image; `regions` has one per described finding.

    A region is a dictionary: `phrase`, `finding`, `boxes` (pixels of the profile's frame) and
    `image` (index of its image).
    """

    captions: list[str]
    labels: list[list[str]]  # findings
    regions: list[dict[str, Any]]
    image_ids: list[str] = field(default_factory=list)  # of images in files
    subject_ids: list[str] = field(default_factory=list)  # of images in files
    files: list[str] = field(default_factory=list)  # paths; none where images.npy holds the images


def training_texts(config: Config) -> Texts:
    """Captions, finding labels and described regions of the training images."""
    return Texts(**runs.read_json(ensure(config, "pairs") / "texts.json"))


def training_images(config: Config) -> Any:
    """Training images [n, S, S], uint8: a memory map, or files that are read when indexed."""
    import numpy as np

    from g2g_utils.data.films import Films

    made = ensure(config, "pairs")
    if (made / "images.npy").is_file():
        return np.load(made / "images.npy", mmap_mode="r")
    return Films(training_texts(config).files, config.image_size)


def tensor_images(config: Config, part: slice = slice(None)) -> Tensor:
    """Training images as float tensor [n, 1, S, S] in [0, 1], all in memory."""
    import torch

    return torch.from_numpy(training_images(config)[part].copy())[:, None].float() / 255


def evaluation_pairs(config: Config, split: str = "test") -> list[Example]:
    """Image-phrase pairs of a split on which results are reported ("test") or choices made.

    Raises ConfigError if the split has none with boxes.
    """
    from g2g_utils.data import record, sources

    count = config.evaluation.pairs if split == "test" else config.evaluation.validation_pairs
    found = record.pairs(sources.examples(config, split))[:count]
    if not found:
        raise ConfigError(
            f"profile {config.profile!r} has no {split} pairs with boxes: look at "
            f"`python -m g2g_utils.data.check {config.profile}`"
        )
    return found


def prior_regions(config: Config) -> list[dict[str, Any]]:
    """Regions whose boxes make the mean-box maps: `phrase`, `finding`, `boxes` in the frame.

    Those of training images; of validation pairs where training images have no boxes. Of a pack of
    films those of its training patients, which no training sees.
    """
    data = config.data
    if data.source == "radiographs" and data.root is not None:
        from g2g_utils.data import sources

        pairs = sources.boxed(data.source, sources.resolve(data.root), subset="train")
    elif regions := training_texts(config).regions:
        return regions
    else:
        pairs = evaluation_pairs(config, "validation")
    framed = (pair.framed(config.image_size) for pair in pairs)
    return [
        {"phrase": pair.phrase, "finding": pair.finding, "boxes": pair.boxes}
        for pair in framed
        if pair.boxes
    ]


def grounding_options(config: Config) -> dict[str, Any]:
    """The profile's keywords for `grounding.ground`, without bias merging."""
    return config.grounding.model_dump(exclude={"curve"})


class Matched(NamedTuple):
    """A network of AdaMatch beside the patches and captions of examples."""

    joint: Joint
    examples: list[Example]
    patches: Patches
    captions: Captions


@dataclass(frozen=True)
class Parts:
    """Parts of the profile for the methods it builds (the protocol `methods.registry.Parts`)."""

    config: Config
    given_regions: Sequence[dict[str, Any]] | None = None  # default: `prior_regions`

    def model(self, arm: str, seed: int | None) -> GroundingModel:
        """The diffusion model of a training arm; seed None: the arm's first.

        Methods that are built one after another of one model share it, and what is remembered of
        it: it must not be changed.
        """
        seed = self.config.seeds(arm)[0] if seed is None else seed
        key = (places.build(self.config), runs.settings_id(self.config), arm, seed)
        if key not in _SHARED:
            _SHARED.clear()  # one at a time: real models are large
            _SHARED[key] = model(self.config, arm, seed)
        return _SHARED[key]

    def product(self, name: str) -> Path:
        """Folder of a product."""
        return ensure(self.config, name)

    def latent_size(self) -> tuple[int, int]:
        """Channels and side of the profile's latents."""
        return latent_size(self.config)

    def regions(self) -> Sequence[dict[str, Any]]:
        """Regions whose boxes make the mean boxes."""
        return prior_regions(self.config) if self.given_regions is None else self.given_regions


def no_skill_methods(config: Config, rules: Sequence[str] | None = None) -> list[Grounder]:
    """Methods that read no words, by rule (default: those of the profile's table).

    Mean boxes are left out where no boxes are known.
    """
    from g2g_utils.bench import sanity

    _, side = latent_size(config)
    if rules is None:
        table = [row.settings for row in rows(config).values() if row.kind.name == "no-skill"]
        rules = [settings.rule for settings in table]
    return sanity.no_skill_methods(prior_regions(config), config.image_size, (side, side), rules)


# ---------------------------------------------------------------- models


def vae(config: Config) -> AutoencoderKL:
    """The profile's autoencoder: published, or made here."""
    from g2g_utils import models

    return models.load_vae(config.vae.pretrained or ensure(config, "vae"), config.vae.revision)


def latent_size(config: Config) -> tuple[int, int]:
    """Channels and side of a latent of the profile's autoencoder."""
    from g2g_utils import models

    found = vae(config)
    levels = len(found.config.block_out_channels) - 1
    side = config.image_size // (models.unshuffle_factor(found) * 2**levels)
    return found.config.latent_channels, side


def text_encoder(config: Config, name: str) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """Tokenizer and text encoder of a name in `encoders`: published, or made here."""
    from g2g_utils import models

    encoder = config.encoders[name]
    source = encoder.pretrained or ensure(config, f"encoders/{name}")
    return models.load_text_encoder(source, encoder.revision, encoder.subfolder)


def untrained_unet(
    config: Config, seed: int, text_width: int, lora_rank: int | None = None
) -> UNet2DConditionModel:
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


def start_unet(
    config: Config, seed: int, text_width: int, lora_rank: int | None = None
) -> UNet2DConditionModel:
    """The U-Net every arm of a seed starts from: pretrained, the foundation's, or a new one."""
    from g2g_utils import models

    unet = untrained_unet(config, seed, text_width, lora_rank)
    if config.unet.foundation_steps and not config.unet.pretrained:
        models.adopt(unet, ensure(config, "foundation") / "unet")
    return unet


def model(
    config: Config, arm: str | None = None, seed: int | None = None, device: str | None = None
) -> GroundingModel:
    """The grounding model of an arm and seed (the first ones by default).

    device: by default a GPU for Stable Diffusion's size, where there is one, else the CPU.
    """
    from g2g_utils.experiment import assemble

    arm = arm or next(iter(config.training.arms))
    seed = config.training.seeds[0] if seed is None else seed
    if arm in config.training.arms:
        encoder = f"encoders/{config.training.arms[arm].encoder}"
        wanted = present(config, ["vae", encoder])
        for name in [*wanted, *([] if config.loaded_unet(arm) else [f"ldm/{arm}-s{seed}"])]:
            ensure(config, name)
    return assemble.load(config, arm, seed, device or assemble.default_device(config))


def training_logs(config: Config) -> dict[str, pd.DataFrame]:
    """Training logs by ARM-sSEED of the U-Nets that are made or shipped; none is trained for it."""
    import pandas as pd

    from g2g_utils.training.fit import read_log

    logs = {}
    for name in KINDS["ldm"].names(config):
        place = find(config, name)
        if place is not None and (place / "log.jsonl").is_file():
            logs[name.removeprefix("ldm/")] = pd.DataFrame(read_log(place))
    return logs


# ---------------------------------------------------------------- images matched with reports


def facts(config: Config, split: str) -> list[frozenset[tuple[str | None, ...]]] | None:
    """Finding, side, zone and size of all that is abnormal in each phantom; None for real films."""
    from g2g_utils.data import phantoms, sources

    if config.data.source != "phantoms" or sources.held_out(config, split):
        return None
    count = {"train": config.data.train, "validation": config.data.validation}
    drawn = phantoms.facts(
        count.get(split, config.data.test), config.data.seed, split, **config.data.world
    )
    return [frozenset((f.finding, f.side, f.zone, f.size) for f in one) for one in drawn]


def matched(config: Config, item: str, words: str, split: str = "test") -> Matched:
    """A network ARM-sSEED of AdaMatch with the patches and captions of a split.

    Args:
        words: "all" or "content", which of a caption's words are compared.
    """
    import numpy as np
    import torch

    from g2g_utils.bench import retrieval
    from g2g_utils.data import sources
    from g2g_utils.methods import adamatch
    from g2g_utils.training.adamatch import read_captions

    joint = adamatch.load(ensure(config, f"adamatch/{item}"), config.text.max_length)
    examples = sources.examples(config, split)
    images = torch.from_numpy(np.stack([e.load(config.image_size) for e in examples]))[:, None]
    captions = read_captions(
        joint.tokenizer, [e.phrase for e in examples], config.text.max_length, words
    )
    return Matched(joint, examples, retrieval.patches(joint.network, images.float()), captions)


def retrieval_rows(config: Config) -> pd.DataFrame:
    """Ranks of all networks of AdaMatch, with `arm` and `seed`; what is missing is made."""
    import pandas as pd

    found = []
    for name in KINDS["retrieval"].names(config):
        arm, _, seed = name.removeprefix("retrieval/").rpartition("-s")
        table = pd.read_csv(ensure(config, name) / "ranks.csv")
        found.append(table.assign(arm=arm, seed=int(seed)))
    if not found:
        raise ConfigError(f"profile {config.profile!r} has no section adamatch: add one")
    return pd.concat(found, ignore_index=True)


# ---------------------------------------------------------------- features of images


def feature_networks(config: Config) -> dict[str, Any]:
    """Networks in whose features image fidelity is measured.

    "classifier": of the training images' findings, independent of every arm; "generic": image
    branch of the domain-agnostic task, where the profile trains one.
    """
    from g2g_utils.bench import fidelity

    networks: dict[str, Any] = {
        "classifier": fidelity.load_classifier(ensure(config, "classifier"))
    }
    if present(config, ["encoders/generic"]):
        networks["generic"] = fidelity.load_generic(ensure(config, "encoders/generic"))
    return networks


def reference_features(config: Config, network: Any) -> NDArray[np.float64]:
    """Features [n, d] of the first training images, read a batch at a time."""
    import numpy as np

    from g2g_utils.bench import fidelity

    count = min(REFERENCE, len(training_images(config)))
    batches = (slice(k, min(k + 64, count)) for k in range(0, count, 64))
    return np.concatenate(
        [fidelity.extract(network, tensor_images(config, part)) for part in batches]
    )


def fidelity_features(config: Config, arm: str, seed: int) -> dict[str, NDArray[np.float64]]:
    """Features of an arm's samples, and mean and covariance of the real ones, by network."""
    import numpy as np

    with np.load(ensure(config, f"fidelity/{arm}-s{seed}") / "features.npz") as file:
        return {name: file[name].astype(float) for name in file.files}
