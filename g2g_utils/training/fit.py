"""A training loop on accelerate that checkpoints, resumes to the same bits and can be killed.

The loss function draws all randomness of a step from generators seeded with the step's number. A
resumed run therefore needs no generator state and repeats the uninterrupted run exactly.
"""

from __future__ import annotations

import json
import math
import signal
import threading
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch import Tensor
from tqdm.auto import tqdm

from g2g_utils import runs

CHECKPOINT = "checkpoint.pt"  # in the folder of a run
Modules = dict[str, Any]  # name -> nn.Module, maybe wrapped
StepLoss = Callable[[int, Modules, Accelerator], Tensor]


@dataclass(frozen=True)
class Options:
    """Budget and settings of one training run."""

    steps: int
    warmup: int = 100
    clip: float = 1.0
    ema: float | None = None
    accumulate: int = 1
    mixed_precision: str = "no"
    checkpoint_every: int = 500
    log_every: int = 10
    tensorboard: bool = True
    cpu: bool = False  # stay on the CPU: small modules, whose data nothing moves


def seeded(*numbers: int) -> torch.Generator:
    """A CPU generator whose stream depends on all the given non-negative integers."""
    key = runs.digest(numbers, 15)
    return torch.Generator().manual_seed(int(key, 16))


def trainable(module: Any) -> list[torch.nn.Parameter]:
    """Parameters of a module that learn: the averaged ones, into which averages are copied."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def fit(
    name: str,
    modules: Modules,
    parameters: list[dict[str, Any]],
    loss: StepLoss,
    folder: Path,
    options: Options,
    *,
    weight_decay: float = 0.01,
    averaged: str | None = None,
) -> EMAModel | None:
    """Train `modules` for `options.steps` steps; return the EMA of module `averaged`, if named.

    Checkpoints and the JSONL and TensorBoard logs go to `folder`. A run that finds a sound
    checkpoint there continues from it. SIGTERM writes a checkpoint and stops with exit status 143.

    Args:
        loss: `loss(step, modules, accelerator)` returns the scalar loss of micro-step `step` (there
            are steps x accumulate of them) on this process's share of the batch, by the prepared
            modules.
    """
    # one process may train several models, one after another
    AcceleratorState._reset_state(True)  # noqa: SLF001
    accelerator = Accelerator(
        cpu=options.cpu,
        mixed_precision=options.mixed_precision,
        gradient_accumulation_steps=options.accumulate,
        log_with="tensorboard" if options.tensorboard else None,
        project_dir=folder,
        step_scheduler_with_optimizer=False,
    )
    if options.tensorboard:
        accelerator.init_trackers("tensorboard")
    optimizer = torch.optim.AdamW(parameters, weight_decay=weight_decay)
    schedule = get_scheduler(
        "cosine", optimizer, num_warmup_steps=options.warmup, num_training_steps=options.steps
    )
    names = list(modules)
    prepared = accelerator.prepare(*modules.values(), optimizer)
    optimizer = prepared[-1]
    modules = dict(zip(names, prepared[:-1], strict=True))
    ema = None
    if averaged is not None and options.ema is not None:
        ema = EMAModel(trainable(modules[averaged]), decay=options.ema)
        ema.to(accelerator.device)
    run = _Run(name, modules, optimizer, schedule, ema, averaged, accelerator, folder, options)
    run.train(loss)
    accelerator.end_training()
    return ema


@dataclass
class _Run:
    """State of a run between steps."""

    name: str
    modules: Modules
    optimizer: Any
    schedule: Any
    ema: EMAModel | None
    averaged: str | None
    accelerator: Accelerator
    folder: Path
    options: Options

    def train(self, loss: StepLoss) -> None:
        first = self.restore()
        total = self.options.steps
        main = self.accelerator.is_main_process
        bar = tqdm(total=total, initial=first, desc=self.name, disable=not main, mininterval=2)
        with _sigterm() as asked, bar:
            for step in range(first, total):
                value, norm = self.step(step, loss)
                mean, stop = self.agree(value, asked())
                if not math.isfinite(mean):
                    raise FloatingPointError(
                        f"{self.name}: the loss is {mean} at step {step}; lower the learning rate "
                        "or use mixed_precision = no. The last checkpoint is kept in "
                        f"{self.folder}"
                    )
                bar.update()
                self.log(step, mean, norm, bar)
                due = (step + 1) % self.options.checkpoint_every == 0 and step + 1 < total
                if stop or due:
                    self.save(step + 1)
                if stop:
                    raise SystemExit(143)

    def agree(self, value: Tensor, asked: bool) -> tuple[float, bool]:
        """The processes' mean loss, and whether any got SIGTERM: the same answer in all."""
        both = torch.stack([value.double(), torch.tensor(float(asked), device=value.device)])
        if self.accelerator.num_processes > 1:
            both = self.accelerator.reduce(both, "mean")
        mean, share = both.tolist()
        return mean, share > 0

    def step(self, step: int, loss: StepLoss) -> tuple[Tensor, Tensor]:
        """Do one optimiser step over `accumulate` micro-steps: mean loss and gradient norm."""
        values, norm = [], torch.tensor(0.0)
        for micro in range(self.options.accumulate):
            with self.accelerator.accumulate(*self.modules.values()):
                with self.accelerator.autocast():
                    micro_step = step * self.options.accumulate + micro
                    value = loss(micro_step, self.modules, self.accelerator)
                self.accelerator.backward(value)
                if self.accelerator.sync_gradients:
                    trained = [p for group in self.optimizer.param_groups for p in group["params"]]
                    norm = self.accelerator.clip_grad_norm_(trained, self.options.clip)
                self.optimizer.step()
                self.optimizer.zero_grad()
            values.append(value.detach())
        self.schedule.step()
        if self.ema is not None and self.averaged is not None:
            self.ema.step(trainable(self.modules[self.averaged]))
        return torch.stack(values).mean(), norm

    def log(self, step: int, mean: float, norm: Tensor, bar: Any) -> None:
        """Every `log_every` steps: one JSON line, one TensorBoard point, the bar's text."""
        if (step + 1) % self.options.log_every and step + 1 != self.options.steps:
            return
        row = {
            "step": step + 1,
            "loss": round(mean, 6),
            "grad_norm": round(float(norm), 5),
            "lr": self.schedule.get_last_lr()[0],
        }
        bar.set_postfix(loss=f"{mean:.3f}")
        if self.accelerator.is_main_process:
            with open(self.folder / "log.jsonl", "a") as stream:
                stream.write(json.dumps(row) + "\n")
        if self.options.tensorboard:
            self.accelerator.log({k: v for k, v in row.items() if k != "step"}, step=step + 1)

    def save(self, step: int) -> None:
        """Write the whole state atomically, with its checksum. The other processes wait."""
        if self.accelerator.is_main_process:
            self._write(step)
        self.accelerator.wait_for_everyone()

    def _write(self, step: int) -> None:
        unwrap = self.accelerator.unwrap_model
        state = {
            "step": step,
            "modules": {name: unwrap(m).state_dict() for name, m in self.modules.items()},
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "ema": self.ema.state_dict() if self.ema else None,
            "scaler": scaler.state_dict() if (scaler := self.accelerator.scaler) else None,
        }
        with runs.atomic(self.folder / CHECKPOINT) as temporary:
            torch.save(state, temporary)

    def restore(self) -> int:
        """Load the checkpoint, if it is sound; return the step at which to continue."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.accelerator.is_main_process:
            for left in self.folder.glob(f".{CHECKPOINT}.*.tmp"):  # by a process that was killed
                left.unlink()
        self.accelerator.wait_for_everyone()
        state = read_checkpoint(self.folder)
        step = state["step"] if state else 0
        if self.accelerator.is_main_process:
            _truncate_log(self.folder / "log.jsonl", step)
        if state is None:
            return 0
        for name, module in self.modules.items():
            self.accelerator.unwrap_model(module).load_state_dict(state["modules"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
        if self.accelerator.scaler is not None and state.get("scaler"):
            self.accelerator.scaler.load_state_dict(state["scaler"])
        return step


def read_checkpoint(folder: Path) -> dict[str, Any] | None:
    """The checkpoint of a run folder; None if it is absent or damaged (with a warning)."""
    path = folder / CHECKPOINT
    if not path.is_file():
        return None
    if not _sound(path):
        warnings.warn(f"{path}: damaged; training starts again", stacklevel=2)
        return None
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def _sound(path: Path) -> bool:
    """True if a file of torch.save is whole: its structure, and checksums that torch ignores."""
    try:
        with zipfile.ZipFile(path) as archive:
            attributes = any(entry.external_attr for entry in archive.infolist())
            if attributes or archive.testzip():  # torch sets no attributes
                return False
        torch.load(path, map_location="meta", mmap=True, weights_only=True)  # reads no tensor
    except (OSError, RuntimeError, ValueError, EOFError, NotImplementedError, zipfile.BadZipFile):
        return False
    return True


def _truncate_log(path: Path, step: int) -> None:
    """Drop log lines after `step`: their work is about to be redone."""
    if not path.is_file():
        return
    rows = [line for line in path.read_text().splitlines() if _step_of(line) <= step]
    with runs.atomic(path) as temporary:
        temporary.write_text("".join(row + "\n" for row in rows))


def _step_of(line: str) -> float:
    """Step number of a log line. A torn line counts as later than all others."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


@contextmanager
def _sigterm() -> Iterator[Callable[[], bool]]:
    """Catch SIGTERM (a scheduler's notice) inside the block; yields 'was it sent?'."""
    sent = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield sent.is_set
        return
    previous = signal.signal(signal.SIGTERM, lambda *_: sent.set())
    try:
        yield sent.is_set
    finally:
        signal.signal(signal.SIGTERM, previous)


def read_log(folder: Path) -> list[dict[str, float]]:
    """Rows of a run's JSONL log."""
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
