"""Refuse files over 5 MiB, and more than 60 MiB of weights (pre-commit)."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FILE, WEIGHTS = 5 * 2**20, 60 * 2**20  # bytes


def too_large(files: list[Path]) -> list[str]:
    """One line per file that is too large, and one for the weights together."""
    sizes = {file: file.stat().st_size for file in files if file.is_file()}
    wrong = [f"{f}: {n / 2**20:.1f} MiB, at most 5" for f, n in sizes.items() if n > FILE]
    weights = [p for p in (ROOT / "weights").rglob("*") if p.is_file()]
    if (total := sum(p.stat().st_size for p in weights)) > WEIGHTS:
        wrong.append(f"weights/: {total / 2**20:.1f} MiB together, at most 60")
    return wrong


if __name__ == "__main__":
    sys.exit("\n".join(too_large([Path(name) for name in sys.argv[1:]])) or 0)
