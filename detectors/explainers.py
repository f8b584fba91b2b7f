"""The explainer of a detector as the command line describes it: rule, precision and compatibility."""

import argparse
from pathlib import Path

import torch

from detectors.architectures import Architecture
from detectors.detector import Detector, replace_squeeze_excite
from lrp import RULE_NAMES, Explainer, RuleTable, ZBox, rule_table
from utils.errors import UserError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def parse_rule(text: str) -> str:
    """The name of a propagation rule, for argparse's `type`."""
    try:
        rule_table(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def add_lrp_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --rule and --compat_se."""
    group = parser.add_argument_group("relevance propagation")
    group.add_argument(
        "--rule",
        type=parse_rule,
        default="beta0",
        metavar="NAME",
        help=f"rule of the convolutions: {', '.join(RULE_NAMES)}, or beta<number> such as beta0.5",
    )
    group.add_argument(
        "--compat_se",
        type=Path,
        metavar="FILE",
        help="EfficientNet: explain with the squeeze-and-excitation weights of this ImageNet checkpoint, as published",
    )


def detector_rules(architecture: Architecture, rule: str = "beta0", *, published: bool = False) -> RuleTable:
    """The rules of an architecture: ResNets have a z-box at the image, as published, other networks do not.

    Its bounds are those of a pixel of each channel after normalisation; published ones are numbers for all channels.
    """
    first = None
    if architecture.family == "resnet" and published:
        first = ZBox(-2.1179039, 2.64)
    elif architecture.family == "resnet":
        mean_and_std = list(zip(architecture.mean, architecture.std, strict=True))
        first = ZBox(tuple(-m / s for m, s in mean_and_std), tuple((1.0 - m) / s for m, s in mean_and_std))
    return rule_table(rule, first, guard=0.0) if published else rule_table(rule, first)


def make_explainer(args: argparse.Namespace, detector: Detector) -> Explainer:
    """The explainer for `--rule`, `--precision`, `--compat` and `--compat_se`, which alters the detector itself.

    Raises:
        UserError: the network cannot be explained, or `--compat_se` does not fit it.
    """
    if args.compat_se is not None:
        replace_squeeze_excite(detector.model, args.compat_se)
    try:
        return Explainer(
            detector.model,
            detector_rules(detector.architecture, args.rule, published=args.compat == "published"),
            published=args.compat == "published",
            dtype=DTYPES[args.precision],
        )
    except ValueError as error:
        raise UserError(str(error)) from error
