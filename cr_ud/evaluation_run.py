"""An evaluation from its arguments: detectors, test sets, one pass over each set, results."""

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from cr_ud.evaluation import SetScores, Summary, calibrated_thresholds, summarise
from cr_ud.evaluation_figures import draw_accuracies, draw_precision_recall, draw_robustness
from cr_ud.evaluation_files import read_scores, read_summaries, write_scores, write_summaries
from cr_ud.evaluation_tables import write_tables
from cr_ud.published import WANG_SETS
from cr_ud.ranked_sheet import write_ranked
from cr_ud.scoring import RGB, ScoreCollector, Variant
from detectors.detector import Detector, load_detector
from images.choice import Reading
from images.composition import composition_warning
from images.decoding import Crop
from images.sets import ImageSet, find_image_set, find_loose_images
from passes.one_pass import PassReport, PassState, discard_state, run_pass
from passes.processes import Ranks
from utils.errors import UserError
from utils.files import is_plain_name, write_provenance

# test sets of Wang et al. that are arranged in class folders; no set is scaled, all are cropped at the centre
_WANG_WITH_CLASSES = frozenset({"progan", "stylegan", "cyclegan", "stylegan2"})


@dataclass(frozen=True)
class NamedDetector:
    """A detector and what it is called in tables."""

    name: str
    detector: Detector


def find_detectors(args: Namespace, device: torch.device) -> list[NamedDetector]:
    """The detectors of `--detectors NAME=ARCH:FILE ...`, or the one of `--arch`, `--weights` and `--blur_jpg`.

    Raises:
        UserError: a detector is not described so, two share a name, or a checkpoint cannot be used.
    """
    if not args.detectors:
        detector = load_detector(args.arch, args.weights, device, blur_jpg=args.blur_jpg)
        return [NamedDetector(f"{detector.arch}_{args.blur_jpg}" if args.weights is None else detector.arch, detector)]
    found: dict[str, NamedDetector] = {}
    for text in args.detectors:
        name, equals, rest = text.partition("=")
        arch, colon, file = rest.partition(":")
        if not (equals and colon and file and is_plain_name(name)):
            raise UserError(f"--detectors {text}: write NAME=ARCH:FILE, as in cr=resnet50:weights/cr.pth")
        if name in found:
            raise UserError(f"--detectors: two are called {name}: give each a name of its own")
        found[name] = NamedDetector(name, load_detector(arch, file, device))
    return list(found.values())


def find_test_sets(args: Namespace) -> tuple[dict[str, ImageSet], list[str]]:
    """The sets of `--dataset_dir` and `--gan_name`, and warnings about file formats.

    Raises:
        UserError: a set is missing, or has no real or no fake images.
    """
    if args.dataset_dir is None or not args.gan_name:
        raise UserError("no test images: give --dataset_dir and --gan_name, or --images")
    found: dict[str, ImageSet] = {}
    warnings: list[str] = []
    for name in args.gan_name:
        with_classes = name in _WANG_WITH_CLASSES if args.rules == "wang" and name in WANG_SETS else args.have_classes
        found[name] = find_image_set(
            args.dataset_dir,
            name,
            have_classes=with_classes,
            num_real=args.num_real,
            num_fake=args.num_fake,
            num_instances=args.num_instances,
        )
        warning = composition_warning(found[name])
        if warning:
            warnings.append(f"{name}: {warning}")
    if args.calibrate_on is not None and args.calibrate_on not in found:
        raise UserError(f"--calibrate_on {args.calibrate_on}: add this set to --gan_name, or name one of those there")
    return found, warnings


def evaluate_sets(
    args: Namespace,
    detectors: Sequence[NamedDetector],
    sets: dict[str, ImageSet],
    variants: Sequence[Variant],
    folder: Path,
    ranks: Ranks,
) -> list[Summary]:
    """Score all sets, write tables and figures into `folder`; what is returned is empty except at rank 0.

    Raises:
        UserError: an image cannot be decoded, or a file cannot be written.
        Interrupted: after Ctrl-C or SIGTERM, with the state saved.
    """
    tables: list[SetScores] = []
    states: list[PassState] = []
    skipped: dict[str, list[list[str]]] = {}
    for name, image_set in sets.items():
        state = PassState(folder / f".{name}.npz", _conditions(args, detectors, variants, image_set), args.resume)
        scores, report = _score(args, detectors, image_set, variants, state, ranks, name)
        states.append(state)
        skipped[name] = [[entry.item.name, entry.reason] for entry in report.skipped]
        tables += _tables(detectors, variants, image_set, scores, name)
    summaries: list[Summary] = []
    if ranks.is_first:
        summaries = summarise(
            sorted(tables, key=lambda table: [entry.name for entry in detectors].index(table.detector)),
            calibrate_on=args.calibrate_on,
            draws=args.bootstrap,
            seed=args.seed,
            strict=args.compat == "published",
        )
        write_scores(folder / "scores.csv", tables)
        write_summaries(folder / "summary.csv", summaries)
        facts = {
            "seed": args.seed,
            "device": detectors[0].detector.device,
            "inputs": {
                **{f"weights of {entry.name}": entry.detector.sha256 for entry in detectors},
                **{f"images of {name}": image_set.digest() for name, image_set in sets.items()},
            },
            "crop": chosen_crop(args),
            "counts": {name: image_set.counts() for name, image_set in sets.items()},
            "precision": args.precision,
            "rules": args.rules,
            "skipped": skipped,
        }
        thresholds = {} if args.calibrate_on is None else calibrated_thresholds(tables, args.calibrate_on)
        for table in ("scores.csv", "summary.csv"):
            write_provenance(folder / table, thresholds=thresholds, **facts)
        draw(folder, wang=args.rules == "wang")
    for state in states:
        discard_state(state, ranks)
    return summaries


