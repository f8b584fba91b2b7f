"""Do detectors look at the same thing? Whether two of them rank the same images alike, and err together."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from evaluation.intervals import Resampling, centred_bounds, interval, wilson_interval
from evaluation.metrics import called_fake
from evaluation.scores import Scores
from utils.figures import house_style, new_figure, save_figure
from utils.tables import ABSENT, markdown, percent, percent_range

CAPTION = (
    "Rank correlation: Spearman's, of p(fake) on the same images, over all of them and within the reals and the fakes, "
    "where a label that both tell does not raise it. Errors: images on the wrong side of 0.5. Beyond chance: the share "
    "of images that both get wrong, in percent, minus what it would be if two detectors with these accuracies on reals "
    "and on fakes erred independently. Brackets: 95 % intervals over redrawn images."
)


@dataclass(frozen=True)
class Agreement:
    """Two detectors on one test set; correlations in -1..1, shares in 0..1, their difference in -1..1.

    `_low` and `_high` bound 95 % intervals. NaN where there is nothing to compare: all scores alike, no error.

    Attributes:
        rank, rank_real, rank_fake: Spearman's rank correlation of p(fake), over all images and within each label.
        wrong_first, wrong_second, wrong_both: Images on the wrong side of 0.5.
        shared: Of the images that either gets wrong, those that both do.
        beyond_chance: Share of images that both get wrong minus that of errors independent within each label.
    """

    test_set: str
    first: str
    second: str
    images: int
    fakes: int
    rank: float
    rank_low: float
    rank_high: float
    rank_real: float
    rank_real_low: float
    rank_real_high: float
    rank_fake: float
    rank_fake_low: float
    rank_fake_high: float
    wrong_first: int
    wrong_second: int
    wrong_both: int
    shared: float
    beyond_chance: float
    beyond_chance_low: float
    beyond_chance_high: float

    @property
    def finding(self) -> str:
        """What the interval of `beyond_chance` says."""
        if not (self.wrong_first and self.wrong_second):
            return "no errors to share"
        if self.beyond_chance_low > 0:
            return "err together more than by chance"
        if self.beyond_chance_high < 0:
            return "err together less than by chance"
        return "not told apart from chance"


def agreements(
    test_set: str,
    scores: Mapping[str, Scores],
    *,
    clusters: Mapping[str, str],
    draws: int = 1000,
    seed: int = 0,
    strict: bool = False,
) -> list[Agreement]:
    """Agreement of every two detectors on the labelled images that all of them scored.

    Args:
        test_set: Its name.
        scores: By detector; the first column counts.
        clusters: By image the cluster that it belongs to; independent images have none.
        draws, seed, strict: As in `evaluation.summary.summarise_columns`.
    """
    tables = {name: _by_path(table) for name, table in scores.items()}
    paths = sorted(set.intersection(*(set(table) for table in tables.values()))) if tables else []
    if not paths or len(tables) < 2:
        return []
    values = {name: np.array([table[path][1] for path in paths]) for name, table in tables.items()}
    labels = np.array([next(iter(tables.values()))[path][0] for path in paths])
    wrong = {name: called_fake(column, 0.5, strict=strict) != labels for name, column in values.items()}
    of_cluster = np.array([clusters.get(path) or path for path in paths])
    resampling = Resampling(labels, of_cluster, draws=draws, seed=seed)
    whole = np.ones((1, len(labels)))
    known = _of_draws(labels, values, wrong, whole)
    redrawn = [_of_draws(labels, values, wrong, counts) for counts in resampling.blocks()]
    units = (resampling.units, resampling.real_units, resampling.fake_units)
    rows = []
    for pair in combinations(values, 2):
        first, second = pair
        (numbers,), samples = known[pair], np.concatenate([block[pair] for block in redrawn])
        either = int((wrong[first] | wrong[second]).sum())
        both = int((wrong[first] & wrong[second]).sum())
        # redraws of few errors are too sure of themselves: their share is no surer than Wilson's interval
        low, high = centred_bounds(numbers[3], samples[:, 3])
        least, most = wilson_interval(both / len(labels) * units[0], units[0])
        expected = both / len(labels) - numbers[3]
        low, high = min(low, least - expected), max(high, most - expected)
        cells: dict[str, Any] = {}
        for index, kind in enumerate(("rank", "rank_real", "rank_fake")):
            bounds = _correlation_bounds(numbers[index], samples[:, index], units[index])
            cells |= dict(zip((kind, f"{kind}_low", f"{kind}_high"), (float(numbers[index]), *bounds), strict=True))
        rows.append(
            Agreement(
                test_set,
                first,
                second,
                images=len(labels),
                fakes=int(labels.sum()),
                wrong_first=int(wrong[first].sum()),
                wrong_second=int(wrong[second].sum()),
                wrong_both=both,
                shared=both / either if either else math.nan,
                beyond_chance=float(numbers[3]),
                beyond_chance_low=float(low),
                beyond_chance_high=float(high),
                **cells,
            )
        )
    return rows


def _by_path(table: Scores) -> dict[str, tuple[int, float]]:
    column = next(iter(table.columns.values()))
    labelled = zip(table.paths, table.labels.tolist(), column.tolist(), strict=True)
    return {path: (label, value) for path, label, value in labelled if label >= 0}


def _of_draws(
    labels: np.ndarray, values: Mapping[str, np.ndarray], wrong: Mapping[str, np.ndarray], counts: np.ndarray
) -> dict[tuple[str, str], np.ndarray]:
    """By pair (draws, 4): the three correlations, and `beyond_chance`; counts (draws, n) say how often images count."""
    by_label = [counts * (labels == label) for label in (0, 1)]
    weights = [counts, *by_label]
    ranks = {name: [midranks(column, part) for part in weights] for name, column in values.items()}
    totals = counts.sum(1)
    by_pair = {}
    for first, second in combinations(values, 2):
        columns = [_correlation(ranks[first][k], ranks[second][k], weights[k]) for k in range(3)]
        both = counts @ (wrong[first] & wrong[second])
        expected = np.zeros(len(counts))
        for part in by_label:
            size = np.maximum(part.sum(1), 1.0)
            expected += (part @ wrong[first]) * (part @ wrong[second]) / size
        by_pair[first, second] = np.stack([*columns, (both - expected) / totals], axis=1)
    return by_pair


def midranks(values: ArrayLike, counts: np.ndarray) -> np.ndarray:
    """Ranks of values (n,), each as often there as counts (draws, n) say; ties share their mean rank. (draws, n)."""
    _, group = np.unique(np.asarray(values), return_inverse=True)
    order = np.argsort(group, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(group[order])), len(order) - 1)
    reached = np.cumsum(counts[:, order], axis=1)[:, ends]
    sizes = np.diff(reached, axis=1, prepend=0.0)
    return (reached - sizes / 2.0)[:, group]


def _correlation(first: np.ndarray, second: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Pearson's correlation of each draw, (draws,); NaN where one of the two does not vary."""
    size = np.maximum(counts.sum(1, keepdims=True), 1.0)
    a, b = (ranks - (counts * ranks).sum(1, keepdims=True) / size for ranks in (first, second))
    product, scale = (counts * a * b).sum(1), np.sqrt((counts * a * a).sum(1) * (counts * b * b).sum(1))
    return np.divide(product, scale, out=np.full(len(counts), np.nan), where=scale > 0)


