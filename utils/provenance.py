"""What a result was made from: a record beside every table, and the one rule for "nothing to do".

A record carries the digest of the table it describes, so that a table that was edited, half-written or made by another
run is never taken for the one recorded. It holds no time of day: the same run gives the same bytes.
"""

import json
import platform
import subprocess
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.files import CODE_ROOT, plain, read_json, sha256_file, sha256_text, write_json

_PACKAGES = ("torch", "torchvision", "efficientnet_pytorch", "numpy", "scipy", "pillow", "matplotlib")


@dataclass(frozen=True)
class Origin:
    """All that a result depends on.

    Attributes:
        computation: Version of the code that computes it, raised whenever its numbers change.
        inputs: SHA-256 by name of what went in.
        facts: Settings that the result depends on, by name.
    """

    computation: int
    inputs: Mapping[str, str]
    facts: Mapping[str, object] = field(default_factory=dict)

    def digest(self) -> str:
        """SHA-256 of everything."""
        return sha256_text([json.dumps(self.plain(), sort_keys=True)])

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        value = plain(asdict(self))
        assert isinstance(value, dict)
        return value


def record_path(path: Path) -> Path:
    """Where the record of a table lies."""
    return path.with_name(path.name + ".json")


def write_record(
    paths: Iterable[Path],
    origin: Origin,
    *,
    settings: Mapping[str, object] | None = None,
    seed: int | None = None,
    device: object = None,
    **notes: object,
) -> None:
    """Write `<path>.json` beside every path: origin, digest of the file, command, versions, settings, notes.

    Args:
        paths: Files that belong together, written before.
        origin: What they were made from.
        settings: All flags in force, in the form that `--config` takes.
        seed, device: Of the run.
        notes: Anything else worth keeping (counts, images left out).
    """
    for path in paths:
        write_json(
            record_path(path),
            {
                **notes,
                **origin.plain(),
                "sha256": sha256_file(path),
                "command": _command(),
                "versions": _versions(),
                "settings": dict(settings or {}),
                "seed": seed,
                "device": None if device is None else str(device),
            },
        )


def read_record(path: Path) -> dict[str, Any]:
    """The record beside a table; empty if there is nothing readable."""
    return read_json(record_path(path))


def describes(record: Mapping[str, Any], path: Path) -> bool:
    """Whether a record is of the file that is there, to the byte."""
    return path.is_file() and record.get("sha256") == sha256_file(path)


def is_current(paths: Sequence[Path], origin: Origin) -> bool:
    """Whether all files are there, unchanged since they were recorded, and made from exactly this origin."""
    wanted = origin.plain()
    for path in paths:
        record = read_record(path)
        if any(record.get(key) != value for key, value in wanted.items()) or not describes(record, path):
            return False
    return bool(paths)


def in_common(
    record: Mapping[str, Any], inputs: Collection[str] = ("images",), facts: Collection[str] = ("gan_name", "bsize")
) -> tuple[Any, ...]:
    """What results must share to stand in one table: all of an origin or record but these inputs and facts."""
    parts = (record.get("inputs", {}), inputs), (record.get("facts", {}), facts)
    rest = ({key: value for key, value in part.items() if key not in left_out} for part, left_out in parts)
    return (record.get("computation"), *rest)


def remove_with_record(path: Path) -> None:
    """Remove a table of an earlier run, and its record first."""
    record_path(path).unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def refuse_other_weights(paths: Iterable[Path], weights: str) -> None:
    """Refuse to overwrite results of another checkpoint.

    Raises:
        UserError: A record beside one of the files names other weights.
    """
    for path in paths:
        before = read_record(path).get("inputs", {}).get("weights", weights)
        if path.is_file() and before != weights:
            raise UserError(
                f"{path} was made with another checkpoint (SHA-256 {str(before)[:12]}, now {weights[:12]}): "
                "give this one a --blur_jpg TAG or an --output_dir of its own, or --overwrite"
            )


def _command() -> list[str]:
    program = Path(sys.argv[0]).resolve() if sys.argv and sys.argv[0] else Path("python")
    inside = program.is_relative_to(CODE_ROOT)
    name = program.relative_to(CODE_ROOT).as_posix() if inside else program.name
    return [name, *_without_resume(sys.argv[1:])]


def _without_resume(arguments: Sequence[str]) -> list[str]:
    """The arguments but for --resume: a resumed run leaves the same files as one that was never interrupted."""
    kept: list[str] = []
    after_flag = False
    for argument in arguments:
        is_value = after_flag and argument.lower() in ("true", "false", "1", "0", "yes", "no")
        after_flag = argument == "--resume"
        if not (after_flag or is_value or argument.startswith("--resume=")):
            kept.append(argument)
    return kept


@cache
def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in ("tff", *_PACKAGES):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    commit = _commit()
    return versions | ({"commit": commit} if commit else {})


def _commit() -> str | None:
    if not (CODE_ROOT / ".git").exists():
        return None
    command = ["git", "-C", str(CODE_ROOT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip() or None
