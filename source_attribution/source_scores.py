"""Probabilities of images, and what they come to: generated or real, and by which source, or by none."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.special import logit

THRESHOLD = 0.5
_HIGHEST = float(np.nextafter(1.0, 0.0))
FAKE, REAL = "fake", "real"
"""Columns that are no source: of a primary, and of a network of several classes."""
NONE = "none"


@dataclass(frozen=True, eq=False)
class Scores:
    """What networks say of images.

    Attributes:
        columns: What each column is the probability of: `fake` first where a primary was asked, `real` first of a
            network of several classes, and names of sources.
        values: (images, columns) float64.
        thresholds: From which probability on an image is attributed to a source, by name; else from 0.5 on.
    """

    columns: Sequence[str]
    values: np.ndarray
    thresholds: Mapping[str, float] = field(default_factory=dict)

    @property
    def sources(self) -> list[str]:
        """What is attributed."""
        return [name for name in self.columns if name not in (FAKE, REAL)]

    @property
    def of_sources(self) -> np.ndarray:
        """(images, sources)."""
        return self.values[:, len(self.columns) - len(self.sources) :]

    @property
    def fake(self) -> np.ndarray | None:
        """Whether each image is called generated; None where no primary was asked."""
        return self.values[:, 0] >= THRESHOLD if self.columns[0] == FAKE else None

    @property
    def answers(self) -> list[str]:
        """Names of the numbers that `said` has."""
        return [REAL if self.columns[0] == REAL else NONE, *self.sources]

    @property
    def margins(self) -> np.ndarray:
        """(images, sources): how far the logit of each probability is above that of its threshold."""
        return logit(self.of_sources) - logit([self.thresholds.get(name, THRESHOLD) for name in self.sources])

    @property
    def likeliest(self) -> np.ndarray:
        """Place of the source that is the furthest above its threshold, or the least below, for each image."""
        return self.margins.argmax(1)

    def said(self) -> np.ndarray:
        """Number of the answer for each image: the likeliest source, 0 if it is below its threshold.

        Of a network of several classes the most probable one.
        """
        if self.columns[0] == REAL:
            return self.values.argmax(1)
        return np.where(self.margins.max(1) >= 0, self.likeliest + 1, 0)

    def contradictions(self) -> int:
        """Images that are attributed to a source although they are called real."""
        return 0 if self.fake is None or not self.sources else int((~self.fake & (self.said() > 0)).sum())


def calibrated_threshold(others: Sequence[np.ndarray], most_false: float) -> float:
    """The lowest threshold from 0.5 on at which at most a share of each group of images is attributed to a source.

    Args:
        others: Probabilities of images that are not of the source; real ones and other sources are a group each.
        most_false: The share.
    """
    refused = max(np.append(np.sort(values)[::-1], 0.0)[int(most_false * len(values))] for values in others)
    if refused < THRESHOLD:
        return THRESHOLD
    values = np.concatenate(others)
    middle = (refused + values[values > refused].min(initial=1.0)) / 2
    # two probabilities may be neighbours as floating-point numbers, too
    return float(min(max(middle, np.nextafter(refused, 1.0)), _HIGHEST))
