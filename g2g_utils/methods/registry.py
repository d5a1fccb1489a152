"""Kinds of methods by name: settings, needs, cost, citation, and the file that builds them.

A row of a profile's `methods:` table names a kind and the kind's settings; `rows` refuses an
unusable row before anything runs. A method is a file, and a row of `KINDS` that says where it is.
Nothing heavy is imported here: a method's file is imported when it builds.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

from pydantic import AfterValidator, Field, ValidationError

from g2g_utils.config import Config, ConfigError, Curve, Section
from g2g_utils.runs import places

if TYPE_CHECKING:
    from g2g_utils.methods.base import Grounder, HeatMap, Query
    from g2g_utils.models.protocol import LatentDiffusion

    Variants = Callable[[Query, HeatMap], Mapping[str, HeatMap]]


OTHER_PHRASE = "its map of another phrase"  # a row of the tables that no method has
Build = Callable[["Parts", str, Any, int | None], "Grounder | None"]  # parts, label, settings, seed


class Parts(Protocol):
    """Parts that an experiment offers to the methods it builds."""

    @property
    def config(self) -> Config:
        """The profile."""
        ...

    def model(self, arm: str, seed: int | None) -> LatentDiffusion:
        """The diffusion model of a training arm; seed None: the arm's first."""
        ...

    def product(self, name: str) -> Path:
        """Folder of a product such as `encoders/domain`, made if it is missing."""
        ...

    def latent_size(self) -> tuple[int, int]:
        """Channels and side of the profile's latents."""
        ...

    def regions(self) -> Sequence[Mapping[str, Any]]:
        """Training regions: `finding` and `boxes` in the profile's frame."""
        ...


@dataclass(frozen=True)
class File:
    """A published file that a method reads and no product makes."""

    path: Path  # where the profile expects it
    hub_id: str
    name: str
    revision: str | None = None

    @property
    def command(self) -> str:
        """The command that fetches it."""
        revision = f" --revision {self.revision}" if self.revision else ""
        return f"hf download {self.hub_id} {self.name}{revision} --local-dir {self.path.parent}"


@dataclass(frozen=True)
class Kind:
    """One kind of method; functions take the profile and a row's settings."""

    name: str
    settings: type[Section]  # of a row; unknown and missing ones are errors
    build: Build  # None, with a line that says why, where its files are absent
    citation: str
    licence: str
    cost: str  # in U-Net rows a phrase, or in its own words
    arm: Callable[[Any], str | None] = lambda settings: None  # training arm, whose seeds it has
    needs: Callable[[Config, Any], Sequence[str]] = lambda config, settings: ()  # products, no arms
    encoders: Callable[[Any], Sequence[str]] = lambda settings: ()  # text encoders, but for arms'
    files: Callable[[Any], Sequence[File]] = lambda settings: ()
    depends: Callable[[Config, Any], Mapping[str, Any]] = lambda config, settings: {}  # for keys
    pairs: Callable[[Config, Any], int] = lambda config, settings: config.evaluation.pairs  # scored
    measure: Literal["all", "vilouras"] = "all"  # of `bench.score`: metrics of its rows
    # the method that captures once for several maps, and their reduction; None: one map
    variants: Callable[[Any, Any], tuple[Grounder, Variants] | None] = lambda method, settings: None


def in_file(module: str, function: str = "build") -> Callable[..., Any]:
    """A function of a method's file, which is imported when the function is called."""

    def call(*arguments: Any) -> Any:
        return getattr(import_module(f"g2g_utils.methods.{module}"), function)(*arguments)

    return call


# ---------------------------------------------------------------- settings of a row


