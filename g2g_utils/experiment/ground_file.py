"""Grounding of one image file and one phrase, for `ground` on the command line.

Inputs are checked before anything heavy is loaded or trained. All files are written below the build
folder and hold no header field of the image.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from g2g_utils import runs
from g2g_utils.config import Config, ConfigError
from g2g_utils.data.geometry import crop_resize, restore_box
from g2g_utils.data.images import read_image
from g2g_utils.data.record import Example
from g2g_utils.experiment import presence, skill
from g2g_utils.runs import places

if TYPE_CHECKING:
    from g2g_utils.grounding import Grounding
    from g2g_utils.methods.base import HeatMap
    from g2g_utils.methods.registry import ZeroShotLDMRow
    from g2g_utils.methods.zero_shot_ldm import ZeroShotLDM
    from g2g_utils.models import GroundingModel

Method = Literal["attention", "information", "both", "zero-shot-ldm"]
ZERO_SHOT = "zero-shot-ldm"
LONGEST_STEM = 200  # bytes; file systems allow 255 in a name
FILM_SIDE = 512  # pixels of the film under exported maps
NOTE = 128  # letters of a line of the overlay's note
NOTE_HIGH, LEGEND = 0.45, 0.32  # inches of the note below the overlay's panels, and of the legend
CANDIDATES = 64  # pairs among which another phrase is drawn, or the running example
FUNCTION_WORDS = frozenset("a an and at in is of on the there with".split())
DISCLAIMER = "for research, not a medical device"
PHANTOM_CAUTION = (
    "the model was trained on computed phantoms alone: on a real radiograph its map is a "
    "demonstration of the method, not a finding"
)


@dataclass(frozen=True)
class Asked:
    """All that results depend on but image and phrase.

    Args:
        config: the profile, with its defaults of grounding.
        arm: fine-tuned model (default: the first).
        seed: of the sampling noise.
        method: the paper's attention, merged with its biases as the profile says; the information
            of the phrase; both multiplied (never merged); or the zero-shot method, with the
            settings of the profile's first such row, else as published.

    Raises:
        ValueError: an unknown arm or method; one line.
    """

    config: Config
    arm: str | None = None
    seed: int = 0
    method: Method = "attention"

    def __post_init__(self) -> None:
        check_arm(self.config, self.arm)
        if self.method not in get_args(Method):
            known = ", ".join(get_args(Method))
            raise ValueError(f"method {self.method!r}: choose one of {known}")

    @property
    def item(self) -> str:
        """Model ARM-sSEED."""
        arm = self.arm or next(iter(self.config.training.arms))
        return f"{arm}-s{self.config.training.seeds[0]}"

    @property
    def options(self) -> dict[str, Any]:
        """Options of `grounding.ground`. Only attention is merged with its biases."""
        curve = self.config.grounding.curve if self.method == "attention" else None
        return options_of(self.config) | {"curve": curve, "seed": self.seed}

    @property
    def row(self) -> ZeroShotLDMRow:
        """Settings of the zero-shot method."""
        from g2g_utils.methods import registry

        rows = registry.rows(self.config).values()
        kinds = [row.settings for row in rows if row.kind.name == ZERO_SHOT]
        return kinds[0] if kinds else registry.ZeroShotLDMRow.model_validate({"arm": ""})

    @cached_property
    def settings(self) -> dict[str, Any]:
        """All settings of a result, the model's name included."""
        model = f"{self.config.profile}/ldm/{self.item}"
        own = self.row.model_dump(mode="json", exclude={"arm"}) if self.method == ZERO_SHOT else {}
        return {"model": model, "method": self.method, **self.options, **own}

    @cached_property
    def weights(self) -> str:
        """Identity of the model's weights, trained or loaded."""
        from g2g_utils.experiment import products

        released = self.config.adaptation.released
        return str(released or products.key(self.config, f"ldm/{self.item}"))

    def about(self, image: Path, phrase: str) -> dict[str, Any]:
        """Image and parameters of a result, for its JSON file."""
        source = {"file": image.name, "sha256": runs.once(runs.file_digest, image)}
        return {"image": source, "parameters": {"phrase": phrase, **self.settings}}

    def name(self, image: Path, phrase: str) -> str:
        """Folder of a result: the same for the same request. Nothing is loaded for it."""
        known = self.about(image, phrase)
        digest = runs.digest([known["image"], known["parameters"], self.weights], 8)
        return f"{short_name(image.stem)}-{digest}"


