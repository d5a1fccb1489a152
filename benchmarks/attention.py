"""Speed and memory of capture and grounding; writes benchmarks/attention.json and README.md.

    python benchmarks/attention.py [--size miniature|medium|sd] [--timesteps T] [--quick]

All U-Nets have random weights. Every number is a ratio of runs in this process, taken in turns (A,
B, A, B, ...), the median over the rounds. A CUDA device is used if there is one. Without one, "sd"
(Stable Diffusion 1.5's U-Net, float32) runs few timesteps: at most 6 minutes on two cores and 12
GB. The result tells their number.
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import store_everything
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor
from transformers import BertConfig, BertModel, BertTokenizerFast

from g2g_utils import bbm, config, grounding, models, runs
from g2g_utils.attention import CrossAttentionRecorder, Stack, find_layers

HERE = Path(__file__).parent
RESULT, README = HERE / "attention.json", HERE / "README.md"
PHRASE, TOKENS = "small left basal pleural effusion", (1, 2, 3, 4, 5)
PUBLISHED_T, RECOMMENDED_T = 50, config.load("miniature").grounding.timesteps
Arms = dict[str, Callable[[], Any]]
Times = dict[str, list[float]]


@dataclass(frozen=True)
class Size:
    """A U-Net's shape, and the amount that a CPU and a GPU run of it."""

    latent: int
    channels: tuple[int, ...]
    width: int  # of the text states
    heads: int
    layers_per_block: int = 2
    middle: bool = True  # cross-attention in the middle block
    steps: tuple[int, int] = (10, 50)  # T on a CPU, on a GPU
    seconds: float = 120  # for the comparison with the baseline


SIZES = {
    "miniature": Size(16, (32, 48, 48), 64, 2, 1, middle=False, steps=(50, 50), seconds=60),
    "small": Size(32, (32, 64, 128, 128), 128, 4, seconds=60),
    "medium": Size(32, (128, 256, 384, 384), 256, 8, seconds=120),
    "sd": Size(64, (320, 640, 1280, 1280), 768, 8, steps=(1, 50), seconds=180),
}


# -- models -------------------------------------------------------------------------------------


def build_unet(size: Size, channels: Sequence[int] | None = None) -> UNet2DConditionModel:
    """A U-Net with random weights in Stable Diffusion's layout.

    Queries and keys of the cross-attention are 2.5 times larger than diffusers makes them: random
    attention would otherwise be flat, and maps could not be compared.
    """
    levels, widths = len(size.channels), tuple(channels or size.channels)
    down = ("CrossAttnDownBlock2D",) * (levels - 1) + ("DownBlock2D",)
    with models.initialised(0):
        unet = UNet2DConditionModel(
            sample_size=size.latent,
            block_out_channels=widths,
            layers_per_block=size.layers_per_block,
            cross_attention_dim=size.width,
            attention_head_dim=size.heads,
            norm_num_groups=32 if widths[0] % 32 == 0 and widths[-1] > 48 else 8,
            down_block_types=down,
            mid_block_type="UNetMidBlock2DCrossAttn" if size.middle else "UNetMidBlock2D",
            up_block_types=tuple(name.replace("Down", "Up") for name in reversed(down)),
        ).eval()
    with torch.no_grad():
        for attn in find_layers(unet).values():
            attn.to_q.weight.mul_(2.5)
            attn.to_k.weight.mul_(2.5)
    return unet


