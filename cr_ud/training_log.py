"""The log of a training run: one CSV, from which the curves are drawn."""

import csv
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from utils.errors import UserError
from utils.files import as_user_error, write_csv

TRAIN, VALIDATION, EPOCH = "train", "validation", "epoch"


@dataclass(frozen=True)
class LogRow:
    """A row of the log; numbers that its kind does not have are None.

    Attributes:
        step: optimiser steps done.
        epoch: epochs finished.
        kind: `train`: mean loss of the images since the last such row; `validation`: between epochs;
            `epoch`: validation at the end of an epoch, which the learning rate follows, or of the run.
        images: number of images the row is about.
        loss: mean binary cross-entropy.
        lr: learning rate of the last step; in the row of the validation after which it drops, already the lower one.
        ap, acc, acc_real, acc_fake: of the validation set, 0..1, decided at 0.5.
        images_per_s: training speed.
    """

    step: int
    epoch: int
    kind: str
    images: int
    loss: float
    lr: float
    ap: float | None = None
    acc: float | None = None
    acc_real: float | None = None
    acc_fake: float | None = None
    images_per_s: float | None = None

    def numbers(self) -> dict[str, float]:
        """What there is, by names for a tracker: `train/loss`, `epoch/ap`, ..., and the step as it is."""
        values = {name: value for name, value in asdict(self).items() if isinstance(value, int | float)}
        return {"step": values.pop("step"), **{f"{self.kind}/{name}": value for name, value in values.items()}}


COLUMNS = tuple(field.name for field in fields(LogRow))


class TrainingLog:
    """Appends rows to a CSV; a resumed run drops the rows after its checkpoint first.

    Args:
        path: of the CSV.
        keep: number of rows to keep of a file that is there.
    """

    def __init__(self, path: Path, keep: int = 0) -> None:
        self.path = path
        self.rows = read_log(path)[:keep] if keep and path.exists() else []
        write_csv(path, COLUMNS, (_cells(row) for row in self.rows))

    def add(self, row: LogRow) -> None:
        """Append a row and hand it to the operating system.

        Raises:
            UserError: the disk is full or the file cannot be written to.
        """
        self.rows.append(row)
        try:
            with self.path.open("a", encoding="utf-8", newline="") as file:
                csv.writer(file, lineterminator="\n").writerow(_cells(row))
        except OSError as error:
            mendable = as_user_error(error, self.path)
            if mendable is None:
                raise
            raise mendable from error


def read_log(path: Path) -> list[LogRow]:
    """The rows of a log.

    Raises:
        UserError: it is missing or no log of a training run.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            if reader.fieldnames is None or tuple(reader.fieldnames) != COLUMNS:
                raise UserError(f"{path} is not a training log: expected the columns {','.join(COLUMNS)}")
            return [_row(cells) for cells in reader]
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}): check the path") from error
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} has a damaged row: remove the row, or the file") from error


def _cells(row: LogRow) -> list[object]:
    return ["" if value is None else value for value in asdict(row).values()]


def _row(cells: Mapping[str, str]) -> LogRow:
    numbers = {name: float(cells[name]) if cells[name] else None for name in COLUMNS[6:]}
    step, epoch, images = int(cells["step"]), int(cells["epoch"]), int(cells["images"])
    return LogRow(step, epoch, cells["kind"], images, float(cells["loss"]), float(cells["lr"]), **numbers)
