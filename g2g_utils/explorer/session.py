"""From a state to a view: pictures, models and captures are found or made, then reduced.

A `Session` owns models and maps, which are expensive, and knows no widget. `view` is a function of
the state alone.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections import OrderedDict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from torch import Tensor

from g2g_utils import bbm, information, metrics, tagger, text
from g2g_utils.bench import presence as bench
from g2g_utils.cache import Cache
from g2g_utils.config import Config
from g2g_utils.data import sources
from g2g_utils.data.geometry import Box, crop_resize
from g2g_utils.data.images import read_image
from g2g_utils.data.record import Example, Region
from g2g_utils.experiment import novelty, presence, products
from g2g_utils.experiment import skill as measured
from g2g_utils.explorer import maps, state
from g2g_utils.explorer.maps import Capture, Progress, Selection
from g2g_utils.explorer.state import Chip, State
from g2g_utils.information import Information
from g2g_utils.masks import gmm_mask
from g2g_utils.methods import no_skill
from g2g_utils.models.components import GroundingModel

MODELS = 2  # models in memory at a time
UPLOADS = 8  # uploaded pictures remembered
DEFAULT_PHRASE = "left pleural effusion"


@dataclass(frozen=True, eq=False)
class Picture:
    """An image that can be chosen, of the test split or uploaded, with its phrases and boxes."""

    key: str
    title: str
    size: int
    rows: tuple[Example, ...]  # one, or the pairs of one image
    code: str  # Python expression that gives the image

    @cached_property
    def image(self) -> NDArray[Any]:
        """Float32 [S, S] in [0, 1], as the model sees it."""
        return self.rows[0].load(self.size)

    @cached_property
    def regions(self) -> tuple[Region, ...]:
        """Described findings, boxes in the model's frame."""
        found: list[Region] = []
        for row in (r.framed(self.size) for r in self.rows if r.boxes or r.regions):
            own = Region(row.phrase, row.finding or "", None, row.boxes)
            found += row.regions or (own,)
        return tuple(found)

    @property
    def label(self) -> str:
        """The title cut to its first finding, for small buttons."""
        first, *more = self.title.split(", ")
        return f"{first} +{len(more)}" if more else first

    @property
    def phrase(self) -> str:
        """The first phrase to ground."""
        return self.regions[0].phrase if self.regions else self.rows[0].phrase


@dataclass(frozen=True, eq=False)
class Panel:
    """One heat map with its parameters and scores. Maps are [H, W] at latent resolution."""

    phrase: str
    model: str
    capture: Capture
    selection: Selection
    raw: Tensor  # mean attention before scaling
    heatmap: Tensor  # min-max scaled, merged under a curve
    mask: Tensor
    interaction: Tensor | None
    confidence: float | None
    metrics: dict[str, float | str]
    token_means: Tensor  # N
    gain: Tensor | None = None  # signed gain of the chosen words, of information
    presence: Mapping[str, Any] | None = None  # what the film says of the whole phrase


@dataclass(frozen=True, eq=False)
class View:
    """The content of a state: one panel, or two that are compared."""

    state: State
    picture: Picture
    panels: tuple[Panel, ...]
    boxes: tuple[Box, ...]
    no_skill: dict[str, float | str]
    difference: Tensor | None = None  # H W in [-1, 1], where it is shown
    difference_label: str = ""
    chips: list[Chip] = field(default_factory=list)
    told: tuple[str, ...] = ()  # of models: how good they are; of an upload: whether it is a film

    @property
    def limits(self) -> tuple[float, float, str]:
        """Colour limits shared by all panels, and the meaning of the colours."""
        if self.raw:
            return 0.0, float(max(p.raw.max() for p in self.panels)), "attention probability"
        if self.state.method != "attention":
            return 0.0, 1.0, f"{state.METHODS[self.state.method]}, min–max"
        merged = self.state.curve is not None
        return 0.0, 1.0, "merged map" if merged else "activation, min–max"

    def shown(self, panel: Panel) -> Tensor:
        """The map [H, W] that is drawn within `limits`."""
        return panel.raw if self.raw else panel.heatmap

    @property
    def raw(self) -> bool:
        """True if attention is shown unscaled: merged maps and information have no such scale."""
        now = self.state
        return now.scale == "shared" and now.curve is None and now.method == "attention"


