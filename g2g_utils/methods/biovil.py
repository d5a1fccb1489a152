"""BioViL (Boecking et al., ECCV 2022): cosine map of a contrastive image-text model.

`published` loads BioViL's image branch (ResNet-50 and projector, one checkpoint file) beside
CXR-BERT; `load` the miniature, whose image branch was pre-trained together with the domain text
encoder, on the same pairs. Both ground as a `TwoTower`.

Protocol of the published one (Boecking et al., 2022, and their toolbox): shorter side to 512,
grey values stretched to [0, 1], centre crop 480, no further normalisation; 15 × 15 patches;
cosine with the projected start token; Gaussian of 1.5 patches on that grid; nearest neighbour back
to the image. Clamping: the map keeps negative cosines, as CNR needs them; for IoU at the thresholds
0.1 … 0.5 cosines are clamped at 0 and not stretched. What the crop left out is NaN there and takes
the map's minimum here, so that it is never chosen.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.utils import cached_file

from g2g_utils import models
from g2g_utils.data.geometry import crop_resize
from g2g_utils.methods.registry import BIOVIL_IMAGE, CXR_BERT, KINDS, BioViLRow, File, Parts
from g2g_utils.methods.two_tower import TwoTower
from g2g_utils.models import checkpoints, registry
from g2g_utils.models.image_text import Heads, ImageBranch, load_image_text
from g2g_utils.models.resnet import ResNet50
from g2g_utils.text import select_tokens, stack, tokenize

RESIZE, CROP, SIGMA, JOINT = 512, 480, 1.5, 128
HEAD = "cls_projection_head."
UNUSED = ("encoder.encoder.fc.", "classifier.")  # what a checkpoint may hold beside


@dataclass(frozen=True, eq=False)
class Joint:
    """The miniature: image branch, projections and the text encoder they were trained with."""

    branch: ImageBranch
    heads: Heads
    tokenizer: Any
    text_encoder: Any
    max_length: int

    def patches(self, image: Tensor) -> Tensor:
        """Patch features [d, h, w] of an image [1 or 3, S, S] in [0, 1], averaged to grey."""
        features, _ = self.branch(image.float().mean(0, keepdim=True)[None])
        return cast(Tensor, features[0])

    def words(self, phrase: str) -> Tensor:
        """Projected states [n, d] of a phrase's content words."""
        tokens = tokenize(self.tokenizer, phrase, self.max_length)
        states = models.text_states(self.text_encoder, *stack([tokens]))
        return cast(Tensor, self.heads.word(states)[0, select_tokens(tokens)])


def load(folder: Path, max_length: int) -> Joint:
    """The miniature of an encoder folder that `pretrain.pretrain_encoder` made."""
    tokenizer, encoder = models.load_text_encoder(folder)
    branch, heads = load_image_text(folder)
    return Joint(branch, heads, tokenizer, encoder, max_length)


def miniature(joint: Joint, name: str, image_size: int) -> TwoTower:
    """BioViL in small. Smoothed as the published one: without it the map is worse (the log)."""
    return TwoTower(name, image_size, joint.patches, joint.words, SIGMA)


# ---------------------------------------------------------------- the published one


class ImageModel(nn.Module):
    """ResNet-50 and projector: [b, 3, 480, 480] -> patch features [b, 128, 15, 15]."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.ModuleDict({"encoder": ResNet50()})
        channels: int = self.encoder["encoder"].channels  # type: ignore[assignment]
        layers = nn.Sequential(
            nn.Conv2d(channels, JOINT, 1, bias=False),
            nn.BatchNorm2d(JOINT),
            nn.ReLU(),
            nn.Conv2d(JOINT, JOINT, 1),
        )
        self.projector = nn.ModuleDict({"model": layers})

    def forward(self, images: Tensor) -> Tensor:
        """Projected patch features."""
        return cast(Tensor, self.projector["model"](self.encoder["encoder"](images)))


class TextHead(nn.Module):
    """CXR-BERT's projection of the start token: [b, d] -> [b, 128]."""

    def __init__(self, width: int, joint: int = JOINT) -> None:
        super().__init__()
        self.dense_to_hidden = nn.Linear(width, joint)
        self.LayerNorm = nn.LayerNorm(joint, eps=1e-12)
        self.dense_to_output = nn.Linear(joint, joint)

    def forward(self, states: Tensor) -> Tensor:
        """Vector in the joint space, not normalised."""
        hidden = self.LayerNorm(F.gelu(self.dense_to_hidden(states)))
        return cast(Tensor, self.dense_to_output(hidden))


