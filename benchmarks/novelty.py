"""Does the model notice pictures that are no films of its kind? Shares flagged, by kind of picture.

    python benchmarks/novelty.py [PROFILE]

For every seed of the first arm: a reference from training images, its limit from validation
images, then the share of flagged pictures among test images (should be ≤ 5 %), among pictures that
are no film (photographs and drawings of scikit-image, plates, noise), and among test images turned,
inverted or cropped (should be ≥ 95 %). Mirrored images are listed too: a film alone does not show
that it was mirrored. Writes novelty.json.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from scipy.stats import binomtest
from skimage import data as pictures
from tqdm.auto import tqdm

from g2g_utils import config as configuration
from g2g_utils import novelty, runs
from g2g_utils.data import radiographs, sources
from g2g_utils.data.geometry import crop_resize
from g2g_utils.data.images import read_image
from g2g_utils.experiment import parts, products

OUT = Path(__file__).with_suffix(".json")
PHOTOGRAPHS = (
    "astronaut brick camera cat cell chelsea clock coffee coins grass gravel hubble_deep_field "
    "immunohistochemistry microaneurysms moon retina rocket"
).split()
DRAWINGS = ("checkerboard", "colorwheel", "horse", "logo", "page", "shepp_logan_phantom", "text")
FILMS = 100  # test images


def grey(name: str, size: int) -> np.ndarray:
    """A picture that scikit-image ships, as a grey square in [0, 1]."""
    picture = np.asarray(getattr(pictures, name)(), np.float32)
    picture = picture[..., :3].mean(-1) if picture.ndim == 3 else picture
    low, high = picture.min(), picture.max()
    return crop_resize((picture - low) / (high - low), size)


def kinds(films: list[np.ndarray], size: int) -> dict[str, list[np.ndarray]]:
    """Pictures by kind: foreign ones, and what may happen to a film."""
    draw, half = np.random.default_rng(0), size // 2
    return {
        "photographs": [grey(name, size) for name in PHOTOGRAPHS],
        "drawings": [grey(name, size) for name in DRAWINGS],
        "blank plates": [np.full((size, size), v, np.float32) for v in np.linspace(0, 1, 11)],
        "noise": [draw.random((size, size), np.float32) for _ in range(11)],
        "inverted": [1 - film for film in films],
        "upside down": [np.rot90(film, 2).copy() for film in films],
        "on its side": [np.rot90(film).copy() for film in films],
        "a quarter": [crop_resize(film[:half, :half], size) for film in films],
        "mirrored": [film[:, ::-1].copy() for film in films],
    }


def loaded(config: configuration.Config, split: str) -> list[np.ndarray]:
    """The images of a split, each once."""
    examples = {example.image_id: example for example in sources.examples(config, split)}
    return [example.load(config.image_size) for example in examples.values()]


def measure(config: configuration.Config, arm: str, seed: int) -> dict[str, object]:
    """Shares flagged under one model, with the counts."""
    model, size = parts.Parts(config).model(arm, seed), config.image_size
    validation, films = (loaded(config, split) for split in ("validation", "test"))
    films = films[:FILMS]
    shown = {"test images": films} | kinds(films, size)
    if config.data.source == "phantoms":
        real = list(radiographs.films(sources.resolve(Path("data/radiographs"))).values())[:FILMS]
        shown["real films"] = [crop_resize(read_image(f.path), size) for f in real]

    def features(some: list[np.ndarray], name: str) -> list[object]:
        return [novelty.features(model, image) for image in tqdm(some, name, leave=False)]

    training = features(products.familiar(config), "training")
    reference = novelty.fit(training, features(validation, "validation"))
    found = {}
    for name, some in shown.items():
        flags = [reference.judge(one).flagged for one in features(some, name)]
        ends = binomtest(sum(flags), len(flags)).proportion_ci(method="wilson")
        found[name] = {"n": len(flags), "flagged": sum(flags), "low": ends.low, "high": ends.high}
    return {"limit": reference.limit, "validation": len(validation), "kinds": found}


def main(profile: str = "miniature") -> None:
    """Measure every seed of the profile's first arm and write the table."""
    config = configuration.load(profile)
    arm = next(iter(config.training.arms))
    table = {f"{arm}-s{seed}": measure(config, arm, seed) for seed in config.seeds(arm)}
    runs.write_json(OUT, {"machine": runs.provenance(), "profile": profile, "models": table})
    for name, row in table.items():
        print(name, {k: f"{v['flagged']}/{v['n']}" for k, v in row["kinds"].items()})


if __name__ == "__main__":
    main(*sys.argv[1:])
