"""Pre-training of G2D (Liu et al., NeurIPS 2024): contrast and pseudo-segmentation.

The loss is the image-text contrast (eq. 1) plus half of soft Dice and cross-entropy of the decoder
against a target (eq. 4). What the target is tells the arms apart; all arms of a seed go on from one
warm-up by the contrast alone, and see the same batches.

Paper and released code differ; here: both directions of the contrast, averaged (paper: one; code:
their sum); Dice of probabilities (code: of raw logits, which is neither bounded nor monotone).
`compat="published"` is the code's loss, for comparison with its numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn import functional as F

from g2g_utils import models
from g2g_utils.config import DenseArm, G2DSettings
from g2g_utils.models import g2d
from g2g_utils.training import pseudo_masks
from g2g_utils.training.fit import Modules, Options, StepLoss, fit, seeded
from g2g_utils.training.pretrain import augment, contrast

TEMPERATURE = 0.07  # of the contrast, fixed
SMOOTH = 1e-5  # in Dice
Target = Callable[[Tensor, Tensor, Tensor], Tensor]  # attention, image rows, images -> [b, m, S, S]


# ---------------------------------------------------------------- losses


def alignment(image: Tensor, text: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """Contrast of matching rows of image and report vectors [b, d] (eq. 1, both directions).

    The authors' code sums the two directions: twice this value.
    """
    return contrast(image, text, torch.tensor(math.log(1 / temperature), device=image.device))


def dice_loss(predicted: Tensor, target: Tensor, smooth: float = SMOOTH) -> Tensor:
    """1 − Dice of each image [b] over all its pixels; arrays [b, ...]."""
    predicted, target = predicted.flatten(1), target.flatten(1)
    overlap = 2 * (predicted * target).sum(1) + smooth
    return 1 - overlap / (predicted.sum(1) + target.sum(1) + smooth)


def mask_loss(logits: Tensor, target: Tensor, compat: str | None = None) -> Tensor:
    """Half of soft Dice plus cross-entropy of logits [b, m, S, S] against soft targets (eq. 4).

    compat: "published": Dice of raw logits plus 0.2 of the cross-entropy, as the authors' code.
    """
    entropy = F.binary_cross_entropy_with_logits(logits, target)
    if compat == "published":
        return dice_loss(logits, target).mean() + 0.2 * entropy
    if compat is not None:
        raise ValueError(f'compat={compat!r}: None or "published"')
    return (dice_loss(logits.sigmoid(), target).mean() + entropy) / 2


# ---------------------------------------------------------------- data and targets


@dataclass(frozen=True, eq=False)
class Pairs:
    """Training images and what is computed of them and of their reports once."""

    images: Any  # [n, S, S], uint8: an array, a memory map or `data.films.Films`
    states: Tensor  # [n, d]: text states of the reports' first tokens
    bodies: Tensor | None = None  # [n, S, S], bool; None: made of a batch's images
    lesions: Tensor | None = None  # [n, S, S], bool: true masks, for the arm `oracle`

    def batch(self, rows: Tensor) -> Tensor:
        """Images [b, 1, S, S] in [0, 1]."""
        found = torch.from_numpy(self.images[rows.numpy()].copy())
        return found[:, None].float() / 255

    def body(self, rows: Tensor) -> Tensor:
        """Body masks [b, S, S], bool."""
        if self.bodies is not None:
            return self.bodies[rows]
        return pseudo_masks.body_mask(self.batch(rows)[:, 0])


def own_masks(attention: Tensor, arm: DenseArm, bodies: Tensor | None, size: int) -> Tensor:
    """Pseudo masks of an arm's settings from a batch's attention."""
    return pseudo_masks.pseudo_mask(
        attention,
        size,
        quantile=arm.quantile,
        mixture=arm.cut == "mixture",
        how=arm.enlarge,
        body=bodies,
        of=arm.percentile_of,
        smooth=arm.smooth,
        per_head=arm.per_head,
    )


def target_of(arm: DenseArm, pairs: Pairs, size: int, mean: Tensor | None = None) -> Target | None:
    """The function that makes an arm's targets; None: the arm has no decoder loss.

    Args:
        mean: [1, 1, S, S]: the mean pseudo mask, for the arm `centre`.
    """

    def own(attention: Tensor, rows: Tensor, images: Tensor) -> Tensor:
        return own_masks(attention, arm, pairs.body(rows) if arm.body else None, size)

    def other(attention: Tensor, rows: Tensor, images: Tensor) -> Tensor:
        return own(attention, rows, images).roll(1, 0)  # no image keeps its mask

    def true(attention: Tensor, rows: Tensor, images: Tensor) -> Tensor:
        assert pairs.lesions is not None
        return pairs.lesions[rows][:, None].float()

    def fixed(attention: Tensor, rows: Tensor, images: Tensor) -> Tensor:
        assert mean is not None
        return mean.expand(len(rows), -1, -1, -1)

    def pixels(attention: Tensor, rows: Tensor, images: Tensor) -> Tensor:
        return images

    made = {"own": own, "other": other, "lesions": true, "mean": fixed, "image": pixels}
    return made.get(arm.target)


@torch.no_grad()
def mean_mask(network: g2d.G2D, pairs: Pairs, arm: DenseArm, count: int = 512) -> Tensor:
    """Mean pseudo mask [1, 1, S, S] of the first images under a network."""
    network.eval()
    count, found = min(count, len(pairs.states)), []
    for rows in torch.split(torch.arange(count), 64):
        attention = network(pairs.batch(rows), decode=False).attention
        bodies = pairs.body(rows) if arm.body else None
        found.append(own_masks(attention, arm, bodies, network.shape.side))
    return torch.cat(found).mean((0, 1))[None, None]


# ---------------------------------------------------------------- training


def build(shape: g2d.Shape, seed: int, start: g2d.G2D | None = None) -> g2d.G2D:
    """An untrained network of a seed, its encoder, pooling and projectors those of `start`."""
    with models.initialised(seed):
        network = g2d.G2D(shape)
    if start is not None:
        fresh = ("img_model.decoder.", "img_model.segmentation_head.")
        state = {k: v for k, v in start.state_dict().items() if not k.startswith(fresh)}
        network.load_state_dict(network.state_dict() | state)
    cast(Any, network).to(memory_format=torch.channels_last)
    return network


def step_loss(
    pairs: Pairs, target: Target | None, arm: DenseArm, batch: int, seed: int, first: int
) -> StepLoss:
    """Loss of a step; `first` numbers an arm's first step, which follows the warm-up's last."""

    def loss(step: int, modules: Modules, accelerator: Accelerator) -> Tensor:
        generator = seeded(seed, 20, first + step)
        rows = torch.randint(len(pairs.states), (batch,), generator=generator)
        images = augment(pairs.batch(rows), generator).to(accelerator.device)
        images = images.contiguous(memory_format=torch.channels_last)
        states = pairs.states[rows].to(accelerator.device)
        found = modules["all"](images, states, decode=target is not None)
        value = alignment(found.image, found.text)
        if target is None:
            return value
        goal = target(found.attention.detach().cpu(), rows, images).to(found.logits)
        if arm.target == "image":
            return value + arm.weight * F.mse_loss(found.logits, goal)
        return value + arm.weight * mask_loss(found.logits, goal)

    return loss


def pretrain(
    network: g2d.G2D,
    pairs: Pairs,
    arm: DenseArm,
    settings: G2DSettings,
    folder: Path,
    *,
    seed: int,
    first: int = 0,
    steps: int | None = None,
    name: str = "G2D",
) -> None:
    """Train a network as an arm says and write it to `folder`; an interrupted run goes on.

    Args:
        network: where it starts; of another warm-up also the decoder's first weights.
        first: steps that came before, in the warm-up.
        steps: default: the settings'.
    """
    total, size = steps or settings.steps, network.shape.side
    mean = mean_mask(network, pairs, arm) if arm.target == "mean" else None
    target = target_of(arm, pairs, size, mean)
    network.train()
    loss = step_loss(pairs, target, arm, settings.batch_size, seed, first)
    options = Options(
        total,
        warmup=max(1, total // 20),
        checkpoint_every=settings.checkpoint_every,
        mixed_precision=settings.mixed_precision,
        tensorboard=False,
        cpu=network.shape.encoder == "small",
    )
    groups = [{"params": list(network.parameters()), "lr": settings.learning_rate}]
    fit(name, {"all": network}, groups, loss, folder, options, weight_decay=settings.weight_decay)
    g2d.save(network.eval().cpu(), folder, half=False)