def ground_file(
    config: Config,
    image: Path,
    phrase: str,
    *,
    arm: str | None = None,
    seed: int = 0,
    out: Path | None = None,
    method: Method = "attention",
) -> list[Path]:
    """Ground a phrase in an image file with the profile's defaults.

    Writes overlay.png, maps.npz and grounding.json into <out>/<stem>-<digest>/.

    Args:
        image: PNG, JPEG or DICOM of any size. Its centre square is used.
        out: folder for results (default: build/<profile>/grounded).
        arm, seed, method: see `Asked`.

    Returns:
        Paths of the files written.

    Raises:
        ValueError: a bad phrase, image, arm or method; one line.
    """
    image = Path(image)
    example = example_of_file(config, image, phrase)
    asked = Asked(config, arm, seed, method)
    place = writable(out or places.build(config) / "grounded")
    ((result, told),) = answers(asked, load_model(asked), [example])
    if "presence" in told:
        print(f"presence: {presence.line(told['presence'])}")
    if told["novelty"]["flagged"]:
        print(f"warning: {image} is {told['novelty']['said']}", file=sys.stderr)
    if "skill" in told:
        print(f"skill: {told['skill']['said']}")
    report = {**report_of(result, image), **told, **asked.about(image, example.phrase)}
    folder = place / asked.name(image, example.phrase)
    return write_files(config, folder, example, result, report, film=film_of(image))


def writable(folder: Path) -> Path:
    """The folder for results, made; one line if that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"{folder} is no folder: name one for the results ({reason})") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ValueError(f"{folder} is read-only: name another folder for the results")
    return folder


def short_name(stem: str) -> str:
    """A file's name cut to what fits into a folder's name, of characters that can be shown."""
    cut = os.fsencode(stem)[:LONGEST_STEM].decode(errors="ignore")
    return "".join(c if c.isprintable() else "_" for c in cut) or "image"


def check_arm(config: Config, arm: str | None) -> None:
    """Refuse an arm that the profile does not have."""
    if arm is not None and arm not in config.training.arms:
        known = ", ".join(config.training.arms)
        raise ConfigError(f"unknown arm {arm!r}: choose one of {known}")


def example_of_file(config: Config, image: Path, phrase: str) -> Example:
    """An image file and a phrase, both checked, as a record in the model's frame."""
    from g2g_utils import text

    text.check_phrase(phrase, word_filter(config))
    pixels = crop_resize(read_image(image), config.image_size)
    if pixels.max() == pixels.min():
        raise ValueError(f"{image}: every pixel is the same; look at the file in a viewer")
    return Example(pixels, phrase, None, (), Path(image).stem, Path(image).stem, "test")


def film_of(image: Path) -> NDArray[Any]:
    """The model's crop of a file, [s, s], with up to FILM_SIDE of the file's own pixels."""
    pixels = read_image(image)
    return crop_resize(pixels, min(FILM_SIDE, *pixels.shape))


def chosen_example(config: Config, image_path: str, phrase: str, pair: int) -> Example:
    """Example of a notebook's parameters: the user's image and phrase, or a test pair.

    A phrase other than the pair's own drops its boxes, which belong to the own phrase. Relative
    paths start at the working directory, else at the repository's root.

    Args:
        pair: number of the pair. -1: the running example.
    """
    from g2g_utils import text
    from g2g_utils.experiment import products

    if image_path:
        path = Path(image_path).expanduser()
        path = path if path.exists() else places.ROOT / path
        if not phrase:
            raise ValueError(f"no phrase for {image_path}: set the parameter `phrase` too")
        return example_of_file(config, path, phrase)
    pairs = products.evaluation_pairs(config)
    if not -1 <= pair < len(pairs):
        raise ValueError(f"pair={pair}: the test split has pairs 0 to {len(pairs) - 1}")
    chosen = running_example(config) if pair == -1 else pairs[pair]
    example = chosen.framed(config.image_size)
    if phrase and phrase != example.phrase:
        text.check_phrase(phrase, word_filter(config))
        pixels, name, subject = example.array(), example.image_id, example.subject_id
        return Example(pixels, phrase, None, (), name, subject, example.split)
    return example


