"""Training of the film tokenizer, with a cure for codes that nothing uses.

The autoencoder learns `warmup` steps without quantisation. Then the codebook starts from k-means of
the latents, and every `restart_every` steps codes that no latent has taken since are moved onto
latents of the current films, until the last third. There is no adversary and no perceptual loss.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from diffusers import VQModel
from sklearn.cluster import KMeans
from torch import Tensor, nn
from torch.nn import functional as F

from g2g_utils.config import VqSettings
from g2g_utils.models import vq as tokens
from g2g_utils.models.components import vae_input
from g2g_utils.training.fit import Modules, Options, StepLoss, fit, seeded

LATENTS = 16  # latents a code for k-means at most
SEEN = 256  # training films on which a tokenizer is measured


class Counted(nn.Module):
    """A tokenizer, and how often each code was taken since the last restart."""

    used: Tensor

    def __init__(self, vq: VQModel) -> None:
        super().__init__()
        self.vq = vq
        self.register_buffer("used", torch.zeros(vq.config.num_vq_embeddings, dtype=torch.long))

    def count(self, codes: Tensor) -> None:
        """Count codes, of any shape."""
        self.used += torch.bincount(codes.flatten(), minlength=len(self.used))

    @torch.no_grad()
    def start(self, latents: Tensor, seed: int) -> None:
        """Put the codebook at the centres of k-means of latents [n, d]."""
        count = len(self.used)
        if len(latents) < count:
            raise ValueError(f"{len(latents)} latents for {count} codes: use a larger batch")
        found = KMeans(count, n_init=1, max_iter=20, random_state=seed).fit(latents.numpy())
        centres = torch.from_numpy(found.cluster_centers_.astype(np.float32))
        self.vq.quantize.embedding.weight.copy_(centres)
        self.used.zero_()

    @torch.no_grad()
    def restart(self, latents: Tensor, generator: torch.Generator) -> int:
        """Move unused codes onto random latents [n, d]; how many."""
        idle = torch.nonzero(self.used == 0).flatten()[: len(latents)]
        chosen = torch.randperm(len(latents), generator=generator)[: len(idle)]
        self.vq.quantize.embedding.weight[idle] = latents[chosen]
        self.used.zero_()
        return len(idle)


def flat(latents: Tensor) -> Tensor:
    """Latents [b, d, h, w] as rows [b h w, d], without gradient."""
    return latents.detach().permute(0, 2, 3, 1).flatten(0, 2).float()


def losses(images: Any, settings: VqSettings, seed: int) -> StepLoss:
    """Loss of a step: error of the film drawn back, and distance of latents to their codes."""

    def films(step: int) -> Tensor:
        size = (settings.batch_size,)
        rows = torch.randint(len(images), size, generator=seeded(seed, 61, step)).numpy()
        return torch.from_numpy(np.array(images[rows]))[:, None].float() / 255

    def first_codebook(module: Counted, step: int) -> None:
        count = settings.codes * LATENTS
        rows: list[Tensor] = []
        while sum(map(len, rows)) < count and len(rows) < LATENTS:
            with torch.no_grad():
                x = vae_input(module.vq, films(step + len(rows)))
                rows.append(flat(module.vq.encode(x).latents))
        module.start(torch.cat(rows)[:count], seed)

    def loss(step: int, modules: Modules, accelerator: Accelerator) -> Tensor:
        module: Counted = modules["tokenizer"]
        vq, since = module.vq, step - settings.warmup
        if since == 0:
            first_codebook(module, step)
        target = vae_input(vq, films(step))
        latents, distance = vq.encode(target).latents, torch.zeros(())
        if since >= 0:
            restarts = since % settings.restart_every == 0 and step < settings.steps * 2 // 3
            if since and restarts:
                module.restart(flat(latents), seeded(seed, 62, step))
            latents, distance, (_, _, codes) = vq.quantize(latents.float())
            module.count(codes)
        drawn = vq.decode(latents, force_not_quantize=True).sample.float()
        error: Tensor = F.mse_loss(drawn, target) + 0.3 * F.l1_loss(drawn, target)
        return error + distance

    return loss


def train(images: Any, settings: VqSettings, folder: Path, seed: int) -> dict[str, Any]:
    """Train a tokenizer of films [n, S, S] (uint8) into `folder`. Resumes.

    Returns:
        Its metrics on training films: peak signal-to-noise ratio in dB, and codes in use.
    """
    vq = tokens.build(settings, seed).train()
    run = Options(
        settings.steps, warmup=max(1, settings.steps // 20), ema=0.99, cpu=True,
        checkpoint_every=settings.checkpoint_every,
    )  # fmt: skip
    module = Counted(vq)
    groups = [{"params": list(vq.parameters()), "lr": settings.learning_rate}]
    ema = fit(
        "VQ tokenizer", {"tokenizer": module}, groups, losses(images, settings, seed), folder, run,
        weight_decay=0.0, averaged="tokenizer",
    )  # fmt: skip
    if ema is not None:
        ema.copy_to(list(module.parameters()))
    vq.eval().save_pretrained(folder)
    return {"metrics": measured(vq, images)}


def measured(vq: VQModel, images: Any) -> dict[str, float]:
    """Peak signal-to-noise ratio (dB) on films [n, S, S] (uint8), and the codes that they use."""
    seen = torch.from_numpy(np.array(images[:SEEN]))[:, None].float() / 255
    codes = tokens.encode(vq, seen)
    error = F.mse_loss(tokens.decode(vq, codes), seen)
    return {
        "psnr_db": round(float(-10 * torch.log10(error)), 2),
        "codes_used": float(len(np.unique(codes.numpy()))),
    }
