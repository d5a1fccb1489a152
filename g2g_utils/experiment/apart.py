"""Data-leak policy: who is trained on is not evaluated, and chosen on is not tested."""

from __future__ import annotations

import warnings

from g2g_utils.config import Config, ConfigError
from g2g_utils.experiment import plan
from g2g_utils.experiment.parts import Texts


def check_training(config: Config, texts: Texts) -> None:
    """Refuse to train on images or patients of validation or test pairs of the same collection."""
    from g2g_utils.data import sources

    ids, subjects = set(texts.image_ids), set(texts.subject_ids)
    if not ids:
        return  # phantoms: those of different splits are drawn apart
    for split in ("validation", "test"):
        held = sources.held_out(config, split)
        source, root = (held or config.data).source, (held or config.data).root
        shared = {source, config.data.source} == {"ms_cxr", "mimic_cxr"}
        if not shared and (source, root) != (config.data.source, config.data.root):
            continue  # other people: equal names mean nothing
        found = sources.examples(config, split)
        both = [e.image_id for e in found if e.image_id in ids or e.subject_id in subjects]
        if both:
            raise ConfigError(
                f"{len(both)} {split} pairs are of patients that are trained on, such as image "
                f"{both[0]}: delete {plan.folder(config, 'pairs')} and look at "
                f"`python -m g2g_utils.data.check {config.profile}`"
            )


def warn_of_shared(config: Config) -> None:
    """Warn if validation and test are of one collection and share patients."""
    from g2g_utils.data import sources

    one, other = (sources.held_out(config, split) for split in ("validation", "test"))
    if not one or not other or one.source != other.source:
        return  # drawn apart, or of other people: equal names mean nothing
    people = {e.subject_id for e in sources.examples(config, "validation")}
    found = sorted(people & {e.subject_id for e in sources.examples(config, "test")})
    if found:
        warnings.warn(
            f"validation and test share {len(found)} patients, such as {found[0]}: what is chosen "
            "on validation looks better on test than it is",
            stacklevel=2,
        )
