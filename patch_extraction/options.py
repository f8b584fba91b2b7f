"""Flags of the activation rankings, of the patches and of their collages."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from detectors.explaining import Explaining
from fmap_ranking.options import RankingChoice
from utils.errors import UserError
from utils.settings import count, flag, number_or_all, positive

ALL = "all"
KEPT_OF_ALL = 40
"""Images kept of each map where all maps of a network are ranked."""


@dataclass(frozen=True)
class MapChoice(RankingChoice):
    """Feature maps.

    Raises:
        UserError: Both a number of maps and layers.
    """

    topk: int | str | None = flag(  # type: ignore[assignment]
        None,
        "number of top-ranked feature maps, or all maps of the network; absent: the paper's 114 for resnet50 and 27 "
        "for efb0",
        parse=number_or_all,
        metavar="K|all",
    )
    layers: tuple[str, ...] = flag((), "instead: every map of these layers", metavar="LAYER")

    def __post_init__(self) -> None:
        if self.layers and self.topk is not None:
            raise UserError("--topk and --layers are two choices of feature maps: leave out one of them")


@dataclass(frozen=True)
class ActivationOptions(MapChoice):
    """Feature maps and the rankings of images."""

    keep: int | None = flag(
        None,
        "keep only the N most activating images of each map, so that memory does not grow with the images; 0: all "
        f"images; absent: all images, but {KEPT_OF_ALL} with --topk all",
        parse=count,
    )
    csv: bool | None = flag(
        None, "write a CSV for each map; absent: yes, but not with --topk all, which makes tens of thousands"
    )

    @property
    def kept(self) -> int:
        """Images kept of each map; 0: all."""
        return (KEPT_OF_ALL if self.topk == ALL else 0) if self.keep is None else self.keep

    @property
    def with_tables(self) -> bool:
        """Whether there is a CSV for each map."""
        return self.topk != ALL if self.csv is None else self.csv


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
