"""The box around the strongest relevance of an image, and the patch in it."""

from dataclasses import dataclass

import numpy as np

_PERCENTILE = 75


@dataclass(frozen=True)
class Box:
    """First and last row and column, inclusive.

    >>> Box(1, 2, 0, 3).cut(np.zeros((5, 5, 3))).shape
    (2, 4, 3)
    """

    row_min: int
    row_max: int
    col_min: int
    col_max: int

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.row_max - self.row_min + 1, self.col_max - self.col_min + 1

    def cut(self, image: np.ndarray, *, half_open: bool = False) -> np.ndarray:
        """The part of an image (H, W, ...), at least one pixel.

        Args:
            image: What to cut from.
            half_open: Leave out the last row and column, as the published code does.
        """
        extra = 0 if half_open else 1
        rows = slice(self.row_min, max(self.row_max + extra, self.row_min + 1))
        return image[rows, self.col_min : max(self.col_max + extra, self.col_min + 1)]


def bounding_box(relevance: np.ndarray) -> Box:
    """The box around the strongest relevance, as in the published code.

    Negative relevance is set to 0 and the rest scaled to at most 1. Pixels up to the 75th percentile are set to 0, the
    percentile is taken again of the result, and the box holds all pixels above it. Without any positive relevance it
    is the whole image.

    Args:
        relevance: (H, W), summed over colours.

    Raises:
        ValueError: relevance that is not finite.
    """
    if not np.isfinite(relevance).all():
        raise ValueError("relevance is not finite")
    positive = np.maximum(relevance, 0)
    height, width = relevance.shape
    if not positive.any():
        return Box(0, height - 1, 0, width - 1)
    positive = positive / positive.max()
    kept = np.where(positive <= np.percentile(positive, _PERCENTILE), 0, positive)
    mask = kept > np.percentile(kept, _PERCENTILE)
    if not mask.any():
        # Equal relevance on most of the image leaves nothing above its own percentile.
        mask = positive > 0
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return Box(int(rows[0]), int(rows[-1]), int(columns[0]), int(columns[-1]))
