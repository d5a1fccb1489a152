"""What only a GPU can show, in pieces of at most nine minutes; writes benchmarks/gpu/PIECE.json.

    benchmarks/gpu.sh                       every piece that has no result yet, one after the other
    python benchmarks/gpu.py --list         names of the pieces
    python benchmarks/gpu.py PIECE          one piece
    python benchmarks/gpu.py --tiny PIECE   the smallest run of the same code, on the CPU: a test
    python benchmarks/gpu.py --cpu SIZE PIECE    on the CPU at a size of attention.py, CPU seconds

U-Nets have Stable Diffusion 1.5's size and random weights; the VAE and the text encoder of the
grounding pieces are tiny, so a pair costs its U-Net rows. Times are medians of rounds in turns,
after one that does not count. GiB is the allocator's peak in the call, weights included.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import attention
import store_everything
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from transformers import BertConfig, BertModel, BertTokenizer

from g2g_utils import config, grounding, information, models, runs, sampling
from g2g_utils.attention import CrossAttentionRecorder
from g2g_utils.experiment import costs
from g2g_utils.methods.zero_shot_ldm import ZeroShotLDM
from g2g_utils.text import tokenize
from g2g_utils.training import finetune
from g2g_utils.training.fit import trainable

OUT = Path(__file__).with_name("gpu")
GIB = 2**30
Row = dict[str, Any]
TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Scale:
    """How large a run is."""

    device: torch.device
    size: attention.Size
    timesteps: tuple[int, ...] = (10, 25, 50)
    rows: tuple[int, ...] = (1, 10, 25, 50)  # of the U-Net in one forward
    batches: tuple[int, ...] = (1, 4, 8, 16, 32)  # samples of a training step
    rounds: int = 5
    inversion: int = 300
    draws: tuple[int, ...] = (1, 4)
    unet: tuple[tuple[str, Any], ...] = tuple(costs.SD15_UNET.items())
    width: int = 768
    text: tuple[tuple[str, int], ...] = ()  # sizes of the text encoder; (): BERT's
    seconds: float = 400  # after which a piece starts no further row


def full() -> Scale:
    """Stable Diffusion's size on a GPU."""
    if not torch.cuda.is_available():
        raise ValueError("no CUDA device: --tiny runs the pieces on the CPU")
    return Scale(torch.device("cuda"), attention.SIZES["sd"])


def tiny() -> Scale:
    """The smallest run of the same code, on the CPU."""
    small = {"block_out_channels": (8, 16), "norm_num_groups": 4, "layers_per_block": 1}
    blocks = {
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    }
    sizes = {"sample_size": 8, "cross_attention_dim": 16, "attention_head_dim": 2}
    text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return Scale(
        torch.device("cpu"), attention.Size(8, (8, 16), 16, 2, 1, middle=False),
        timesteps=(2,), rows=(2,), batches=(1,), rounds=1, inversion=10, draws=(1,),
        unet=tuple((small | blocks | sizes).items()), width=16,
        text=tuple((text | {"intermediate_size": 32, "vocab_size": 100}).items()),
    )  # fmt: skip


def on_cpu(size: str) -> Scale:
    """A size of `attention.SIZES` on one thread of the CPU, T = 10."""
    torch.set_num_threads(1)
    chosen = attention.SIZES[size]
    return Scale(torch.device("cpu"), chosen, timesteps=(10,), rows=(10,), batches=(8,))


# -- measuring ----------------------------------------------------------------------------------


def measured(scale: Scale, call: Callable[[], Any]) -> Row:
    """Median, least and most seconds of a call and its peak in GiB, or that memory ran out."""
    cuda = scale.device.type == "cuda"
    try:
        call()
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        times = [attention.seconds_of(call) for _ in range(scale.rounds)]
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return {"out_of_memory": True}
    return {
        "seconds": statistics.median(times),
        "range": [min(times), max(times)],
        "gib": torch.cuda.max_memory_allocated() / GIB if cuda else None,
    }


def ratios(scale: Scale, arms: attention.Arms, of: str) -> Row:
    """Ratio of every arm's time to that of arm `of`: median, least, most over the rounds."""
    times = attention.in_turns(arms, scale.seconds / 2, scale.rounds, least=scale.rounds)
    found = {}
    for name, own in times.items():
        each = sorted(a / b for a, b in zip(own, times[of], strict=True))
        found[name] = {
            "seconds": statistics.median(own),
            "ratio": statistics.median(each),
            "range": [each[0], each[-1]],
        }
    return found


