"""Cost of the analyses in plain forward passes, all in one process, and peak memory at several numbers of images.

One unit is the detector's own forward pass over the images, decoded and normalised beforehand. The analyses are timed
as the scripts run them, decoding included.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from benchmarking import interleaved, own_peak_megabytes, peak_megabytes, ratio_to, table, write_section
from demo_images import make_demo_images
from fmap_ranking.topk import default_topk
from sensitivity_assessment.scores import colour_scores, dropout_scores

from activation_histograms.collector import ActivationPairCollector
from detectors.detector import Detector
from detectors.networks import build_model, get_architecture
from fmap_ranking.ranking import Ranking
from images.decoding import Crop
from images.loading import iterate_batches
from images.sets import ImageSet, find_image_set
from lrp.canonise import build_program, explained_layers
from passes.one_pass import Collector, run_pass
from passes.shared_forward import SharedForward
from patch_extraction.activations import MaxActivations
from sensitivity_assessment.variants import Variants, make_variants

NAME = "photos"
Analysis = Callable[[], list[Collector]]


def seeded_detector(arch: str, device: str, precision: str = "fp32") -> Detector:
    """A detector with random weights; what they are does not change the work."""
    torch.manual_seed(0)
    model = build_model(arch).eval().requires_grad_(False)
    model.to(device=torch.device(device), memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Detector(get_architecture(arch), model, torch.device(device), precision=precision)  # type: ignore[arg-type]


def likely_ranking(detector: Detector) -> Ranking:
    """Random shares of every layer, and maps without relevance in the deepest ones.

    As with real rankings narrow and so mostly early layers lead, and the last maps are deep.
    """
    layers = explained_layers(build_program(detector.model, fold=False))
    rng = np.random.default_rng(0)
    shares = [rng.dirichlet(np.ones(count)) for _, count in layers]
    for share in shares[-3:]:
        share[rng.random(len(share)) < 0.3] = 0.0
    return Ranking.from_values(layers, np.concatenate(shares))


def analyses(detector: Detector, images: ImageSet, precision: str) -> dict[str, Analysis]:
    """What to time, by name: each makes the collectors of one pass."""
    network = detector.feature_maps()
    ranking = likely_ranking(detector)
    k = default_topk(detector.arch, len(ranking))
    maps = ranking.top_k(k)
    published, ours = make_variants(ranking, k, seed=0, published=True), make_variants(ranking, k, seed=0)

    def activations() -> list[Collector]:
        forward = SharedForward(network)
        return [MaxActivations(forward, maps, images), ActivationPairCollector(forward, maps, images)]

    def sensitivity(variants: Variants) -> Analysis:
        return lambda: [dropout_scores(network, variants, images)]

    def everything() -> list[Collector]:
        forward = SharedForward(network)
        colour = colour_scores(forward, images)
        found = MaxActivations(forward, maps, images), ActivationPairCollector(forward, maps, images)
        return [dropout_scores(network, ours, images), colour, *found]

    return {
        f"activation rankings and median test, k = {k}": activations,
        "colour ablation": lambda: [colour_scores(SharedForward(network), images)],
        "sensitivity, 8 published variants": sensitivity(published),
        f"sensitivity, {len(ours.maps)} variants": sensitivity(ours),
        "all of them in one pass": everything,
    }


def show(detector: Detector, images: ImageSet, collectors: list[Collector], batch: int) -> None:
    """Run a pass as the scripts do."""
    run_pass(
        images,
        collectors,
        preprocess=detector.inputs,
        device=detector.device,
        batch_size=batch,
        crop=Crop("none"),
        num_workers=0 if detector.device.type == "cpu" else 4,
    )


def find_images(data: Path, number: int) -> ImageSet:
    """So many fakes, the same ones again and again."""
    found = find_image_set(data, NAME, labels=(1,))
    return ImageSet(found.root, tuple(found.items[i % len(found)] for i in range(number)))


def measure(args: argparse.Namespace, arch: str, data: Path) -> tuple[list[list[str]], float]:
    """Rows of the table, and seconds of the plain pass."""
    detector, images = seeded_detector(arch, args.device), find_images(data, args.images)
    batches = [
        detector.inputs(batch.images)
        for batch in iterate_batches(
            images, batch_size=args.bsize, crop=Crop("none"), seed=0, num_workers=0, device=detector.device
        )
    ]

    @torch.no_grad()
    def plain() -> None:
        for batch in batches:
            detector.model(batch)

    chosen = {n: a for n, a in analyses(detector, images, args.precision).items() if args.only in n}
    contenders: dict[str, Callable[[], object]] = {"plain": plain}
    for name, make in chosen.items():
        contenders[name] = lambda make=make: show(detector, images, make(), args.bsize)  # type: ignore[misc]
    seconds = interleaved(contenders, args.rounds, device=args.device)
    median = float(np.median(seconds["plain"]))
    rows = [
        [arch, name, f"{ratio_to(seconds, name, 'plain'):.2f}", f"{1000 * np.median(seconds[name]) / args.images:.0f}"]
        for name in chosen
    ]
    return rows, median


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--arch", nargs="+", default=["resnet50", "efb0"])
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--bsize", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--only", default="", help="time analyses with this in their name only")
    parser.add_argument("--memory", type=int, nargs="*", default=[50, 100, 200], help="numbers of images; none: skip")
    parser.add_argument("--write", action="store_true", help="write benchmarks/RESULTS.md")
    parser.add_argument("--peak_of", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peak_of is not None:
        detector, images = seeded_detector(args.arch[0], "cpu"), find_images(args.peak_of, args.images)
        show(detector, images, analyses(detector, images, args.precision)["all of them in one pass"](), args.bsize)
        print(own_peak_megabytes())
        return
    with tempfile.TemporaryDirectory() as folder:
        make_demo_images(Path(folder), name=NAME)
        rows, peaks = [], []
        for arch in args.arch:
            found, plain = measure(args, arch, Path(folder))
            rows += [[arch, "plain forward pass", "1", f"{1000 * plain / args.images:.0f}"], *found]
            for number in args.memory if args.device == "cpu" else []:
                command = [sys.argv[0], "--arch", arch, "--images", str(number), "--bsize", str(args.bsize)]
                peaks.append([arch, number, f"{peak_megabytes([*command, '--peak_of', folder]):.0f}"])
    lines = table(("detector", "analysis", "plain forward passes", "ms an image"), rows)
    if peaks:
        lines += ["", "Peak memory of all analyses in one pass, MB:", "", *table(("detector", "images", "MB"), peaks)]
    print("\n".join(lines))
    if args.write:
        write_section("Analyses", " ".join(["python benchmarks/analyses.py", *sys.argv[1:]]), lines)


if __name__ == "__main__":
    main()
