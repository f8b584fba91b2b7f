"""Training: images per second of the loader against those of the network, and how fast a detector learns.

The loader decodes, scales, blurs, compresses and crops as the published recipe says; the network is a step of Adam
on 224 x 224 pixels. Learning starts from scratch on crops of photographs and the same crops up-sampled; test photos
are others than training photos.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from cr_ud.augmentation import Augmentation
from cr_ud.initialisation import initial_model
from cr_ud.training_data import EpochOrder, find_training_set, load_training
from cr_ud.training_log import EPOCH, LogRow, read_log
from utils.benchmarking import table, write_section
from utils.demo_images import make_demo_images
from utils.detectors import Detector, get_architecture
from utils.devices import resolve_device
from utils.image_sets import ImageSet

SCRIPT = Path(__file__).resolve().parents[1] / "src" / "train_cr_ud.py"


AUGMENTATION = Augmentation()
SETTINGS = ["--crop_size", "64", "--bsize", "8", "--lr", "0.0003", "--blur_jpg", "0.1", "--patience", "100"]
TEST_PHOTOS = ("astronaut", "brick", "china", "motorcycle_left")


def photo_sets(root: Path) -> tuple[Path, Path]:
    """Folders of training and of test images, of different photographs."""
    make_demo_images(root, "all")
    for path in sorted((root / "all").rglob("*.png")):
        part = "test" if path.stem.rpartition("_")[0] in TEST_PHOTOS else "train"
        target = root / part / path.parent.name / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
    return root / "train", root / "test"


def loader_speed(root: Path, workers: int, batches: int, batch_size: int) -> float:
    """Images per second of the loader alone, without its start."""
    found = find_training_set(root)
    repeats = -(-(batches + 1) * batch_size // len(found))
    order = EpochOrder(ImageSet(found.root, found.items * repeats), batch_size)
    loader = load_training(order, AUGMENTATION, epoch=0, num_workers=workers)
    # workers have decoded ahead by the time the first batch is there: wait until that is used up
    for _ in range(1 + 2 * workers):
        next(loader)
    started = time.perf_counter()
    images = sum(len(loaded.positions) for loaded in islice(loader, batches - 2 * workers))
    return images / (time.perf_counter() - started)


def step_speed(arch: str, device: torch.device, steps: int, batch_size: int) -> float:
    """Images per second of forward, backward and Adam, data at hand."""
    model, _ = initial_model(arch, "scratch", 0)
    model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    detector = Detector(get_architecture(arch), model, device, None, "", 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    images = torch.randint(0, 256, (batch_size, 224, 224, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    labels = (torch.arange(batch_size) % 2).float().to(device)

    def step() -> None:
        optimizer.zero_grad()
        binary_cross_entropy_with_logits(model(detector.preprocess(images)).squeeze(1), labels).backward()
        optimizer.step()

    step()
    started = time.perf_counter()
    for _ in range(steps):
        step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return steps * batch_size / (time.perf_counter() - started)


def learn(arch: str, train_dir: Path, folder: Path, arguments: list[str]) -> tuple[float, list[LogRow]]:
    """Seconds and validations of a run of the training script from scratch."""
    started = time.perf_counter()
    fixed = ["--arch", arch, "--init", "scratch", "--train_dir", str(train_dir), "--output_dir", str(folder)]
    done = subprocess.run([sys.executable, str(SCRIPT), *fixed, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    seconds = time.perf_counter() - started
    (log,) = folder.rglob("log.csv")
    return seconds, [row for row in read_log(log) if row.kind == EPOCH]


def speed_lines(args: argparse.Namespace, root: Path) -> list[str]:
    """A table of images per second."""
    device = resolve_device(args.device)
    rows: list[tuple[str, str]] = [
        (f"loader, {workers} workers", f"{loader_speed(root, workers, args.batches, 16):.1f}")
        for workers in args.workers
    ]
    for arch in args.arch:
        rows.append((f"step of {arch}", f"{step_speed(arch, device, args.steps, 16):.1f}"))
    return table(("", "images/s"), rows)


def learning_lines(args: argparse.Namespace, root: Path, scratch: Path) -> list[str]:
    """Tables of the validations of runs from scratch."""
    runs = [
        (
            "Crops of nine bundled photographs against up-sampled ones; tested on four other photographs",
            root / "train",
            ["--load_size", "0", "--epochs", "12"],
            ["--val_dir", str(root / "test")],
        )
    ]
    if args.dataset_dir is not None:
        classes = ["--classes", args.classes] if args.classes else []
        shown = ["--load_size", "72", "--epochs", "20", "--val_share", "0.5", *classes]
        runs.append((f"Images of {args.classes or 'all generators'}, half held out", args.dataset_dir, shown, []))
    lines: list[str] = []
    for number, (title, train_dir, shown, hidden) in enumerate(runs):
        settings = [*SETTINGS, *shown]
        seconds, rows = learn("resnet18", train_dir, scratch / str(number), [*settings, *hidden])
        some = [*rows[:: max(1, len(rows) // 6)][:-1], rows[-1]]
        lines += [
            "",
            f"{title}: ResNet-18 from scratch, {rows[-1].images} test images, {seconds:.0f} s in all, with "
            f"`{' '.join(settings)}`.",
            "",
            *table(
                ("steps", "AP", "accuracy on reals", "accuracy on fakes"),
                [(row.step, *(f"{value:.3f}" for value in (row.ap, row.acc_real, row.acc_fake))) for row in some],
            ),
        ]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", nargs="+", default=["resnet50", "efb0"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--batches", type=int, default=12, help="of 16 images, timed")
    parser.add_argument("--steps", type=int, default=3, help="of 16 images, timed")
    parser.add_argument("--dataset_dir", type=Path, help="a second set to learn: folders of generators")
    parser.add_argument("--classes", help="generators there, as in crn,deepfake; absent: all")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        train_dir, _ = photo_sets(root)
        lines = [*speed_lines(args, train_dir), *learning_lines(args, root, root / "runs")]
    shown = [Path(word).name if word.startswith(("/", "..")) else word for word in sys.argv[1:]]
    write_section("Training", " ".join(["python benchmarks/training.py", *shown]), lines)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
