"""What is there, what is missing, and which steps of the paper can be run."""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from detectors.choice import default_weights_path
from detectors.networks import architectures, build_model
from fmap_ranking.ranking import read_ranking
from inventory import (
    BROKEN,
    MISSING,
    OK,
    PAPER_DETECTORS,
    PAPER_TAGS,
    RANKING_SET,
    Finding,
    look_at_data,
    look_at_machine,
    look_at_packages,
    look_at_weights,
    usable_weights,
)
from lrp import build_program
from lrp.canonise import explained_layers
from utils.cli import run_script, say
from utils.errors import UserError
from utils.files import PROJECT_ROOT
from utils.layout import Layout
from utils.settings import flag, read_settings

DESCRIPTION = (
    "Look at machine, packages, weights, rankings and data sets, and say which steps can be run. Changes nothing."
)
EXAMPLE = "python src/check_setup.py --dataset_dir ForenSynths/"
WIDTH = 100
NAME, STATE = 26, 8
DETECTOR, CLASSIFIER, RANKING, DATA = "weights", "ImageNet weights", "ranking", "data"

# step of the paper, what it does, its scripts, and what these need
STEPS: tuple[tuple[str, str, tuple[str, ...], tuple[str, ...]], ...] = (
    ("1", "rank feature maps (FF-RS)", ("rank_fmaps",), (DETECTOR, DATA)),
    ("k", "choice of k", ("find_topk",), (DETECTOR, RANKING, DATA)),
    ("2", "sensitivity (Tab. 1)", ("transfer_sensitivity_analysis",), (DETECTOR, RANKING, DATA)),
    (
        "3",
        "max activations, patches",
        ("get_max_activation_rankings", "extract_max_activation_patches"),
        (DETECTOR, RANKING, DATA),
    ),
    ("4", "collages (Fig. 1)", ("patch_collage",), (DETECTOR, RANKING, DATA)),
    (
        "5",
        "colour ablation (Fig. 4)",
        ("grayscale_sensitivity_whisker_plots", "grayscale_sensitivity_analysis"),
        (DETECTOR, DATA),
    ),
    ("6", "median test (Fig. 6)", ("median_test_activation_histograms",), (DETECTOR, RANKING, DATA)),
    ("7", "colour-conditional share", ("find_color_conditional_percentage",), (DETECTOR, RANKING, DATA)),
    ("", "heat maps of detectors", ("ud_lrp", "gradcam"), (DETECTOR,)),
    ("", "heat maps of ImageNet", ("imagenet_lrp", "gradcam"), (CLASSIFIER,)),
    ("", "evaluate a detector", ("evaluate_detector",), (DETECTOR, DATA)),
)


@dataclass(frozen=True)
class Places:
    """Places."""

    dataset_dir: Path | None = flag(None, "folder of the generators' folders; absent: not looked at", metavar="DIR")
    output_dir: Path = flag(Path("output"), "where results will go: for its free disk", metavar="DIR")


def look_at_rankings(root: Path) -> dict[str, list[Finding]]:
    """By architecture, the rankings the paper's steps read, and any others below `fmap_relevances`."""
    found: dict[str, list[Finding]] = {}
    folder = root / "fmap_relevances"
    others = sorted((*folder.glob("*/*/*-fake.csv"), *folder.glob("*/*/*-real.csv")))
    expected = {
        arch: [Layout(root, arch, PAPER_TAGS[0]).ranking(RANKING_SET, label) for label in ("fake", "real")]
        for arch in PAPER_DETECTORS
    }
    for arch in (*PAPER_DETECTORS, *sorted({path.parts[-3] for path in others} - set(PAPER_DETECTORS))):
        paths = expected.get(arch, [])
        more = [path for path in others if path.parts[-3] == arch and path not in paths]
        layers = _layers(arch) if arch in architectures() and any(path.exists() for path in (*paths, *more)) else None
        found[arch] = [_ranking(path, arch, layers) for path in (*paths, *more)]
    return found


def _layers(arch: str) -> dict[str, int]:
    return dict(explained_layers(build_program(build_model(arch).eval())))


def _ranking(path: Path, arch: str, layers: Mapping[str, int] | None) -> Finding:
    name = f"{arch}, {path.stem}"
    place = Path(*path.parts[-3:]).as_posix()
    if not path.exists():
        return Finding(name, MISSING, (f"expected at {place}",), path)
    try:
        ranking = read_ranking(path, layers)
        ranking.check()
    except UserError as error:
        return Finding(name, BROKEN, (str(error),), path)
    top = ranking.maps[0]
    lines = (place, f"{len(ranking):,} maps of {len(ranking.layers)} layers; first {top.layer}.#{top.index}")
    return Finding(name, OK, lines, path)


