"""Which pixels each patch of a classifier sees, for images of any size."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import nn

from images.choice import Reading
from images.decoding import image_size
from images.sets import ImageSet
from lrp import build_program
from lrp.receptive import receptive_field, visible_pixels
from utils.errors import UserError

Geometries = Callable[[int, int], "Geometry"]


@dataclass(frozen=True)
class Geometry:
    """Which pixels of an image of one size each place of the grid sees.

    Attributes:
        rows, columns: First and last + 1 of each place, (h, 2) and (w, 2), cut off at the border of the image.
        field: Side of the whole receptive field.
    """

    rows: np.ndarray
    columns: np.ndarray
    field: int

    def span(self, row: int, column: int) -> tuple[slice, slice]:
        """What a place sees."""
        return slice(*self.rows[row].tolist()), slice(*self.columns[column].tolist())

    def cut(self, image: np.ndarray, row: int, column: int, fill: float) -> np.ndarray:
        """What a place sees of (H, W, ...), at the side of a `field` x `field` canvas where the image ends."""
        spans = self.span(row, column)
        missing = [(0, 0)] * image.ndim
        for axis, span in enumerate(spans):
            before = max(0, self.field - span.stop)
            missing[axis] = before, self.field - (span.stop - span.start) - before
        return np.pad(image[spans], missing, constant_values=fill)


def geometries(model: nn.Module) -> Geometries:
    """The geometry of a classifier of patches, with any weights, by height and width of an image.

    It raises a `UserError` where the receptive field is larger than the image.
    """
    program = build_program(model)

    @cache
    def geometry(height: int, width: int) -> Geometry:
        size = torch.Size((1, 3, height, width))
        field = max(span.length for span in receptive_field(program, size))
        if field > min(height, width):
            raise UserError(
                f"a patch has {field}x{field} pixels, more than an image of {width}x{height}: raise --loadSize, or "
                "take a network with a smaller receptive field"
            )
        rows, columns = (ends.numpy() for ends in visible_pixels(program, size))
        return Geometry(rows, columns, field)

    return geometry


def check_sizes(geometry: Geometries, images: ImageSet, reading: Reading) -> None:
    """See that a patch fits into every image, from the headers of the files.

    Raises:
        UserError: It does not, or a header cannot be read and bad images are not skipped.
    """
    crop = reading.cropping()
    # where all are scaled to one size, one says enough
    for item in images.items[: 1 if crop.kind == "center" else None]:
        try:
            geometry(*crop.output_size(*image_size(item.path)))
        except UserError as error:
            if not reading.skip_bad_images:
                raise error if str(item.path) in str(error) else UserError(f"{item.path}: {error}") from error
