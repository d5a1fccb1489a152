"""Started by test_distributed.py in one or two processes: one fine-tuning, its gradients written.

python distributed.py OUT BATCH ACCUMULATE STEPS: gradients of the first update, the sample ids that
this process saw, and the weights after the last one, as OUT/rank-N.pt.
"""

import sys
from pathlib import Path

import torch
from accelerate import PartialState
from torch.optim.optimizer import register_optimizer_step_pre_hook

from g2g_utils import config, models
from g2g_utils.training import finetune, pretrain

CAPTIONS = [f"small left effusion number {c}" for c in "abcdefghijkl"]


def main(out: Path, batch: int, accumulate: int, steps: int) -> None:
    """Fine-tune a tiny U-Net in all processes."""
    settings = config.load("smoke")
    state = PartialState(cpu=True)
    mine = out / f"rank-{state.process_index}"
    tokenizer = pretrain.word_tokenizer(CAPTIONS, mine, 77)
    with models.initialised(0):
        encoder = pretrain.build_text_encoder(settings.encoders["domain"], tokenizer, 77)
        unet = models.build_unet(settings.unet, 4, 8, 32)
    mean = torch.randn((12, 4, 8, 8), generator=torch.Generator().manual_seed(1))
    pairs = finetune.Pairs(mean, torch.full_like(mean, 0.1), tuple(CAPTIONS))
    seen: list[list[int]] = []
    grads: list[dict[str, torch.Tensor]] = []
    original = finetune.share

    def spy(indices, accelerator):
        found = original(indices, accelerator)
        seen.append(found.tolist())
        return found

    def keep(optimizer, args, kwargs):
        if not grads:
            grads.append({name: p.grad.clone() for name, p in unet.named_parameters()})

    changes = {"batch_size": batch, "accumulate": accumulate, "steps": steps, "clip": 1.0e9}
    changes |= {"mixed_precision": "no", "checkpoint_every": 2}
    options = settings.training.model_copy(update=changes)
    finetune.share, hook = spy, register_optimizer_step_pre_hook(keep)
    try:
        finetune.fine_tune(
            pairs, unet, models.Conditioning(tokenizer, encoder, 77),
            models.build_scheduler(settings.unet), config.Arm(encoder="domain"), options, out,
            seed=0,
        )  # fmt: skip
    finally:
        finetune.share = original
        hook.remove()
    torch.save({"grads": grads[0], "seen": seen, "weights": unet.state_dict()}, mine / "found.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
