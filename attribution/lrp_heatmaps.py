"""What the LRP attribution scripts share: their arguments, the explainer, heat maps and the conservation table."""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from attribution.outputs import select_images
from attribution.run import (
    Explanation,
    add_attribution_arguments,
    attribution_folder,
    evidence_for,
    load_classifier,
    run_attribution,
)
from attribution.targets import LABEL, Target, parse_target
from detectors.explaining import add_lrp_arguments, make_explainer
from lrp import Absorption, Explainer
from utils.cli import (
    add_bool,
    add_data_arguments,
    add_detector_arguments,
    add_loading_arguments,
    add_run_arguments,
    make_parser,
)
from utils.files import sha256_file, write_csv, write_provenance

CONSERVATION_COLUMNS = ("layer", "kind", "rule", "received", "passed", "absorbed")


def explain_input(
    explainer: Explainer,
    inputs: Tensor,
    target: Target,
    conservation: list[Absorption] | None = None,
) -> Explanation:
    """Relevance of the input, summed over RGB; the arrays hold it per channel, the logits and the start relevance.

    Relevance is propagated from +1 for every image, and multiplied by the start relevance afterwards, which comes to
    the same as every rule is linear in relevance. So images with start +1 and -1 do not cancel in the conservation.

    Args:
        explainer: of the network.
        inputs: normalised images (N, 3, H, W).
        target: the score explained, for these images.
        conservation: gets one row per step, summed over the images.
    """
    record = explainer.record(inputs)
    logits = record.output.float()
    start = target.head.start_relevance(logits, target.classes(logits), published=explainer.published)
    relevance = explainer.propagate(record, start.abs().to(record.output.dtype), conservation=conservation)
    assert relevance is not None
    sign = start.flatten(1).sum(1)
    relevance = relevance.float() * sign.view(-1, 1, 1, 1)
    return Explanation(
        relevance.sum(1),
        logits,
        {"relevance_rgb": relevance, "logits": logits, "start": sign},
        # the published start does not look at the sign of the logit
        reversed=sign * target.score(logits) < 0,
    )


class ConservationTable:
    """Sums of conservation rows over batches, step by step from the output to the input."""

    def __init__(self) -> None:
        self.rows: list[Absorption] = []

    def add(self, rows: Sequence[Absorption]) -> None:
        """Add the rows of a batch."""
        if not self.rows:
            self.rows = list(rows)
            return
        self.rows = [
            replace(total, received=total.received + row.received, passed=total.passed + row.passed)
            for total, row in zip(self.rows, rows, strict=True)
        ]

    def write(self, path: Path) -> None:
        """Write the table."""
        rows = [(row.layer, row.kind, row.rule, row.received, row.passed, row.absorbed) for row in self.rows]
        write_csv(path, CONSERVATION_COLUMNS, rows)


def lrp_heatmaps(classifier: str, arch: str) -> Iterator[str]:
    """All that an LRP script does; yields what there is to tell the user.

    Args:
        classifier: `ud` for a universal detector, `imagenet` for an ImageNet classifier.
        arch: architecture unless `--arch` says otherwise.

    Raises:
        UserError: anything a user can mend.
    """
    args = _parse_arguments(classifier, arch)
    image_set, source = select_images(args)
    detector = load_classifier(args)
    target = parse_target(args.target, detector.head, default=LABEL)
    explainer = make_explainer(args, detector)
    inputs = {"weights": detector.sha256, "images": image_set.digest()}
    if args.compat_se is not None:
        inputs["squeeze_excite"] = sha256_file(args.compat_se)
    facts = {"method": "LRP", "rule": args.rule, "compat": args.compat}
    details, title = [args.rule, target.name], f"LRP {args.rule} of {detector.arch}"
    if explainer.published:
        # whether a start relevance of +1 or -1 makes evidence for or against depends on the logit: see the captions
        details, title = [*details, "published"], f"{title}, computed as published"
    else:
        title += f": evidence for {evidence_for(target)}"
    folder = attribution_folder(args, "lrp", detector.arch, *details)
    table = ConservationTable() if args.conservation else None

    def explain(images: Tensor, target: Target) -> Explanation:
        rows: list[Absorption] | None = None if table is None else []
        result = explain_input(explainer, detector.inputs(images), target, rows)
        if table is not None and rows is not None:
            table.add(rows)
        return result

    yield from run_attribution(
        args,
        detector,
        target,
        image_set,
        explain,
        source=source,
        folder=folder,
        title=title,
        inputs=inputs,
        facts=facts,
    )
    path = folder / "conservation.csv"
    if table is None:
        # one of an earlier run would not belong to these images
        path.unlink(missing_ok=True)
        path.with_name(path.name + ".json").unlink(missing_ok=True)
        return
    table.write(path)
    write_provenance(path, seed=args.seed, device=detector.device, inputs=inputs, start="+1 for every image", **facts)
    yield str(path)


def _parse_arguments(classifier: str, arch: str) -> argparse.Namespace:
    script = f"{classifier}_lrp" + ("" if arch == "resnet50" else f"_{arch}")
    imagenet = classifier == "imagenet"
    parser = make_parser(
        f"LRP heat maps of {'an ImageNet classifier' if imagenet else 'a universal detector'}: pictures, raw arrays, "
        "contact sheets with probability and label, and a table.",
        f"python src/{script}.py{'' if imagenet else ' --blur_jpg 0.5'} --images photo.jpg folder/",
    )
    parser.set_defaults(classifier=classifier)
    add_attribution_arguments(parser, resize=256 if imagenet else 0, target=LABEL)
    add_lrp_arguments(parser)
    add_bool(
        parser,
        "--conservation",
        default=False,
        help="write conservation.csv: relevance that every step receives, passes on and absorbs",
    )
    add_detector_arguments(parser, arch=arch)
    add_data_arguments(parser, required=False)
    add_loading_arguments(parser, crop="center" if imagenet else "none")
    add_run_arguments(parser, resume=False, wandb=False)
    return parser.parse_args()
