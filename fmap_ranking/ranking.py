"""Rankings of feature maps by omega: their files, the sets of maps that experiments drop, and which one is read."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evaluation.published import paper_topk
from fmap_ranking.names import FeatureMap, maps_of, parse_key
from fmap_ranking.options import RankingChoice
from utils.errors import UserError
from utils.files import PROJECT_ROOT, is_plain_name, sha256_file, write_text
from utils.provenance import describes, read_record
from utils.tables import read_table

if TYPE_CHECKING:
    from passes.analysis import Subject

HEADER = "key,mean_relevance"
# Sums of parts and of wholes are rounded separately: the parts may exceed their whole by this share of it.
SUM_TOLERANCE = 1e-4
_MAPS_OF_RESNET50 = 26_560  # of which Tab. 1 of the paper drops 114
# The paper finds forensic features on the ProGAN validation set and looks for them in every other generator.
PAPER_GENERATOR = "progan_val"
# SHA-256 of the rankings published with the paper; they have no record, and their detectors have this file name.
PUBLISHED = {
    "9fe5ac745e6656e7181b1d3f1fe88d761469757f4e553bfa00dd73ca396d7ce1": "resnet50, fake",
    "bab27799b204abd96b05fd5356d8e2ce11afc3d2786a93232ae1224f9cd9fcdb": "resnet50, real",
    "2ca3e2eba175c46145daf2aa5b8e16d69e275ded949c54e3e18a843c278d4594": "efb0, fake",
    "5e965f8ed515ec087d7181ad597cfec9a5955daae1d9526e05eef91267fc8586": "efb0, real",
}
_PUBLISHED_WEIGHTS = "blur_jpg_prob0.5.pth"
# Last word of the seed of a random choice: one kind is not to repeat the draws of the other.
_RANDOM, _LAYER_MATCHED = 0, 1


@dataclass(frozen=True)
class LayerSummary:
    """What a ranking says about one layer; `total`, `maximum` and `mean` are of omega, 0..1."""

    layer: str
    channels: int
    ranked: int
    total: float
    maximum: float
    mean: float
    zeros: int
    in_top_k: int


@dataclass(frozen=True)
class LayerMatchedDraw:
    """Maps drawn from the layers of the top k; `shortfall` says how many maps each exhausted layer lacks."""

    maps: tuple[FeatureMap, ...]
    shortfall: Mapping[str, int]


@dataclass(frozen=True, eq=False)
class Ranking:
    """Feature maps in descending order of omega, their forensic relevance.

    Args:
        maps: feature maps in file order.
        values: (len(maps),) float64, omega of each map, 0..1.
        layers: layer name to number of channels, in order of depth where the detector is known; by default
            the layers of `maps` in natural order of their names.

    Raises:
        ValueError: lengths differ, a map occurs twice, a value is negative or not finite, or the order is not
            descending.
    """

    maps: tuple[FeatureMap, ...]
    values: np.ndarray
    layers: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        values = np.array(self.values, dtype=np.float64)
        if values.shape != (len(self.maps),):
            raise ValueError(f"{len(self.maps)} feature maps but values of shape {values.shape}")
        if len(set(self.maps)) != len(self.maps):
            raise ValueError("a feature map occurs twice")
        if not np.isfinite(values).all() or (values < 0).any():
            raise ValueError("relevances must be finite and not negative")
        if (np.diff(values) > 0).any():
            raise ValueError("relevances must be in descending order")
        values.setflags(write=False)
        object.__setattr__(self, "values", values)
        if not self.layers:
            channels = {fmap.layer: fmap.channels for fmap in self.maps}
            object.__setattr__(self, "layers", {name: channels[name] for name in sorted(channels, key=_natural_order)})

    def __len__(self) -> int:
        return len(self.maps)

    @classmethod
    def from_values(cls, layers: Sequence[tuple[str, int]], values: np.ndarray) -> Ranking:
        """Rank all maps of a detector; ties stay in layer and channel order.

        Args:
            layers: (name, channels) in order of depth.
            values: (sum of channels,) omega of each map, layer after layer.
        """
        maps = maps_of(layers)
        flat = np.asarray(values, dtype=np.float64)
        if flat.shape != (len(maps),):
            raise ValueError(f"{len(maps)} feature maps but values of shape {flat.shape}")
        order = np.argsort(-flat, kind="stable")
        return cls(tuple(maps[i] for i in order), flat[order], dict(layers))

    def write(self, path: Path) -> None:
        """Write the ranking as CSV, byte for byte as the published files are written; atomic.

        Raises:
            UserError: every omega is 0.
        """
        self._refuse_zero(path)
        rows = (f"{fmap.key},{value!r}\n" for fmap, value in zip(self.maps, self.values.tolist(), strict=True))
        write_text(path, HEADER + "\n" + "".join(rows))

    def check(self) -> None:
        """Check that omega is that of shares: not 0 throughout, and of a sum of at most 1 within each layer.

        Raises:
            UserError: it is 0, or a layer's sum is larger by more than `SUM_TOLERANCE`.
        """
        self._refuse_zero("ranking")
        for row in self.per_layer_summary():
            if row.total > 1 + SUM_TOLERANCE:
                raise UserError(
                    f"ranking: relevances of layer {row.layer} sum to {row.total:.6g}, more than 1, so they "
                    "are not shares of its relevance: compute the ranking again with rank_fmaps.py"
                )

    def check_k(self, k: int) -> None:
        """Raise UserError if k is not in 1..number of maps."""
        _require(k, len(self), "the number of feature maps in the ranking")

    def top_k(self, k: int) -> tuple[FeatureMap, ...]:
        """First k maps. Raises UserError if k is not in 1..number of maps."""
        self.check_k(k)
        return self.maps[:k]

    def low_k(self, k: int) -> tuple[FeatureMap, ...]:
        """Last k maps of the ranking as written. Raises UserError if k is not in 1..number of maps."""
        self.check_k(k)
        return self.maps[-k:]

    def random_k(self, k: int, seed: int, draw: int = 0) -> tuple[FeatureMap, ...]:
        """Draw k maps without replacement from those outside the top k, in ranking order.

        Args:
            k: number of maps.
            seed, draw: together choose the draw; the same pair gives the same maps.

        Raises:
            UserError: fewer than k maps are left outside the top k.
        """
        _require(k, len(self) // 2, "half the number of feature maps, so that k are left outside the top k")
        chosen = np.random.default_rng([seed, draw, _RANDOM]).choice(len(self) - k, size=k, replace=False)
        return tuple(self.maps[k + i] for i in np.sort(chosen))

    def layer_matched_random_k(self, k: int, seed: int, draw: int = 0) -> LayerMatchedDraw:
        """Draw, for each layer, as many maps as the top k has there, none of them from the top k.

        A layer with too few maps left gives all it has, and `shortfall` counts what is missing.
        """
        wanted = Counter(fmap.layer for fmap in self.top_k(k))
        left: dict[str, list[int]] = {name: [] for name in wanted}
        for position in range(k, len(self)):
            if self.maps[position].layer in left:
                left[self.maps[position].layer].append(position)
        generator = np.random.default_rng([seed, draw, _LAYER_MATCHED])
        chosen: list[int] = []
        shortfall: dict[str, int] = {}
        for name in self.layers:
            count = min(wanted[name], len(left.get(name, ())))
            if count < wanted[name]:
                shortfall[name] = wanted[name] - count
            if count:
                chosen.extend(generator.choice(left[name], size=count, replace=False).tolist())
        return LayerMatchedDraw(tuple(self.maps[i] for i in sorted(chosen)), shortfall)

    def per_layer_summary(self, k: int | None = None) -> list[LayerSummary]:
        """One row for each layer with ranked maps, in the order of `layers`; `in_top_k` is 0 without k."""
        top = Counter(fmap.layer for fmap in self.top_k(k)) if k is not None else Counter()
        by_layer: dict[str, list[float]] = {name: [] for name in self.layers}
        for fmap, value in zip(self.maps, self.values.tolist(), strict=True):
            by_layer[fmap.layer].append(value)
        return [
            LayerSummary(
                layer=name,
                channels=self.layers[name],
                ranked=len(values),
                total=math.fsum(values),
                maximum=values[0],
                mean=math.fsum(values) / len(values),
                zeros=values.count(0.0),
                in_top_k=top[name],
            )
            for name, values in by_layer.items()
            if values
        ]

    def _refuse_zero(self, where: object) -> None:
        if not self.values.any():
            raise UserError(
                f"{where}: the relevance of every feature map is 0, so that their order says nothing: "
                "rank a detector whose output depends on its feature maps"
            )


def default_topk(arch: str, maps: int) -> int:
    """The paper's k for its two detectors, the same share of the maps as for its ResNet-50 for any other."""
    paper = paper_topk()
    return paper.get(arch, max(1, round(paper["resnet50"] / _MAPS_OF_RESNET50 * maps)))


