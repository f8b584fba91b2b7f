"""Which score of a network is explained: fake or real of a detector, a class of a classifier."""

from dataclasses import dataclass

import torch
from torch import Tensor

from detectors.heads import Classes, Head
from utils.errors import UserError

LABEL, TOP = "label", "top"


@dataclass(frozen=True)
class Target:
    """What to explain of a network.

    Attributes:
        name: Of a detector `fake`, `real`, or `label`: each image for its own label, or for the detector's decision
            where it has none; of a classifier `top`, the most probable class, or a number.
        head: Of the network.
    """

    name: str
    head: Head

    @property
    def is_detector(self) -> bool:
        """Whether the network tells fake from real."""
        return not isinstance(self.head, Classes)

    def classes(self, output: Tensor, labels: Tensor) -> Tensor:
        """The explained class (N,) int64 of images with these labels (1 fake, 0 real, -1 unknown)."""
        if self.name == TOP:
            return self.head.decision(output)
        if self.name == LABEL:
            labels = labels.to(output.device)
            return torch.where(labels < 0, self.head.decision(output), labels)
        index = self.head.class_names.index(self.name) if self.is_detector else int(self.name)
        return torch.full((len(output),), index, dtype=torch.int64, device=output.device)

    def probability_of(self, index: int) -> str:
        """What `Head.probability` is the probability of, where a class is explained."""
        return "fake" if self.is_detector else self.head.class_names[index]

    def explained(self, index: int, is_reversed: bool) -> str:
        """What positive relevance is evidence for where class `index` is explained."""
        names = self.head.class_names
        if not is_reversed:
            return names[index]
        return names[1 - index] if self.is_detector else f"not {names[index]}"

    def description(self) -> str:
        """What positive relevance is evidence for, in words."""
        words = {LABEL: "each image's label, or else the decision", TOP: "the most probable class"}
        return words.get(self.name) or (self.name if self.is_detector else self.head.class_names[int(self.name)])


def parse_target(text: str | None, head: Head, *, default: str = "fake") -> Target:
    """The target a user names; without a name `default` for a detector and `top` for a classifier.

    Raises:
        UserError: The network has no such target.
    """
    target = Target(text.strip().lower() if text is not None else default, head)
    if target.is_detector:
        if target.name not in {*head.class_names, LABEL}:
            raise UserError(f"--target {text}: a detector explains fake or real, or label for each image's own")
        return target
    name = TOP if text is None else target.name
    if name != TOP:
        if not (name.isascii() and name.isdigit() and int(name) < head.outputs):
            raise UserError(f"--target {text}: a classifier explains top or a class from 0 to {head.outputs - 1}")
        name = str(int(name))
    return Target(name, head)
