"""Testing networks of attribution: confusion matrices, numbers of each source, and generators that nobody modelled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from detectors.devices import use_device
from evaluation.summary import summarise_columns
from images.sets import FAKE, ImageSet
from passes.options import RunOptions
from source_attribution.attributor import FAKE_COLUMN, Attributor, answers_for, load_attributor
from source_attribution.confusion import ClassRow, Confusion
from source_attribution.options import Attributing
from source_attribution.source_sets import find_sources, read_source_list, source_of
from source_attribution.stored import digest
from utils.cli import say
from utils.errors import UserError
from utils.files import atomic_path, safe_join, safe_name, sha256_file, write_csv
from utils.provenance import Origin, is_current, write_record
from utils.settings import plain
from utils.tables import percent, percent_range, write_rows

_COMPUTATION = 1
_THRESHOLD = 0.5
NONE, UNKNOWN, REAL = "none", "unknown", "real"


@dataclass(frozen=True)
class OpenSetRow:
    """How well the largest probability of any source answers a question; `_low` and `_high` bound 95 % intervals.

    Attributes:
        question: `known`: which fakes are of a source that has a secondary; `none`: which images are of none.
        images, positives: How many, and for how many the answer is yes.
        roc_auc: Area under the ROC curve; 0.5 by chance.
        ece: Expected calibration error of the largest probability (`none`: of 1 less it).
        acc: Accuracy at 0.5.
    """

    question: str
    images: int
    positives: int
    roc_auc: float
    roc_auc_low: float
    roc_auc_high: float
    ece: float
    ece_low: float
    ece_high: float
    acc: float
    acc_low: float
    acc_high: float


def evaluate_attribution(options: Attributing, run: RunOptions) -> list[Path]:
    """Test a network as the options say; the tables written.

    Raises:
        UserError: Network or images cannot be used.
    """
    model = options.first
    attributor = load_attributor(
        model,
        options.model_type,
        _asked(options),
        dct=options.dct,
        normstats=options.normstats,
        device=use_device(options.device, "fp32"),
    )
    images = find_sources(
        options.second,
        options.folders,
        size=options.test_size or options.train_size,
        real_factor=options.real_size_factor,
        arch_level=options.arch_level,
    )
    folder = safe_join(run.output_dir, "test_results", safe_name(model.absolute().parent.name), safe_name(model.stem))
    facts = {"columns": attributor.columns, "parts": [digest(part.network) for part in attributor.parts]}
    origin = Origin(_COMPUTATION, {"weights": sha256_file(model), "images": images.digest()}, facts)
    if is_current([folder / "scores.csv"], origin) and not run.overwrite:
        say(f"{folder}: done before, nothing to compute")
        return [folder / "scores.csv"]
    paths, scores = [], []
    for loaded, answers in answers_for(
        attributor,
        images,
        bsize=options.batch_size,
        num_workers=options.num_workers,
        skip_bad_images=options.skip_bad_images,
        dct=options.dct,
    ):
        paths += list(loaded.positions)
        scores.append(np.concatenate([answer.probabilities.cpu().numpy() for answer in answers], axis=1))
    if not paths:
        raise UserError(f"no image of {options.second} can be used: see the lines above")
    tables = _written(folder, attributor, images.subset(paths), np.concatenate(scores))
    write_record(tables, origin, settings=plain(options, run), seed=run.seed, device=attributor.device)
    return tables


def _asked(options: Attributing) -> list[str]:
    """The sources that the options name, as secondaries are called."""
    if options.source is not None:
        return [source_of(options.source, arch_level=True) if options.arch_level else options.source]
    return [] if options.source_list is None else read_source_list(options.source_list)


def _written(folder: Path, attributor: Attributor, images: ImageSet, scores: np.ndarray) -> list[Path]:
    matrices = confusions(attributor.columns, images, scores)
    known = attributor.sources
    labels = np.array([item.label for item in images.items])
    header = ("path", "label", "source", *(f"p_{name}" for name in attributor.columns))
    rows = [(item.name, item.label, item.generator, *row) for item, row in zip(images.items, scores, strict=True)]
    tables = [folder / "scores.csv"]
    write_csv(tables[0], header, rows)
    pictures: list[Path] = []
    for kind, confusion in matrices.items():
        tables += [folder / f"{kind}_confusion.csv", folder / f"{kind}_classes.csv"]
        counted = ((name, *row.tolist()) for name, row in zip(confusion.truths, confusion.counts, strict=True))
        write_csv(tables[-2], ("truth", *confusion.answers), counted)
        write_rows(tables[-1], confusion.rows(), ClassRow)
        note = _invalid(attributor.columns, scores) if kind == "ATT" else ""
        pictures += confusion.draw(folder / kind, f"{folder.name}: {_TITLES[kind]}", note)
        for row in confusion.rows():
            say(f"{kind} {row.name}: {percent(row.recall)} {percent_range(row.recall_low, row.recall_high)} % right")
    opened = open_set(images, scores, attributor.columns)
    if opened:
        tables.append(folder / "open_set.csv")
        write_rows(tables[-1], opened, OpenSetRow)
        for entry in opened:
            bounds = f"[{entry.roc_auc_low:.3f}, {entry.roc_auc_high:.3f}]"
            say(f"open set, {entry.question}: AUROC {entry.roc_auc:.3f} {bounds}, ECE {entry.ece:.3f}")
    said = [_decided(attributor.columns, scores)[0]] if known else [(scores[:, 0] >= _THRESHOLD).astype(int)]
    truth = [_truth(known, images)] if known else [labels]
    arrays = {"predictions": np.stack(said).astype(np.int8), "raw_predictions": scores.T}
    for name, values in {**arrays, "ground_truth": np.stack(truth).astype(np.int8)}.items():
        with atomic_path(folder / f"{name}.npy") as temporary:
            np.save(temporary, values)
    for path in [*tables, *pictures]:
        say(str(path))
    return tables


_TITLES = {"DET": "generated or real", "ATT": "made by which source"}


def confusions(columns: Sequence[str], images: ImageSet, scores: np.ndarray) -> Mapping[str, Confusion]:
    """`DET`: generated or real, if the primary was asked; `ATT`: by which source, if any was.

    Of one secondary: its source, or others. Of several: the most probable of those at 0.5 or above, else none, as is
    right for reals and fakes of other generators. Of a network of several classes the most probable one.
    """
    found = {}
    labels = np.array([item.label for item in images.items])
    if columns[0] == FAKE_COLUMN:
        said = (scores[:, 0] >= _THRESHOLD).astype(int)
        found["DET"] = Confusion.of(labels, said, (REAL, FAKE_COLUMN), (REAL, FAKE_COLUMN))
    sources = [name for name in columns if name not in (FAKE_COLUMN, REAL)]
    if len(sources) == 1:
        truth = np.array([item.generator == sources[0] and item.label == FAKE for item in images.items]).astype(int)
        names = ("others", sources[0])
        found["ATT"] = Confusion.of(truth, (scores[:, -1] >= _THRESHOLD).astype(int), names, names)
    elif sources:
        said, nobody = _decided(columns, scores)
        truth = _truth(sources, images)
        truths = [REAL, *sources, *([UNKNOWN] if (truth > len(sources)).any() else [])]
        found["ATT"] = Confusion.of(truth, said, truths, (nobody, *sources))
    return found


def _truth(sources: Sequence[str], images: ImageSet) -> np.ndarray:
    """0 real, 1.. the sources, one more for fakes of any other generator."""
    numbers = {name: number for number, name in enumerate(sources, start=1)}
    return np.array(
        [numbers.get(item.generator, len(sources) + 1) if item.label == FAKE else 0 for item in images.items]
    )


def _decided(columns: Sequence[str], scores: np.ndarray) -> tuple[np.ndarray, str]:
    """0 for none or real, 1.. for the sources; and how 0 is called."""
    if columns[0] == REAL:
        return scores.argmax(1), REAL
    first = int(columns[0] == FAKE_COLUMN)
    best = scores[:, first:].argmax(1)
    return np.where(scores[:, first:].max(1) >= _THRESHOLD, best + 1, 0), NONE


def _invalid(columns: Sequence[str], scores: np.ndarray) -> str:
    """How many images are attributed although the primary calls them real."""
    if columns[0] != FAKE_COLUMN:
        return ""
    real = scores[:, 0] < _THRESHOLD
    odd = int((real & (scores[:, 1:].max(1) >= _THRESHOLD)).sum())
    return f"attributed although called real: {odd} of {int(real.sum())}"


def open_set(images: ImageSet, scores: np.ndarray, columns: Sequence[str]) -> list[OpenSetRow]:
    """Whether the largest probability of any source tells its fakes from those of generators nobody modelled."""
    if columns[0] == REAL or len(columns) < 2:
        return []
    first = int(columns[0] == FAKE_COLUMN)
    truth, largest = _truth(columns[first:], images), scores[:, first:].max(1)
    known, unknown = (truth > 0) & (truth <= len(columns) - first), truth > len(columns) - first
    if not known.any() or not unknown.any():
        return []
    fakes = known | unknown
    questions = {"known": (known[fakes], largest[fakes]), "none": (~known, 1.0 - largest)}
    rows = []
    for question, (labels, values) in questions.items():
        (found,) = summarise_columns(labels.astype(int), {question: values}, {question: [question]})[:1]
        names = [f"{name}{end}" for name in ("roc_auc", "ece", "acc") for end in ("", "_low", "_high")]
        numbers = [getattr(found, name) for name in names]
        rows.append(OpenSetRow(question, len(labels), int(labels.sum()), *numbers))
    return rows
