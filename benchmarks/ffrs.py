"""Images per second and peak memory of a ranking, at several numbers of images.

Every measurement is a process of its own: decoding, forward pass, relevance propagation and statistics of a seeded
detector that is sure of every image, so that all of them are explained.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from benchmarking import own_peak_megabytes, table, write_section
from demo_images import make_demo_images

from detectors.detector import Detector
from detectors.networks import build_model, get_architecture
from fmap_ranking.collector import RelevanceCollector
from images.decoding import Crop
from images.sets import ImageSet, find_image_set
from passes.one_pass import run_pass
from passes.shared_forward import SharedForward

NAME = "photos"


def measure(arch: str, number: int, batch: int, precision: str, device: str, data: Path) -> dict[str, float]:
    """Rank `number` fakes; images per second of the pass, and peak memory of this process in MB."""
    torch.manual_seed(0)
    model = build_model(arch).eval().requires_grad_(False).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    # A logit far above zero: every image is explained, as in the worst case.
    model.get_submodule(get_architecture(arch).last_layer).bias.fill_(20.0)
    detector = Detector(get_architecture(arch), model, torch.device(device), precision=precision)  # type: ignore[arg-type]
    found = find_image_set(data, NAME, labels=(1,))
    images = ImageSet(found.root, tuple(found.items[i % len(found)] for i in range(number)))
    collector = RelevanceCollector(SharedForward(detector), detector.explainer(), images)
    started = time.perf_counter()
    run_pass(
        images,
        {"ranking": collector},
        device=detector.device,
        batch_size=batch,
        crop=Crop("center"),
        num_workers=0 if device == "cpu" else 4,
    )
    seconds = time.perf_counter() - started
    assert collector.statistics["fake"].count == number
    peak = torch.cuda.max_memory_allocated() / 2**20 if device != "cpu" else own_peak_megabytes()
    return {"images_per_second": number / seconds, "peak": peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arch", nargs="+", default=["resnet50", "efb0"])
    parser.add_argument("--images", nargs="+", type=int, default=[50, 100, 200])
    parser.add_argument("--batch", type=int, default=16, help="images at a time (default 16)")
    parser.add_argument("--precision", nargs="+", choices=("fp32", "bf16"), default=["fp32", "bf16"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.data:
        print(json.dumps(measure(args.arch[0], args.images[0], args.batch, args.precision[0], args.device, args.data)))
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        make_demo_images(Path(folder), NAME, crops_per_photo=5)
        for arch in args.arch:
            for precision in args.precision:
                for number in args.images:
                    child = [__file__, "--arch", arch, "--images", str(number), "--batch", str(args.batch)]
                    child += ["--precision", precision, "--device", args.device, "--data", folder]
                    answer = subprocess.run([sys.executable, *child], capture_output=True, text=True, check=True)
                    result = json.loads(answer.stdout.strip().splitlines()[-1])
                    speed, peak = f"{result['images_per_second']:.1f}", f"{result['peak']:.0f}"
                    rows.append((arch, precision, number, speed, peak))
                    print(*rows[-1], flush=True)
    header = ("detector", "precision", "images", "images/s", "peak memory, MB")
    write_section(
        f"FF-RS ranking, {args.device.split(':')[0]}",
        f"python benchmarks/ffrs.py --batch {args.batch}",
        table(header, rows),
    )


if __name__ == "__main__":
    main()
