"""The choice of k: how AP falls with the number of top-ranked feature maps dropped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from detectors.choice import DetectorChoice
from evaluation.metrics import average_precision
from evaluation.scores import Scores
from evaluation.summary import ScoreSummary, summarise_columns
from fmap_ranking.names import FeatureMap
from images.choice import ImageChoice, Reading
from passes.analysis import Subject, draw_once
from passes.options import RunOptions
from passes.processes import Ranks
from passes.running import run_analyses, subjects
from sensitivity_assessment.figures import plot_topk
from sensitivity_assessment.options import TopkOptions
from sensitivity_assessment.sensitivity import Sensitivity
from sensitivity_assessment.variants import BASELINE, LOW, RANDOM, TOP, Variants, make_variants
from utils.errors import UserError
from utils.files import write_csv, write_json
from utils.provenance import Origin, write_record

NUMBERS = (1, 2, 5, 10, 20, 50, 100, 200, 500)
CURVES = (TOP, RANDOM, LOW)
_METRICS = ("ap", "acc_fake", "acc_real")
# A bisection ends when k is known to this share of itself.
_PRECISION = 0.05


class DroppedAtK(Sensitivity):
    """Scores without the top, random and lowest k maps for several k; columns end in `@<k>`."""

    name = "find_topk"
    experiment = "find_topk"
    script = "src/find_topk.py"
    options: TopkOptions

    def _variants(self) -> Variants:
        maps: dict[str, tuple[FeatureMap, ...]] = {BASELINE: ()}
        kinds: dict[str, tuple[str, ...]] = {}
        for k in self.options.numbers:
            variants = make_variants(
                self.ranked.ranking, k, seed=self.subject.run.seed, draws=self.options.draws, layer_matched=False
            )
            maps |= {f"{name}@{k}": chosen for name, chosen in variants.maps.items() if name != BASELINE}
            kinds[f"{RANDOM}@{k}"] = tuple(f"{name}@{k}" for name in variants.draws[RANDOM])
        return Variants(maps, kinds, {})

    @property
    def folder(self) -> Path:
        """A folder of its own for each list of k, so that a bisection goes on where it was."""
        return super().folder / "passes" / "_".join(map(str, self.options.numbers))

    def facts(self) -> dict[str, object]:
        return {**super().facts(), "numbers": self.options.numbers}

    def messages(self) -> list[str]:
        return []


def find_k_of_sets(
    detector: DetectorChoice, images: ImageChoice, reading: Reading, options: TopkOptions, run: RunOptions
) -> dict[str, tuple[ChosenK, list[Path]]]:
    """The choice of k on every set named; empty on all ranks but the first."""
    with subjects(detector, images, reading, options, run) as (found, ranks):
        searched = {subject.gan_name: find_k(subject, options, ranks) for subject in found}
    return {name: result for name, result in searched.items() if result is not None}


@dataclass(frozen=True)
class ChosenK:
    """What came of a search.

    Attributes:
        k: Smallest k tried at which the AP of top-k has fallen to the target, or None.
        criterion: In words.
        target_ap: 0..1.
        ap: AP of top-k by k.
    """

    k: int | None
    criterion: str
    target_ap: float
    ap: Mapping[int, float]

    @property
    def none_fits(self) -> str:
        """What to say if no k was found."""
        return f"no k chosen, AP stays above {self.target_ap:.3f}: try larger --numbers"


def find_k(subject: Subject, options: TopkOptions, ranks: Ranks) -> tuple[ChosenK, list[Path]] | None:
    """Try several k, choose, write and draw; None on all ranks but the first.

    Raises:
        UserError: Anything a user can mend.
        Interrupted: With the state saved; a pass that is over is not done again.
    """
    listed = tuple(sorted({*(options.numbers or NUMBERS), *([options.topk] if options.topk else [])}))
    passes = [DroppedAtK(subject, replace(options, numbers=listed))]
    run_analyses(passes, ranks=ranks, tables=False)
    while options.bisect and (k := _next(passes, options)) is not None:
        passes.append(DroppedAtK(subject, replace(options, numbers=(k,))))
        run_analyses(passes[-1:], ranks=ranks, tables=False)
    return _report(passes, options) if ranks.is_first else None


def _joined(passes: Sequence[DroppedAtK]) -> Scores:
    tables = [analysis.scores for analysis in passes]
    columns = {name: column for table in tables for name, column in table.columns.items()}
    return Scores(tables[0].paths, tables[0].labels, columns)


def _target(options: TopkOptions, labels: np.ndarray, baseline: float) -> float:
    """AP asked for; by default halfway from that of the unchanged detector to guessing, the share of fakes."""
    return (baseline + float(labels.mean())) / 2 if options.target_ap is None else options.target_ap


def _next(passes: Sequence[DroppedAtK], options: TopkOptions) -> int | None:
    scores = _joined(passes)
    try:
        ap = {name: average_precision(scores.labels, column) for name, column in scores.columns.items()}
    except UserError as error:
        raise UserError(f"{passes[0].gan_name}: {error}") from error
    top = {int(name.partition("@")[2]): value for name, value in ap.items() if name.startswith(f"{TOP}@")}
    return next_number(top, _target(options, scores.labels, ap[BASELINE]))


def _report(passes: Sequence[DroppedAtK], options: TopkOptions) -> tuple[ChosenK, list[Path]]:
    first, scores = passes[0], _joined(passes)
    groups = {kind: members for analysis in passes for kind, members in analysis.groups().items()}
    rows = summarise_columns(
        scores.labels, scores.columns, groups, draws=options.bootstrap, seed=first.subject.run.seed
    )
    by_name = {row.variant: row for row in rows}
    curves = curves_of(by_name)
    baseline = {metric: float(getattr(by_name[BASELINE], metric)) for metric in _METRICS}
    target = _target(options, scores.labels, baseline["ap"])
    top = {k: point["ap"] for k, point in curves[TOP].items()}
    criterion = f"smallest k tried with top-k AP <= {target:.3f}"
    if options.target_ap is None:
        criterion += " (halfway from the unchanged detector to guessing: our rule, not the paper's)"
    chosen = ChosenK(smallest_below(top, target), criterion, target, top)
    folder = first.layout.scores(first.experiment, first.gan_name)
    table, choice = folder / "curves.csv", folder / "topk.json"
    lines = [(k, name, *curves[name][k].values()) for name in CURVES for k in sorted(curves[name])]
    write_csv(table, ("k", "variant", *next(iter(curves[TOP].values()))), lines)
    write_json(choice, {"k": chosen.k, "criterion": criterion, "target_ap": target, "ap": top})
    origin = first.origin()
    facts = {**origin.facts, "numbers": sorted(top), "target_ap": target}
    write_record([table], Origin(origin.computation, origin.inputs, facts), settings=first.subject.settings)
    title = f"{first.layout.arch}, blur_jpg {first.layout.tag}, {first.gan_name}: {len(scores.labels)} images"
    lines_of_title = criterion.replace(" (", "\n(")

    def draw() -> list[Path]:
        return plot_topk(curves, baseline, chosen.k, folder / "topk", f"{title}\n{lines_of_title}")

    pictures = draw_once(first.layout, f"find_topk-{first.gan_name}", [table], {"criterion": criterion}, draw)
    return chosen, [table, *pictures]


def curves_of(rows: Mapping[str, ScoreSummary]) -> dict[str, dict[int, dict[str, float]]]:
    """By curve and k the metrics with the ends of their intervals."""
    curves: dict[str, dict[int, dict[str, float]]] = {name: {} for name in CURVES}
    for name, row in rows.items():
        curve, _, number = name.partition("@")
        if curve in curves and number:
            columns = [f"{metric}{end}" for metric in _METRICS for end in ("", "_low", "_high")]
            curves[curve][int(number)] = {column: float(getattr(row, column)) for column in columns}
    return curves


def smallest_below(ap: Mapping[int, float], target: float) -> int | None:
    """The smallest k whose AP is at most `target`, or None."""
    return next((k for k in sorted(ap) if ap[k] <= target), None)


def next_number(ap: Mapping[int, float], target: float) -> int | None:
    """The k to try next in a bisection for AP = `target`, or None when it is done or the target is not bracketed.

    It halves the ratio between the largest k before the first AP at or below `target` and that k, as if AP fell
    steadily with k.

    >>> next_number({10: 0.9, 1000: 0.5}, 0.7)
    100
    >>> next_number({10: 0.9, 11: 0.6}, 0.7) is None
    True
    """
    high = smallest_below(ap, target)
    below = [k for k in ap if high is not None and k < high]
    if high is None or not below:
        return None
    low = max(below)
    middle = round((low * high) ** 0.5)
    middle = min(max(middle, low + 1), high - 1)
    return middle if high - low > max(1.0, _PRECISION * low) else None
