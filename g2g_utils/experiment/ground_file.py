"""Grounding of one image file and one phrase, for `ground` on the command line.

Inputs are checked before anything heavy is loaded or trained. All files are written below the build
folder and hold no header field of the image.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from g2g_utils import runs
from g2g_utils.config import Config, ConfigError
from g2g_utils.data.geometry import crop_resize, restore_box
from g2g_utils.data.images import read_image
from g2g_utils.data.record import Example
from g2g_utils.experiment import presence
from g2g_utils.runs import places

if TYPE_CHECKING:
    from g2g_utils.grounding import Grounding
    from g2g_utils.models import GroundingModel

Method = Literal["attention", "information", "both", "zero-shot-ldm"]
ZERO_SHOT = "zero-shot-ldm"
LONGEST_STEM = 200  # bytes; file systems allow 255 in a name
FILM_SIDE = 512  # pixels of the film under exported maps
NOTE = 128  # letters of a line of the overlay's note
NOTE_HIGH, LEGEND = 0.45, 0.32  # inches of the note below the overlay's panels, and of the legend
CANDIDATES = 64  # pairs among which another phrase is drawn
DISCLAIMER = "for research, not a medical device"
PHANTOM_CAUTION = (
    "the model was trained on computed phantoms alone: on a real radiograph its map is a "
    "demonstration of the method, not a finding"
)


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
        arm: fine-tuned model (default: the first).
        seed: of the sampling noise.
        out: folder for results (default: build/<profile>/grounded).
        method: the paper's attention, merged with its biases as the profile says; the information
            of the phrase; both multiplied (never merged); or the zero-shot method, with the
            settings of the profile's first such row, else as published.

    Returns:
        Paths of the files written.

    Raises:
        ValueError: a bad phrase, image, arm or method; one line.
    """
    image = Path(image)
    example = example_of_file(config, image, phrase)
    check_arm(config, arm)
    place = _writable(out or places.build(config) / "grounded")
    if method not in get_args(Method):
        raise ValueError(f"method {method!r}: choose one of {', '.join(get_args(Method))}")
    from g2g_utils.experiment import novelty

    model, plain = _model(config, arm), method == "attention"
    curve = config.grounding.curve if plain else None
    options = options_of(config) | {"curve": curve, "seed": seed}
    result, told = _ground(model, example, options), dict[str, Any]()
    if method == "zero-shot-ldm":
        result, told = zero_shot(config, model, example, result)
    elif not plain:
        result, told = informed(config, model, example, result, method, seed)
        print(f"presence: {presence.line(told['presence'])}")
    told["novelty"] = novelty.statement(
        config, model, presence.item_of(model.name), example.array()
    )
    if told["novelty"]["flagged"]:
        print(f"warning: {image} is {told['novelty']['said']}", file=sys.stderr)
    source = {"file": image.name, "sha256": runs.file_digest(image)}
    parameters = {"phrase": example.phrase, "model": model.name, "method": method, **options}
    parameters |= told.pop("settings", {})
    digest = runs.digest([source, parameters, _weights(config, model)], 8)
    name = f"{short_name(image.stem)}-{digest}"
    folder = place / name
    report = {**_report(result, image), **told, "image": source, "parameters": parameters}
    return write_files(config, folder, example, result, report, film=film_of(image))


def _writable(folder: Path) -> Path:
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

    text.check_phrase(phrase, _filter(config))
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
        pair: number of the pair. -1: the first that `is_plain`, else the first of all.
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
    if pair == -1:
        framed = (
            p.framed(config.image_size) for p in pairs if text.swap_sides(p.phrase) != p.phrase
        )
        plain = (p for p in framed if is_plain(p.phrase, p.boxes, config.image_size))
        example = next(plain, None) or pairs[0].framed(config.image_size)
    else:
        example = pairs[pair].framed(config.image_size)
    if phrase and phrase != example.phrase:
        text.check_phrase(phrase, _filter(config))
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


def is_plain(phrase: str, boxes: Any, side: int) -> bool:
    """True if a phrase names a side and its boxes [x, y, w, h] cover a tenth of a side² image.

    A rule for choosing an example. It knows nothing of how well the finding is grounded.
    """
    from g2g_utils import text

    covered = sum(w * h for _, _, w, h in boxes)
    return text.swap_sides(phrase) != phrase and covered >= side**2 / 10


def figures_folder(config: Config, image_path: str) -> Path:
    """Folder of a notebook's figures: those of a user's own image never among committed ones."""
    return places.build(config) / "grounded" / "figures" if image_path else places.figures(config)


