"""Largest activations of feature maps on images as they are and on the same images in greyscale."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from detectors.feature_maps import by_layer
from fmap_ranking.names import FeatureMap
from images.sets import FAKE, ImageSet
from passes.one_pass import PassBatch, PerImage
from passes.shared_forward import Colour, SharedForward, finite
from utils.errors import UserError
from utils.files import read_npz, write_npz

COLOURS: tuple[Colour, Colour] = ("rgb", "grayscale")


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


class ActivationPairCollector(PerImage):
    """Collects the activations of some maps on RGB and greyscale; 8 bytes for each pair of an image and a map.

    Args:
        forward: Forward passes shared with other collectors.
        maps: Feature maps.
        images: The images of the pass.
        labels: Only images of these labels are looked at.
    """

    def __init__(
        self, forward: SharedForward, maps: Sequence[FeatureMap], images: ImageSet, *, labels: Collection[int] = (FAKE,)
    ) -> None:
        self.maps = tuple(maps)
        self._labels, self._forward, self._images = tuple(labels), forward, images
        self._wanted = [(fmap.layer, fmap.index) for fmap in self.maps]
        for colour in COLOURS:
            forward.request(colour, by_layer(self._wanted))
        super().__init__(len(images), (len(COLOURS), len(self.maps)), np.float32)

    def update(self, batch: PassBatch) -> None:
        """Add a batch.

        Raises:
            UserError: An activation is not a finite number.
        """
        rows = np.array([item.label in self._labels for item in batch.items])
        if not rows.any():
            return
        values = torch.stack([self._forward.of(batch, colour).select(self._wanted) for colour in COLOURS], dim=1)
        values = finite(values, batch, "the largest value of a feature map")
        self.put(np.array(batch.positions)[rows], values.cpu().numpy()[rows])

    def result(self) -> ActivationPairs:
        """Activations of all images seen, in the order of the set."""
        seen = np.flatnonzero(self.seen)
        rgb, grayscale = self.values[seen].transpose(1, 0, 2)
        return ActivationPairs(
            tuple(fmap.key for fmap in self.maps),
            tuple(self._images.items[position].name for position in seen),
            rgb,
            grayscale,
        )
