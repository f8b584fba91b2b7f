"""Cost of the analyses in plain forward passes, all in one process, and peak memory at several numbers of images.

One unit is the detector's own forward pass in fp32 over the images, decoded and normalised beforehand. The analyses are
timed as the scripts run them, decoding included.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from benchmarking import Contender, compare, make_parser, peak_megabytes, report, seeded_detector, table
from demo_images import demo_fakes, repeated

from activation_histograms.collector import ActivationPairCollector
from detectors.detector import Detector
from evaluation.conditions import GRAYSCALE, RGB, InColour, WithoutMaps
from evaluation.scores import ScoreCollector
from fmap_ranking.ranking import Ranking, default_topk
from images.decoding import Crop
from images.loading import iterate_batches
from images.sets import ImageSet
from lrp.canonise import build_program, explained_layers
from passes.one_pass import Collector, run_pass
from passes.shared_forward import SharedForward
from patch_extraction.activations import MaxActivations
from sensitivity_assessment.variants import Variants, make_variants

PLAIN, ALL = "plain forward pass", "all of them in one pass"
Collectors = Callable[[SharedForward], dict[str, Collector]]


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


def analyses(detector: Detector, images: ImageSet) -> dict[str, Collectors]:
    """What to time, by name: each makes the collectors of one pass."""
    ranking = likely_ranking(detector)
    k = default_topk(detector.arch, len(ranking))
    maps = ranking.top_k(k)
    published, ours = make_variants(ranking, k, seed=0, published=True), make_variants(ranking, k, seed=0)

    def activations(forward: SharedForward) -> dict[str, Collector]:
        pairs = ActivationPairCollector(forward, maps, images)
        return {"maxima": MaxActivations(forward, maps, images), "pairs": pairs}

    def colour(forward: SharedForward) -> dict[str, Collector]:
        return {"colour": ScoreCollector(forward, images, [InColour(RGB), InColour(GRAYSCALE)])}

    def sensitivity(variants: Variants) -> Collectors:
        conditions = [
            WithoutMaps(name, tuple((fmap.layer, fmap.index) for fmap in dropped))
            for name, dropped in variants.maps.items()
        ]
        return lambda forward: {"sensitivity": ScoreCollector(forward, images, conditions)}

    return {
        f"activation rankings and median test, k = {k}": activations,
        "colour ablation": colour,
        f"sensitivity, {len(published.maps)} published variants": sensitivity(published),
        f"sensitivity, {len(ours.maps)} variants": sensitivity(ours),
        ALL: lambda forward: {**sensitivity(ours)(forward), **colour(forward), **activations(forward)},
    }


def plain_pass(detector: Detector, images: ImageSet, batch: int) -> Callable[[], None]:
    """The network alone."""
    device, crop = detector.device, Crop("none")
    batches = iterate_batches(images, batch_size=batch, crop=crop, seed=0, num_workers=0, device=device)
    inputs = [detector.inputs(batch.images) for batch in batches]

    @torch.no_grad()
    def work() -> None:
        for one in inputs:
            detector.model(one)

    return work


def make_contenders(detector: Detector, images: ImageSet, batch: int, only: str) -> Mapping[str, Contender]:
    """The analyses with `only` in their names; the detector's precision stands in front."""

    def analysis(collectors: Collectors) -> Callable[[], object]:
        workers = 0 if detector.device.type == "cpu" else 4
        return lambda: run_pass(
            images,
            collectors(SharedForward(detector)),
            device=detector.device,
            batch_size=batch,
            crop=Crop("none"),
            num_workers=workers,
        )

    return {
        f"{detector.precision}: {name}": Contender(len(images), partial(analysis, collectors))
        for name, collectors in analyses(detector, images).items()
        if only in name
    }


def main() -> None:
    parser = make_parser(__doc__, batch=16, rounds=3)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--precision", nargs="+", choices=("fp32", "bf16"), default=["fp32", "bf16"])
    parser.add_argument("--only", default="", help="time analyses with this in their name only")
    parser.add_argument("--memory", type=int, nargs="*", default=[50, 100, 200], help="numbers of images; none: skip")
    args = parser.parse_args()
    rows, peaks = [], []
    with demo_fakes() as fakes:
        for arch in args.arch:
            images = repeated(fakes, args.images)
            network = seeded_detector(arch, args.device)
            contenders = {PLAIN: Contender(len(images), partial(plain_pass, network, images, args.batch))}
            for precision in args.precision:
                detector = replace(network, precision=precision)
                contenders |= make_contenders(detector, images, args.batch, args.only)
            measured, failed = compare(contenders, args, "--arch", arch)
            assert not failed, failed
            rows += [
                (arch, one.name, f"{one.ratio:.2f}", f"{1000 * one.seconds:.0f}", f"{one.megabytes:.0f}")
                for one in measured
            ]
            for number in args.memory:
                flags = ("--arch", arch, "--images", number, "--only", ALL, "--peak_of", f"{args.precision[0]}: {ALL}")
                peaks.append((arch, number, f"{peak_megabytes(*flags):.0f}"))
    lines = table(("detector", "analysis", "plain forward passes", "ms an image", "peak memory, MB"), rows)
    if peaks:
        lines += ["", "Peak memory of all analyses in one pass, MB:", "", *table(("detector", "images", "MB"), peaks)]
    report("Analyses", lines, write=args.write)


if __name__ == "__main__":
    main()
