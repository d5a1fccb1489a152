"""Build the site into build/site: `./run_all.sh site`. No network, no kernel, warnings are errors.

Pages are staged in build/site/source in the layout of the repository, so that its relative links
hold: docs/, the notebooks as they were executed, the files that pages link to, and what is made
here from data: the paper map, the reference of public names, the maps of the films. Sphinx does the
rest (docs/site/conf.py).
"""

from __future__ import annotations

import base64
import os
import re
import shutil
import struct
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nbformat
import yaml
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parents[1]
HERE = Path(os.environ.get("G2G_BUILD", ROOT / "build")) / "site"
BUILD = Path(os.environ.get("G2G_SITE", HERE))
SOURCE, HTML = BUILD / "source", BUILD / "html"
WIDGET = "application/vnd.jupyter.widget-view+json"
DRAWS = re.compile(r"save_figure\(.*?\"([\w-]+)\"|plt\.|overlays\.|charts\.|display\(Image")
SMALL = ("g2g-small", "g2g-smaller")  # classes of figures on pages that would be too high
TALLEST = 4000  # estimated pixels of a page beyond which more is folded; 6,000 are allowed
PAGES = ("CONTRIBUTING.md", "CHANGELOG.md", "data/README.md")
LINK = re.compile(r"\]\((?!https?:|#|mailto:)([^)\s#]+)(#[^)\s]*)?\)")
MODULES = [  # rooms that users and authors of methods call, from the ground up
    "config", "data.record", "data.geometry", "text", "tagger", "models", "models.protocol",
    "sampling", "attention", "bbm", "masks", "information", "metrics", "grounding",
    "methods.base", "methods.registry", "bench.benchmark", "bench.statistics", "bench.claims",
    "plots", "plots.overlays", "plots.charts", "runs",
]  # fmt: skip


# -- notebooks ------------------------------------------------------------------------------------


def staged(notebook: NotebookNode, name: str) -> NotebookNode:
    """A notebook as the site shows it: plotting code folded, figures captioned, no widgets."""
    heading, said, seen = "", "", Counter[str]()
    if not any(c.get("execution_count") for c in notebook.cells):
        note = ":::{note}\nNot executed yet: the next full run fills this page.\n:::"
        notebook.cells.insert(1, nbformat.v4.new_markdown_cell(note))
    notebook.cells = [part for cell in notebook.cells for part in apart(cell)]
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            found = re.findall(r"^#+ (.+)$", cell.source, re.M)
            heading, said = (found[-1] if found else heading), last_sentence(cell.source)
        elif cell.cell_type == "code":
            caption(cell, name, heading, said, seen)
    if "10_" in name:
        add_films(notebook)
    fold(notebook)
    notebook.metadata.pop("widgets", None)
    return notebook


def apart(cell: NotebookNode) -> list[NotebookNode]:
    """A cell, and its figures as cells of their own if it shows other things too."""
    if cell.cell_type != "code":
        return [cell]
    warned = [o for o in cell.outputs if o.get("name") == "stderr"]
    kept = [o for o in cell.outputs if WIDGET not in o.get("data", {}) and o not in warned]
    figures = [o for o in kept if pictured(o)]
    if len(kept) == len(figures) == 1:
        cell.outputs = kept
        return [cell]
    cell.outputs, cells = [o for o in kept if o not in figures], [cell]
    for figure in figures:
        one = nbformat.v4.new_code_cell(cell.source, outputs=[figure], id=f"{cell.id}-{len(cells)}")
        one.metadata["tags"] = ["remove-input"]
        cells.append(one)
    return cells


def merged(cells: list[NotebookNode]) -> list[NotebookNode]:
    """Neighbours whose folded code shows nothing become one fold."""
    kept: list[NotebookNode] = []
    for cell in cells:
        last = kept[-1] if kept else None
        both = last is not None and folded(last) and folded(cell)
        if last is not None and both and (not last.outputs or (hidden(last) and hidden(cell))):
            cell.source = f"{last.source}\n\n{cell.source}"
            cell.outputs = last.outputs + cell.outputs
            kept.pop()
        kept.append(cell)
    return kept


def hidden(cell: NotebookNode) -> bool:
    """True for a cell whose printed outputs are behind a fold."""
    return "hide-output" in cell.metadata.get("tags", []) and "mystnb" not in cell.metadata


