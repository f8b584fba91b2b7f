"""Flags: which ranking is read and how many of its maps, and how a ranking is made."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from detectors.explaining import Explaining
from utils.errors import UserError
from utils.settings import flag, positive, share

if TYPE_CHECKING:
    from torch import Tensor

REAL, FAKE = 0, 1
LABELS = {"fake": FAKE, "real": REAL}
_TOPK = "absent: the paper's 114 for resnet50 and 27 for efb0, the same share of another network's"


@dataclass(frozen=True)
class RankingChoice:
    """Feature maps."""

    topk: int | None = flag(None, f"number of top-ranked feature maps; {_TOPK}", parse=positive, metavar="K")
    relevances: Path | None = flag(
        None,
        "ranking (.csv); absent: that of the set the detector was ranked on, else of progan_val, else of the images "
        "themselves, below fmap_relevances/",
        metavar="FILE",
    )


@dataclass(frozen=True)
class Confidence:
    """Which samples enter FF-RS: those classified correctly with enough confidence (Sec. 4 of the paper).

    Raises:
        UserError: A threshold outside 0..1, or one that lets misclassified samples in.
    """

    fake_confidence: float = flag(0.9, "smallest p(fake) of a fake that enters the ranking", parse=share, metavar="P")
    real_confidence: float = flag(0.1, "largest p(fake) of a real that enters the ranking", parse=share, metavar="P")

    def __post_init__(self) -> None:
        if not 0.0 <= self.real_confidence <= 0.5 <= self.fake_confidence <= 1.0:
            raise UserError(
                f"need 0 <= --real_confidence <= 0.5 <= --fake_confidence <= 1, got {self.real_confidence} and "
                f"{self.fake_confidence}: others would let misclassified images in"
            )

    def accepts(self, probability: Tensor, labels: Tensor) -> Tensor:
        """Mask (N,) of the samples that count, from p(fake) (N,) and labels (N,)."""
        fakes = (labels == FAKE) & (probability >= self.fake_confidence) & (probability > 0.5)
        reals = (labels == REAL) & (probability <= self.real_confidence) & (probability < 0.5)
        return fakes | reals


@dataclass(frozen=True)
class RankingOptions(Explaining, Confidence):
    """Ranking and relevance propagation.

    Raises:
        UserError: The thresholds would let misclassified images in.
    """

    labels: tuple[Literal["fake", "real"], ...] = flag(("fake", "real"), "rank for fakes, for reals, or both")
    topk: int | None = flag(
        None, f"feature maps marked in the summary by layer and in figures; {_TOPK}", parse=positive, metavar="K"
    )
    save_pt_files: bool = flag(False, "save the relevance of every image used (.pt) and a picture of it (.png)")
    figures: bool = flag(True, "draw the omega distribution and the summary by layer")
    relevances: Path | None = flag(None, "accepted for the sake of the other steps; this one reads no ranking")

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "labels", tuple(dict.fromkeys(self.labels)))
