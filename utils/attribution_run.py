"""The loop of every attribution script: images in, explanations out."""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from utils.attribution_io import AttributionWriter, ResizedCrop, add_image_arguments
from utils.cli import parse_count, progress, resolve_num_workers
from utils.decoding import Crop
from utils.detectors import Detector, load_detector, load_imagenet_classifier
from utils.image_sets import ImageSet
from utils.loading import SkippedImage, iterate_batches
from utils.targets import Target, imagenet_categories, probabilities


@dataclass(frozen=True)
class Explanation:
    """What a method says of a batch.

    Attributes:
        relevance: (N, H, W), signed; positive is evidence for the target.
        logits: (N, outputs) of the network.
        arrays: further raw arrays, (N, ...) each, stored beside the relevance of each image.
    """

    relevance: Tensor
    logits: Tensor
    arrays: Mapping[str, Tensor]


def add_attribution_arguments(parser: ArgumentParser, *, resize: int) -> None:
    """Add `--images`, `--target` and `--resize` to a parser that has the shared arguments."""
    add_image_arguments(parser)
    parser.add_argument(
        "--target",
        metavar="NAME",
        help="what to explain: fake (default) or real for a detector; top (default) or the number of a class "
        "for an ImageNet classifier",
    )
    parser.add_argument(
        "--resize",
        type=parse_count,
        default=resize,
        metavar="N",
        help="pixels to scale the shorter side to before --crop center; 0: do not scale",
    )


def chosen_crop(args: Namespace) -> Crop:
    """The crop for `--crop` and `--resize`."""
    return ResizedCrop(resize=args.resize) if args.crop == "center" and args.resize else Crop(args.crop)


def load_classifier(args: Namespace) -> Detector:
    """The network for `--classifier`, `--arch`, `--weights`, `--blur_jpg` and `--device`.

    Raises:
        UserError: as `load_detector` and `load_imagenet_classifier`.
    """
    if args.classifier == "imagenet":
        return load_imagenet_classifier(args.arch, args.weights, args.device)
    return load_detector(args.arch, args.weights, args.device, blur_jpg=args.blur_jpg)


def run_attribution(
    args: Namespace,
    detector: Detector,
    target: Target,
    image_set: ImageSet,
    explain: Callable[[Tensor], Explanation],
    *,
    folder: Path,
    title: str,
    facts: Mapping[str, object],
) -> list[Path]:
    """Explain every image and write the results, image by image.

    Args:
        args: has the shared arguments of `utils.cli` and those of `add_attribution_arguments`.
        detector: the network explained.
        target: the score explained.
        image_set: the images.
        explain: from uint8 images (N, 3, H, W) to their explanation.
        folder: where results go, laid out as `AttributionWriter` says.
        title: head line of the contact sheets.
        facts: of the method, for the provenance.

    Returns:
        The contact sheets, and the table last.
    """
    crop = chosen_crop(args)
    writer = AttributionWriter(folder, image_set, title=title)
    skipped: list[SkippedImage] = []
    batches = iterate_batches(
        image_set,
        batch_size=args.bsize,
        crop=crop,
        seed=args.seed,
        num_workers=resolve_num_workers(args.num_workers, detector.device.type),
        device=detector.device,
        skip_bad_images=args.skip_bad_images,
        skipped=skipped,
    )
    with progress(total=len(image_set), description="explaining") as bar:
        for batch in batches:
            result = explain(batch.images)
            pictures = batch.images.permute(0, 2, 3, 1).cpu().numpy()
            relevance = result.relevance.float().cpu().numpy()
            chances = probabilities(result.logits, target).tolist()
            classes = target.classes(result.logits).tolist()
            arrays = {name: values.float().cpu().numpy() for name, values in result.arrays.items()}
            for row, item in enumerate(batch.items):
                explained = target.name if detector.outputs == 1 else _class_name(classes[row], detector.outputs)
                writer.add(
                    item,
                    pictures[row],
                    relevance[row],
                    probability=chances[row],
                    probability_of="fake" if detector.outputs == 1 else explained,
                    explained=explained,
                    arrays={name: values[row] for name, values in arrays.items()},
                )
            bar.update(len(batch.items))
    return writer.finish(
        seed=args.seed,
        device=detector.device,
        inputs={"weights": detector.sha256, "images": image_set.digest()},
        arch=detector.arch,
        target=target.name,
        crop=crop,
        precision=args.precision,
        skipped=[[entry.item.name, entry.reason] for entry in skipped],
        **facts,
    )


def _class_name(index: int, outputs: int) -> str:
    categories = imagenet_categories()
    return f"{index} {categories[index]}" if outputs == len(categories) else str(index)
