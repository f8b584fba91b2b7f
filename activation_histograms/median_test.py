"""Mood's median test: does a feature map respond otherwise when colour is gone (Sec. 6 of the paper)?"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import numpy as np
from scipy.stats import false_discovery_control
from scipy.stats import median_test as scipy_median_test

from activation_histograms.collector import ActivationPairs
from evaluation.metrics import wilson_interval
from utils.errors import UserError
from utils.files import write_csv

LEVEL = 0.05
"""Largest p-value of a map called colour-conditional."""


@dataclass(frozen=True)
class MedianTest:
    """The test of one feature map.

    Attributes:
        feature_map_name: Its key in rankings.
        p_value: Of the hypothesis that both samples have one median.
        p_value_bh: Adjusted for the number of maps tested (Benjamini and Hochberg, 1995).
        median_rgb, median_grayscale: Medians of the largest activations.
        median_difference: The first less the second: the effect.
        statistic: Chi-squared with Yates' correction.
        grand_median: Median of both samples together.
        above_rgb, above_grayscale: Images above the grand median.
        images: Number of images, each in both samples.
        degenerate: 1 if the test says nothing, since no image lies on one side of the grand median; p is 1 then.
    """

    feature_map_name: str
    p_value: float
    p_value_bh: float
    median_rgb: float
    median_grayscale: float
    median_difference: float
    statistic: float
    grand_median: float
    above_rgb: int
    above_grayscale: int
    images: int
    degenerate: int


def median_tests(pairs: ActivationPairs) -> list[MedianTest]:
    """Test every map, with SciPy's defaults: ties count as below, with continuity correction.

    Raises:
        UserError: There are no images.
    """
    if not pairs.paths:
        raise UserError("no fake images to test activations on: give images of the generator")
    tests = [_test(rgb, grayscale) for rgb, grayscale in zip(pairs.rgb.T, pairs.grayscale.T, strict=True)]
    adjusted = false_discovery_control([p_value for _, p_value, _, _ in tests])
    rows = []
    for place, (key, (statistic, p_value, grand_median, above)) in enumerate(zip(pairs.keys, tests, strict=True)):
        rgb, grayscale = (float(np.median(sample[:, place])) for sample in (pairs.rgb, pairs.grayscale))
        rows.append(
            MedianTest(
                key,
                p_value,
                float(adjusted[place]),
                rgb,
                grayscale,
                rgb - grayscale,
                statistic,
                grand_median,
                above[0],
                above[1],
                len(pairs.paths),
                int(np.isnan(statistic)),
            )
        )
    return rows


def _test(rgb: np.ndarray, grayscale: np.ndarray) -> tuple[float, float, float, tuple[int, int]]:
    """Statistic, p-value, grand median, and number above it in either sample."""
    both = np.concatenate([rgb, grayscale])
    grand_median = float(np.median(both))
    above = int((rgb > grand_median).sum()), int((grayscale > grand_median).sum())
    if sum(above) in (0, len(both)):
        return float("nan"), 1.0, grand_median, above
    result = scipy_median_test(rgb, grayscale)
    return float(result.statistic), float(result.pvalue), float(result.median), above


_HEADER = tuple(entry.name for entry in fields(MedianTest))


def write_tests(path: Path, tests: Sequence[MedianTest]) -> None:
    """Write as CSV, one row per map in the order given; atomic."""
    write_csv(path, _HEADER, [astuple(test) for test in tests])


def read_tests(path: Path, *, made_by: str) -> list[MedianTest]:
    """Read what `write_tests` wrote.

    Raises:
        UserError: missing, unreadable or of another format; the message says how to make it.
    """
    kinds = {entry.name: {"str": str, "float": float, "int": int}[str(entry.type)] for entry in fields(MedianTest)}
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        if not rows:
            raise ValueError("no feature map")
        return [MedianTest(**{name: kind(row[name]) for name, kind in kinds.items()}) for row in rows]
    except FileNotFoundError:
        raise UserError(f"no median test at {path}: make it with {made_by}") from None
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged or not a table of median tests: make it anew with {made_by}") from error


@dataclass(frozen=True)
class ColourShare:
    """How many of a generator's maps are colour-conditional, i.e. have a p-value of at most 0.05.

    Attributes:
        generator: Folder name.
        images: Number of fakes.
        maps: Number of maps tested.
        conditional: Those with a raw p-value of at most 0.05, as published.
        share, share_low, share_high: Their share and its 95 % Wilson interval, 0..1.
        conditional_bh: Those with an adjusted p-value of at most 0.05.
        share_bh, share_bh_low, share_bh_high: The same for these.
        degenerate: Maps that the test says nothing about; they count as not conditional.
    """

    generator: str
    images: int
    maps: int
    conditional: int
    share: float
    share_low: float
    share_high: float
    conditional_bh: int
    share_bh: float
    share_bh_low: float
    share_bh_high: float
    degenerate: int


def colour_share(generator: str, tests: Sequence[MedianTest]) -> ColourShare:
    """Count the colour-conditional maps of a generator."""
    raw = sum(test.p_value <= LEVEL for test in tests)
    adjusted = sum(test.p_value_bh <= LEVEL for test in tests)
    return ColourShare(
        generator,
        tests[0].images,
        len(tests),
        raw,
        raw / len(tests),
        *wilson_interval(raw, len(tests)),
        adjusted,
        adjusted / len(tests),
        *wilson_interval(adjusted, len(tests)),
        sum(test.degenerate for test in tests),
    )
