"""Write the tables of README.md from the results of the last miniature run.

    python tools/readme.py            # from build/miniature: figures/results.json, then README.md
    python tools/readme.py --render   # only README.md, from the committed files

Numbers come from results.json and claims.json in figures/, times.json and memory.json in
benchmarks/.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from g2g_utils import config, runs
from g2g_utils.bench import ablations, claims
from g2g_utils.experiment import products

ROOT = Path(__file__).resolve().parents[1]
CARDS = (16, 24, 40, 48, 80)  # GB of GPU memory
ALL = "all_layers_"
COLUMNS = {
    "cnr": "CNR",
    "auc_roc": "AUC",
    "pointing": "Top-1",
    "specificity": "phrase specificity",
    "balanced_iou": "balanced IoU",
    "threshold_iou": "threshold IoU",
}
ALL_COLUMNS = {f"{ALL}{name}": COLUMNS[name] for name in list(COLUMNS)[:4]}


def results(settings: config.Config) -> dict[str, Any]:
    """Means and intervals of every arm and no-skill row on the test split."""
    arms = products.tables(settings, "pairs.csv")
    if settings.grounding.layers:
        keys = ["arm", "seed", "image_id", "phrase", "finding"]
        whole = products.tables(settings, "all_layers.csv").set_index(keys)
        whole = whole[["cnr", "auc_roc", "pointing", "specificity"]]
        whole = whole.add_prefix(ALL).reset_index()
        arms = arms.merge(whole, on=keys, validate="one_to_one")
    folder = products.ensure(settings, "baselines")
    no_skill, discriminative = (
        ablations.read_rows(folder / f"{n}.csv") for n in ("no_skill", "biovil")
    )
    everything = ablations.methods(arms, no_skill, discriminative)
    n, first = settings.evaluation.bootstrap, arms["arm"].iloc[0]
    names = {"its map of another phrase": f"map of another phrase ({first})"} | {
        arm: f"{arm} ({'control' if settings.training.arms[arm].control else 'arm'})"
        for arm in arms["arm"].unique()
    }
    rows = [
        {"method": names.get(name, name)}
        | {
            c: list(ablations.interval(part, c, n))
            for c in COLUMNS | ALL_COLUMNS
            if c in part and part[c].notna().any()
        }
        for name, part in everything.groupby("method", sort=False)
    ]
    return {
        "split": "test",
        "pairs": int(arms.groupby(["image_id", "phrase"]).ngroups),
        "patients": int(arms["subject_id"].nunique()),
        "seeds": sorted(int(s) for s in arms["seed"].unique()),
        "trainings": {k: int(v) for k, v in arms.groupby("arm")["seed"].nunique().items()},
        "average": "micro",
        "layers": settings.grounding.layers,
        "rows": rows,
    }


def results_table(found: dict[str, Any]) -> str:
    """Markdown tables, over the profile's layers and over all: one row a method, with intervals."""
    seeds = ", ".join(map(str, found["seeds"]))
    fewer = [f"{arm} {n}" for arm, n in found["trainings"].items() if n < len(found["seeds"])]
    seeds += f" (trainings of {', '.join(fewer)})" if fewer else ""
    note = (
        f"Test split, {found['pairs']} image-phrase pairs of {found['patients']} patients, seeds "
        f"{seeds}, plain activation map, micro average, 95 % bootstrap interval over patients."
    )
    layers = " ".join(found["layers"] or ["all"])
    whole = [row for row in found["rows"] if set(ALL_COLUMNS) & set(row)]
    if not whole:
        return f"{_table(found['rows'], COLUMNS)}\n\n{note}"
    return (
        f"Over the U-Net's layers `{layers}` (`up`: its decoder), chosen on validation:\n\n"
        f"{_table(found['rows'], COLUMNS)}\n\nOver all cross-attention layers, as in the paper:\n\n"
        f"{_table(whole, ALL_COLUMNS)}\n\n{note}"
    )


def _table(rows: list[dict[str, Any]], columns: dict[str, str]) -> str:
    """Markdown table of rows with a `method` and intervals."""
    head = ["", *columns.values()]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for row in rows:
        cells = [_cell(row.get(column)) for column in columns]
        lines.append("| " + " | ".join([row["method"], *cells]) + " |")
    return "\n".join(lines)


