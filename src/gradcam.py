"""Guided Grad-CAM of a detector or an ImageNet classifier on single images."""

import argparse

import torch
from torch import Tensor

from attribution.gradcam import gradcam_layer, guided_gradcam
from attribution.outputs import select_images
from attribution.run import (
    Explanation,
    add_attribution_arguments,
    attribution_folder,
    evidence_for,
    load_classifier,
    run_attribution,
)
from attribution.targets import Target, parse_target
from utils.cli import (
    add_data_arguments,
    add_detector_arguments,
    add_loading_arguments,
    add_run_arguments,
    make_parser,
    run_script,
)


def parse_arguments() -> argparse.Namespace:
    parser = make_parser(
        "Guided Grad-CAM (Selvaraju et al., ICCV 2017): pictures, raw arrays, contact sheets and a table.",
        "python src/gradcam.py --classifier ud --arch resnet50 --blur_jpg 0.5 --images photo.jpg folder/",
    )
    parser.add_argument(
        "--classifier",
        choices=("ud", "imagenet"),
        default="ud",
        help="universal detector or ImageNet classifier",
    )
    parser.add_argument(
        "--layer",
        metavar="NAME",
        help="layer to weight; absent: layer4 of a ResNet, _conv_head of an EfficientNet",
    )
    add_attribution_arguments(parser, resize=256)
    add_detector_arguments(parser)
    add_data_arguments(parser, required=False)
    add_loading_arguments(parser, crop="center")
    # one way of computing, no state to go on from
    add_run_arguments(parser, compat=False, resume=False, wandb=False)
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    image_set, source = select_images(args)
    detector = load_classifier(args)
    target = parse_target(args.target, detector.head)
    gradcam_layer(detector, args.layer)
    layer = args.layer or detector.architecture.gradcam_layer

    def explain(images: Tensor, target: Target) -> Explanation:
        with torch.autocast(detector.device.type, torch.bfloat16, enabled=args.precision == "bf16"):
            result = guided_gradcam(detector, images, target, layer)
        arrays = {"cam": result.cam, "guided_backprop": result.guided_backprop, "logits": result.logits}
        return Explanation(result.relevance, result.logits, arrays)

    for line in run_attribution(
        args,
        detector,
        target,
        image_set,
        explain,
        source=source,
        folder=attribution_folder(args, "gradcam", detector.arch, target.name),
        title=f"Guided Grad-CAM of {detector.arch}, {layer}: evidence for {evidence_for(target)}",
        inputs={"weights": detector.sha256, "images": image_set.digest()},
        facts={"method": "guided Grad-CAM", "layer": layer},
    ):
        print(line)


if __name__ == "__main__":
    run_script(main)
