"""Run Snakemake with the given arguments; if it fails on a full disk, the last line says so.

Any program, Snakemake itself included, may find no room for its files and end in another message.
"""

import os
import sys
from pathlib import Path

import damage
from snakemake.cli import main

if __name__ == "__main__":
    try:
        main()
    except SystemExit as end:
        if end.code and (line := damage.full_disk(Path(os.environ["G2G_BUILD"]))):
            print(line, file=sys.stderr)
        raise
