"""Profiles: one validated, frozen configuration object per experiment world."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
SHIPPED_FILMS = Path("data/radiographs")  # whose licence lets them be shown
FINDINGS = (  # the eight classes of MS-CXR, spelt as in its column `category_name`
    "Atelectasis",
    "Cardiomegaly",
    "Consolidation",
    "Edema",
    "Lung Opacity",
    "Pleural Effusion",
    "Pneumonia",
    "Pneumothorax",
)


Curve = Literal["linear", "quadratic", "mixture"]  # of Bimodal Bias Merging (eq. 5-7)


class ConfigError(ValueError):
    """A profile, key or value that cannot be used. The message names it and the fix."""


@dataclass(frozen=True)
class World:
    """Settings of the phantoms. Every field is an argument of `data.phantoms.generate`."""

    size: int = 64  # side of the square image, pixels (>= 32)
    zoom: tuple[float, float] = (0.7, 1.2)  # thorax size / image size
    aspect: tuple[float, float] = (0.84, 1.2)  # thorax width / height, 1 = unstretched
    shift: float = 0.25  # largest shift of the thorax, fraction of the image side
    rotation: float = 5.0  # largest in-plane rotation, degrees
    normal: float = 0.08  # share of images without a finding
    counts: tuple[float, float, float] = (0.28, 0.47, 0.25)  # 1, 2, 3 findings among the others
    findings: tuple[str, ...] = FINDINGS  # classes that occur
    same_finding: float = 0.2  # chance that a focal finding recurs in the other lung
    bilateral: float = 0.3  # chance that an effusion takes both sides, 1 − it for one-sided edema
    devices: float = 0.25  # share of images with a pacemaker, line or leads
    second_image: float = 0.3  # share of patients with two images
    noise: tuple[float, float] = (0.01, 0.025)  # standard deviation of the noise
    backgrounds: str | tuple[str, ...] | None = None  # folder or files of normal radiographs
    natural: bool = False  # on them: soft, mottled findings in the exposure of the film

    def __post_init__(self) -> None:
        checks = {
            "size": self.size >= 32,
            "zoom": 0.4 <= self.zoom[0] <= self.zoom[1] <= 1.5,
            "aspect": 0.5 <= self.aspect[0] <= self.aspect[1] <= 2,
            "shift": 0 <= self.shift <= 0.3,
            "rotation": 0 <= self.rotation <= 20,
            "counts": len(self.counts) == 3 and abs(sum(self.counts) - 1) < 1e-6,
            "findings": bool(self.findings) and set(self.findings) <= set(FINDINGS),
            "noise": 0 <= self.noise[0] <= self.noise[1],
        }
        for name in ("normal", "same_finding", "bilateral", "devices", "second_image"):
            checks[name] = 0 <= getattr(self, name) <= 1
        for name, ok in checks.items():
            if not ok:
                raise ValueError(f"World.{name} = {getattr(self, name)!r} is out of range")


class Section(BaseModel):
    """A frozen part of the configuration. Unknown keys are errors."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False
    )


class HeldOut(Section):
    """Source of the image-phrase pairs of validation or test, other than phantoms."""

    source: Literal[
        "ms_cxr", "chestxray14", "rsna", "siim", "mimic_cxr", "openi", "folder", "radiographs"
    ]
    root: Path  # folder of the data set, or its table
    images: Path | None = None  # folder of its images, if they lie elsewhere
    patients: tuple[float, float] = (0.0, 1.0)  # share of the patients, [from, to) of a fixed order
    subset: Literal["train", "validation", "test"] | None = None  # of the source's own splits

    @model_validator(mode="after")
    def _some_patients(self) -> HeldOut:
        low, high = self.patients
        if not 0 <= low < high <= 1:
            raise ValueError(
                f"patients = [{low}, {high}]: write [from, to] with 0 <= from < to <= 1"
            )
        return self


