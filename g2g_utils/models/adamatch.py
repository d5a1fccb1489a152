"""AdaMatch (Chen et al., ACL 2024): a pyramid transformer whose patches move, beside a text side.

AdaPatch (section 3.1, equations 1 to 4; first in DPT, Chen et al. 2021) replaces the patch
embedding of every stage but the first. Each patch predicts where its box lies and how large it is,
and takes 3 x 3 samples of the feature map inside it. The authors' code differs from the text at
places; here the text is built. Two deviations are settings: half sides have a floor under which
they keep their gradient (published: none, and boxes that shrink to points stay points), and samples
at the image's rim are not faded by zeros.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel, PvtConfig, PvtModel

from g2g_utils import runs
from g2g_utils.config import FINDINGS

POINTS = 3  # samples along each side of a box
START = 0.25  # half side at the start, in pitches: the corner samples are the fixed patch's pixels
TEMPERATURE, COLDEST, WARMEST = 0.07, 0.01, 0.5  # of the similarities: at the start, limits
WEIGHTS, SHAPE = "adamatch.safetensors", "shape.json"


class Patches(NamedTuple):
    """Patches of images: unit vectors, and the boxes they were sampled from."""

    vectors: Tensor  # b n d
    boxes: Tensor  # b n 4: x1 y1 x2 y2 of the outer samples' centres, in shares of the side


class AdaPatch(nn.Module):
    """A patch embedding that samples a box per patch (equations 1 to 4).

    At the start it equals the strided convolution that it was made from.
    """

    def __init__(self, embedding: Any, *, moves: bool = True, smallest: float = 0.0) -> None:
        """Take over a 2 x 2 patch embedding of `PvtModel`.

        Args:
            embedding: its `projection`, `layer_norm` and `position_embeddings` are taken over; a
                start token's position is left out.
            moves: False keeps every box at its start, with the same parameters.
            smallest: floor of the half sides, in pitches. Below it the gradient passes unchanged.
        """
        super().__init__()
        kernel, bias = embedding.projection.weight.detach(), embedding.projection.bias.detach()
        if kernel.shape[2:] != (2, 2):
            raise ValueError(f"AdaPatch replaces 2x2 patches, not {tuple(kernel.shape[2:])}")
        width, channels = kernel.shape[:2]
        self.moves, self.smallest = moves, smallest
        self.look = nn.Conv2d(channels, width, 2, 2)
        self.look_norm = nn.LayerNorm(width)
        self.predict = nn.Linear(width, 4, bias=False)
        self.size_bias = nn.Parameter(torch.full((2,), math.atanh(START)))
        self.mix = nn.Linear(POINTS**2 * channels, width)
        self.norm = nn.LayerNorm(width, eps=embedding.layer_norm.eps)
        self.norm.load_state_dict(embedding.layer_norm.state_dict())
        count = embedding.position_embeddings.shape[1] - (embedding.cls_token is not None)
        self.positions = nn.Parameter(embedding.position_embeddings.detach()[:, -count:].clone())
        nn.init.zeros_(self.predict.weight)
        corners = torch.zeros(width, channels, POINTS, POINTS)
        corners[:, :, :: POINTS - 1, :: POINTS - 1] = kernel
        with torch.no_grad():
            self.mix.weight.copy_(corners.permute(0, 2, 3, 1).flatten(1))  # by point, then channel
            self.mix.bias.copy_(bias)

    def forward(self, features: Tensor) -> tuple[Tensor, int, int]:
        """Tokens [b, n, d] with positions, and their grid: what `PvtModel` asks of an embedding."""
        tokens, _ = self.boxed(features)
        return tokens, features.shape[2] // 2, features.shape[3] // 2

    def boxed(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens [b, n, d] of a feature map [b, c, h, w], and their boxes [b, n, 4]."""
        boxes = self.boxes(features)
        with torch.autocast(features.device.type, enabled=False):
            samples = sample(features.float(), boxes.float())  # b n 9c
        tokens: Tensor = self.norm(self.mix(samples)) + self.positions
        return tokens, boxes

    def boxes(self, features: Tensor) -> Tensor:
        """Corners x1 y1 x2 y2 [b, n, 4] in [0, 1]: equations 1 to 4."""
        rows, columns = features.shape[2] // 2, features.shape[3] // 2
        pitch = torch.tensor([1 / columns, 1 / rows], device=features.device)
        centre = anchors(rows, columns, features.device)
        if not self.moves:
            half = (START * pitch).expand_as(centre)
            return torch.cat([centre - half, centre + half], -1).expand(len(features), -1, -1)
        with torch.autocast(features.device.type, enabled=False):
            seen = self.look(features.float()).flatten(2).transpose(1, 2)  # b n d
            shift, size = self.predict(F.gelu(self.look_norm(seen))).chunk(2, -1)
            centre = centre + shift.tanh() * pitch
            half = self.half_sides(size) * pitch
        return torch.cat([centre - half, centre + half], -1).clamp(0, 1)

    def half_sides(self, size: Tensor) -> Tensor:
        """Half sides in pitches (equation 2); below the floor the gradient passes unchanged."""
        free = (size + self.size_bias).tanh()
        if not self.smallest:
            return free.relu()
        return free + (free.clamp(min=self.smallest) - free).detach()


