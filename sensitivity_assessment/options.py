"""Flags of the sensitivity assessment, the colour ablation and the choice of k."""

from dataclasses import dataclass
from pathlib import Path

from evaluation.options import AssessmentOptions
from fmap_ranking.options import RankingChoice
from utils.settings import flag, plain_name, positive, share


@dataclass(frozen=True)
class SensitivityOptions(AssessmentOptions, RankingChoice):
    """Feature maps dropped."""

    draws: int = flag(5, "random choices of each kind", parse=positive)


@dataclass(frozen=True)
class ColourOptions(AssessmentOptions):
    """Colour ablation; a second detector, side by side (a colour-robust one, for instance)."""

    second_weights: Path | None = flag(None, "its checkpoint; absent: one detector only", metavar="FILE")
    second_arch: str | None = flag(None, "absent: that of --arch", metavar="ARCH")
    second_tag: str = flag("cr", "stands for --blur_jpg in its file names", parse=plain_name, metavar="TAG")


@dataclass(frozen=True)
class TopkOptions(SensitivityOptions):
    """Choice of k."""

    draws: int = flag(3, "random choices for each k", parse=positive)
    numbers: tuple[int, ...] = flag(
        (), "k to try; absent: 1 2 5 10 20 50 100 200 500, and --topk if it is given", parse=positive, metavar="K"
    )
    bisect: bool = flag(
        False,
        "go on between the smallest k at the target and the one before, until k is known to 5 %%, a pass for each",
    )
    target_ap: float | None = flag(
        None,
        "0..1; absent: halfway from the AP of the unchanged detector to the share of fakes (guessing)",
        parse=share,
        metavar="AP",
    )
