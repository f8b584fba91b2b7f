"""What the report shows of a detector: read from the files of the single steps, with what they allow to be said."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from activation_histograms.analysis import SCRIPT as TEST_SCRIPT
from activation_histograms.median_test import LEVEL, ColourShare, MedianTest, adjusted, colour_share
from evaluation.assessment import Result, read_result
from evaluation.conditions import GRAYSCALE, RGB
from evaluation.scores import read_scores
from evaluation.summary import MeanOverSets, ScoreSummary, mean_over_sets
from fmap_ranking.names import FeatureMap, parse_key
from patch_extraction.files import MapPatches, PatchFiles
from reproduction.summary import SCRIPT
from sensitivity_assessment.colour import Colour
from sensitivity_assessment.sensitivity import SHOWN, Sensitivity
from sensitivity_assessment.variants import BASELINE, LAYER_RANDOM, RANDOM, TOP
from sensitivity_assessment.whiskers import chosen_fakes
from utils.errors import UserError
from utils.files import safe_join
from utils.layout import Layout
from utils.provenance import read_record
from utils.tables import read_rows

Finding = Literal["specific", "short control", "not specific", "no drop", "guessing", "unknown"]


@dataclass(frozen=True)
class Dropped:
    """A detector on a generator with and without maps."""

    result: Result

    @property
    def name(self) -> str:
        """The generator."""
        return self.result.gan_name

    @property
    def rows(self) -> Mapping[str, ScoreSummary]:
        """By condition."""
        return self.result.rows

    @property
    def shown(self) -> list[ScoreSummary]:
        """Rows for the table."""
        return [self.rows[name] for name in SHOWN if name in self.rows]

    @property
    def control(self) -> ScoreSummary:
        """As many maps of the same layers as the top k has there; any random ones where these were not drawn."""
        return self.rows.get(LAYER_RANDOM, self.rows[RANDOM])

    @property
    def lacks_maps(self) -> bool:
        """Whether the control could not drop as many maps as the top k has."""
        dropped, wanted = self.control.maps_dropped, self.rows[TOP].maps_dropped
        return dropped is not None and wanted is not None and dropped < wanted

    @property
    def finding(self) -> Finding:
        """What the 95 % intervals of AP say: below the control, below the unchanged detector, or neither."""
        baseline, top, control = self.rows[BASELINE], self.rows[TOP], self.control
        if any(map(math.isnan, (baseline.ap_low, top.ap_high, control.ap_low))):
            return "unknown"
        if baseline.ap_low <= self.result.chance:
            return "guessing"
        if top.ap_high < min(control.ap_low, baseline.ap_low):
            return "short control" if self.lacks_maps else "specific"
        return "not specific" if top.ap_high < baseline.ap_low else "no drop"


@dataclass(frozen=True)
class WithoutColour:
    """A detector on a generator in colour and in greyscale.

    Attributes:
        result: Rows `rgb` and `grayscale`.
        medians: Of p(fake) in 0..1 of the fakes in the figure, in colour and in greyscale; None if there are none.
    """

    result: Result
    medians: tuple[float, float] | None

    @property
    def name(self) -> str:
        """The generator."""
        return self.result.gan_name

    @property
    def shown(self) -> list[ScoreSummary]:
        """Rows for the table."""
        return [self.result.rows[RGB], self.result.rows[GRAYSCALE]]

    @property
    def direction(self) -> Literal["lower", "higher", "as high", "unknown"]:
        """Where the grey box's median lies, to a tenth of a percent."""
        if self.medians is None:
            return "unknown"
        colour, grey = (round(median, 3) for median in self.medians)
        return "lower" if grey < colour else "higher" if grey > colour else "as high"


@dataclass(frozen=True)
class MapOnGenerator:
    """A feature map on a generator: its tests, its patches, and its figures unless `maps_drawn` left them out."""

    test: MedianTest
    patches: MapPatches
    histogram: Path | None
    collage: Path | None

    @property
    def looks_at_colour(self) -> bool:
        """By the paired test, adjusted over the top maps."""
        return self.test.p_value_paired_bh <= LEVEL