def _correlation_bounds(value: float, samples: np.ndarray, units: int) -> tuple[float, float]:
    samples = samples[~np.isnan(samples)]
    if math.isnan(value) or not len(samples):
        return math.nan, math.nan
    low, high = interval((value + 1) / 2, (samples + 1) / 2, units)
    return 2 * float(low) - 1, 2 * float(high) - 1


def agreement_table(rows: Sequence[Agreement]) -> str:
    """The table in Markdown."""
    header = ["set", "detectors", "images", "rank correlation", "within reals", "within fakes"]
    header += ["wrong: first, second, both", "beyond chance", "errors"]
    return markdown(
        header,
        [
            (
                row.test_set,
                f"{row.first}, {row.second}",
                row.images,
                *(_signed(row, kind) for kind in ("rank", "rank_real", "rank_fake")),
                f"{row.wrong_first}, {row.wrong_second}, {row.wrong_both}",
                f"{percent(row.beyond_chance)} {percent_range(row.beyond_chance_low, row.beyond_chance_high)}",
                row.finding,
            )
            for row in rows
        ],
    )


def _signed(row: Agreement, kind: str) -> str:
    value, low, high = (getattr(row, f"{kind}{end}") for end in ("", "_low", "_high"))
    return ABSENT if math.isnan(value) else f"{value:.2f} [{low:.2f}, {high:.2f}]"


@house_style()
def draw_agreement(rows: Sequence[Agreement], stem: Path) -> list[Path]:
    """Two matrices of detectors, means over the test sets: rank correlation within labels, and errors shared."""
    if not rows:
        return []
    names = list(dict.fromkeys(name for row in rows for name in (row.first, row.second)))
    side = 1.9 + 0.8 * len(names)
    figure, panels = new_figure(2 * side + 2.2, side, columns=2, squeeze=False)
    matrices: list[tuple[str, dict[str, Any], int, Callable[[Agreement], Sequence[float]]]] = [
        (
            "Rank correlation within labels",
            {"cmap": "PuOr_r", "vmin": -1, "vmax": 1},
            2,
            lambda row: (row.rank_real, row.rank_fake),
        ),
        (
            "Images both get wrong,\n% of those either does",
            {"cmap": "Oranges", "vmin": 0, "vmax": 100},
            0,
            lambda row: [100 * row.shared],
        ),
    ]
    for axes, (title, colours, digits, numbers) in zip(panels[0], matrices, strict=True):
        matrix = np.full((len(names), len(names)), np.nan)
        for a, b in combinations(names, 2):
            measured = [number for row in rows if {row.first, row.second} == {a, b} for number in numbers(row)]
            known = [number for number in measured if not math.isnan(number)]
            places = names.index(a), names.index(b)
            matrix[places] = matrix[places[::-1]] = np.mean(known) if known else np.nan
        image = axes.imshow(matrix, **colours)
        for row, column in np.argwhere(~np.isnan(matrix)):
            value = matrix[row, column]
            ink = "white" if abs(value) > 0.6 * colours["vmax"] else "black"
            axes.text(column, row, f"{value:.{digits}f}", ha="center", va="center", color=ink)
        axes.set_xticks(range(len(names)), names, rotation=30, ha="right")
        axes.set_yticks(range(len(names)), names)
        axes.set_title(title)
        axes.grid(visible=False)
        figure.colorbar(image, ax=axes, shrink=0.8)
    return save_figure(figure, stem)
