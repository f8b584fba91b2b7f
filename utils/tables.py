"""Tables: CSVs whose rows are a dataclass, and Markdown for reading."""

import csv
import dataclasses
import math
import types
import typing
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from utils.errors import UserError
from utils.files import write_csv

Row = TypeVar("Row")
ABSENT = "\N{EN DASH}"


def write_rows(path: Path, rows: Sequence[Any], row: type | None = None, *, durable: bool = True) -> None:
    """Write dataclass instances, a column for each field; None and NaN as empty cells, floats in full precision.

    Args:
        path: CSV file.
        rows: Instances of one dataclass.
        row: The dataclass, needed where there may be no rows.
        durable: As in `utils.files.atomic_path`.
    """
    names = [field.name for field in dataclasses.fields(row or type(rows[0]))]
    write_csv(path, names, ([cell(getattr(entry, name)) for name in names] for entry in rows), durable=durable)


def read_rows(path: Path, row: type[Row], *, made_by: str) -> list[Row]:
    """Read what `write_rows` wrote; `made_by` is the command that makes the table, for messages.

    Raises:
        UserError: Missing, unreadable, or without a column; names the line of a cell that does not fit.
    """
    header, lines = read_table(path, made_by=made_by)
    hints = typing.get_type_hints(row)
    names = [field.name for field in dataclasses.fields(typing.cast(Any, row))]
    missing = [name for name in names if name not in header]
    if missing:
        raise UserError(f"{path} lacks the column {missing[0]}: make it anew with {made_by}")
    places = [header.index(name) for name in names]
    rows = []
    for number, cells in enumerate(lines, start=2):
        try:
            rows.append(
                row(**{name: _value(cells[column], hints[name]) for name, column in zip(names, places, strict=True)})
            )
        except ValueError as error:
            raise UserError(f"{path}, line {number}: {error}: make it anew with {made_by}") from error
    return rows


def read_table(path: Path, *, made_by: str) -> tuple[list[str], list[list[str]]]:
    """Header and lines of a CSV, all of one length.

    Raises:
        UserError: Missing, unreadable, empty or ragged.
    """
    try:
        with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
            header, *lines = csv.reader(file, strict=True)
    except FileNotFoundError:
        raise UserError(f"no {path}: make it with {made_by}") from None
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{path} is damaged or not a table ({error}): make it anew with {made_by}") from error
    ragged = next((number for number, line in enumerate(lines, start=2) if len(line) != len(header)), None)
    if ragged is not None:
        raise UserError(f"{path}, line {ragged}: not as many cells as columns: make it anew with {made_by}")
    return header, lines


def markdown(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; numbers are to be given as text."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def percent(fraction: float | None, digits: int = 1) -> str:
    """A fraction as a number of percent without the sign; a dash for None and NaN."""
    return ABSENT if fraction is None or math.isnan(fraction) else f"{100 * fraction:.{digits}f}"


def percent_range(low: float | None, high: float | None) -> str:
    """An interval in percent, `[1.0, 2.0]`; empty for None and NaN."""
    missing = low is None or high is None or math.isnan(low) or math.isnan(high)
    return "" if missing else f"[{percent(low)}, {percent(high)}]"


def cell(value: object) -> object:
    """A value as a table has it: None and NaN are empty."""
    return "" if value is None or (isinstance(value, float) and math.isnan(value)) else value


def _value(text: str, annotation: Any) -> Any:
    inner = annotation
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):
        if text == "":
            return None
        inner = next(part for part in typing.get_args(annotation) if part is not type(None))
    if inner is float:
        return float(text) if text else math.nan
    if inner is bool:
        return text == "True"
    return inner(text)
