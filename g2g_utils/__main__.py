"""Command line: `python -m g2g_utils make NAME` and `python -m g2g_utils ground IMAGE PHRASE`."""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from g2g_utils import config as configuration
from g2g_utils import runs
from g2g_utils.runs import places


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; errors a user can mend are one line on stderr and exit status 2."""
    options = _parser().parse_args(arguments)
    config = None
    try:
        config = configuration.load(options.profile, **_overrides(options.set))
        return int(options.run(config, options))
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        place = places.build(config) if config else Path()
        print(f"error: {runs.disk_is_full(error, place) or error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m g2g_utils", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    common = _common("miniature")
    make = commands.add_parser("make", parents=[common], help="make a product (see `plan`)")
    make.add_argument("name")
    make.set_defaults(run=_make)
    plan = commands.add_parser("plan", parents=[common], help="list products and their state")
    plan.set_defaults(run=_plan)
    costs = commands.add_parser(
        "costs", parents=[common], help="costs, and what is missing on disk"
    )
    costs.add_argument("--step-seconds", type=float, help="measured seconds of a training pass")
    costs.set_defaults(run=_costs)
    _add_ground(commands)
    _add_prepare(commands)
    _add_convert(commands)
    return parser


def _add_ground(commands: Any) -> None:
    parents, text = [_common("radiographs")], "find a phrase in an image"
    ground = commands.add_parser("ground", parents=parents, help=text)
    text = "PNG, JPEG or DICOM; or a CSV with the columns image and phrase, for many"
    ground.add_argument("image", type=Path, help=text)
    ground.add_argument("phrase", nargs="?", help="what to look for; not with a CSV")
    ground.add_argument("--arm", help="which fine-tuned model (default: the first)")
    text = "the paper's attention (default), the phrase's information, both multiplied, or a peer's"
    choices = ("attention", "information", "both", "zero-shot-ldm")
    ground.add_argument("--method", choices=choices, default="attention", help=text)
    ground.add_argument("--seed", type=int, default=0, help="seed of the sampling noise")
    ground.add_argument("--out", type=Path, help="folder (default: build/<profile>/grounded)")
    text = "with a CSV: masks are where the heat is above this, not the method's own"
    ground.add_argument("--threshold", type=float, help=text)
    ground.add_argument("--no-overlays", action="store_true", help="with a CSV: draw no pictures")
    text = "with a CSV: also a DICOM segmentation of every DICOM film (needs highdicom)"
    ground.add_argument("--dicom", action="store_true", help=text)
    ground.set_defaults(run=_ground)


def _common(profile: str) -> argparse.ArgumentParser:
    """Options of every command on a profile, which is `profile` by default."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--profile", default=profile, help=f"default: {profile}")
    text = "override a configuration key, e.g. grounding.timesteps=20"
    common.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=text)
    return common


def _add_convert(commands: Any) -> None:
    convert = commands.add_parser("convert", help="weights of another package as folders")
    convert.add_argument("what", choices=["monai"])
    convert.add_argument("folder", type=Path, help="has diffusion_model.pth and autoencoder.pth")
    convert.add_argument("out", type=Path, help="the new folder")
    text = "heads of every attention, which the weights do not tell (published: 1)"
    convert.add_argument("--heads", type=int, default=1, help=text)
    text = "groups of every norm, which the weights do not tell (published: 32)"
    convert.add_argument("--groups", type=int, default=32, help=text)
    convert.set_defaults(run=_convert, profile="miniature", set=[])


def _add_prepare(commands: Any) -> None:
    text = "make a pack of small films from your downloads"
    prepare = commands.add_parser("prepare", help=text)
    prepare.add_argument("what", choices=["radiographs"])
    prepare.add_argument("--nih", type=Path, required=True, help="folder of ChestX-ray14")
    prepare.add_argument("--rsna", type=Path, help="folder of the RSNA challenge's labels")
    prepare.add_argument("--chestxdet", type=Path, help="folder of ChestX-Det's JSON files")
    text = "as shipped; patients with a box and as many normal films (default); or all"
    prepare.add_argument("--films", choices=["same", "boxed", "all"], default="boxed", help=text)
    prepare.add_argument("--size", type=int, default=128, help="side in pixels")
    text = "folder of the pack (default: data/radiographs-own)"
    prepare.add_argument(
        "--out", type=Path, default=places.ROOT / "data/radiographs-own", help=text
    )
    prepare.set_defaults(run=_prepare, profile="miniature", set=[])


