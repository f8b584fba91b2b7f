"""Images per second and peak memory of a ranking, at several numbers of images.

Decoding, forward pass, relevance propagation and statistics of a seeded detector that is sure of every image, so that
all of them are explained.
"""

from collections.abc import Callable

from benchmarking import Contender, compare, make_parser, report, seeded_detector, table
from demo_images import demo_fakes, repeated

from detectors.detector import Detector
from fmap_ranking.collector import RelevanceCollector
from images.decoding import Crop
from images.sets import ImageSet
from passes.one_pass import run_pass
from passes.shared_forward import SharedForward


def make_contender(detector: Detector, images: ImageSet, batch: int) -> Contender:
    """A ranking of the feature maps for some fakes."""
    workers, crop, device = 0 if detector.device.type == "cpu" else 4, Crop("center"), detector.device

    def prepare() -> Callable[[], None]:
        explainer = detector.explainer()

        def work() -> None:
            collector = RelevanceCollector(SharedForward(detector), explainer, images)
            collectors = {"ranking": collector}
            run_pass(images, collectors, device=device, batch_size=batch, crop=crop, num_workers=workers)
            assert collector.statistics["fake"].count == len(images)

        return work

    return Contender(len(images), prepare)


def main() -> None:
    parser = make_parser(__doc__, batch=16, rounds=1)
    parser.add_argument("--images", nargs="+", type=int, default=[50, 200, 800])
    parser.add_argument("--precision", nargs="+", choices=("fp32", "bf16"), default=["fp32", "bf16"])
    args = parser.parse_args()
    rows = []
    with demo_fakes() as fakes:
        for arch in args.arch:
            for precision in args.precision:
                detector = seeded_detector(arch, args.device, precision)
                # A logit far above zero: every image is explained, as in the worst case.
                detector.model.get_submodule(detector.architecture.last_layer).bias.fill_(20.0)
                contenders = {str(n): make_contender(detector, repeated(fakes, n), args.batch) for n in args.images}
                measured, failed = compare(contenders, args, "--arch", arch, "--precision", precision)
                assert not failed, failed
                rows += [
                    (arch, precision, one.images, f"{1 / one.seconds:.1f}", f"{one.megabytes:.0f}") for one in measured
                ]
    header = ("detector", "precision", "images", "images/s", "peak memory, MB")
    report(f"FF-RS ranking, {args.device.split(':')[0]}", table(header, rows), write=args.write)


if __name__ == "__main__":
    main()