class Data(Section):
    """Source and number of image-text pairs."""

    source: Literal["phantoms", "mimic_cxr", "openi", "folder", "radiographs"]
    root: Path | None = None  # folder of a downloaded data set (paper, open)
    train: int = Field(gt=0)  # images used for fine-tuning
    validation: int = Field(gt=0)  # images for every choice
    test: int = Field(gt=0)  # images for every reported number
    seed: int = 0
    world: dict[str, Any] = {}  # fields of `World` that differ from its defaults
    images: Path | None = None  # folder of the training images, if outside root
    reports: Path | None = None  # mimic_cxr: folder or zip of the reports, if outside root
    repeats: int = Field(1, ge=0)  # radiographs: times each captioned film is taken
    implants: int = Field(0, ge=0)  # radiographs: phantoms' findings drawn into normal films
    implant_world: dict[str, Any] = {}  # fields of `World` for them
    drawn: int = Field(0, ge=0)  # radiographs: phantoms beside the films
    validation_from: HeldOut | None = None  # None: from the training source
    test_from: HeldOut | None = None

    @model_validator(mode="after")
    def _files_have_a_place(self) -> Data:
        if self.source != "phantoms" and self.root is None:
            raise ValueError(f"source {self.source!r} needs root, the folder of its files")
        return self

    @field_validator("world", "implant_world")
    @classmethod
    def _world_exists(cls, world: dict[str, Any]) -> dict[str, Any]:
        known = [field.name for field in fields(World)]
        if unknown := [name for name in world if name not in known]:
            raise ValueError(f"world has no {', '.join(unknown)}: choose from {', '.join(known)}")
        try:
            World(**world)
        except TypeError as error:
            raise ValueError(f"world = {world}: {error}") from None
        return world


class Vae(Section):
    """Latent autoencoder: a hub id / folder to load, or sizes and budget to train one."""

    pretrained: str | None = None
    revision: str | None = None
    channels: tuple[int, ...] = (24, 48)
    latent_channels: int = 4
    unshuffle: int = Field(2, gt=0)  # pixel-unshuffle before the encoder; 1: Stable Diffusion
    steps: int = Field(1500, gt=0)
    batch_size: int = Field(32, gt=0)
    learning_rate: float = Field(2.0e-3, gt=0)
    kl_weight: float = Field(1.0e-6, ge=0)
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"


class Text(Section):
    """Form in which the U-Net gets a phrase."""

    max_length: int = Field(77, gt=2)  # tokens, start and end among them
    zero_padding: bool = False  # zero the states at padding positions (miniature arms: all alike)


class Encoder(Section):
    """A text encoder: a hub id / folder to load, or a recipe to pre-train one."""

    pretrained: str | None = None
    revision: str | None = None
    subfolder: str | None = None  # of a pipeline (text_encoder); its tokenizer lies in `tokenizer`
    kind: Literal["bert", "clip"]
    objective: Literal["domain", "mlm", "global", "generic", "random"] = "domain"
    width: int = 64
    layers: int = 3
    heads: int = 4
    mlm_steps: int = Field(0, ge=0)  # masked-language modelling alone, first
    steps: int = Field(0, ge=0)  # then the full objective
    batch_size: int = Field(64, gt=1)  # a contrast needs two
    learning_rate: float = Field(1.0e-3, gt=0)

    @model_validator(mode="after")
    def _subfolder_of_something(self) -> Encoder:
        if self.subfolder and not self.pretrained:
            raise ValueError(f"subfolder = {self.subfolder!r} needs pretrained, the pipeline")
        return self


class Unet(Section):
    """Denoising U-Net: a hub id / folder to load, or sizes in Stable Diffusion's block layout."""

    pretrained: str | None = None
    revision: str | None = None
    channels: tuple[int, ...] = (32, 48, 48)
    layers_per_block: int = 1
    heads: int = Field(4, gt=0)
    attention_levels: tuple[bool, ...] | None = None  # cross-attention by level, finest first;
    # None: as in Stable Diffusion, at all but the deepest
    middle_attention: bool = True  # cross-attention in the middle block, as in Stable Diffusion
    query_key_gain: float = 2.5  # initial scale of to_q/to_k; attention stays near uniform without
    foundation_steps: int = Field(0, ge=0)  # denoising without text that every arm starts from
    scheduler: str | None = None  # hub id / folder of the noise schedule; None = SD 1.5's values
    scheduler_revision: str | None = None  # commit of the schedule's repository
    prediction: Literal["epsilon", "v_prediction"] = "epsilon"

    @model_validator(mode="after")
    def _a_choice_for_every_level(self) -> Unet:
        if self.attention_levels is not None and len(self.attention_levels) != len(self.channels):
            raise ValueError(
                f"attention_levels has {len(self.attention_levels)} entries for "
                f"{len(self.channels)} channels: write one per level"
            )
        return self

    @property
    def schedule_revision(self) -> str | None:
        """Commit of the noise schedule: its own, or else the U-Net's if one repository has both."""
        same = self.scheduler == self.pretrained
        return self.scheduler_revision or (self.revision if same else None)

    @property
    def levels_with_attention(self) -> tuple[bool, ...]:
        """For each level, finest first: True if it has cross-attention."""
        return self.attention_levels or (True,) * (len(self.channels) - 1) + (False,)


