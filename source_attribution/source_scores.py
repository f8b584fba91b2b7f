"""Probabilities of images, and what they come to: generated or real, and by which source, or by none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

THRESHOLD = 0.5
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
    """

    columns: Sequence[str]
    values: np.ndarray

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

    def said(self) -> np.ndarray:
        """Number of the answer for each image: the most probable source of those at 0.5 or above, else 0.

        Of a network of several classes the most probable one.
        """
        if self.columns[0] == REAL:
            return self.values.argmax(1)
        return np.where(self.of_sources.max(1) >= THRESHOLD, self.of_sources.argmax(1) + 1, 0)

    def contradictions(self) -> int:
        """Images that are attributed to a source although they are called real."""
        return 0 if self.fake is None or not self.sources else int((~self.fake & (self.said() > 0)).sum())
