"""Films for a page: chosen by rule, and their bytes give the maps back."""

import base64

import numpy as np
import pytest
import torch

from g2g_utils import bbm, config, metrics
from g2g_utils.data.record import Example
from g2g_utils.explorer import films
from tests.duck import Model

BOX = (4.0, 4.0, 12.0, 10.0)
SETTINGS = config.load(
    "smoke",
    image_size=32,
    **{"grounding.timesteps": 3, "grounding.keep_last": 3, "grounding.layers": None},
)


def test_bytes_give_the_maps_back():
    maps = torch.rand(2, 3, 4, 4) - 0.3
    packed = films.quantised(maps)
    levels = np.frombuffer(base64.b64decode(packed["bytes"]), np.int8).reshape(maps.shape)
    back = levels * np.reshape(packed["scales"], (2, 3, 1, 1))
    assert np.abs(back - maps.numpy()).max() < 0.7 / 127


def test_a_film_holds_all_maps_and_the_score_of_their_mean():
    made = Example(
        np.random.default_rng(0).random((32, 32), dtype=np.float32),
        "small left effusion", "Pleural Effusion", (BOX,), "i", "s", "test",
    )  # fmt: skip
    film = films.packed(Model(), made, SETTINGS)
    sizes = {word["text"] for word in film["words"]}
    assert {"small", "left", "effusion", "(start)", "(end)"} <= sizes
    total, layers = 0, [x for x, on in zip(film["layers"], film["chosen"], strict=True) if on]
    columns = [c for w in film["words"] if w["content"] for c in w["columns"]]
    for layer in layers:
        side = layer["side"]
        shape = (len(film["timesteps"]), len(film["counts"]), side, side)
        levels = np.frombuffer(base64.b64decode(layer["bytes"]), np.int8).reshape(shape)
        mean = (levels * np.reshape(layer["scales"], (*shape[:2], 1, 1)))[:, columns].mean((0, 1))
        total = total + np.kron(mean, np.ones((film["latent"] // side,) * 2)) / len(layers)
    heat = bbm.minmax(torch.as_tensor(total).float())
    assert metrics.evaluate(heat, [BOX], size=32)["cnr"] == pytest.approx(film["cnr"], abs=0.02)
    assert set(film["gains"]) == {"small", "left", "effusion"}


def test_one_film_of_every_finding_comes_first():
    pairs = [
        Example(np.zeros((8, 8), np.float32), phrase, finding, (BOX,), f"i{k}", f"s{k}", "test")
        for k, (finding, phrase) in enumerate(
            [("Edema", "edema"), ("Edema", "left edema"), ("Pneumonia", "pneumonia")]
        )
    ]
    chosen = [p.image_id for p in films.choose(pairs)]
    assert sorted(chosen[:2]) == ["i0", "i2"] and chosen[2] == "i1"
