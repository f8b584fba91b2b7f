"""The log of a training run: one CSV, from which the curves are drawn."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.files import as_user_error, write_csv
from utils.tables import read_table

TRAIN, VALIDATION, EPOCH = "train", "validation", "epoch"
_FIRST, _LAST = ("step", "epoch", "kind", "images", "loss", "lr"), "images_per_s"


@dataclass(frozen=True)
class LogRow:
    """A row of the log.

    Attributes:
        step: Optimiser steps done.
        epoch: Epochs finished.
        kind: `train`: mean loss of the images since the last such row; `validation`: between epochs;
            `epoch`: validation at the end of an epoch, which the learning rate follows, or of the run.
        images: Number of images the row is about.
        loss: Mean.
        lr: Learning rate of the last step; in the row of the validation after which it drops, already the lower one.
        metrics: Of the validation set, by name; a column each.
        images_per_s: Training speed.
    """

    step: int
    epoch: int
    kind: str
    images: int
    loss: float
    lr: float
    metrics: Mapping[str, float] = field(default_factory=dict)
    images_per_s: float | None = None

    def columns(self) -> dict[str, Any]:
        """What there is, by names of columns."""
        speed = {} if self.images_per_s is None else {_LAST: self.images_per_s}
        return {name: getattr(self, name) for name in _FIRST} | dict(self.metrics) | speed

    def numbers(self) -> dict[str, float]:
        """What there is, by names for a tracker: `train/loss`, `epoch/ap`, ..."""
        return {f"{self.kind}/{name}": v for name, v in self.columns().items() if name not in ("step", "kind")}


class TrainingLog:
    """Appends rows to a CSV; a resumed run drops the rows after its checkpoint first.

    Args:
        path: Of the CSV.
        metrics: Names of its columns of metrics.
        keep: Number of rows to keep of a file that is there.
    """

    def __init__(self, path: Path, metrics: Sequence[str], keep: int = 0) -> None:
        self.path, self._header = path, (*_FIRST, *metrics, _LAST)
        self.rows = read_log(path)[:keep] if keep and path.exists() else []
        write_csv(path, self._header, map(self._cells, self.rows))

    def add(self, row: LogRow) -> None:
        """Append a row and hand it to the operating system.

        Raises:
            UserError: The disk is full or the file cannot be written to.
        """
        self.rows.append(row)
        try:
            with self.path.open("a", encoding="utf-8", newline="") as file:
                csv.writer(file, lineterminator="\n").writerow(self._cells(row))
        except OSError as error:
            mendable = as_user_error(error, self.path)
            if mendable is None:
                raise
            raise mendable from error

    def _cells(self, row: LogRow) -> list[object]:
        columns = row.columns()
        return [columns.get(name, "") for name in self._header]


def read_log(path: Path) -> list[LogRow]:
    """The rows of a log.

    Raises:
        UserError: It is missing or no log of a training run.
    """
    header, lines = read_table(path, made_by="a training")
    if tuple(header[: len(_FIRST)]) != _FIRST or header[-1] != _LAST:
        raise UserError(f"{path} is not a training log: expected the columns {','.join(_FIRST)}")
    try:
        return [_row(line, header[len(_FIRST) : -1]) for line in lines]
    except ValueError as error:
        raise UserError(f"{path} has a damaged row: remove the row, or the file") from error


def _row(cells: Sequence[str], metrics: Sequence[str]) -> LogRow:
    step, epoch, kind, images, loss, lr, *values, speed = cells
    numbers = {name: float(value) for name, value in zip(metrics, values, strict=True) if value}
    images_per_s = float(speed) if speed else None
    return LogRow(int(step), int(epoch), kind, int(images), float(loss), float(lr), numbers, images_per_s)
