"""Training: images per second of the loader against those of the network, and how fast a detector learns.

The loader decodes, scales, blurs, compresses and crops as the published recipe says; the network is a step of Adam
on 224 x 224 pixels. Learning starts from scratch on tiles of photographs and the same tiles up-sampled, and on images
of generators; the epoch is chosen on held-out training images, and test images are used once.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from itertools import islice, product
from pathlib import Path

import torch
from benchmarking import interleaved, report, seeded_detector, table
from demo_images import repeated, write_pair
from PIL import Image
from torch.nn.functional import binary_cross_entropy_with_logits

from cr_ud.augmentation import Augmenter
from cr_ud.training_data import EpochOrder, Loader
from cr_ud.training_sets import find_training_set
from evaluation.assessment import read_result
from evaluation.conditions import RGB
from images.bundled_photos import bundled_photos
from images.decoding import Crop, decode_image
from images.sets import LABEL_FOLDERS, find_image_set, find_loose_images
from utils.figures import save_picture

SOURCE = Path(__file__).resolve().parents[1] / "src"
SETTINGS = "--load_size 0 --crop_size 64 --bsize 16 --lr 0.0003 --blur_jpg 0.1 --patience 100".split()  # noqa: SIM905
TILE = 128
TEST_EVERY = 4


def photo_sets(root: Path, photos: list[Path]) -> tuple[Path, Path]:
    """Folders of training and of test images made from different photographs.

    Real are tiles of photographs halved in size, which leaves no trace of JPEG's blocks.
    """
    for number, path in enumerate(photos):
        image = Image.fromarray(decode_image(path)).reduce(2)
        part = "test" if number % TEST_EVERY == 0 else "train"
        corners = product(range(0, image.width - TILE + 1, TILE), range(0, image.height - TILE + 1, TILE))
        for index, (left, top) in enumerate(islice(corners, 4)):
            tile = image.crop((left, top, left + TILE, top + TILE))
            write_pair(root / part, f"{number}_{index}", tile)
    return root / "train", root / "test"


def halves(root: Path, dataset_dir: Path, names: list[str]) -> tuple[Path, Path]:
    """The central 224 x 224 pixels of every other image of each generator and label, and of the others.

    Cropped, since borders can tell how images were prepared.
    """
    for name in names:
        for label in (0, 1):
            image_set = find_image_set(dataset_dir, name, labels=[label])
            for number, item in enumerate(image_set.items):
                path = root / ("train", "test")[number % 2] / name / LABEL_FOLDERS[label] / f"{number}.png"
                save_picture(path, Crop("center", 224)(decode_image(item.path), seed=0, name=item.name))
    return root / "train", root / "test"


def loader_speed(root: Path, workers: int, batches: int, batch_size: int) -> float:
    """Images per second of the loader alone, without its start."""
    image_set = find_training_set(root)
    order = EpochOrder(repeated(image_set, (batches + 1) * batch_size), batch_size)
    loader = Loader(Augmenter(), num_workers=workers).training(order, epoch=0)
    # workers have decoded ahead by the time the first batch is there: wait until that is used up
    for _ in range(1 + 2 * workers):
        next(loader)
    started = time.perf_counter()
    images = sum(len(loaded.positions) for loaded in islice(loader, batches - 2 * workers))
    return images / (time.perf_counter() - started)


def step_speed(arch: str, device: str, steps: int, batch_size: int) -> float:
    """Images per second of forward, backward and Adam, data at hand."""
    detector = seeded_detector(arch, device)
    model = detector.model.train().requires_grad_(requires_grad=True)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    images = torch.randint(0, 256, (batch_size, 224, 224, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    labels = (torch.arange(batch_size) % 2).float().to(detector.device)

    def step() -> None:
        optimizer.zero_grad()
        binary_cross_entropy_with_logits(model(detector.inputs(images)).squeeze(1), labels).backward()
        optimizer.step()

    step()
    return steps * batch_size / sum(interleaved({arch: step}, steps, device)[arch])


def run(script: str, *arguments: object) -> None:
    """Run a script of the project; its complaint ends the benchmark."""
    done = subprocess.run([sys.executable, str(SOURCE / script), *map(str, arguments)], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)


def learn(train_dir: Path, test_dir: Path, names: list[str], folder: Path, more: list[str]) -> list[str]:
    """Train a ResNet-18 from scratch, choose the epoch on held-out training images, test whole images."""
    settings = [*SETTINGS, *more]
    fixed = ["--arch", "resnet18", "--init", "scratch", "--train_dir", train_dir, "--output_dir", folder]
    started = time.perf_counter()
    run("train_cr_ud.py", *fixed, *settings)
    seconds = time.perf_counter() - started
    weights = folder / "training" / "resnet18" / "rgb" / "best.pth"
    given = ["--arch", "resnet18", "--weights", weights, "--dataset_dir", test_dir, "--gan_name", *names]
    run("evaluate_detector.py", *given, "--output_dir", folder)
    rows = []
    for name in names:
        result = read_result(folder / "evaluation" / "resnet18_0.5" / name, name, made_by="src/evaluate_detector.py")
        row = result.rows[RGB]
        ap = f"{row.ap:.3f} [{row.ap_low:.3f}, {row.ap_high:.3f}]"
        images = f"{row.images - row.fakes} + {row.fakes}"
        rows.append((name, images, ap, f"{row.acc_real:.2f}", f"{row.acc_fake:.2f}"))
    return [
        f"{seconds:.0f} s of training: `--arch resnet18 --init scratch {' '.join(settings)}`",
        "",
        *table(("test set", "real + fake", "AP [95 %]", "accuracy on reals", "accuracy on fakes"), rows),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", nargs="+", default=["resnet50", "efb0"], help="networks to time")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--batches", type=int, default=12, help="of 16 images, timed")
    parser.add_argument("--steps", type=int, default=3, help="of 16 images, timed")
    parser.add_argument("--photos", type=Path, help="folder of photographs to learn from; absent: the bundled ones")
    parser.add_argument("--num_photos", type=int, default=400, help="most photographs used")
    parser.add_argument("--dataset_dir", type=Path, help="a second set to learn: folders of generators")
    parser.add_argument("--gan_name", nargs="+", default=["crn"], help="generators there")
    parser.add_argument("--write", action="store_true", help="write benchmarks/RESULTS.md")
    args = parser.parse_args()
    photos = [path for _, path in bundled_photos()]
    if args.photos is not None:
        photos = [item.path for item in find_loose_images([args.photos]).items][: args.num_photos]
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        train_dir, test_dir = photo_sets(root / "photos", photos)
        speeds = {f"loader, {n} workers": loader_speed(train_dir, n, args.batches, 16) for n in args.workers}
        speeds |= {f"step of {arch}": step_speed(arch, args.device, args.steps, 16) for arch in args.arch}
        lines = table(("", "images/s"), [(name, f"{speed:.1f}") for name, speed in speeds.items()])
        lines += ["", "Learning: photographs against up-sampled ones, test on others.", ""]
        lines += learn(train_dir, test_dir.parent, ["test"], root / "a", ["--val_share", "0.1", "--epochs", "5"])
        if args.dataset_dir is not None:
            train_dir, test_dir = halves(root / "halves", args.dataset_dir, args.gan_name)
            what = "central 224 x 224 pixels of every other image of a generator, test on the rest"
            lines += ["", f"Learning: {what}.", ""]
            more = ["--val_share", "0.3", "--epochs", "100"]
            lines += learn(train_dir, test_dir, args.gan_name, root / "b", more)
    report("Training", lines, write=args.write)


if __name__ == "__main__":
    main()
