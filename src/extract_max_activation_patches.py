"""Step 3: cut out the image regions that excite each feature map most (LRP-max)."""

import argparse
from pathlib import Path

import numpy as np

from lrp import Explainer
from patch_extraction.files import PatchFiles
from patch_extraction.patches import PatchCollector, Wanted
from patch_extraction.plan import PatchPlan, plan_patches
from patch_extraction.rankings import ActivationRankingFiles
from patch_extraction.selection import Selection, add_map_arguments, select_maps
from utils.cli import (
    add_bool,
    add_detector_arguments,
    add_run_arguments,
    make_parser,
    parse_count,
    parse_have_classes,
    parse_name,
    parse_positive,
    run_script,
)
from utils.detectors import Detector, load_detector
from utils.devices import resolve_device
from utils.distributed import Ranks, process_group
from utils.experiments import conditions, show_images
from utils.explainers import add_lrp_arguments, make_explainer
from utils.files import sha256_file, sha256_text, write_provenance
from utils.passes import PassState, discard_state
from utils.tracking import tracker


def parse_arguments() -> argparse.Namespace:
    parser = make_parser(
        "For each feature map take the images that excite it most, propagate the relevance of its largest activation "
        "to the image (LRP-max), and cut out the box around it. The images come from get_max_activation_rankings.py.",
        "python src/extract_max_activation_patches.py --arch resnet50 --blur_jpg 0.5 --bsize 16 "
        "--dataset_dir ForenSynths/ --gan_name stylegan2 --topk 114 --num_instances 5",
    )
    add_detector_arguments(parser)
    group = parser.add_argument_group("images")
    group.add_argument(
        "--dataset_dir",
        type=Path,
        metavar="DIR",
        help="folder of the generators' folders; absent: the one that the images were ranked in",
    )
    group.add_argument("--gan_name", type=parse_name, nargs="+", required=True, metavar="NAME", help="folders there")
    group.add_argument(
        "--have_classes",
        type=parse_have_classes,
        default="auto",
        metavar="True|False|auto",
        help="taken for the sake of common command lines: the rankings name each image with its class",
    )
    group.add_argument(
        "--num_instances", type=parse_positive, default=5, metavar="N", help="most activating images of each map"
    )
    group = parser.add_argument_group("reading")
    group.add_argument("--bsize", type=parse_positive, default=16, metavar="N", help="images, and maps, in a batch")
    group.add_argument(
        "--num_workers",
        type=parse_count,
        metavar="N",
        help="processes that decode images, 0 for none; absent: as many as are useful on the device",
    )
    add_bool(
        group, "--skip_bad_images", default=False, help="leave out images that cannot be decoded instead of stopping"
    )
    add_map_arguments(parser)
    add_lrp_arguments(parser)
    add_run_arguments(parser)
    # Boxes are in pixels of whole images.
    parser.set_defaults(crop="none")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    with process_group() as ranks:
        device = ranks.device(resolve_device(args.device))
        detector = load_detector(args.arch, args.weights, device, blur_jpg=args.blur_jpg)
        # Everything is looked for before anything is computed.
        found = {name: _find(args, detector, name) for name in args.gan_name}
        explainer = make_explainer(args, detector)
        with tracker(args.wandb and ranks.is_first, job="patches", config=vars(args), folder=args.output_dir) as track:
            for name, (selection, plan) in found.items():
                files = _extract(args, name, selection, plan, detector, explainer, ranks)
                if files is not None:
                    for fmap in selection.maps[:10]:
                        track.picture(f"{name}/{fmap.key}", files.picture(fmap, 1))


def _rankings(args: argparse.Namespace, name: str) -> ActivationRankingFiles:
    return ActivationRankingFiles(args.output_dir, args.arch, name, args.blur_jpg)


def _find(args: argparse.Namespace, detector: Detector, name: str) -> tuple[Selection, PatchPlan]:
    selection = select_maps(
        detector,
        name,
        args.blur_jpg,
        topk=args.topk,
        layers=args.layers,
        relevances=args.relevances,
        output_dir=args.output_dir,
    )
    plan = plan_patches(
        _rankings(args, name),
        detector,
        selection.maps,
        args.num_instances,
        dataset_dir=args.dataset_dir,
        allow_missing=args.skip_bad_images,
    )
    return selection, plan


def _extract(
    args: argparse.Namespace,
    name: str,
    selection: Selection,
    plan: PatchPlan,
    detector: Detector,
    explainer: Explainer,
    ranks: Ranks,
) -> PatchFiles | None:
    files = PatchFiles(args.output_dir, detector.arch, name)
    inputs = {
        "activation_rankings": sha256_file(_rankings(args, name).arrays),
        "weights": detector.sha256,
        **selection.inputs(),
    }
    if args.compat_se is not None:
        inputs["squeeze_excite"] = sha256_file(args.compat_se)
    facts = {
        "arch": detector.arch,
        "compat": args.compat,
        "gan_name": name,
        "num_instances": args.num_instances,
        "precision": args.precision,
        "rule": args.rule,
        "tag": args.blur_jpg,
    }
    keys = sha256_text(fmap.key for fmap in selection.maps)
    state = PassState(files.state, {**conditions(args, inputs, facts), "keys": keys}, args.resume)

    def keep_patch(patch: Wanted, picture: np.ndarray) -> None:
        files.write_patch(selection.maps[patch.row], patch.rank, picture)

    collector = PatchCollector(
        explainer,
        selection.maps,
        plan.wanted,
        keep_patch=keep_patch,
        keep_image=files.write_image,
        batch_size=args.bsize,
    )
    if ranks.is_first:
        files.remove_tables(selection.maps)
    report = show_images(
        args, plan.image_set, [collector], detector, state=state, ranks=ranks, description=f"patches {name}"
    )
    if not ranks.is_first:
        discard_state(state, ranks)
        return None
    patches = collector.result()
    files.write_tables(selection.maps, selection.omega, patches)
    write_provenance(
        files.index,
        seed=args.seed,
        device=detector.device,
        inputs=inputs,
        bsize=args.bsize,
        images=report.images,
        maps=len(selection.maps),
        patches=sum(map(len, patches)),
        ranking=selection.ranking,
        skipped=[[entry.item.name, entry.reason] for entry in report.skipped],
        **facts,
    )
    discard_state(state, ranks)
    print(f"{files.root}: {sum(map(len, patches))} patches of {len(selection.maps):,} maps from {report.images} images")
    return files


if __name__ == "__main__":
    run_script(main)
