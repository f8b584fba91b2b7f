"""AP in bf16 beside AP in fp32, with all feature maps and without the top-ranked, random and lowest ones.

Shipped detectors on mini-ForenSynths; images that `src/make_mini_forensynths.py` has made, or else made here.
"""

import tempfile
from dataclasses import replace
from pathlib import Path

from benchmarking import make_parser, report, table

from detectors.choice import DetectorChoice
from images.choice import ImageChoice, Reading
from mini_forensynths.build import build
from mini_forensynths.options import DataSet, Photographs, Sizes
from passes.options import RunOptions
from passes.running import run_experiment
from sensitivity_assessment.options import SensitivityOptions
from sensitivity_assessment.sensitivity import SHOWN, Sensitivity
from utils.files import PROJECT_ROOT
from utils.layout import Layout
from utils.tables import percent

TAG = "mini"
# Of each family one.
GENERATORS = ("x4plus-anime", "transposed4")
RANKED_ON = "both_val"
TOPK = {"efb0": 12, "resnet50": 16}  # as in the demo


def compared(arch: str, choice: ImageChoice, output: Path, device: str, batch: int) -> list[tuple[object, ...]]:
    """A row for each generator and variant: AP and its 95 % interval in fp32, AP in bf16, in percent."""
    weights = PROJECT_ROOT / "weights" / arch / f"{TAG}.safetensors"
    detector = DetectorChoice(arch, blur_jpg=TAG, weights=weights, device=device)
    ranking = Layout(PROJECT_ROOT, arch, TAG).ranking(RANKED_ON, "fake")
    options = SensitivityOptions(topk=TOPK[arch], relevances=ranking)
    full, half = (
        run_experiment(
            Sensitivity,
            replace(detector, precision=precision),
            choice,
            Reading(crop="none", num_workers=0, bsize=batch),
            options,
            RunOptions(output_dir=output / precision),
        )
        for precision in ("fp32", "bf16")
    )
    rows: list[tuple[object, ...]] = []
    for one, other in zip(full, half, strict=True):
        for name in SHOWN:
            if name in one.result.rows:
                row, ap = one.result.rows[name], other.result.rows[name].ap
                interval = f"{percent(row.ap)} [{percent(row.ap_low)}, {percent(row.ap_high)}]"
                inside = "yes" if row.ap_low <= ap <= row.ap_high else "no"
                rows.append((arch, options.topk, one.gan_name, name, interval, percent(ap), inside))
    return rows


def main() -> None:
    parser = make_parser(__doc__, batch=16, rounds=1)
    parser.add_argument("--dataset_dir", type=Path, help="absent: made anew in half a minute")
    args = parser.parse_args()
    rows: list[tuple[object, ...]] = []
    with tempfile.TemporaryDirectory() as folder:
        images = args.dataset_dir
        if images is None:
            images = Path(folder, "data")
            build(Photographs(), Sizes(), DataSet(output_dir=images))
        choice = ImageChoice(images, gan_name=GENERATORS, cluster=r"^(.+)_\d+\.png$")
        for arch in args.arch:
            rows += compared(arch, choice, Path(folder, arch), args.device, args.batch)
    header = ("detector", "k", "images of", "feature maps", "AP in fp32 [95 %]", "AP in bf16", "in the interval")
    report("AP in bf16", table(header, rows), write=args.write)


if __name__ == "__main__":
    main()
