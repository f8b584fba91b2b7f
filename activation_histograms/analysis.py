"""The median test of a generator, and the share of colour-conditional maps over generators."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from activation_histograms.collector import ActivationPairCollector, ActivationPairs, read_activations
from activation_histograms.figures import plot_histogram, plot_overview, plot_shares
from activation_histograms.median_test import LEVEL, ColourShare, MedianTest, colour_share, median_tests
from activation_histograms.options import MedianTestOptions
from fmap_ranking.ranking import find_ranking
from images.sets import FAKE, ImageSet
from passes.analysis import Analysis, Subject, draw_once
from passes.one_pass import PassReport
from passes.shared_forward import SharedForward
from utils.cli import progress
from utils.errors import UserError
from utils.files import safe_join, sha256_file, write_text
from utils.layout import Layout
from utils.provenance import Origin, describes, in_common, read_record, write_record
from utils.tables import markdown, percent, percent_range, read_rows, write_rows

SCRIPT = "src/median_test_activation_histograms.py"


class MedianTests(Analysis[MedianTestOptions]):
    """Whether the top maps respond otherwise to fakes without colour (Sec. 6, Fig. 6 of the paper)."""

    name = "median_test"
    labels = (FAKE,)

    def __init__(self, subject: Subject, options: MedianTestOptions) -> None:
        super().__init__(subject, options)
        self.ranked = find_ranking(subject, options)
        self.maps = self.ranked.ranking.top_k(self.ranked.k)

    @property
    def outputs(self) -> Sequence[Path]:
        folder = self.layout.median_tests
        return [safe_join(folder, f"{self.gan_name}.csv"), safe_join(folder, f"{self.gan_name}-activations.npz")]

    def inputs(self) -> dict[str, str]:
        return {"ranking": self.ranked.sha256}

    def facts(self) -> dict[str, object]:
        return {"topk": self.ranked.k}

    def collector(self, forward: SharedForward, images: ImageSet) -> ActivationPairCollector:
        return ActivationPairCollector(forward, self.maps, images, labels=self.labels)

    def write(self, collector: ActivationPairCollector, report: PassReport) -> dict[str, object]:
        pairs = collector.result()
        write_rows(self.outputs[0], median_tests(pairs, self.images.clusters_of(pairs.paths)), MedianTest)
        pairs.write(self.outputs[1])
        return {"ranking": self.ranked.path, "warning": self.ranked.warning, "fakes": len(pairs.paths)}

    @property
    def tests(self) -> list[MedianTest]:
        """The test of every map, from the file."""
        return read_rows(self.outputs[0], MedianTest, made_by=SCRIPT)

    def messages(self) -> list[str]:
        tests = self.tests
        degenerate = sum(test.degenerate for test in tests)
        remark = f"; {degenerate} not testable, alike on all images" if degenerate else ""
        warning = [f"warning: {self.gan_name}: {self.ranked.warning}"] if self.ranked.warning else []
        return [*warning, f"{self.outputs[0]}: {len(tests)} maps, {tests[0].images} fakes{remark}"]

    def numbers(self) -> dict[str, float]:
        share = colour_share(self.gan_name, self.tests)
        return {"share": share.share, "share_paired_bh": share.share_paired_bh}

    def drawing_settings(self) -> Mapping[str, object]:
        return {"histograms": self.options.histograms, "maps_drawn": self.options.maps_drawn}

    def histogram(self, key: str) -> Path:
        """Stem of the histograms of one map."""
        return safe_join(self.layout.histograms, key, self.gan_name)

    def draw(self) -> list[Path]:
        if self.options.histograms == "none":
            return []
        pairs, tests = read_activations(self.outputs[1], made_by=SCRIPT), self.tests
        fakes = f"{len(pairs.paths)} fakes of {self.gan_name}"
        title = f"{self.layout.arch}, blur_jpg {self.layout.tag}, {fakes}"
        pictures = plot_overview(pairs, tests, safe_join(self.layout.histograms, self.gan_name), title)
        if self.options.histograms == "all":
            pictures += self._draw_maps(pairs, tests[: self.options.maps_drawn or None], fakes)
        return pictures

    def _draw_maps(self, pairs: ActivationPairs, tests: Sequence[MedianTest], fakes: str) -> list[Path]:
        pictures: list[Path] = []
        for index, test in progress(list(enumerate(tests)), description="histograms", unit="map"):
            key = test.feature_map_name
            pictures += plot_histogram(pairs, index, test, self.histogram(key), f"{key}, {fakes}")
        return pictures

    @classmethod
    def tabulate(cls, analyses: Sequence[MedianTests]) -> list[Path]:
        return write_shares(analyses[0].layout, [analysis.gan_name for analysis in analyses])[1]


def _others_there(layout: Layout, name: str) -> list[str]:
    """Generators with tests of the same maps of the same detector as `name`."""

    def identity(path: Path) -> tuple[object, ...]:
        record = read_record(path)
        return describes(record, path), *in_common(record)

    wanted = identity(layout.median_tests / f"{name}.csv")
    paths = sorted(layout.median_tests.glob("*.csv")) if wanted[0] else []
    return [path.stem for path in paths if path.stem != name and identity(path) == wanted]


def write_shares(layout: Layout, names: Sequence[str], topk: int | None = None) -> tuple[list[ColourShare], list[Path]]:
    """Count the colour-conditional maps of each generator in its tests: table (CSV, Markdown) and figure.

    Args:
        layout: Of the detector.
        names: Generators; others with tests of the same maps are added, so that the table holds all there are.
        topk: Count the first so many maps only.

    Raises:
        UserError: No tests, or of fewer maps; names the command that makes them.
    """
    shares, sources = [], []
    names = list(dict.fromkeys([*names, *_others_there(layout, names[0])]))
    for name in names:
        path = safe_join(layout.median_tests, f"{name}.csv")
        made_by = (
            f"python {SCRIPT} --arch {layout.arch} --blur_jpg {layout.tag} --gan_name {name} --dataset_dir DIR "
            f"--output_dir {layout.root}"
        )
        tests = read_rows(path, MedianTest, made_by=made_by)
        if topk is not None and topk > len(tests):
            raise UserError(f"--topk {topk} is more than the {len(tests)} maps of {path}: make it anew with {made_by}")
        shares.append(colour_share(name, tests, topk))
        sources.append(path)
    stem = layout.median_tests / "color_conditional"
    table, page = (stem.with_name(f"{stem.name}.{suffix}") for suffix in ("csv", "md"))
    write_rows(table, shares, ColourShare)
    write_text(page, _page(layout, shares))
    inputs = {name: sha256_file(path) for name, path in zip(names, sources, strict=True)}
    write_record([table], Origin(MedianTests.computation, inputs, {"topk": topk}))
    title = f"{layout.arch}, blur_jpg {layout.tag}"

    def draw() -> list[Path]:
        return plot_shares(shares, stem, title)

    pictures = draw_once(layout, "color_conditional", sources, {"names": list(names), "topk": topk}, draw)
    return shares, [table, page, *pictures]


def _page(layout: Layout, shares: Sequence[ColourShare]) -> str:
    def both(share: ColourShare, which: str, count: int) -> str:
        value, low, high = (getattr(share, f"share{which}{end}") for end in ("", "_low", "_high"))
        return f"{percent(value)} {percent_range(low, high)} ({count})"

    rows: list[list[object]] = [
        [
            share.generator,
            share.images,
            share.maps,
            both(share, "", share.conditional),
            f"{percent(share.share_bh)} ({share.conditional_bh})",
            both(share, "_paired", share.paired),
            f"{percent(share.share_paired_bh)} ({share.paired_bh})",
            f"{share.degenerate} / {share.degenerate_paired}",
        ]
        for share in shares
    ]
    if len(shares) > 1:
        rows.append([f"mean of {len(shares)} generators ± standard error", "", "", *_means(shares), ""])
    return _PAGE.format(
        title=f"{layout.arch}, blur_jpg {layout.tag}", level=f"{LEVEL:g}", table=markdown(_HEADER, rows)
    )


def _means(shares: Sequence[ColourShare]) -> Iterator[str]:
    for name in ("share", "share_bh", "share_paired", "share_paired_bh"):
        values = [getattr(share, name) for share in shares]
        yield f"{percent(float(np.mean(values)))} ± {percent(float(np.std(values, ddof=1) / len(values) ** 0.5))}"


_HEADER = ["generator", "fakes", "maps", "Mood, raw p (published)", "Mood, adjusted"]
_HEADER += ["paired, raw p", "paired, adjusted", "untestable"]
_PAGE = """\
# Colour-conditional feature maps: {title}

Share of the maps counted whose largest activations differ without colour (p <= {level}), in percent, with the 95 % \
Wilson interval and the number of maps.

{table}

- Mood's median test, as published, takes RGB and greyscale for independent samples; the paired test (Wilcoxon's \
signed-rank test) looks at the difference of each image and finds much smaller changes.
- Adjusted: Benjamini and Hochberg's procedure over exactly the maps counted, of one generator. Each decision depends \
on all maps, so these shares have no interval. Nothing is adjusted for looking at several generators.
- Untestable (Mood / paired): maps that respond alike on all images, or not at all to colour (p = 1); they count as \
not colour-conditional.
- The intervals treat maps as independent draws; maps of one network are not, so they are too narrow.
"""
