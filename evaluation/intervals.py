"""How sure a number is: 95 % intervals that state no more than the images hold.

Shares of images have Wilson's interval. Everything else is computed again on redrawn images, or redrawn clusters of
images that belong together, such as the frames of a video. So are shares of clustered images and their means over
columns of scores; their interval reaches at least as far as Wilson's on the number of clusters. Three things make the
plain percentiles of redraws too sure of themselves, and are mended here:

- Redraws are biased. An image drawn twice ties with itself, which raises average precision; the percentiles may even
  leave out the number itself. So the redraws' mean is shifted to it, which keeps it inside.
- Redraws of a faultless (or hopeless) detector are all alike. By the rule of three, m independent images in which
  something was never seen leave room for a share 1 - 0.05^(1/m), about 3/m, of such images; the interval reaches at
  least to where these would take the number if they all were wholly wrong, or wholly right.
- A mean over a few random draws of feature maps varies with the draws as well. Redrawing the few would understate
  that, so Student's t distribution of their standard error is added to the redraws of images.
"""

import math
from collections.abc import Iterator
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import t as student_t

LEVEL = 0.95

_CELLS_AT_ONCE = 2_000_000


def wilson_interval(successes: float, count: int) -> tuple[float, float]:
    """Wilson's score interval of a share; unlike the standard error it says something at 0 and 1, too.

    The successes need not be whole: the mean of numbers in 0..1 varies no more than a share of the same size.

    >>> [round(bound, 4) for bound in wilson_interval(20, 20)]
    [0.8389, 1.0]
    """
    if not count or math.isnan(successes):
        return math.nan, math.nan
    z = NormalDist().inv_cdf(0.5 + LEVEL / 2.0)
    share = successes / count
    centre = share + z * z / (2 * count)
    half = z * math.sqrt(share * (1.0 - share) / count + z * z / (4 * count * count))
    scale = 1.0 + z * z / count
    # at 0 and 1 rounding would leave out the share itself
    return max(0.0, min(share, (centre - half) / scale)), min(1.0, max(share, (centre + half) / scale))


class Resampling:
    """Redraws of images with replacement: as many units of each kind (real, fake, or holding both) as there are.

    A unit is an image, or a cluster of images. The redraws depend on the labels, the clusters and the seed only, so
    statistics of the same images are paired.

    Args:
        labels: (n,), 0 real and 1 fake.
        clusters: (n,), which cluster each image belongs to; images are independent without it.
        draws: number of redraws.
        seed: of the redraws.

    Attributes:
        units, real_units, fake_units: how many there are, how many hold a real, and how many a fake.
        clustered: whether a unit holds several images.
    """

    def __init__(
        self, labels: np.ndarray, clusters: ArrayLike | None = None, *, draws: int = 1000, seed: int = 0
    ) -> None:
        names = np.arange(len(labels)) if clusters is None else np.asarray(clusters)
        if names.shape != labels.shape:
            raise ValueError(f"expected clusters of the labels' shape {labels.shape}, got {names.shape}")
        _, self._unit = np.unique(names, return_inverse=True)
        self.units = int(self._unit.max()) + 1
        self._kind = np.zeros(self.units, dtype=int)
        np.bitwise_or.at(self._kind, self._unit, labels.astype(int) + 1)
        self.real_units, self.fake_units = (int((self._kind & bit > 0).sum()) for bit in (1, 2))
        self.clustered = self.units < len(labels)
        self.draws = draws
        self._seed = seed

    def blocks(self) -> Iterator[np.ndarray]:
        """How often each redraw holds each image: float64 (some redraws, n), together `draws` redraws."""
        generator = np.random.default_rng(self._seed)
        block = max(1, _CELLS_AT_ONCE // len(self._unit))
        for start in range(0, self.draws, block):
            draws = min(block, self.draws - start)
            counts = np.zeros((draws, self.units))
            for kind in np.unique(self._kind):
                positions = np.flatnonzero(self._kind == kind)
                size = len(positions)
                drawn = generator.integers(0, size, (draws, size)) + size * np.arange(draws)[:, None]
                counts[:, positions] = np.bincount(drawn.ravel(), minlength=draws * size).reshape(draws, size)
            yield counts[:, self._unit]

    def add_columns(self, redrawn: np.ndarray, spread: ArrayLike, columns: int, *, stream: int = 0) -> np.ndarray:
        """Add to redraws of a mean over columns how much the mean of other columns of their kind would differ.

        Args:
            redrawn: (draws, ...), means over the columns.
            spread: (...), standard deviation over the columns.
            columns: their number; nothing is added for one.
            stream: another one gives independent additions.
        """
        if columns < 2:
            return redrawn
        quantiles = student_t.ppf((np.arange(self.draws) + 0.5) / self.draws, columns - 1)
        shuffled = np.random.default_rng([self._seed, stream]).permutation(quantiles)
        error = np.asarray(spread) / math.sqrt(columns)
        return redrawn + shuffled.reshape(-1, *[1] * error.ndim) * error


def centred_bounds(values: ArrayLike, redrawn: np.ndarray) -> np.ndarray:
    """(2, ...): percentiles of redraws (draws, ...) whose mean is shifted to the value of the images as they are."""
    shifted = redrawn - redrawn.mean(axis=0) + np.asarray(values)
    return np.quantile(shifted, [0.5 - LEVEL / 2.0, 0.5 + LEVEL / 2.0], axis=0)


def interval(values: ArrayLike, redrawn: np.ndarray, units: ArrayLike) -> np.ndarray:
    """(2, ...): `centred_bounds`, widened to what the rule of three leaves open, within 0 and 1.

    Args:
        values: (...), of the images as they are.
        redrawn: (draws, ...).
        units: (...), independent units that each value rests on.
    """
    bounds = centred_bounds(values, redrawn)
    unseen, known = 1.0 - 0.05 ** (1.0 / np.asarray(units)), np.asarray(values)
    low = np.minimum(bounds[0], known * (1.0 - unseen))
    high = np.maximum(bounds[1], known + unseen * (1.0 - known))
    return np.clip([low, high], 0.0, 1.0)


def ranking_of_draws(labels: np.ndarray, scores: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Average precision and area under the ROC curve of each redraw: counts (draws, n) to (draws,) each."""
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order]
    ends = np.append(np.flatnonzero(np.diff(ordered)), len(ordered) - 1)
    sorted_counts = counts[:, order]
    # fakes and images at or above each distinct score, highest first: (draws, distinct)
    true = np.cumsum(sorted_counts * labels[order], axis=1)[:, ends]
    called = np.cumsum(sorted_counts, axis=1)[:, ends]
    gain = np.diff(true, axis=1, prepend=0.0)
    # where nothing is counted yet there is no gain either
    precision = (gain * true / np.maximum(called, 1.0)).sum(axis=1) / true[:, -1]
    false = called - true
    area = (np.diff(false, axis=1, prepend=0.0) * (true - gain / 2.0)).sum(axis=1)
    return precision, area / (true[:, -1] * false[:, -1])
