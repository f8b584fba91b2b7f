"""LRP-max patches of one generator, from shared arguments to files."""

from __future__ import annotations

import argparse
import sys

import numpy as np

from detectors.detector import Detector
from lrp import Explainer
from passes.experiments import conditions, show_images
from passes.one_pass import PassState, discard_state
from passes.processes import Ranks
from patch_extraction.files import PatchFiles
from patch_extraction.patches import PatchCollector, Wanted
from patch_extraction.plan import PatchPlan, plan_patches
from patch_extraction.rankings import ActivationRankingFiles
from patch_extraction.selection import Selection, select_maps
from utils.files import sha256_file, sha256_text, write_provenance


def find_patches(args: argparse.Namespace, detector: Detector, gan_name: str) -> tuple[Selection, PatchPlan]:
    """The maps that the shared arguments ask for, and the images to cut their patches from.

    Raises:
        UserError: An earlier step is missing or was made otherwise.
    """
    selection = select_maps(
        detector,
        gan_name,
        args.blur_jpg,
        topk=args.topk,
        layers=args.layers,
        relevances=args.relevances,
        output_dir=args.output_dir,
    )
    plan = plan_patches(
        ActivationRankingFiles(args.output_dir, detector.arch, gan_name, args.blur_jpg),
        detector,
        selection.maps,
        args.num_instances,
        dataset_dir=args.dataset_dir,
        allow_missing=args.skip_bad_images,
    )
    return selection, plan


def patches_origin(
    args: argparse.Namespace, gan_name: str, selection: Selection, detector: Detector
) -> tuple[dict[str, str], dict[str, object]]:
    """Digests of what goes into the patches, and their settings, as their provenance has them."""
    rankings = ActivationRankingFiles(args.output_dir, detector.arch, gan_name, args.blur_jpg).arrays
    inputs = {"activation_rankings": sha256_file(rankings), "weights": detector.sha256, **selection.inputs()}
    if args.compat_se is not None:
        inputs["squeeze_excite"] = sha256_file(args.compat_se)
    facts: dict[str, object] = {
        "arch": detector.arch,
        "compat": args.compat,
        "gan_name": gan_name,
        "num_instances": args.num_instances,
        "precision": args.precision,
        "rule": args.rule,
        "tag": args.blur_jpg,
    }
    return inputs, facts


def extract_patches(
    args: argparse.Namespace,
    gan_name: str,
    selection: Selection,
    plan: PatchPlan,
    detector: Detector,
    explainer: Explainer,
    ranks: Ranks,
) -> PatchFiles | None:
    """Make the patches in one pass over their images and write them; None on all ranks but the first."""
    files = PatchFiles(args.output_dir, detector.arch, gan_name)
    inputs, facts = patches_origin(args, gan_name, selection, detector)
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
        args, plan.image_set, [collector], detector, state=state, ranks=ranks, description=f"patches {gan_name}"
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
    sys.stdout.write(
        f"{files.root}: {sum(map(len, patches))} patches of {len(selection.maps):,} maps from {report.images} images\n"
    )
    return files