def build(size: Size, device: torch.device) -> models.GroundingModel:
    """A grounding model in which only the U-Net is large."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *PHRASE.split()]
    with models.initialised(0):
        encoder = BertModel(
            BertConfig(
                vocab_size=len(words),
                hidden_size=size.width,
                num_hidden_layers=1,
                num_attention_heads=4,
                intermediate_size=64,
            ),
            add_pooling_layer=False,
        )
        levels = 3 if size.latent > 16 else 2  # 8 or 4 image pixels a latent pixel
        vae = models.build_vae(config.Vae(channels=(8,) * levels, unshuffle=2))
    model = models.GroundingModel(
        tokenizer=BertTokenizerFast(vocab={word: i for i, word in enumerate(words)}),
        text_encoder=encoder.eval(),
        vae=vae.eval(),
        unet=build_unet(size),
        scheduler=DDIMScheduler(**models.SD_SCHEDULE),
        image_size=size.latent * 2**levels,
        max_length=77,
    )
    return model.to(device)


def image_of(model: models.GroundingModel) -> Tensor:
    """A fixed random image [1, S, S]."""
    shape = (1, model.image_size, model.image_size)
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def inputs(model: models.GroundingModel, rows: int, side: int) -> tuple[Tensor, Tensor, Tensor]:
    """Latents [rows, c, side, side], timesteps [rows] and text states [rows, n, d]."""
    g = torch.Generator().manual_seed(0)
    width = model.unet.config.cross_attention_dim
    latents = torch.randn(rows, model.latent_shape[0], side, side, generator=g)
    states = torch.randn(rows, model.max_length, width, generator=g)
    steps = torch.linspace(981, 1, rows).long()
    return latents.to(model.device), steps.to(model.device), states.to(model.device)


# -- timing -------------------------------------------------------------------------------------


def seconds_of(call: Callable[[], Any]) -> float:
    """Seconds of a call: wall time of a GPU once it has finished, else CPU time of this process.

    CPU time is what other jobs on a shared machine change least.
    """
    start = store_everything.now()
    call()
    return store_everything.now() - start


def in_turns(arms: Arms, budget: float, most: int, least: int = 1, warm: bool = True) -> Times:
    """Seconds of each arm, round after round (A, B, A, B, ...), within a budget of seconds."""
    times: Times = {name: [] for name in arms}
    if warm:
        for call in arms.values():
            call()
    start, slowest = time.perf_counter(), 0.0
    for n in range(most):
        begun = time.perf_counter()
        if n >= least and begun - start + slowest > budget:
            break
        for name, call in arms.items():
            times[name].append(seconds_of(call))
        slowest = max(slowest, time.perf_counter() - begun)
    return times


def ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """Median over the rounds of the ratio of two arms' times."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def say(text: str) -> None:
    """Progress line."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)


# -- what is measured ---------------------------------------------------------------------------


@torch.no_grad()
def forward_arms(
    model: models.GroundingModel, rows: int, side: int, tokens: Sequence[int] | None = TOKENS
) -> Arms:
    """A plain forward (fused processors) and one under a recorder of mean maps."""
    given = inputs(model, rows, side)
    recorder = CrossAttentionRecorder(model.unet, tokens, "mean")

    def recorded() -> None:
        with torch.no_grad(), recorder:
            model.unet(*given)

    return {"plain": torch.no_grad()(lambda: model.unet(*given)), "recorded": recorded}


def capture(model: models.GroundingModel, rows: int, budget: float, warm: bool) -> dict[str, Any]:
    """Overhead of recording the content tokens' mean maps over plain forwards."""
    side = model.latent_shape[1]
    times = in_turns(forward_arms(model, rows, side), budget, 41, least=2, warm=warm)
    return {
        "overhead": ratio(times["recorded"], times["plain"]) - 1,
        "rows": rows,
        "plain_s": statistics.median(times["plain"]),
        "rounds": len(times["plain"]),
    }


def grounder(
    model: models.GroundingModel, timesteps: int, **options: Unpack[grounding.GroundOptions]
) -> Callable[[], grounding.Grounding]:
    """A call that grounds the phrase, all T timesteps kept."""
    image, tokens = image_of(model), list(TOKENS)
    shared: grounding.GroundOptions = {"timesteps": timesteps, "keep_last": timesteps, **options}
    return lambda: grounding.ground(model, image, PHRASE, tokens=tokens, **shared)


