"""Published text encoders of the paper's comparison by name: hub id, pinned revision, files.

A profile may write such a name in place of a hub id or folder (`pretrained: radbert`). Widths and
lengths are never listed here: they are read from each checkpoint's own config.json. The module also
finds the files of a folder or hub id on this machine, and gives the command that fetches them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from g2g_utils.runs import places

WEIGHTS = ("*model.safetensors", "*model.bin", "*model-*-of-*.safetensors", "*model-*-of-*.bin")
UNPINNED = "revision unknown here: pin the commit that you fetch in the profile"

BERT_WORDS = "vocab.txt"  # a tokenizer's words
BYTE_PAIRS = "vocab.json and merges.txt, or tokenizer.json"


@dataclass(frozen=True)
class Published:
    """A text encoder on the Hugging Face hub."""

    hub_id: str
    kind: Literal["bert", "clip"]
    weights: str  # file with the weights
    revision: str | None = None
    note: str = UNPINNED


REGISTRY: dict[str, Published] = {
    "cxr-bert": Published(
        "microsoft/BiomedVLP-CXR-BERT-specialized", "bert", "pytorch_model.bin", "v1.1",
        "tag of the authors' own toolbox; BioViL's text branch",
    ),
    "biovil-t": Published(
        "microsoft/BiomedVLP-BioViL-T", "bert", "model.safetensors", "v1.0",
        "tag of the authors' own toolbox; CXR-BERT as trained in BioViL-T",
    ),
    "clip": Published("openai/clip-vit-large-patch14", "clip", "model.safetensors"),
    "openclip": Published(
        "laion/CLIP-ViT-H-14-laion2B-s32B-b79K", "clip", "model.safetensors", None,
        f"1024 wide, so it is projected for Stable Diffusion 1.5; {UNPINNED}",
    ),
    "radbert": Published("StanfordAIMI/RadBERT", "bert", "pytorch_model.bin"),
    "med-kebert": Published("xmcmic/Med-KEBERT", "bert", "pytorch_model.bin"),
    "cxr-clip": Published(
        "emilyalsentzer/Bio_ClinicalBERT", "bert", "pytorch_model.bin", None,
        "where CXR-CLIP's text branch starts; its trained weights are one file of another layout: "
        f"convert them to a folder and name it instead. {UNPINNED}",
    ),
}  # fmt: skip


def resolve(source: str, revision: str | None = None) -> tuple[str, str | None]:
    """Hub id (or folder) and revision of a registered name; `at_home` of other sources."""
    published = REGISTRY.get(source)
    if published:
        return published.hub_id, revision or published.revision
    return at_home(source), revision


def at_home(source: str | Path) -> str:
    """The full path of a folder that is named from the repository's root; other sources unchanged.

    A profile can so start from weights that are shipped, wherever a job runs.
    """
    shipped = places.ROOT / source
    return str(shipped if shipped.is_dir() and not Path(source).is_dir() else source)


def expected(source: str) -> str:
    """Files that a text encoder's folder or repository must hold."""
    files = {published.hub_id: published.weights for published in REGISTRY.values()}
    weights = files.get(source, "model.safetensors or pytorch_model.bin")
    return f"config.json, {weights}, tokenizer files ({BERT_WORDS}, or {BYTE_PAIRS})"


def find(source: str, file: str, revision: str | None = None) -> Path | None:
    """Path of a file of a folder, or of a hub id in this machine's cache; None if it is absent.

    The folder may also be the subfolder with which the file's path begins.
    """
    folder = Path(at_home(source))
    if folder.is_dir():
        choices = (folder / file, folder / Path(file).name)
        return next((place for place in choices if place.is_file()), None)
    if source.count("/") != 1:
        return None
    from huggingface_hub import try_to_load_from_cache

    try:
        found = try_to_load_from_cache(source, file, revision=revision)
    except ValueError:  # not a hub id
        return None
    return Path(found) if isinstance(found, str) else None


def weights(folder: Path) -> list[Path]:
    """Files with weights that are loaded from a folder: safetensors if there are any, no fp16."""
    files = sorted({path for pattern in WEIGHTS for path in folder.glob(pattern)})
    return [path for path in files if path.suffix == ".safetensors"] or files


def is_folder(source: str) -> bool:
    """True for a place on this machine, False for a hub id."""
    return Path(source).is_absolute() or Path(at_home(source)).exists()


def command(source: str, revision: str | None = None, *options: str) -> str:
    """Command that fetches a hub id; HUB_ID stands for the unknown one of a folder."""
    pinned = ["--revision", revision] if revision else []
    target = ["HUB_ID", "--local-dir", source] if is_folder(source) else [source, *pinned]
    return " ".join(["hf", "download", *target, *options])


def sizes(config: dict[str, Any]) -> tuple[int, int]:
    """Width of the states and largest number of tokens, from the content of a config.json.

    CLIP's lie in its text part. RoBERTa keeps two positions for itself.
    """
    text = config.get("text_config") or config
    spare = 2 if config.get("model_type") == "roberta" else 0
    return text["hidden_size"], text["max_position_embeddings"] - spare
