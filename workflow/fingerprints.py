"""Fingerprints of a notebook: its cells and the package modules it imports."""

import ast
import hashlib
import json
import os
import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def cells(notebook: Path) -> list[list[str]]:
    """Type and source of every cell. Outputs and counts do not matter."""
    content = json.loads(notebook.read_text())["cells"]
    return [[cell["cell_type"], "".join(cell["source"])] for cell in content]


@cache
def _file(module: str) -> Path | None:
    """Source file of a module of this package."""
    base = ROOT / Path(*module.split("."))
    found = (path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file())
    return next(found, None)


def _imports(code: str, package: str) -> set[str]:
    """Modules of g2g_utils named in import statements anywhere in `code`."""
    named = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            named |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*(above if node.level else []), *filter(None, [node.module])])
            named |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    return {name for name in named if name.split(".")[0] == "g2g_utils"}


@cache
def _direct(path: Path) -> frozenset[Path]:
    """Files that a module imports itself."""
    package = ".".join(path.relative_to(ROOT).parent.parts)
    found = map(_file, _imports(path.read_text(), package))
    return frozenset(file for file in found if file)


def modules(code: str) -> list[Path]:
    """Files of g2g_utils that `code` imports, directly or not."""
    todo = [file for file in map(_file, _imports(code, "")) if file]
    seen: set[Path] = set()
    while todo:
        path = todo.pop()
        if path not in seen:
            seen.add(path)
            todo.extend(_direct(path))
    return sorted(seen)


def fingerprint(notebook: Path, config: str) -> str:
    """Hash of the notebook's source, the modules it reaches and the profile's settings.

    G2G_ variables that the notebook itself reads count too, if they are set.
    """
    source = cells(notebook)
    code = "\n".join(text for kind, text in source if kind == "code")
    plain = re.sub(r"^\s*[%!].*$", "", code, flags=re.M)  # magics are not Python
    parts = [json.dumps(source), config, *(path.read_text() for path in modules(plain))]
    read = sorted(set(re.findall(r"\bG2G_[A-Z_]+", plain)) & os.environ.keys())
    parts += [f"{name}={os.environ[name]}" for name in read if os.environ[name]]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
