"""A script for an experiment: its command line first, so that `--help` is quick, and only then the experiment."""

from typing import Any

from detectors.choice import DetectorChoice
from images.choice import ImageChoice, Reading
from passes.options import RunOptions
from utils.cli import named, run_script
from utils.settings import read_settings


def read_step(description: str, example: str, options: Any, *defaults: Any) -> tuple[Any, ...]:
    """Settings of a step: detector, images, reading, its own, run; `defaults` stand for groups of the same class."""
    groups = (DetectorChoice, ImageChoice, Reading, options, RunOptions)
    given = {type(default): default for default in defaults}
    return read_settings(description, example, *(given.get(group, group) for group in groups))


def run_step(experiment: str, description: str, example: str, options: Any, *defaults: Any) -> None:
    """Run an experiment as a script, with all flags that every step has.

    Args:
        experiment: Module and name of the `Analysis`, `sensitivity_assessment.sensitivity.Sensitivity`, or of a
            function of these settings.
        description, example: For `--help`.
        options: Its own flags: a dataclass, or an instance with the defaults of this script.
        defaults: Instances of the other groups with the defaults of this script.
    """

    def main() -> None:
        settings = read_step(description, example, options, *defaults)
        target = named(experiment)
        if isinstance(target, type):
            named("passes.running.run_experiment")(target, *settings)
        else:
            target(*settings)

    run_script(main)
