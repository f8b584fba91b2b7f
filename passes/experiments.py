"""What the scripts of several experiments do alike: find the images, run the pass, report what was left out."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence

from detectors.detector import Detector
from images.choice import Reading
from images.composition import composition_warning
from images.decoding import Crop
from images.sets import ImageSet, find_image_set
from passes.one_pass import Collector, PassReport, PassState, run_pass
from passes.processes import Ranks


def find_image_sets(args: argparse.Namespace, labels: Sequence[int] = (0, 1)) -> dict[str, ImageSet]:
    """The images of every `--gan_name`; warns where real and fake images differ in file format.

    Raises:
        UserError: A folder is missing or has no images of a label.
    """
    image_sets = {}
    for name in args.gan_name:
        image_sets[name] = find_image_set(
            args.dataset_dir,
            name,
            have_classes=args.have_classes,
            num_real=args.num_real,
            num_fake=args.num_fake,
            num_instances=args.num_instances,
            labels=labels,
        )
        warning = composition_warning(image_sets[name])
        if warning:
            sys.stderr.write(f"warning: {name}: {warning}\n")
    return image_sets


def show_images(
    args: argparse.Namespace,
    image_set: ImageSet,
    collectors: Sequence[Collector],
    detector: Detector,
    *,
    state: PassState | None,
    ranks: Ranks,
    description: str,
) -> PassReport:
    """Run the pass as the shared arguments say; images left out are named on standard error.

    Raises:
        UserError: An image cannot be decoded, or the saved state belongs to another run.
        Interrupted: After Ctrl-C or SIGTERM, with the state saved.
    """
    report = run_pass(
        image_set,
        collectors,
        preprocess=detector.inputs,
        device=detector.device,
        batch_size=args.bsize,
        crop=Crop(args.crop),
        seed=args.seed,
        num_workers=Reading(num_workers=args.num_workers).workers_for(detector.device.type),
        skip_bad_images=args.skip_bad_images,
        state=state,
        ranks=ranks,
        description=description,
    )
    if ranks.is_first:
        for entry in report.skipped:
            sys.stderr.write(f"skipped: {entry.reason}\n")
    return report


def conditions(args: argparse.Namespace, inputs: Mapping[str, str], facts: Mapping[str, object]) -> dict[str, str]:
    """All that the result of a pass depends on, for `PassState`."""
    return {
        **inputs,
        **{key: str(value) for key, value in facts.items()},
        "bsize": str(args.bsize),
        "device": str(args.device),
        "seed": str(args.seed),
    }