def table(title: str, findings: Iterable[Finding]) -> list[str]:
    """Lines of at most 100 columns: name, state, detail."""
    lines = ["", *_wrapped(title, WIDTH)]
    for finding in findings:
        detail = [part for text in finding.detail for part in _wrapped(text, WIDTH - NAME - STATE - 2)] or [""]
        name = finding.name
        if len(name) >= NAME:
            lines += [f"  {part}" for part in _wrapped(name, WIDTH - 2)]
            name = ""
        lines.append(f"  {name:<{NAME}}{finding.state:<{STATE}}{detail[0]}".rstrip())
        lines += [" " * (2 + NAME + STATE) + part for part in detail[1:]]
    return lines


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, break_on_hyphens=False)


def what_can_be_run(
    source: Path,
    weights: Mapping[str, Sequence[Finding]],
    rankings: Mapping[str, Sequence[Finding]],
    data: Mapping[str, Finding] | None,
) -> list[str]:
    """A table with a line per step and a column per detector of the paper, and notes below it."""
    columns = {arch: _at_hand(arch, weights, rankings, data) for arch in PAPER_DETECTORS}
    lines = ["", "What can be run"]
    row = "  {:<3}{:<27}{:<34}{:<34}"
    lines.append(row.format("", "", *PAPER_DETECTORS).rstrip())
    for step, what, scripts, needs in STEPS:
        built = all((source / f"{script}.py").is_file() for script in scripts)
        cells = [_cell(step, needs, at_hand) if built else "not in this version" for at_hand in columns.values()]
        lines.append(row.format(step, what, *cells).rstrip())
    for arch in PAPER_DETECTORS:
        path = usable_weights({arch: list(weights.get(arch, ()))}, arch)
        if path is not None and path.name != default_weights_path(arch, PAPER_TAGS[0]).name:
            lines += _wrapped(f"{arch}: with --weights {path}", WIDTH)
    return lines


def _at_hand(
    arch: str,
    weights: Mapping[str, Sequence[Finding]],
    rankings: Mapping[str, Sequence[Finding]],
    data: Mapping[str, Finding] | None,
) -> set[str]:
    ready = {name for name, finding in (data or {}).items() if finding.state == OK}
    at_hand = ready & {RANKING_SET}
    if any(finding.state == OK for finding in weights.get(arch, ())):
        at_hand.add(DETECTOR)
    if any(finding.state == OK and finding.name.startswith(f"{arch},") for finding in weights.get("imagenet", ())):
        at_hand.add(CLASSIFIER)
    if any(finding.state == OK and finding.name == f"{arch}, {RANKING_SET}-fake" for finding in rankings.get(arch, ())):
        at_hand.add(RANKING)
    if ready:
        at_hand.add(DATA)
    return at_hand


def _cell(step: str, needs: Sequence[str], at_hand: set[str]) -> str:
    lacking = [need for need in needs if need not in at_hand]
    if not lacking:
        return "yes" if step != "1" or RANKING_SET in at_hand else f"yes, but not on {RANKING_SET}"
    if lacking == [RANKING] and RANKING_SET in at_hand:
        return "after step 1"
    return f"needs {', '.join(lacking)}"


def main() -> None:
    (places,) = read_settings(DESCRIPTION, EXAMPLE, Places)
    data = None if places.dataset_dir is None else look_at_data(places.dataset_dir)
    weights = look_at_weights(PROJECT_ROOT)
    rankings = look_at_rankings(PROJECT_ROOT)
    machine = [*look_at_machine(places.output_dir), *look_at_packages(PROJECT_ROOT / "requirements.txt")]
    lines = table("Machine", machine)
    lines += table(
        f"Weights in {PROJECT_ROOT / 'weights'}, with their SHA-256",
        [one for group in weights.values() for one in group],
    )
    lines += table(
        f"Rankings in {PROJECT_ROOT / 'fmap_relevances'}", [one for group in rankings.values() for one in group]
    )
    if data is None:
        lines += ["", "Data sets", "  not looked at: name their folder with --dataset_dir DIR"]
    else:
        lines += table(f"Data sets in {places.dataset_dir}", data.values())
    lines += what_can_be_run(PROJECT_ROOT / "src", weights, rankings, data)
    lines += ["", "docs/data_and_weights.md says where everything comes from and where it goes."]
    say("\n".join(lines[1:]))


if __name__ == "__main__":
    run_script(main)
