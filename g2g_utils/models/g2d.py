"""Networks of G2D: an image encoder, attention pooling, projectors and a U-Net decoder.

G2D (Liu et al., NeurIPS 2024, section 3): the pooled image vector is contrasted with the report's;
the pooling's attention is the pseudo mask that the decoder must predict. Parts carry the names of
the authors' checkpoints, so that these load. Own code; where paper and code differ the released
code's sizes are the default (four heads of 128 channels).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from g2g_utils import runs
from g2g_utils.models.checkpoints import UNREADABLE, MissingWeights
from g2g_utils.models.resnet import ResNet50

FILE, SHAPE = "g2d.safetensors", "g2d.json"
Dense = Literal["value", "projected"]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's colours


@dataclass(frozen=True)
class Shape:
    """Sizes from which a network is built."""

    side: int  # pixels a side of its images
    text_width: int  # of the text states that it projects
    encoder: Literal["small", "resnet50"] = "small"
    joint: int = 128  # channels of the joint space
    heads: int = 4
    skips: int | None = None  # of the decoder, deepest first; None: all
    targets: int = 1  # channels of the decoder's output


# ---------------------------------------------------------------- encoders


class Residual(nn.Module):
    """Two 3×3 convolutions around a shortcut."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, out, 3, stride, 1, bias=False),
            nn.BatchNorm2d(out),
            nn.ReLU(),
            nn.Conv2d(out, out, 3, 1, 1, bias=False),
            nn.BatchNorm2d(out),
        )
        self.shortcut = nn.Sequential(
            nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out)
        )

    def forward(self, x: Tensor) -> Tensor:
        """[b, c, h, w] -> [b, out, h / stride, w / stride]."""
        return F.relu(self.body(x) + self.shortcut(x))


class SmallEncoder(nn.Module):
    """Grey images [b, 1, S, S] -> maps of 24, 32, 64 and 96 channels at S/2, S/4, S/8 and S/8."""

    channels, skips, widths, reduction = 96, (32, 24), (32, 16), 8

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 24, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(24)
        self.layer1 = Residual(24, 32, 2)
        self.layer2 = Residual(32, 64, 2)
        self.layer3 = Residual(64, 96, 1)

    def maps(self, images: Tensor) -> list[Tensor]:
        """The deepest map, then the decoder's skips, deepest first."""
        stem = F.relu(self.bn1(self.conv1(images * 2 - 1)))
        first = self.layer1(stem)
        return [self.layer3(self.layer2(first)), first, stem]


class ResNetEncoder(ResNet50):
    """ResNet-50: images [b, 1 or 3, S, S] in [0, 1] -> maps of 64 to 2048 channels, S/2 to S/32."""

    skips, widths, reduction = (1024, 512, 256, 64), (256, 128, 64, 32, 16), 32

    def maps(self, images: Tensor) -> list[Tensor]:
        """The deepest map, then the decoder's skips, deepest first."""
        mean, std = (images.new_tensor(v)[:, None, None] for v in (MEAN, STD))
        x = F.relu(self.bn1(self.conv1((images - mean) / std)))  # grey is repeated
        found = [x]
        x = F.max_pool2d(x, 3, 2, 1)
        for level in range(4):
            x = getattr(self, f"layer{level + 1}")(x)
            found.append(x)
        return found[::-1]


ENCODERS: dict[str, type[SmallEncoder] | type[ResNetEncoder]] = {
    "small": SmallEncoder,
    "resnet50": ResNetEncoder,
}


# ---------------------------------------------------------------- decoder


