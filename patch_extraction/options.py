"""Flags of the activation rankings, of the patches and of their collages."""

from dataclasses import dataclass
from pathlib import Path

from detectors.explaining import Explaining
from fmap_ranking.options import RankingChoice
from utils.settings import count, flag, number_or_all, positive

ALL = "all"


@dataclass(frozen=True)
class MapChoice(RankingChoice):
    """Feature maps."""

    topk: int | str | None = flag(  # type: ignore[assignment]
        None,
        "number of top-ranked feature maps, or all maps of the network; absent: the paper's 114 for resnet50 and 27 "
        "for efb0",
        parse=number_or_all,
        metavar="K|all",
    )


@dataclass(frozen=True)
class PatchOptions(MapChoice, Explaining):
    """Feature maps and their patches."""

    num_instances: int = flag(5, "most activating images of each map", parse=positive)
    dataset_dir: Path | None = flag(
        None, "folder of the generators' folders; absent: the one that the images were ranked in", metavar="DIR"
    )
    maps_drawn: int = flag(0, "collages of the first N maps only; 0: of all", parse=count)


@dataclass(frozen=True)
class CollageOptions(MapChoice):
    """What collages show."""

    topk: int | str | None = flag(
        None, "the first K maps with patches; absent: all there are", parse=number_or_all, metavar="K|all"
    )
    num_instances: int | None = flag(None, "most patches of each map; absent: all there are", parse=positive)
