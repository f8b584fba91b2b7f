"""What a run is about: detectors with their rankings, image sets, and the arguments of the single steps."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from fmap_ranking.locate import PAPER_GENERATOR

from detectors.detector import Detector, load_detector
from detectors.devices import resolve_device
from detectors.networks import canonical_architecture
from evaluation.published import GENERATORS
from images.composition import composition_warning
from images.sets import ImageSet, find_image_pair, find_image_set
from utils.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class Subject:
    """A detector, and the arguments that the single steps take for it."""

    args: argparse.Namespace
    detector: Detector

    @property
    def arch(self) -> str:
        """Canonical name of the architecture."""
        return self.detector.arch

    @property
    def tag(self) -> str:
        """Stands for the detector's training in file names."""
        return str(self.args.blur_jpg)


def by_architecture(
    flag: str, given: Sequence[str] | None, archs: Sequence[str], kind: Callable[[str], T]
) -> dict[str, T]:
    """Values of a flag by architecture, given as ARCH=VALUE each, or as plain values in the order of --arch.

    Raises:
        UserError: An unknown architecture, two values for one, or plain values that do not fit --arch.

    >>> by_architecture("--topk", ["efb0=27"], ["resnet50", "efb0"], int)
    {'efb0': 27}
    >>> by_architecture("--topk", ["5", "6"], ["resnet50", "efb0"], int)
    {'resnet50': 5, 'efb0': 6}
    """
    values = list(given or ())
    parts = [text.partition("=") for text in values]
    named = [(_canonical(name) if sign else None, name + sign + value, value) for name, sign, value in parts]
    if values and not any(arch for arch, _, _ in named):
        if len(values) != len(archs):
            raise UserError(
                f"{flag}: {len(values)} values for {len(archs)} architectures ({', '.join(archs)}): "
                f"give one for each in the same order, or {flag} {archs[0]}=VALUE"
            )
        return {arch: _parsed(flag, value, kind) for arch, value in zip(archs, values, strict=True)}
    found: dict[str, T] = {}
    for arch, text, value in named:
        if arch is None or arch not in archs:
            raise UserError(f"{flag} {text[:80]}: name an architecture of --arch, {flag} {archs[0]}=VALUE")
        if arch in found:
            raise UserError(f"{flag} {arch}=...: given twice: give one value for each architecture")
        found[arch] = _parsed(flag, value, kind)
    return found


def _canonical(name: str) -> str | None:
    try:
        return canonical_architecture(name)
    except UserError:
        return None


def _parsed(flag: str, text: str, kind: Callable[[str], T]) -> T:
    try:
        return kind(text)
    except (ValueError, argparse.ArgumentTypeError) as error:
        raise UserError(f"{flag} {text[:80]}: {error}") from error


def find_images(args: argparse.Namespace) -> dict[str, ImageSet]:
    """Image sets by generator, and warnings where real and fake images differ in file format.

    Raises:
        UserError: Neither a data set nor two folders are named, or images are missing.
    """
    if (args.real is None) != (args.fake is None):
        raise UserError("--real and --fake go together: give a folder of real and a folder of fake images")
    if args.real is not None:
        if args.dataset_dir is not None or args.gan_name:
            raise UserError("--real and --fake stand for a data set: leave out --dataset_dir and --gan_name")
        pair = find_image_pair(
            args.real,
            args.fake,
            args.name,
            num_real=args.num_instances if args.num_real is None else args.num_real,
            num_fake=args.num_instances if args.num_fake is None else args.num_fake,
        )
        image_sets = {args.name: pair}
    elif args.dataset_dir is None:
        raise UserError("no images: give --real DIR --fake DIR, or --dataset_dir DIR with folders of generators")
    else:
        names = args.gan_name or _paper_generators(args.dataset_dir)
        image_sets = {name: find_generator(args, name) for name in dict.fromkeys(names)}
    for name, image_set in image_sets.items():
        warning = composition_warning(image_set)
        if warning:
            sys.stderr.write(f"warning: {name}: {warning}\n")
    return image_sets


def find_generator(args: argparse.Namespace, name: str) -> ImageSet:
    """The images of one generator of `--dataset_dir`."""
    return find_image_set(
        args.dataset_dir,
        name,
        have_classes=args.have_classes,
        num_real=args.num_real,
        num_fake=args.num_fake,
        num_instances=args.num_instances,
    )


def _paper_generators(dataset_dir: Path) -> list[str]:
    names = [name for name in GENERATORS if (dataset_dir / name).is_dir()]
    if not names:
        raise UserError(
            f"none of the paper's generators ({', '.join(GENERATORS)}) in {dataset_dir}: "
            "check --dataset_dir, or name folders with --gan_name"
        )
    return names


def images_to_rank_on(args: argparse.Namespace, image_sets: Mapping[str, ImageSet]) -> tuple[str, ImageSet]:
    """Name and images for a ranking that has to be computed: --rank_on, else progan_val, else the first generator.

    Raises:
        UserError: There is no such generator.
    """
    name = args.rank_on
    if name is None:
        there = args.dataset_dir is not None and (args.dataset_dir / PAPER_GENERATOR).is_dir()
        name = PAPER_GENERATOR if there else next(iter(image_sets))
    if name in image_sets:
        return name, image_sets[name]
    if args.dataset_dir is None:
        raise UserError(f"--rank_on {name}: the only images are {', '.join(image_sets)}: leave the flag out")
    return name, find_generator(args, name)


def load_subjects(args: argparse.Namespace, parse_topk: Callable[[str], int]) -> list[Subject]:
    """All detectors, each with its own arguments.

    Raises:
        UserError: A checkpoint cannot be used, or a flag does not fit --arch.
    """
    archs = list(dict.fromkeys(args.arch))
    weights = by_architecture("--weights", args.weights, archs, Path)
    relevances = by_architecture("--relevances", args.relevances, archs, Path)
    topk = by_architecture("--topk", args.topk, archs, parse_topk)
    device = resolve_device(args.device)
    subjects = []
    for arch in archs:
        own = argparse.Namespace(**vars(args))
        own.arch, own.weights, own.relevances, own.topk = arch, weights.get(arch), relevances.get(arch), topk.get(arch)
        # Analyses are about whole images; --crop is about those that a ranking is computed on.
        own.crop, own.rank_crop = "none", args.crop
        own.layers, own.labels, own.figures, own.save_pt_files, own.resume = None, ["fake", "real"], True, False, True
        # The published hybrid would alter the very detector that is analysed.
        own.compat_se = None
        subjects.append(
            Subject(own, load_detector(arch, own.weights, device, blur_jpg=args.blur_jpg, precision=args.precision))
        )
    return subjects