class Session:
    """Pictures, models and cached maps of one profile.

    Args:
        memory: bound on the cached maps, in bytes.
        device: device of the models; None suits the profile.
    """

    def __init__(self, config: Config, memory: int = 2**28, device: str | None = None) -> None:
        self.config = config
        self.device = device  # None: what suits the profile
        self.captures = Cache(memory)
        self.models = available_models(config)
        self._loaded: OrderedDict[str, GroundingModel] = OrderedDict()
        examples = sources.examples(config, "test")
        self.pictures = {p.key: p for p in pictures(examples, config.image_size)}
        self._panels: OrderedDict[Hashable, Panel] = OrderedDict()
        listed = tagger.name(config.grounding.spacy_model) == tagger.WORD_LIST
        self.note = tagger.NOTE if listed else ""
        self._calibrations: dict[str, presence.Calibrated | str] = {}
        self._novelty: dict[tuple[str, str], str] = {}
        self._scores: dict[tuple[Box, ...], dict[str, float | str]] = {}

    # -- starting points and actions: state -> state --------------------------------------------

    def start(self, **changes: Any) -> State:
        """The first state: first picture with a described finding, first model, content words."""
        key = next((k for k, p in self.pictures.items() if p.regions), next(iter(self.pictures)))
        first = State(image=key, phrase=self.pictures[key].phrase, model=self.models[0])
        first = self.pick_image(first, changes.pop("image", key))
        return replace(first, **changes)

    def pick_image(self, old: State, key: str) -> State:
        """Choose a picture, with phrase and boxes of its first finding (uploads: the phrase)."""
        if key not in self.pictures:
            raise ValueError(f"no picture {key!r}: choose one of {len(self.pictures)}")
        picture = self.pictures[key]
        if not picture.regions:
            kept = old.phrase if key.startswith("upload") else picture.phrase
            return replace(state.edit_phrase(old, kept), image=key, region=None, compare="nothing")
        return self.pick_region(replace(old, image=key, compare="nothing"), 0)

    def pick_region(self, old: State, region: int | None) -> State:
        """Choose a described finding of the picture: its phrase and boxes. None: no boxes."""
        if region is None:
            return replace(old, region=None)
        phrase = self.pictures[old.image].regions[region].phrase
        return replace(state.edit_phrase(old, phrase), region=region)

    def pick_model(self, old: State, key: str) -> State:
        """Choose a model. The chosen words stay chosen under its tokenizer."""
        if key not in self.models:
            raise ValueError(f"no model {key!r}: choose one of {', '.join(self.models)}")
        new = replace(old, model=key)
        if old.columns is None:
            return new
        before, after = self.capture(old), self.capture(new)
        return replace(new, columns=state.carry(old.columns, before, after))

    def upload(self, name: str, content: bytes) -> str:
        """Add an image file (PNG, JPEG, DICOM) and return its key.

        Raises:
            ImageError: one line.
        """
        name = _file_name(name)
        image = _read_bytes(name, content)
        digest = hashlib.blake2b(content, digest_size=4).hexdigest()
        key, side = f"upload:{digest}:{name}", self.config.image_size
        row = Example(crop_resize(image, side), DEFAULT_PHRASE, None, (), key, key, "upload")
        code = f"geometry.crop_resize(images.read_image({name!r}), c.image_size)"
        self.pictures.pop(key, None)  # uploaded again: the newest
        self.pictures[key] = Picture(key, name, side, (row,), code)
        for stale in [k for k in self.pictures if k.startswith("upload")][:-UPLOADS]:
            del self.pictures[stale]
        return key

    # -- expensive things, made once --------------------------------------------------------------

    def model(self, key: str, progress: Progress | None = None) -> GroundingModel:
        """A model by its key ARM-sSEED. At most two stay in memory."""
        if key not in self._loaded:
            if progress:
                progress(f"loading {key}", 0, 1)
            arm, seed = products.arm_and_seed(self.config, key)
            self._loaded[key] = products.model(self.config, arm, seed, self.device)
            while len(self._loaded) > MODELS:
                self._loaded.popitem(last=False)
        self._loaded.move_to_end(key)
        return self._loaded[key]

    def capture(self, now: State, progress: Progress | None = None) -> Capture:
        """All maps of the state's model, image and phrase, from the cache or made now."""
        options = self.config.grounding

        def make() -> Capture:
            return maps.capture_image(
                self.model(now.model, progress),
                self.pictures[now.image].image,
                now.phrase,
                timesteps=options.timesteps,
                seed=now.seed,
                batch_size=options.batch_size,
                progress=progress,
            )

        return self.captures.get(("image", now.model, now.image, now.phrase, now.seed), make)

    def text_capture(self, now: State, image: Capture, progress: Progress | None = None) -> Capture:
        """All maps of the phrase sampled from noise. Needed only under a curve."""
        options = self.config.grounding

        def make() -> Capture:
            return maps.capture_text(
                self.model(now.model, progress),
                image.phrase,
                timesteps=options.timesteps,
                text_guidance=options.text_guidance,
                seed=now.seed,
                progress=progress,
            )

        return self.captures.get(("text", now.model, now.phrase, now.seed), make)

    def information(
        self, now: State, phrases: Sequence[str], progress: Progress | None = None
    ) -> dict[str, Information]:
        """Information of phrases about the state's image, from the cache or measured together."""

        def key(phrase: str) -> tuple[Hashable, ...]:
            return "information", now.model, now.image, phrase, now.seed

        missing = [p for p in dict.fromkeys(phrases) if key(p) not in self.captures]
        made: dict[str, Information] = {}
        if missing:
            if progress:
                progress("information", 0, 1)
            model, image = self.model(now.model, progress), self.pictures[now.image].image
            options = presence.options(self.config) | {"seed": now.seed, "filter": "all"}
            told = information.measure(model, image, missing, **options)
            made = dict(zip(missing, told, strict=True))
        known_first = sorted(set(phrases), key=made.__contains__)  # new ones may push them out
        return {p: self.captures.get(key(p), partial(made.__getitem__, p)) for p in known_first}

    def word_information(self, now: State, progress: Progress | None = None) -> dict[str, Tensor]:
        """Signed gain [H, W] of every content word given the rest of the phrase, smoothed."""
        phrase, words = now.phrase, state.content_texts(self.capture(now, progress).phrase)
        rests = {word: information.leave_out(phrase, word) for word in words}
        told = self.information(now, [phrase, *filter(None, rests.values())], progress)
        whole = told[phrase].gain
        gains = {w: whole - told[r].gain if r else whole for w, r in rests.items()}
        return {word: information.smooth(gain) for word, gain in gains.items()}

    @cached_property
    def mean_box(self) -> Tensor:
        """The no-skill map [H, W]: mean box of the validation images, else a centre prior."""
        size = self.model(self.models[0]).latent_shape[-2:]
        side = self.config.image_size
        examples = [e.framed(side) for e in sources.examples(self.config, "validation")]
        boxes = [r.boxes for e in examples for r in (e.regions or (e,)) if r.boxes]
        return no_skill.mean_box(boxes, side, size) if boxes else no_skill.centre_prior(size)

    # -- the view ---------------------------------------------------------------------------------

    def view(self, now: State, progress: Progress | None = None) -> View:
        """Compute the view of a state.

        Raises:
            ValueError: the state shows nothing, or merges biases with information; one line.
        """
        if now.curve and now.method != "attention":
            raise ValueError("only attention is merged with its biases: choose curve none")
        picture = self.pictures[now.image]
        boxes = picture.regions[now.region].boxes if now.region is not None else ()
        main = self.panel(now, boxes, progress)
        panels = [main]
        if now.compare != "nothing":
            panels.append(self.panel(self._other(now, main, progress), boxes, progress))
        buttons = state.chips(main.capture, now.pieces, now.special)
        skill = self._skill(boxes)
        told = self._besides(now, panels)
        shown = View(now, picture, tuple(panels), boxes, skill, chips=buttons, told=told)
        if len(panels) == 1 and now.show != "difference":
            return shown
        difference, label = self._difference(now, panels)
        return replace(shown, difference=difference, difference_label=label)

    def panel(self, now: State, boxes: Sequence[Box], progress: Progress | None = None) -> Panel:
        """Heat map, mask and numbers of one model and phrase. The last two are remembered."""
        key = (replace(state.undrawn(now), compare="nothing"), tuple(boxes))
        if key not in self._panels:
            self._panels[key] = self._make_panel(now, boxes, progress)
            while len(self._panels) > 2:
                self._panels.popitem(last=False)
        self._panels.move_to_end(key)
        return self._panels[key]

    def _make_panel(self, now: State, boxes: Sequence[Box], progress: Progress | None) -> Panel:
        capture = self.capture(now, progress)
        chosen = state.select(now, capture, now.columns, self.config.grounding)
        raw = maps.activation(capture, chosen)
        heatmap, interaction, confidence = bbm.minmax(raw), None, None
        if now.curve:
            bias = self.text_capture(now, capture, progress)
            interaction, confidence = maps.merging(capture, bias, chosen)
            heatmap = bbm.minmax(bbm.merge(raw, interaction, confidence, now.curve))
        gain, said = None, None
        if now.method != "attention":
            gain, said = self._told(now, capture, chosen, progress)
            heat = bbm.minmax(information.positive(information.smooth(gain)))
            both = now.method == "both"
            heatmap = bbm.minmax(heat * heatmap.sqrt()) if both else heat
        mask = gmm_mask(heatmap)
        side = self.config.image_size
        scores = metrics.evaluate(heatmap, boxes, side, mask=mask) if boxes else {}
        return Panel(
            phrase=now.phrase,
            model=now.model,
            capture=capture,
            selection=chosen,
            raw=raw,
            heatmap=heatmap,
            mask=mask,
            interaction=interaction,
            confidence=confidence,
            metrics=scores,
            token_means=capture.maps.token_means(**chosen.over),
            gain=gain,
            presence=said,
        )

    def _told(
        self, now: State, capture: Capture, chosen: Selection, progress: Progress | None
    ) -> tuple[Tensor, dict[str, Any]]:
        """Gain [H, W] of the chosen words given the others, and presence of the whole phrase."""
        rest = state.unchosen(capture.phrase, chosen.columns)
        swapped = text.swap_sides(now.phrase) if text.side_of(now.phrase) else ""
        told = self.information(now, [now.phrase, *filter(None, (swapped, rest))], progress)
        own = told[now.phrase]
        if now.model not in self._calibrations:
            self._calibrations[now.model] = presence.calibrated(self.config, now.model)
        score = bench.evidence(own, told[swapped] if swapped else None).score
        said = presence.statement(now.phrase, score, self._calibrations[now.model])
        return own.gain - told[rest].gain if rest else own.gain, said

    def _besides(self, now: State, panels: Sequence[Panel]) -> tuple[str, ...]:
        """How good each panel's model is at its phrase; whether an upload is like a film."""
        world = self.config.profile
        told = [
            measured.statement(self.config, f"{world}/ldm/{p.model}", p.phrase, now.method)
            for p in panels
        ]
        lines = [one["skill"]["said"] for one in told if one]
        if now.image.startswith("upload"):
            key = (now.model, now.image)
            if key not in self._novelty:
                image = self.pictures[now.image].image
                found = novelty.statement(self.config, self.model(now.model), now.model, image)
                self._novelty[key] = found["said"]
            lines.append(f"this picture: {self._novelty[key]}")
        return tuple(dict.fromkeys(lines))

    def _other(self, now: State, main: Panel, progress: Progress | None) -> State:
        """State of the second panel: another model or phrase, with the same words if possible."""
        if now.compare == "model":
            other = replace(now, model=now.other_model)
            if now.other_model not in self.models:
                raise ValueError("choose a model to compare with")
        else:
            other = state.edit_phrase(now, now.other_phrase)
        if now.columns is None:
            return replace(other, columns=None)
        after = self.capture(other, progress)
        return replace(other, columns=state.carry(now.columns, main.capture, after))

    def _difference(self, now: State, panels: Sequence[Panel]) -> tuple[Tensor, str]:
        """The map of the difference view [H, W] in [-1, 1], and its name."""
        main = panels[0]
        if len(panels) == 2:
            return panels[1].heatmap - main.heatmap, "B − A"
        own = bbm.minmax(main.raw)
        if now.method != "attention":
            return main.heatmap - own, f"{state.METHODS[now.method]} − attention"
        if now.curve:
            return main.heatmap - own, f"{now.curve} − activation"
        plain = replace(now, columns=None, steps=None, layers=None, sizes=None)
        default = state.select(plain, main.capture, None, self.config.grounding)
        return own - bbm.minmax(maps.activation(main.capture, default)), "selection − default"

    def _skill(self, boxes: Sequence[Box]) -> dict[str, float | str]:
        """Scores of the no-skill map against these boxes."""
        if not boxes:
            return {}
        key = tuple(boxes)
        if key not in self._scores:
            side = self.config.image_size
            self._scores[key] = metrics.evaluate(self.mean_box, boxes, side)
        return self._scores[key]


