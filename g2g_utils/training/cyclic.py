"""Training of the language model of films and reports: both directions of every film.

The loss is the causal one over the answers' tokens, averaged over a batch (equations 10 and 11 by
mixing both kinds of record).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import Tensor

from g2g_utils.config import CyclicSettings
from g2g_utils.models import cyclic
from g2g_utils.models.cyclic import Language, Record
from g2g_utils.training.finetune import batch_indices
from g2g_utils.training.fit import Modules, Options, StepLoss, fit, trainable

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Told:
    """Films, reports and their hints, one entry a film; empty hints: none."""

    codes: Any  # n cells
    reports: Sequence[str]
    keywords: Sequence[Sequence[str]]
    keypatches: Sequence[Sequence[int]]

    def __len__(self) -> int:
        return len(self.reports)


def records(words: Language, told: Told) -> tuple[list[tuple[Record, Record]], int]:
    """Both records of every film, and how many films are left out: longer than the context."""
    found, long = [], 0
    for k, report in enumerate(told.reports):
        codes = told.codes[k]
        try:
            prompts = (
                words.prompt("report", codes, told.keywords[k]),
                words.prompt("film", report, told.keypatches[k]),
            )
        except ValueError:
            long += 1
            continue
        answers = ([*words.words_of(report), words.end], [*words.codes_of(codes), words.end])
        both = [Record(*one) for one in zip(prompts, answers, strict=True)]
        if max(len(r.prompt) + len(r.answer) for r in both) > words.context:
            long += 1
        else:
            found.append((both[0], both[1]))
    return found, long


def losses(
    pairs: Sequence[tuple[Record, Record]], words: Language, batch: int, seed: int
) -> StepLoss:
    """Loss of a step: of the answers of some films, in both directions."""

    def loss(step: int, modules: Modules, accelerator: Accelerator) -> Tensor:
        rows = batch_indices(step, min(batch, len(pairs)), len(pairs), seed).tolist()
        some = cyclic.collate([record for row in rows for record in pairs[row]], words.pad)
        ids, mask, labels = (part.to(accelerator.device) for part in some)
        answer = modules["network"](
            input_ids=ids, attention_mask=mask, labels=labels, use_cache=False
        )
        found: Tensor = answer.loss
        return found

    return loss


def train(
    network: Any,
    words: Language,
    told: Told,
    settings: CyclicSettings,
    folder: Path,
    *,
    seed: int,
    steps: int | None = None,
    name: str = "AdaMatch-Cyclic",
) -> dict[str, Any]:
    """Train a language model into `folder` and leave it with its averaged weights. Resumes.

    `steps` shortens it.

    Returns:
        Its record: the films left out because they are longer than the context.

    Raises:
        ValueError: no film fits the context.
    """
    pairs, long = records(words, told)
    if not pairs:
        raise ValueError(f"no record fits a context of {words.context} tokens: raise it")
    if long:
        log.warning("%d of %d films are longer than the context and left out", long, len(told))
    total = settings.steps if steps is None else steps
    run = Options(
        total, warmup=max(1, total // 20), ema=settings.ema, cpu=settings.pretrained is None,
        mixed_precision=settings.mixed_precision,
        checkpoint_every=settings.checkpoint_every,
    )  # fmt: skip
    groups = [{"params": trainable(network), "lr": settings.learning_rate}]
    network.train()
    ema = fit(
        name, {"network": network}, groups, losses(pairs, words, settings.batch_size, seed), folder,
        run, weight_decay=settings.weight_decay, averaged="network",
    )  # fmt: skip
    if ema is not None:
        ema.copy_to(trainable(network))
    network.eval()
    network.save_pretrained(folder)
    words.tokenizer.save_pretrained(folder)
    return {"metrics": {"left_out": float(long)}}