def other_phrase(config: Config, example: Example) -> str:
    """A test phrase of another finding that lies elsewhere (`draw_others`); "" without boxes.

    One of the first `CANDIDATES` pairs: films are opened for the frame of their boxes.
    """
    from g2g_utils.bench.benchmark import draw_others
    from g2g_utils.experiment import products

    if not example.boxes:
        return ""
    pairs = products.evaluation_pairs(config)[:CANDIDATES]
    other = draw_others([example, *pairs], config.image_size)[0]
    return "" if other is None else other.phrase


def running_example(config: Config) -> Example:
    """The test pair that all notebooks share, as its source gives it.

    The first whose phrase tells most (`telling`) and whose only box lies wholly inside the image
    and covers 1/32 of it. The rule knows nothing of how well the finding is grounded.
    """
    from g2g_utils.experiment import products

    pairs = sorted(products.evaluation_pairs(config), key=lambda p: telling(p.phrase, p.finding))
    side = config.image_size
    framed = ((pair, pair.framed(side).boxes) for pair in pairs[:CANDIDATES])
    return next((pair for pair, boxes in framed if _whole(boxes, side)), pairs[0])


def telling(phrase: str, finding: str | None) -> int:
    """Rank of a phrase as an example, 0 first.

    Best names one side and its finding and has function words, and is of an effusion, which most
    readers know. Function words matter less than the finding's name, and that less than the side.
    """
    from g2g_utils import text

    words = set(phrase.lower().split())
    named = finding is not None and finding.lower().split()[-1] in words  # "effusion"
    if not (text.side_of(phrase) and named):
        return 3 if text.side_of(phrase) else 4
    if not words & FUNCTION_WORDS:
        return 2
    return 0 if finding == "Pleural Effusion" else 1


def _whole(boxes: Any, side: int) -> bool:
    """True for one box [x, y, w, h] off the edges of a side² image that covers 1/32 of it."""
    if len(boxes) != 1:
        return False
    x, y, w, h = boxes[0]
    inside = min(x, y, side - x - w, side - y - h) > 0
    return bool(inside and w * h >= side**2 / 32)


def figures_folder(config: Config, image_path: str) -> Path:
    """Folder of a notebook's figures: those of a user's own image never among committed ones."""
    return places.build(config) / "grounded" / "figures" if image_path else places.figures(config)


def options_of(config: Config) -> dict[str, Any]:
    """The profile's grounding options without bias merging, for images without a known class."""
    from g2g_utils.experiment import products

    return products.grounding_options(config) | {"filter": word_filter(config)}


def word_filter(config: Config) -> Any:
    """The profile's token filter. The disease filter needs a class, which a file does not have."""
    return "lexical" if config.grounding.filter == "disease" else config.grounding.filter


def load_model(asked: Asked) -> GroundingModel:
    """The model of a request; it is trained first where its weights are missing."""
    from g2g_utils.experiment import products

    return products.model(asked.config, asked.arm)


def answers(
    asked: Asked, model: GroundingModel, examples: Sequence[Example]
) -> list[tuple[Grounding, dict[str, Any]]]:
    """Groundings of several pairs, and what is told of each besides; in shared forwards.

    Raises:
        ValueError: a phrase or film that cannot be grounded; one line.
    """
    from g2g_utils import grounding
    from g2g_utils.experiment import novelty

    _warn_of_cuts(model, examples)
    if asked.method == ZERO_SHOT:
        found = zero_shot(asked, model, examples)
    else:
        images, phrases = [e.array() for e in examples], [e.phrase for e in examples]
        plain = grounding.ground_batch(model, images, phrases, **asked.options)
        found = [(result, dict[str, Any]()) for result in plain]
    if asked.method in ("information", "both"):
        found = informed(asked, model, examples, plain)
    films = {example.image_id: example for example in examples}
    unlike = {
        name: novelty.statement(asked.config, model, asked.item, film.array())
        for name, film in films.items()
    }
    return [
        (
            result,
            told
            | {"novelty": unlike[example.image_id]}
            | skill.statement(asked.config, model.name, example.phrase, asked.method),
        )
        for (result, told), example in zip(found, examples, strict=True)
    ]


def _warn_of_cuts(model: GroundingModel, examples: Sequence[Example]) -> None:
    """Print a line about words beyond the maximum number of tokens."""
    from g2g_utils import text

    for example in examples:
        if cut := text.tokenize(model.tokenizer, example.phrase, model.max_length).truncated:
            print(
                f"warning: the phrase is longer than {model.max_length} tokens; cut off: "
                f"{' '.join(cut)}; shorten it",
                file=sys.stderr,
            )


