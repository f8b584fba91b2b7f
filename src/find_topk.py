"""Choice of k: AP against the number of dropped feature maps."""

import argparse
from pathlib import Path

from detectors.detector import Detector, load_detector
from detectors.feature_maps import FeatureMapNetwork
from evaluation.metrics import average_precision
from fmap_ranking.locate import find_ranking
from fmap_ranking.ranking import Ranking, read_ranking
from images.sets import ImageSet
from passes.experiments import conditions, find_image_sets, show_images
from passes.one_pass import PassState, discard_state
from passes.processes import Ranks, process_group
from sensitivity_assessment.choice import CURVES, curves_of, halfway, next_number, smallest_below, variants_for
from sensitivity_assessment.figures import plot_topk
from sensitivity_assessment.outputs import GeneratorResult, ResultFiles
from sensitivity_assessment.results import read_result, write_result
from sensitivity_assessment.scores import Scores, dropout_scores
from sensitivity_assessment.variants import BASELINE, TOP, Variants
from utils.cli import (
    add_bool,
    add_data_arguments,
    add_detector_arguments,
    add_loading_arguments,
    add_ranking_arguments,
    add_run_arguments,
    make_parser,
    parse_positive,
    run_script,
)
from utils.errors import UserError
from utils.files import sha256_file, write_csv, write_json
from utils.tracking import tracker

SCRIPT = "src/find_topk.py"
NUMBERS = (1, 2, 5, 10, 20, 50, 100, 200, 500)


def parse_arguments() -> argparse.Namespace:
    parser = make_parser(
        "Drop the top k, random k and lowest k feature maps of a ranking for several k, and mark the smallest k at "
        "which the AP of top-k has fallen to a target.",
        "python src/find_topk.py --arch resnet50 --blur_jpg 0.5 --bsize 16 --dataset_dir ForenSynths/ "
        "--gan_name progan_val --num_instances 50",
    )
    add_detector_arguments(parser)
    add_data_arguments(parser)
    add_loading_arguments(parser)
    add_ranking_arguments(parser)
    group = parser.add_argument_group("choice of k")
    group.add_argument(
        "--numbers",
        type=parse_positive,
        nargs="+",
        metavar="K",
        help=f"k to try; absent: {' '.join(map(str, NUMBERS))}, and --topk if it is given",
    )
    add_bool(
        group,
        "--bisect",
        default=False,
        help="go on between the smallest k at the target and the one before, until k is known to 5 %%, a pass for each",
    )
    group.add_argument(
        "--target_ap",
        type=float,
        metavar="AP",
        help="0..1; absent: halfway from the AP of the unchanged detector to the share of fakes (guessing)",
    )
    group.add_argument("--draws", type=parse_positive, default=3, metavar="N", help="random choices for each k")
    add_run_arguments(parser, compat=False)
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    if args.target_ap is not None and not 0.0 <= args.target_ap <= 1.0:
        raise UserError(f"--target_ap {args.target_ap} is not in 0..1: give a fraction")
    with process_group() as ranks:
        if args.bisect and ranks.world_size > 1:
            raise UserError("--bisect chooses each k after the pass before: run it in one process, without torchrun")
        detector = load_detector(
            args.arch,
            args.weights,
            args.device,
            blur_jpg=args.blur_jpg,
            precision=args.precision,
        )
        # Everything is looked for before anything is computed.
        image_sets = find_image_sets(args)
        network = detector.feature_maps()
        numbers = sorted({*(args.numbers or NUMBERS), *([args.topk] if args.topk else [])})
        searches = {name: _Search(args, name, detector, network, numbers) for name in image_sets}
        with tracker(
            args.wandb and ranks.is_first, job="find_topk", config=vars(args), folder=args.output_dir
        ) as track:
            for name, image_set in image_sets.items():
                picture = searches[name].run(image_set, ranks)
                if picture is not None:
                    track.picture(f"{name}/topk", picture)