def _some_layers(layers: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
    """Refuse an empty choice, and names that no U-Net has."""
    names = (layers,) if isinstance(layers, str) else layers
    if names is not None and not names:
        raise ValueError("name some, or leave it out for those of the profile")
    if wrong := [name for name in names or () if not name.startswith(("down", "mid", "up"))]:
        raise ValueError(f"{wrong[0]!r} is no layer: names begin with down, mid or up")
    return layers


Layers = Annotated[str | tuple[str, ...] | None, AfterValidator(_some_layers)]


def _in_order(steps: tuple[int, int] | None) -> tuple[int, int] | None:
    """Refuse a window of steps that ends before it begins, or begins below 0."""
    if steps is not None and not 0 <= steps[0] <= steps[1]:
        raise ValueError("name the first and the last step, counted from 0")
    return steps


class G2GRow(Section):
    """Generate to Ground: a training arm's U-Net."""

    arm: str
    curve: Curve | None = None  # Bimodal Bias Merging; None: the plain activation map
    layers: Layers = None  # None: as the profile's `grounding.layers`


class BioViLRow(Section):
    """BioViL: the miniature of an encoder trained here, or the published one."""

    encoder: str = "domain"  # of `encoders`: trained here, or CXR-BERT
    image: Path | None = None  # checkpoint of the published image branch, from the repository

    @property
    def checkpoint(self) -> Path | None:
        """Place of the published image branch."""
        return None if self.image is None else places.ROOT / self.image.expanduser()


class NoSkillRow(Section):
    """A map by a rule that reads no words."""

    rule: Literal[
        "random",
        "centre prior",
        "brightness",
        "mean box",
        "mean box per finding",
        "mean box per finding and side",
    ]


class DAAMRow(Section):
    """DAAM's word heat maps of a training arm's U-Net."""

    arm: str
    normalize: bool = False  # divide each pixel by its attention to all words


class ZeroShotLDMRow(Section):
    """Attention in the middle of a film's inversion by a training arm's U-Net."""

    arm: str
    timesteps: int = Field(300, ge=10, le=1000)  # published; 50 costs a sixth
    sampling: Literal["inversion", "inversion_p", "gt"] = "inversion"  # gt: drawn noise, no walk
    layers: Layers = None  # None: all of the coarsest resolution
    window: Annotated[tuple[int, int] | None, AfterValidator(_in_order)] = None  # None: the middle
    sigma: float = Field(2.5 / 32, ge=0)  # width of the blur in cells of the coarsest map
    filter: Literal["all", "lexical", "disease"] = "all"  # tokens of the phrase


class InformationRow(Section):
    """Information maps: the gain of a phrase over conditions."""

    arm: str
    attention: bool = True  # false: information alone
    cost: Literal["default", "cheap"] = "default"  # two noise draws a timestep; cheap: one
    conditions: tuple[str, ...] | None = Field(None, min_length=1)  # None: empty and normal
    layers: Layers = None  # of the attention; None: `grounding.layers`


class AdaMatchRow(Section):
    """AdaMatch: a network of the profile's section `adamatch`."""

    network: str = "adaptive"  # an arm of `adamatch.arms`
    seed: int = Field(0, ge=0)
    boxes: bool = True  # false: patches are read at their places in the grid
    pool: Literal["mean", "max"] = "max"  # of the boxes over a pixel
    sigma: float = Field(5.0, ge=0)  # width of the Gaussian, in pixels
    centred: bool = True  # less each patch's mean cosine with all words that the text side knows

    @property
    def product(self) -> str:
        """Name of its weights."""
        return f"adamatch/{self.network}-s{self.seed}"


class G2DRow(Section):
    """G2D: a network of the profile's section `g2d`."""

    network: str = "ps"  # an arm of `g2d.arms`
    seed: int = Field(0, ge=0)
    features: Literal["value", "projected", "attention"] = "value"  # attention reads no words
    against: tuple[str, ...] = ()  # prompts whose mean cosine is subtracted; none: plain cosines


# ---------------------------------------------------------------- the kinds


BIOVIL_IMAGE = ("biovil_image_resnet50_proj_size_128.pt", "v1.1")  # file, revision
CXR_BERT = "microsoft/BiomedVLP-CXR-BERT-specialized"  # the repository that has it


def _biovil_depends(config: Config, row: BioViLRow) -> dict[str, Any]:
    """The published encoder, and whether the checkpoint is there."""
    place, encoder = row.checkpoint, config.encoders[row.encoder]
    there = place is not None and place.is_file()
    loaded = encoder.model_dump() if encoder.pretrained else {}
    return {"there": there, "encoder": loaded, "text": config.text.max_length}


def _match_needs(config: Config, row: AdaMatchRow) -> list[str]:
    """The network; ConfigError where the profile trains none of this name."""
    arms = config.adamatch.arms if config.adamatch else {}
    if row.network not in arms:
        known = f"choose from {', '.join(arms)}" if arms else "give the profile a section adamatch"
        raise ConfigError(f"no AdaMatch network {row.network!r}: {known}")
    return [row.product]


def _g2d_needs(config: Config, row: G2DRow) -> list[str]:
    """The network, and the text encoder it was trained with.

    Raises:
        ConfigError: the profile trains no such network.
    """
    arms = config.g2d.arms if config.g2d else {}
    if config.g2d is None or row.network not in arms:
        known = f"choose from {', '.join(arms)}" if arms else "give the profile a section g2d"
        raise ConfigError(f"no G2D network {row.network!r}: {known}")
    return [f"g2d/{row.network}-s{row.seed}", f"encoders/{config.g2d.text}"]


def _bias_pairs(config: Config, row: G2GRow) -> int:
    """Bias merging costs three times as much: a profile may score fewer pairs."""
    options = config.evaluation
    return options.pairs if row.curve is None else min(options.pairs, options.bias_pairs)


KINDS = {  # a new method adds its row here, with `build=in_file("its_file")`
    kind.name: kind
    for kind in (
        Kind(
            name="g2g",
            settings=G2GRow,
            build=in_file("g2g"),
            variants=in_file("g2g", "variants"),
            citation="Nützel, Dombrowski and Kainz: Generate to Ground, MIDL 2025",
            licence="MIT (authors' code and weights); the project's own code here",
            cost="T rows a phrase; bias merging adds 2 T rows of text sampling",
            arm=lambda row: str(row.arm),
            depends=lambda config, row: {"grounding": config.grounding.model_dump()},
            pairs=_bias_pairs,
        ),
        Kind(
            name="daam",
            settings=DAAMRow,
            build=in_file("daam"),
            citation="Tang et al.: What the DAAM, ACL 2023",
            licence="MIT (authors' code); the project's own code here",
            cost="T rows a phrase",
            arm=lambda row: str(row.arm),
            depends=lambda config, row: {"grounding": config.grounding.model_dump()},
        ),
        Kind(
            name="zero-shot-ldm",
            settings=ZeroShotLDMRow,
            build=in_file("zero_shot_ldm"),
            citation=(
                "Vilouras, Sanchez, O'Neil and Tsaftaris: Zero-Shot Medical Phrase Grounding with "
                "Off-the-shelf Diffusion Models, arXiv 2404.12920 (2024), IEEE JBHI"
            ),
            licence="MIT (authors' code); the project's own code here",
            cost="179 rows a film and 60 a phrase at T = 300; 29 and 10 at T = 50",
            arm=lambda row: str(row.arm),
            measure="vilouras",
        ),
        Kind(
            name="biovil",
            settings=BioViLRow,
            build=in_file("biovil"),
            citation="Boecking et al.: Making the Most of Text Semantics, ECCV 2022",
            licence="MIT (code and weights of the published one)",
            cost="no U-Net rows; one forward of the image branch a film",
            needs=lambda config, row: [f"encoders/{row.encoder}"],
            encoders=lambda row: [row.encoder],
            files=lambda row: (
                [File(row.checkpoint, CXR_BERT, *BIOVIL_IMAGE)] if row.checkpoint else []
            ),
            depends=_biovil_depends,
        ),
        Kind(
            name="adamatch",
            settings=AdaMatchRow,
            build=in_file("adamatch"),
            citation="Chen et al.: Fine-Grained Image-Text Alignment in Medical Imaging Enables "
            "Explainable Cyclic Image-Report Generation, ACL 2024",
            licence="none given with the authors' code; the project's own code here",
            cost="no U-Net rows; one forward of the image side a film",
            needs=_match_needs,
        ),
        Kind(
            name="g2d",
            settings=G2DRow,
            build=in_file("g2d"),
            citation="Liu et al.: G2D, NeurIPS 2024",
            licence="no licence file with the authors' code; the project's own code here",
            cost="no U-Net rows; one forward of the image encoder a film",
            needs=_g2d_needs,
        ),
        Kind(
            name="no-skill",
            settings=NoSkillRow,
            build=in_file("no_skill"),
            citation="none: what a method must beat",
            licence="MIT",
            cost="none",
            needs=lambda config, row: ["pairs", "vae"],  # the size of latents is that of the maps
        ),
        Kind(
            name="information",
            settings=InformationRow,
            build=in_file("information"),
            citation=(
                "Kong et al.: Interpretable Diffusion via Information Decomposition, ICLR 2024"
            ),
            licence="the project's own code",
            cost="2 T rows a phrase and 4 T rows a film (cheap: half of each)",
            arm=lambda row: str(row.arm),
            depends=lambda config, row: {
                "grounding": config.grounding.model_dump(),
                "dropped_captions": config.training.dropout > 0,
            },
        ),
    )
}


def register(kind: Kind) -> Kind:
    """Add a kind that is not in the table.

    Raises:
        ValueError: another kind has this name.
    """
    if kind.name in KINDS:
        raise ValueError(f"two kinds of method are called {kind.name!r}: rename one")
    KINDS[kind.name] = kind
    return kind


# ---------------------------------------------------------------- the profile's table


def parse(row: str, settings: Mapping[str, Any]) -> tuple[Kind, Section]:
    """Kind and checked settings of one row of the `methods:` table.

    Raises:
        ConfigError: for an unknown kind, or a missing, unknown or unusable setting; the message
            names the row and the fix.
    """
    given = dict(settings)
    name = given.pop("kind", None)
    if name not in KINDS:
        said = "has no kind" if name is None else f"has the unknown kind {name!r}"
        raise ConfigError(f"methods.{row} {said}: choose one of {', '.join(sorted(KINDS))}")
    try:
        return KINDS[name], KINDS[name].settings.model_validate(given)
    except ValidationError as error:
        problems = "; ".join(_problems(error, KINDS[name]))
        raise ConfigError(f"methods.{row} ({name}): {problems}") from None


def _problems(error: ValidationError, kind: Kind) -> Iterator[str]:
    """One text per unusable setting."""
    fields = ", ".join(kind.settings.model_fields) or "none"
    for item in error.errors():
        key = ".".join(map(str, item["loc"]))
        if item["type"] == "missing":
            yield f"needs the setting {key!r}"
        elif item["type"] == "extra_forbidden":
            yield f"has no setting {key!r}; its settings: {fields}"
        else:
            yield f"{key} = {item['input']!r}: {item['msg'].removeprefix('Value error, ')}"


@dataclass(frozen=True)
class Row:
    """A checked row of a profile's table."""

    name: str  # its key: a slug, part of its products' names
    label: str  # its name in every table and figure
    kind: Kind
    settings: Any
    arm: str | None

    @property
    def merged(self) -> bool:
        """True if its map is merged with the biases."""
        return getattr(self.settings, "curve", None) is not None


def rows(config: Config) -> dict[str, Row]:
    """The profile's methods by name, checked.

    Raises:
        ConfigError: for an unusable row, an unknown training arm or encoder, or two rows with one
            name in the tables; the message names the row and the fix.
    """
    found: dict[str, Row] = {}
    for name, given in config.methods.items():
        kind, settings = parse(name, given.settings)
        row = Row(name, given.label or name, kind, settings, kind.arm(settings))
        if seeded := re.fullmatch(r"(.+)-s\d+", name):
            raise ConfigError(
                f"methods.{name} is called as a seed's product of {seeded[1]!r}: give it a name "
                "that does not end with -s and a number"
            )
        _refuse_unknown(name, "arm", [row.arm] if row.arm else [], config.training.arms)
        _refuse_unknown(name, "encoder", kind.encoders(settings), config.encoders)
        if row.label == OTHER_PHRASE:
            raise ConfigError(f"methods.{name}.label = {row.label!r} is the name of another row")
        if twin := next((other for other in found.values() if other.label == row.label), None):
            raise ConfigError(
                f"methods.{name} and methods.{twin.name} are both called {row.label!r}: give one "
                "of them another label"
            )
        found[name] = row
    return found


def _refuse_unknown(
    row: str, setting: str, named: Sequence[str], known: Mapping[str, object]
) -> None:
    for name in named:
        if name not in known:
            raise ConfigError(
                f"methods.{row}.{setting} = {name!r} is not there: choose from {', '.join(known)}"
            )