@dataclass(frozen=True)
class TopMap:
    """A top map on all generators, with its relevance (0..1) and its place in order of depth among the top maps."""

    fmap: FeatureMap
    omega: float
    order: int
    generators: Sequence[MapOnGenerator]

    @property
    def count(self) -> int:
        """Generators on which it looks at colour."""
        return sum(entry.looks_at_colour for entry in self.generators)


@dataclass(frozen=True)
class Contents:
    """Everything the report shows of a detector; sequences are in the order of `names`.

    Attributes:
        record: Its entry in summary.json.
        names: Generators.
    """

    layout: Layout
    record: Mapping[str, Any]
    names: Sequence[str]
    dropped: Sequence[Dropped]
    colour: Sequence[WithoutColour]
    shares: Sequence[ColourShare]
    maps: Sequence[TopMap]

    @property
    def largest_drop(self) -> Dropped:
        """Where AP falls most without the top maps."""
        return min(self.dropped, key=lambda entry: entry.rows[TOP].ap - entry.rows[BASELINE].ap)

    @property
    def largest_colour_drop(self) -> WithoutColour:
        """Where AP falls most without colour."""
        return min(self.colour, key=lambda entry: entry.result.rows[GRAYSCALE].ap - entry.result.rows[RGB].ap)

    @property
    def means(self) -> dict[str, MeanOverSets]:
        """Means over the generators by condition, those of colour included."""
        rows = [row for dropped in self.dropped for row in dropped.shown]
        rows += [row for colour in self.colour for row in colour.shown]
        return mean_over_sets(rows)

    def mean_share(self, name: str) -> tuple[float, float]:
        """A share averaged over the generators (`share`, `share_bh`, `share_paired_bh`), and its standard error."""
        values = np.array([getattr(share, name) for share in self.shares])
        error = values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan
        return float(values.mean()), float(error)

    def where(self, finding: Finding) -> list[str]:
        """Generators on which dropping the top maps had such an outcome."""
        return [entry.name for entry in self.dropped if entry.finding == finding]

    @property
    def chance(self) -> float:
        """AP of guessing, averaged over the generators."""
        return float(np.mean([entry.result.chance for entry in self.dropped]))

    @property
    def figures(self) -> dict[str, Path]:
        """Pictures over all generators."""
        whiskers = self.layout.whiskers(None if len(self.names) > 1 else self.names[0])
        stems = {
            "dropped": self.layout.table(Sensitivity.experiment),
            "colour": whiskers,
            "shares": self.layout.median_tests / "color_conditional",
        }
        return {name: _with(stem, ".png") for name, stem in stems.items()}

    @property
    def examples(self) -> list[Path]:
        """Contact sheets of images with their relevance, if there are any."""
        folder = self.record.get("examples")
        return sorted(safe_join(self.layout.root, folder).glob("contact_sheet_*.png")) if folder else []

    def histograms(self, name: str) -> Path:
        """Histograms of the first maps on a generator."""
        return _with(safe_join(self.layout.histograms, name), ".png")

    def collages(self, name: str) -> list[Path]:
        """Pages of patches on a generator."""
        stem = safe_join(self.layout.collages, name)
        pages = [_with(stem, ".png")]
        while (following := _with(stem, f"_{len(pages) + 1}.png")).is_file():
            pages.append(following)
        return pages

    @property
    def tables(self) -> list[Path]:
        """Tables over generators that are there, for links."""
        stems = [self.layout.table(experiment) for experiment in (Sensitivity.experiment, Colour.experiment)]
        stems.append(self.layout.median_tests / "color_conditional")
        paths = [_with(stem, suffix) for stem in stems for suffix in (".csv", ".md")]
        return [path for path in paths if path.is_file()]


