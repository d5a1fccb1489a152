"""Notebooks as files: pairing, style, what may be committed, reference outputs.

python tools/notebooks.py pair [NOTEBOOK.py …]   write the .ipynb of edited .py, outputs kept
python tools/notebooks.py check FILE…            pairing and origin of given files (pre-commit)
python tools/notebooks.py refuse FILE…           no notebook of credentialed data (pre-commit)
python tools/notebooks.py publish                executed notebooks -> notebooks/
python tools/notebooks.py reference              executed smoke notebooks -> tests/…/reference/
"""

import ast
import os
import re
import sys
from pathlib import Path

import jupytext
import nbformat
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(1, str(ROOT / "workflow"))
import belongs  # noqa: E402

BUILD = Path(os.environ.get("G2G_BUILD", ROOT / "build"))
NOTEBOOKS = ROOT / "notebooks"
REFERENCE = ROOT / "tests" / "notebooks" / "reference"
PUBLISHED = "miniature|radiographs"  # profiles whose runs may be committed
MARK = "# NBVAL_CHECK_OUTPUT"
CHECKED = "nbval-check-output"  # the tag that says the same
KERNEL = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
WIDGET = "application/vnd.jupyter.widget-view+json"
MAX_CELL, MAX_DEF, MAX_BYTES = 15, 10, 5 * 2**20  # lines, lines, bytes
HEADINGS = ["Question", "You need", "Parameters", "Imports", "What we learned", "Next"]
FORBIDDEN = {
    r"^\s*!": "a shell command",
    r"%pip|%conda|pip install": "an installation",
    r"sys\.path": "sys.path",
    r"^\s*%cd": "%cd",
    r"warnings\.(filterwarnings|simplefilter)": "silenced warnings",
}
MACHINE = re.compile(r"(?<![\w.])/(home|root|Users|tmp|work|mnt|scratch)/[\w.]")


def notebooks(folder: Path = NOTEBOOKS) -> list[Path]:
    """The numbered notebooks of a folder, in order."""
    return sorted(folder.glob("[0-9]*.ipynb"))


def read(path: Path) -> NotebookNode:
    """A notebook from .ipynb or from its paired .py."""
    return jupytext.read(path) if path.suffix == ".py" else nbformat.read(path, as_version=4)


def tags(cell: NotebookNode) -> list[str]:
    """Tags of a cell."""
    return list(cell.metadata.get("tags", []))


def signature(notebook: NotebookNode) -> list[tuple[str, str, tuple[str, ...]]]:
    """Type, source and tags of every cell but the injected parameters."""
    kept = (c for c in notebook.cells if "injected-parameters" not in tags(c))
    return [(c.cell_type, c.source.rstrip(), tuple(sorted(tags(c)))) for c in kept]


def code_cells(notebook: NotebookNode) -> list[tuple[int, NotebookNode]]:
    """Position and cell of every code cell that has code."""
    numbered = enumerate(notebook.cells)
    return [(i, c) for i, c in numbered if c.cell_type == "code" and c.source.strip()]


def is_checked(cell: NotebookNode) -> bool:
    """True if a cell's output is compared with the reference."""
    return CHECKED in tags(cell) or MARK in cell.source


# --- what can be wrong ---------------------------------------------------------------------------


def unpaired(path: Path) -> list[str]:
    """Differences between the cells of NN.ipynb and NN.py."""
    source = path.with_suffix(".py")
    if not source.exists():
        return [f"{path.name} has no paired {source.name}"]
    one, other = signature(read(source)), signature(read(path))
    fix = f"if {source.name} is right: python tools/notebooks.py pair notebooks/{source.name}"
    for number, (left, right) in enumerate(zip(one, other, strict=False)):
        if left != right:
            return [
                f"{path.name} and {source.name} differ in cell {number} ({left[1][:50]!r}); {fix}"
            ]
    if len(one) != len(other):
        return [f"{source.name} has {len(one)} cells, {path.name} {len(other)}; {fix}"]
    return []


def _long_defs(code: str) -> list[str]:
    """Classes and long functions of a cell."""
    plain = re.sub(r"^(\s*)[%!].*$", r"\1pass", code, flags=re.M)
    found = []
    for node in ast.walk(ast.parse(plain)):
        if isinstance(node, ast.ClassDef):
            found.append(f"defines class {node.name}")
        elif isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno >= MAX_DEF:
            found.append(f"def {node.name} is longer than {MAX_DEF} lines")
    return found