def against_baseline(
    model: models.GroundingModel, timesteps: int, batch: int, budget: float, slow: bool
) -> dict[str, Any]:
    """Our grounding in four forms against "store everything", at equal T and on equal noise."""
    found: dict[str, Any] = {}
    forms: dict[str, dict[str, Any]] = {
        "without": {},
        "merged": {"curve": "mixture"},
        "cached": {"curve": "mixture"},  # right after "merged": its text bias is remembered
        "unguided": {"curve": "mixture", "text_guidance": 1.0},
    }
    if timesteps > 1:
        forms["one_row"] = {"batch_size": 1}

    def ours(form: str) -> None:
        if form != "cached":
            grounding.clear_cache()
        call = grounder(model, timesteps, **({"batch_size": batch} | forms[form]))
        found[form] = call()
        if slow:
            say(f"  {form}")

    def theirs() -> None:
        found["baseline"] = store_everything.ground(
            model, image_of(model), PHRASE, TOKENS, timesteps
        )
        without.append(found["baseline"]["seconds_without"])
        if slow:
            say(f"  baseline ({4 * timesteps} rows)")

    without: list[float] = []
    arms: Arms = {"baseline": theirs} | {form: partial(ours, form) for form in forms}
    times = in_turns(arms, budget, 9, least=1, warm=not slow)
    without = without[-len(times["baseline"]) :]
    return {
        "timesteps": timesteps,
        "batch_size": batch,
        "rounds": len(without),
        "baseline_s": statistics.median(times["baseline"]),
        "baseline_without_s": statistics.median(without),
        "seconds": {form: statistics.median(times[form]) for form in forms},
        "speedup": {
            form: ratio(without if form in ("without", "one_row") else times["baseline"], t)
            for form, t in times.items()
            if form != "baseline"
        },
        "maps": differences(found),
        "baseline_bytes": found["baseline"]["nbytes"],
    }


def differences(found: dict[str, Any]) -> dict[str, Any]:
    """Differences of our maps from the baseline's, and of unguided from guided text bias."""
    base, merged, unguided = found["baseline"], found["merged"], found["unguided"]
    pairs = {
        "activation": (found["without"].activation, base["activation"]),
        "merged": (merged.heatmap, base["heatmap"]),
        "unguided_interaction": (unguided.interaction, merged.interaction),
        "unguided_heatmap": (unguided.heatmap, merged.heatmap),
    }
    shown = {name: _difference(a, b) for name, (a, b) in pairs.items()}
    confidences = {"guided": merged.confidence, "unguided": unguided.confidence}
    return shown | {"confidence": confidences | {"baseline": base["confidence"]}}


def _difference(first: Tensor, second: Tensor) -> dict[str, float]:
    """Largest and mean absolute difference and correlation of two maps in [0, 1]."""
    gap = (first - second).abs()
    together = torch.stack([first.flatten(), second.flatten()])
    correlation = float(torch.corrcoef(together)[0, 1])
    return {
        "max": float(gap.max()),
        "mean": float(gap.mean()),
        "correlation": correlation if correlation == correlation else 1.0,
    }


def recommended(
    model: models.GroundingModel, equal: dict[str, Any], batch: int, budget: float
) -> dict[str, Any]:
    """The recommended T against the baseline at the published T.

    Measured where the comparison at equal T ran the published T; otherwise both are scaled from it
    in proportion to T, which the growth with T supports, and the result says so.
    """
    ours = {"timesteps": RECOMMENDED_T, "baseline_timesteps": PUBLISHED_T}
    base = {"without": equal["baseline_without_s"]}
    names = ("without", "merged", "cached")
    if equal["timesteps"] != PUBLISHED_T:
        share = PUBLISHED_T / RECOMMENDED_T
        scaled = {name: equal["speedup"][name] * share for name in names}
        return {**ours, "measured": False, "speedup": scaled}

    def call(name: str) -> None:
        if name != "cached":
            grounding.clear_cache()
        curve = None if name == "without" else "mixture"
        grounder(model, RECOMMENDED_T, curve=curve, batch_size=batch)()

    times = in_turns({name: partial(call, name) for name in names}, budget, 9)
    medians = {name: statistics.median(t) for name, t in times.items()}
    speedup = {n: base.get(n, equal["baseline_s"]) / s for n, s in medians.items()}
    return {**ours, "measured": True, "speedup": speedup}