def informed(
    asked: Asked, model: GroundingModel, examples: Sequence[Example], plain: Sequence[Grounding]
) -> list[tuple[Grounding, dict[str, Any]]]:
    """Groundings with the information's heat map and mask; total gains and presence.

    A total is a difference of squared errors over the film, for each condition that the phrase was
    compared with. It is no probability: `presence` says one, where the model is calibrated. Phrases
    of a film share the forwards that depend on it alone.
    """
    from g2g_utils.bench.presence import measure

    options = presence.options(asked.config) | {"seed": asked.seed}
    known = presence.calibrated(asked.config, asked.item)
    films: dict[str, list[int]] = {}
    for row, example in enumerate(examples):
        films.setdefault(example.image_id, []).append(row)
    found: dict[int, tuple[Grounding, dict[str, Any]]] = {}
    for rows in films.values():
        phrases = [examples[row].phrase for row in rows]
        measured = measure(model, examples[rows[0]].array(), phrases, **options)
        for row, (told, score) in zip(rows, measured, strict=True):
            heat = told.product() if asked.method == "both" else told.heatmap()
            totals = (round(total, 4) for total in told.totals)
            said = presence.statement(examples[row].phrase, score, known)
            gains = dict(zip(told.conditions, totals, strict=True))
            result = replace(plain[row], heatmap=heat)
            found[row] = result, {"total_gain_over": gains, "presence": said}
    return [found[row] for row in range(len(examples))]


def zero_shot(
    asked: Asked, model: GroundingModel, examples: Sequence[Example]
) -> list[tuple[Grounding, dict[str, Any]]]:
    """Groundings by the zero-shot method, and how they came about.

    The activation is its map before Otsu's threshold. There are no maps of single tokens.

    Raises:
        ValueError: a phrase has no words, or the attention is constant.
    """
    import torch

    from g2g_utils.methods import zero_shot_ldm
    from g2g_utils.methods.base import Query

    method = zero_shot_ldm.of_row(model, ZERO_SHOT, asked.row, asked.config.grounding.batch_size)
    films = {e.image_id: torch.as_tensor(e.array())[None] for e in examples}
    heats = method.ground([Query(films[e.image_id], e.phrase) for e in examples])
    heads = {m.heads for name, m in model.unet.named_modules() if name.endswith(".attn2")}
    told = {
        "heads": sorted(heads),  # averaged
        "timesteps": [method.times[i] for i in method.steps],
        "keep_last": None,
        "layers": method.read,
    }
    return [
        (_of_zero_shot(method, heat, example.phrase), told | dict(heat.details))
        for heat, example in zip(heats, examples, strict=True)
    ]


def _of_zero_shot(method: ZeroShotLDM, heat: HeatMap, phrase: str) -> Grounding:
    """A heat map of the zero-shot method as a grounding without maps of single tokens."""
    from g2g_utils.attention import AttentionMaps
    from g2g_utils.grounding import Grounding

    if heat.mask is None:
        raise ValueError(f"{phrase!r}: {heat.note}")
    words, tokens = method.words(phrase)
    size = (heat.values.shape[-2], heat.values.shape[-1])
    window = method.steps
    last = len(method.times) - 1
    return Grounding(
        phrase=words.text,
        heatmap=heat.values,
        activation=heat.capture.scaled,
        interaction=None,
        confidence=None,
        own_mask=heat.mask,
        words=tuple(w.text for w in words.words if set(w.tokens) & set(tokens)),
        tokens=tuple(tokens),
        phrase_tokens=words,
        token_maps=heat.values.new_zeros((0, *size)),
        layers=(),
        timesteps=tuple(method.times[::-1]),
        steps=(last - window[-1], last - window[0]),
        metrics={},
        maps=AttentionMaps({}, size, (), (), ()),
    )


def report_of(result: Grounding, image: Path) -> dict[str, Any]:
    """Words and numbers of a grounding. Places are in pixels of the image file."""
    from g2g_utils.data.images import image_size

    height, width = image_size(image)
    return {
        "phrase": result.phrase,
        "words": list(result.words),
        "cut_off": list(result.phrase_tokens.truncated),
        "confidence": result.confidence,
        "mask_fraction": round(float(result.mask.float().mean()), 4),
        **peak_and_box(result, height, width),
        "timesteps": list(result.timesteps),
        "keep_last": result.keep_last,
        "layers": list(result.layers),
    }


