"""The whole story without a download: mini-ForenSynths, the shipped detectors, all analyses, and a report."""

import argparse
import csv
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cr_ud.evaluation_files import read_summaries
from sensitivity_assessment.dropout import EXPERIMENT, MADE_BY
from sensitivity_assessment.outputs import ResultFiles
from sensitivity_assessment.summary import read_summary


from fmap_ranking.comparison import compare_rankings
from fmap_ranking.ranking import PAPER_TOPK, read_ranking
from images.sets import find_image_set
from mini_forensynths.generators import SPECS
from mini_forensynths.sets import BLURRED, CHROMA, NULL, SWAPPED
from sensitivity_assessment.variants import TOP
from utils.cli import make_parser, parse_architecture, parse_positive, run_script
from utils.errors import UserError
from utils.files import PROJECT_ROOT, read_provenance, sha256_file
from utils.layout import Layout

TAG = "mini"
DATA = "mini_forensynths"
TRAINING = SPECS[0].name
RANKED_ON = f"{TRAINING}_val"
GENERATORS = [spec.name for spec in SPECS]
ANALYSED = [*GENERATORS, TRAINING + CHROMA]
COLOUR_ROBUST = ("efb0", "mini_cr")
NOTE = (
    "mini-ForenSynths: reals are photographs, fakes the same photographs passed through small simulated generators.\n"
    "The detectors were trained on the first generator only. A constructed benchmark: it shows what\n"
    "the tools do and is no evidence about GANs (docs/mini_forensynths.md)."
)


def parse_arguments() -> argparse.Namespace:
    parser = make_parser(__doc__ or "", "python src/demo.py --arch efb0")
    parser.add_argument(
        "--arch", type=parse_architecture, nargs="+", default=list(PAPER_TOPK), help="detectors to analyse"
    )
    parser.add_argument("--photos", type=Path, metavar="DIR", help="your own photographs; absent: bundled ones")
    parser.add_argument(
        "--output_dir", type=Path, default=PROJECT_ROOT / "output" / "demo", metavar="DIR", help="where results go"
    )
    parser.add_argument("--patches", type=parse_positive, default=3, metavar="N", help="patches of each feature map")
    parser.add_argument(
        "--maps_drawn", type=parse_positive, default=4, metavar="N", help="histograms and collages of the first N maps"
    )
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    args.arch = list(dict.fromkeys(args.arch))
    weights = {arch: _weights(arch, TAG) for arch in args.arch}
    print(NOTE, flush=True)
    data = args.output_dir / DATA
    photos = [] if args.photos is None else ["--photos", str(args.photos), "--skip_bad_images"]
    _run("make_mini_forensynths.py", [*photos, "--output_dir", str(data), "--overwrite"])
    _evaluate(args, weights, data)
    _run(
        "reproduce.py",
        [
            *("--arch", *args.arch),
            *("--weights", *(f"{arch}={path}" for arch, path in weights.items())),
            *("--blur_jpg", TAG, "--dataset_dir", str(data), "--gan_name", *ANALYSED),
            *("--rank_on", RANKED_ON, "--crop", "none"),
            *("--patches", str(args.patches), "--maps_drawn", str(args.maps_drawn), "--pdf", "False"),
            *("--output_dir", str(args.output_dir)),
        ],
    )
    _print_results(args)


def _weights(arch: str, name: str) -> Path:
    path = PROJECT_ROOT / "weights" / arch / f"{name}.safetensors"
    if not path.is_file():
        shipped = sorted(p.parent.name for p in PROJECT_ROOT.glob(f"weights/*/{TAG}.safetensors"))
        raise UserError(f"no {path}: --arch takes the shipped detectors, {' and '.join(shipped)}")
    return path


def _evaluate(args: argparse.Namespace, weights: Mapping[str, Path], data: Path) -> None:
    """Scores of all sets, controls among them, unless they are there from the same detectors and images."""
    detectors = {arch: f"{arch}:{path}" for arch, path in weights.items()}
    arch, name = COLOUR_ROBUST
    if arch in weights:
        detectors[f"{arch}_cr"] = f"{arch}:{_weights(arch, name)}"
    sets = [*ANALYSED, NULL, SWAPPED, BLURRED]
    inputs = {f"weights of {name}": sha256_file(text.partition(":")[2]) for name, text in detectors.items()}
    inputs |= {f"images of {name}": find_image_set(data, name).digest() for name in sets}
    if read_provenance(args.output_dir / "evaluation" / "summary.csv").get("inputs") == inputs:
        return
    described = [f"{name}={text}" for name, text in detectors.items()]
    images = ["--dataset_dir", str(data), "--gan_name", *sets]
    more = ["--jpeg", "90", "75", "--resume", "--output_dir", str(args.output_dir)]
    _run("evaluate_detector.py", ["--detectors", *described, *images, *more])