def bad_style(path: Path) -> list[str]:
    """Breaches of the rules for cells, and missing headings of the skeleton."""
    notebook, wrong = read(path), []
    for number, cell in code_cells(notebook):
        lines = cell.source.strip().splitlines()
        found = [f"has {len(lines)} lines, at most {MAX_CELL}"] if len(lines) > MAX_CELL else []
        found += [
            f"contains {what}" for p, what in FORBIDDEN.items() if re.search(p, cell.source, re.M)
        ]
        wrong += [f"{path.name} cell {number} {text}" for text in found + _long_defs(cell.source)]
    prose = "\n".join(c.source for c in notebook.cells if c.cell_type == "markdown")
    if not re.match(r"# \S", prose):
        wrong.append(f"{path.name} does not start with a title")
    for heading in HEADINGS:
        if not re.search(rf"^(#+ |\*\*)[^\n]*\b{heading}", prose, re.M | re.I):
            wrong.append(f"{path.name} has no part {heading!r}")
    return wrong + bad_parameters(path)


def bad_parameters(path: Path) -> list[str]:
    """Faults of the parameters cell: there must be one, with `profile` = a shipped one."""
    cells = [c for _, c in code_cells(read(path)) if "parameters" in tags(c)]
    if len(cells) != 1:
        return [f"{path.name} has {len(cells)} cells tagged `parameters`, not 1"]
    if not re.search(rf"^profile(: *str)? *= *['\"]({PUBLISHED})['\"]", cells[0].source, re.M):
        return [f'{path.name}: its parameters cell does not set profile: str = "miniature"']
    return []


def not_committable(path: Path) -> list[str]:
    """Reasons why a notebook must not be committed: data of other profiles, paths, size."""
    notebook, wrong = read(path), []
    profile = notebook.metadata.get("g2g", {}).get("profile")
    executed = any(c.outputs or c.execution_count for _, c in code_cells(notebook))
    own = belongs.home(path)
    if executed and profile != own:
        wrong.append(
            f"was executed under {profile or 'an unknown profile'}, only {own} is committed"
        )
    if any("injected-parameters" in tags(c) for c in notebook.cells):
        wrong.append("holds injected parameters")
    shown = "\n".join(output_text(c) for _, c in code_cells(notebook))
    if found := MACHINE.search(shown):
        wrong.append(f"shows a path of a machine: {shown[found.start() : found.start() + 60]!r}")
    if re.search(r"profile\W{1,4}(paper|open)\b", shown):
        wrong.append("shows output of the profile paper or open")
    if path.stat().st_size > MAX_BYTES:
        wrong.append(f"has {path.stat().st_size / 2**20:.1f} MiB, at most {MAX_BYTES >> 20}")
    return [f"{path.name} {text}" for text in wrong]


def not_executed(path: Path) -> list[str]:
    """Code cells without a count or with an error."""
    wrong = []
    for number, cell in code_cells(read(path)):
        if not cell.execution_count:
            wrong.append(f"{path.name} cell {number} was not executed")
        wrong += [
            f"{path.name} cell {number} failed: {output.ename}: {output.evalue}"
            for output in cell.outputs
            if output.output_type == "error"
        ]
    return wrong


def unguarded(path: Path) -> list[str]:
    """Reasons why a comparison with this reference would prove little or nothing."""
    notebook, wrong = read(path), []
    checked = [(i, c) for i, c in code_cells(notebook) if is_checked(c)]
    if not checked:
        wrong.append(f"{path.name} checks nothing: no cell has the tag {CHECKED}")
    for number, cell in checked:
        if not cell.execution_count or not output_text(cell).strip():
            wrong.append(f"{path.name} cell {number} is to be checked but has no count or no text")
        if any("image/png" in output.get("data", {}) for output in cell.outputs):
            wrong.append(f"{path.name} cell {number} is to be checked but shows an image")
    source = NOTEBOOKS / path.name
    if not source.exists() or signature(read(source)) != signature(notebook):
        wrong.append(f"{path.name} is not of the current notebook: ./run_all.sh test --update")
    if notebook.metadata.get("g2g", {}).get("profile") != "smoke":
        wrong.append(f"{path.name} was not executed under smoke")
    return wrong


# --- changes -------------------------------------------------------------------------------------


def output_text(cell: NotebookNode) -> str:
    """All text that a code cell shows, errors included."""
    parts = []
    for output in cell.outputs:
        parts += [output.get("text", ""), output.get("evalue", ""), *output.get("traceback", [])]
        parts += [v for k, v in output.get("data", {}).items() if k.startswith("text/")]
    return "\n".join(part if isinstance(part, str) else "".join(part) for part in parts)


def _plain(text: str) -> str:
    """Text without this machine's folders and without overwritten progress bars."""
    text = text.replace(f"{ROOT}{os.sep}", "").replace(str(ROOT), ".").replace(sys.prefix, "ENV")
    text = re.sub(r"(?<![\w.])/(?:[\w.+-]+/)+(?=g2g_utils/|site-packages/)", "", text)
    return re.sub(r"[^\n]*\r(?!\n)", "", text)


