"""Write the tables of the Markdown pages from the results of the last miniature run.

    python tools/readme.py            # from build/miniature: figures/results.json, then the pages
    python tools/readme.py --render   # the pages alone, from the committed files

Numbers come from results.json and findings.json in figures/, times.json and memory.json in
benchmarks/, and the paper's from docs/paper.csv.
"""

from __future__ import annotations

import csv
import re
import sys
from pathlib import Path
from typing import Any

from g2g_utils import config, runs
from g2g_utils.bench import claims, statistics
from g2g_utils.experiment import products
from g2g_utils.runs import places

ROOT = Path(__file__).resolve().parents[1]
RUNS = ("smoke", "miniature", "ground", "test")  # rows of times.json that the README shows
CHECKS = ("fast", "test", "smoke")
FINDINGS = {  # of the paper: what it says, and the notebook that asks
    "F0": (
        "The map beats one without skill, the mean box of the finding",
        "07_grounding_benchmark",
    ),
    "F1": (
        "Frozen domain encoder > frozen generic encoder; frozen generic > learnable",
        "07_grounding_benchmark",
    ),
    "F2": (
        "Fidelity is reversed: frozen generic > frozen domain; learnable > frozen generic",
        "09_fidelity_tradeoff",
    ),
    "F3": (
        "A model that draws grounds better than one that compares (BioViL)",
        "07_grounding_benchmark",
    ),
    "F4": (
        "Bias merging raises CNR; its quadratic curve the mask's IoU",
        "06_bimodal_bias_merging",
    ),
    "F5": ("Content words ground at least as well as disease words", "08_hyperparameters"),
    "F6": ("About five timesteps suffice", "08_hyperparameters"),
    "F7": ("Information × attention grounds better than attention", "13_information_maps"),
    "F8": ("The gain tells an absent finding, and a wrong side", "13_information_maps"),
}
MEASURES = {
    "cnr": "CNR",
    "fid": "Fréchet distance",
    "balanced_iou": "balanced IoU",
    "pointing": "Top-1",
    "specificity": "specificity",
    "presence": "area under the ROC curve − 0.5",
    "timesteps": "timesteps; CNR of 5 less that of 20, + 0.05",
}
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
    scores = products.scores(settings)
    arms = scores[scores["arm"].notna()]
    if settings.grounding.layers:
        whole = products.scores(settings, "all layers")[list(COLUMNS)[:4]].add_prefix(ALL)
        scores = scores.join(whole[scores["arm"].notna()])  # the same rows in the same order
    everything = statistics.methods(scores)
    n, first = settings.evaluation.bootstrap, arms["arm"].iloc[0]
    names = {"its map of another phrase": f"map of another phrase ({first})"} | {
        arm: f"{arm} ({'control' if settings.training.arms[arm].control else 'arm'})"
        for arm in arms["arm"].unique()
    }
    rows = [
        {"method": names.get(name, name)}
        | {
            c: list(statistics.interval(part, c, n))
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
    """Markdown tables over the profile's layers and over all, one row per method."""
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


def summary_table(rows: list[dict[str, Any]], paper: list[dict[str, str]]) -> str:
    """Markdown table of the paper's findings: its difference, ours, the verdict, the notebook.

    Args:
        rows: claims of findings.json.
        paper: rows of docs/paper.csv, one a comparison, with the id of the claim beside it.
    """
    found = {row["id"]: claims.Claim(**row) for row in rows}
    lines = ["| | claim | measure | paper | here | verdict | notebook |", "|---" * 7 + "|"]
    for name, (text, notebook) in FINDINGS.items():
        parts = [part for part in paper if part["claim"].startswith(f"{name}-")]
        made = [found.get(part["claim"]) for part in parts]
        cells = (
            name,
            text,
            ", ".join(dict.fromkeys(MEASURES[part["measure"]] for part in parts)),
            "; ".join(_printed(part) for part in parts),
            "; ".join(claims.shown(c.estimate, c.low, c.high) if c else "-" for c in made),
            "; ".join(claims.verdict(c) if c else "-" for c in made),
            f"[{notebook[:2]}](notebooks/{notebook}.ipynb)",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _printed(part: dict[str, str]) -> str:
    """The paper's number of a comparison: the gain of the better, a single value, or `-`."""
    if not part["worse"]:
        return part["better"] or "-"
    places = len(part["better"].partition(".")[2])
    sign = -1 if part["measure"] == "fid" else 1
    return f"{sign * (float(part['better']) - float(part['worse'])):+.{places}f}"


def paper_rows() -> list[dict[str, str]]:
    """Rows of docs/paper.csv, without the comments above its header."""
    lines = (ROOT / "docs" / "paper.csv").read_text().splitlines()
    return list(csv.DictReader(line for line in lines if not line.startswith("#")))


def claims_table(rows: list[dict[str, Any]]) -> str:
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
    """Replace the content between the markers of a page.

    Raises:
        ValueError: the page lacks the markers of a block.
    """
    for name, block in blocks.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        if not pattern.search(text):
            raise ValueError(f"the page has no markers <!-- {name} --> ... <!-- /{name} -->")
        text = pattern.sub(lambda match, b=block: f"{match[1]}{b}\n{match[2]}", text)
    return text


def pages() -> dict[str, dict[str, str]]:
    """Blocks of every page that has some, from the committed result files."""
    found = runs.read_json(ROOT / "figures" / "findings.json")
    times = runs.read_json(ROOT / "benchmarks" / "times.json")["rows"]
    return {
        "README.md": {
            "times": times_table([row for row in times if row["name"] in RUNS]),
            "summary": summary_table(found, paper_rows()),
        },
        "CONTRIBUTING.md": {"times": times_table([row for row in times if row["name"] in CHECKS])},
        "docs/results.md": {
            "results": results_table(runs.read_json(ROOT / "figures" / "results.json")),
            "claims": claims_table(found),
        },
        "docs/running.md": {
            "memory": memory_table(runs.read_json(ROOT / "benchmarks" / "memory.json")),
        },
    }


def main(*arguments: str) -> int:
    """Refresh results.json (unless --render) and all pages."""
    settings = config.load("miniature")
    if "--render" not in arguments:
        runs.write_json(places.kept_figures(settings) / "results.json", results(settings))
        claimed = places.kept_figures(settings) / "findings.json"
        print(f"{len(runs.read_json(claimed))} claims")
    for name, blocks in pages().items():
        page = ROOT / name
        page.write_text(render(page.read_text(), blocks))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
