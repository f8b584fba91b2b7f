"""Results of one generator: written from scores, and read again for tables and figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sensitivity_assessment.outputs import GeneratorResult, ResultFiles
from sensitivity_assessment.scores import Scores, read_scores
from sensitivity_assessment.summary import choose_threshold, read_summary, summarise, write_summary
from utils.errors import UserError
from utils.files import is_made_from, read_provenance, write_provenance

_NOTE = "threshold_note"


def write_result(
    files: ResultFiles,
    scores: Scores,
    *,
    chosen_on: str,
    draws: Mapping[str, Sequence[str]] | None = None,
    calibration: tuple[str, Scores] | None = None,
    published: bool = False,
    seed: int = 0,
    record: Mapping[str, Any] | None = None,
) -> None:
    """Write scores, summary, and provenance of both.

    Args:
        files: Where to.
        scores: p(fake) of every image under every condition.
        chosen_on: The condition that the calibrated threshold is chosen on.
        draws: By kind the columns that are its random draws.
        calibration: Name and scores of a set kept apart for the threshold.
        published: Put the threshold, and call an image fake above it only, as the published code does.
        seed: Of the bootstrap.
        record: Further provenance, for `write_provenance`.

    Raises:
        UserError: One class is empty.
    """
    try:
        threshold = choose_threshold(files.gan_name, scores, chosen_on, calibration, published=published)
        rows = summarise(scores, draws or {}, threshold, published=published, seed=seed)
    except UserError as error:
        raise UserError(f"{files.gan_name}: {error}") from error
    facts = {**(record or {}), "seed": seed, "threshold": threshold.value, _NOTE: threshold.note}
    scores.write(files.scores)
    write_provenance(files.scores, **facts)
    write_summary(files.summary, rows)
    write_provenance(files.summary, **facts)


def read_result(files: ResultFiles, *, made_by: str) -> GeneratorResult:
    """What tables and figures show of a generator.

    Raises:
        UserError: A file is missing or damaged; the message names the script that makes it.
    """
    rows = {row.variant: row for row in read_summary(files.summary, made_by=made_by)}
    scores = read_scores(files.scores, made_by=made_by)
    note = str(read_provenance(files.summary).get(_NOTE, ""))
    return GeneratorResult(files.gan_name, rows, note, len(scores.paths), int(scores.labels.sum()))


def is_current(files: ResultFiles, inputs: Mapping[str, str], facts: Mapping[str, object]) -> bool:
    """Whether the files are there and come from the same weights and images under the same settings."""
    return files.scores.is_file() and is_made_from(files.summary, inputs, facts)
