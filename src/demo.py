"""The whole story without a download: mini-ForenSynths, the shipped detectors, all analyses, and a report."""

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
from utils.provenance import read_record
from utils.settings import flag, positive, read_settings
from utils.tables import percent

TAG = "mini"
# Scored beside whatever is analysed, by the names that tables have them under.
SHIPPED = {"resnet50": ("resnet50", TAG), "efb0": ("efb0", TAG), "efb0_cr": ("efb0", "mini_cr")}
PATCHES = "patchforensics-xception_block2"
NOTE = (
    "mini-ForenSynths: reals are photographs; fakes are the same photographs made anew by published super-resolution\n"
    "GANs (Real-ESRGAN) and by small simulated generators; controls are altered without any generator. A small,\n"
    "constructed benchmark: it shows what the tools do (docs/mini_forensynths.md)."
)
UNSEEN = "nearest"  # by the classifier of patches
# Of each family the generator that detectors were trained on, and some that they were not.
ANALYSED = ("x4plus-anime", "animevideo-x2", "transposed4", "pixelshuffle", "skip")
SCORED = ("animevideo-re4", "x4plus-anime-luma", "x4plus-anime-chroma", "transposed4-chroma")
# Where AP is that of guessing on both_val, by find_topk.py (docs/mini_forensynths.md).
TOPK = {"efb0": 12, "resnet50": 16}
COLUMNS = {"baseline": "all maps", "top-k": "no top k", "random-k": "no random k"}
COLUMNS |= {"layer-random-k": "same layers", "low-k": "no lowest k", "grayscale": "greyscale"}


@dataclass(frozen=True)
class Demo:
    """Demo."""

    arch: tuple[str, ...] = flag(("resnet50",), "detectors to analyse: resnet50, efb0", metavar="ARCH")
    photos: Path | None = flag(None, "folder of your own photographs; absent: bundled ones", metavar="DIR")
    output_dir: Path = flag(PROJECT_ROOT / "output" / "demo", "where results go", metavar="DIR")
    patches: int = flag(3, "patches of each feature map", parse=positive)
    maps_drawn: int = flag(4, "histograms and collages of the first N maps", parse=positive)
    device: str = flag("auto", "auto: a GPU if there is one", metavar="auto|cpu|cuda|cuda:N")
    bsize: int = flag(16, "images in a batch", parse=positive)


def main() -> None:
    (demo,) = read_settings(__doc__ or "", "python src/demo.py --arch resnet50 efb0", Demo)
    from mini_forensynths.sets import CONTROLS, SWAPPED

    archs = list(dict.fromkeys(demo.arch))
    weights = {arch: shipped_weights(arch, TAG) for arch in archs}
    say(NOTE)
    data, root = demo.output_dir / "mini_forensynths", demo.output_dir
    photos = [] if demo.photos is None else ["--photos", str(demo.photos), "--skip_bad_images"]
    run("make_mini_forensynths.py", [*photos, "--output_dir", str(data), "--overwrite"])
    fakes = [*ANALYSED, *SCORED, SWAPPED]
    # tiles of one photograph are alike: intervals are over photographs
    common = ["--dataset_dir", str(data), "--cluster", r"^(.+)_\d+\.png$"]
    common += ["--device", demo.device, "--bsize", str(demo.bsize), "--output_dir", str(root)]
    scored = {**SHIPPED, "patches": (PATCHES, TAG)}
    detectors = [f"{name}={arch}:{shipped_weights(arch, tag)}" for name, (arch, tag) in scored.items()]
    run("evaluate_detector.py", ["--detectors", *detectors, "--gan_name", *fakes, *CONTROLS, "--resume", *common])
    show_patches(root, data / UNSEEN, demo)
    show_sources(root, data, demo)
    # Shipped rankings are of more images than there are here.
    rankings = {
        arch: Layout(PROJECT_ROOT, arch, TAG).ranking(read_record(path)["ranked_on"], "fake")
        for arch, path in weights.items()
    }
    run(
        "reproduce.py",
        [
            *("--arch", *archs),
            *("--weights", *(f"{arch}={path}" for arch, path in weights.items())),
            *("--relevances", *(f"{arch}={path}" for arch, path in rankings.items())),
            *("--topk", *(f"{arch}={TOPK[arch]}" for arch in archs)),
            *("--blur_jpg", TAG, "--gan_name", *ANALYSED),
            *("--patches", str(demo.patches), "--maps_drawn", str(demo.maps_drawn), "--pdf", "False"),
            *common,
        ],
    )
    print_results(root, list(scored), fakes, list(CONTROLS))


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
    folder = results / "mini" / "test" / f"epoch_{TAG}" / images.name
    fakes = sorted((images / "1_fake").iterdir())[:6]
    weights = shipped_weights(PATCHES, TAG)
    maps = ["--arch", PATCHES, "--weights", weights, "--blur_jpg", TAG, "--device", demo.device, "--output_dir", root]
    run("compare_patch_maps.py", [*map(str, [*maps, "--crop", "none", "--images", *fakes])])
    page = write_page(root, folder, folder / "patches_top24", sorted(root.glob(f"patch_maps_{PATCHES}_*.png")))
    say(f"patches: {shown(page)}")


