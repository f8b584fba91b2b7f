"""Step 2: what a detector loses without its top-ranked feature maps (sensitivity assessment, Tab. 1)."""

import argparse
import sys
from pathlib import Path

from fmap_ranking.locate import find_ranking
from fmap_ranking.ranking import Ranking, read_ranking
from fmap_ranking.topk import default_topk
from sensitivity_assessment.figures import plot_sensitivity
from sensitivity_assessment.outputs import GeneratorResult, ResultFiles, write_sensitivity_table
from sensitivity_assessment.results import read_result, write_result
from sensitivity_assessment.scores import ScoreCollector, Scores, dropout_scores
from sensitivity_assessment.variants import BASELINE, Variants, make_variants
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
from utils.detectors import Detector, load_detector
from utils.devices import resolve_device
from utils.distributed import Ranks, process_group
from utils.experiments import conditions, find_image_sets, show_images
from utils.feature_maps import FeatureMapNetwork
from utils.files import sha256_file, write_csv, write_provenance
from utils.image_sets import ImageSet, find_image_set
from utils.passes import PassState, discard_state
from utils.tracking import tracker

SCRIPT = "src/transfer_sensitivity_analysis.py"


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
            args.arch, args.weights, ranks.device(resolve_device(args.device)), blur_jpg=args.blur_jpg
        )
        # Everything is looked for before anything is computed.
        image_sets = find_image_sets(args)
        held_out = None if args.calibrate_on is None else _calibration_set(args.calibrate_on, args)
        network = FeatureMapNetwork(detector, args.precision)
        chosen = {name: _Choice(args, detector, network, name) for name in image_sets}
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
                picture = _report(args, detector, chosen[results[0].gan_name], results)
                track.picture("sensitivity", picture)


class _Choice:
    """The ranking read for a generator, and the maps that its variants drop."""

    def __init__(self, args: argparse.Namespace, detector: Detector, network: FeatureMapNetwork, name: str) -> None:
        self.path = find_ranking(
            detector.arch, name, args.blur_jpg, relevances=args.relevances, output_dir=args.output_dir
        )
        self.ranking: Ranking = read_ranking(self.path, network.layers)
        self.k: int = args.topk or default_topk(detector.arch, len(self.ranking))
        self.variants: Variants = make_variants(
            self.ranking, self.k, seed=args.seed, draws=args.draws, published=args.compat == "published"
        )


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
        single_precision=args.compat == "published",
    )
    files = ResultFiles(args.output_dir, "transfer", detector.arch, args.gan_name[0], args.blur_jpg)
    inputs = {"weights": detector.sha256, "images": image_set.digest()}
    facts = {"arch": detector.arch, "compat": args.compat, "crop": args.crop, "precision": args.precision}
    state = PassState(files.state("calibration"), conditions(args, inputs, facts), args.resume)
    show_images(args, image_set, [collector], detector, state=state, ranks=ranks, description=f"calibration on {name}")
    scores = collector.result()
    if ranks.is_first:
        for gan_name in args.gan_name:
            path = ResultFiles(args.output_dir, "transfer", detector.arch, gan_name, args.blur_jpg).calibration
            write_provenance(path, seed=args.seed, device=detector.device, inputs=inputs, gan_name=name, **facts)
            scores.write(path)
    discard_state(state, ranks)
    return name, scores


def _assess(
    args: argparse.Namespace,
    name: str,
    image_set: ImageSet,
    choice: _Choice,
    detector: Detector,
    network: FeatureMapNetwork,
    calibration: tuple[str, Scores] | None,
    ranks: Ranks,
) -> GeneratorResult | None:
    published = args.compat == "published"
    files = ResultFiles(args.output_dir, "transfer", detector.arch, name, args.blur_jpg)
    collector = dropout_scores(network, choice.variants, image_set, published=published)
    inputs = {"weights": detector.sha256, "images": image_set.digest(), "ranking": sha256_file(choice.path)}
    facts = {
        "arch": detector.arch,
        "compat": args.compat,
        "crop": args.crop,
        "draws": args.draws,
        "gan_name": name,
        "precision": args.precision,
        "topk": choice.k,
    }
    state = PassState(files.state(), conditions(args, inputs, facts), args.resume)
    report = show_images(
        args, image_set, [collector], detector, state=state, ranks=ranks, description=f"sensitivity {name}"
    )
    if not ranks.is_first:
        discard_state(state, ranks)
        return None
    record = {
        "device": detector.device,
        "inputs": inputs,
        "images": report.images,
        "ranking": choice.path,
        "skipped": [[entry.item.name, entry.reason] for entry in report.skipped],
        "shortfall": choice.variants.shortfall,
        **facts,
    }
    dropped = [(column, fmap.key) for column, maps in choice.variants.maps.items() for fmap in maps]
    write_csv(files.maps, ("variant", "key"), dropped)
    write_result(
        files,
        collector.result(),
        chosen_on=BASELINE,
        draws=choice.variants.draws,
        calibration=calibration,
        published=published,
        seed=args.seed,
        record=record,
    )
    discard_state(state, ranks)
    for column, missing in choice.variants.shortfall.items():
        lacking = ", ".join(f"{layer} {count}" for layer, count in missing.items())
        print(f"note: {name}: {column} drops fewer than k maps, these layers have no more outside the top k: {lacking}")
    result = read_result(files, made_by=SCRIPT)
    print(f"{name}: {result.images} images; {result.note}")
    return result


def _report(args: argparse.Namespace, detector: Detector, choice: _Choice, results: list[GeneratorResult]) -> Path:
    """Table and figure over the generators; the PNG."""
    stem = ResultFiles(args.output_dir, "transfer", detector.arch, results[0].gan_name, args.blur_jpg).table
    table = write_sensitivity_table(
        stem,
        detector.arch,
        args.blur_jpg,
        choice.k,
        results,
        ranking=choice.path.name,
        published=args.compat == "published",
    )
    title = f"{detector.arch}, blur_jpg {args.blur_jpg}: {choice.k} of {len(choice.ranking):,} feature maps dropped"
    pictures = plot_sensitivity(results, stem, title)
    print(table[1].read_text(encoding="utf-8"))
    for path in (*table, *pictures):
        print(path, file=sys.stderr)
    return pictures[0]


if __name__ == "__main__":
    run_script(main)
