"""Tiny networks for the tests of relevance propagation: residual, gated, and without biases."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from detectors.heads import Classes, OneLogit
from lrp import Explainer


def towards(*names: str | int, published: bool = False) -> Callable[[Tensor], Tensor]:
    """From an output to its relevance for a class by sample, or the same of all: fake, real, or a class number."""

    def start(output: Tensor) -> Tensor:
        head = OneLogit() if output.shape[1] == 1 else Classes(tuple(map(str, range(output.shape[1]))))
        classes = torch.tensor([head.class_names.index(str(name)) for name in names], device=output.device)
        return head.start_relevance(output, classes.expand(len(output)), published=published)

    return start


def largest_pixels(
    explainer: Explainer, inputs: Tensor, layer: str, channels: Sequence[int], samples: Sequence[int] | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """LRP-max of M maps: relevance (M, 3, H, W), values (M,), places (M, 2); of image m or `samples`."""
    pairs = list(zip(range(len(inputs)) if samples is None else samples, channels, strict=True))
    (found,) = explainer.explain_feature_maps(inputs, {layer: pairs}, batch_size=len(pairs))
    return found.relevance, found.value, torch.stack([found.row, found.column], dim=1)


def randomize(model: nn.Module, seed: int = 0, gain: float = 1.0) -> nn.Module:
    """Seeded weights and batch norm statistics far from the identity; in evaluation mode, float64."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(tensor: Tensor, low: float, high: float) -> None:
        tensor.copy_(torch.rand(tensor.shape, generator=generator, dtype=torch.float64) * (high - low) + low)

    model.double().eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                # with gain 1 activations of a ReLU network keep their size from layer to layer
                bound = gain * (6.0 / module.weight[0].numel()) ** 0.5
                uniform(module.weight, -bound, bound)
                if module.bias is not None:
                    uniform(module.bias, -0.3, 0.3)
            elif isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                uniform(module.running_mean, -0.3, 0.3)
                uniform(module.running_var, 0.5, 2.0)
                uniform(module.weight, 0.5, 1.2)
                uniform(module.bias, -0.3, 0.3)
    return model


def images(count: int = 2, size: int = 12, seed: int = 1) -> Tensor:
    """Normalised images (count, 3, size, size), float64: noise, in turn on a bright and on a dark ground."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand((count, 3, size, size), generator=generator, dtype=torch.float64) * 3.0 - 1.5
    return noise + 0.6 * (1.0 - 2.0 * (torch.arange(count) % 2)).reshape(-1, 1, 1, 1)


class Residual(nn.Module):
    """A residual block with a projection shortcut; one in-place ReLU used twice, as torchvision's do."""

    def __init__(self, channels: int, out: int, stride: int = 1, bias: bool = True) -> None:
        super().__init__()
        norm = nn.BatchNorm2d if bias else nn.Identity
        self.conv1 = nn.Conv2d(channels, out, 3, stride, 1, bias=False)
        self.bn1 = norm(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = norm(out)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), norm(out))

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += self.shortcut(x)
        return self.relu(out)


class TinyResNet(nn.Module):
    """Stem with max pooling, two residual blocks, average pooling, one dense layer."""

    def __init__(self, outputs: int = 1, bias: bool = True) -> None:
        super().__init__()
        norm = nn.BatchNorm2d if bias else nn.Identity
        self.conv1 = nn.Conv2d(3, 6, 3, 1, 1, bias=bias)
        self.bn1 = norm(6)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layer1 = Residual(6, 6, bias=bias)
        self.layer2 = Residual(6, 8, stride=2, bias=bias)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(8, outputs, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer2(self.layer1(x))
        return self.fc(torch.flatten(self.avgpool(x), 1))


class GatedNet(nn.Module):
    """Depthwise convolution, squeeze-and-excitation, swish and a skip connection, as in EfficientNet."""

    def __init__(self, outputs: int = 1) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, 2, 1, bias=False)
        self.bn0 = nn.BatchNorm2d(6)
        self.depthwise = nn.Conv2d(6, 6, 3, 1, 1, groups=6, bias=False)
        self.bn1 = nn.BatchNorm2d(6)
        self.reduce = nn.Conv2d(6, 2, 1)
        self.expand = nn.Conv2d(2, 6, 1)
        self.project = nn.Conv2d(6, 6, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(6)
        self.swish = nn.SiLU()
        self.dropout = nn.Dropout(0.5)
        self.fc = nn.Linear(6, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.swish(self.bn0(self.stem(x)))
        inside = self.swish(self.bn1(self.depthwise(x)))
        squeezed = inside.mean((2, 3), keepdim=True)
        inside = torch.sigmoid(self.expand(self.swish(self.reduce(squeezed)))) * inside
        x = self.bn2(self.project(inside)) + x
        return self.fc(self.dropout(x.mean((2, 3))))