@torch.no_grad()
def memory(size: Size, device: torch.device, most: int = 50) -> list[dict[str, int]]:
    """Bytes kept for the maps of one pair after T timesteps, as `grounding` keeps them.

    Maps don't depend on a U-Net's width and heads, so a thin one with the same latents, layers
    and tokens stands in. mean: sums of all 77 tokens (no bias merging); content: of the content
    tokens alone; text_bias: what is cached for the phrase;
    image_bias: running sums of bias merging and the start-token maps of the step just taken.
    """
    thin = [8 * 2 ** min(i, 2) for i in range(len(size.channels))]
    unet = build_unet(replace(size, heads=1), thin).to(device)
    start = Stack([0], average=True, dtype=torch.float32)
    kinds: dict[str, dict[str, Any]] = {
        "mean": {},
        "content": {"tokens": TOKENS},
        "text_bias": {"tokens": TOKENS, "keep": "steps"},
        "image_bias": {"tokens": TOKENS, "also": [start]},
    }
    marks = [t for t in (1, 5, 10, 25, 50) if t <= most]
    latents = torch.randn(1, 4, size.latent, size.latent, device=device)
    states = torch.randn(1, 77, size.width, device=device)
    rows: list[dict[str, int]] = [{"T": t} for t in marks]
    text: list[Tensor] = []
    for kind, options in kinds.items():
        recorder, products = CrossAttentionRecorder(unet, **options), None
        for step in range(1, marks[-1] + 1):
            with recorder:
                unet(latents, step, states)
            kept = recorder.nbytes
            if kind == "image_bias":
                products = products or bbm.Products(text, (size.latent, size.latent))
                products.add([maps[:, 0, 0] for maps in start.take().values()])
                kept += products.nbytes - recorder.nbytes  # the step's maps and the running sums
            if step in marks:
                rows[marks.index(step)][kind] = kept
        text = list(recorder.sample().by_step().values()) if kind == "text_bias" else text
    return rows