def _overrides(items: list[str]) -> dict[str, Any]:
    """KEY=VALUE texts as a dictionary, values read as YAML."""
    pairs = [item.partition("=") for item in items]
    for key, equals, _ in pairs:
        if not equals:
            raise configuration.ConfigError(f"--set {key!r}: write KEY=VALUE")
    return {key: configuration.value(f"--set {key}", text) for key, _, text in pairs}


def _prepare(config: configuration.Config, options: argparse.Namespace) -> int:
    from g2g_utils.data.prepare import prepare

    pack = prepare(
        options.nih, options.out,
        rsna_folder=options.rsna, chestxdet=options.chestxdet,
        films=options.films, size=options.size,
    )  # fmt: skip
    print(f"{pack}: now `data.source: radiographs` with `data.root: {pack}` reads it")
    return 0


def _convert(config: configuration.Config, options: argparse.Namespace) -> int:
    from g2g_utils.models import monai

    out = monai.convert(options.folder, options.out, heads=options.heads, groups=options.groups)
    print(f"{out}: an arm's `pipeline` loads it (docs/methods.md)")
    return 0


def _make(config: configuration.Config, options: argparse.Namespace) -> int:
    from g2g_utils.experiment import products

    print(products.ensure(config, options.name))
    return 0


def _plan(config: configuration.Config, options: argparse.Namespace) -> int:
    from g2g_utils.experiment import products

    for name, needs in products.plan(config).items():
        found = products.find(config, name)
        print(f"{name:32} {found or 'to be made'!s:50} needs: {', '.join(needs) or '-'}")
    return 0


def _costs(config: configuration.Config, options: argparse.Namespace) -> int:
    from g2g_utils.experiment import costs

    print(costs.sheet(config, options.step_seconds))
    return 0


def _ground(config: configuration.Config, options: argparse.Namespace) -> int:
    many = options.image.suffix.lower() == ".csv"
    if many and options.phrase is not None:
        raise ValueError("a CSV has its phrases in the column `phrase`: give no phrase")
    if not many and options.phrase is None:
        raise ValueError('ground needs an image and a phrase, or a CSV: ground IMAGE "PHRASE"')
    if not many and (options.threshold is not None or options.no_overlays or options.dicom):
        raise ValueError("--threshold, --no-overlays and --dicom go with a CSV")
    return _ground_table(config, options) if many else _ground_file(config, options)


def _ground_file(config: configuration.Config, options: argparse.Namespace) -> int:
    from g2g_utils.experiment import ground_file

    gc.disable()  # what imports make stays to the end: looking through it again costs a second
    try:
        written = ground_file.ground_file(
            config, options.image, options.phrase,
            arm=options.arm, seed=options.seed, out=options.out,
            method=options.method,
        )  # fmt: skip
    finally:
        gc.enable()
    print(*written, sep="\n")
    return 0


def _ground_table(config: configuration.Config, options: argparse.Namespace) -> int:
    """Ground a table; status 1 if some of its rows could not be."""
    from g2g_utils.experiment import ground_table

    written, bad = ground_table.ground_table(
        config, options.image,
        arm=options.arm, seed=options.seed, out=options.out,
        method=options.method,
        wanted=ground_table.Wanted(options.threshold, not options.no_overlays, options.dicom),
    )  # fmt: skip
    print(*written, sep="\n")
    return 1 if bad else 0


if __name__ == "__main__":
    status = main()
    gc.freeze()  # the process ends: no last look through all that is left
    sys.exit(status)