class Arm(Section):
    """One arm of the encoder comparison: a text encoder, frozen or learnable."""

    encoder: str
    learnable: bool = False
    shuffled: bool = False  # control: captions permuted over the training images
    control: bool = False  # grounding of activation maps is evaluated, nothing else
    seeds: tuple[int, ...] | None = None  # None: those of all arms
    lora_rank: int | None = Field(None, ge=0)  # None: as in `adaptation`; 0: all weights
    untuned: bool = False  # control: the pretrained U-Net, without any training here
    pipeline: str | None = (
        None  # folder whose U-Net, VAE and schedule are loaded, not the profile's
    )
    pictures: Literal["glyphs"] | None = None  # other pictures to train on than the profile's


class Training(Section):
    """Fine-tuning of the U-Net under a text encoder (paper, section 4)."""

    arms: dict[str, Arm]
    seeds: tuple[int, ...]
    steps: int = Field(gt=0)
    batch_size: int = Field(gt=0)
    accumulate: int = Field(1, gt=0)
    learning_rate: float = Field(5.0e-5, ge=0)
    text_learning_rate: float = Field(5.0e-5, ge=0)  # learnable arms
    attention_lr_scale: float = Field(1.0, gt=0)  # factor on cross-attention's learning rate
    warmup: int = Field(1000, ge=0)
    weight_decay: float = Field(0.01, ge=0)
    clip: float = Field(1.0, gt=0)
    ema: float = Field(0.9999, ge=0, lt=1)
    dropout: float = Field(0.3, ge=0, le=1)  # probability of replacing the text by the empty prompt
    timestep_density: Literal["uniform", "linear"] = "uniform"  # linear: density grows with t
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    checkpoint_every: int = Field(500, gt=0)
    log_every: int = Field(10, gt=0)
    live_steps: int = Field(100, gt=0)  # of the fine-tuning that notebook 03 runs live

    @field_validator("seeds")
    @classmethod
    def _seeds_differ(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
            raise ValueError(f"seeds = {list(seeds)}: write at least one, each once, from 0 up")
        return seeds

    @field_validator("arms")
    @classmethod
    def _arms_have_names(cls, arms: dict[str, Arm]) -> dict[str, Arm]:
        if not arms or not all(re.fullmatch(r"[\w.-]+", name) for name in arms):
            raise ValueError(f"arms = {list(arms)}: write at least one, named by letters and -")
        return arms

    @property
    def compared(self) -> list[str]:
        """Names of the arms in every comparison: all but the controls."""
        return [name for name, arm in self.arms.items() if not arm.control]


class Adaptation(Section):
    """Adaptation of a pretrained U-Net to the task. An error without `unet.pretrained`.

    Released weights belong to one text encoder: only the first arm and seed are then evaluated.
    """

    released: str | None = None  # hub id / folder of a fine-tuned U-Net: evaluate it, train nothing
    revision: str | None = None  # commit of the released weights
    lora_rank: int = Field(0, ge=0)  # 0: all weights of the U-Net are trained
    lora_alpha: int = Field(16, gt=0)
    gradient_checkpointing: bool = False  # less memory, about a third slower


class Grounding(Section):
    """Attention extraction and merging defaults (paper, section 3 and appendix A)."""

    timesteps: int = Field(50, gt=0, le=1000)  # as many as the noise schedule has
    keep_last: int = Field(40, gt=0)
    filter: Literal["lexical", "disease", "all"] = "lexical"
    layers: str | tuple[str, ...] | None = None  # names, beginnings, blocks; None: all
    curve: Curve | None = "mixture"
    text_guidance: float = 16.0
    # what the U-Net sees (appendix A); the last two: inversion, of Vilouras et al.
    sampling: Literal["gt", "gt_first", "cfg", "text", "inversion", "inversion_p"] = "gt"
    batch_size: int = Field(64, gt=0)  # U-Net rows per forward
    spacy_model: str | None = None  # of content words: None is the word list; "scispacy"; a package

    @model_validator(mode="after")
    def _kept_steps_exist(self) -> Grounding:
        if self.layers is not None and not self.layers:
            raise ValueError("layers is empty: name some, or write null for all")
        if self.keep_last > self.timesteps:
            raise ValueError(
                f"keep_last = {self.keep_last} exceeds timesteps = {self.timesteps}: lower it"
            )
        return self


class Method(BaseModel):
    """A row of the benchmark: a kind of `methods/registry.py` and that kind's settings."""

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)

    kind: str | None = None
    label: str | None = None  # its name in tables and figures; None: the row's own
    control: bool = False  # drawn grey, beside those that are compared

    @property
    def settings(self) -> dict[str, Any]:
        """The kind, where one is named, and its settings, unchecked."""
        named = {} if self.kind is None else {"kind": self.kind}
        return named | dict(self.model_extra or {})


