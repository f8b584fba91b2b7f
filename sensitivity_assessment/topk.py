"""The choice of k: how AP falls with the number of top-ranked feature maps dropped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from textwrap import fill

from detectors.choice import DetectorChoice
from evaluation.summary import ScoreSummary
from fmap_ranking.names import FeatureMap
from images.choice import ImageChoice, Reading
from passes.analysis import Subject, draw_once
from passes.options import RunOptions
from passes.processes import Ranks
from passes.running import run_analyses, subjects
from sensitivity_assessment.figures import CURVE_METRICS, plot_topk
from sensitivity_assessment.options import TopkOptions
from sensitivity_assessment.sensitivity import Sensitivity
from sensitivity_assessment.variants import BASELINE, LOW, RANDOM, TOP, Variants, make_variants
from utils.cli import say
from utils.files import write_csv, write_json
from utils.provenance import write_record

NUMBERS = (1, 2, 5, 10, 20, 50, 100, 200, 500)
CURVES = (TOP, RANDOM, LOW)
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
        draws: dict[str, tuple[str, ...]] = {}
        for k in self.options.numbers:
            variants = make_variants(
                self.ranked.ranking, k, seed=self.subject.run.seed, draws=self.options.draws, layer_matched=False
            )
            maps |= {f"{name}@{k}": chosen for name, chosen in variants.maps.items() if name != BASELINE}
            draws[f"{RANDOM}@{k}"] = tuple(f"{name}@{k}" for name in variants.draws[RANDOM])
        return Variants(maps, draws, {})

    @property
    def folder(self) -> Path:
        """A folder of its own for each list of k, so that a bisection goes on where it was."""
        return super().folder / "passes" / "_".join(map(str, self.options.numbers))

    def facts(self) -> dict[str, object]:
        return {**super().facts(), "numbers": self.options.numbers}

    def remarks(self) -> list[str]:
        """What to know of the ranking before a k is chosen by it."""
        remarks = [f"warning: {self.gan_name}: {self.ranked.warning}"] if self.ranked.warning else []
        if self.ranked.record.get("facts", {}).get("gan_name") == self.gan_name:
            remarks.append(f"note: {self.gan_name}: the ranking was made on this set and suits it: judge k on others")
        return remarks

    def messages(self) -> list[str]:
        """Nothing for each pass: the search speaks of all."""
        return []


def find_k_of_sets(
    detector: DetectorChoice, images: ImageChoice, reading: Reading, options: TopkOptions, run: RunOptions
) -> dict[str, tuple[ChosenK, list[Path]]]:
    """The choice of k on every set named; empty on all ranks but the first."""
    with subjects(DroppedAtK, detector, images, reading, options, run) as (assessed, ranks):
        searched = {subject.gan_name: find_k(subject, options, ranks) for subject in assessed}
    known = {name: result for name, result in searched.items() if result is not None}
    for name, (chosen, paths) in known.items():
        say(f"{name}: {chosen.verdict}")
        say("\n".join(map(str, paths)))
    return known


@dataclass(frozen=True)
class ChosenK:
    """What came of a search.

    Attributes:
        k: Smallest k tried at which the AP of top-k has fallen to the target, or None.
        criterion: In words.
        target_ap: 0..1.
        baseline_ap: Of the unchanged detector.
        ap: AP of top-k by k.
    """

    k: int | None
    criterion: str
    target_ap: float
    baseline_ap: float
    ap: Mapping[int, float]

    @property
    def verdict(self) -> str:
        """What to say of it."""
        if self.k is not None:
            return f"k = {self.k}, {self.criterion}"
        if self.baseline_ap <= self.target_ap:
            return (
                f"no k chosen, the unchanged detector has AP {self.baseline_ap:.3f} already and the target is "
                f"{self.target_ap:.3f}: choose images that it ranks better, or --target_ap"
            )
        return f"no k chosen, AP stays above {self.target_ap:.3f}: try larger --numbers"


def find_k(subject: Subject, options: TopkOptions, ranks: Ranks) -> tuple[ChosenK, list[Path]] | None:
    """Try several k, choose, write and draw; None on all ranks but the first.

    Raises:
        UserError: Anything a user can mend.
        Interrupted: With the state saved; a pass that is over is not done again.
    """
    listed = tuple(sorted({*(options.numbers or NUMBERS), *([options.topk] if options.topk else [])}))
    passes = [DroppedAtK(subject, replace(options, numbers=listed))]
    for remark in passes[0].remarks() if ranks.is_first else ():
        say(remark)
    run_analyses(passes, ranks=ranks, tables=False)
    while options.bisect and (k := _next(passes, options)) is not None:
        passes.append(DroppedAtK(subject, replace(options, numbers=(k,))))
        run_analyses(passes[-1:], ranks=ranks, tables=False)
    return _report(passes, options) if ranks.is_first else None


def _rows(passes: Sequence[DroppedAtK]) -> dict[str, ScoreSummary]:
    return {name: row for analysis in passes for name, row in analysis.result.rows.items()}


def _choice(rows: Mapping[str, ScoreSummary], options: TopkOptions) -> ChosenK:
    baseline = rows[BASELINE]
    target, rule = options.target_ap, ""
    if target is None:
        target = (baseline.ap + baseline.fakes / baseline.images) / 2
        rule = " (halfway from the unchanged detector to guessing: our rule, not the paper's)"
    ap = {k: row.ap for k, row in curves_of(rows)[TOP].items()}
    k = smallest_below(ap, target) if baseline.ap > target else None
    return ChosenK(k, f"smallest k tried with top-k AP <= {target:.3f}{rule}", target, baseline.ap, ap)


def _next(passes: Sequence[DroppedAtK], options: TopkOptions) -> int | None:
    choice = _choice(_rows(passes), options)
    return None if choice.k is None else next_number(choice.ap, choice.target_ap)


def _report(passes: Sequence[DroppedAtK], options: TopkOptions) -> tuple[ChosenK, list[Path]]:
    first, rows = passes[0], _rows(passes)
    chosen, curves, baseline = _choice(rows, options), curves_of(rows), rows[BASELINE]
    folder = first.layout.scores(first.experiment, first.gan_name)
    table, choice = folder / "curves.csv", folder / "topk.json"
    columns = [f"{metric}{end}" for metric in CURVE_METRICS for end in ("", "_low", "_high")]
    lines = [
        (k, name, *(getattr(row, column) for column in columns))
        for name, points in curves.items()
        for k, row in points.items()
    ]
    write_csv(table, ("k", "variant", *columns), lines)
    write_json(choice, {"k": chosen.k, "criterion": chosen.criterion, "target_ap": chosen.target_ap, "ap": chosen.ap})
    origin = first.origin()
    facts = {**origin.facts, "numbers": list(chosen.ap), "target_ap": chosen.target_ap}
    write_record([table], replace(origin, facts=facts), settings=first.subject.settings)
    subject = f"{first.layout.arch}, blur_jpg {first.layout.tag}, {first.gan_name}: {baseline.images} images"
    title = f"{subject}\n{fill(chosen.verdict, 70)}"

    def draw() -> list[Path]:
        return plot_topk(curves, baseline, chosen.k, folder / "topk", title)

    pictures = draw_once(first.layout, f"find_topk-{first.gan_name}", [table], {"title": title}, draw)
    return chosen, [table, *pictures]


def curves_of(rows: Mapping[str, ScoreSummary]) -> dict[str, dict[int, ScoreSummary]]:
    """By curve and k what its column `<curve>@<k>` gave."""
    curves: dict[str, dict[int, ScoreSummary]] = {name: {} for name in CURVES}
    for name, row in rows.items():
        curve, _, number = name.partition("@")
        if curve in curves and number.isdigit():
            curves[curve][int(number)] = row
    return {curve: dict(sorted(points.items())) for curve, points in curves.items()}


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
