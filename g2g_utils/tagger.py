"""The spaCy pipeline of content words: the configured one, else scispaCy's, else stop words.

The pipeline decides every lexical map, so evaluations are keyed by its name.
"""

from __future__ import annotations

import os
import warnings
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

SCISPACY_MODELS = ("en_core_sci_sm", "en_core_sci_md", "en_core_sci_lg", "en_core_sci_scibert")
MODEL_VARIABLE = "G2G_SPACY_MODEL"
STOP_WORDS = "stop words"
NOTE = "no scispaCy model installed: content words are chosen by stop words, not by part of speech"


def name() -> str:
    """Name and version of the pipeline that `load()` would load, without loading it."""
    if asked := os.environ.get(MODEL_VARIABLE):
        settings = Path(asked) / "meta.json"
        return f"{asked} {settings.read_text()}" if settings.is_file() else asked
    for package in SCISPACY_MODELS:
        try:
            return f"{package} {metadata.version(package)}"
        except metadata.PackageNotFoundError:
            continue
    return STOP_WORDS


def load(asked: Any = None) -> Any:
    """Load a pipeline, by package or folder.

    The default is the environment's, else scispaCy's. If none is installed, returns a blank one
    with `meta["g2g_fallback"]` and warns.

    Raises:
        OSError: the named pipeline is not installed.
    """
    if asked is not None and not isinstance(asked, str | os.PathLike):
        return asked
    asked = asked or os.environ.get(MODEL_VARIABLE)
    return loaded(os.fspath(asked) if asked else None)


@lru_cache(maxsize=4)
def loaded(asked: str | None) -> Any:
    """The named pipeline, an installed one or the word list; loaded once."""
    import spacy

    if asked:
        try:
            return spacy.load(asked)
        except OSError as error:
            raise OSError(f"no spaCy pipeline at {asked!r} ({MODEL_VARIABLE}): {error}") from error
    for package in SCISPACY_MODELS:
        if spacy.util.is_package(package):
            return spacy.load(package)
    warnings.warn(
        f"{NOTE}. Install one with `pip install --no-deps https://s3-us-west-2.amazonaws.com/"
        "ai2-s2-scispacy/releases/v0.5.4/en_core_sci_sm-0.5.4.tar.gz` or point "
        f"{MODEL_VARIABLE} to a pipeline.",
        stacklevel=5,
    )
    nlp = spacy.blank("en")
    nlp.meta["g2g_fallback"] = True
    return nlp