def growth(model: models.GroundingModel, small: bool, budget: float) -> dict[str, list[Any]]:
    """Seconds against pairs in a batch, timesteps T, recorded tokens and latent side."""
    side, image = model.latent_shape[1], image_of(model)
    share, warm = budget / 4, not small

    def pairs(n: int) -> None:
        options: dict[str, Any] = {"timesteps": 1 if small else 4, "batch_size": 16}
        grounding.ground_batch(
            model, [image] * n, [PHRASE] * n, tokens=[list(TOKENS)] * n, **options
        )

    def table(arms: Arms) -> list[dict[str, Any]]:
        times = in_turns(arms, share, 1 if small else 7, warm=warm)
        return [{"at": int(k), "seconds": statistics.median(t)} for k, t in times.items()]

    counts, steps = ((1, 2), (1, 2)) if small else ((1, 2, 4, 8), (1, 5, 10, 20, 50))
    numbers, sides = (
        ((1, 77), (side // 2, side)) if small else ((1, 5, 20, 77), (side // 2, side, 2 * side))
    )
    found = {
        "pairs": table({str(n): partial(pairs, n) for n in counts}),
        "timesteps": table({str(t): grounder(model, t) for t in steps}),
        "tokens": table(
            {str(n): forward_arms(model, 1, side, list(range(n)))["recorded"] for n in numbers}
        ),
    }
    rows = []
    for one in sides:
        times = in_turns(forward_arms(model, 1, one), share / 3, 1 if small else 7, warm=warm)
        entry = {name: statistics.median(t) for name, t in times.items()}
        rows.append({"at": one, "seconds": entry["recorded"], "plain_s": entry["plain"]})
    return found | {"latent_side": rows}


# -- one size -----------------------------------------------------------------------------------


def measure(name: str, timesteps: int | None, quick: bool) -> dict[str, Any]:
    """All measurements at one size."""
    size, started = SIZES[name], time.time()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    gpu = device.type == "cuda"
    slow = name == "sd" and not gpu
    say(f"{name}: building a U-Net with channels {size.channels} on {device}")
    model = build(size, device)
    parameters = sum(p.numel() for p in model.unet.parameters())
    steps = timesteps or (2 if quick else size.steps[gpu])
    steps = 1 if slow and quick else steps
    budget, batch = (5.0 if quick else size.seconds), 16
    rows = 1 if slow else (4 if quick else 16)
    say(f"{name}: {parameters / 1e6:.1f} million parameters; memory against T")
    found: dict[str, Any] = {"memory": memory(size, device, 5 if quick else 50)}
    say(f"{name}: capture against plain forwards")
    if slow:
        _warm(model)
    found["capture"] = [capture(model, 1, budget / 5, warm=not slow)]
    if rows > 1:
        found["capture"].append(capture(model, rows, budget / 5, warm=True))
    say(f"{name}: against the baseline, T = {steps}")
    equal = against_baseline(model, steps, batch, budget, slow)
    found |= {"equal": equal, "recommended": recommended(model, equal, batch, budget / 5)}
    left = 330 - (time.time() - started)
    if not slow or left > 12 * found["capture"][0]["plain_s"]:
        say(f"{name}: growth of cost")
        found["growth"] = growth(model, slow or quick, budget / 4)
    hardware = torch.cuda.get_device_name() if gpu else runs.processor()
    shape = {"channels": list(size.channels), "latent": size.latent, "tokens": model.max_length}
    shape |= {"layers": len(find_layers(model.unet)), "parameters": parameters}
    where = {"device": hardware, "threads": torch.get_num_threads(), "dtype": "float32"}
    return {**where, "quick": quick, "unet": shape, **found, **runs.provenance(started)}


def _warm(model: models.GroundingModel) -> None:
    """One forward of a quarter of the pixels: weights are touched, kernels are chosen."""
    forward_arms(model, 1, model.latent_shape[1] // 2)["recorded"]()


# -- report -------------------------------------------------------------------------------------


def claims(name: str, found: dict[str, Any]) -> list[tuple[str, str, str, bool]]:
    """Rows of (what, target, measured, met) of one size."""
    equal, fastest = found["equal"], found["recommended"]["speedup"]
    limit = {"miniature": 0.40}.get(name, 0.15)
    rows = []
    for one in found["capture"]:
        over = one["overhead"]
        text = f"capture overhead, {one['rows']} rows a forward"
        rows.append((text, f"≤ {limit:.0%}", f"{over:+.0%}", over <= limit))
    targets = {"without": 3.5, "merged": 1.25, "cached": 3.3, "unguided": 1.8}
    for form, target in targets.items():
        value = equal["speedup"][form]
        rows.append((LABELS[form], f"≥ {target}×", f"{value:.2f}×", value >= target))
    if "one_row" in equal["speedup"]:
        value = equal["speedup"]["one_row"]
        rows.append((LABELS["one_row"], "", f"{value:.2f}×", True))
    how = "" if found["recommended"]["measured"] else ", scaled from equal T"
    for form, value in fastest.items():
        target_text = "≥ 10×" if form == "without" else ""
        text = f"recommended T = {RECOMMENDED_T} against {PUBLISHED_T}{how}: {LABELS[form]}"
        rows.append((text, target_text, f"{value:.1f}×", form != "without" or value >= 10))
    last = found["memory"][-1]
    for text, kinds in MEMORY.items():
        value = sum(last[kind] for kind in kinds) / 1e6
        limit_text = "≤ 8 MB" if name == "sd" else ""
        rows.append((f"{text}, T = {last['T']}", limit_text, f"{value:.2f} MB", value <= 8))
    return rows


LABELS = {
    "without": "no bias merging",
    "merged": "with bias merging",
    "cached": "with bias merging, the phrase's text bias cached",
    "unguided": "with bias merging, `text_guidance=1`",
    "one_row": "no bias merging, one timestep a forward",
}
MEMORY = {
    "maps kept a pair": ("mean",),
    "maps kept a pair with bias merging, cached text bias included": (
        "mean",
        "image_bias",
        "text_bias",
    ),
}


def report(results: dict[str, Any]) -> str:
    """Markdown of all sizes measured so far."""
    parts = [_section(name, results[name]) for name in SIZES if name in results]
    return "\n\n".join(parts) or "Nothing measured yet."


def _section(name: str, found: dict[str, Any]) -> str:
    equal, shape, versions = found["equal"], found["unet"], found["packages"]
    head = (
        f"### {name}: {shape['parameters'] / 1e6:.1f} million parameters, latents "
        f"{shape['latent']}², {shape['layers']} layers\n\n"
        f"{found['device']}, {found['threads']} threads, {found['dtype']}; torch "
        f"{versions['torch']}, diffusers {versions['diffusers']}, Python {found['python']}; "
        f"{found['date'][:10]}. T = {equal['timesteps']}, {equal['rounds']} rounds"
        + (", quick run." if found["quick"] else ".")
    )
    lines = ["| | target | measured | met |", "|---|---|---|---|"]
    for what, target, value, met in claims(name, found):
        verdict = ("yes" if met else "**no**") if target else ""
        lines.append(f"| {what} | {target} | {value} | {verdict} |")
    blocks = [head, "\n".join(lines), _maps_text(equal["maps"]), _memory_text(found["memory"])]
    return "\n\n".join([*blocks, _growth_text(found["growth"])] if "growth" in found else blocks)


def _maps_text(maps: dict[str, Any]) -> str:
    same, other = maps["merged"], maps["unguided_heatmap"]
    c = maps["confidence"]
    return (
        f"Maps against the baseline's: largest difference {maps['activation']['max']:.1e} without "
        f"and {same['max']:.1e} with bias merging. `text_guidance=1` instead of 16 changes the "
        f"merged map by {other['mean']:.1e} on average and {other['max']:.1e} at most "
        f"(correlation {other['correlation']:.3f}), the confidence from {c['guided']:.3f} to "
        f"{c['unguided']:.3f}; with random weights, so only an illustration."
    )


def _memory_text(rows: list[dict[str, int]]) -> str:
    names = ["mean", "content", "image_bias", "text_bias"]
    lines = [
        "| kept for maps, MB | " + " | ".join(f"T = {row['T']}" for row in rows) + " |",
        "|---" * (len(rows) + 1) + "|",
    ]
    labels = [
        "sums, all tokens",
        "sums, content tokens",
        "bias merging: running sums",
        "bias merging: cached text bias",
    ]
    for name, label in zip(names, labels, strict=True):
        cells = " | ".join(f"{row[name] / 1e6:.3f}" for row in rows)
        lines.append(f"| {label} | {cells} |")
    return "\n".join(lines)


def _growth_text(found: dict[str, list[Any]]) -> str:
    labels = {
        "pairs": "pairs in a batch",
        "timesteps": "timesteps T",
        "tokens": "recorded tokens",
        "latent_side": "latent side",
    }
    lines = ["| seconds against | |", "|---|---|"]
    for name, label in labels.items():
        cells = ", ".join(f"{row['at']}: {row['seconds']:.3g}" for row in found[name])
        lines.append(f"| {label} | {cells} |")
    return "\n".join(lines)


def render(text: str, results: dict[str, Any]) -> str:
    """README text with the results between its markers."""
    pattern = re.compile(r"(<!-- attention -->\n).*?(<!-- /attention -->)", re.DOTALL)
    if not pattern.search(text):
        raise ValueError("README.md has no markers <!-- attention --> ... <!-- /attention -->")
    return pattern.sub(lambda match: f"{match[1]}\n{report(results)}\n\n{match[2]}", text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure one or all sizes, merge them into the result file, renew the table."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--size", choices=SIZES, help="default: all sizes, small to large")
    parser.add_argument("--timesteps", type=int, help="T of the comparison at equal T")
    parser.add_argument("--quick", action="store_true", help="few repeats: a try, not a result")
    parser.add_argument(
        "--output", type=Path, default=RESULT, help="JSON; README.md only beside it"
    )
    parser.add_argument("--render", action="store_true", help="only renew the table")
    asked = parser.parse_args(arguments)
    for name in () if asked.render else [asked.size] if asked.size else list(SIZES):
        found = measure(name, asked.timesteps, asked.quick)
        with runs.lock(asked.output):
            known = runs.read_json(asked.output) if asked.output.exists() else {}
            runs.write_json(asked.output, known | {name: found})
        for what, target, value, met in claims(name, found):
            print(f"{'ok' if met else 'MISSED':7}{value:>10}  {target:8}{what}")
    readme = asked.output.with_name("README.md")
    if readme.exists():
        readme.write_text(render(readme.read_text(), runs.read_json(asked.output)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