def _conv(channels: int, out: int) -> nn.Sequential:
    """3×3 convolution, BatchNorm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(channels, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU()
    )


class Block(nn.Module):
    """Doubles the side, concatenates the encoder's map of that size, convolves twice."""

    def __init__(self, channels: int, skip: int, out: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = _conv(channels + skip, out), _conv(out, out)

    def forward(self, x: Tensor, skip: Tensor | None) -> Tensor:
        """[b, c, h, w] -> [b, out, 2 h, 2 w]."""
        x = F.interpolate(x, scale_factor=2, mode="nearest")
        return cast(Tensor, self.conv2(self.conv1(x if skip is None else torch.cat([x, skip], 1))))


class Decoder(nn.Module):
    """U-Net decoder: a block a width, each with a skip as long as there are some."""

    def __init__(self, channels: int, skips: Sequence[int], widths: Sequence[int]) -> None:
        super().__init__()
        self.kept = len(skips)
        padded = [*skips, *[0] * (len(widths) - len(skips))]
        ins = (channels, *widths[:-1])
        self.blocks = nn.ModuleList(map(Block, ins, padded, widths))

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Maps of `levels` -> [b, widths[-1], h, w]."""
        x, skips = levels[0], [*levels[1 : 1 + self.kept]]
        for k, block in enumerate(self.blocks):
            x = block(x, skips[k] if k < len(skips) else None)
        return x


class Unet(nn.Module):
    """Encoder, decoder and a 3×3 head: images -> logits [b, targets, S, S]."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.encoder = ENCODERS[shape.encoder]()
        self.decoder, self.segmentation_head = self.fresh()

    def fresh(self) -> tuple[Decoder, nn.Sequential]:
        """An untrained decoder and head."""
        encoder, shape = self.encoder, self.shape
        decoder = Decoder(encoder.channels, encoder.skips[: shape.skips], encoder.widths)
        return decoder, nn.Sequential(nn.Conv2d(encoder.widths[-1], shape.targets, 3, padding=1))

    def decode(self, levels: Sequence[Tensor]) -> Tensor:
        """Logits [b, targets, S, S] of the encoder's maps."""
        logits = self.segmentation_head(self.decoder(levels))
        size = (self.shape.side, self.shape.side)
        if logits.shape[-2:] == size:
            return cast(Tensor, logits)
        return F.interpolate(logits, size, mode="bilinear", align_corners=False)


# ---------------------------------------------------------------- pooling and projection


class SingleQueryAttention(nn.Module):
    """Multi-head attention whose only query is the first token; torch's parameter names.

    The inner width is heads × ceil(width / heads), so that three heads of 128 channels exist.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.inner = heads, heads * -(-width // heads)
        self.in_proj_weight = nn.Parameter(torch.empty(3 * self.inner, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * self.inner))
        self.out_proj = nn.Linear(self.inner, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens [b, n, d] -> pooled [b, d] and attention [b, heads, n], whose rows sum to 1."""
        query, key, value = self._projected(tokens)
        split = (self.heads, self.inner // self.heads)
        q = torch.unflatten(query[:, 0], -1, split)  # b heads e
        k, v = torch.unflatten(key, -1, split), torch.unflatten(value, -1, split)  # b n heads e
        scores = torch.einsum("bhe,bnhe->bhn", q, k) / split[1] ** 0.5
        attention = scores.softmax(-1)
        pooled = torch.einsum("bhn,bnhe->bhe", attention, v).flatten(1)
        return self.out_proj(pooled), attention

    def values(self, tokens: Tensor) -> Tensor:
        """What pooling would return, had it looked at one token alone: [b, n, d] -> [b, n, d]."""
        return cast(Tensor, self.out_proj(self._projected(tokens)[2]))

    def _projected(self, tokens: Tensor) -> tuple[Tensor, ...]:
        return F.linear(tokens, self.in_proj_weight, self.in_proj_bias).chunk(3, -1)


class AttentionPool(nn.Module):
    """Pools a map [b, d, h, w] by one attention layer; its query is the mean pixel."""

    def __init__(self, cells: int, width: int, heads: int, out: int) -> None:
        super().__init__()
        position = torch.randn(cells + 1, width) / width**0.5
        self.positional_embedding = nn.Parameter(position)
        self.mhsa = SingleQueryAttention(width, heads)
        self.c_proj = nn.Linear(width, out)

    def tokens(self, x: Tensor) -> Tensor:
        """Mean pixel and pixels with their positions, [b, 1 + h w, d]."""
        pixels = x.flatten(2).mT
        return torch.cat([pixels.mean(1, keepdim=True), pixels], 1) + self.positional_embedding

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Pooled vectors [b, out]; attention [b, heads, 1 + h w], first on the mean pixel."""
        pooled, attention = self.mhsa(self.tokens(x))
        return self.c_proj(pooled), attention

    def values(self, x: Tensor) -> Tensor:
        """Every pixel in the space of the pooled vectors, [b, out, h, w] (as MaskCLIP's)."""
        cells = self.c_proj(self.mhsa.values(self.tokens(x)[:, 1:]))
        return torch.unflatten(cells.mT, -1, x.shape[-2:])


def projector(convolution: type[nn.Module], norm: type[nn.Module], *widths: int) -> nn.Sequential:
    """1×1 convolution, BatchNorm without scale and shift, ReLU, 1×1 convolution; no biases."""
    first, middle, last = widths
    return nn.Sequential(
        convolution(first, middle, 1, bias=False),
        norm(middle, affine=False),
        nn.ReLU(),
        convolution(middle, last, 1, bias=False),
    )


class Output(NamedTuple):
    """What a forward gives."""

    image: Tensor  # [b, joint]: pooled vector
    text: Tensor | None  # [b, joint]: projected report
    attention: Tensor  # [b, heads, h, w]: of the mean pixel on the pixels
    logits: Tensor | None  # [b, targets, S, S]: the decoder's


class G2D(nn.Module):
    """Image encoder, decoder, pooling and projectors."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.img_model = Unet(shape)
        encoder, joint = self.img_model.encoder, shape.joint
        self.cells = shape.side // encoder.reduction
        self.proj_v = projector(nn.Conv2d, nn.BatchNorm2d, encoder.channels, joint, joint)
        self.proj_t = projector(nn.Conv1d, nn.BatchNorm1d, shape.text_width, joint, joint)
        self.attnpool = AttentionPool(self.cells**2, joint, shape.heads, joint)

    def forward(self, images: Tensor, states: Tensor | None = None, decode: bool = True) -> Output:
        """Vectors, attention and logits.

        Args:
            images: [b, 1 or 3, S, S] in [0, 1].
            states: text states [b, d] of the reports' first tokens.
            decode: False leaves the decoder out.
        """
        levels = self.img_model.encoder.maps(images)
        pooled, attention = self.attnpool(self.proj_v(levels[0]))
        grid = torch.unflatten(attention[..., 1:], -1, (self.cells, self.cells))
        text = None if states is None else self.project_text(states)
        return Output(pooled, text, grid, self.img_model.decode(levels) if decode else None)

    def project_text(self, states: Tensor) -> Tensor:
        """Reports in the joint space, [b, d] -> [b, joint].

        BatchNorm sees the batch's first tokens alone; the authors' code runs it over all positions,
        padding included.
        """
        return cast(Tensor, self.proj_t(states[..., None])[..., 0])

    def dense(self, images: Tensor, features: Dense = "value") -> Tensor:
        """Pixel features [b, joint, h, w].

        "value": in the space of the pooled vectors; "projected": before the pooling, which no loss
        compares with text.
        """
        projected = self.proj_v(self.img_model.encoder.maps(images)[0])
        return projected if features == "projected" else self.attnpool.values(projected)


# ---------------------------------------------------------------- files


def save(network: G2D, folder: Path, half: bool = True) -> None:
    """Write weights (float16 unless `half` is False) and sizes of a network to a folder."""
    state = {k: v.half() if half and v.is_floating_point() else v for k, v in _state(network)}
    with runs.atomic(folder / FILE) as temporary:
        save_file(state, temporary)
    runs.write_json(folder / SHAPE, asdict(network.shape))


def _state(network: G2D) -> list[tuple[str, Tensor]]:
    return [(name, value.detach().contiguous()) for name, value in network.state_dict().items()]


def load(folder: Path) -> G2D:
    """The network that `save` wrote, in evaluation mode.

    Raises:
        MissingWeights: a file is absent or damaged.
    """
    try:
        network = G2D(Shape(**runs.read_json(folder / SHAPE)))
        tensors = load_file(folder / FILE)
        network.load_state_dict(
            {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}
        )
    except (*UNREADABLE, TypeError) as error:
        raise MissingWeights(f"no sound G2D network in {folder}: make it again") from error
    return network.eval().requires_grad_(False)


OF_CODE = ("lm_model.", "pseudo_conv.", "fc.")  # in checkpoints, not part of the network
COUNTER = "num_batches_tracked"  # of BatchNorm: absent in old files, and read by nothing here


def load_published(network: G2D, file: Path) -> list[str]:
    """Load a checkpoint in the authors' naming into a network; returns the parts it filled.

    Three layouts: the whole model (`model_state_dict`), its U-Net, or its encoder alone. Only
    tensors are unpickled.

    Raises:
        MissingWeights: the file is absent or damaged, or a weight is missing, unknown or of another
            size; one line names the first.
    """
    state = _tensors(file)
    parts: dict[str, nn.Module] = {
        "img_model.": network,
        "encoder.": network.img_model,
        "layer1.": network.img_model.encoder,
    }
    found = next((p for p in parts if any(name.startswith(p) for name in state)), None)
    if found is None:
        raise MissingWeights(f"{file} is no checkpoint of G2D: no img_model., encoder. or layer1.")
    kept = {k: v for k, v in state.items() if not (k.startswith(OF_CODE) or k.endswith(COUNTER))}
    wanted = {k: v for k, v in parts[found].state_dict().items() if not k.endswith(COUNTER)}
    wrong = [k for k in {**wanted, **kept} if k not in kept or k not in wanted]
    wrong = wrong or [k for k in wanted if wanted[k].shape != kept[k].shape]
    if wrong:
        sizes = [tuple(t[wrong[0]].shape) if wrong[0] in t else "absent" for t in (kept, wanted)]
        raise MissingWeights(
            f"{file}: {wrong[0]} is {sizes[0]}, the network's {sizes[1]}: build it with the "
            "checkpoint's sizes (side, heads, joint)"
        )
    parts[found].load_state_dict(kept, strict=False)
    return sorted({name.split(".")[0] for name in kept})


def _tensors(file: Path) -> dict[str, Tensor]:
    """Tensors by name of a checkpoint file."""
    try:
        state: Any = torch.load(file, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        raise MissingWeights(f"{file} is absent, damaged or no file of weights") from error
    state = state.get("model_state_dict", state) if isinstance(state, dict) else {}
    return {k.removeprefix("module."): v for k, v in state.items() if isinstance(v, Tensor)}