def folded(cell: NotebookNode) -> bool:
    """True for a code cell whose code alone is behind a fold."""
    return cell.cell_type == "code" and "hide-input" in cell.metadata.get("tags", [])


def fold(notebook: NotebookNode) -> None:
    """Hide code behind one click, and as much printed output as keeps the page short.

    Level 0 folds the code of figures, imports and cells of more than four lines; then long printed
    outputs go, then all code but the parameters, then tables and the rest of what was printed; at
    last figures become smaller, and charts of many rows go; then they become smaller still.
    """
    code = [c for c in notebook.cells if c.cell_type == "code"]
    for level in range(6):
        for cell in code:
            tags = set(cell.metadata.get("tags", [])) | set(folds(cell, level))
            cell.metadata["tags"] = sorted(tags)
            if level >= 4 and "mystnb" in cell.metadata:
                cell.metadata["mystnb"]["image"]["classes"] = SMALL[level - 4]
                if narrow(cell.outputs[0]):
                    cell.metadata["tags"] = sorted(tags | {"hide-output"})
        if sum(map(height, notebook.cells)) < TALLEST:
            break
    notebook.cells = merged(notebook.cells)


def folds(cell: NotebookNode, level: int) -> list[str]:
    """Tags of what a level hides of a cell."""
    lines = cell.source.splitlines()
    imports = all(re.match(r"(from|import|\)|\s|$|plots\.use_style)", ln) for ln in lines)
    plain = level >= 2 and "parameters" not in cell.metadata.get("tags", [])
    hidden = (
        ["hide-input"] if imports or DRAWS.search(cell.source) or len(lines) > 4 or plain else []
    )
    rows = max((printed(o) for o in cell.outputs if not pictured(o)), default=0)
    most = (10**6, 6, 6, 3, 3, 3)[level]
    return hidden + (
        ["hide-output"] if rows > most and not any(map(pictured, cell.outputs)) else []
    )


def pictured(output: NotebookNode) -> bool:
    """True for an image."""
    return "image/png" in output.get("data", {})


def narrow(output: NotebookNode) -> bool:
    """True for an image that is higher than wide: many rows, unreadable when small."""
    head = base64.b64decode(output["data"]["image/png"][:64])
    wide, high = struct.unpack(">II", head[16:24])
    return bool(high > 1.1 * wide)


def printed(output: NotebookNode) -> int:
    """Lines or table rows of an output."""
    data = output.get("data", {})
    if "text/html" in data:
        return str(data["text/html"]).count("<tr") or 10
    if output.get("name") == "stderr":
        return 0
    return len(
        str(
            output.get("text") or data.get("text/markdown") or data.get("text/plain", "")
        ).splitlines()
    )


def height(cell: NotebookNode) -> float:
    """Pixels that a cell takes on the page, roughly."""
    tags = cell.metadata.get("tags", [])
    if cell.cell_type == "markdown":
        formulas = cell.source.count("$$") // 2
        return 28 + 26 * len(cell.source) / 100 + 20 * cell.source.count("\n#") + 40 * formulas
    code = 26 if "hide-input" in tags else 24 + 16 * len(cell.source.splitlines())
    if "hide-output" in tags:
        return code + 26
    size = cell.metadata.get("mystnb", {}).get("image", {}).get("classes")
    picture = {None: 440, SMALL[0]: 310, SMALL[1]: 240}[size]
    shown = (picture if pictured(o) else 14 + min(300, 18 * printed(o)) for o in cell.outputs)
    return code + sum(shown)


def caption(cell: NotebookNode, name: str, heading: str, said: str, seen: Counter[str]) -> None:
    """Give a figure its number, a caption and a text for those who cannot see it."""
    if len(cell.outputs) != 1 or not pictured(cell.outputs[0]):
        return
    drawn = re.search(r"save_figure\([^\"]*\"([\w-]+)\"", cell.source)
    label = drawn[1] if drawn else f"{name}-{cell.get('id', len(cell.source))}"
    label = f"{label}-{seen[label]}" if seen.update([label]) or seen[label] > 1 else label
    short, plain = re.sub(r"[$`*_]", "", heading), re.sub(r"[$`*]", "", said)
    cell.metadata["mystnb"] = {
        "figure": {"name": f"fig-{label}", "caption": said or heading},
        "image": {"alt": alternative(cell.outputs[0]) or (f"{short}: {plain}" if said else short)},
    }


