"""What the report shows of a detector, read from the files of the single steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from activation_histograms.outputs import MedianTestFiles
from sensitivity_assessment.dropout import EXPERIMENT as DROPOUT
from sensitivity_assessment.dropout import MADE_BY as DROPOUT_SCRIPT
from sensitivity_assessment.outputs import GeneratorResult, ResultFiles
from sensitivity_assessment.results import read_result

from activation_histograms.median_test import ColourShare, MedianTest, colour_share
from fmap_ranking.names import FeatureMap, parse_key
from patch_extraction.files import MapPatches, PatchFiles
from sensitivity_assessment.colour import EXPERIMENT as COLOUR
from sensitivity_assessment.colour import MADE_BY as COLOUR_SCRIPT
from utils.errors import UserError
from utils.files import safe_join
from utils.tables import read_rows

MADE_BY = "src/reproduce.py"


@dataclass(frozen=True)
class TopMap:
    """A feature map with its relevance, and the place of its layer in order of depth."""

    fmap: FeatureMap
    omega: float
    depth: int


@dataclass(frozen=True)
class MapOnGenerator:
    """A feature map on a generator: its test and its patches."""

    test: MedianTest
    patches: MapPatches
    histogram: Path | None
    collage: Path | None


@dataclass(frozen=True)
class DetectorContents:
    """Everything the report shows of a detector.

    Attributes:
        root: Output folder.
        record: Its entry in summary.json.
        names: Generators.
    """

    root: Path
    record: Mapping[str, Any]
    names: Sequence[str]

    @property
    def arch(self) -> str:
        """Canonical name of the architecture."""
        return str(self.record["arch"])

    @property
    def tag(self) -> str:
        """Stands for the detector's training in file names."""
        return str(self.record["tag"])

    @property
    def k(self) -> int:
        """Number of top maps."""
        return int(self.record["k"])

    @property
    def maps(self) -> list[TopMap]:
        """The top maps, in the order of the ranking."""
        entries = self.record["top_maps"]
        return [TopMap(parse_key(entry["key"]), float(entry["omega"]), int(entry["depth"])) for entry in entries]

    @cached_property
    def dropout(self) -> list[GeneratorResult]:
        """Sensitivity to dropping maps, by generator."""
        return [
            read_result(ResultFiles(self.root, DROPOUT, self.arch, name, self.tag), made_by=DROPOUT_SCRIPT)
            for name in self.names
        ]

    @cached_property
    def colour(self) -> list[GeneratorResult]:
        """Sensitivity to colour, by generator."""
        return [
            read_result(ResultFiles(self.root, COLOUR, self.arch, name, self.tag), made_by=COLOUR_SCRIPT)
            for name in self.names
        ]

    @cached_property
    def tests(self) -> dict[str, list[MedianTest]]:
        """Median tests of the top maps, by generator."""
        return {name: read_rows(self._tests(name).tests, MedianTest, made_by=MADE_BY) for name in self.names}

    @property
    def shares(self) -> list[ColourShare]:
        """Share of colour-conditional maps, by generator."""
        return [colour_share(name, tests) for name, tests in self.tests.items()]

    def of_maps(self, name: str) -> dict[FeatureMap, MapOnGenerator]:
        """Test, patches and figures of each top map on a generator.

        Raises:
            UserError: Files are missing, or belong to other maps.
        """
        tests = {test.feature_map_name: test for test in self.tests[name]}
        patches = {entry.fmap: entry for entry in PatchFiles(self.root, self.arch, name).read()}
        found = {}
        for fmap in (entry.fmap for entry in self.maps):
            if fmap.key not in tests or fmap not in patches:
                raise UserError(
                    f"{self.root}: no median test or no patches of {fmap.key} on {name}: run {MADE_BY} again"
                )
            histogram = self._tests(name).histogram(fmap.key)
            found[fmap] = MapOnGenerator(
                tests[fmap.key],
                patches[fmap],
                _if_drawn(histogram.with_name(f"{histogram.name}.png")),
                _if_drawn(self.collages / fmap.folder_name / f"{name}.pdf"),
            )
        return found

    @property
    def sensitivity_figure(self) -> Path:
        """Bars of all variants over generators."""
        stem = ResultFiles(self.root, DROPOUT, self.arch, self.names[0], self.tag).table
        return stem.with_name(f"{stem.name}.png")

    @property
    def whiskers_figure(self) -> Path:
        """Boxes of p(fake) in colour and greyscale, over all generators."""
        folder = safe_join(self.root, "whisker_plots", self.arch)
        return folder / f"{self.tag}.png" if len(self.names) > 1 else folder / self.tag / f"{self.names[0]}.png"

    @property
    def shares_figure(self) -> Path:
        """Colour-conditional share over generators."""
        stem = self._tests(self.names[0]).shares
        return stem.with_name(f"{stem.name}.png")

    def histograms_figure(self, name: str) -> Path:
        """Histograms of the first maps on a generator."""
        stem = self._tests(name).overview
        return stem.with_name(f"{stem.name}.png")

    @property
    def collages(self) -> Path:
        """Folder of the collages."""
        return safe_join(self.root, "collages", self.arch, self.tag)

    def collage_pages(self, name: str) -> list[Path]:
        """Pages of patches on a generator."""
        pages = [self.collages / f"{name}.png"]
        while (following := self.collages / f"{name}_{len(pages) + 1}.png").is_file():
            pages.append(following)
        return pages

    def tables(self) -> list[Path]:
        """Tables of the detector that are there, for links."""
        stems = [
            ResultFiles(self.root, DROPOUT, self.arch, self.names[0], self.tag).table,
            ResultFiles(self.root, COLOUR, self.arch, self.names[0], self.tag).table,
            self._tests(self.names[0]).shares,
        ]
        paths = [stem.with_name(f"{stem.name}.{suffix}") for stem in stems for suffix in ("csv", "md")]
        return [path for path in paths if path.is_file()]

    def _tests(self, name: str) -> MedianTestFiles:
        return MedianTestFiles(self.root, self.arch, name, self.tag)


def _if_drawn(path: Path) -> Path | None:
    """The figure, unless --maps_drawn has left it out."""
    return path if path.is_file() else None
