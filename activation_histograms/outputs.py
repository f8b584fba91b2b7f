"""Where the results of the median test lie, and the table of colour-conditional shares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from activation_histograms.median_test import LEVEL, ColourShare
from utils.files import safe_join, write_text
from utils.tables import markdown, percent, percent_range, write_rows


@dataclass(frozen=True)
class MedianTestFiles:
    """Files of one generator under one detector.

    Attributes:
        root: Output folder.
        arch: Canonical name of the architecture.
        gan_name: Generator.
        tag: Augmentation tag of the detector.
    """

    root: Path
    arch: str
    gan_name: str
    tag: str

    @property
    def folder(self) -> Path:
        """Folder of all generators' tests."""
        return safe_join(self.root, "median_test", f"{self.arch}_{self.tag}")

    @property
    def tests(self) -> Path:
        """The test of every map."""
        return safe_join(self.folder, f"{self.gan_name}.csv")

    @property
    def activations(self) -> Path:
        """The samples behind the tests."""
        return safe_join(self.folder, f"{self.gan_name}-activations.npz")

    @property
    def state(self) -> Path:
        """Saved state of an interrupted run."""
        return safe_join(self.folder, f".{self.gan_name}-state.npz")

    @property
    def shares(self) -> Path:
        """Stem of the table and figure of colour-conditional shares over generators."""
        return self.folder / "color_conditional"

    def histogram(self, key: str) -> Path:
        """Stem of the histograms of one map."""
        return safe_join(self.root, "activation_histograms", self.arch, self.tag, key, self.gan_name)

    @property
    def overview(self) -> Path:
        """Stem of the overview of the first maps."""
        return safe_join(self.root, "activation_histograms", self.arch, self.tag, self.gan_name)


def write_shares(stem: Path, arch: str, tag: str, shares: Sequence[ColourShare]) -> list[Path]:
    """Table of colour-conditional shares, as CSV (fractions) and Markdown (percent).

    Returns:
        The files written.
    """
    paths = [stem.with_name(f"{stem.name}.csv"), stem.with_name(f"{stem.name}.md")]
    write_rows(paths[0], shares, ColourShare)
    header = ["generator", "fakes", "maps", "Mood, raw p (published)", "Mood, adjusted"]
    header += ["paired, raw p", "paired, adjusted", "untestable"]
    rows = [
        [
            share.generator,
            share.images,
            share.maps,
            f"{percent(share.share)} {percent_range(share.share_low, share.share_high)} ({share.conditional})",
            f"{percent(share.share_bh)} ({share.conditional_bh})",
            f"{percent(share.share_paired)} {percent_range(share.share_paired_low, share.share_paired_high)} "
            f"({share.paired})",
            f"{percent(share.share_paired_bh)} ({share.paired_bh})",
            f"{share.degenerate} / {share.degenerate_paired}",
        ]
        for share in shares
    ]
    lines = [
        f"# Colour-conditional feature maps: {arch}, blur_jpg {tag}",
        "",
        f"Share of the maps counted whose largest activations differ without colour (p <= {LEVEL:g}), in percent, with "
        "the 95 % Wilson interval and the number of maps.",
        "",
        markdown(header, rows),
        "",
        "- Mood's median test, as published, takes RGB and greyscale for independent samples; the paired test "
        "(Wilcoxon's signed-rank test) looks at the difference of each image and finds much smaller changes.",
        "- Adjusted: Benjamini and Hochberg's procedure over exactly the maps counted. Each decision depends on all "
        "maps, so these shares have no interval.",
        "- Untestable (Mood / paired): maps that respond alike on all images, or not at all to colour (p = 1); they "
        "count as not colour-conditional.",
        "- The intervals treat maps as independent draws; maps of one network are not, so they are too narrow.",
    ]
    write_text(paths[1], "\n".join(lines) + "\n")
    return paths
