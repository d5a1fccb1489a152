"""The spaCy pipeline of content words: the word list, or the pipeline that a profile names.

The pipeline decides every lexical map, so evaluations are keyed by its name. It depends on the
profile and the environment variable G2G_SPACY_MODEL, never on what happens to be installed:
`grounding.spacy_model` is null for the word list, "scispacy" for scispaCy's model, or a package or
folder.
"""

from __future__ import annotations

import os
import warnings
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

SCISPACY = "scispacy"  # the first of its models that is installed
SCISPACY_MODELS = ("en_core_sci_sm", "en_core_sci_md", "en_core_sci_lg", "en_core_sci_scibert")
SCISPACY_FILE = (
    "https://s3-us-west-2.amazonaws.com/ai2-s2-scispacy/releases/v0.5.4/en_core_sci_sm-0.5.4.tar.gz"
)
MODEL_VARIABLE = "G2G_SPACY_MODEL"
WORD_LIST = "word list 2"  # the number changes with `text.is_content`
NOTE = "content words are chosen by a word list, not by part of speech"


def asked_for(named: Any = None) -> Any:
    """The environment's pipeline, else the one named; None for the word list."""
    return os.environ.get(MODEL_VARIABLE) or named


def installed() -> str | None:
    """The first of scispaCy's models that is installed, without loading it."""
    for package in SCISPACY_MODELS:
        try:
            metadata.version(package)
            return package
        except metadata.PackageNotFoundError:
            continue
    return None


def name(named: str | None = None) -> str:
    """Name and version of the pipeline that `load(named)` would load, without loading it."""
    asked = asked_for(named)
    if asked == SCISPACY:
        asked = installed()
        return f"{asked} {metadata.version(asked)}" if asked else WORD_LIST
    if not asked:
        return WORD_LIST
    settings = Path(asked) / "meta.json"
    return f"{asked} {settings.read_text()}" if settings.is_file() else str(asked)


def load(named: Any = None) -> Any:
    """Load a pipeline, by package or folder.

    The environment's goes before a named one. The default is the word list: a blank pipeline with
    `meta["g2g_fallback"]`. "scispacy" without such a model warns and gives the word list too.

    Raises:
        OSError: the named pipeline is not installed.
    """
    if named is not None and not isinstance(named, str | os.PathLike):
        return named
    asked = asked_for(named)
    return loaded(os.fspath(asked) if asked else None)


@lru_cache(maxsize=4)
def loaded(asked: str | None) -> Any:
    """The named pipeline or the word list; loaded once."""
    import spacy

    if asked == SCISPACY and (asked := installed()) is None:
        warnings.warn(
            f"no scispaCy model installed: {NOTE}. Install one with `pip install --no-deps "
            f"{SCISPACY_FILE}` or point {MODEL_VARIABLE} to a pipeline.",
            stacklevel=5,
        )
    if asked:
        try:
            return spacy.load(asked)
        except OSError as error:
            raise OSError(f"no spaCy pipeline at {asked!r} ({MODEL_VARIABLE}): {error}") from error
    nlp = spacy.blank("en")
    nlp.meta["g2g_fallback"] = True
    return nlp
