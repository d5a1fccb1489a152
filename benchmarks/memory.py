"""GPU memory of fine-tuning Stable Diffusion 1.5, by settings: simulated, not measured.

    python benchmarks/memory.py    writes memory.json; python tools/readme.py --render shows it

Two updates run at full size (latents 64², 77 tokens of width 768, a frozen text encoder of BERT's
size) on PyTorch's *fake* tensors. They have shapes but no contents, so that no GPU and little
memory is needed; all living tensors are added up after every operation. U-Net, LoRA, checkpointing,
loss, groups of parameters and average are the project's own.

The tensors are fake CPU tensors, so mixed precision is bfloat16 autocast, as wide as float16.
Because a GPU keeps the norms in float32, the same is simulated in float32 throughout, and the
larger of the two counts. Not seen: the CUDA context, cuDNN's workspaces and fragmentation;
`HEADROOM` is left for them.
"""

import contextlib
import platform
import threading
import time
import weakref
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from diffusers.training_utils import EMAModel
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from tqdm.auto import tqdm
from transformers import BertConfig, BertModel, BertTokenizer

from g2g_utils import config, models, runs
from g2g_utils.experiment import costs
from g2g_utils.training import finetune
from g2g_utils.training.fit import trainable

RESULTS = Path(__file__).with_name("memory.json")
WIDTH, TOKENS, SIDE = 768, 77, 64
HEADROOM = 2.0  # GB
SETTINGS = [  # LoRA's rank (0: all weights), gradient checkpointing, samples a forward pass
    (0, True, 4),
    (0, False, 4),
    (0, True, 8),
    (0, False, 32),
    (0, True, 32),
    (32, True, 4),
    (32, False, 4),
    (32, True, 8),
]
CHECKED = (32, True, 1)  # small enough for a laptop


def build(rank: int, checkpointing: bool) -> finetune.Denoising:
    """Build the modules to fine-tune, with untrained weights."""
    unet = UNet2DConditionModel.from_config(costs.SD15_UNET)
    asked = {"adaptation.lora_rank": rank, "adaptation.gradient_checkpointing": checkpointing}
    models.adapt_unet(unet, config.load("open", **asked).adaptation, WIDTH)
    text = models.Conditioning(BertTokenizer(), BertModel(BertConfig()), 77)
    return finetune.Denoising(unet, text, learnable=False).train()


def faked(module: torch.nn.Module) -> None:
    """Replace tensors of a module on the meta device by fake ones, in place."""
    for part in module.modules():
        for name, weight in part.named_parameters(recurse=False):
            fake = torch.empty(weight.shape, dtype=weight.dtype)
            part.register_parameter(name, torch.nn.Parameter(fake, weight.requires_grad))
        for name, buffer in part.named_buffers(recurse=False):
            part.register_buffer(name, torch.empty(buffer.shape, dtype=buffer.dtype))


class Alive(TorchDispatchMode):
    """Adds up the bytes of all storages that exist, and keeps the peak."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known: set[int] = set()

    def count(self, found: Any) -> None:
        """Count the tensors in a structure whose storage is new."""
        for tensor in tree_leaves(found):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        self.peak = max(self.peak, self.now)

    def _count(self, storage: torch.UntypedStorage) -> None:
        identity, size = id(storage), storage.nbytes()
        if identity not in self.known:
            self.known.add(identity)
            self.now += size
            weakref.finalize(storage, self._forget, identity, size)

    def _forget(self, identity: int, size: int) -> None:
        self.known.discard(identity)
        self.now -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count what it returns."""
        found = func(*args, **(kwargs or {}))
        self.count(found)
        return found


def updates(module: finetune.Denoising, batch: int, mixed: bool) -> None:
    """Do two updates: the second finds the optimiser's moments in memory."""
    optimizer = torch.optim.AdamW(finetune.parameter_groups(module, config.load("open").training))
    average = EMAModel(trainable(module))
    scheduler = DDIMScheduler(**models.SD_SCHEDULE)
    ids, mask = torch.ones(2, batch, TOKENS, dtype=torch.long)
    for _ in range(2):
        latents, noise = torch.randn(2, batch, 4, SIDE, SIDE)
        drawn = finetune.Noise(noise, noise, torch.randint(1000, (batch,)), ids[:, 0] > 1)
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            loss = finetune.denoising_loss(module, scheduler, latents, drawn, ids, mask)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trainable(module), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average.step(trainable(module))


def simulate(rank: int, checkpointing: bool, batch: int, mixed: bool) -> float:
    """Peak of the memory alive during two updates, in GB."""
    with torch.device("meta"):
        module = build(rank, checkpointing)
    with FakeTensorMode(), Alive() as alive:
        faked(module)
        updates(module, batch, mixed)
    return round(alive.peak / 1e9, 2)


def measure(rank: int, checkpointing: bool, batch: int) -> dict[str, Any]:
    """One line of the table."""
    with torch.device("meta"):
        trained = sum(p.numel() for p in trainable(build(rank, checkpointing)))
    return {
        "lora_rank": rank,
        "gradient_checkpointing": checkpointing,
        "batch_size": batch,
        "trained": trained,
        "mixed_gb": simulate(rank, checkpointing, batch, mixed=True),
        "float32_gb": simulate(rank, checkpointing, batch, mixed=False),
    }


@contextlib.contextmanager
def resident() -> Iterator[list[float]]:
    """Yields a list that holds, at the end, the growth of this process at its peak, in GB."""
    process, done, peak = psutil.Process(), threading.Event(), [0.0]
    start = process.memory_info().rss

    def watch() -> None:
        while not done.wait(0.01):
            peak[0] = max(peak[0], (process.memory_info().rss - start) / 1e9)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()


def check() -> dict[str, Any]:
    """Do the two updates of `CHECKED` for real, on the CPU in float32, beside their simulation."""
    rank, checkpointing, batch = CHECKED
    simulated = simulate(rank, checkpointing, batch, mixed=False)
    with resident() as grown:
        updates(build(rank, checkpointing), batch, mixed=False)
    asked = {"lora_rank": rank, "gradient_checkpointing": checkpointing, "batch_size": batch}
    return asked | {"simulated_gb": simulated, "resident_gb": round(grown[0], 2)}


def main() -> None:
    """Simulate all settings."""
    names = ("torch", "diffusers", "peft")
    found = {
        "versions": {name: version(name) for name in names} | {"python": platform.python_version()},
        "date": time.strftime("%Y-%m-%d"),
        "headroom_gb": HEADROOM,
        "check": check(),
        "rows": [measure(*setting) for setting in tqdm(SETTINGS, desc="settings")],
    }
    runs.write_json(RESULTS, found)


if __name__ == "__main__":
    main()
