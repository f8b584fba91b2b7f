"""Flags of the median test and of the count of colour-conditional maps."""

from dataclasses import dataclass
from typing import Literal

from fmap_ranking.options import RankingChoice
from utils.settings import count, flag


@dataclass(frozen=True)
class MedianTestOptions(RankingChoice):
    """Median test."""

    histograms: Literal["all", "overview", "none"] = flag(
        "all", "all: one figure for each map, and the overview of the first maps"
    )
    maps_drawn: int = flag(0, "figures of the first N maps only; 0: of all", parse=count)