def _print_results(args: argparse.Namespace) -> None:
    summary = json.loads((args.output_dir / "summary.json").read_text(encoding="utf-8"))
    print(
        "\nAverage precision in percent, with k feature maps set to zero; "
        "called fake: share of reals and of fakes without the top k"
    )
    columns = {"baseline": "all maps", "top-k": "no top k", "random-k": "no random k"}
    columns |= {"layer-random-k": "same layers", "low-k": "no lowest k", "grayscale": "greyscale"}
    head = "".join(f"{title:>12}" for title in columns.values())
    print(f"{'detector':<9} {'k':>3} {'images of':<19}{head}  called fake")
    for detector in summary["detectors"]:
        for result in detector["results"]:
            cells = "".join(f"{100 * result['ap'][name]:>12.1f}" for name in columns)
            called = _called_fake(args.output_dir, detector["arch"], result["generator"])
            print(f"{detector['arch']:<9} {detector['k']:>3} {result['generator']:<19}{cells}  {called}")
    for detector in summary["detectors"]:
        for note in detector["notes"]:
            print(f"{detector['arch']}: {note}")
    _print_colour_robust(args)
    for detector in summary["detectors"]:
        _compare_with_shipped(args, detector)
    with (args.output_dir / DATA / "measures.csv").open(newline="") as table:
        rows = [row for row in csv.DictReader(table) if row["set"] in GENERATORS]
    sharpness = ", ".join(f"{row['set']} {float(row['luma_hf']):.2f}/{float(row['chroma_hf']):.2f}" for row in rows)
    print(f"\nsharpness of fakes over reals, luma/chroma: {sharpness}")
    print(f"images:  {_shown(args.output_dir / DATA / 'montage.png')}")
    print(f"controls: {_shown(args.output_dir / 'evaluation' / 'tables.md')}")
    print(f"report:  {_shown(args.output_dir / 'report.html')}")


def _called_fake(root: Path, arch: str, name: str) -> str:
    """Share of reals and of fakes that are called fake at 0.5 without the top k, in percent."""
    files = ResultFiles(root, EXPERIMENT, arch, name, TAG)
    values = {row.variant: row.values for row in read_summary(files.summary, made_by=MADE_BY)}[TOP]
    return f"{100 * (1.0 - values['acc_real']):>4.0f} {100 * values['acc_fake']:>4.0f}"


def _print_colour_robust(args: argparse.Namespace) -> None:
    summaries = read_summaries(args.output_dir / "evaluation" / "summary.csv")
    by = {(entry.detector, entry.test_set, entry.variant): 100 * entry.ap for entry in summaries}
    arch = COLOUR_ROBUST[0]
    if (f"{arch}_cr", TRAINING, "rgb") not in by:
        return
    print(f"\n{arch} beside its colour-robust variant: AP in colour, in greyscale")
    for name in GENERATORS:
        pairs = [f"{by[who, name, 'rgb']:.1f}, {by[who, name, 'grayscale']:.1f}" for who in (arch, f"{arch}_cr")]
        print(f"{name:<20} {pairs[0]:>14} {pairs[1]:>14}")


def _compare_with_shipped(args: argparse.Namespace, detector: Mapping[str, Any]) -> None:
    arch, k = detector["arch"], detector["k"]
    ours, shipped = (Layout(root, arch, TAG).ranking(RANKED_ON, "fake") for root in (args.output_dir, PROJECT_ROOT))
    if ours.is_file() and shipped.is_file():
        overlap = compare_rankings(read_ranking(ours), read_ranking(shipped), [k]).overlaps[0]
        print(f"\n{arch}: {overlap.common} of the top {k} maps are among those of the shipped ranking, of more images")


def _shown(argument: str | Path) -> str:
    """A path below the current folder without that folder, anything else as it is."""
    path = Path(argument)
    return str(path.relative_to(Path.cwd()) if path.is_absolute() and path.is_relative_to(Path.cwd()) else argument)


def _run(script: str, arguments: Sequence[str]) -> None:
    """One script of the project as a user would call it; its error message and exit code are ours."""
    print(f"\n$ python src/{script} {' '.join(map(_shown, arguments))}", flush=True)
    code = subprocess.run([sys.executable, str(PROJECT_ROOT / "src" / script), *arguments]).returncode
    if code:
        sys.exit(code)


if __name__ == "__main__":
    run_script(main)
