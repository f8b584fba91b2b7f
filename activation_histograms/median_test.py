"""Does a feature map respond otherwise when colour is gone (Sec. 6 of the paper)? Two tests of its largest activations.

The published one is Mood's median test. It takes the responses to the RGB and to the greyscale images for independent
samples, though they are those of the same images; as these vary in common, chance alone hardly ever makes its p-value
small, and neither does a modest effect. Wilcoxon's signed-rank test and the sign test look at each image's difference.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import binomtest, false_discovery_control, rankdata, wilcoxon
from scipy.stats import median_test as scipy_median_test

from activation_histograms.collector import ActivationPairs
from evaluation.intervals import wilson_interval
from utils.errors import UserError

LEVEL = 0.05
"""Largest p-value of a map called colour-conditional."""


@dataclass(frozen=True)
class MedianTest:
    """The tests of one feature map; differences are RGB less greyscale.

    Adjusted p-values are Benjamini and Hochberg's (1995) over the maps tested together, untestable ones (p = 1)
    included.

    Attributes:
        feature_map_name: Its key in rankings.
        p_value: Of Mood's hypothesis that both samples have one median.
        p_value_bh: Adjusted.
        median_rgb, median_grayscale: Medians of the largest activations.
        median_difference: Difference of these medians.
        statistic: Mood's: chi-squared with Yates' correction.
        grand_median: Median of both samples together.
        above_rgb, above_grayscale: Images above the grand median.
        images: Number of images, each in both samples.
        degenerate: 1 if Mood's test says nothing, since no image lies on one side of the grand median; p is 1 then.
        p_value_paired: Of Wilcoxon's hypothesis that the differences are symmetric about 0.
        p_value_paired_bh: Adjusted.
        p_value_sign: Of the sign test: a difference is as often positive as negative.
        paired_median: Median of the units' differences.
        rank_biserial: Share of the rank sum of positive differences less that of negative ones, -1..1 (Kerby, 2014).
        units: Differences that the paired tests look at: one for each image, or the median of each cluster.
        degenerate_paired: 1 if all differences are 0; the paired p are 1 then.
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
    p_value_paired: float
    p_value_paired_bh: float
    p_value_sign: float
    paired_median: float
    rank_biserial: float
    units: int
    degenerate_paired: int


def median_tests(pairs: ActivationPairs, clusters: ArrayLike | None = None) -> list[MedianTest]:
    """Test every map, Mood's test with SciPy's defaults: ties count as below, with continuity correction.

    Args:
        pairs: Activations.
        clusters: (images,), which images are not independent, such as tiles of a photograph. The paired tests look
            at the median difference of each cluster; Mood's stays as published.

    Raises:
        UserError: There are no images.
    """
    if not pairs.paths:
        raise UserError("no fake images to test activations on: give images of the generator")
    differences = pairs.rgb.astype(np.float64) - pairs.grayscale
    if clusters is not None:
        names = np.asarray(clusters)
        differences = np.stack([np.median(differences[names == name], axis=0) for name in np.unique(names)])
    samples = zip(pairs.keys, pairs.rgb.T, pairs.grayscale.T, differences.T, strict=True)
    return adjusted([_test(*sample) for sample in samples])


def adjusted(tests: Sequence[MedianTest]) -> list[MedianTest]:
    """The same tests with p-values adjusted over exactly these maps."""
    mood = false_discovery_control([test.p_value for test in tests])
    paired = false_discovery_control([test.p_value_paired for test in tests])
    return [
        replace(test, p_value_bh=float(p_mood), p_value_paired_bh=float(p_paired))
        for test, p_mood, p_paired in zip(tests, mood, paired, strict=True)
    ]