def alternative(output: NotebookNode) -> str:
    """The text that the notebook gave a figure for those who do not see it."""
    return str(output.get("metadata", {}).get("image/png", {}).get("alt", "")).replace('"', "'")


def last_sentence(text: str) -> str:
    """The last sentence of the prose before a figure, as its caption; "" if there is none."""
    prose = [p for p in text.split("\n\n") if not re.match(r"\s*([-#|>]|\$\$|:::|\d\.)", p)]
    if not prose or not text.strip().endswith(prose[-1].strip()):
        return ""
    flat = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", " ".join(prose[-1].split()))
    sentences = re.split(r"(?<=[.?!:]) (?=[A-Z$*`])", flat)
    return sentences[-1].rstrip(":") + ("." if sentences[-1].endswith(":") else "")


def add_films(notebook: NotebookNode) -> None:
    """Lead from the explorer's empty cell to the films."""
    for place, cell in enumerate(notebook.cells):
        if "explorer.Explorer(" in cell.source and cell.cell_type == "code":
            text = "The widget needs a kernel. [The films](../films.md) work without one."
            notebook.cells.insert(place + 1, nbformat.v4.new_markdown_cell(text))
            return


# -- pages from data ------------------------------------------------------------------------------


def headings(path: Path) -> dict[str, str]:
    """Anchor -> heading of a notebook."""
    from myst_parser.config.main import MdParserConfig  # noqa: F401  (its slugs are GitHub's)

    cells = nbformat.read(path, as_version=4).cells
    text = "\n".join(c.source for c in cells if c.cell_type == "markdown")
    return {slug(h): h for h in re.findall(r"^#+ (.+)$", text, re.M)}


