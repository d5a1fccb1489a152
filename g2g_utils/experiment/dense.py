"""G2D's trainings from a profile: the shared warm-up, and one arm."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from g2g_utils import models
from g2g_utils.bench import dense as bench
from g2g_utils.config import Config, DenseArm
from g2g_utils.data import sources
from g2g_utils.experiment import apart, parts
from g2g_utils.experiment.make import ensure
from g2g_utils.models import g2d
from g2g_utils.runs import places
from g2g_utils.training import g2d as training
from g2g_utils.training import pseudo_masks

if TYPE_CHECKING:
    from torch import Tensor

TARGETS_OF_ATTENTION = ("own", "other", "mean")


def first_states(config: Config, name: str, texts: list[str]) -> Tensor:
    """States [n, d] of the first token of texts, each distinct text encoded once."""
    tokenizer, encoder = parts.text_encoder(config, name)
    distinct = list(dict.fromkeys(texts))
    found: dict[str, Tensor] = {}
    for start in range(0, len(distinct), 64):
        some = distinct[start : start + 64]
        tokens = models.tokenize(tokenizer, some, config.text.max_length)
        longest = int(tokens["attention_mask"].sum(1).max())
        ids, mask = (tokens[k][:, :longest] for k in ("input_ids", "attention_mask"))
        with torch.no_grad():  # not before: the encoder may have to be trained first
            found |= zip(some, models.text_states(encoder, ids, mask)[:, 0], strict=True)
    return torch.stack([found[text] for text in texts])


def training_pairs(config: Config, arm: DenseArm | None = None) -> training.Pairs:
    """What an arm trains on; None: the warm-up, which draws no masks.

    Body masks of images in memory are made once; those of files, batch by batch.
    """
    texts = parts.training_texts(config)
    apart.check_training(config, texts)
    images = parts.training_images(config)
    states = first_states(config, config.g2d.text if config.g2d else "", texts.captions)
    bodies = lesions = None
    if arm and arm.body and arm.target in TARGETS_OF_ATTENTION and isinstance(images, np.ndarray):
        small = (images[k : k + 512] for k in range(0, len(images), 512))
        bodies = torch.cat([pseudo_masks.body_mask(torch.from_numpy(x / 255)) for x in small])
    if arm and arm.target == "lesions":
        lesions = bench.task_masks(sources.examples(config, "train"), None, config.image_size)
    return training.Pairs(images, states, bodies, lesions)


def shape(config: Config, heads: int, arm: DenseArm | None, text_width: int) -> g2d.Shape:
    """Sizes of an arm's network; None: the warm-up's."""
    assert config.g2d is not None
    settings = config.g2d
    targets = heads if arm and arm.per_head else 1
    skips = arm.skips if arm else None
    return g2d.Shape(
        config.image_size, text_width, settings.encoder, settings.joint, heads, skips, targets
    )


def warm_up(config: Config, heads: int, seed: int, folder: Path) -> None:
    """Train by the contrast alone."""
    assert config.g2d is not None
    pairs = training_pairs(config)
    network = training.build(shape(config, heads, None, pairs.states.shape[1]), seed)
    if config.g2d.start:
        g2d.load_published(network, places.ROOT / config.g2d.start.expanduser())
    training.pretrain(
        network, pairs, DenseArm.model_validate({"target": "none"}), config.g2d, folder, seed=seed,
        steps=config.g2d.warmup_steps, name=f"G2D warm-up seed {seed}",
    )  # fmt: skip


def train(config: Config, name: str, seed: int, folder: Path, steps: int | None = None) -> None:
    """Train an arm from its warm-up; `steps` shortens it."""
    assert config.g2d is not None
    settings, arm = config.g2d, config.g2d.arms[name]
    heads = arm.heads or settings.heads
    pairs = training_pairs(config, arm)
    start = g2d.load(ensure(config, f"g2d-warmup/{heads}-s{seed}"))
    network = training.build(shape(config, heads, arm, pairs.states.shape[1]), seed, start)
    training.pretrain(
        network, pairs, arm, settings, folder, seed=seed,
        first=settings.warmup_steps, steps=steps, name=f"G2D {name} seed {seed}",
    )  # fmt: skip