def read_contents(root: Path, record: Mapping[str, Any], names: Sequence[str]) -> Contents:
    """Everything there is of a detector.

    Args:
        root: Output folder.
        record: Its entry in summary.json.
        names: Generators.

    Raises:
        UserError: A file is missing, damaged or of another checkpoint; names the script that makes it.
    """
    layout = Layout(root, str(record["arch"]), str(record["tag"]))
    weights = str(record["weights_sha256"])
    keys = [entry["key"] for entry in record["top_maps"]]
    tests = {name: _tests(layout, name, keys, weights) for name in names}
    patches = {name: PatchFiles.of(layout, name).read(weights=weights) for name in names}
    return Contents(
        layout,
        record,
        names,
        [Dropped(_result(layout, Sensitivity.experiment, name, Sensitivity.script, weights)) for name in names],
        [_without_colour(layout, name, weights) for name in names],
        [colour_share(name, entries) for name, entries in tests.items()],
        _maps(layout, record["top_maps"], tests, patches),
    )


def _result(layout: Layout, experiment: str, name: str, script: str, weights: str) -> Result:
    folder = layout.scores(experiment, name)
    result = read_result(folder, name, made_by=script)
    _check_weights(folder / "summary.csv", result.record, weights, script)
    return result


def _without_colour(layout: Layout, name: str, weights: str) -> WithoutColour:
    result = _result(layout, Colour.experiment, name, Colour.script, weights)
    scores = read_scores(layout.scores(Colour.experiment, name) / "scores.csv", made_by=Colour.script)
    fakes = {condition: values / 100 for condition, values in chosen_fakes(scores).items()}
    medians = (float(np.median(fakes[RGB])), float(np.median(fakes[GRAYSCALE]))) if len(fakes[RGB]) else None
    return WithoutColour(result, medians)


def _tests(layout: Layout, name: str, keys: Sequence[str], weights: str) -> list[MedianTest]:
    """Tests of the top maps, adjusted over exactly these."""
    path = safe_join(layout.median_tests, f"{name}.csv")
    by_key = {test.feature_map_name: test for test in read_rows(path, MedianTest, made_by=TEST_SCRIPT)}
    _check_weights(path, read_record(path), weights, TEST_SCRIPT)
    return adjusted([_of_map(by_key, key, path) for key in keys])


def _check_weights(path: Path, record: Mapping[str, Any], weights: str, script: str) -> None:
    made_with = record.get("inputs", {}).get("weights", weights)
    if made_with != weights:
        raise UserError(
            f"{path} is of another checkpoint (SHA-256 {str(made_with)[:12]}) than the report's ({weights[:12]}): "
            f"make it anew with {script} or {SCRIPT}"
        )


def _of_map(entries: Mapping[str, Any], key: str, path: Path) -> Any:
    if key not in entries:
        raise UserError(f"{path} has nothing about {key}: run {SCRIPT} again")
    return entries[key]


def _maps(
    layout: Layout,
    top_maps: Sequence[Mapping[str, Any]],
    tests: Mapping[str, Sequence[MedianTest]],
    patches: Mapping[str, Sequence[MapPatches]],
) -> list[TopMap]:
    fmaps = [parse_key(entry["key"]) for entry in top_maps]
    depth = [(int(entry["depth"]), fmap.index) for entry, fmap in zip(top_maps, fmaps, strict=True)]
    order = {index: position for position, index in enumerate(sorted(range(len(fmaps)), key=depth.__getitem__))}
    by_key = {name: {entry.fmap.key: entry for entry in entries} for name, entries in patches.items()}

    def on_generator(name: str, index: int) -> MapOnGenerator:
        fmap = fmaps[index]
        return MapOnGenerator(
            tests[name][index],
            _of_map(by_key[name], fmap.key, layout.patches(name)),
            _if_drawn(_with(safe_join(layout.histograms, fmap.key, name), ".png")),
            _if_drawn(_with(safe_join(layout.collages, fmap.folder_name, name), ".pdf")),
        )

    return [
        TopMap(fmap, float(entry["omega"]), order[index], [on_generator(name, index) for name in tests])
        for index, (entry, fmap) in enumerate(zip(top_maps, fmaps, strict=True))
    ]


def _with(stem: Path, suffix: str) -> Path:
    return stem.with_name(f"{stem.name}{suffix}")


def _if_drawn(path: Path) -> Path | None:
    return path if path.is_file() else None
