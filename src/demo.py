"""The whole story without a download: mini-ForenSynths, the shipped detectors, all analyses, and a report."""

from __future__ import annotations

import csv
import json
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.cli import run_script, say
from utils.errors import UserError
from utils.files import PROJECT_ROOT
from utils.layout import Layout
from utils.settings import flag, positive, read_settings

TAG = "mini"
COLOUR_ROBUST = ("efb0", "mini_cr")
PATCHES = "patchforensics-xception_block2"
NOTE = (
    "mini-ForenSynths: reals are photographs, fakes the same photographs passed through small simulated generators.\n"
    "The detectors were trained on the first generator only. A constructed benchmark: it shows what\n"
    "the tools do and is no evidence about GANs (docs/mini_forensynths.md)."
)
UNSEEN = "nearest"
COLUMNS = {"baseline": "all maps", "top-k": "no top k", "random-k": "no random k"}
COLUMNS |= {"layer-random-k": "same layers", "low-k": "no lowest k", "grayscale": "greyscale"}


@dataclass(frozen=True)
class Demo:
    """Demo."""

    arch: tuple[str, ...] = flag(("resnet50", "efb0"), "detectors to analyse", metavar="ARCH")
    photos: Path | None = flag(None, "folder of your own photographs; absent: bundled ones", metavar="DIR")
    output_dir: Path = flag(PROJECT_ROOT / "output" / "demo", "where results go", metavar="DIR")
    patches: int = flag(3, "patches of each feature map", parse=positive)
    maps_drawn: int = flag(4, "histograms and collages of the first N maps", parse=positive)
    device: str = flag("auto", "auto: a GPU if there is one", metavar="auto|cpu|cuda|cuda:N")
    bsize: int = flag(16, "images in a batch", parse=positive)


def main() -> None:
    (demo,) = read_settings(__doc__ or "", "python src/demo.py --arch efb0", Demo)
    from mini_forensynths.generators import SPECS
    from mini_forensynths.sets import BLURRED, CHROMA, NULL, SWAPPED

    archs = list(dict.fromkeys(demo.arch))
    weights = {arch: shipped_weights(arch, TAG) for arch in archs}
    names = [spec.name for spec in SPECS]
    analysed = [*names, names[0] + CHROMA]
    say(NOTE)
    data, root = demo.output_dir / "mini_forensynths", demo.output_dir
    photos = [] if demo.photos is None else ["--photos", str(demo.photos), "--skip_bad_images"]
    run("make_mini_forensynths.py", [*photos, "--output_dir", str(data), "--overwrite"])
    common = ["--device", demo.device, "--bsize", str(demo.bsize), "--output_dir", str(root)]
    detectors = [f"{arch}={arch}:{path}" for arch, path in weights.items()]
    robust, tag = COLOUR_ROBUST
    if robust in weights:
        detectors.append(f"{robust}_cr={robust}:{shipped_weights(robust, tag)}")
    detectors.append(f"patches={PATCHES}:{shipped_weights(PATCHES, TAG)}")
    sets = ["--dataset_dir", str(data), "--gan_name", *analysed, NULL, SWAPPED, BLURRED]
    run("evaluate_detector.py", ["--detectors", *detectors, *sets, "--jpeg", "90", "75", "--resume", *common])
    show_patches(root, data / UNSEEN, demo)
    # which generator made it; the one without a network of its own stands for those that nobody knows
    primary, unknown = shipped_weights("attribution", TAG), names[0] + CHROMA
    where = ["--device", demo.device, "--output_dir", str(root)]
    run("attribute_source.py", ["att", "test", str(primary), str(data), "--folders", *names, unknown, *where])
    loose = [str(primary), str(data / unknown / "1_fake"), str(root / "attributed"), "--device", demo.device]
    run("run_attribution.py", ["att", *loose])
    run(
        "reproduce.py",
        [
            *("--arch", *archs),
            *("--weights", *(f"{arch}={path}" for arch, path in weights.items())),
            *("--blur_jpg", TAG, "--dataset_dir", str(data), "--gan_name", *analysed),
            *("--rank_on", f"{names[0]}_val", "--crop", "none"),
            *("--patches", str(demo.patches), "--maps_drawn", str(demo.maps_drawn), "--pdf", "False"),
            *common,
        ],
    )
    print_results(root, names)


def show_patches(root: Path, images: Path, demo: Demo) -> None:
    """The shipped classifier of patches on a generator that it has not seen, and a page about it."""
    from patch_forensics.patch_page import write_page

    config = PROJECT_ROOT / "weights" / PATCHES / "opt.yml"
    words = ["--train_config", config, "--which_epoch", TAG, "--partition", "test", "--dataset_name", images.name]
    words += ["--real_im_path", images / "0_real", "--fake_im_path", images / "1_fake", "--device", demo.device]
    results = root / "patch_forensics"
    more = ["--visualize", "--average_mode", "after_softmax", "--topn", "6"]
    run("test_patch_forensics.py", [*map(str, [*words, "--results_dir", results]), *more])
    run("extract_top_patches.py", [*map(str, [*words, "--results_dir", results]), "--unique", "--topn", "24"])
    place = results / "mini" / "test" / f"epoch_{TAG}" / images.name
    fakes = sorted((images / "1_fake").iterdir())[:6]
    weights = shipped_weights(PATCHES, TAG)
    maps = ["--arch", PATCHES, "--weights", weights, "--blur_jpg", TAG, "--device", demo.device, "--output_dir", root]
    run("compare_patch_maps.py", [*map(str, [*maps, "--crop", "none", "--images", *fakes])])
    page = write_page(root, place, place / "patches_top24", sorted(root.glob(f"patch_maps_{PATCHES}_*.png")))
    say(f"patches: {shown(page)}")