def slug(heading: str) -> str:
    """Anchor of a heading, as GitHub and MyST make it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


def notebook_of(name: str, folder: Path = ROOT / "notebooks") -> Path:
    """The notebook of that name, whatever its number.

    Raises:
        ValueError: there is none, or there are several.
    """
    found = sorted(folder.glob(f"[0-9]*_{name}.ipynb"))
    if len(found) != 1:
        raise ValueError(f"docs/paper_map.yaml: {len(found)} notebooks are called {name!r}")
    return found[0]


def target(made: str) -> tuple[str, str]:
    """Text and link of "notebook#section" or of a page of docs/, from docs/.

    Raises:
        ValueError: it does not exist.
    """
    name, _, section = made.partition("#")
    if name.endswith(".md"):
        page = ROOT / "docs" / name
        found = {slug(h): h for h in re.findall(r"^#+ (.+)$", page.read_text(), re.M)}
        title, link = found[next(iter(found))], name
    else:
        page = notebook_of(name)
        found, link = headings(page), f"../notebooks/{page.name}"
        title = page.name[:2]
    if section and section not in found:
        raise ValueError(f"{made}: {page.name} has no section {section!r}: {', '.join(found)}")
    shown = f"{title}: {found[section]}" if section else title
    return shown.replace("|", "\\|"), f"{link}#{section}" if section else link


def paper_map(entries: list[dict[str, Any]]) -> str:
    """The page of the paper map, as Markdown."""
    lines = [
        "# Paper map",
        "",
        "From every table, figure and equation of *Generate to Ground* to the cell that makes it "
        "here. [Derivations](derivations.md) work the formulas out; the paper's printed numbers "
        "stand beside ours in the notebooks named.",
        "",
        "| in the paper | what it says | made by |",
        "|---|---|---|",
    ]
    for row in entries:
        links = [f"[{text}]({link})" for text, link in map(target, row.get("made", []))]
        made = " · ".join(links) or "not here"
        missing = f" *{row['missing']}*" if row.get("missing") else ""
        lines.append(f"| {row['paper']} | {row['says']} | {made}{missing} |")
    return "\n".join([*lines, ""])


def reference() -> str:
    """The reference of public names, after its introduction."""
    parts = [(ROOT / "docs" / "site" / "api.md").read_text()]
    for name in MODULES:
        parts.append(f"## {name}\n\n```{{eval-rst}}\n.. automodule:: g2g_utils.{name}\n```\n")
    return "\n".join(parts)


# -- staging --------------------------------------------------------------------------------------


def linked(page: Path) -> Iterator[Path]:
    """Files of the repository that a page or the prose of a notebook links to."""
    for path, _ in LINK.findall(page.read_text()):
        file = (page.parent / path).resolve()
        if file.is_relative_to(ROOT) and file.exists():
            yield file


def stage(films: Callable[[Path], None] | None) -> None:
    """Write all pages and what they link to into the staging folder."""
    shutil.rmtree(SOURCE, ignore_errors=True)
    shutil.copytree(ROOT / "docs" / "site", SOURCE)
    ignored = shutil.ignore_patterns("site", "README.md", "*.yaml", "*.csv")
    shutil.copytree(ROOT / "docs", SOURCE / "docs", ignore=ignored)
    for name in PAGES:
        put(ROOT / name)
    (SOURCE / "notebooks").mkdir()
    for path in sorted((ROOT / "notebooks").glob("[0-9]*.ipynb")):
        shown = staged(nbformat.read(path, as_version=4), path.stem)
        nbformat.write(shown, SOURCE / "notebooks" / path.name)
    entries = yaml.safe_load((ROOT / "docs" / "paper_map.yaml").read_text())
    (SOURCE / "docs" / "paper_map.md").write_text(paper_map(entries))
    (SOURCE / "api.md").write_text(reference())
    put(ROOT / "figures" / "07_examples.png")
    sources = (ROOT / "notebooks").glob("[0-9]*.py")
    for page in [*(ROOT / "docs").glob("*.md"), *(ROOT / name for name in PAGES), *sources]:
        for file in linked(page):
            if (
                file.is_file()
                and file.suffix != ".ipynb"
                and not (SOURCE / file.relative_to(ROOT)).exists()
            ):
                put(file)
    draw(SOURCE / "docs" / "derived")
    if films:
        films(SOURCE / "static" / "films")


def put(file: Path) -> None:
    """Stage a file at its own place."""
    place = SOURCE / file.relative_to(ROOT)
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(file, place)


def build() -> int:
    """Run Sphinx on the staged pages; its exit status, 1 for any warning."""
    from sphinx.cmd.build import build_main

    shutil.rmtree(HTML, ignore_errors=True)
    options = ["-b", "html", "-W", "--keep-going", "-q", "-j", "2", "-d", str(BUILD / "doctrees")]
    return build_main([*options, str(SOURCE), str(HTML)])


def make_films(folder: Path) -> None:
    """Maps of the films, computed once with the shipped weights."""
    from g2g_utils import config
    from g2g_utils.explorer import films

    count = int(os.environ.get("G2G_SITE_FILMS", films.FILMS))  # fewer in tests
    films.write(config.load("miniature"), folder, HERE / "films", count)


def draw(folder: Path) -> None:
    """Figures of the derivations and the diagrams, computed by the package."""
    import matplotlib

    matplotlib.use("Agg")
    from diffusers import DDIMScheduler

    from g2g_utils import config, plots
    from g2g_utils.plots import derivations

    plots.use_style()
    folder.mkdir(parents=True)
    settings, box = config.load("miniature"), (3, 4, 5, 5)
    kept = DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    films, found = derivations.phantom(settings.image_size)
    figures = {
        "schedule": derivations.schedule(kept.alphas_cumprod.double().numpy()),
        "guidance": derivations.guided_steps(),
        "mask": derivations.mixture(derivations.blob((6, 5), 2.0), box),
        "overshoot": derivations.mixture(derivations.blob((6, 5), 2.0, 0.75), box),
        "populations": derivations.populations(),
        "bezier": derivations.bezier(),
        "method": derivations.method_diagram(),
        "unet": derivations.unet_diagram(derivations.attention_sides(settings)),
        "phantom": derivations.phantom_layers(films, found),
    }
    for name, figure in figures.items():
        figure.savefig(folder / f"{name}.png", dpi=120, bbox_inches="tight")


def main() -> None:
    """Stage, build, say where."""
    sys.path.insert(0, str(ROOT))
    os.environ["HF_HUB_OFFLINE"] = "1"
    stage(make_films)
    if status := build():
        sys.exit(status)
    pages = len(list(HTML.rglob("*.html")))
    print(f"[g2g] {pages} pages: {HTML / 'index.html'}")


if __name__ == "__main__":
    main()
