"""The main job without a download: rank the feature maps of a seeded detector on bundled photographs."""

import argparse
import csv
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import torch

from fmap_ranking.outputs import RankingFiles
from fmap_ranking.ranking import read_ranking
from fmap_ranking.topk import PAPER_TOPK, default_topk
from utils.cli import make_parser, parse_architecture, parse_count, progress, run_script
from utils.decoding import Crop
from utils.demo_images import make_demo_images
from utils.detectors import PROJECT_ROOT
from utils.image_sets import LABEL_FOLDERS, find_image_set
from utils.loading import iterate_batches
from utils.seeded_detectors import make_seeded_detector, save_detector

NAME = "upsampled_photos"
TAG = "seeded"
SHOWN = ("astronaut", "chelsea", "coffee", "rocket", "china", "flower")
NOTE = (
    "This demo needs no download. The detectors have SEEDED RANDOM convolutions under a last layer fitted on these\n"
    "very images, and the fakes are photographs enlarged by pixel repetition. It shows what the tools do and what it\n"
    "costs; it is no evidence about generators. For real detectors see docs/data_and_weights.md."
)


def parse_arguments() -> argparse.Namespace:
    parser = make_parser(__doc__ or "", "python src/demo.py --arch efb0")
    parser.add_argument(
        "--arch", type=parse_architecture, nargs="+", default=list(PAPER_TOPK), help="detectors to rank"
    )
    parser.add_argument(
        "--output_dir", type=Path, default=PROJECT_ROOT / "output" / "demo", metavar="DIR", help="where results go"
    )
    parser.add_argument("--crops", type=parse_count, default=3, metavar="N", help="crops of each photograph, at most 5")
    parser.add_argument("--seed", type=parse_count, default=0, metavar="N", help="of the detectors' weights")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    print(NOTE, flush=True)
    data = args.output_dir / "data"
    number = make_demo_images(data, NAME, args.crops)
    print(f"\n{_shown(data / NAME)}: {number} real and {number} fake images of 224 x 224", flush=True)
    rows = [_demonstrate(arch, data, args) for arch in args.arch]
    print("\ndetector  fakes used  omega of rank 1  top k  layers that hold most of the top k")
    for row in rows:
        print(row)
    print("\nlook at:")
    for picture in sorted(args.output_dir.glob("lrp/*/*/contact_sheet_*.png")):
        print(f"  {_shown(picture)}")
    for picture in sorted(args.output_dir.glob("fmap_relevances/*/*/*.png")):
        print(f"  {_shown(picture)}")


def _demonstrate(arch: str, data: Path, args: argparse.Namespace) -> str:
    files = RankingFiles(args.output_dir / "fmap_relevances", arch, NAME, TAG)
    weights = args.output_dir / "weights" / arch / f"{TAG}{args.seed}.safetensors"
    if not weights.exists():
        _make_weights(arch, weights, data, args.seed)
    shared = ["--arch", arch, "--weights", str(weights), "--blur_jpg", TAG, "--output_dir", str(args.output_dir)]
    images = ["--dataset_dir", str(data), "--gan_name", NAME]
    if not files.ranking("fake").exists():
        _run("rank_fmaps.py", [*shared, *images, "--bsize", "8", "--resume"])
    sheet = args.output_dir / "lrp" / arch / f"ud_{TAG}-beta0-label" / "contact_sheet_001.png"
    if not sheet.exists():
        shown = [data / NAME / LABEL_FOLDERS[label] / f"{photo}_0.png" for photo in SHOWN for label in (0, 1)]
        _run("ud_lrp.py", [*shared, "--images", *[str(path) for path in shown]])
    ranking = read_ranking(files.ranking("fake"))
    topk = default_topk(arch, len(ranking))
    layers = Counter(fmap.layer for fmap in ranking.top_k(topk)).most_common(3)
    with files.samples.open(newline="") as table:
        used = sum(row["label"] == "1" and row["used"] == "1" for row in csv.DictReader(table))
    share = ", ".join(f"{layer} ({count})" for layer, count in layers)
    return f"{arch:<9} {used:>10}  {ranking.values[0]:>15.4f}  {topk:>5}  {share}"


def _make_weights(arch: str, path: Path, data: Path, seed: int) -> None:
    image_set = find_image_set(data, NAME)
    # Real and fake alternate, so that every batch has both and the batch norms see the same mixture.
    order = np.argsort([item.path.name for item in image_set.items], kind="stable")
    mixed = image_set.subset(order.tolist())
    device = torch.device("cpu")
    batches = iterate_batches(mixed, batch_size=8, crop=Crop("none"), seed=0, num_workers=0, device=device)
    images = [batch.images for batch in progress(batches, description=f"seeded {arch}", unit="batch")]
    labels = np.array([item.label for item in mixed.items])
    save_detector(make_seeded_detector(arch, images, labels, seed), path)


def _shown(argument: str | Path) -> str:
    """A path below the current folder without that folder, anything else as it is."""
    path = Path(argument)
    return str(path.relative_to(Path.cwd()) if path.is_absolute() and path.is_relative_to(Path.cwd()) else argument)


def _run(script: str, arguments: list[str]) -> None:
    """One script of the project as a user would call it; its error message and exit code are ours."""
    print(f"\n$ python src/{script} {' '.join(map(_shown, arguments))}", flush=True)
    code = subprocess.run([sys.executable, str(PROJECT_ROOT / "src" / script), *arguments]).returncode
    if code:
        sys.exit(code)


if __name__ == "__main__":
    run_script(main)