@dataclass(frozen=True)
class FoundRanking:
    """The ranking that an experiment is about.

    Attributes:
        path: The file.
        record: What is recorded of it; empty if there is nothing, or if that is of another file.
        warning: Why it may not be of this detector, to be said in tables and records; empty if there is no doubt.
        ranking: All its maps.
        k: How many of them are the top k.
    """

    path: Path
    record: Mapping[str, Any]
    warning: str
    ranking: Ranking
    k: int

    @cached_property
    def sha256(self) -> str:
        """Digest of the file."""
        return sha256_file(self.path)


def find_ranking(subject: Subject, choice: RankingChoice) -> FoundRanking:
    """The ranking for fakes to read: the one named, else that of the set that the detector was ranked on, of
    `progan_val`, or of the images themselves.

    A model card (`<weights>.json`) names the set that a detector was ranked on as `ranked_on`. Each ranking is looked
    for below the output folder, here, and in the project.

    Raises:
        UserError: There is none, it is of another network, or of another checkpoint and was not named, or it has fewer
            maps than k.
    """
    path = choice.relevances or _default_path(subject)
    detector, record = subject.detector, read_record(path)
    digest = sha256_file(path) if path.is_file() else ""
    ranking = _ranking_of(path, digest, tuple(detector.feature_maps().layers.items()))
    inputs = record.get("inputs")
    weights, warning = inputs.get("weights") if isinstance(inputs, dict) else None, ""
    if weights not in (None, detector.sha256):
        warning = f"is of another checkpoint (SHA-256 {str(weights)[:12]}) than the detector ({detector.sha256[:12]})"
        if choice.relevances is None:
            raise UserError(
                f"the ranking {path} {warning}: rank this detector with rank_fmaps.py, or name a file with --relevances"
            )
    elif record and not describes(record, path):
        record = {}
        warning = "is not the file that its record describes, and may be of another checkpoint"
    elif not record and digest in PUBLISHED:
        if detector.weights is None or detector.weights.name != _PUBLISHED_WEIGHTS:
            warning = "is the published one, and the detector is not known to be the published one"
    elif weights is None:
        warning = "has no record of its checkpoint, and may be of another one"
    k = choice.topk or default_topk(detector.arch, len(ranking))
    ranking.check_k(k)
    return FoundRanking(path, record, warning and f"the ranking {path} {warning}", ranking, k)