class _Search:
    """The choice of k on one generator."""

    def __init__(
        self, args: argparse.Namespace, name: str, detector: Detector, network: FeatureMapNetwork, numbers: list[int]
    ) -> None:
        self.args, self.name, self.detector, self.network, self.numbers = args, name, detector, network, numbers
        self.files = ResultFiles(args.output_dir, "find_topk", detector.arch, name, args.blur_jpg)
        self.path = find_ranking(
            detector.arch, name, args.blur_jpg, relevances=args.relevances, output_dir=args.output_dir
        )
        self.ranking: Ranking = read_ranking(self.path, network.layers)
        self.variants: Variants = self._variants(numbers)
        self.states: list[PassState] = []

    def run(self, image_set: ImageSet, ranks: Ranks) -> Path | None:
        """Score, choose, write and draw; the figure, on the first rank."""
        inputs = {"weights": self.detector.sha256, "images": image_set.digest(), "ranking": sha256_file(self.path)}
        scores = self._scores(image_set, self.variants, inputs, ranks, "list")
        draws = dict(self.variants.draws)
        while self.args.bisect and (number := self._next(scores)) is not None:
            variants = self._variants([number])
            more = self._scores(image_set, variants, inputs, ranks, str(number))
            scores = Scores(scores.paths, scores.labels, {**scores.columns, **more.columns})
            draws |= variants.draws
        picture = None
        if ranks.is_first:
            write_result(
                self.files,
                scores,
                chosen_on=BASELINE,
                draws=draws,
                seed=self.args.seed,
                record={"device": self.detector.device, "inputs": inputs, **self._facts()},
            )
            picture = self._report(read_result(self.files, made_by=SCRIPT))
        for state in self.states:
            discard_state(state, ranks)
        return picture

    def _variants(self, numbers: list[int]) -> Variants:
        return variants_for(self.ranking, numbers, seed=self.args.seed, draws=self.args.draws)

    def _facts(self) -> dict[str, object]:
        args = self.args
        return {
            "arch": self.detector.arch,
            "crop": args.crop,
            "draws": args.draws,
            "gan_name": self.name,
            "precision": args.precision,
        }

    def _scores(
        self, image_set: ImageSet, variants: Variants, inputs: dict[str, str], ranks: Ranks, part: str
    ) -> Scores:
        """One pass; its state stays until all passes are done, so that a resumed run does none of them twice."""
        collector = dropout_scores(self.network, variants, image_set)
        facts = {**self._facts(), "variants": " ".join(variants.maps)}
        state = PassState(self.files.state(part), conditions(self.args, inputs, facts), self.args.resume)
        self.states.append(state)
        what = f"k = {part}" if part.isdigit() else f"{len(self.numbers)} k"
        show_images(
            self.args,
            image_set,
            [collector],
            self.detector,
            state=state,
            ranks=ranks,
            description=f"{what}, {self.name}",
        )
        return collector.result()

    def _target(self, labels: float, baseline: float) -> float:
        return halfway(baseline, labels) if self.args.target_ap is None else self.args.target_ap

    def _next(self, scores: Scores) -> int | None:
        try:
            ap = {name: average_precision(scores.labels, column) for name, column in scores.columns.items()}
        except UserError as error:
            raise UserError(f"{self.name}: {error}") from error
        top = {int(name.split("@")[1]): value for name, value in ap.items() if name.startswith(f"{TOP}@")}
        return next_number(top, self._target(float(scores.labels.mean()), ap[BASELINE]))

    def _report(self, result: GeneratorResult) -> Path:
        curves = curves_of(result.rows)
        baseline = result.rows[BASELINE].values
        target = self._target(result.fakes / result.images, baseline["ap"])
        top = {k: point["ap"] for k, point in curves[TOP].items()}
        chosen = smallest_below(top, target)
        criterion = f"smallest k tried with top-k AP <= {target:.3f}" + (
            " (halfway from the unchanged detector to guessing)" if self.args.target_ap is None else ""
        )
        folder = self.files.folder
        rows = [(k, name, *curves[name][k].values()) for name in CURVES for k in sorted(curves[name])]
        metrics = list(next(iter(curves[TOP].values())))
        write_csv(folder / "curves.csv", ("k", "variant", *metrics), [row[: 2 + len(metrics)] for row in rows])
        write_json(folder / "topk.json", {"k": chosen, "criterion": criterion, "target_ap": target, "ap": top})
        title = f"{self.detector.arch}, blur_jpg {self.files.tag}, {self.name}: {result.images} images"
        pictures = plot_topk(curves, baseline, chosen, folder / "topk", f"{title}\n" + criterion.replace(" (", "\n("))
        for k in sorted(top):
            print(f"{self.name}: k = {k:>5}  AP of top-k {top[k]:.4f}  random-k {curves['random-k'][k]['ap']:.4f}")
        if chosen is None:
            print(f"{self.name}: no k chosen, AP stays above {target:.3f}: try larger --numbers")
        else:
            print(f"{self.name}: k = {chosen}, {criterion}")
        print(pictures[0])
        return pictures[0]


if __name__ == "__main__":
    run_script(main)
