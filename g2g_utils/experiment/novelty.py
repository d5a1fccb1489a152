"""What an arm finds familiar, as a product, and whether a picture is unlike it, in words.

One product per compared arm, `novelty/<arm>-s<seed>` of its first seed. The miniature's are shipped
beside its weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from g2g_utils import runs
from g2g_utils.config import Config
from g2g_utils.experiment import parts
from g2g_utils.experiment.plan import find
from g2g_utils.experiment.product import arm_and_seed, product
from g2g_utils.experiment.recipes import loaded_parts, model_needs

if TYPE_CHECKING:
    from g2g_utils.models import GroundingModel
    from g2g_utils.novelty import Reference

NOVELTY = 1  # raise when the features change
FAMILIAR = 400  # training images that say what is familiar
FILE = "novelty.json"


@product(
    "novelty",
    items=lambda config: [f"{arm}-s{config.seeds(arm)[0]}" for arm in config.training.compared],
    needs=lambda config, item: [*model_needs(config, *arm_and_seed(config, item)), "pairs"],
    parameters=lambda config, item: {
        "novelty": [NOVELTY, FAMILIAR],
        "name": item,
        "data": config.data.model_dump(include={"source", "validation", "seed", "world"}),
        **loaded_parts(config, arm_and_seed(config, item)[0]),
    },
    bundle=lambda config, item: f"results/{item}",
)
def novelty(config: Config, item: str, folder: Path) -> dict[str, Any]:
    """Features of training images, and the distances of validation images from them."""
    from tqdm.auto import tqdm

    from g2g_utils import novelty
    from g2g_utils.data import sources

    model = parts.model(config, *arm_and_seed(config, item))
    training = familiar(config)
    held = {example.image_id: example for example in sources.examples(config, "validation")}
    validation = [example.load(config.image_size) for example in held.values()]
    shown = tqdm([*training, *validation], f"novelty of {item}", disable=None)
    found = [novelty.features(model, image) for image in shown]
    reference = novelty.fit(found[: len(training)], found[len(training) :])
    runs.write_json(folder / FILE, reference.as_json())
    return {"metrics": {"limit": reference.limit}}


def familiar(config: Config) -> list[NDArray[np.float32]]:
    """Training images [S, S] in [0, 1], evenly over all."""
    images = parts.training_images(config)
    rows = np.linspace(0, len(images) - 1, min(FAMILIAR, len(images))).round().astype(int)
    return [images[int(row)].astype(np.float32) / 255 for row in rows]


def reference(config: Config, item: str) -> Reference | None:
    """The reference of a model ARM-sSEED; None where it was not made, and nothing is made here."""
    from g2g_utils import novelty

    place = find(config, f"novelty/{item}")
    return novelty.from_json(runs.read_json(place / FILE)) if place else None


def statement(
    config: Config, model: GroundingModel, item: str, image: NDArray[Any]
) -> dict[str, Any]:
    """How unlike the training images a picture is, for a JSON file.

    Args:
        config: the profile.
        model: of the item.
        item: ARM-sSEED.
        image: [S, S] in [0, 1].

    Returns:
        `said`: one line; `distance`, `limit`, `flagged` and `farther`, the share of the validation
        images that are at least as far. None where nothing is calibrated.
    """
    from g2g_utils import novelty

    known = reference(config, item)
    if known is None:
        make = f"python -m g2g_utils make novelty/{item} --profile {config.profile}"
        nothing = dict.fromkeys(("distance", "limit", "flagged", "farther"))
        return {"said": f"not calibrated for this model: `{make}` does it in minutes", **nothing}
    found = known.judge(novelty.features(model, image))
    numbers = f"distance {found.distance:.1f}, limit {found.limit:.1f}"
    said = f"like the images that this model was trained on ({numbers})"
    if found.flagged:
        said = f"unlike the images that this model was trained on ({numbers}): distrust its map"
    return {
        "said": said,
        "distance": round(found.distance, 3),
        "limit": round(found.limit, 3),
        "flagged": found.flagged,
        "farther": round(found.usual, 4),
    }