class Evaluation(Section):
    """Summary of results over a data set."""

    pairs: int = Field(gt=0)  # test image-phrase pairs evaluated
    validation_pairs: int = Field(gt=0)
    bootstrap: int = Field(1000, gt=0)  # resamples of patients for the 95 % intervals
    bias_pairs: int = Field(gt=0)  # pairs for the Bimodal Bias Merging rows (twice the cost)


class Fidelity(Section):
    """Image quality of samples (paper, FID section)."""

    samples: int = Field(gt=0)
    steps: int = Field(25, gt=0)
    guidance: float = 4.0
    batch_size: int = Field(64, gt=0)
    classifier_steps: int = Field(600, gt=0)  # of the classifier whose features measure distance


class MatchArm(Section):
    """One arm of AdaMatch: the method, or one of its controls."""

    adaptive: bool = True  # false: patches stay on their grid, with the same parameters
    encoder: str = "mlm"  # of `encoders`: where the text side starts
    words: Literal["all", "content"] = "all"  # words that the contrast sees
    shuffled: bool = False  # control: captions permuted over the training images


class AdaMatchSettings(Section):
    """AdaMatch: patches that move, matched with words."""

    arms: dict[str, MatchArm] = Field(min_length=1)
    seeds: tuple[int, ...] = Field((0,), min_length=1)
    patch: int = Field(4, gt=0)  # pixels of the first stage's patches; each stage doubles them
    widths: tuple[int, ...] = Field((48, 64), min_length=2)  # of the stages; the last is matched
    depths: tuple[int, ...] = (1, 2)
    heads: tuple[int, ...] = (1, 2)
    reductions: tuple[int, ...] = (4, 1)  # of the grid of keys and values
    mlp_ratios: tuple[int, ...] | None = None  # of the stages; None: 4 each
    pretrained: str | None = None  # hub id / folder of a PVT whose first stages are the start
    revision: str | None = None  # commit of it
    text_layers: int | None = Field(None, gt=0)  # first layers of the text side; None: all
    joint: int = Field(64, gt=0)  # channels in which patches and words are compared
    smallest: float = Field(0.0625, ge=0, lt=0.25)  # floor of half sides, in pitches; published: 0
    classify_steps: int = Field(600, ge=0)  # findings alone, first
    steps: int = Field(3000, gt=0)  # then the contrast
    batch_size: int = Field(32, gt=1)  # a contrast needs two
    learning_rate: float = Field(1.5e-3, gt=0)
    text_learning_rate: float = Field(5.0e-4, gt=0)
    box_lr_scale: float = Field(0.3, gt=0)  # of the layers that place boxes
    weight_decay: float = Field(0.01, ge=0)
    ema: float | None = Field(0.995, gt=0, lt=1)
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    checkpoint_every: int = Field(250, gt=0)

    @field_validator("arms")
    @classmethod
    def _arms_have_names(cls, arms: dict[str, MatchArm]) -> dict[str, MatchArm]:
        if wrong := [name for name in arms if not re.fullmatch(r"[\w.-]+", name)]:
            raise ValueError(f"arm {wrong[0]!r}: name it by letters, digits and -")
        return arms

    @model_validator(mode="after")
    def _every_stage_is_described(self) -> AdaMatchSettings:
        for name in ("depths", "heads", "reductions"):
            if len(getattr(self, name)) != len(self.widths):
                raise ValueError(f"{name} has not one entry for each of {len(self.widths)} widths")
        if self.mlp_ratios is not None and len(self.mlp_ratios) != len(self.widths):
            raise ValueError(f"mlp_ratios has not one entry for each of {len(self.widths)} widths")
        if wrong := [w for w, h in zip(self.widths, self.heads, strict=True) if w % h]:
            raise ValueError(f"widths: {wrong[0]} is no multiple of its number of heads")
        return self


