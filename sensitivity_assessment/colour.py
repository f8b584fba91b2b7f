"""The colour ablation: the same images as they are and in greyscale (Sec. 5, Fig. 4 of the paper)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from detectors.choice import DetectorChoice
from evaluation.assessment import Assessment
from evaluation.conditions import GRAYSCALE, RGB, Condition, InColour
from evaluation.published import published_colour_ap
from evaluation.scores import Scores
from evaluation.tables import write_table
from images.choice import ImageChoice, Reading
from passes.analysis import draw_once
from passes.options import RunOptions
from passes.running import run_experiment
from sensitivity_assessment.options import ColourOptions
from sensitivity_assessment.whiskers import plot_whiskers
from utils.errors import UserError


class Colour(Assessment[ColourOptions]):
    """p(fake) of every image on RGB and greyscale."""

    name = "colour"
    experiment = "grayscale-transfer"
    script = "src/grayscale_sensitivity_analysis.py"

    @cached_property
    def conditions(self) -> Sequence[Condition]:
        return [InColour(RGB), InColour(GRAYSCALE)]

    def draw(self) -> list[Path]:
        scores = {self.title: {self.gan_name: self.scores}}
        return plot_whiskers(scores, self.layout.whiskers(self.gan_name), f"Colour ablation, {self.gan_name}")

    @property
    def title(self) -> str:
        """The detector, as panels name it."""
        return f"{self.layout.arch}, blur_jpg {self.layout.tag}"

    @classmethod
    def tabulate(cls, analyses: Sequence[Colour]) -> list[Path]:
        first = analyses[0]
        layout = first.layout
        table = write_table(
            layout.table(cls.experiment),
            f"Colour ablation: {layout.arch}, blur_jpg {layout.tag}",
            "The same images as they are and in greyscale. AP with its 95 % interval; accuracy on reals and on fakes "
            "at the threshold calibrated on RGB and at 0.5. All in percent.",
            first.results_there(analyses),
            (RGB, GRAYSCALE),
            published=lambda condition, name: _published(layout.arch, layout.tag, condition, name),
        )
        if len(analyses) < 2:
            return table
        return [*table, *draw_side_by_side(analyses, layout.whiskers())]


def ablate_colour(
    detector: DetectorChoice, images: ImageChoice, reading: Reading, options: ColourOptions, run: RunOptions
) -> list[Colour]:
    """The ablation of the detector, and of the second one if there is one, with both in one figure.

    Raises:
        UserError: Anything a user can mend; the files of the two detectors would be the same.
    """
    choices = [detector]
    if options.second_weights is not None:
        second = replace(
            detector,
            arch=options.second_arch or detector.arch,
            weights=options.second_weights,
            blur_jpg=options.second_tag,
        )
        if second.blur_jpg == detector.blur_jpg:
            raise UserError(f"--second_tag {second.blur_jpg} is that of the first detector: give it one of its own")
        choices.append(second)

    def draw_both(colours: Sequence[Colour]) -> list[Path]:
        layout = colours[0].layout
        return draw_side_by_side(colours, layout.whiskers(f"{layout.tag}_and_{options.second_tag}"))

    overview = draw_both if len(choices) > 1 else None
    return run_experiment(Colour, choices, images, reading, options, run, overview=overview)


def draw_side_by_side(analyses: Sequence[Colour], stem: Path) -> list[Path]:
    """Box-whisker plots of several sets in one figure, a panel for each detector."""
    scores: dict[str, dict[str, Scores]] = {}
    for analysis in analyses:
        scores.setdefault(analysis.title, {})[analysis.gan_name] = analysis.scores
    return draw_once(
        analyses[0].layout,
        f"whiskers-{stem.name}",
        [analysis.outputs[0] for analysis in analyses],
        {"panels": {name: list(tables) for name, tables in scores.items()}},
        lambda: plot_whiskers(scores, stem, "Colour ablation"),
    )


def _published(arch: str, tag: str, condition: str, name: str) -> tuple[float, ...] | None:
    ap = published_colour_ap(arch, tag, condition, name)
    return None if ap is None else (ap,)
