"""Step 3: cut out the image regions that excite each feature map most (LRP-max)."""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

from lrp import Explainer
from patch_extraction.files import PatchFiles
from patch_extraction.patches import PatchCollector, Wanted, wanted_patches
from patch_extraction.rankings import ActivationRankingFiles, ActivationRankings
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
    resolve_num_workers,
    run_script,
)
from utils.decoding import Crop
from utils.detectors import Detector, load_detector
from utils.devices import resolve_device
from utils.distributed import Ranks, process_group
from utils.errors import UserError
from utils.figures import save_picture
from utils.files import safe_join, sha256_file, sha256_text, write_provenance
from utils.image_sets import ImageItem, ImageSet
from utils.passes import PassState, discard_state, run_pass
from utils.tracking import tracker

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
FAKE = 1


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
    group = parser.add_argument_group("relevance")
    group.add_argument(
        "--rule", default="beta0", help="propagation rule of convolutions: beta0, beta1, betaada, epsilon, beta<number>"
    )
    add_run_arguments(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    with process_group() as ranks:
        device = ranks.device(resolve_device(args.device))
        detector = load_detector(args.arch, args.weights, device, blur_jpg=args.blur_jpg)
        # Everything is looked for before anything is computed.
        found = {name: _find(args, detector, name) for name in args.gan_name}
        try:
            explainer = Explainer(
                detector.model,
                args.rule,
                family=detector.architecture.family,
                published=args.compat == "published",
                dtype=DTYPES[args.precision],
            )
        except ValueError as error:
            raise UserError(str(error)) from error
        with tracker(args.wandb and ranks.is_first, job="patches", config=vars(args), folder=args.output_dir) as track:
            for name, (selection, wanted, image_set) in found.items():
                files = _extract(args, name, selection, wanted, image_set, detector, explainer, ranks)
                if files is not None:
                    for fmap in selection.maps[:10]:
                        track.picture(f"{name}/{fmap.key}", files.picture(fmap, 1))


def _find(args: argparse.Namespace, detector: Detector, name: str) -> tuple[Selection, list[list[Wanted]], ImageSet]:
    selection = select_maps(
        detector,
        name,
        args.blur_jpg,
        topk=args.topk,
        layers=args.layers,
        relevances=args.relevances,
        output_dir=args.output_dir,
    )
    path = ActivationRankingFiles(args.output_dir, detector.arch, name, args.blur_jpg).arrays
    rankings = ActivationRankings.read(path)
    rankings.require(selection.maps, path)
    source = rankings.source
    if source.weights != detector.sha256:
        raise UserError(
            f"{path} was made with another checkpoint than {detector.weights}: "
            "give the same --weights, or run get_max_activation_rankings.py again"
        )
    if source.crop != "none":
        raise UserError(
            f"{path} was made with --crop {source.crop}, but patches are cut from whole images: "
            "run get_max_activation_rankings.py with --crop none"
        )
    wanted = wanted_patches(rankings, selection.maps, args.num_instances)
    root = args.dataset_dir or Path(source.dataset_dir)
    names = sorted({patch.name for of_map in wanted for patch in of_map})
    items = tuple(ImageItem(safe_join(root, image), image, FAKE, "", name) for image in names)
    missing = [item.path for item in items if not item.path.is_file()]
    if missing and not args.skip_bad_images:
        raise UserError(
            f"no such image: {missing[0]} ({len(missing)} missing): give the --dataset_dir that the images were "
            "ranked in, run get_max_activation_rankings.py again, or use --skip_bad_images"
        )
    return selection, wanted, ImageSet(root, items)


def _extract(
    args: argparse.Namespace,
    name: str,
    selection: Selection,
    wanted: list[list[Wanted]],
    image_set: ImageSet,
    detector: Detector,
    explainer: Explainer,
    ranks: Ranks,
) -> PatchFiles | None:
    files = PatchFiles(args.output_dir, detector.arch, name)
    ranking_path = ActivationRankingFiles(args.output_dir, detector.arch, name, args.blur_jpg).arrays
    inputs = {
        "activation_rankings": sha256_file(ranking_path),
        "weights": detector.sha256,
        **selection.inputs(),
    }
    facts = {
        "arch": detector.arch,
        "bsize": args.bsize,
        "compat": args.compat,
        "gan_name": name,
        "num_instances": args.num_instances,
        "precision": args.precision,
        "rule": args.rule,
        "tag": args.blur_jpg,
    }
    conditions = {
        **inputs,
        **{key: str(value) for key, value in facts.items()},
        "keys": sha256_text(fmap.key for fmap in selection.maps),
        "seed": str(args.seed),
    }
    state = PassState(files.state, conditions, args.resume)

    def keep_patch(patch: Wanted, picture: np.ndarray) -> None:
        save_picture(files.picture(selection.maps[patch.row], patch.rank), picture)

    collector = PatchCollector(
        explainer,
        selection.maps,
        wanted,
        keep_patch=keep_patch,
        keep_image=files.write_image,
        batch_size=args.bsize,
    )
    if ranks.is_first:
        files.remove_tables(selection.maps)
    report = run_pass(
        image_set,
        [collector],
        preprocess=detector.preprocess,
        device=detector.device,
        batch_size=args.bsize,
        crop=Crop("none"),
        num_workers=resolve_num_workers(args.num_workers, detector.device.type),
        skip_bad_images=args.skip_bad_images,
        state=state,
        ranks=ranks,
        description=f"patches {name}",
    )
    if not ranks.is_first:
        discard_state(state, ranks)
        return None
    for entry in report.skipped:
        print(f"skipped: {entry.reason}", file=sys.stderr)
    patches = collector.result()
    files.write_tables(selection.maps, selection.omega, patches)
    write_provenance(
        files.index,
        seed=args.seed,
        device=detector.device,
        inputs=inputs,
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