def anchors(rows: int, columns: int, device: torch.device | None = None) -> Tensor:
    """Centres x y [rows x columns, 2] of the cells of a grid, in shares of the side."""
    y, x = torch.meshgrid(
        (torch.arange(rows, device=device) + 0.5) / rows,
        (torch.arange(columns, device=device) + 0.5) / columns,
        indexing="ij",
    )
    return torch.stack([x, y], -1).flatten(0, 1)


def sample(features: Tensor, boxes: Tensor) -> Tensor:
    """Bilinear samples [b, n, 9 c] of features [b, c, h, w]: 3 x 3 points, corner to corner."""
    steps = torch.linspace(0, 1, POINTS, device=features.device)
    low, high = boxes[..., None, :2], boxes[..., None, 2:]
    x, y = (low + (high - low) * steps[:, None]).unbind(-1)  # b n 3 each
    points = torch.stack(
        [x[..., None, :].expand(-1, -1, POINTS, -1), y[..., None].expand(-1, -1, -1, POINTS)], -1
    )  # b n row column xy
    grid = points.flatten(2, 3) * 2 - 1
    taken = F.grid_sample(features, grid, padding_mode="border", align_corners=False)  # b c n 9
    return taken.permute(0, 2, 3, 1).flatten(2)


def dead(boxes: Tensor, side: int, smallest: float = 0.0) -> Tensor:
    """True [b, n] for boxes of which a side is at its floor: they look at a line or a point.

    Args:
        side: cells along the grid's side.
        smallest: floor of the half sides, in pitches.
    """
    sides = (boxes[..., 2:] - boxes[..., :2]) * side
    return (sides <= 2 * smallest + 1e-4).any(-1)


# ---------------------------------------------------------------- similarity (equations 5 and 6)


class Similarity(NamedTuple):
    """Similarity of every image with every text."""

    by_patch: Tensor  # images texts: mean over patches of the best word's cosine (equation 5)
    by_word: Tensor  # images texts: mean over words of the best patch's cosine (equation 6)


def similarity(patches: Tensor, words: Tensor, counts: list[int]) -> Similarity:
    """Late interaction of patches [b, n, d] with packed words [k, d], all unit vectors.

    counts: words of each text; they sum to k. Padding never enters.
    """
    cosines = patches.flatten(0, 1).float() @ words.float().T  # bn k
    best_word = torch.stack(
        [part.max(1).values for part in torch.split(cosines, counts, 1)], -1
    )  # bn texts
    best_patch = cosines.view(len(patches), -1, len(words)).max(1).values  # b k
    by_patch = best_word.view(len(patches), -1, len(counts)).mean(1)
    by_word = torch.stack([part.mean(1) for part in torch.split(best_patch, counts, 1)], -1)
    return Similarity(by_patch, by_word)