def shipped_weights(arch: str, name: str) -> Path:
    """A shipped detector.

    Raises:
        UserError: There is none of this architecture.
    """
    path = PROJECT_ROOT / "weights" / arch / f"{name}.safetensors"
    if not path.is_file():
        shipped = sorted(p.parent.name for p in PROJECT_ROOT.glob(f"weights/*/{TAG}.safetensors"))
        raise UserError(f"no {path}: --arch takes the shipped detectors, {' and '.join(shipped)}")
    return path


def run(script: str, arguments: Sequence[str]) -> None:
    """One script of the project as a user would call it; its error message and exit code are ours."""
    sys.stdout.write(f"\n$ {shlex.join(['python', f'src/{script}', *map(shown, arguments)])}\n")
    sys.stdout.flush()
    code = subprocess.run([sys.executable, str(PROJECT_ROOT / "src" / script), *arguments]).returncode
    if code:
        sys.exit(code)


def shown(argument: str | Path) -> str:
    """A path below the current folder without that folder, anything else as it is."""
    path = Path(argument)
    return str(path.relative_to(Path.cwd()) if path.is_absolute() and path.is_relative_to(Path.cwd()) else argument)


def print_results(root: Path, names: Sequence[str]) -> None:
    """The main numbers as a table, and where to look next."""
    summary = json.loads((root / "summary.json").read_text(encoding="utf-8"))
    say("\nAverage precision in percent, with k feature maps set to zero")
    head = "".join(f"{title:>12}" for title in COLUMNS.values())
    say(f"{'detector':<9} {'k':>3} {'images of':<19}{head}")
    for detector in summary["detectors"]:
        for result in detector["results"]:
            cells = "".join(f"{100 * result['ap'][name]:>12.1f}" for name in COLUMNS)
            say(f"{detector['arch']:<9} {detector['k']:>3} {result['generator']:<19}{cells}")
    for detector in summary["detectors"]:
        for note in detector["notes"]:
            say(f"{detector['arch']}: {note}")
        compare_with_shipped(root, detector, f"{names[0]}_val")
    print_colour_robust(root / "evaluation" / "summary.csv", names)
    with (root / "mini_forensynths" / "measures.csv").open(newline="") as table:
        rows = [row for row in csv.DictReader(table) if row["set"] in names]
    sharpness = ", ".join(f"{row['set']} {float(row['luma_hf']):.2f}/{float(row['chroma_hf']):.2f}" for row in rows)
    say(f"\nsharpness of fakes over reals, luma/chroma: {sharpness}")
    say(f"images:   {shown(root / 'mini_forensynths' / 'montage.png')}")
    say(f"controls: {shown(root / 'evaluation' / 'tables.md')}")
    say(f"report:   {shown(root / 'report.html')}")


def print_colour_robust(table: Path, names: Sequence[str]) -> None:
    """AP of the colour-robust detector beside the plain one, if both were evaluated."""
    with table.open(newline="") as file:
        by = {(row["detector"], row["set"], row["variant"]): 100 * float(row["ap"]) for row in csv.DictReader(file)}
    arch = COLOUR_ROBUST[0]
    if (f"{arch}_cr", names[0], "rgb") not in by:
        return
    say(f"\n{arch} beside its colour-robust variant: AP in colour, in greyscale")
    for name in names:
        pairs = [f"{by[who, name, 'rgb']:.1f}, {by[who, name, 'grayscale']:.1f}" for who in (arch, f"{arch}_cr")]
        say(f"{name:<20} {pairs[0]:>14} {pairs[1]:>14}")


def compare_with_shipped(root: Path, detector: Mapping[str, Any], ranked_on: str) -> None:
    """How far the ranking of this run agrees with the shipped one."""
    from fmap_ranking.comparison import compare_rankings
    from fmap_ranking.ranking import read_ranking

    arch, k = detector["arch"], detector["k"]
    paths = [Layout(place, arch, TAG).ranking(ranked_on, "fake") for place in (root, PROJECT_ROOT)]
    if all(path.is_file() for path in paths):
        overlap = compare_rankings(read_ranking(paths[0]), read_ranking(paths[1]), [k]).overlaps[0]
        say(f"{arch}: {overlap.common} of the top {k} maps are among those of the shipped ranking, of more images")


if __name__ == "__main__":
    run_script(main)
