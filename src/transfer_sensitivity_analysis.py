"""Step 2: what a detector loses without its top-ranked feature maps (sensitivity assessment, Tab. 1)."""

import argparse
import sys
from pathlib import Path

from detectors.detector import Detector, load_detector
from detectors.feature_maps import FeatureMapNetwork
from images.sets import ImageSet, find_image_set
from passes.experiments import conditions, find_image_sets, show_images
from passes.one_pass import PassState, discard_state
from passes.processes import Ranks, process_group
from sensitivity_assessment.dropout import (
    EXPERIMENT,
    Choice,
    choose_maps,
    dropout_origin,
    report_dropout,
    write_dropout,
)
from sensitivity_assessment.outputs import GeneratorResult, ResultFiles
from sensitivity_assessment.scores import ScoreCollector, Scores, dropout_scores
from sensitivity_assessment.variants import BASELINE
from utils.cli import (
    add_data_arguments,
    add_detector_arguments,
    add_loading_arguments,
    add_ranking_arguments,
    add_run_arguments,
    make_parser,
    parse_positive,
    run_script,
)
from utils.files import write_provenance
from utils.tracking import tracker


def parse_arguments() -> argparse.Namespace:
    parser = make_parser(
        "Drop the top k feature maps of a ranking, k random ones, k random ones of the same layers, and the lowest k, "
        "and report what becomes of AP and accuracy: one table and one figure for all generators named.",
        "python src/transfer_sensitivity_analysis.py --arch resnet50 --blur_jpg 0.5 --bsize 16 "
        "--dataset_dir ForenSynths/ --gan_name stylegan2 biggan --topk 114",
    )
    add_detector_arguments(parser)
    add_data_arguments(parser)
    add_loading_arguments(parser)
    add_ranking_arguments(parser)
    group = parser.add_argument_group("assessment")
    group.add_argument("--draws", type=parse_positive, default=5, metavar="N", help="random choices of each kind")
    group.add_argument(
        "--calibrate_on",
        type=Path,
        metavar="DIR",
        help="folder with [<class>/]0_real and [<class>/]1_fake to choose the calibrated threshold on; absent: the "
        "images reported on, as published (0.5 for progan)",
    )
    add_run_arguments(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    with process_group() as ranks:
        detector = load_detector(
            args.arch,
            args.weights,
            args.device,
            blur_jpg=args.blur_jpg,
            precision=args.precision,
        )
        # Everything is looked for before anything is computed.
        image_sets = find_image_sets(args)
        held_out = None if args.calibrate_on is None else _calibration_set(args.calibrate_on, args)
        network = detector.feature_maps()
        chosen = {name: choose_maps(args, detector.arch, network, name) for name in image_sets}
        with tracker(
            args.wandb and ranks.is_first, job="sensitivity", config=vars(args), folder=args.output_dir
        ) as track:
            calibration = None
            if held_out is not None:
                calibration = _calibrate(args, held_out, detector, network, ranks)
            results = []
            for name, image_set in image_sets.items():
                result = _assess(args, name, image_set, chosen[name], detector, network, calibration, ranks)
                if result is not None:
                    results.append(result)
                    for variant, row in result.rows.items():
                        track.log({f"{name}/{variant}/{metric}": value for metric, value in row.values.items()})
            if results:
                choice = chosen[results[0].gan_name]
                paths = report_dropout(args.output_dir, detector.arch, args.blur_jpg, choice, results, args.compat)
                print(paths[1].read_text(encoding="utf-8"))
                for path in paths:
                    print(path, file=sys.stderr)
                    if path.suffix == ".png":
                        track.picture("sensitivity", path)


def _calibration_set(folder: Path, args: argparse.Namespace) -> ImageSet:
    folder = folder.resolve()
    return find_image_set(folder.parent, folder.name, have_classes="auto")


def _calibrate(
    args: argparse.Namespace, image_set: ImageSet, detector: Detector, network: FeatureMapNetwork, ranks: Ranks
) -> tuple[str, Scores]:
    """Name and baseline scores of the calibration set."""
    name = image_set.items[0].generator
    collector = ScoreCollector(
        "calibration",
        image_set,
        [BASELINE],
        lambda batch: network.logits_with_dropout(batch.inputs, {BASELINE: {}}),
        head=network.head,
        single_precision=args.compat == "published",
    )
    files = ResultFiles(args.output_dir, EXPERIMENT, detector.arch, args.gan_name[0], args.blur_jpg)
    inputs = {"weights": detector.sha256, "images": image_set.digest()}
    facts = {"arch": detector.arch, "compat": args.compat, "crop": args.crop, "precision": args.precision}
    state = PassState(files.state("calibration"), conditions(args, inputs, facts), args.resume)
    show_images(args, image_set, [collector], detector, state=state, ranks=ranks, description=f"calibration on {name}")
    scores = collector.result()
    if ranks.is_first:
        for gan_name in args.gan_name:
            path = ResultFiles(args.output_dir, EXPERIMENT, detector.arch, gan_name, args.blur_jpg).calibration
            scores.write(path)
            write_provenance(path, seed=args.seed, device=detector.device, inputs=inputs, gan_name=name, **facts)
    discard_state(state, ranks)
    return name, scores


def _assess(
    args: argparse.Namespace,
    name: str,
    image_set: ImageSet,
    choice: Choice,
    detector: Detector,
    network: FeatureMapNetwork,
    calibration: tuple[str, Scores] | None,
    ranks: Ranks,
) -> GeneratorResult | None:
    files = ResultFiles(args.output_dir, EXPERIMENT, detector.arch, name, args.blur_jpg)
    collector = dropout_scores(network, choice.variants, image_set, published=args.compat == "published")
    inputs, facts = dropout_origin(args, files, image_set, detector, choice)
    state = PassState(files.state(), conditions(args, inputs, facts), args.resume)
    report = show_images(
        args, image_set, [collector], detector, state=state, ranks=ranks, description=f"sensitivity {name}"
    )
    result = None
    if ranks.is_first:
        result = write_dropout(
            args, files, collector.result(), image_set, detector, choice, report, calibration=calibration
        )
        for note in choice.notes():
            print(f"note: {name}: {note}")
        print(f"{name}: {result.images} images; {result.note}")
    discard_state(state, ranks)
    return result


if __name__ == "__main__":
    run_script(main)
