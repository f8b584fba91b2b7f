"""Which score of a network is explained: fake or real of a detector, a class of a classifier."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
import torchvision
from torch import Tensor

from utils.errors import UserError


@dataclass(frozen=True)
class Target:
    """What to explain.

    Attributes:
        name: `fake` explains f(x) and `real` -f(x) of a detector; `top` the most probable class and a number
            that class of a classifier.
        outputs: logits of the network, 1 for a detector.
    """

    name: str
    outputs: int

    def score(self, logits: Tensor) -> Tensor:
        """The explained score (N,) from logits (N, outputs), differentiable."""
        if self.outputs == 1:
            return logits[:, 0] if self.name == "fake" else -logits[:, 0]
        return logits.gather(1, self.classes(logits)[:, None])[:, 0]

    def classes(self, logits: Tensor) -> Tensor:
        """The explained class (N,) int64 of each image: of a detector 1 for fake and 0 for real."""
        if self.outputs == 1:
            index = 1 if self.name == "fake" else 0
        elif self.name == "top":
            return logits.argmax(dim=1)
        else:
            index = int(self.name)
        return torch.full((len(logits),), index, dtype=torch.int64, device=logits.device)


def parse_target(text: str | None, outputs: int) -> Target:
    """The target a user names, by default `fake` for a detector and `top` for a classifier.

    Raises:
        UserError: if the network has no such target.
    """
    name = text.strip().lower() if text is not None else ("fake" if outputs == 1 else "top")
    if outputs == 1:
        if name not in {"fake", "real"}:
            raise UserError(f"--target {text}: a detector explains fake or real")
    elif name != "top":
        if not (name.isascii() and name.isdigit() and int(name) < outputs):
            raise UserError(f"--target {text}: a classifier explains top or a class from 0 to {outputs - 1}")
        name = str(int(name))
    return Target(name, outputs)


def probabilities(logits: Tensor, target: Target) -> Tensor:
    """p(fake) of a detector whatever the target, the softmax of the explained class of a classifier; (N,)."""
    if target.outputs == 1:
        return torch.sigmoid(logits[:, 0].double())
    return logits.double().softmax(dim=1).gather(1, target.classes(logits)[:, None])[:, 0]


@cache
def imagenet_categories() -> Sequence[str]:
    """Names of the 1000 ImageNet classes, in the order of the logits."""
    return tuple(torchvision.models.ResNet50_Weights.IMAGENET1K_V1.meta["categories"])
