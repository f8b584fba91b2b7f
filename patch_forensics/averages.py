"""From the logits of patches to the score of an image, in a pass: three averages, and their metrics as published.

A patch has one logit, that of class 1 against class 0; class 1 is real unless the classifier was trained the other way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import average_precision_score, precision_recall_curve
from torch import Tensor

from images.sets import ImageSet
from passes.one_pass import PassBatch, PerImage, State
from passes.shared_forward import SharedForward, finite
from utils.files import write_npz

AVERAGES = ("vote", "before_softmax", "after_softmax")
PATCH, FULL = "patch", "full"
"""Every patch a sample; the one score of a classifier of whole images."""
FILES = {
    "vote": "metrics_voted",
    "before_softmax": "metrics_avg_before_softmax",
    "after_softmax": "metrics_avg_after_softmax",
    PATCH: "metrics_patch",
    FULL: "metrics",
}
"""Published names of the results of each average."""


def averaged(logits: Tensor) -> Tensor:
    """p(class 1) of images by `AVERAGES`: logits of patches (N, ...) to (N, 3) float64.

    The share of patches that call it class 1 (a tie is class 0), the softmax of their mean logits, and the mean of
    their softmax.
    """
    places = logits.flatten(1).double()
    return torch.stack([(places > 0).double().mean(1), places.mean(1).sigmoid(), places.sigmoid().mean(1)], dim=1)


@dataclass(frozen=True)
class ClassMetrics:
    """How well a score of class 1 tells the classes apart.

    Attributes:
        ap: Average precision with class 1 as the positive.
        acc: Share decided rightly; a tie is class 0.
        n: Number of samples.
        precision, recall, thresholds: Of class 1, as scikit-learn gives them.
    """

    ap: float
    acc: float
    n: int
    precision: np.ndarray
    recall: np.ndarray
    thresholds: np.ndarray

    @classmethod
    def of(cls, classes: np.ndarray, scores: np.ndarray) -> ClassMetrics:
        """From classes (n,) and p(class 1) (n,)."""
        precision, recall, thresholds = precision_recall_curve(classes, scores)
        right = (scores > 0.5) == (classes == 1)
        ap = float(average_precision_score(classes, scores))
        return cls(ap, float(right.mean()), len(classes), precision, recall, thresholds)

    def write(self, path: Path) -> None:
        """Write as the published `.npz`."""
        write_npz(path, **vars(self))


def order_of(scores: Sequence[float], count: int) -> dict[str, list[int]]:
    """Positions of the `hardest` images, lowest score of their class first, and of the `easiest`, highest first."""
    order = np.argsort(scores, kind="stable").tolist()
    return {"hardest": order[:count], "easiest": order[: -count - 1 : -1]}


class MapCollector(PerImage):
    """Three averages of each image, and its map of logits; 4 bytes for each patch (1,369 of a block2 at 299 pixels).

    Args:
        forward: Forward passes of the classifier.
        images: The images of the pass.
        fake_class: Which class is fake: the sign of the logits.
    """

    def __init__(self, forward: SharedForward, images: ImageSet, fake_class: int) -> None:
        super().__init__(len(images), (len(AVERAGES),))
        self._forward, self.images = forward, images
        self._sign = 1 if fake_class == 1 else -1
        self.maps: dict[int, np.ndarray] = {}
        """By position (h, w) float32, logit of class 1; (1, 1) of a classifier of whole images."""
        forward.request("rgb", output=True)

    def update(self, batch: PassBatch) -> None:
        """Add a batch.

        Raises:
            UserError: A logit is not a number; names the image.
        """
        logits = finite(self._forward.output(batch), batch, "the classifier's output") * self._sign
        logits = logits[:, 0] if logits.ndim == 4 else logits[:, :, None]
        self.put(batch.positions, averaged(logits).cpu().numpy())
        self.maps.update(zip(batch.positions, logits.cpu().numpy(), strict=True))

    def state(self) -> State:
        """As `PerImage`, and the logits one after the other with the sizes of the maps."""
        maps = [self.maps[position] for position in np.flatnonzero(self.seen).tolist()]
        logits = np.concatenate([heat.ravel() for heat in maps]) if maps else np.zeros(0, np.float32)
        sizes = np.array([heat.shape for heat in maps], dtype=np.int64).reshape(-1, 2)
        return {**super().state(), "logits": logits, "sizes": sizes}

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        super().load_state(state)
        self.maps = {}
        self._add_maps(state)

    def merge(self, state: Mapping[str, np.ndarray]) -> None:
        super().merge(state)
        self._add_maps(state)

    def _add_maps(self, state: Mapping[str, np.ndarray]) -> None:
        ends = np.cumsum(state["sizes"].prod(axis=1))
        parts = np.split(state["logits"], ends[:-1]) if len(ends) else []
        for position, size, part in zip(np.flatnonzero(state["seen"]), state["sizes"], parts, strict=True):
            self.maps[int(position)] = part.reshape(size)