class VqSettings(Section):
    """Tokenizer of films: a vector-quantised autoencoder trained here."""

    pretrained: Path | None = None  # checkpoint of taming's VQ-GAN of 256 pixels, f = 16
    codes: int = Field(256, gt=1)
    code_width: int = Field(16, gt=0)
    channels: tuple[int, ...] = Field((32, 64), min_length=1)  # of its levels, finest first
    unshuffle: int = Field(4, gt=1)  # pixels of a side that become channels before it
    warmup: int = Field(100, gt=0)  # steps before the codebook is made
    steps: int = Field(1000, gt=0)
    restart_every: int = Field(100, gt=0)  # steps after which codes that nothing uses are moved
    batch_size: int = Field(32, gt=0)
    learning_rate: float = Field(2.0e-3, gt=0)
    checkpoint_every: int = Field(250, gt=0)

    @property
    def pixels(self) -> int:
        """Pixels of a side that one code stands for."""
        return 16 if self.pretrained else self.unshuffle << (len(self.channels) - 1)


Hints = Literal["none", "own", "shuffled", "oracle"]


class CyclicSettings(Section):
    """AdaMatch-Cyclic: one language model that writes reports of films and films of reports."""

    hints: tuple[Hints, ...] = Field(("own",), min_length=1)  # one arm each
    seeds: tuple[int, ...] = Field((0,), min_length=1)
    match: str = ""  # arm of `adamatch` (its first seed) that finds hints; empty: the first
    words: str = "mlm"  # of `encoders`, whose tokenizer names the words
    vq: VqSettings = VqSettings.model_validate({})
    per_group: int = Field(30, gt=0)  # most frequent training words of a group in the book
    keywords: int = Field(6, gt=0)  # of a film, in its prompt
    book_pairs: int = Field(1000, gt=0)  # training pairs that agree best give the key patches
    pair_words: int = Field(5, gt=0)  # words of such a pair, of which each gives its best patch
    word_patches: int = Field(5, gt=0)  # key patches of each word of a report
    keypatches: int = Field(5, gt=0)  # of a report, in its prompt
    centred: bool = True  # keywords: less their mean over training films
    pretrained: str | None = None  # hub id / folder of a GPT-NeoX that learns the codes
    revision: str | None = None  # commit of it
    lora_rank: int = Field(0, ge=0)  # of a pretrained one; 0: all its weights are trained
    lora_alpha: int = Field(16, gt=0)
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    width: int = Field(96, gt=0)  # of one trained from nothing
    layers: int = Field(3, gt=0)
    heads: int = Field(3, gt=0)
    context: int = Field(160, gt=0)  # tokens of a record at most
    steps: int = Field(1500, gt=0)
    batch_size: int = Field(16, gt=0)  # films a step, each in both directions
    learning_rate: float = Field(2.0e-3, gt=0)
    weight_decay: float = Field(0.01, ge=0)
    ema: float | None = Field(0.995, gt=0, lt=1)
    top_p: float = Field(0.92, gt=0, le=1)  # of the codes that are drawn
    checkpoint_every: int = Field(250, gt=0)

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> CyclicSettings:
        if self.width % (2 * self.heads):
            raise ValueError(f"width = {self.width} is no multiple of twice {self.heads} heads")
        return self


class DenseArm(Section):
    """One arm of G2D: what its decoder must predict. All but one setting are the paper's."""

    target: Literal["none", "own", "other", "image", "lesions", "mean"] = "own"
    # own pseudo mask; another image's; the image; true lesions; the mean pseudo mask
    weight: float = Field(1.0, ge=0)  # of the decoder's loss
    cut: Literal["quantile", "mixture"] = "quantile"
    quantile: float = Field(0.85, gt=0, lt=1)
    percentile_of: Literal["whole", "body"] = "whole"
    enlarge: Literal["nearest", "bilinear"] = "nearest"
    body: bool = True  # body mask
    smooth: bool = True  # bilateral filter
    per_head: bool = False  # one mask a head
    heads: int | None = Field(None, gt=0)  # None: as in `g2d.heads`
    skips: int | None = Field(None, ge=0)  # of the decoder, deepest first; None: all


