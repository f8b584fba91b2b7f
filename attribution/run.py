"""The loop of every attribution script: images in, explanations out."""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from attribution.outputs import AttributionWriter, add_image_arguments
from attribution.targets import LABEL, TOP, Target
from detectors.detector import Detector, load_detector, load_imagenet_classifier
from detectors.heads import Classes, Head
from images.choice import Reading
from images.decoding import Crop
from images.loading import SkippedImage, iterate_batches
from images.sets import ImageSet
from utils.cli import parse_count, progress
from utils.errors import UserError


@dataclass(frozen=True)
class Explanation:
    """What a method says of a batch.

    Attributes:
        relevance: (N, H, W), signed; positive is evidence for the explained class.
        logits: (N, outputs) of the network.
        arrays: further raw arrays, (N, ...) each, stored beside the relevance of each image.
        reversed: (N,) bool, images whose positive relevance is evidence against the explained class; None for none.
    """

    relevance: Tensor
    logits: Tensor
    arrays: Mapping[str, Tensor] = field(default_factory=dict)
    reversed: Tensor | None = None


def add_attribution_arguments(parser: ArgumentParser, *, resize: int, target: str = "fake") -> None:
    """Add `--images`, `--target` (of a detector `target` by default) and `--resize` to a parser."""
    add_image_arguments(parser)
    parser.add_argument(
        "--target",
        metavar="NAME",
        help="what to explain: for a detector fake, real, or label (each image's own, where unknown the decision); "
        f"for an ImageNet classifier top or the number of a class; absent: {target}, or top",
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
    return Crop(args.crop, resize=args.resize if args.crop == "center" else 0)


def load_classifier(args: Namespace) -> Detector:
    """The network for `--classifier`, `--arch`, `--weights`, `--blur_jpg` and `--device`.

    Raises:
        UserError: as `load_detector` and `load_imagenet_classifier`.
    """
    if args.classifier == "imagenet":
        return load_imagenet_classifier(args.arch, args.weights, args.device, args.precision)
    return load_detector(args.arch, args.weights, args.device, blur_jpg=args.blur_jpg, precision=args.precision)


def attribution_folder(args: Namespace, method: str, arch: str, *details: str) -> Path:
    """Where results of a method go: `<output_dir>/<method>/<arch>/<classifier>[_<tag>]-<detail>-...`."""
    classifier = f"{args.classifier}_{args.blur_jpg}" if args.classifier == "ud" else args.classifier
    return Path(args.output_dir) / method / arch / "-".join((classifier, *details))


def evidence_for(target: Target) -> str:
    """What positive relevance is evidence for, in words, for the title of a contact sheet."""
    if target.name == LABEL:
        return "each image's label, or else the decision"
    if target.name == TOP:
        return "the most probable class"
    return target.head.class_names[int(target.name)] if isinstance(target.head, Classes) else target.name


def run_attribution(
    args: Namespace,
    detector: Detector,
    target: Target,
    image_set: ImageSet,
    explain: Callable[[Tensor, Target], Explanation],
    *,
    source: str,
    folder: Path,
    title: str,
    inputs: Mapping[str, str],
    facts: Mapping[str, object],
) -> Iterator[str]:
    """Explain every image, write the results image by image, and yield what there is to tell the user.

    Args:
        args: has the shared arguments of `utils.cli` and those of `add_attribution_arguments`.
        detector: the network explained.
        target: the score explained.
        image_set: the images.
        explain: from uint8 images (N, 3, H, W), and the target for these images, to their explanation.
        source: which images these are, in words.
        folder: where results go, laid out as `AttributionWriter` says.
        title: head line of the contact sheets.
        inputs: SHA-256 by name of what went in, for the provenance.
        facts: of the method, for the provenance.

    Raises:
        UserError: an image cannot be decoded, or with `--skip_bad_images` none can.
    """
    yield f"{len(image_set)} images: {source}"
    unlabelled = sum(item.label is None for item in image_set.items)
    if target.name == LABEL and unlabelled:
        yield f"{unlabelled} without a label: explained for the detector's decision"
    crop, head = chosen_crop(args), detector.head
    writer = AttributionWriter(folder, image_set, title=title)
    skipped: list[SkippedImage] = []
    batches = iterate_batches(
        image_set,
        batch_size=args.bsize,
        crop=crop,
        seed=args.seed,
        num_workers=Reading(num_workers=args.num_workers).workers_for(detector.device.type),
        device=detector.device,
        skip_bad_images=args.skip_bad_images,
        skipped=skipped,
    )
    with progress(total=len(image_set), description="explaining") as bar:
        for batch in batches:
            of_batch = target.of(batch.labels)
            result = explain(batch.images, of_batch)
            pictures = batch.images.permute(0, 2, 3, 1).cpu().numpy()
            relevance = result.relevance.float().cpu().numpy()
            explained = of_batch.classes(result.logits)
            chances = head.probability(result.logits, explained).tolist()
            classes = explained.tolist()
            reversals = [False] * len(classes) if result.reversed is None else result.reversed.tolist()
            arrays = {name: values.float().cpu().numpy() for name, values in result.arrays.items()}
            for row, item in enumerate(batch.items):
                writer.add(
                    item,
                    pictures[row],
                    relevance[row],
                    probability=chances[row],
                    probability_of=head.class_names[classes[row]] if isinstance(head, Classes) else "fake",
                    explained=_explained(classes[row], head, reversals[row]),
                    arrays={name: values[row] for name, values in arrays.items()},
                )
            bar.update(len(batch.items))
    for entry in skipped:
        yield f"skipped: {entry.reason}"
    if len(skipped) == len(image_set):
        raise UserError(f"none of the {len(image_set)} images can be decoded: there is nothing to explain")
    written = writer.finish(
        seed=args.seed,
        device=detector.device,
        inputs=inputs,
        arch=detector.arch,
        classifier=args.classifier,
        target=target.name,
        crop=crop,
        precision=args.precision,
        skipped=[[entry.item.name, entry.reason] for entry in skipped],
        **facts,
    )
    yield from map(str, written)


def _explained(index: int, head: Head, is_reversed: bool) -> str:
    name = head.class_names[index]
    if not is_reversed:
        return name
    return f"not {name}" if isinstance(head, Classes) else head.class_names[1 - index]
