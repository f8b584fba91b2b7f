"""Which ranking is read, and how many of its maps: settings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from utils.settings import flag, positive


@dataclass(frozen=True)
class RankingChoice:
    """Feature maps."""

    topk: int | None = flag(
        None,
        "number of top-ranked feature maps; absent: the paper's 114 for resnet50 and 27 for efb0",
        parse=positive,
        metavar="K",
    )
    relevances: Path | None = flag(
        None,
        "ranking (.csv); absent: that of the set it was made on, else of the generator itself, below fmap_relevances/",
        metavar="FILE",
    )