# -- details --------------------------------------------------------------------------------------


def available_models(config: Config) -> list[str]:
    """Models ARM-sSEED that need no training. The profile's first is made if it is absent."""
    seed = config.training.seeds[0]
    first, *more = (f"{arm}-s{seed}" for arm in config.training.arms)
    trained = [n.removeprefix("ldm/") for n in products.plan(config) if n.startswith("ldm/")]
    if not trained:  # a pretrained U-Net: every arm is there
        return [first, *more]
    ready = [n for n in trained if n != first and products.find(config, f"ldm/{n}")]
    return [first, *ready]


def pictures(examples: Iterable[Example], size: int) -> list[Picture]:
    """Pictures of a split. Pairs of one image become one picture with several regions."""
    grouped: dict[str, list[tuple[int, Example]]] = {}
    for index, example in enumerate(examples):
        grouped.setdefault(example.image_id, []).append((index, example))
    return [_picture(number, rows, size) for number, rows in enumerate(grouped.values())]


def _picture(number: int, rows: Sequence[tuple[int, Example]], size: int) -> Picture:
    """A picture from its rows and their places in the split."""
    index = rows[0][0]
    regions = [r for _, row in rows for r in (row.regions or (row,))]
    names = ", ".join(dict.fromkeys(r.finding for r in regions if r.finding)) or "no finding"
    code = f'sources.examples(c, "test")[{index}].load(c.image_size)'
    records = tuple(row for _, row in rows)
    return Picture(f"test:{number}", f"{number}: {names}", size, records, code)


def _file_name(given: str) -> str:
    """A file's name alone, in one line of printable characters."""
    printable = "".join(c if c.isprintable() else " " for c in Path(given).name)
    return " ".join(printable.split()) or "upload"


def _read_bytes(name: str, content: bytes) -> NDArray[Any]:
    """Read an uploaded file as an image. Errors name the file as the user knows it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"upload{Path(name).suffix}"
        path.write_bytes(content)
        try:
            return read_image(path)
        except ValueError as error:
            raise ValueError(str(error).replace(str(path), name)) from None
