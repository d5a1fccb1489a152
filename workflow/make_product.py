"""Find or make products of a profile, then say where they are: what the workflow waits for.

    python workflow/make_product.py NAME RECORD [NAME RECORD …] --profile P [--retrain]
                                    [--set KEY VALUE …]

RECORD is a small JSON with the product's folder (below build/, or the shipped weights) and its key.
"""

import argparse
import sys
from pathlib import Path

from run_notebook import follow_controller

from g2g_utils import config as profiles
from g2g_utils import runs
from g2g_utils.experiment import products
from g2g_utils.runs import places


def main() -> None:
    """Make each under its file lock, then write its record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("wanted", nargs="+", metavar="NAME RECORD")
    parser.add_argument("--profile", required=True)
    parser.add_argument("--retrain", action="store_true")
    parser.add_argument("--set", nargs=2, action="append", default=[], metavar=("KEY", "VALUE"))
    options = parser.parse_args()
    follow_controller()
    overrides = {key: profiles.value(f"--set {key}", text) for key, text in options.set}
    config = profiles.load(options.profile, retrain=options.retrain, **overrides)
    if len(options.wanted) % 2:
        parser.error(f"every product needs a record: {' '.join(options.wanted)}")
    for name, record in zip(options.wanted[::2], options.wanted[1::2], strict=True):
        make(config, name, Path(record))


def make(config: profiles.Config, name: str, record: Path) -> None:
    """Make one product and write its record; a full disk ends in one line."""
    try:
        folder = products.ensure(config, name)
    except Exception as error:  # each writer of files has its own kind for a full disk
        if line := runs.disk_is_full(error, places.build(config)):
            sys.exit(f"{name} failed: {line}")
        raise
    if runs.rank():  # one of a group of processes; the first writes the record
        return
    key = products.key(config, name)
    runs.write_json(record, {"product": name, "folder": str(folder), "key": key})
    print(f"{name}: {folder}")


if __name__ == "__main__":
    main()