def _is_bar(output: NotebookNode) -> bool:
    """True for a progress bar, which would stay at 0 % in a file."""
    data = output.get("data", {})
    return WIDGET in data and bool(
        re.search(r"\d+%\|.*(it/s|s/it)", str(data.get("text/plain", "")))
    )


def _is_note(output: NotebookNode) -> bool:
    """True for the note that a word list stands in for a tagger: notebook 05 says it in prose."""
    return output.get("name") == "stderr" and "no scispaCy model installed" in output["text"]


def cleaned(notebook: NotebookNode, images: bool = True) -> NotebookNode:
    """A notebook without the run's times, paths and bars, and without images if so chosen."""
    notebook.metadata.pop("papermill", None)
    notebook.metadata["kernelspec"] = KERNEL
    for cell in notebook.cells:
        for key in ("papermill", "execution"):
            cell.metadata.pop(key, None)
        if not tags(cell):
            cell.metadata.pop("tags", None)
        if "outputs" in cell:
            cell.outputs = [o for o in cell.outputs if not _is_bar(o) and not _is_note(o)]
        for output in cell.get("outputs", []):
            if isinstance(output.get("text"), str):
                output["text"] = _plain(output["text"])
            data = output.get("data", {})
            for kind in [k for k in data if k.startswith("text/") and isinstance(data[k], str)]:
                data[kind] = _plain(data[kind])
            if not images:
                for kind in [k for k in data if k.startswith("image/")]:
                    del data[kind]
    if WIDGET not in str([cell.get("outputs") for cell in notebook.cells]):
        notebook.metadata.pop("widgets", None)  # the state of the bars alone
    return notebook


def executed(profile: str, name: str) -> NotebookNode:
    """The executed notebook of a finished run. The error for a missing or stale one is one line."""
    path = BUILD / profile / "notebooks" / name
    fix = f"run ./run_all.sh {profile} first"
    if not path.with_suffix(".run.json").exists():
        sys.exit(f"{name} has no finished run under {profile}: {fix}")
    if signature(read(path)) != signature(read(NOTEBOOKS / name)):
        sys.exit(f"notebooks/{name} changed after its run under {profile}: {fix}")
    if wrong := not_executed(path):
        sys.exit("\n".join(wrong))
    return read(path)


def write(notebook: NotebookNode, path: Path) -> None:
    """Write if something changed, and say so."""
    text = nbformat.writes(notebook).rstrip("\n") + "\n"
    if not path.exists() or path.read_text() != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        print(f"wrote {path.relative_to(ROOT)}")


def publish() -> None:
    """Put the executed notebooks of miniature and radiographs into notebooks/."""
    for path in notebooks():
        notebook = cleaned(executed(belongs.home(path), path.name))
        if jupytexted := read(path).metadata.get("jupytext"):
            notebook.metadata["jupytext"] = jupytexted
        write(notebook, path)
        if wrong := not_committable(path):
            sys.exit("\n".join(wrong))


def reference() -> None:
    """Put the executed smoke notebooks, without images, into tests/notebooks/reference/."""
    shown = belongs.run_by("smoke", NOTEBOOKS)
    names = {path.name for path in shown}
    for path in shown:
        write(cleaned(executed("smoke", path.name), images=False), REFERENCE / path.name)
    for path in notebooks(REFERENCE):
        if path.name not in names:
            path.unlink()
            print(f"removed {path.relative_to(ROOT)}")


def pair(sources: list[Path]) -> None:
    """Write the .ipynb of each .py; outputs of unchanged cells stay."""
    for source in sources or sorted(NOTEBOOKS.glob("[0-9]*.py")):
        target, notebook = source.with_suffix(".ipynb"), read(source)
        notebook.metadata["kernelspec"] = KERNEL
        notebook.metadata.setdefault("jupytext", {})["formats"] = "ipynb,py:percent"
        if target.exists():
            old = read(target)
            notebook = jupytext.combine.combine_inputs_with_outputs(notebook, old)
            notebook.metadata.update({k: v for k, v in old.metadata.items() if k == "g2g"})
        write(nbformat.from_dict(notebook), target)


def main() -> None:
    """Run one command of the list above."""
    command, *arguments = sys.argv[1:] or ["--help"]
    files = [Path(a).resolve() for a in arguments]
    if command == "pair":
        pair(files)
    elif command == "publish":
        publish()
    elif command == "reference":
        reference()
    elif command == "refuse":
        sys.path.insert(0, str(ROOT))
        from g2g_utils.experiment import privacy

        sys.exit("\n".join(f"{f} {why}" for f in files for why in privacy.refused(read(f))) or 0)
    elif command == "check":
        paths = sorted({f.with_suffix(".ipynb") for f in files})
        lost = [
            f"{p.with_suffix('.py').name} has no paired notebook" for p in paths if not p.exists()
        ]
        found = [w for p in paths if p.exists() for w in unpaired(p) + not_committable(p)]
        sys.exit("\n".join(lost + found) or 0)
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main()
