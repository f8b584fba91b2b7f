"""What a detector loses without its top-ranked feature maps (Sec. 4, Tab. 1 of the paper)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from evaluation.assessment import AVERAGED, Assessment
from evaluation.conditions import Condition, WithoutMaps
from evaluation.published import published_sensitivity
from evaluation.tables import write_table
from fmap_ranking.ranking import find_ranking
from passes.analysis import Subject, draw_once
from passes.one_pass import PassReport
from sensitivity_assessment.figures import plot_sensitivity
from sensitivity_assessment.options import SensitivityOptions
from sensitivity_assessment.variants import BASELINE, LAYER_RANDOM, LOW, RANDOM, TOP, Variants, make_variants
from utils.files import write_csv

SHOWN = (BASELINE, TOP, RANDOM, f"{RANDOM}-{AVERAGED}", LAYER_RANDOM, LOW)


class Sensitivity(Assessment[SensitivityOptions]):
    """AP and accuracy without the top k maps, k random ones, k random ones of the same layers, and the lowest k."""

    name = "sensitivity"
    experiment = "transfer"
    script = "src/transfer_sensitivity_analysis.py"
    chosen_on = BASELINE

    def __init__(self, subject: Subject, options: SensitivityOptions) -> None:
        super().__init__(subject, options)
        self.ranked = find_ranking(subject, options)
        self.variants: Variants = self._variants()

    def _variants(self) -> Variants:
        run = self.subject.run
        return make_variants(
            self.ranked.ranking, self.ranked.k, seed=run.seed, draws=self.options.draws, published=run.published
        )

    @cached_property
    def conditions(self) -> Sequence[Condition]:
        return [
            WithoutMaps(column, tuple((fmap.layer, fmap.index) for fmap in maps))
            for column, maps in self.variants.maps.items()
        ]

    def groups(self) -> Mapping[str, Sequence[str]]:
        return self.variants.draws

    def maps_dropped(self) -> Mapping[str, int]:
        return {column: len(set(maps)) for column, maps in self.variants.maps.items()}

    def inputs(self) -> dict[str, str]:
        return {**super().inputs(), "ranking": self.ranked.sha256}

    def facts(self) -> dict[str, object]:
        return {**super().facts(), "topk": self.ranked.k, "draws": self.options.draws}

    @property
    def outputs(self) -> Sequence[Path]:
        return [*super().outputs, self.folder / "dropped_maps.csv"]

    def write(self, collector: Any, report: PassReport) -> dict[str, object]:
        notes = super().write(collector, report)
        rows = [(column, fmap.key) for column, maps in self.variants.maps.items() for fmap in maps]
        write_csv(self.outputs[2], ("variant", "key"), rows)
        return {**notes, "ranking": self.ranked.path, "notes": self.remarks(), "warning": self.ranked.warning}

    def remarks(self) -> list[str]:
        """What to know before the numbers: layers that are dropped whole, and layer-matched draws that lack maps."""
        sizes = Counter(fmap.layer for fmap in self.ranked.ranking.maps)
        top = Counter(fmap.layer for fmap in self.ranked.ranking.top_k(self.ranked.k))
        whole = [f"all {number} maps of {layer}" for layer, number in top.items() if number == sizes[layer]]
        remarks = []
        if whole:
            remarks.append(
                f"The top {self.ranked.k} hold {', '.join(whole)}: where nothing bypasses such a layer, dropping it "
                "blinds any detector, whatever its maps respond to."
            )
        if missing := self.variants.shortfall:
            layers = ", ".join(f"{layer} {number}" for layer, number in missing.items())
            remarks.append(
                f"{LAYER_RANDOM} drops {self.ranked.k - sum(missing.values())} of {self.ranked.k} maps, since these "
                f"layers have no more outside the top k: {layers}. So it is no fair control here."
            )
        return remarks

    def messages(self) -> list[str]:
        notes = [f"note: {self.gan_name}: {remark}" for remark in self.remarks()]
        warning = [f"warning: {self.gan_name}: {self.ranked.warning}"] if self.ranked.warning else []
        return [*warning, *notes, *super().messages()]

    @classmethod
    def tabulate(cls, analyses: Sequence[Sensitivity]) -> list[Path]:
        first = analyses[0]
        layout, k = first.layout, first.ranked.k
        results = first.results_there(analyses)
        stem = layout.table(cls.experiment)
        notes = [
            f"{RANDOM}: mean over the draws and its spread (standard deviation); {RANDOM}-{AVERAGED}: scores of the "
            "draws averaged before AP, which is what the published row shows.",
        ]
        if LAYER_RANDOM in results[0].rows:
            notes.append(
                f"{LAYER_RANDOM}: as many maps of every layer as the top k has there, none of them from the top k: the "
                "fair control, since omega is a share of its layer, which favours narrow early layers."
            )
        table = write_table(
            stem,
            f"Sensitivity to dropping feature maps: {layout.arch}, blur_jpg {layout.tag}, k = {k}",
            f"Ranking: {first.ranked.path.name}. AP with its 95 % interval; accuracy on reals and on fakes at the "
            "calibrated threshold and at 0.5. All in percent.",
            results,
            SHOWN,
            published=lambda variant, name: published_sensitivity(layout.arch, layout.tag, k, variant, name),
            notes=[*notes, *first.remarks(), *([first.ranked.warning] if first.ranked.warning else [])],
        )
        size = len(first.ranked.ranking)
        title = f"{layout.arch}, blur_jpg {layout.tag}: {k} of {size:,} feature maps dropped"
        return [
            *table,
            *draw_once(layout, cls.name, [table[0]], {"title": title}, lambda: plot_sensitivity(results, stem, title)),
        ]