def draw(folder: Path, *, wang: bool) -> list[Path]:
    """Write the tables for reading and the figures from `scores.csv` and `summary.csv` in `folder`.

    Raises:
        UserError: one of these is missing or damaged.
    """
    tables, summaries = read_scores(folder / "scores.csv"), read_summaries(folder / "summary.csv")
    return [
        *write_tables(folder, summaries, wang=wang),
        *draw_precision_recall(tables, folder / "precision_recall"),
        *draw_accuracies(summaries, folder / "accuracy"),
        *draw_robustness(summaries, folder / "robustness"),
    ]


def rank_loose_images(args: Namespace, detectors: Sequence[NamedDetector], folder: Path, ranks: Ranks) -> list[Path]:
    """Score the images of `--images` and write them from most fake to most real, for each detector.

    Raises:
        UserError: there are no images, or one cannot be decoded.
    """
    image_set = find_loose_images(args.images)
    variants = [Variant(RGB)]
    state = PassState(folder / ".images.npz", _conditions(args, detectors, variants, image_set), args.resume)
    scores, report = _score(args, detectors, image_set, variants, state, ranks, "images")
    written: list[Path] = []
    if ranks.is_first:
        for place, entry in enumerate(detectors):
            paths = write_ranked(folder, entry.name, image_set.items, scores[:, place, 0], args.sheet_images)
            write_provenance(
                paths[0],
                seed=args.seed,
                device=entry.detector.device,
                inputs={"weights": entry.detector.sha256, "images": image_set.digest()},
                crop=chosen_crop(args),
                precision=args.precision,
                skipped=[[skip.item.name, skip.reason] for skip in report.skipped],
            )
            written += paths
    discard_state(state, ranks)
    return written


def chosen_crop(args: Namespace) -> Crop:
    """The crop for `--crop`, or that of `--rules`."""
    return Crop("center", 224) if args.rules == "wang" else Crop(args.crop)


def _conditions(
    args: Namespace, detectors: Sequence[NamedDetector], variants: Sequence[Variant], image_set: ImageSet
) -> dict[str, str]:
    return {
        **{f"weights of {entry.name}": entry.detector.sha256 for entry in detectors},
        "images": image_set.digest(),
        "variants": ", ".join(f"{variant.name} {variant.encoder}" for variant in variants),
        "crop": str(chosen_crop(args)),
        "precision": args.precision,
        "seed": str(args.seed),
        "bsize": str(args.bsize),
    }


def _score(
    args: Namespace,
    detectors: Sequence[NamedDetector],
    image_set: ImageSet,
    variants: Sequence[Variant],
    state: PassState,
    ranks: Ranks,
    name: str,
) -> tuple[np.ndarray, PassReport]:
    networks = [entry.detector for entry in detectors]
    device, crop = networks[0].device, chosen_crop(args)
    # blur and JPEG act on whole images; where nothing but single pixels change, cropping first gives the same
    late = crop.kind != "none" and any(variant.changes_neighbourhood for variant in variants)
    collector = ScoreCollector(
        networks, variants, len(image_set), crop=crop if late else None, seed=args.seed, precision=args.precision
    )
    report = run_pass(
        image_set,
        [collector],
        preprocess=networks[0].preprocess,
        device=device,
        batch_size=args.bsize,
        crop=Crop("none") if late else crop,
        seed=args.seed,
        num_workers=Reading(num_workers=args.num_workers).workers_for(device.type),
        skip_bad_images=args.skip_bad_images,
        state=state,
        ranks=ranks,
        description=f"evaluating {name}",
    )
    return collector.scores, report


def _tables(
    detectors: Sequence[NamedDetector],
    variants: Sequence[Variant],
    image_set: ImageSet,
    scores: np.ndarray,
    name: str,
) -> list[SetScores]:
    seen = np.flatnonzero(~np.isnan(scores).any(axis=(1, 2))).tolist()
    items = [image_set.items[place] for place in seen]
    return [
        SetScores(
            entry.name,
            entry.detector.arch,
            name,
            classes=tuple(item.class_name for item in items),
            paths=tuple(item.name for item in items),
            labels=np.array([item.label for item in items], dtype=int),
            scores={variant.name: scores[seen, row, column] for column, variant in enumerate(variants)},
        )
        for row, entry in enumerate(detectors)
    ]
