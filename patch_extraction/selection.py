"""Which feature maps to look at: the top of a ranking, some layers, or all."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fmap_ranking.locate import find_ranking
from fmap_ranking.topk import default_topk

from detectors.detector import Detector
from fmap_ranking.names import FeatureMap
from fmap_ranking.ranking import read_ranking
from lrp.canonise import build_program, explained_layers
from utils.cli import parse_positive
from utils.errors import UserError
from utils.files import sha256_file

ALL = "all"


@dataclass(frozen=True)
class Selection:
    """Feature maps in the order of their rank, or of depth where no ranking was asked.

    Attributes:
        maps: The maps.
        omega: Their relevance, 0..1; None for each if the choice did not come from a ranking.
        ranking: The ranking file.
    """

    maps: tuple[FeatureMap, ...]
    omega: tuple[float | None, ...]
    ranking: Path | None = None

    def inputs(self) -> dict[str, str]:
        """Digest of the ranking, for provenance."""
        return {} if self.ranking is None else {"ranking": sha256_file(self.ranking)}


def ranked_layers(detector: Detector) -> dict[str, int]:
    """Layers that rankings are about, name to number of maps, in order of depth."""
    return dict(explained_layers(build_program(detector.model, fold=False)))


def parse_topk(text: str) -> int | str:
    """A whole number of at least 1, or "all"; for argparse's `type`."""
    return ALL if text.strip().lower() == ALL else parse_positive(text)


def add_map_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --topk, --layers and --relevances."""
    group = parser.add_argument_group("feature maps")
    choice = group.add_mutually_exclusive_group()
    choice.add_argument(
        "--topk",
        type=parse_topk,
        metavar="K|all",
        help="number of top-ranked feature maps, or all maps of the network; "
        "absent: the paper's 114 for resnet50 and 27 for efb0",
    )
    choice.add_argument("--layers", nargs="+", metavar="LAYER", help="instead: every map of these layers")
    group.add_argument(
        "--relevances",
        type=Path,
        metavar="FILE",
        help="ranking (.csv); absent: the one of progan_val, or else of --gan_name, for --arch and --blur_jpg, "
        "below DIR/fmap_relevances or fmap_relevances/",
    )


def select_maps(
    detector: Detector,
    gan_name: str,
    tag: str,
    *,
    topk: int | str | None = None,
    layers: Sequence[str] | None = None,
    relevances: Path | None = None,
    output_dir: Path | None = None,
) -> Selection:
    """The maps that `--topk`, `--layers` and `--relevances` ask for.

    Raises:
        UserError: No ranking, one of another network, k too large, or a layer that the detector lacks.
    """
    known = ranked_layers(detector)
    if layers is not None or topk == ALL:
        maps = _maps_of(known, list(known) if layers is None else layers, detector.arch)
        return Selection(maps, (None,) * len(maps))
    path = find_ranking(detector.arch, gan_name, tag, relevances=relevances, output_dir=output_dir)
    ranking = read_ranking(path, known)
    k = topk if isinstance(topk, int) else default_topk(detector.arch, sum(known.values()))
    if k > len(ranking):
        raise UserError(f"--topk {k} is more than the {len(ranking)} feature maps of {path}: choose fewer, or all")
    return Selection(ranking.top_k(k), tuple(ranking.values[:k].tolist()), path)


def _maps_of(known: Mapping[str, int], layers: Sequence[str], arch: str) -> tuple[FeatureMap, ...]:
    for layer in layers:
        if layer not in known:
            names = list(known)
            raise UserError(
                f"--layers: {arch} has no ranked layer {layer[:80]!r}: choose among {names[0]}, {names[1]}, "
                f"{names[2]} ... {names[-1]}"
            )
    return tuple(
        FeatureMap(layer, index, channels)
        for layer, channels in known.items()
        if layer in layers
        for index in range(channels)
    )