def _test(key: str, rgb: np.ndarray, grayscale: np.ndarray, differences: np.ndarray) -> MedianTest:
    """Tests of one map, not yet adjusted: (images,) twice, and (units,) for the paired ones."""
    both = np.concatenate([rgb, grayscale])
    grand_median = float(np.median(both))
    above = int((rgb > grand_median).sum()), int((grayscale > grand_median).sum())
    statistic, p_value = float("nan"), 1.0
    if testable := sum(above) not in (0, len(both)):
        mood = scipy_median_test(rgb, grayscale)
        statistic, p_value = float(mood.statistic), float(mood.pvalue)
    p_paired, p_sign, rank_biserial = _paired_tests(differences[differences != 0])
    medians = float(np.median(rgb)), float(np.median(grayscale))
    return MedianTest(
        key,
        p_value,
        p_value,
        *medians,
        medians[0] - medians[1],
        statistic,
        grand_median,
        *above,
        len(rgb),
        int(not testable),
        p_paired,
        p_paired,
        p_sign,
        float(np.median(differences)),
        rank_biserial,
        len(differences),
        int(not differences.any()),
    )


def _paired_tests(differences: np.ndarray) -> tuple[float, float, float]:
    """Of differences other than 0: p of the signed-rank and of the sign test, rank-biserial correlation."""
    if not len(differences):
        return 1.0, 1.0, 0.0
    ranks, positive = rankdata(np.abs(differences)), differences > 0
    rank_biserial = float((ranks[positive].sum() - ranks[~positive].sum()) / ranks.sum())
    sign = binomtest(int(positive.sum()), len(differences)).pvalue
    return float(wilcoxon(differences).pvalue), float(sign), rank_biserial


@dataclass(frozen=True)
class ColourShare:
    """How many of a generator's maps are colour-conditional, i.e. have a p-value of at most 0.05.

    Intervals are Wilson's at 95 % and take maps for independent; those of one network are not, so they are too
    narrow. Adjusted shares have none: each decision depends on the p-values of all other maps, so their number is no
    count of independent successes.

    Attributes:
        generator: Folder name.
        images: Number of fakes.
        maps: Number of maps tested.
        conditional: Those with a raw p-value of Mood's test of at most 0.05, as published.
        share, share_low, share_high: Their share and its interval, 0..1.
        conditional_bh, share_bh: By p-values adjusted over these maps.
        degenerate: Maps that Mood's test says nothing about; they count as not conditional.
        paired, share_paired, share_paired_low, share_paired_high: By the signed-rank test.
        paired_bh, share_paired_bh: By its p-values adjusted over these maps.
        degenerate_paired: Maps that the paired test says nothing about; they count as not conditional.
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
    degenerate: int
    paired: int
    share_paired: float
    share_paired_low: float
    share_paired_high: float
    paired_bh: int
    share_paired_bh: float
    degenerate_paired: int


def colour_share(generator: str, tests: Sequence[MedianTest], topk: int | None = None) -> ColourShare:
    """Count the colour-conditional maps of a generator, p-values adjusted over exactly the maps counted.

    Args:
        generator: Folder name.
        tests: In the order of the ranking.
        topk: Count the first so many maps only.

    Raises:
        UserError: There are fewer maps, or none.
    """
    if not 0 < (len(tests) if topk is None else topk) <= len(tests):
        raise UserError(f"{generator}: {len(tests)} maps were tested, so {topk or 'none'} cannot be counted")
    counted = adjusted(tests[:topk])
    names = ("p_value", "p_value_bh", "p_value_paired", "p_value_paired_bh")
    raw, bh, paired, paired_bh = (sum(getattr(test, name) <= LEVEL for test in counted) for name in names)
    maps = len(counted)
    return ColourShare(
        generator,
        counted[0].images,
        maps,
        raw,
        *(raw / maps, *wilson_interval(raw, maps)),
        *(bh, bh / maps),
        sum(test.degenerate for test in counted),
        paired,
        *(paired / maps, *wilson_interval(paired, maps)),
        *(paired_bh, paired_bh / maps),
        sum(test.degenerate_paired for test in counted),
    )