def _cell(interval: list[float] | None) -> str:
    if interval is None or interval[0] is None:
        return "-"
    value, low, high = (round(number, 2) + 0.0 for number in interval)  # no -0.00
    return f"{value:.2f} [{low:.2f}, {high:.2f}]"


def findings_table(rows: list[dict[str, Any]]) -> str:
    """Markdown tables of claims; those over all layers and about controls are folded away."""
    parts: dict[str, list[str]] = {"": [], "over all layers": [], "beside the control arms": []}
    held = dict.fromkeys(parts, 0)
    for row in rows:
        number = claims.shown(row["estimate"], row["low"], row["high"])
        verdict = claims.verdict(claims.Claim(**row))
        control = "control" in row["id"] or "shuffled" in row["id"]
        kind = "over all layers" if "all-layers" in row["id"] else ""
        kind = "beside the control arms" if control else kind
        cells = (row["id"], row["claim"], verdict, number, len(row["seeds"]), row["split"])
        parts[kind].append("| " + " | ".join(map(str, cells)) + " |")
        held[kind] += row["holds"]
    head = ["| | claim | verdict | estimate | seeds | split |", "|---|---|---|---|---|---|"]
    shown = []
    for kind, lines in parts.items():
        table = "\n".join([*head, *lines])
        title = f"<summary>{len(lines)} more {kind}: {held[kind]} hold</summary>"
        folded = f"<details>\n{title}\n\n{table}\n\n</details>"
        shown += [folded if kind else table] if lines else []
    return "\n\n".join(shown)


def times_table(rows: list[dict[str, Any]]) -> str:
    """Markdown table of measured commands."""
    lines = ["| command | time | peak memory |", "|---|---|---|"]
    lines += [f"| {row['what']} | {row['time']} | {row['memory']} |" for row in rows]
    return "\n".join(lines)


def memory_table(found: dict[str, Any]) -> str:
    """Markdown table of simulated GPU memory, with the smallest card that has room for it."""
    head = ["weights trained", "checkpointing", "samples a pass", "peak, GB", "card"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for row in found["rows"]:
        peak = max(row["mixed_gb"], row["float32_gb"])
        fits = [card for card in CARDS if peak + found["headroom_gb"] <= card]
        rank, count = row["lora_rank"], f"{row['trained'] / 1e6:.1f} million"
        cells = [
            f"LoRA of rank {rank}, {count}" if rank else f"all, {count}",
            "yes" if row["gradient_checkpointing"] else "no",
            str(row["batch_size"]),
            f"{row['mixed_gb']:.1f} ({row['float32_gb']:.1f})",
            f"{fits[0]} GB" if fits else f"more than {CARDS[-1]} GB",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    real, asked = found["check"], found["check"]["batch_size"]
    note = (
        f"In mixed precision, in brackets all in float32; a card counts if it holds the larger and "
        f"{found['headroom_gb']:.0f} GB that a simulation does not see. Check on a CPU (LoRA, "
        f"checkpointing, {asked} sample, float32): simulated {real['simulated_gb']:.1f} GB, "
        f"the real process grew by {real['resident_gb']:.1f} GB."
    )
    return "\n".join([*lines, "", note])


def render(text: str, blocks: dict[str, str]) -> str:
    """README text with the content between its markers replaced."""
    for name, block in blocks.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        if not pattern.search(text):
            raise ValueError(f"README.md has no markers <!-- {name} --> ... <!-- /{name} -->")
        text = pattern.sub(lambda match, b=block: f"{match[1]}{b}\n{match[2]}", text)
    return text


def blocks() -> dict[str, str]:
    """The README's tables from the committed result files."""
    return {
        "memory": memory_table(runs.read_json(ROOT / "benchmarks" / "memory.json")),
        "times": times_table(runs.read_json(ROOT / "benchmarks" / "times.json")["rows"]),
        "results": results_table(runs.read_json(ROOT / "figures" / "results.json")),
        "findings": findings_table(runs.read_json(ROOT / "figures" / "findings.json")),
    }


def main(*arguments: str) -> int:
    """Refresh results (unless --render) and README.md."""
    settings = config.load("miniature")
    if "--render" not in arguments:
        runs.write_json(settings.figures_dir / "results.json", results(settings))
        print(f"{len(claims.read(settings))} findings")
    readme = ROOT / "README.md"
    readme.write_text(render(readme.read_text(), blocks()))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