def options_of(config: Config) -> dict[str, Any]:
    """The profile's grounding options without bias merging, for images without a known class."""
    from g2g_utils.experiment import products

    return products.grounding_options(config) | {"filter": _filter(config)}


def _filter(config: Config) -> Any:
    """The profile's token filter. The disease filter needs a class, which a file does not have."""
    return "lexical" if config.grounding.filter == "disease" else config.grounding.filter


def _model(config: Config, arm: str | None) -> GroundingModel:
    from g2g_utils.experiment import products

    return products.model(config, arm)


def _weights(config: Config, model: GroundingModel) -> str:
    """Identity of the weights of a trained or loaded model."""
    from g2g_utils.experiment import products

    _, _, name = model.name.partition("/")
    return str(config.adaptation.released or products.key(config, name))


def _ground(model: GroundingModel, example: Example, options: dict[str, Any]) -> Grounding:
    """Ground, after a line about words beyond the maximum number of tokens."""
    from g2g_utils import grounding, text

    cut = text.tokenize(model.tokenizer, example.phrase, model.max_length).truncated
    if cut:
        print(
            f"warning: the phrase is longer than {model.max_length} tokens; cut off: "
            f"{' '.join(cut)}; shorten it",
            file=sys.stderr,
        )
    return grounding.ground(model, example.array(), example.phrase, **options)


def informed(
    config: Config,
    model: GroundingModel,
    example: Example,
    result: Grounding,
    method: Method,
    seed: int,
) -> tuple[Grounding, dict[str, Any]]:
    """The grounding with the information's heat map and mask; total gains and presence.

    A total is a difference of squared errors over the film, for each condition that the phrase was
    compared with. It is no probability: `presence` says one, where the model is calibrated.
    """
    from g2g_utils.bench.presence import measure
    from g2g_utils.masks import gmm_mask

    options = presence.options(config) | {"seed": seed}
    told, score = measure(model, example.array(), [example.phrase], **options)[0]
    heat = told.product() if method == "both" else told.heatmap()
    gains = dict(zip(told.conditions, (round(total, 4) for total in told.totals), strict=True))
    known = presence.calibrated(config, presence.item_of(model.name))
    said = presence.statement(example.phrase, score, known)
    found = {"total_gain_over": gains, "presence": said}
    return replace(result, heatmap=heat, mask=gmm_mask(heat)), found


def zero_shot(
    config: Config, model: GroundingModel, example: Example, result: Grounding
) -> tuple[Grounding, dict[str, Any]]:
    """The grounding with the zero-shot method's heat map and mask, and how they came about.

    Raises:
        ValueError: the attention is constant.
    """
    import torch

    from g2g_utils.methods import registry, zero_shot_ldm
    from g2g_utils.methods.base import Query

    kinds = [row.settings for row in registry.rows(config).values() if row.kind.name == ZERO_SHOT]
    row = kinds[0] if kinds else registry.ZeroShotLDMRow.model_validate({"arm": ""})
    asked = zero_shot_ldm.of_row(model, ZERO_SHOT, row, config.grounding.batch_size)
    (found,) = asked.ground([Query(torch.as_tensor(example.array())[None], example.phrase)])
    if found.mask is None:
        raise ValueError(found.note)
    heads = {m.heads for name, m in model.unet.named_modules() if name.endswith(".attn2")}
    told = {
        "heads": sorted(heads),  # averaged
        "timesteps": [asked.times[i] for i in asked.steps],
        "keep_last": None,
        "layers": asked.read,
        **found.details,
        "settings": row.model_dump(mode="json", exclude={"arm"}),
    }
    return replace(result, heatmap=found.values, mask=found.mask), told


def _report(result: Grounding, image: Path) -> dict[str, Any]:
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
) -> list[Path]:
    """Write overlay.png, maps.npz and grounding.json into a folder; return their paths.

    Args:
        film: the example's image with more pixels, for the overlay.
    """
    names = ("overlay.png", "maps.npz", "grounding.json")
    overlay, maps, numbers = (folder / name for name in names)
    with runs.atomic(maps) as temporary, open(temporary, "wb") as stream:
        np.savez_compressed(stream, **arrays(result))
    phantoms = {"caution": PHANTOM_CAUTION} if config.data.source == "phantoms" else {}
    state = runs.git_state(places.ROOT)
    about = {"profile": config.profile, **state, "disclaimer": DISCLAIMER, **phantoms}
    runs.write_json(numbers, report | about)
    novel = report.get("novelty", {})
    notes = [f"This picture is {novel['said']}." if novel.get("flagged") else ""]
    notes.append(presence.line(report.get("presence", {})))
    draw(config, overlay, example, result, film, " ".join(filter(None, notes)))
    return [overlay, maps, numbers]


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
