"""Largest activations of feature maps on images as they are and on the same images in greyscale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from detectors.feature_maps import by_layer
from fmap_ranking.names import FeatureMap
from images.sets import ImageSet
from passes.one_pass import PassBatch, State
from passes.shared_forward import Kind, SharedForward
from utils.errors import UserError
from utils.files import read_npz, write_npz

KINDS: tuple[Kind, Kind] = ("rgb", "grayscale")


@dataclass(frozen=True, eq=False)
class ActivationPairs:
    """Largest raw activation of each map on each image, before batch norm.

    Attributes:
        keys: Feature maps.
        paths: Names of the images below the data set folder.
        rgb, grayscale: (images, maps) float32.
    """

    keys: tuple[str, ...]
    paths: tuple[str, ...]
    rgb: np.ndarray
    grayscale: np.ndarray

    def write(self, path: Path) -> None:
        """Write as .npz; atomic."""
        write_npz(path, keys=np.array(self.keys), paths=np.array(self.paths), rgb=self.rgb, grayscale=self.grayscale)


def read_activations(path: Path, *, made_by: str) -> ActivationPairs:
    """Read what `ActivationPairs.write` wrote.

    Raises:
        UserError: missing, damaged or of another format; the message names the script that makes it.
    """
    if not path.is_file():
        raise UserError(f"no activations at {path}: make them with {made_by}")
    arrays = read_npz(path)
    try:
        pairs = ActivationPairs(
            tuple(arrays["keys"].tolist()), tuple(arrays["paths"].tolist()), arrays["rgb"], arrays["grayscale"]
        )
    except KeyError as error:
        raise UserError(f"{path} holds no {error}: make it anew with {made_by}") from error
    shape = (len(pairs.paths), len(pairs.keys))
    if pairs.rgb.shape != shape or pairs.grayscale.shape != shape:
        raise UserError(f"{path} holds arrays of other shapes than {shape}: make it anew with {made_by}")
    return pairs


class ActivationPairCollector:
    """Collects the activations of some maps on RGB and greyscale; 8 bytes for each pair of an image and a map.

    Args:
        forward: Forward passes shared with other collectors.
        maps: Feature maps.
        image_set: The images of the pass; only those of `label` are looked at.
        label: 1 fake, 0 real.
    """

    name = "median_test"

    def __init__(
        self, forward: SharedForward, maps: Sequence[FeatureMap], image_set: ImageSet, *, label: int = 1
    ) -> None:
        self.maps = tuple(maps)
        self._label = label
        self._forward = forward
        self._image_set = image_set
        self._wanted = [(fmap.layer, fmap.index) for fmap in self.maps]
        for kind in KINDS:
            forward.request(kind, by_layer(self._wanted))
        self._values = {kind: np.full((len(image_set), len(self.maps)), np.nan, np.float32) for kind in KINDS}

    def update(self, batch: PassBatch) -> None:
        """Add a batch.

        Raises:
            UserError: An activation is not a finite number.
        """
        rows = (batch.labels == self._label).cpu().numpy()
        if not rows.any():
            return
        positions = np.array(batch.batch.positions)[rows]
        for kind in KINDS:
            values = self._forward.of(batch, kind).select(self._wanted)
            finite = torch.isfinite(values).all(dim=1).cpu().numpy()
            if not finite.all():
                raise UserError(
                    f"{batch.items[int((~finite).argmax())].path}: a feature map has no finite maximum: "
                    "check the checkpoint, or use --precision fp32"
                )
            self._values[kind][positions] = values.cpu().numpy()[rows]

    def state(self) -> State:
        """By kind of image (images, maps) float32; NaN where an image has not been seen."""
        return {kind: values.copy() for kind, values in self._values.items()}

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Replace what was collected by a saved state."""
        self._values = {kind: state[kind].copy() for kind in KINDS}

    def merge(self, state: Mapping[str, np.ndarray]) -> None:
        """Add the state of a collector that saw other images of the same set."""
        for kind in KINDS:
            seen = ~np.isnan(state[kind]).any(axis=1)
            self._values[kind][seen] = state[kind][seen]

    def result(self) -> ActivationPairs:
        """Activations of all images seen, in the order of the set."""
        seen = np.flatnonzero(~np.isnan(self._values["rgb"]).any(axis=1))
        return ActivationPairs(
            tuple(fmap.key for fmap in self.maps),
            tuple(self._image_set.items[position].name for position in seen),
            self._values["rgb"][seen],
            self._values["grayscale"][seen],
        )