class G2DSettings(Section):
    """G2D: dense pre-training by pseudo-segmentation."""

    arms: dict[str, DenseArm] = Field(min_length=1)
    seeds: tuple[int, ...] = Field((0,), min_length=1)
    encoder: Literal["small", "resnet50"] = "small"  # of images
    start: Path | None = (
        None  # first weights: ImageNet's ResNet-50, or a checkpoint of the authors'
    )
    text: str = "mlm"  # of `encoders`; frozen
    joint: int = Field(128, gt=0)  # channels of the joint space
    heads: int = Field(4, gt=0)
    warmup_steps: int = Field(300, gt=0)  # contrast alone, shared by a seed's arms
    steps: int = Field(500, gt=0)  # of an arm, after the warm-up
    batch_size: int = Field(48, gt=1)  # a contrast needs two
    learning_rate: float = Field(1.0e-3, gt=0)
    weight_decay: float = Field(1.0e-4, ge=0)
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    checkpoint_every: int = Field(250, gt=0)
    live_steps: int = Field(100, gt=0)  # of the arm that notebook 15 trains live

    @field_validator("arms")
    @classmethod
    def _arms_have_names(cls, arms: dict[str, DenseArm]) -> dict[str, DenseArm]:
        if wrong := [a for a in arms if not re.fullmatch(r"[\w.-]+", a) or a == "warmup"]:
            raise ValueError(f"arm {wrong[0]!r}: name it by letters and -, not warmup")
        return arms


class Resources(Section):
    """Resources of one job of a rule on a cluster. They change no result."""

    gpu: int = Field(0, ge=0)
    mem_mb: int = Field(3000, gt=0)  # MiB
    runtime: int = Field(720, gt=0)  # minutes
    processes: int = Field(1, gt=0)  # processes per training; one per GPU