def contrast(found: Similarity, temperature: Tensor, texts: list[str]) -> Tensor:
    """Both contrasts (equations 7 to 9): reports for an image, and images for a report.

    Pairs of a batch with equal texts are not held against each other.
    """
    same = torch.tensor([[a == b for b in texts] for a in texts], device=found.by_word.device)
    wrong = same & ~torch.eye(len(texts), dtype=torch.bool, device=same.device)
    images = (found.by_patch / temperature).masked_fill(wrong, -torch.inf)
    reports = (found.by_word / temperature).masked_fill(wrong, -torch.inf).T  # texts images
    target = torch.arange(len(texts), device=same.device)
    return (F.cross_entropy(images, target) + F.cross_entropy(reports, target)) / 2


def word_vectors(states: Tensor, owners: Tensor) -> tuple[Tensor, list[int]]:
    """Sum of a word's pieces [k, d], packed by text, and the words of each text.

    Args:
        states: [b, n, d] of the text encoder.
        owners: [b, n], the index of each token's word in its text, -1 for tokens of none.
    """
    counts = owners.amax(1) + 1
    first = counts.cumsum(0) - counts
    real = owners >= 0
    rows = (owners + first[:, None])[real]
    total = states.new_zeros(int(counts.sum()), states.shape[-1])
    return total.index_add(0, rows, states[real]), cast(list[int], counts.tolist())


# ---------------------------------------------------------------- the network


@dataclass(frozen=True)
class Shape:
    """Sizes of a network; those of its stages as `PvtConfig` names them, finest first."""

    side: int
    text_width: int
    widths: tuple[int, ...] = (48, 64)
    depths: tuple[int, ...] = (1, 2)
    heads: tuple[int, ...] = (1, 2)
    reductions: tuple[int, ...] = (4, 1)
    patch: int = 4  # pixels of the first stage
    joint: int = 64
    adaptive: bool = True
    smallest: float = 0.0625
    mlp_ratios: tuple[int, ...] = ()  # none: 4 in every stage
    channels: int = 1  # of its images; grey ones are repeated

    @property
    def grid(self) -> int:
        """Patches along the side of the last stage, which is matched with words."""
        return self.side // self.patch // (1 << (len(self.widths) - 1))


def pvt_config(shape: Shape) -> PvtConfig:
    """Configuration of the image side."""
    stages = len(shape.widths)
    return PvtConfig(
        image_size=shape.side,
        num_channels=shape.channels,
        num_encoder_blocks=stages,
        depths=list(shape.depths),
        hidden_sizes=list(shape.widths),
        num_attention_heads=list(shape.heads),
        sequence_reduction_ratios=list(shape.reductions),
        patch_sizes=[shape.patch] + [2] * (stages - 1),
        strides=[shape.patch] + [2] * (stages - 1),
        mlp_ratios=list(shape.mlp_ratios) or [4] * stages,
    )


def first_stages(network: PvtModel, shape: Shape) -> PvtModel:
    """The first stages of a trained network, in place; the last norm is new.

    Raises:
        ValueError: sizes of the network are not those of `shape`.
    """
    wanted, given = pvt_config(shape).to_dict(), network.config.to_dict()
    stages = len(shape.widths)
    for name in (
        "image_size", "num_channels", "depths", "hidden_sizes", "num_attention_heads",
        "sequence_reduction_ratios", "patch_sizes", "strides", "mlp_ratios",
    ):  # fmt: skip
        own = given[name][:stages] if isinstance(given[name], list) else given[name]
        if own != wanted[name]:
            raise ValueError(f"adamatch: the pretrained PVT has {name} {own}, not {wanted[name]}")
    encoder = network.encoder
    encoder.patch_embeddings = encoder.patch_embeddings[:stages]
    encoder.block = encoder.block[:stages]
    encoder.layer_norm = nn.LayerNorm(shape.widths[-1], eps=network.config.layer_norm_eps)
    return network


