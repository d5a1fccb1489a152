"""ResNet-50 (He et al., 2015) up to its last feature map, with torchvision's parameter names.

This environment has no torchvision, and checkpoints of BioViL's image branch use its names.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

BLOCKS, WIDTH, EXPANSION = (3, 4, 6, 3), 64, 4


class Bottleneck(nn.Module):
    """1×1, 3×3 (strided) and 1×1 convolutions around a shortcut."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        out = width * EXPANSION
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or channels != out:
            shortcut = nn.Conv2d(channels, out, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        """[b, c, h, w] -> [b, 4 width, h / stride, w / stride]."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.bn3(self.conv3(y)) + self.downsample(x))


class ResNet50(nn.Module):
    """Images [b, 3, H, W] -> features [b, 2048, H / 32, W / 32]."""

    def __init__(self, width: int = WIDTH, blocks: tuple[int, ...] = BLOCKS) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        channels = width
        for level, count in enumerate(blocks):
            layers = []
            for k in range(count):
                stride = 2 if k == 0 and level > 0 else 1
                layers.append(Bottleneck(channels, width * 2**level, stride))
                channels = width * 2**level * EXPANSION
            self.add_module(f"layer{level + 1}", nn.Sequential(*layers))
        self.channels, self.levels = channels, len(blocks)

    def forward(self, x: Tensor) -> Tensor:
        """Features of the last block, before pooling."""
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        for level in range(self.levels):
            x = getattr(self, f"layer{level + 1}")(x)
        return x
