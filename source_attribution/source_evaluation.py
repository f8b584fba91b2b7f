"""Testing networks of attribution: confusion matrices, numbers of each source, and generators that nobody modelled."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy.special import expit

from evaluation.summary import ScoreSummary, summarise_columns
from images.sets import FAKE, LABEL_NAMES, ImageSet
from passes.options import RunOptions
from source_attribution.attributor import ask, load_attributor
from source_attribution.confusion import ClassRow, Confusion
from source_attribution.options import Attributing
from source_attribution.source_scores import REAL, THRESHOLD, Scores
from source_attribution.source_sets import find_sources, named_sources
from utils.cli import say, say_files
from utils.files import safe_join, safe_name, write_csv, write_npy
from utils.provenance import is_current, write_record
from utils.settings import plain
from utils.tables import percent, percent_range, write_rows

_COMPUTATION = 3
UNKNOWN = "unknown"
KNOWN_OR_NOT, NONE_OR_NOT = "known", "none"
"""Questions of an open set: which fakes are of a source that has a secondary; which images are of none."""
_TITLES = {"DET": "generated or real", "ATT": "made by which source"}


def evaluate_attribution(options: Attributing, run: RunOptions) -> list[Path]:
    """Test a network as the options say; the tables written.

    Raises:
        UserError: Network or images cannot be used.
    """
    model = options.first
    attributor = load_attributor(model, options.model_type, named_sources(options), options)
    images = find_sources(options.second, options, options.test_size or options.train_size)
    folder = safe_join(run.output_dir, "test_results", safe_name(model.absolute().parent.name), safe_name(model.stem))
    origin = attributor.origin(_COMPUTATION, model, images)
    if is_current([folder / "scores.csv"], origin) and not run.overwrite:
        say(f"{folder}: done before, nothing to compute")
        return [folder / "scores.csv"]
    tables = _write(folder, *ask(attributor, images, options))
    write_record(tables, origin, settings=plain(options, run), seed=run.seed, device=attributor.device)
    return tables


def _write(folder: Path, images: ImageSet, scores: Scores) -> list[Path]:
    header = ("path", "label", "source", *(f"p_{name}" for name in scores.columns))
    rows = [
        (item.name, item.label, item.generator, *row) for item, row in zip(images.items, scores.values, strict=True)
    ]
    tables = [folder / "scores.csv"]
    write_csv(tables[0], header, rows)
    pictures: list[Path] = []
    for kind, confusion in confusions(images, scores).items():
        tables += [folder / f"{kind}_confusion.csv", folder / f"{kind}_classes.csv"]
        counted = ((name, *row.tolist()) for name, row in zip(confusion.truths, confusion.counts, strict=True))
        write_csv(tables[-2], ("truth", *confusion.answers), counted)
        write_rows(tables[-1], confusion.rows(), ClassRow)
        odd = ""
        if kind == "ATT" and scores.fake is not None:
            odd = f"attributed although called real: {scores.contradictions()} of {int((~scores.fake).sum())}"
        pictures += confusion.draw(folder / kind, f"{folder.name}: {_TITLES[kind]}", odd)
        for row in confusion.rows():
            say(f"{kind} {row.name}: {percent(row.recall)} {percent_range(row.recall_low, row.recall_high)} % right")
    if opened := open_set(images, scores):
        tables.append(folder / "open_set.csv")
        write_rows(tables[-1], opened)
        for entry in opened:
            bounds = f"[{entry.roc_auc_low:.3f}, {entry.roc_auc_high:.3f}]"
            say(f"open set, {entry.variant}: AUROC {entry.roc_auc:.3f} {bounds}, ECE {entry.ece:.3f}")
    said = scores.said() if scores.sources else scores.values[:, 0] >= THRESHOLD
    arrays = {"predictions": said[None].astype(np.int8), "ground_truth": truth(scores.sources, images)[None]}
    for name, values in {**arrays, "raw_predictions": scores.values.T}.items():
        write_npy(folder / f"{name}.npy", values)
    say_files([*tables, *pictures])
    return tables


def truth(sources: Sequence[str], images: ImageSet) -> np.ndarray:
    """0 real, 1.. the sources, one more for fakes of any other generator, (n,) int8."""
    numbers = {name: number for number, name in enumerate(sources, start=1)}
    other = len(sources) + 1
    return np.array([numbers.get(i.generator, other) if i.label == FAKE else 0 for i in images.items], np.int8)


def confusions(images: ImageSet, scores: Scores) -> Mapping[str, Confusion]:
    """`DET`: generated or real, if the primary was asked; `ATT`: by which source, if any was.

    Of one secondary: its source, or others. Of several, none is right for reals and for fakes of other generators.
    """
    by_question = {}
    if scores.fake is not None:
        names = (REAL, LABEL_NAMES[FAKE])
        by_question["DET"] = Confusion.of(truth([], images), scores.fake.astype(int), names, names)
    sources = scores.sources
    numbers = truth(sources, images)
    if len(sources) == 1:
        names = ("others", sources[0])
        by_question["ATT"] = Confusion.of((numbers == 1).astype(int), scores.said(), names, names)
    elif sources:
        truths = [REAL, *sources, *([UNKNOWN] if (numbers > len(sources)).any() else [])]
        by_question["ATT"] = Confusion.of(numbers, scores.said(), truths, scores.answers)
    return by_question


def open_set(images: ImageSet, scores: Scores) -> list[ScoreSummary]:
    """Whether the largest probability of any source tells its fakes from those of generators nobody modelled.

    Thresholds stand at 0.5 first. A row for each question, with the share of right answers and the calibration.
    """
    numbers, unknown = truth(scores.sources, images), len(scores.sources) + 1
    known = (numbers > 0) & (numbers < unknown)
    if scores.columns[0] == REAL or not known.any() or not (numbers == unknown).any():
        return []
    fakes, largest = numbers > 0, expit(scores.margins.max(1))
    questions = {KNOWN_OR_NOT: (known[fakes], largest[fakes]), NONE_OR_NOT: (~known, 1.0 - largest)}
    return [
        summarise_columns(labels.astype(int), {question: values}, {question: [question]})[0]
        for question, (labels, values) in questions.items()
    ]