def peak_and_box(result: Grounding, height: int, width: int) -> dict[str, Any]:
    """Peak (x, y) of the heat map and box [x, y, w, h] of the mask, in a height x width image."""
    side = result.heatmap.shape[-1]
    row, column = divmod(int(result.heatmap.argmax()), side)
    x, y, w, h = restore_box((column, row, 1, 1), height, width, side)
    found: dict[str, Any] = {"peak": [round(x + w / 2, 1), round(y + h / 2, 1)], "mask_box": None}
    rows, columns = (np.flatnonzero(result.mask.numpy().any(axis)) for axis in (1, 0))
    if len(rows):
        spans = (columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1)
        box = restore_box(spans, height, width, side)
        found["mask_box"] = [round(float(value), 1) for value in box]
    return found


def write_files(
    config: Config,
    folder: Path,
    example: Example,
    result: Grounding,
    report: dict[str, Any],
    film: NDArray[Any] | None = None,
    overlay: bool = True,
) -> list[Path]:
    """Write overlay.png, maps.npz and grounding.json into a folder; return their paths.

    Args:
        film: the example's image with more pixels, for the overlay.
        overlay: False draws none.
    """
    names = ("overlay.png", "maps.npz", "grounding.json")
    picture, maps, numbers = (folder / name for name in names)
    with runs.atomic(maps) as temporary, open(temporary, "wb") as stream:
        np.savez_compressed(stream, **arrays(result))
    phantoms = {"caution": PHANTOM_CAUTION} if config.data.source == "phantoms" else {}
    state = runs.git_state(places.ROOT)
    about = {"profile": config.profile, **state, "disclaimer": DISCLAIMER, **phantoms}
    runs.write_json(numbers, report | about)
    if not overlay:
        return [maps, numbers]
    novel = report.get("novelty", {})
    notes = [f"This picture is {novel['said']}." if novel.get("flagged") else ""]
    notes.append(presence.line(report.get("presence", {})))
    notes.append(report.get("skill", {}).get("said", ""))
    draw(config, picture, example, result, film, " ".join(filter(None, notes)))
    return [picture, maps, numbers]


def arrays(result: Grounding) -> dict[str, Any]:
    """Maps of a grounding as arrays: heatmap, activation, mask, token_maps with their pieces."""
    pieces = result.phrase_tokens.pieces[: len(result.token_maps)]
    found = {
        "heatmap": result.heatmap.numpy(),
        "activation": result.activation.numpy(),
        "mask": result.mask.numpy(),
        "token_maps": result.token_maps.numpy(),
        "pieces": np.array(pieces),
        "tokens": np.array(result.tokens),
        "words": np.array(result.words),
    }
    if result.interaction is not None:
        found["interaction"] = result.interaction.numpy()
    return found


def draw(
    config: Config,
    path: Path,
    example: Example,
    result: Grounding,
    film: NDArray[Any] | None = None,
    note: str = "",
) -> None:
    """Draw the image, the heat map and the mask of a grounding as a PNG file, a note below."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    from g2g_utils import plots
    from g2g_utils.plots import overlays

    with rc_context(plots.STYLE), runs.atomic(path) as temporary:
        extra = NOTE_HIGH if note else 0.0
        high = overlays.PANEL + 0.9 + extra
        fig = Figure(figsize=(3 * overlays.PANEL + 0.7, high), layout="constrained")
        room: dict[str, Any] = {"rect": (0, extra / high, 1, 1 - extra / high)}
        if engine := fig.get_layout_engine():
            engine.set(**room)
        overlays.grounding_panels(
            example.array(), result.heatmap, result.mask,
            phrase=result.phrase, boxes=example.boxes, film=film, fig=fig,
        )  # fmt: skip
        small: dict[str, Any] = {"va": "bottom", "fontsize": 7, "color": "0.4"}
        fig.text(0.99, 0.01, DISCLAIMER, ha="right", **small)
        fig.text(0.01, LEGEND / high, overlays.wrapped(note, NOTE), ha="left", **small)
        metadata = plots.provenance(plots.run_id(config), "grounding")
        fig.savefig(temporary, format="png", dpi=plots.SAVED_DPI, metadata=metadata)
