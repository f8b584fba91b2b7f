"""Where the results of the median test lie, and the table of colour-conditional shares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from activation_histograms.median_test import LEVEL, ColourShare
from utils.files import safe_join, write_csv, write_text


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
    write_csv(paths[0], [entry.name for entry in fields(ColourShare)], [astuple(share) for share in shares])
    lines = [
        f"# Colour-conditional feature maps: {arch}, blur_jpg {tag}",
        "",
        f"Share of the tested maps whose largest activations have another median without colour (Mood's median test, "
        f"p <= {LEVEL:g}), with its 95 % Wilson interval. In percent.",
        "",
        "| generator | fakes | maps | colour-conditional (raw p, as published) | after Benjamini-Hochberg "
        "| untestable |",
        "|---|---|---|---|---|---|",
    ]
    for share in shares:
        raw = _percent(share.conditional, share.share, share.share_low, share.share_high)
        adjusted = _percent(share.conditional_bh, share.share_bh, share.share_bh_low, share.share_bh_high)
        lines.append(f"| {share.generator} | {share.images} | {share.maps} | {raw} | {adjusted} | {share.degenerate} |")
    lines += [
        "",
        "- Untestable maps respond alike on all images (p = 1); they count as not colour-conditional.",
        "- The interval treats maps as independent draws; maps of one network are not, so it is too narrow.",
    ]
    write_text(paths[1], "\n".join(lines) + "\n")
    return paths


def _percent(count: int, share: float, low: float, high: float) -> str:
    return f"{100 * share:.1f} [{100 * low:.1f}, {100 * high:.1f}] ({count})"
