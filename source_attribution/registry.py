"""The registry: a primary `<name>.safetensors`, and beside it a folder of its name with a file for each source.

Files are made one by one, by anybody who has the primary; none is touched when another is added.
"""

from collections.abc import Sequence
from pathlib import Path

from source_attribution.stored import PRIMARY, SECONDARY, Stored, check_belongs, digest, read_stored, write_stored
from utils.errors import UserError
from utils.files import safe_join

SUFFIX = ".safetensors"


def secondary_path(primary: Path, source: str) -> Path:
    """Where the secondary module of a source lies.

    Raises:
        UserError: The name leads elsewhere.
    """
    return safe_join(primary.with_suffix(""), f"{source}{SUFFIX}")


def primary_path(secondary: Path) -> Path:
    """Where the primary of a secondary module lies."""
    folder = secondary.absolute().parent
    return folder.with_name(f"{folder.name}{SUFFIX}")


def read_primary(path: Path) -> Stored:
    """The primary of a registry.

    Raises:
        UserError: It is missing, damaged or no primary.
    """
    primary = read_stored(path)
    if primary.description.kind != PRIMARY:
        raise UserError(f"{path} is a {primary.description.kind} network: give a primary")
    return primary


def read_secondaries(path: Path, primary: Stored, sources: Sequence[str] = ()) -> list[Stored]:
    """Secondary modules in the registry of a primary, in the order named, or all of them by name.

    Raises:
        UserError: One is missing or of another primary, or there are none at all.
    """
    folder = path.with_suffix("")
    there = sorted(file.stem for file in folder.glob(f"*{SUFFIX}"))
    if not sources and not there:
        raise UserError(f"no secondary modules in {folder}: train some with src/attribute_source.py att train")
    if missing := [name for name in sources if name not in there]:
        raise UserError(f"no secondary module of {missing[0]} in {folder} (there: {', '.join(there) or 'none'})")
    secondaries = []
    for name in sources or there:
        secondary = read_stored(secondary_path(path, name))
        if secondary.description.kind != SECONDARY:
            raise UserError(f"{secondary_path(path, name)} is no secondary module: remove it")
        check_belongs(secondary, primary, secondary_path(path, name))
        secondaries.append(secondary.with_description(sources=(name,)))
    return secondaries


def add(path: Path, stored: Stored, *, overwrite: bool = False) -> Path:
    """Write a network into a registry, unless it is there already; where it is.

    Raises:
        UserError: There is another one of this name.
    """
    if overwrite or not path.exists():
        write_stored(path, stored)
    elif digest(read_stored(path).network) != digest(stored.network):
        raise UserError(f"{path} is there already, and another network: give --overwrite, or another name or folder")
    return path


def add_secondary(path: Path, primary: Stored, secondary: Stored, *, overwrite: bool = False) -> Path:
    """Write the secondary module of a source into the registry of a primary, as `add`.

    Raises:
        UserError: It belongs to another primary.
    """
    target = secondary_path(path, secondary.description.sources[0])
    check_belongs(secondary, primary, target)
    return add(target, secondary, overwrite=overwrite)