@dataclass(frozen=True, eq=False)
class Published:
    """BioViL as published: image model, CXR-BERT and its projection."""

    image_model: ImageModel
    head: TextHead
    tokenizer: Any
    text_encoder: Any
    max_length: int

    def patches(self, image: Tensor) -> Tensor:
        """Patch features [128, 15, 15] of an image [1 or 3, S, S] in [0, 1]."""
        return cast(Tensor, self.image_model(prepare(image.float().mean(0)))[0])

    def words(self, phrase: str) -> Tensor:
        """The projected start token [1, 128] of a phrase."""
        words = tokenize(self.tokenizer, phrase, self.max_length)
        states = models.text_states(self.text_encoder, *stack([words]))
        return cast(Tensor, self.head(states[:, 0]))

    def grounder(self, name: str) -> TwoTower:
        """The method: cosines [32, 32] over the image's square frame, in steps of 16 pixels."""
        return TwoTower(name, RESIZE, self.patches, self.words, SIGMA, framed, thresholds=True)


def prepare(image: NDArray[np.float32] | Tensor) -> Tensor:
    """An image in [0, 1] as the image model wants it: grey, [1, 3, 480, 480], stretched.

    image: [S, S], or [1 or 3, S, S], averaged to grey.
    """
    given = np.asarray(image, np.float32)
    pixels = crop_resize(given.mean(0) if given.ndim == 3 else given, RESIZE)
    low, high = float(pixels.min()), float(pixels.max())
    pixels = (pixels - low) / max(high - low, 1e-6)
    edge = (RESIZE - CROP) // 2
    inner = torch.from_numpy(pixels[edge : edge + CROP, edge : edge + CROP].copy())
    return inner.expand(1, 3, CROP, CROP)


def framed(cosines: Tensor) -> Tensor:
    """A map of the crop [n, n] in the frame of the whole image; the rim takes its minimum.

    For 15 × 15: each patch is 2 × 2 cells of 16 pixels, the rim one cell, 32 × 32 in all.
    """
    cell = (RESIZE - CROP) // 2
    inner = cosines[None, None].repeat_interleave(CROP // cell // len(cosines), 2)
    inner = inner.repeat_interleave(CROP // cell // len(cosines), 3)[0, 0]
    return F.pad(inner, (1, 1, 1, 1), value=float(cosines.min()))


def published(
    checkpoint: Path, text_encoder: str, revision: str | None, max_length: int
) -> Published:
    """BioViL of its image checkpoint and a CXR-BERT folder or hub id.

    Raises `MissingWeights` where a file is absent or damaged or a weight missing or unexpected.
    """
    fetch = File(checkpoint, CXR_BERT, *BIOVIL_IMAGE).command
    if not checkpoint.is_file():
        raise models.MissingWeights(f"no BioViL image model at {checkpoint}: `{fetch}`")
    image_model = ImageModel()
    _fill(image_model, _read(checkpoint, fetch), checkpoint)
    tokenizer, encoder = models.load_text_encoder(text_encoder, revision)
    state = _raw_weights(*registry.resolve(text_encoder, revision))
    part = {name.removeprefix(HEAD): v for name, v in state.items() if name.startswith(HEAD)}
    head = TextHead(encoder.config.hidden_size)
    _fill(head, part, Path(text_encoder))
    return Published(image_model, head, tokenizer, encoder, max_length)


def _fill(module: nn.Module, state: dict[str, Tensor], source: Path) -> None:
    """Load weights; a missing or unexpected one is an error that names it."""
    wanted = {name: value for name, value in state.items() if not name.startswith(UNUSED)}
    try:
        module.load_state_dict(wanted)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise models.MissingWeights(f"{source} does not fit BioViL: {reason}") from error
    module.eval().requires_grad_(False)


def _raw_weights(source: str, revision: str | None) -> dict[str, Tensor]:
    """All weights of a checkpoint, heads included."""
    again = registry.command(source, revision)
    for name in ("model.safetensors", "pytorch_model.bin"):
        path = cached_file(
            source, name, revision=revision, _raise_exceptions_for_missing_entries=False
        )
        if path:
            return _read(Path(path), again)
    return {}


def _read(file: Path, command: str) -> dict[str, Tensor]:
    """Weights of a file by name; a damaged file, or one of another content, is an error."""
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        state = torch.load(file, map_location="cpu", weights_only=True)
    except checkpoints.UNREADABLE as error:
        raise models.MissingWeights(
            f"{file} is damaged or no file of weights: fetch it again, `{command} --force-download`"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise models.MissingWeights(
            f"{file} holds no weights by name: fetch it again, `{command} --force-download`"
        )
    return state


# ---------------------------------------------------------------- on the bench


def build(parts: Parts, name: str, row: BioViLRow, seed: int | None) -> TwoTower | None:
    """The miniature, the published one, or None with a line where its checkpoint is absent."""
    config, place = parts.config, row.checkpoint
    encoder, length = config.encoders[row.encoder], config.text.max_length
    if not encoder.pretrained:
        joint = load(parts.product(f"encoders/{row.encoder}"), length)
        return miniature(joint, name, config.image_size)
    if place is not None and place.is_file():
        return published(place, encoder.pretrained, encoder.revision, length).grounder(name)
    fix = "`; `".join(file.command for file in KINDS["biovil"].files(row)) or "set `image`"
    print(f"no {name}: {row.image or 'its image checkpoint'} is not there: `{fix}`")
    return None
