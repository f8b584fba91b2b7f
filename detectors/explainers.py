"""The explainer of a detector as the command line describes it: rule, precision and compatibility."""

import argparse
from pathlib import Path

import torch

from detectors.detector import Detector, replace_squeeze_excite
from lrp import RULE_NAMES, Explainer, rule_table
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
            args.rule,
            family=detector.architecture.family,
            published=args.compat == "published",
            dtype=DTYPES[args.precision],
        )
    except ValueError as error:
        raise UserError(str(error)) from error
