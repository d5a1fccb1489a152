"""Training of AdaMatch: findings first, then patches against words (Chen et al., ACL 2024).

The image side starts from the classification of findings, as published; without it the contrast
stays at chance for some hundred steps. Both stages are one run of the loop, which can be resumed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn import functional as F
from transformers import PvtModel

from g2g_utils import models, text
from g2g_utils.config import FINDINGS, AdaMatchSettings, MatchArm
from g2g_utils.models import adamatch
from g2g_utils.models.adamatch import AdaMatch, Shape
from g2g_utils.training.finetune import batch_indices
from g2g_utils.training.fit import Modules, Options, StepLoss, fit, seeded
from g2g_utils.training.pretrain import augment


@dataclass(frozen=True)
class Captions:
    """Captions as tokens, and the word to which each token belongs."""

    ids: Tensor  # c n
    mask: Tensor  # c n
    owners: Tensor  # c n: index of the word among the caption's words, -1 for none

    def rows(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Ids, mask and owners of some captions, cut to the longest."""
        longest = int(self.mask[rows].sum(1).max())
        return self.ids[rows, :longest], self.mask[rows, :longest], self.owners[rows, :longest]


def read_captions(tokenizer: Any, captions: Sequence[str], length: int, words: str) -> Captions:
    """Tokens and owners of captions.

    A caption without content words keeps all its words.

    Args:
        words: "all" or "content", which tokens count.
    """
    found = [text.tokenize(tokenizer, caption, length) for caption in captions]
    owners = torch.full((len(found), length), -1)
    for row, tokens in enumerate(found):
        kept = text.content_words(tokens) if words == "content" else []
        for index, word in enumerate(kept or tokens.words):
            owners[row, list(word.tokens)] = index
    ids, mask = text.stack(found)
    return Captions(ids, mask, owners)


@dataclass(frozen=True)
class Pairs:
    """Training pairs: images, captions and findings."""

    images: Any  # n S S, uint8
    captions: tuple[str, ...]  # n
    labels: tuple[tuple[str, ...], ...]  # n, findings of each image

    def batch(self, rows: Tensor) -> Tensor:
        """Images [b, 1, S, S] in [0, 1]."""
        return torch.from_numpy(np.array(self.images[rows.numpy()]))[:, None].float() / 255


def build(shape: Shape, encoder: Any, seed: int, start: PvtModel | None = None) -> AdaMatch:
    """A network before training, around a text encoder; `start`: a trained image side."""
    with models.initialised(seed):
        return AdaMatch(shape, encoder, start)


def losses(
    pairs: Pairs, tokens: Captions, arm: MatchArm, options: AdaMatchSettings, seed: int
) -> StepLoss:
    """Loss of a step: of the findings for the first `classify_steps`, then the contrast."""
    target = torch.tensor([[float(f in row) for f in FINDINGS] for row in pairs.labels])
    order = torch.arange(len(pairs.captions))
    if arm.shuffled:  # control: every caption describes another image
        order = torch.randperm(len(order), generator=seeded(seed, 52))

    def loss(step: int, modules: Modules, accelerator: Accelerator) -> Tensor:
        network = modules["network"]
        rows = batch_indices(step, options.batch_size, len(order), seed)
        device = network.log_temperature.device
        images = augment(pairs.batch(rows), seeded(seed, 51, step)).to(device)
        if step < options.classify_steps:
            logits = network.classify(images)
            return F.binary_cross_entropy_with_logits(logits.float(), target[rows].to(device))
        told = order[rows]
        words, counts = network.words(*(part.to(device) for part in tokens.rows(told)))
        with torch.autocast(device.type, enabled=False):
            found = adamatch.similarity(network.patches(images).vectors, words, counts)
            texts = [pairs.captions[k] for k in told.tolist()]
            return adamatch.contrast(found, network.temperature, texts)

    return loss


def train(
    network: AdaMatch,
    tokenizer: Any,
    pairs: Pairs,
    arm: MatchArm,
    options: AdaMatchSettings,
    folder: Path,
    *,
    seed: int,
    length: int,
    steps: int | None = None,
    name: str = "AdaMatch",
) -> None:
    """Train a network into `folder` and leave it with its averaged weights.

    Resumes from the folder's checkpoint. `steps` shortens the contrast for live demonstrations.

    Args:
        length: tokens of a caption at most.
    """
    tokens = read_captions(tokenizer, pairs.captions, length, arm.words)
    total = options.classify_steps + (options.steps if steps is None else steps)
    rates = {
        "text": options.text_learning_rate,
        "boxes": options.learning_rate * options.box_lr_scale,
        "rest": options.learning_rate,
    }
    groups = [{"params": weights, "lr": rates[role]} for role, weights in network.groups()]
    run = Options(
        total, warmup=max(1, total // 20), ema=options.ema, cpu=options.pretrained is None,
        mixed_precision=options.mixed_precision, checkpoint_every=options.checkpoint_every,
    )  # fmt: skip
    network.train()
    network.text.eval()
    loss = losses(pairs, tokens, arm, options, seed)
    ema = fit(
        name, {"network": network}, groups, loss, folder, run,
        weight_decay=options.weight_decay, averaged="network",
    )  # fmt: skip
    if ema is not None:
        ema.copy_to([p for p in network.parameters() if p.requires_grad])
    network.eval()
    adamatch.save(network, folder)
    tokenizer.save_pretrained(folder)
