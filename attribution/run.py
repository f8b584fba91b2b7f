"""What is explained: the images named, the network named, and the experiment run on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from attribution.attribution import Attribution
from attribution.options import AttributionOptions
from detectors.choice import DetectorChoice
from detectors.detector import load_detector, load_imagenet_classifier
from images.bundled_photos import bundled_photos
from images.choice import ImageChoice, Reading
from images.finding import find_images
from images.sets import ImageSet, find_loose_images
from passes.analysis import Subject
from passes.options import RunOptions
from passes.processes import Ranks, process_group
from passes.running import run_analyses, tracked, warned
from utils.cli import announce
from utils.errors import UserError
from utils.settings import plain


def explain_images(
    method: type[Attribution],
    detector: DetectorChoice,
    images: ImageChoice,
    reading: Reading,
    options: AttributionOptions,
    run: RunOptions,
) -> Attribution:
    """Explain the images named, in one table; what was run.

    Raises:
        UserError: Anything a user can mend.
        Interrupted: After Ctrl-C or SIGTERM, with the state saved.
    """
    with process_group() as ranks:
        name, image_set, source = choose_images(images, options.images, ranks)
        settings = plain(detector, images, reading, options, run)
        if options.classifier == "ud":
            network = load_detector(detector)
        else:
            network = load_imagenet_classifier(detector.arch, detector.weights, detector.device, detector.precision)
        announce(f"{len(image_set)} images: {source}", ranks.is_first)
        analysis = method(Subject(network, detector.blur_jpg, name, image_set, reading, run, settings), options)
        with tracked(run, method.name, settings, ranks) as tracker:
            run_analyses([analysis], ranks=ranks, tracker=tracker)
    return analysis


def choose_images(choice: ImageChoice, files: Sequence[Path], ranks: Ranks) -> tuple[str, ImageSet, str]:
    """A name for the images, the images, and one phrase saying which they are.

    Files go first, then the data set, all its generators in one set, then the bundled photos.

    Raises:
        UserError: Something named is not there, or a data set is named without its folders.
    """
    if files:
        return "images", find_loose_images(files), "those of --images"
    if choice.dataset_dir is None and choice.images_from is None and not choice.gan_name:
        photos = find_loose_images([path for _, path in bundled_photos()])
        return "photos", photos, "bundled with scikit-image and scikit-learn (no --images or --dataset_dir given)"
    sets = warned(find_images(choice, alone=True), ranks)
    (name, together), *others = sets.items()
    if others:
        if choice.equalize:
            raise UserError("--equalize makes the images of one set alike: name one --gan_name")
        items = [item for image_set in sets.values() for item in image_set.items]
        if len({item.name for item in items}) < len(items):
            items = [replace(item, name=f"{item.generator}/{item.name}") for item in items]
        name, together = "several", ImageSet(together.root, tuple(items))
    return name, together, f"{', '.join(sets)} of {choice.dataset_dir or choice.images_from}"