@lru_cache(maxsize=4)
def _ranking_of(path: Path, digest: str, layers: tuple[tuple[str, int], ...]) -> Ranking:
    """The file with that content, read once for all experiments and image sets."""
    return read_ranking(path, dict(layers))


def _default_path(subject: Subject) -> Path:
    weights = subject.detector.weights
    ranked_on = None if weights is None else read_record(weights).get("ranked_on")
    card = [ranked_on] if isinstance(ranked_on, str) and is_plain_name(ranked_on) else []
    paths = [
        replace(subject.layout, root=root).ranking(name, "fake")
        for name in (*card, PAPER_GENERATOR, subject.gan_name)
        for root in (subject.run.output_dir, Path(), PROJECT_ROOT)
    ]
    return next((path for path in paths if path.is_file()), paths[-1])


def _require(k: int, largest: int, meaning: str) -> None:
    if not 1 <= k <= largest:
        raise UserError(f"k = {k} is out of range: choose 1 to {largest} ({meaning})")


def read_ranking(path: Path, layers: Mapping[str, int] | None = None) -> Ranking:
    """Read a ranking file (`key,mean_relevance`, descending).

    Args:
        path: CSV file.
        layers: the detector's layers with feature maps, name to number of channels, in order of depth; every map of
            the file must then exist in the detector.

    Raises:
        UserError: the file is missing or unreadable, a line breaks the format (names file and line), or every
            relevance is 0.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no ranking at {path}: make it with rank_fmaps.py, or give --relevances")
    header, lines = read_table(path, made_by="rank_fmaps.py")
    first = ",".join(header).removeprefix("\ufeff")
    if first != HEADER:
        raise UserError(f"{path}, line 1: expected header '{HEADER}', got {first[:80]!r}: use a file of rank_fmaps.py")
    if not lines:
        raise UserError(f"{path}: no feature map below the header: make the ranking again with rank_fmaps.py")

    seen: dict[FeatureMap, int] = {}
    widths: dict[str, int] = {}
    values: list[float] = []
    for number, (key, omega) in enumerate(lines, start=2):
        try:
            fmap, value = parse_key(key), _parse_omega(omega)
            _check_map(fmap, seen, widths, layers)
            if values and value > values[-1]:
                raise ValueError(f"relevance {value} is larger than the one above; sort the file in descending order")
        except ValueError as error:
            raise UserError(f"{path}, line {number}: {error}") from None
        seen[fmap] = number
        widths.setdefault(fmap.layer, fmap.channels)
        values.append(value)
    ranking = Ranking(tuple(seen), np.array(values), {} if layers is None else dict(layers))
    ranking._refuse_zero(path)
    return ranking


def _parse_omega(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"relevance {text[:80]!r} is not a number; correct the line") from None
    if not math.isfinite(value) or value < 0:
        raise ValueError(f"relevance {value} must be finite and not negative; make the ranking again")
    return value


def _check_map(
    fmap: FeatureMap,
    seen: Mapping[FeatureMap, int],
    widths: Mapping[str, int],
    layers: Mapping[str, int] | None,
) -> None:
    if fmap in seen:
        raise ValueError(f"{fmap.key} is already in line {seen[fmap]}; remove one of the two")
    if widths.get(fmap.layer, fmap.channels) != fmap.channels:
        raise ValueError(f"{fmap.key}: layer has {widths[fmap.layer]} channels further up; correct the line")
    if layers is not None and fmap.layer not in layers:
        raise ValueError(f"the detector has no layer {fmap.layer}; use the ranking of its own architecture")
    if layers is not None and layers[fmap.layer] != fmap.channels:
        raise ValueError(
            f"{fmap.key}: the detector's layer has {layers[fmap.layer]} channels; "
            "use the ranking of its own architecture"
        )


def _natural_order(name: str) -> list[tuple[int, int, str]]:
    """Sort key that puts `_blocks.2` before `_blocks.10`."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"([0-9]+)", name) if part]
