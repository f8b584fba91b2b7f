"""Atomic writes, digests, safe paths, and a provenance record beside every table."""

import csv
import errno
import hashlib
import io
import json
import math
import os
import uuid
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from utils.errors import UserError

CODE_ROOT = Path(__file__).resolve().parent.parent
"""Folder of the packages."""
PROJECT_ROOT = CODE_ROOT if (CODE_ROOT / "pyproject.toml").is_file() else Path.cwd()
"""Folder of `weights` and `fmap_relevances`: a working copy of the project; the current folder for an installed one."""
_FORBIDDEN_IN_NAMES = frozenset('/\\:*?"<>|')
_LONGEST_NAME = 200
_MENDS = {
    errno.ENOSPC: "the disk is full: free some space or choose another place",
    errno.EDQUOT: "the disk quota is used up: free some space or choose another place",
    errno.EACCES: "permission denied: change its permissions or choose another place",
    errno.EPERM: "permission denied: change its permissions or choose another place",
    errno.EROFS: "the file system is read-only: choose another place",
    errno.ENOTDIR: "a part of this path is a file, not a folder: remove it or choose another place",
    errno.EEXIST: "a part of this path is a file, not a folder: remove it or choose another place",
    errno.EISDIR: "this is a folder, not a file: remove it or choose another place",
    errno.ENAMETOOLONG: "the name is too long: choose a shorter one",
}


def as_user_error(error: OSError, path: str | Path | None = None) -> UserError | None:
    """The `UserError` for an operating-system error that a user can mend, None for any other.

    `path` is the file to name; without it the one the error carries.
    """
    mend = _MENDS.get(error.errno or 0)
    if mend is None:
        return None
    name = path if path is not None else error.filename
    return UserError(f"{name}: {mend}" if name is not None else mend)


@contextmanager
def atomic_path(path: str | Path, *, durable: bool = True) -> Iterator[Path]:
    """Yield a path to write to, which becomes `path` when the body ends without an exception.

    The temporary file lies in the same folder and has the same suffix; the folder is made if need be. On any
    exception, Ctrl-C included, it is removed and `path` stays as it was. For files that belong together
    nest the contexts: none is replaced before all are written.

    Without `durable` nobody waits for the disk, a hundred times as fast: after a crash of the machine (not of the
    program) the file may be gone or empty, so something durable must tell.

    Raises:
        UserError: full disk, no permission, a folder where a file should be or the reverse.
    """
    path = Path(path)
    temporary = path.parent / f".{uuid.uuid4().hex}.tmp{path.suffix}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        yield temporary
        if durable:
            _flush_to_disk(temporary)
        temporary.replace(path)
        if durable:
            _flush_to_disk(path.parent)
    except OSError as error:
        # The body may also have failed to read some other file, about which nothing is known here.
        ours = {str(folder) for folder in (temporary, path, *path.parents)}
        concerns_us = error.filename is None or str(error.filename) in ours
        mendable = as_user_error(error, path) if concerns_us else None
        if mendable is None:
            raise
        raise mendable from error
    finally:
        _remove(temporary)


def _flush_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems cannot sync a folder.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:
        # The folder is gone or not one: there is nothing to remove, and the first error is the one to show.
        return


