"""Whole processes: a ranking by one process and by two under `torchrun`, one thread each, from start to files.

The images are several hundred copies of a few, since starting counts, too; the detector has random weights, and a large
bias, so that every fake is explained.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
from benchmarking import make_parser, report, seeded_detector, table
from demo_images import demo_fakes, repeated

from images.sets import LABEL_FOLDERS


def make_data(root: Path, arch: str, number: int) -> list[str]:
    """Images and a checkpoint below `root`, and the words of a ranking of them."""
    detector = seeded_detector(arch, "cpu")
    detector.model.get_submodule(detector.architecture.last_layer).bias.fill_(20.0)
    torch.save(detector.model.state_dict(), root / "detector.pth")
    fakes = root / "data" / "copies" / LABEL_FOLDERS[1]
    fakes.mkdir(parents=True)
    with demo_fakes() as images:
        for index, item in enumerate(repeated(images, number).items):
            (fakes / f"{index}.png").write_bytes(item.path.read_bytes())
    where = ["--weights", str(root / "detector.pth"), "--dataset_dir", str(root / "data"), "--gan_name", "copies"]
    return ["src/rank_fmaps.py", "--arch", arch, *where, "--labels", "fake", "--figures", "False", "--device", "cpu"]


def seconds(words: list[str], processes: int, output: Path, batch: int) -> float:
    """Of a whole run."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command = [sys.executable, *(launcher if processes > 1 else []), *words]
    started = time.perf_counter()
    subprocess.run(
        [*command, "--bsize", str(batch), "--output_dir", str(output)],
        cwd=Path(__file__).resolve().parents[1],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=True,
        capture_output=True,
    )
    return time.perf_counter() - started


def main() -> None:
    parser = make_parser(__doc__, batch=16, rounds=3)
    parser.add_argument("--images", type=int, default=800)
    args = parser.parse_args()
    rows = []
    for arch in args.arch:
        with tempfile.TemporaryDirectory() as folder:
            words = make_data(Path(folder), arch, args.images)
            taken: dict[int, list[float]] = {1: [], 2: []}
            for number in range(args.rounds):
                for processes, durations in taken.items():
                    durations.append(seconds(words, processes, Path(folder, f"{number}_{processes}"), args.batch))
        ratio = median(one / two for one, two in zip(*taken.values(), strict=True))
        rows.append((arch, args.images, *(f"{median(durations):.1f}" for durations in taken.values()), f"{ratio:.2f}"))
    header = ("detector", "images", "one process, s", "two processes, s", "times as fast")
    report("Two processes", table(header, rows), write=args.write)


if __name__ == "__main__":
    main()