class AdaMatch(nn.Module):
    """Image encoder with adaptive patches, text encoder, projections and temperature."""

    def __init__(self, shape: Shape, text: PreTrainedModel, start: PvtModel | None = None) -> None:
        """`start`: a trained network whose first stages are taken over; its boxes start equal."""
        super().__init__()
        self.shape = shape
        self.image = PvtModel(pvt_config(shape)) if start is None else first_stages(start, shape)
        for k, embedding in enumerate(self.image.encoder.patch_embeddings):
            if k:
                adaptive = AdaPatch(embedding, moves=shape.adaptive, smallest=shape.smallest)
                self.image.encoder.patch_embeddings[k] = adaptive
        self.text = text
        self.image_head = nn.Linear(shape.widths[-1], shape.joint)
        self.text_head = nn.Linear(shape.text_width, shape.joint)
        self.findings = nn.Linear(shape.widths[-1], len(FINDINGS))
        self.log_temperature = nn.Parameter(torch.tensor(math.log(TEMPERATURE)))

    @property
    def temperature(self) -> Tensor:
        """Temperature of the contrast, within its limits."""
        return self.log_temperature.exp().clamp(COLDEST, WARMEST)

    def features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Last stage's states [b, n, c] of images [b, 1, S, S] in [0, 1], and boxes [b, n, 4].

        Boxes of a stage lie on the map of the stage before, whose own moves they leave out.
        """
        states, boxes = (images * 2 - 1).expand(-1, self.shape.channels, -1, -1), torch.empty(0)
        encoder = self.image.encoder
        for embedding, blocks in zip(encoder.patch_embeddings, encoder.block, strict=True):
            if isinstance(embedding, AdaPatch):
                tokens, boxes = embedding.boxed(states)
            else:
                tokens, *_ = embedding(states)
            side = math.isqrt(tokens.shape[1])
            for block in blocks:
                tokens = block(tokens, side, side)[0]
            states = tokens.transpose(1, 2).reshape(len(tokens), -1, side, side)
        return cast(Tensor, encoder.layer_norm(tokens)), boxes

    def patches(self, images: Tensor) -> Patches:
        """Unit vectors and boxes of the patches of images [b, 1, S, S] in [0, 1]."""
        states, boxes = self.features(images)
        return Patches(F.normalize(self.image_head(states).float(), dim=-1), boxes.float())

    def classify(self, images: Tensor) -> Tensor:
        """Logits [b, 8] of the findings, by which the image side is pre-trained."""
        states, _ = self.features(images)
        return cast(Tensor, self.findings(states.mean(1) + states.amax(1)))

    def words(self, ids: Tensor, mask: Tensor, owners: Tensor) -> tuple[Tensor, list[int]]:
        """Packed unit vectors [k, d] of the words of texts, and each text's number of words."""
        states = self.text(input_ids=ids, attention_mask=mask).last_hidden_state
        vectors, counts = word_vectors(self.text_head(states).float(), owners)
        return F.normalize(vectors, dim=-1), counts

    def groups(self) -> Iterator[tuple[str, list[nn.Parameter]]]:
        """Parameters by role: "text", "boxes" (what predicts them) and "rest"."""
        roles: dict[str, list[nn.Parameter]] = {"text": [], "boxes": [], "rest": []}
        for name, weight in self.named_parameters():
            predicts = any(part in name for part in (".look", ".predict.", ".size_bias"))
            role = "text" if name.startswith("text.") else "boxes" if predicts else "rest"
            roles[role].append(weight)
        yield from roles.items()


# ---------------------------------------------------------------- files


def save(network: AdaMatch, folder: Path) -> None:
    """Write a network: its text encoder in transformers' layout, everything else beside it."""
    network.text.save_pretrained(folder)
    state = {k: v for k, v in network.state_dict().items() if not k.startswith("text.")}
    with runs.atomic(folder / WEIGHTS) as temporary:
        save_file(state, temporary)
    with runs.atomic(folder / SHAPE) as temporary:
        temporary.write_text(json.dumps(asdict(network.shape), indent=1))


def load(folder: Path, text: PreTrainedModel) -> AdaMatch:
    """The network that `save` wrote.

    Args:
        text: its text encoder, loaded from the same folder.
    """
    read: dict[str, Any] = runs.read_json(folder / SHAPE)
    sizes: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in read.items()}
    shape = Shape(**sizes)
    network = AdaMatch(shape, text)
    state = {k: v.float() for k, v in load_file(folder / WEIGHTS).items()}
    missing, strange = network.load_state_dict(state, strict=False)
    if wrong := [*strange, *(name for name in missing if not name.startswith("text."))]:
        raise ValueError(f"{folder / WEIGHTS} does not fit {SHAPE}: {', '.join(wrong[:3])}")
    return network.eval()
