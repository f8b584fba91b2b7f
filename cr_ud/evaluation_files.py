"""Scores and metrics of an evaluation as files, written and read back."""

import csv
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np

from cr_ud.evaluation import SetScores, Summary
from utils.errors import UserError
from utils.files import write_csv

SUMMARY_COLUMNS = tuple(field.name for field in fields(Summary))
_SCORE_COLUMNS = ("detector", "arch", "set", "class", "path", "label")
_TEXT_COLUMNS = frozenset({"detector", "arch", "test_set", "variant", "calibrated_on"})


def write_scores(path: Path, tables: Sequence[SetScores]) -> None:
    """Write the scores of all images, one row for each detector and image."""
    names = list(dict.fromkeys(variant for table in tables for variant in table.scores))
    rows = (
        [table.detector, table.arch, table.test_set, table.classes[place], table.paths[place], int(table.labels[place])]
        + [float(table.scores[name][place]) for name in names]
        for table in tables
        for place in range(len(table.labels))
    )
    write_csv(path, (*_SCORE_COLUMNS, *names), rows)


def read_scores(path: Path) -> list[SetScores]:
    """Read what `write_scores` has written.

    Raises:
        UserError: the file is missing or no such table.
    """
    groups: dict[tuple[str, str, str], list[list[str]]] = {}
    header, rows = _read(path)
    if header[: len(_SCORE_COLUMNS)] != list(_SCORE_COLUMNS):
        raise UserError(f"{path} is not a table of scores: expected the columns {','.join(_SCORE_COLUMNS)}")
    names = header[len(_SCORE_COLUMNS) :]
    for row in rows:
        groups.setdefault((row[0], row[1], row[2]), []).append(row)
    try:
        return [
            SetScores(
                *key,
                classes=tuple(row[3] for row in group),
                paths=tuple(row[4] for row in group),
                labels=np.array([int(row[5]) for row in group]),
                scores={
                    name: np.array([float(row[len(_SCORE_COLUMNS) + place]) for row in group])
                    for place, name in enumerate(names)
                },
            )
            for key, group in groups.items()
        ]
    except (ValueError, IndexError) as error:
        raise UserError(f"{path} has a damaged row: make it anew") from error


def write_summaries(path: Path, summaries: Sequence[Summary]) -> None:
    """Write metrics as CSV, fractions in full precision."""
    rows = (["" if value is None else value for value in asdict(summary).values()] for summary in summaries)
    write_csv(path, SUMMARY_COLUMNS, rows)


def read_summaries(path: Path) -> list[Summary]:
    """Read what `write_summaries` has written.

    Raises:
        UserError: the file is missing or no such table.
    """
    header, rows = _read(path)
    if header != list(SUMMARY_COLUMNS):
        raise UserError(f"{path} is not a summary of an evaluation: make it anew")
    try:
        return [Summary(**{name: _value(name, text) for name, text in zip(header, row, strict=True)}) for row in rows]
    except ValueError as error:
        raise UserError(f"{path} has a damaged row: make it anew") from error


def _value(name: str, text: str) -> Any:
    if text == "":
        return None
    if name in _TEXT_COLUMNS:
        return text
    return int(text) if name in ("real", "fake") else float(text)


def _read(path: Path) -> tuple[list[str], list[list[str]]]:
    try:
        with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
            header, *rows = csv.reader(file)
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}): run the evaluation first") from error
    except ValueError as error:
        raise UserError(f"{path} is empty: run the evaluation again") from error
    return header, rows
