"""From which score on an image is called fake, and where that number comes from."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike
from sklearn.metrics import roc_curve

from evaluation.metrics import checked

FIXED = "fixed"


@dataclass(frozen=True)
class Threshold:
    """A threshold of scores.

    Attributes:
        value: The threshold, 0..1.
        low, high: The neighbouring scores between which every threshold decides alike.
        source: `fixed`, or the name of the image set that it was chosen on.
        shared: How many of the images reported are among those that it was chosen on.
        reason: Why it is not the optimum of its source; empty if it is.
    """

    value: float = 0.5
    low: float = 0.5
    high: float = 0.5
    source: str = FIXED
    shared: int = 0
    reason: str = ""

    def sharing(self, images: int) -> "Threshold":
        """The same threshold, so many of the images reported being among those that it was chosen on."""
        return replace(self, shared=images)

    @property
    def note(self) -> str:
        """One sentence for readers of a table."""
        if self.reason:
            return f"threshold {self.value:g}, since {self.reason}"
        if self.source == FIXED:
            return f"threshold {self.value:g}, fixed"
        note = (
            f"threshold {self.value:.4g}, the G-mean optimum of the unchanged detector on {self.source}: "
            f"any between the scores {self.low:.4g} and {self.high:.4g} decides alike there"
        )
        if not self.shared:
            return note
        return f"{note}; {self.shared} of these images are reported on, so the calibrated accuracies are optimistic"


def gmean_threshold(labels: ArrayLike, scores: ArrayLike, source: str, *, published: bool = False) -> Threshold:
    """The threshold that maximises sqrt(tpr (1 - fpr)), of several optima the highest.

    It lies in the middle between the two neighbouring scores, so that a small change of one of them flips no image.
    Where no threshold finds a fake without calling all reals fake, it is 0.5, with the reason.

    Args:
        labels, scores: (n,) each, of the unchanged detector.
        source: name of the image set.
        published: put it at the upper of the two scores, as the published code does.

    Raises:
        UserError: there are no real or no fake images, or a score is not finite.
    """
    truth, values = checked(labels, scores)
    # the published code leaves out corners of the curve that lie on a line, so it does not try every score
    false_rate, true_rate, thresholds = roc_curve(truth, values, drop_intermediate=published)
    gmeans = np.sqrt(true_rate * (1.0 - false_rate))
    if not gmeans.any():
        kind = "constant" if np.ptp(values) == 0 else "inverted"
        return Threshold(source=source, reason=f"the unchanged detector's scores on {source} are {kind}")
    high = float(thresholds[np.argmax(gmeans)])
    low = float(values[values < high].max())
    middle = (low + high) / 2
    # two scores may be neighbours as floating-point numbers, too
    return Threshold(middle if middle > low and not published else high, low, high, source)
