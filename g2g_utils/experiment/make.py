"""Engine: finds a product or makes it once, with all that it needs.

Any number of notebooks and jobs may ask for the same product at the same time: a file lock lets
one of them make it while the others wait.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

from g2g_utils import runs
from g2g_utils.config import Config, ConfigError
from g2g_utils.experiment.plan import find, folder, inputs, key, needs, parameters
from g2g_utils.experiment.product import split
from g2g_utils.runs import arrays, places


def ensure(config: Config, name: str) -> Path:
    """Folder of a product: made before, shipped with the repository, or made now.

    Raises ConfigError for an unknown product.
    """
    found = find(config, name)
    if found is not None:
        return found
    if runs.processes() > 1:
        return _make_together(config, name)
    with runs.lock(folder(config, name)):
        found = find(config, name)  # another process may have made it while we waited
        if found is None:
            found = _make(config, name)
    return found


def _make_together(config: Config, name: str) -> Path:
    """Build a product in all processes at once (fine-tuning under `accelerate launch`).

    No file lock: start only one launch per product. All that it needs must be there already.
    """
    from accelerate import PartialState

    kind, item = split(name)
    missing = [need for need in needs(config, name) if find(config, need) is None]
    if missing or not kind.together:
        need = (missing or [name])[0]
        raise ConfigError(
            f"{runs.processes()} processes can fine-tune together, but {need} is made by one: "
            f"first run `python -m g2g_utils make {need} --profile {config.profile}`"
        )
    state = PartialState()
    if state.is_main_process:
        return _make(config, name, state.wait_for_everyone)
    place = folder(config, name)
    state.wait_for_everyone()
    kind.build(config, item, place)  # ends the process group: nothing to wait for afterwards
    return place


def _make(config: Config, name: str, ready: Callable[[], None] = lambda: None) -> Path:
    """Build one product (the lock is held): dependencies first, run.json with its key last.

    ready: called when the folder is there and holds nothing that cannot be resumed.
    """
    place = folder(config, name)
    if (place / "run.json").exists():  # finished but damaged: nothing to resume but arrays
        _forget(place)
    place.mkdir(parents=True, exist_ok=True)
    ready()
    begin = time.time()
    if not config.retrain and (places.weights(config) / name / "run.json").is_file():
        why = "is of other settings than these, or damaged: it is made anew"
        print(f"weights/{config.profile}/{name} {why}", file=sys.stderr)
    kind, item = split(name)
    extra = kind.build(config, item, place) or {}
    (place / "checkpoint.pt").unlink(missing_ok=True)
    settings = {"product": name, "key": key(config, name), "parameters": parameters(config, name)}
    runs.record(place, begin, **settings, inputs=inputs(config, name), **extra)
    return place


def _forget(place: Path) -> None:
    """Empty the folder of a damaged product, but for arrays, which are checked by block anyway."""
    if (place / arrays.BLOCKS).exists():
        (place / "run.json").unlink()
    else:
        shutil.rmtree(place)
