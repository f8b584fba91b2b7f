"""Convolutional networks of published detectors besides those of Wang et al.: each with its input, sign and source.

Built from torchvision's parts under the names of the published files. What is known of files, inputs and signs was read
in the authors' code (docs/detectors.md).
"""

from dataclasses import replace

import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck, ResNet

from detectors.networks import Architecture, get_architecture, plain_rules, register_architecture
from detectors.transforms import DiagonalDetail, NearestResidual, Normalise
from images.decoding import Crop, Resize


def resnet50_nodown(outputs: int) -> ResNet:
    """ResNet-50 whose first convolution and max pooling have stride 1 (Gragnaniello et al., ICME 2021)."""
    model: ResNet = torchvision.models.resnet50(num_classes=outputs)
    model.conv1.stride, model.maxpool.stride = (1, 1), 1
    return model


class ResidualTrunk(nn.Module):
    """ResNet-50 up to its second stage, with a first convolution of 3x3, for residual images (N, 3, H, W)."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        # of the later stages one block each is made, and none kept
        whole = ResNet(Bottleneck, [3, 4, 1, 1])
        self.conv1 = nn.Conv2d(3, 64, 3, stride=2, padding=1, bias=False)
        self.bn1, self.relu, self.maxpool = whole.bn1, whole.relu, whole.maxpool
        self.layer1, self.layer2 = whole.layer1, whole.layer2
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc1 = nn.Linear(512, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        return self.fc1(self.avgpool(self.layer2(self.layer1(x))).flatten(1))


class NarrowBottleneck(nn.Module):
    """A bottleneck of BagNets (Brendel and Bethge, ICLR 2019): no padding, so that the shortcut is cut to size.

    Args:
        inputs: Channels of the input.
        width: Channels between; four times as many come out.
        kernel: Pixels of the middle convolution, 1 or 3.
        stride: 1 or 2.
        shortcut: Whether the shortcut has a convolution.
    """

    def __init__(self, inputs: int, width: int, kernel: int, stride: int, shortcut: bool) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, kernel, stride, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width)
        self.relu = nn.ReLU()
        parts = (nn.Conv2d(inputs, 4 * width, 1, stride, bias=False), nn.BatchNorm2d(4 * width)) if shortcut else ()
        self.downsample = nn.Sequential(*parts)
        # with stride 2 a kernel of 3 gives one row and column less than a kernel of 1, whatever the size
        self._kept = slice(None) if kernel == 1 else slice(None, -1)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = self.downsample(x)[:, :, self._kept, self._kept]
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.bn3(self.conv3(self.relu(self.bn2(self.conv2(x)))))
        return self.relu(x + shortcut)


class LaDeDa9(nn.Module):
    """ResNet-50 whose logit is a mean over places that see 9x9 pixels of the residual each (Cavia et al., 2024)."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 64, 1, bias=False), nn.Conv2d(64, 64, 3, bias=False)
        self.bn1, self.relu = nn.BatchNorm2d(64), nn.ReLU()
        self.layer1, self.layer2 = _stage(64, 64, 3, 3, 2), _stage(256, 128, 4, 3, 2)
        self.layer3, self.layer4 = _stage(512, 256, 6, 1, 2), _stage(1024, 512, 3, 1, 1)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(2048, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv2(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.avgpool(x).flatten(1))


def _stage(inputs: int, width: int, blocks: int, kernel: int, stride: int) -> nn.Sequential:
    """The first block changes the size, and has the kernel; the others look at single places."""
    others = [NarrowBottleneck(4 * width, width, 1, 1, False) for _ in range(blocks - 1)]
    return nn.Sequential(NarrowBottleneck(inputs, width, kernel, stride, True), *others)


_SQUARE = Crop(resize=Resize(256, square=True))
_RESNET50 = replace(get_architecture("resnet50"), aliases=(), imagenet_files=())

for _architecture in (
    replace(
        _RESNET50,
        name="resnet50-nodown",
        build=resnet50_nodown,
        aliases=("grag", "corvi", "res50nodown", "res50stride1"),
        source="Gragnaniello et al., ICME 2021, Corvi et al., ICASSP 2023 (non-profit use; files beside ClipBased "
        "Apache-2.0); Rajan et al., ICLR 2025 (test code Apache-2.0)",
    ),
    Architecture(
        "npr",
        ResidualTrunk,
        last_layer="fc1",
        gradcam_layer="layer2",
        transform=NearestResidual(),
        crop=_SQUARE,
        source="Tan et al., CVPR 2024 (no licence stated)",
    ),
    Architecture(
        "safe",
        ResidualTrunk,
        last_layer="fc1",
        gradcam_layer="layer2",
        transform=DiagonalDetail(Normalise((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))),
        crop=Crop("center", 256),
        fake_class=1,
        source="Li et al., KDD 2025 (Apache-2.0)",
    ),
    Architecture(
        "ladeda9",
        LaDeDa9,
        last_layer="fc",
        gradcam_layer="layer4",
        aliases=("ladeda",),
        transform=NearestResidual(scale=1.0),
        crop=_SQUARE,
        source="Cavia et al., 2024 (research use)",
    ),
    replace(
        _RESNET50,
        name="lgrad",
        reads="gradient images: of a discriminator's output with respect to the photograph, 0..255",
        source="Tan et al., CVPR 2023 (no licence stated)",
    ),
    replace(
        _RESNET50,
        name="dire",
        crop=Crop("center", 224, Resize(256)),
        reads="error images: absolute difference of a photograph and its reconstruction by diffusion, 0..255",
        source="Wang et al., ICCV 2023 (no licence stated)",
    ),
    replace(
        _RESNET50,
        name="lnp",
        reads="noise images: the learned noise pattern of a denoiser, 0..255",
        source="Liu et al., ECCV 2022, as in AIGCDetectBenchmark (no licence stated)",
    ),
    replace(
        _RESNET50,
        name="fredect",
        transform=Normalise((0.5, 0.5, 0.5), (0.1, 0.1, 0.1)),
        rules=plain_rules,
        reads="spectra: log of the absolute 2-D DCT, standardised as its authors do, with -5..5 stored as 0..255",
        source="Frank et al., ICML 2020, as in AIGCDetectBenchmark (no licence stated)",
    ),
):
    register_architecture(_architecture)
