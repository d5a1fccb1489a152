"""Image fidelity of samples: Frechet distance in a small network's features, and sampling."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.functional.image import multiscale_structural_similarity_index_measure as ms_ssim
from tqdm.auto import tqdm

from g2g_utils import models, runs
from g2g_utils.bench import statistics
from g2g_utils.data.record import FINDINGS
from g2g_utils.models.image_text import ImageBranch, load_image_text
from g2g_utils.training.fit import Modules, Options, fit, seeded

Features = NDArray[np.float64]  # [n, d], one row an image
SIDE = 64  # pixels: input of the small networks; larger images are averaged down


def reduced(images: NDArray[np.uint8]) -> Tensor:
    """Images [b, S, S] (uint8) as floats [b, 1, s, s] in [0, 1], with s at most SIDE."""
    pixels = torch.from_numpy(np.array(images))[:, None].float() / 255
    return F.adaptive_avg_pool2d(pixels, SIDE) if pixels.shape[-1] > SIDE else pixels


def build_classifier(seed: int = 0) -> nn.ModuleDict:
    """An untrained network: grey images [b, 1, S, S] in [0, 1] -> finding logits [b, 8]."""
    with models.initialised(seed):
        branch = ImageBranch(1, 32)
        return nn.ModuleDict({"branch": branch, "head": nn.Linear(32, len(FINDINGS))})


def features(network: nn.ModuleDict, images: Tensor) -> Tensor:
    """Pooled features [b, d] of grey images [b, 1, S, S], which the Frechet distance compares."""
    branch = network["branch"]
    assert isinstance(branch, ImageBranch)
    images = F.adaptive_avg_pool2d(images, SIDE) if images.shape[-1] > SIDE else images
    pooled: Tensor = branch(images.expand(-1, branch.channels, -1, -1))[1]
    return pooled


def train_classifier(
    images: Tensor, labels: list[list[str]], folder: Path, steps: int, seed: int
) -> dict[str, Any]:
    """Train the multi-label finding classifier. The last tenth is held out for its AUC.

    Args:
        labels: findings of each image. For real reports these are the findings that they name and
            do not deny, so the AUC is agreement with the report's words.
    """
    from sklearn.metrics import roc_auc_score

    target = torch.tensor([[float(f in row) for f in FINDINGS] for row in labels])
    cut = len(images) - len(images) // 10
    classifier = build_classifier(seed)

    def loss(step: int, modules: Modules, accelerator: Accelerator) -> Tensor:
        ids = torch.randint(cut, (64,), generator=seeded(seed, 20, step))
        logits = classifier["head"](F.silu(features(modules["classifier"], images[ids])))
        return F.binary_cross_entropy_with_logits(logits, target[ids])

    groups = [{"params": list(classifier.parameters()), "lr": 2.0e-3}]
    options = Options(steps, warmup=max(1, steps // 20), checkpoint_every=200, cpu=True)
    fit("finding classifier", {"classifier": classifier}, groups, loss, folder, options)
    classifier.eval()
    with torch.no_grad():
        logits = classifier["head"](F.silu(features(classifier, images[cut:])))
    with runs.atomic(folder / "classifier.safetensors") as temporary:
        save_file(classifier.state_dict(), temporary)
    known = [k for k in range(len(FINDINGS)) if 0 < float(target[cut:, k].sum()) < len(logits)]
    if not known:
        return {"metrics": {}, "note": "no finding both present and absent among held-out images"}
    auc = float(roc_auc_score(target[cut:, known], logits[:, known], average="macro"))
    return {"metrics": {"macro_auc": round(auc, 4)}}


def load_classifier(folder: Path) -> nn.ModuleDict:
    """Load the classifier that `train_classifier` saved."""
    classifier = build_classifier()
    state = load_file(folder / "classifier.safetensors")
    classifier.load_state_dict({name: value.float() for name, value in state.items()})
    return classifier.eval()


def load_generic(folder: Path) -> nn.ModuleDict:
    """Image network of the domain-agnostic task, which never saw a chest (colour input)."""
    return nn.ModuleDict({"branch": load_image_text(folder, channels=3)[0]})


@torch.no_grad()
def extract(network: nn.ModuleDict, images: Tensor, batch_size: int = 64) -> Features:
    """Features [n, d] (float64) of images [n, 1, S, S] in [0, 1]."""
    parts = [
        features(network, images[i : i + batch_size]) for i in range(0, len(images), batch_size)
    ]
    found: Features = torch.cat(parts).double().numpy()
    return found


def alikeness(images: Tensor) -> Features:
    """MS-SSIM [n // 2] of neighbouring images [n, 1, S, S] in [0, 1], S >= 48. 1 means the same.

    Over images of different texts it measures diversity: the lower, the more diverse. Three scales
    instead of five, for small images hold no more. Paper, FID section.
    """
    first, second = images[0 : len(images) // 2 * 2 : 2].float(), images[1::2].float()
    weights = (0.0448, 0.2856, 0.3001)
    total = sum(weights)
    found: Tensor = ms_ssim(
        first, second, data_range=1.0, betas=tuple(w / total for w in weights), reduction="none"
    )
    return np.asarray(found.double())


Moments = tuple[NDArray[np.float64], NDArray[np.float64]]  # mean [d], covariance [d, d]


def moments(x: Features) -> Moments:
    """Mean and covariance of features [n, d]. Needs more rows than columns."""
    if len(x) <= x.shape[1]:
        raise ValueError(f"{len(x)} samples for {x.shape[1]} features: use more samples")
    return x.mean(0), np.cov(x, rowvar=False)


def frechet_of_moments(a: Moments, b: Moments) -> float:
    """Frechet distance between two normal distributions (FID's formula).

    Moments of few rows bias it upwards, so compare at equal numbers of rows.
    """
    # trace of the root of a product of covariances: its eigenvalues are real and not negative
    root = np.sqrt(np.clip(np.linalg.eigvals(a[1] @ b[1]).real, 0, None)).sum()
    return float(((a[0] - b[0]) ** 2).sum() + np.trace(a[1]) + np.trace(b[1]) - 2 * root)


def frechet_draws(
    fake: Features, real: Moments, resamples: int, seed: int
) -> tuple[float, NDArray[np.float64]]:
    """Frechet distance of features [n, d] to `real`, and its bootstrap deviations [resamples].

    Resampled rows repeat, which shifts every draw upwards: the draws are centred on zero.
    """
    rng = np.random.default_rng(seed)
    drawn = [fake[rng.integers(0, len(fake), len(fake))] for _ in range(resamples)]
    values = np.array([frechet_of_moments(moments(rows), real) for rows in drawn])
    return frechet_of_moments(moments(fake), real), values - values.mean()


def frechet_gap(
    first: Sequence[Features], second: Sequence[Features], real: Moments, resamples: int = 200
) -> statistics.Interval:
    """Mean over seeds of distance(first) - distance(second), interval over resampled images."""
    arms = [
        [frechet_draws(fake, real, resamples, 2 * k + arm) for k, fake in enumerate(fakes)]
        for arm, fakes in enumerate((first, second))
    ]
    value = np.mean([row[0] for row in arms[0]]) - np.mean([row[0] for row in arms[1]])
    spread = np.mean([row[1] for row in arms[0]], 0) - np.mean([row[1] for row in arms[1]], 0)
    low, high = np.percentile(spread, [2.5, 97.5])
    return statistics.Interval(float(value), float(value + low), float(value + high))


def frechet_interval(
    fake: Features, real: Moments, resamples: int = 200, seed: int = 0
) -> statistics.Interval:
    """Frechet distance of features [n, d] to `real` and its 95 % interval over the images."""
    value, spread = frechet_draws(fake, real, resamples, seed)
    low, high = np.percentile(spread, [2.5, 97.5])
    return statistics.Interval(value, max(0.0, float(value + low)), float(value + high))


@torch.no_grad()
def sample(
    model: models.GroundingModel,
    phrases: list[str],
    *,
    steps: int,
    guidance: float,
    seed: int,
    batch_size: int = 64,
    progress: bool = True,
) -> Tensor:
    """Sample images [n, 1, S, S] in [0, 1] from text by DDIM with classifier-free guidance.

    The noise of sample i depends on (seed, i) alone, whatever the batch size.
    """
    images = []
    starts = range(0, len(phrases), batch_size)
    for start in tqdm(starts, desc="samples", disable=not progress, mininterval=2):
        batch = phrases[start : start + batch_size]
        noise = [
            torch.randn(model.latent_shape, generator=seeded(seed, 30, start + i))
            for i in range(len(batch))
        ]
        images.append(model.decode(denoise(model, batch, torch.stack(noise), steps, guidance)))
    return torch.cat(images).float().cpu()


def denoise(
    model: models.GroundingModel, phrases: list[str], latents: Tensor, steps: int, guidance: float
) -> Tensor:
    """Denoise [b, c, h, w] to scaled latents by DDIM (eta = 0) under classifier-free guidance."""
    states = torch.cat([model.encode_phrases(phrases), model.encode_phrases([""] * len(phrases))])
    latents = latents.to(model.device, model.dtype)
    scheduler = type(model.scheduler).from_config(model.scheduler.config)
    scheduler.set_timesteps(steps)
    for t in scheduler.timesteps:
        both = model.unet(latents.repeat(2, 1, 1, 1), t, encoder_hidden_states=states).sample
        text, empty = both.chunk(2)
        latents = scheduler.step(empty + guidance * (text - empty), t, latents).prev_sample
    return latents


def fidelity_row(fake: Features, real: Moments, resamples: int = 200) -> dict[str, float]:
    """One line of the fidelity table: distance and its interval."""
    value, low, high = frechet_interval(fake, real, resamples)
    return {"frechet": value, "low": low, "high": high, "samples": len(fake)}