def write_text(path: str | Path, text: str) -> None:
    """Write `text` as UTF-8, atomically; undecodable bytes of file names come out as they were."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape", newline="")


def write_bytes(path: str | Path, content: bytes, *, durable: bool = True) -> None:
    """Write bytes, atomically; `durable` as in `atomic_path`."""
    with atomic_path(path, durable=durable) as temporary:
        temporary.write_bytes(content)


def write_json(path: str | Path, obj: object) -> None:
    """Write `obj` as indented JSON with sorted keys; NumPy values and paths are converted, NaN is null."""
    write_text(path, json.dumps(plain(obj), indent=2, sort_keys=True) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; empty if there is nothing readable."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def write_csv(
    path: str | Path, header: Sequence[str], rows: Iterable[Sequence[object]], *, durable: bool = True
) -> None:
    """Write a table with '\\n' line ends; floats in full precision, so that reading gives the same values."""
    with (
        atomic_path(path, durable=durable) as temporary,
        temporary.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows([_scalar(value) for value in row] for row in rows)


def write_npz(path: str | Path, **arrays: Any) -> None:
    """Write arrays as an uncompressed .npz whose bytes depend on the arrays only (no time stamps)."""
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name, array in arrays.items():
            member = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            member.create_system = 3
            member.external_attr = 0o644 << 16
            with archive.open(member, "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.asanyarray(array), allow_pickle=False)


def write_npy(path: str | Path, array: np.ndarray, *, durable: bool = True) -> None:
    """Write one array, atomically; `durable` as in `atomic_path`."""
    with atomic_path(path, durable=durable) as temporary:
        np.save(temporary, array, allow_pickle=False)


def read_npy(path: Path) -> np.ndarray:
    """Read one array; never unpickles.

    Raises:
        UserError: missing, damaged, or holding objects.
    """
    try:
        array: np.ndarray = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise UserError(f"no {path}: check the path") from None
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} is damaged or no plain array: make it anew") from error
    return array


def read_npz(path: str | Path) -> dict[str, np.ndarray]:
    """Read all arrays of an .npz; never unpickles.

    Raises:
        UserError: missing, damaged, not an .npz, or holding objects.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no such file: {path}: check the path")
    try:
        with zipfile.ZipFile(path) as archive:
            contents = {
                name.removesuffix(".npy"): np.lib.format.read_array(io.BytesIO(archive.read(name)), allow_pickle=False)
                for name in archive.namelist()
            }
    except PermissionError as error:
        raise UserError(f"cannot read {path}: permission denied: change its permissions") from error
    except (zipfile.BadZipFile, ValueError, OSError, EOFError, NotImplementedError, RuntimeError) as error:
        raise UserError(f"{path} is damaged or not an .npz of plain arrays: remove it and make it anew") from error
    return contents


def sha256_file(path: str | Path) -> str:
    """SHA-256 of a file's bytes, as lower-case hexadecimal.

    Raises:
        UserError: missing or unreadable.
    """
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}): check the path and its permissions") from error


def sha256_text(lines: Iterable[str]) -> str:
    """SHA-256 over lines of text, each ended by a newline, as lower-case hexadecimal."""
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line.encode("utf-8", errors="surrogateescape") + b"\n")
    return digest.hexdigest()


def is_plain_name(text: str) -> bool:
    """Whether `text` may be the name of one file or folder on any system, in a table and on a command line.

    That is: printable, none of / \\ : * ? " < > |, no dot, dash or space in front, no space at the end, 1 to 200 bytes.
    """
    return text == _harmless(text) and 0 < len(os.fsencode(text)) <= _LONGEST_NAME


def safe_name(text: str) -> str:
    """A plain name (`is_plain_name`) for text from outside; with a digest against clashes if it had to be changed."""
    if is_plain_name(text):
        return text
    shortened = _harmless(text).encode("utf-8", errors="ignore")[: _LONGEST_NAME - 9].decode("utf-8", errors="ignore")
    return f"{shortened}-{sha256_text([text])[:8]}".lstrip("-")


def _harmless(text: str) -> str:
    name = "".join(c if c.isprintable() and c not in _FORBIDDEN_IN_NAMES else "_" for c in text)
    return name.strip().lstrip(".- ")


def safe_join(root: str | Path, *parts: str) -> Path:
    """`root` joined with `parts`, refused if that leaves `root` (absolute, '..', or through a link).

    Raises:
        UserError: the path would lie outside `root`.
    """
    root = Path(root)
    inside = all("\0" not in part and not Path(part).is_absolute() and ".." not in Path(part).parts for part in parts)
    joined = root.joinpath(*parts) if inside else root
    if not inside or not joined.resolve().is_relative_to(root.resolve()):
        raise UserError(f"{'/'.join(parts)!r} leads out of {root}: use a name that stays below it")
    return joined


def _scalar(value: object) -> object:
    # csv writes the shortest text of the value's own type, which for float32 is another number in float64.
    return value.item() if isinstance(value, np.generic) else value


def plain(value: object) -> object:
    """As JSON has it: paths and other things as text, NumPy values as numbers, NaN as None."""
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if isinstance(value, set | frozenset):
        return sorted((plain(entry) for entry in value), key=str)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    return str(value)
