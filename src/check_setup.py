"""What is there, what is missing, and which steps of the paper can be run."""

from dataclasses import dataclass
from pathlib import Path

from utils.cli import run_script, say
from utils.files import PROJECT_ROOT
from utils.settings import flag, read_settings

DESCRIPTION = (
    "Look at machine, packages, weights, rankings and data sets, and say which steps can be run. Changes nothing."
)
EXAMPLE = "python src/check_setup.py --dataset_dir ForenSynths/"


@dataclass(frozen=True)
class Places:
    """Places."""

    dataset_dir: Path | None = flag(None, "folder of the generators' folders; absent: not looked at", metavar="DIR")
    output_dir: Path = flag(Path("output"), "where results will go: for its free disk", metavar="DIR")
    detectors: bool = flag(False, "show a table of all detectors that can be named with --arch, and nothing else")
    plugin: tuple[str, ...] = flag((), "Python files or modules that register more networks", metavar="FILE.py")


def main() -> None:
    (places,) = read_settings(DESCRIPTION, EXAMPLE, Places)
    from detectors.networks import load_plugin
    from inventory import known_detectors, take_inventory

    for plugin in places.plugin:
        load_plugin(plugin)
    if places.detectors:
        lines = known_detectors()
    else:
        lines = take_inventory(PROJECT_ROOT, places.dataset_dir, places.output_dir)
    for line in lines:
        say(line)


if __name__ == "__main__":
    run_script(main)
