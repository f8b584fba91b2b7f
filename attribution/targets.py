"""Which score of a network is explained: fake or real of a detector, a class of a classifier."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache

import torch
import torchvision
from torch import Tensor

from utils.errors import UserError

LABEL, TOP = "label", "top"
DETECTOR_CLASSES = ("real", "fake")


@dataclass(frozen=True)
class Target:
    """What to explain.

    Attributes:
        name: of a detector `fake` explains f(x), `real` -f(x), and `label` each image for its own label, or for the
            detector's decision where it has none; of a classifier `top` explains the most probable class and a
            number that class.
        outputs: logits of the network, 1 for a detector.
        labels: (N,) int64 of the images at hand, 1 fake, 0 real, -1 unknown; read by `label` only.
    """

    name: str
    outputs: int
    labels: Tensor | None = field(default=None, compare=False)

    def of(self, labels: Tensor) -> "Target":
        """The same target for images with these labels."""
        return replace(self, labels=labels)

    def score(self, logits: Tensor) -> Tensor:
        """The explained score (N,) from logits (N, outputs), differentiable."""
        classes = self.classes(logits)
        if self.outputs == 1:
            return torch.where(classes == 1, logits[:, 0], -logits[:, 0])
        return logits.gather(1, classes[:, None])[:, 0]

    def classes(self, logits: Tensor) -> Tensor:
        """The explained class (N,) int64 of each image: of a detector 1 for fake and 0 for real."""
        if self.outputs == 1 and self.name == LABEL:
            decided = (logits[:, 0] > 0).long()
            if self.labels is None:
                return decided
            labels = self.labels.to(logits.device)
            return torch.where(labels < 0, decided, labels)
        if self.name == TOP:
            return logits.argmax(dim=1)
        index = DETECTOR_CLASSES.index(self.name) if self.outputs == 1 else int(self.name)
        return torch.full((len(logits),), index, dtype=torch.int64, device=logits.device)


def parse_target(text: str | None, outputs: int, *, default: str = "fake") -> Target:
    """The target a user names; without a name `default` for a detector and `top` for a classifier.

    Raises:
        UserError: if the network has no such target.
    """
    name = text.strip().lower() if text is not None else (default if outputs == 1 else TOP)
    if outputs == 1:
        if name not in {*DETECTOR_CLASSES, LABEL}:
            raise UserError(f"--target {text}: a detector explains fake or real, or label for each image's own")
    elif name != TOP:
        if not (name.isascii() and name.isdigit() and int(name) < outputs):
            raise UserError(f"--target {text}: a classifier explains top or a class from 0 to {outputs - 1}")
        name = str(int(name))
    return Target(name, outputs)


def class_name(index: int, outputs: int) -> str:
    """What a class is called: `fake`, `207 golden retriever`, or the number of a class without a known name."""
    if outputs == 1:
        return DETECTOR_CLASSES[index]
    categories = imagenet_categories()
    return f"{index} {categories[index]}" if outputs == len(categories) else str(index)


def probabilities(logits: Tensor, target: Target) -> Tensor:
    """p(fake) of a detector whatever the target, the softmax of the explained class of a classifier; (N,)."""
    if target.outputs == 1:
        return torch.sigmoid(logits[:, 0].double())
    return logits.double().softmax(dim=1).gather(1, target.classes(logits)[:, None])[:, 0]


@cache
def imagenet_categories() -> Sequence[str]:
    """Names of the 1000 ImageNet classes, in the order of the logits."""
    return tuple(torchvision.models.ResNet50_Weights.IMAGENET1K_V1.meta["categories"])