def model_of(scale: Scale, kind: str = "float32") -> models.GroundingModel:
    """A model with random weights in a type of numbers."""
    return attention.build(scale.size, scale.device).to(scale.device, TYPES[kind])


# -- pieces -------------------------------------------------------------------------------------


def ground(scale: Scale, kind: str) -> Iterator[Row]:
    """Seconds and GiB of a pair by T and rows in a forward, without and with bias merging."""
    model = model_of(scale, kind)
    for count in scale.timesteps:
        for rows in (rows for rows in scale.rows if rows <= count):
            for curve in (None, "mixture"):
                call = attention.grounder(model, count, batch_size=rows, curve=curve)

                def fresh(call: Callable[[], Any] = call) -> None:
                    grounding.clear_cache()  # the phrase is new
                    call()

                setting = {"timesteps": count, "rows": rows, "curve": curve}
                yield setting | measured(scale, fresh)


def halves(scale: Scale) -> Iterator[Row]:
    """Maps in half precision against float32, from equal noise."""
    maps: dict[str, grounding.Grounding] = {}
    for kind in TYPES:
        if kind == "float16" and scale.device.type == "cpu":
            continue
        model, count = model_of(scale, kind), scale.timesteps[-1]
        grounding.clear_cache()
        maps[kind] = attention.grounder(model, count, curve="mixture")()
        one, base = maps[kind], maps["float32"]
        both = torch.stack([one.heatmap.flatten(), base.heatmap.flatten()])
        union = (one.mask | base.mask).sum()
        yield {
            "type": kind,
            "largest": float((one.heatmap - base.heatmap).abs().max()),
            "correlation": float(torch.corrcoef(both)[0, 1]),
            "mask_iou": float((one.mask & base.mask).sum() / union.clamp(min=1)),
            "confidence": one.confidence,
        }


def capture(scale: Scale) -> Iterator[Row]:
    """Forwards that record the content tokens against plain ones; early exit; layer subsets."""
    for kind in TYPES:
        if kind == "float16" and scale.device.type == "cpu":
            continue
        model = model_of(scale, kind)
        for rows in scale.rows:
            given = attention.inputs(model, rows, model.latent_shape[1])
            latents, steps, states = (given[0].to(model.dtype), given[1], given[2].to(model.dtype))
            forward = partial(model.unet, latents, steps, states)
            arms: attention.Arms = {"plain": torch.no_grad()(forward)}
            settings: dict[str, Row] = {
                "all tokens": {"tokens": None},
                "content": {"tokens": attention.TOKENS},
                "content, early exit": {"tokens": attention.TOKENS, "stop": True},
                "decoder, early exit": {"tokens": attention.TOKENS, "stop": True, "layers": "up"},
                "encoder, early exit": {"tokens": attention.TOKENS, "stop": True, "layers": "down"},
            }
            arms |= {n: partial(_recorded, model, forward, own) for n, own in settings.items()}
            yield {"type": kind, "rows": rows, "arms": ratios(scale, arms, "plain")}


@torch.no_grad()
def _recorded(model: models.GroundingModel, forward: Callable[[], Any], options: Row) -> None:
    with CrossAttentionRecorder(model.unet, keep="mean", **options):
        forward()