class Config(Section):
    """All settings of a run. `load` makes it; nothing changes it afterwards."""

    profile: str
    image_size: int = Field(gt=0)
    data: Data
    vae: Vae
    text: Text
    encoders: dict[str, Encoder]
    unet: Unet
    training: Training
    adaptation: Adaptation = Field(default_factory=lambda: Adaptation.model_validate({}))
    grounding: Grounding
    evaluation: Evaluation
    fidelity: Fidelity
    adamatch: AdaMatchSettings | None = None  # None: the profile trains no such network
    cyclic: CyclicSettings | None = None  # None: no reports and films in a cycle
    g2d: G2DSettings | None = None  # None: the profile trains no such network
    methods: dict[str, Method] = {}  # rows of the benchmark, in the order of its tables
    retrain: bool = False  # ignore shipped weights and train everything here
    # by rule of the workflow (product, training, notebook, point); left out of dumps and keys
    resources: dict[Literal["product", "training", "notebook", "point"], Resources] = Field(
        default_factory=dict, exclude=True
    )

    @model_validator(mode="after")
    def _arms_have_encoders(self) -> Config:
        for name, arm in self.training.arms.items():
            if arm.encoder not in self.encoders:
                raise ValueError(
                    f"training.arms.{name}.encoder = {arm.encoder!r} is not in encoders"
                )
        return self

    @model_validator(mode="after")
    def _matching_fits_the_profile(self) -> Config:
        if (settings := self.adamatch) is None:
            return self
        for name, arm in settings.arms.items():
            if arm.encoder not in self.encoders:
                raise ValueError(f"adamatch.arms.{name}.encoder = {arm.encoder!r} is no encoder")
        cells = settings.patch * 2 ** (len(settings.widths) - 1)
        if self.image_size % cells:
            raise ValueError(
                f"image_size = {self.image_size} is no multiple of {cells} pixels, "
                "AdaMatch's largest patch"
            )
        return self

    @model_validator(mode="after")
    def _the_cycle_fits_the_profile(self) -> Config:
        if (settings := self.cyclic) is None:
            return self
        if settings.words not in self.encoders:
            raise ValueError(f"cyclic.words = {settings.words!r} is not in encoders")
        if self.image_size % settings.vq.pixels:
            raise ValueError(
                f"image_size = {self.image_size} is no multiple of the {settings.vq.pixels} pixels "
                "of a code (cyclic.vq)"
            )
        cells = (self.image_size // settings.vq.pixels) ** 2
        if cells + 16 > settings.context:
            raise ValueError(f"cyclic.context = {settings.context}: a film alone has {cells} codes")
        hinted = not {"own", "shuffled"}.isdisjoint(settings.hints)
        if hinted and (self.adamatch is None or settings.match not in ("", *self.adamatch.arms)):
            raise ValueError(
                "cyclic.hints own and shuffled come from AdaMatch: give the profile a section "
                "adamatch and name its arm in cyclic.match, or leave out both"
            )
        return self

    @model_validator(mode="after")
    def _dense_training_has_a_text_encoder(self) -> Config:
        if self.g2d and self.g2d.text not in self.encoders:
            raise ValueError(f"g2d.text = {self.g2d.text!r} is not in encoders")
        return self

    @field_validator("methods")
    @classmethod
    def _methods_have_names(cls, methods: dict[str, Method]) -> dict[str, Method]:
        if wrong := [name for name in methods if not re.fullmatch(r"[\w.+-]+", name)]:
            raise ValueError(f"row {wrong[0]!r}: name it by letters, digits and . + -; add a label")
        return methods

    @model_validator(mode="after")
    def _adaptation_has_a_start(self) -> Config:
        unset = Adaptation.model_validate({})
        adapters = [arm for arm in self.training.arms.values() if arm.lora_rank is not None]
        if not self.unet.pretrained and (self.adaptation != unset or adapters):
            raise ValueError(
                "adaptation and lora_rank have no effect without unet.pretrained: set that, or "
                "remove them"
            )
        first = next(iter(self.training.arms.values()), None)
        if self.adaptation.released and first is not None and first.learnable:
            raise ValueError(
                "adaptation.released serves the first arm, whose text encoder must be frozen: put "
                "such an arm first"
            )
        return self

    @model_validator(mode="after")
    def _untuned_arms_are_loaded(self) -> Config:
        for name, arm in self.training.arms.items():
            settings = arm.learnable or arm.shuffled or arm.lora_rank is not None
            if arm.untuned and (settings or not self.unet.pretrained):
                raise ValueError(
                    f"training.arms.{name}.untuned needs unet.pretrained and leaves no use for "
                    "learnable, shuffled and lora_rank: nothing is trained in this arm"
                )
        return self

    @model_validator(mode="after")
    def _arms_of_other_pictures_or_pipelines_are_clear(self) -> Config:
        for name, arm in self.training.arms.items():
            loaded = arm.learnable or arm.shuffled or arm.untuned or arm.pictures
            if arm.pipeline and (loaded or arm.lora_rank is not None):
                raise ValueError(
                    f"training.arms.{name}.pipeline leaves no use for learnable, shuffled, "
                    "untuned, pictures and lora_rank: nothing is trained in this arm"
                )
            if arm.pictures and (self.unet.pretrained or arm.shuffled):
                raise ValueError(
                    f"training.arms.{name}.pictures trains a new U-Net on other pictures: leave "
                    "out unet.pretrained and shuffled, or write untuned for the pretrained one"
                )
        return self

    def loaded_unet(self, arm: str) -> tuple[str, str | None] | None:
        """Source and revision of the U-Net that an arm loads unchanged, or None."""
        if pipeline := self.training.arms[arm].pipeline:
            return pipeline, None
        if self.training.arms[arm].untuned:
            return str(self.unet.pretrained), self.unet.revision
        if self.unet.pretrained and self.adaptation.released:
            return str(self.adaptation.released), self.adaptation.revision
        return None

    def seeds(self, arm: str) -> tuple[int, ...]:
        """Seeds of the trainings of an arm. A loaded arm has the first alone."""
        own = self.training.arms[arm].seeds
        found = self.training.seeds if own is None else own
        return found if self.loaded_unet(arm) is None else found[:1]

    def job(self, rule: str) -> Resources:
        """Resources of a job of this rule of the workflow."""
        given = (section for name, section in self.resources.items() if name == rule)
        return next(given, Resources.model_validate({}))

    @property
    def publishable(self) -> bool:
        """True if figures may be committed: of phantoms alone, or of the films that are shipped."""
        data = self.data
        films = data.validation_from or data.test_from or data.world.get("backgrounds")
        shipped = data.source == "radiographs" and data.root == SHIPPED_FILMS
        fit = {"miniature": data.source == "phantoms", "radiographs": shipped}
        return fit.get(self.profile, False) and not films


def profiles() -> list[str]:
    """Names of the profiles found in configs/."""
    return sorted(p.stem for p in CONFIGS.glob("*.yaml"))


def load(profile: str, **overrides: Any) -> Config:
    """Read `configs/<profile>.yaml` (or any YAML file), apply overrides, validate and freeze.

    Args:
        profile: name of a profile, or path of a YAML file.
        overrides: dotted (`**{"grounding.timesteps": 10}`) or with a double underscore
            (`grounding__timesteps=10`).

    Raises:
        ConfigError: unknown profiles and keys, and unusable values; one line each.
    """
    path = CONFIGS / f"{profile}.yaml"
    if profile.endswith((".yaml", ".yml")):
        path, profile = Path(profile), Path(profile).stem
        if not path.is_file():
            raise ConfigError(f"no such file {path}: name a profile or its YAML file")
    elif profile not in profiles():
        raise ConfigError(f"unknown profile {profile!r}: choose one of {', '.join(profiles())}")
    tree = _read(path)
    if "profile" in tree:
        raise ConfigError(f"{path.name}: remove the key 'profile': a profile is named by its file")
    for key, value in overrides.items():
        _set(tree, key.replace("__", ".").split("."), value)
    _leave_other_arms(tree)
    if any(key.replace("__", ".").startswith("training.arms") for key in overrides):
        _leave_rows_without_arm(tree)
    try:
        return Config.model_validate({"profile": profile, **tree})
    except ValidationError as error:
        raise ConfigError(_explain(path, error)) from None


def tree(profile: str, overrides: dict[str, Any]) -> dict[str, Any]:
    """The profile with overrides as plain data, in the form of a profile file."""
    config = load(profile, **overrides)
    resources = {rule: section.model_dump() for rule, section in config.resources.items()}
    return config.model_dump(mode="json", exclude={"profile"}) | {"resources": resources}


class _Loader(yaml.SafeLoader):
    """YAML in which a repeated key is an error."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """The mapping of a node."""
        names = [self.construct_object(key, deep=True) for key, _ in node.value]
        for (key, _), name in zip(node.value, names, strict=True):
            if names.count(name) > 1:
                raise yaml.MarkedYAMLError(None, None, f"key {name!r} occurs twice", key.start_mark)
        return super().construct_mapping(node, deep)


def value(name: str, text: str) -> Any:
    """Read a text as YAML. `name` names it in the error."""
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{name}: not YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise ConfigError(f"{name}: nested too deeply: settings have a few levels") from None


def _read(path: Path) -> dict[str, Any]:
    """A settings file as a mapping."""
    try:
        tree = value(path.name, path.read_text("utf-8"))
    except UnicodeError:
        raise ConfigError(f"{path.name}: not UTF-8 text: save it as UTF-8") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path.name}: no settings: write `key: value` lines, as in configs/")
    return tree


def _set(tree: dict[str, Any], parts: list[str], value: Any) -> None:
    """Put one override into the nested dictionary."""
    for part in parts[:-1]:
        tree = tree.setdefault(part, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"override {'.'.join(parts)!r}: {part!r} is a value, not a section")
    tree[parts[-1]] = value


def _leave_other_arms(tree: dict[str, Any]) -> None:
    """With released weights keep the first arm and seed, and untuned arms: no others have any."""
    training, adaptation = tree.get("training") or {}, tree.get("adaptation") or {}
    if isinstance(adaptation, dict) and adaptation.get("released"):
        arms = list((training.get("arms") or {}).items())
        untuned = [(k, v) for k, v in arms[1:] if isinstance(v, dict) and v.get("untuned")]
        training["arms"] = dict(arms[:1] + untuned)
        training["seeds"] = list(training.get("seeds") or [])[:1]
        _leave_rows_without_arm(tree)


def _leave_rows_without_arm(tree: dict[str, Any]) -> None:
    """Leave out methods of arms that an override took away; in a file they are errors."""
    arms, methods = (tree.get("training") or {}).get("arms"), tree.get("methods")
    if isinstance(arms, dict) and isinstance(methods, dict):
        tree["methods"] = {
            name: row
            for name, row in methods.items()
            if not isinstance(row, dict) or row.get("arm") in (None, *arms)
        }


def _explain(path: Path, error: ValidationError) -> str:
    """One line per error: key, value, problem, known keys."""
    lines = []
    for item in error.errors():
        key = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            lines.append(f"unknown key {key!r}; known keys there: {', '.join(_known(item['loc']))}")
        elif item["type"] == "missing":
            lines.append(f"missing key {key!r}")
        else:
            shown = "" if isinstance(item["input"], dict) else f" = {item['input']!r}"
            problem = item["msg"].removeprefix("Value error, ")
            lines.append(f"{key or 'config'}{shown}: {problem}"[:300])
    return f"{path.name}: " + "; ".join(lines)


def _known(loc: tuple[int | str, ...]) -> list[str]:
    """Field names of the section that holds the last part of `loc`."""
    section: Any = Config
    for part in loc[:-1]:
        fields = getattr(section, "model_fields", {})
        section = _section_in(fields[part].annotation) if part in fields else section
    return sorted(getattr(section, "model_fields", {}))


def _section_in(annotation: Any) -> Any:
    """The section within `Section | None` or `dict[str, Section]`, else the annotation itself."""
    inner = (a for a in get_args(annotation) if isinstance(a, type) and issubclass(a, Section))
    return next(inner, annotation)
