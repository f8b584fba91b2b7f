"""The logits of all patches of all images, collected in a pass."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from images.sets import ImageSet
from passes.one_pass import PassBatch, PerImage, State
from passes.shared_forward import SharedForward, finite
from patch_forensics.averages import AVERAGES, averaged


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