def baseline(scale: Scale) -> Iterator[Row]:
    """The engine without merging against the published arithmetic and its limit, T plain rows."""
    model, count = model_of(scale), scale.timesteps[-1]
    rows = min(count, scale.rows[-1])
    given = attention.inputs(model, rows, model.latent_shape[1])
    image = attention.image_of(model)
    ours = attention.grounder(model, count, batch_size=rows)

    @torch.no_grad()
    def limit() -> None:
        for _ in range(-(-count // rows)):
            model.unet(*given)

    def theirs() -> float:  # the text bias that they sample too does not count
        told = store_everything.ground(model, image, attention.PHRASE, attention.TOKENS, count)
        return float(told["seconds_without"])

    times: dict[str, list[float]] = {"plain rows": [], "engine": [], "published": []}
    limit(), ours()
    for _ in range(scale.rounds):
        times["plain rows"].append(attention.seconds_of(limit))
        times["engine"].append(attention.seconds_of(ours))
        times["published"].append(theirs())
    pairs = {"engine to limit": ("engine", "plain rows"), "speed-up": ("published", "engine")}
    found: Row = {name: statistics.median(own) for name, own in times.items()}
    for name, (above, below) in pairs.items():
        each = sorted(x / y for x, y in zip(times[above], times[below], strict=True))
        found[name] = {"ratio": statistics.median(each), "range": [each[0], each[-1]]}
    yield {"timesteps": count, "rows": rows, "seconds": found.pop("engine"), **found}


def inversion(scale: Scale) -> Iterator[Row]:
    """The zero-shot method on one film: the walk to noise and one phrase."""
    for kind in ("float32", "bfloat16"):
        model = model_of(scale, kind)
        method = ZeroShotLDM(name="zero-shot", model=model, timesteps=scale.inversion)
        phrase = tokenize(model.tokenizer, attention.PHRASE, model.max_length)
        image = attention.image_of(model)

        def call(
            method: ZeroShotLDM = method, image: torch.Tensor = image, phrase: Any = phrase
        ) -> None:
            sampling.TRAJECTORIES.clear()
            method.record([image], [phrase], [attention.TOKENS])

        yield {"type": kind, "timesteps": scale.inversion} | measured(
            replace(scale, rounds=1), call
        )


def information_maps(scale: Scale) -> Iterator[Row]:
    """Information maps of a phrase by T and draws."""
    for kind in ("float32", "bfloat16"):
        model = model_of(scale, kind)
        image = attention.image_of(model)
        for count in scale.timesteps[:2]:
            for draws in scale.draws:
                call = partial(
                    information.measure, model, image, [attention.PHRASE],
                    timesteps=count, draws=draws, batch_size=scale.rows[-1],
                )  # fmt: skip
                setting = {"type": kind, "timesteps": count, "draws": draws}
                yield setting | measured(scale, torch.no_grad()(call))


def compiled(scale: Scale) -> Iterator[Row]:
    """Plain forwards under torch.compile and channels-last, against neither."""
    for kind in ("float32", "bfloat16"):
        model = model_of(scale, kind)
        for rows in scale.rows[-1:]:
            latents, steps, states = attention.inputs(model, rows, model.latent_shape[1])
            given = latents.to(model.dtype), steps, states.to(model.dtype)
            plain = model.unet
            last = attention.build_unet(scale.size).to(scale.device, TYPES[kind])
            last.to(memory_format=torch.channels_last)
            forms = {"plain": plain, "channels last": last}
            if scale.device.type == "cuda":  # minutes of compiling are not worth it on a CPU
                forms |= {"compiled": torch.compile(plain), "both": torch.compile(last)}
            arms: attention.Arms = {
                name: torch.no_grad()(partial(unet, *given)) for name, unet in forms.items()
            }
            yield {"type": kind, "rows": rows, "arms": ratios(scale, arms, "plain")}


def training(scale: Scale, profile: str, rank: int, checkpointing: bool) -> Iterator[Row]:
    """A fine-tuning pass by batch size: seconds, GiB, and GPU-hours of the profile at that rate."""
    asked = {"adaptation.lora_rank": rank, "adaptation.gradient_checkpointing": checkpointing}
    chosen = config.load(profile, **asked)
    unet = UNet2DConditionModel.from_config(dict(scale.unet))
    models.adapt_unet(unet, chosen.adaptation, scale.width)
    text = models.Conditioning(BertTokenizer(), BertModel(BertConfig(**dict(scale.text))), 77)
    module = finetune.Denoising(unet, text, learnable=False).train().to(scale.device)
    optimizer = torch.optim.AdamW(finetune.parameter_groups(module, chosen.training))
    own = chosen.training.batch_size
    for batch in dict.fromkeys((*scale.batches, *([own] if scale.device.type == "cuda" else []))):
        step = partial(_step, scale, module, optimizer, batch, chosen.training.mixed_precision)
        found = measured(scale, step)
        if batch == own and "seconds" in found:
            found["gpu_hours"] = costs.costs(chosen, found["seconds"]).gpu_hours
        yield {"batch_size": batch, "own_batch_size": own} | found


def _step(
    scale: Scale, module: finetune.Denoising, optimizer: Any, batch: int, precision: str
) -> None:
    """Forward, backward, clipped update of random latents and captions."""
    side, device = dict(scale.unet)["sample_size"], scale.device
    ids = torch.ones(batch, 77, dtype=torch.long, device=device)
    latents, noise = torch.randn(2, batch, 4, side, side, device=device)
    drawn = finetune.Noise(noise, noise, torch.randint(1000, (batch,)), torch.zeros(batch) > 1)
    half = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(precision)
    with torch.autocast(device.type, half or torch.bfloat16, enabled=half is not None):
        scheduler = DDIMScheduler(**models.SD_SCHEDULE)
        loss = finetune.denoising_loss(module, scheduler, latents, drawn, ids, ids)
    torch.autograd.backward(loss * (1024.0 if half == torch.float16 else 1.0))
    torch.nn.utils.clip_grad_norm_(trainable(module), 1.0)
    optimizer.step()
    optimizer.zero_grad()


PIECES: dict[str, Callable[[Scale], Iterator[Row]]] = {
    **{f"ground-{kind}": partial(ground, kind=kind) for kind in TYPES},
    "half-precision": halves,
    "capture": capture,
    "against-published": baseline,
    "inversion": inversion,
    "information": information_maps,
    "compile": compiled,
    **{
        f"train-{profile}-{what}-{'checkpointed' if kept else 'whole'}": partial(
            training, profile=profile, rank=rank, checkpointing=kept
        )
        for profile in ("paper", "open")
        for what, rank in (("full", 0), ("lora", 32))
        for kept in (False, True)
    },
}


# -- running ------------------------------------------------------------------------------------


def about(scale: Scale) -> Row:
    """Device, versions and settings of a run."""
    cuda = scale.device.type == "cuda"
    names = ("torch", "diffusers", "transformers", "peft", "accelerate")
    return {
        "device": torch.cuda.get_device_name() if cuda else runs.processor(),
        "driver": torch.version.cuda,
        "tf32": torch.backends.cuda.matmul.allow_tf32,
        "versions": {name: version(name) for name in names} | {"python": platform.python_version()},
        "date": time.strftime("%Y-%m-%d"),
        "rounds": scale.rounds,
        "latent": scale.size.latent,
        **runs.git_state(Path(__file__).parents[1]),
    }


def run(name: str, scale: Scale, out: Path) -> Path:
    """Measure one piece; rows that an earlier, killed run wrote are not kept: a piece is short."""
    begun, rows, whole = time.perf_counter(), [], True
    for row in PIECES[name](scale):
        rows.append(row)
        attention.say(f"{name}: {row}")
        if time.perf_counter() - begun > scale.seconds:
            whole = False
            break
    path = out / f"{name}.json"
    runs.write_json(path, about(scale) | {"piece": name, "complete": whole, "rows": rows})
    return path


def miniature(steps: int, arms: list[str], out: Path) -> Path:
    """What the miniature's arms score after so many steps, from products that were made."""
    from g2g_utils.experiment import products

    chosen, rows = config.load("miniature", **{"training.steps": steps}), []
    for arm in arms:
        folder = products.ensure(chosen, f"scores/{arm}-s0")
        rows.append({"arm": arm, **runs.read_json(folder / "run.json")["metrics"]})
    path = out / "miniature.json"
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else runs.processor()
    runs.write_json(path, {"piece": "miniature", "device": device, "steps": steps, "rows": rows})
    return path


def main() -> int:
    """List the pieces, or measure one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("piece", nargs="?", choices=PIECES)
    parser.add_argument("--list", action="store_true", help="names of the pieces")
    parser.add_argument("--tiny", action="store_true", help="smallest sizes, on the CPU")
    parser.add_argument("--cpu", choices=attention.SIZES, help="on the CPU, at this size")
    parser.add_argument("--out", type=Path, default=OUT)
    text = "only gather the scores of arms of the miniature trained for so many steps"
    parser.add_argument("--miniature", nargs="+", metavar=("STEPS", "ARM"), help=text)
    asked = parser.parse_args()
    if asked.miniature:
        print(miniature(int(asked.miniature[0]), asked.miniature[1:], asked.out))
        return 0
    if asked.list or not asked.piece:
        print(*PIECES, sep="\n")
        return 0
    try:
        scale = on_cpu(asked.cpu) if asked.cpu else tiny() if asked.tiny else full()
        print(run(asked.piece, scale, asked.out))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