def show_sources(root: Path, data: Path, demo: Demo) -> None:
    """Which generator made it: those with a network of their own, and images of a way that none of them has seen."""
    primary, unknown = shipped_weights("attribution", TAG), SCORED[0]
    known = sorted(path.stem for path in primary.with_suffix("").glob("*.safetensors"))
    where = ["--device", demo.device, "--output_dir", str(root)]
    run("attribute_source.py", ["att", "test", str(primary), str(data), "--folders", *known, unknown, *where])
    loose = [str(primary), str(data / unknown / "1_fake"), str(root / "attributed"), "--device", demo.device]
    run("run_attribution.py", ["att", *loose])


def shipped_weights(arch: str, name: str) -> Path:
    """A shipped detector.

    Raises:
        UserError: There is none of this architecture.
    """
    path = PROJECT_ROOT / "weights" / arch / f"{name}.safetensors"
    if not path.is_file():
        shipped = sorted({p.parent.name for p in PROJECT_ROOT.glob(f"weights/*/{TAG}.safetensors")} - {PATCHES})
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


def print_results(root: Path, detectors: Sequence[str], sets: Sequence[str], controls: Sequence[str]) -> None:
    """The main numbers as tables, and where to look next."""
    with (root / "evaluation" / "summary.csv").open(newline="") as table:
        rows = {(row["detector"], row["set"], row["variant"]): row for row in csv.DictReader(table)}
    say("\nAverage precision in percent, in colour and in greyscale")
    say(f"{'images of':<20}" + "".join(f"{name:>18}" for name in detectors))
    for name in sets:
        pairs = [[percent(float(rows[who, name, kind]["ap"])) for kind in ("rgb", "grayscale")] for who in detectors]
        say(f"{name:<20}" + "".join(f"{', '.join(pair):>18}" for pair in pairs))
    say("\nNo generator has touched these: percent of them called fake (reals as they are first)")
    say(f"{'altered by':<20}" + "".join(f"{name:>18}" for name in detectors))
    called = [percent(1 - float(rows[who, controls[0], "rgb"]["acc_real"])) for who in detectors]
    say(f"{'nothing':<20}" + "".join(f"{share:>18}" for share in called))
    for name in controls:
        called = [percent(float(rows[who, name, "rgb"]["acc_fake"])) for who in detectors]
        say(f"{name:<20}" + "".join(f"{share:>18}" for share in called))
    print_dropped(json.loads((root / "summary.json").read_text(encoding="utf-8")))
    say(f"\nimages:   {shown(root / 'mini_forensynths' / 'montage.png')}")
    say(f"controls: {shown(root / 'evaluation' / 'tables.md')}")
    say(f"report:   {shown(root / 'report.html')}")


def print_dropped(summary: Mapping[str, Any]) -> None:
    """What detectors lose with their feature maps."""
    say("\nAverage precision in percent, with k feature maps set to zero")
    head = "".join(f"{title:>12}" for title in COLUMNS.values())
    say(f"{'detector':<9} {'k':>3} {'images of':<19}{head}")
    for detector in summary["detectors"]:
        for result in detector["results"]:
            cells = "".join(f"{percent(result['ap'][name]):>12}" for name in COLUMNS)
            say(f"{detector['arch']:<9} {detector['k']:>3} {result['generator']:<19}{cells}")
    for detector in summary["detectors"]:
        for note in detector["notes"]:
            say(f"{detector['arch']}: {note}")


if __name__ == "__main__":
    run_script(main)
