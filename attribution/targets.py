"""Which score of a network is explained: fake or real of a detector, a class of a classifier."""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from detectors.heads import Classes, Head
from utils.errors import UserError

LABEL, TOP = "label", "top"


@dataclass(frozen=True)
class Target:
    """What to explain.

    Attributes:
        name: of a detector `fake` or `real`, and `label` each image for its own label, or for the detector's decision
            where it has none; of a classifier `top` explains the most probable class and a number that class.
        head: of the network.
        labels: (N,) int64 of the images at hand, 1 fake, 0 real, -1 unknown; read by `label` only.
    """

    name: str
    head: Head
    labels: Tensor | None = field(default=None, compare=False)

    def of(self, labels: Tensor) -> "Target":
        """The same target for images with these labels."""
        return replace(self, labels=labels)

    def score(self, output: Tensor) -> Tensor:
        """The explained score (N,), differentiable."""
        return self.head.score(output, self.classes(output))

    def classes(self, output: Tensor) -> Tensor:
        """The explained class (N,) int64 of each image."""
        if self.name in (LABEL, TOP):
            decided = self.head.decision(output)
            if self.name == TOP or self.labels is None:
                return decided
            labels = self.labels.to(output.device)
            return torch.where(labels < 0, decided, labels)
        names = self.head.class_names
        index = int(self.name) if isinstance(self.head, Classes) else names.index(self.name)
        return torch.full((len(output),), index, dtype=torch.int64, device=output.device)


def parse_target(text: str | None, head: Head, *, default: str = "fake") -> Target:
    """The target a user names; without a name `default` for a detector and `top` for a classifier.

    Raises:
        UserError: if the network has no such target.
    """
    classifier = isinstance(head, Classes)
    name = text.strip().lower() if text is not None else (TOP if classifier else default)
    if not classifier:
        if name not in {*head.class_names, LABEL}:
            raise UserError(f"--target {text}: a detector explains fake or real, or label for each image's own")
    elif name != TOP:
        if not (name.isascii() and name.isdigit() and int(name) < head.outputs):
            raise UserError(f"--target {text}: a classifier explains top or a class from 0 to {head.outputs - 1}")
        name = str(int(name))
    return Target(name, head)
