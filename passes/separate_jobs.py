"""Jobs that never meet: the states of the parts of a run, brought to the place where one run merges them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from passes.one_pass import SavedPart, state_files
from utils.errors import UserError
from utils.files import write_bytes

_NAME = re.compile(r"(?P<job>.+)\.rank(?P<rank>\d+)of(?P<parts>\d+)\.npz")


@dataclass(frozen=True)
class Gathered:
    """The states of all parts of one run.

    Attributes:
        job: what was run, on which images.
        parts: number of parts.
        batches: of all of them together.
        done: batches that the parts have seen.
    """

    job: str
    parts: int
    batches: int
    done: int


@dataclass(frozen=True)
class _State:
    path: Path
    rank: int
    parts: int
    conditions: dict[str, str]
    done: frozenset[int]


def gather_states(folders: Sequence[Path], output_dir: Path) -> list[Gathered]:
    """Copy the states of separate jobs into one output folder, where the same command with `--resume` merges them.

    Args:
        folders: Output folders of the jobs; one folder that all of them share will do.
        output_dir: Where the merged results are to be.

    Raises:
        UserError: There are no states, a part is missing or there twice, or parts are of different runs.
    """
    runs: dict[str, list[_State]] = {}
    for path in sorted({path.resolve() for folder in folders for path in (folder / ".states").glob("*.npz")}):
        match = _NAME.fullmatch(path.name)
        if match:
            saved = SavedPart.read(path)
            state = _State(path, int(match["rank"]), int(match["parts"]), saved.conditions, frozenset(saved.done))
            runs.setdefault(match["job"], []).append(state)
    if not runs:
        named = ", ".join(map(str, folders))
        raise UserError(f"no states of parts below {named}: give the --output_dir of jobs that ran with --part K/N")
    gathered = [_check(job, states) for job, states in sorted(runs.items())]
    for job, states in sorted(runs.items()):
        for path in state_files(output_dir / ".states" / f"{job}.npz"):
            if path.resolve() not in {state.path for state in states}:
                raise UserError(f"{path} is of another run: remove it, or give another --output_dir")
        for state in states:
            target = output_dir / ".states" / state.path.name
            if target.resolve() != state.path:
                write_bytes(target, state.path.read_bytes())
    return gathered


def _check(job: str, states: Sequence[_State]) -> Gathered:
    first = states[0]
    ranks = [state.rank for state in states]
    for state in states:
        if state.parts != first.parts:
            raise UserError(
                f"{state.path} is one of {state.parts} parts, {first.path} one of {first.parts}: keep one kind"
            )
        if ranks.count(state.rank) > 1:
            raise UserError(f"{job}: part {state.rank + 1}/{state.parts} is there twice: name one of the folders only")
        different = [key for key, value in state.conditions.items() if first.conditions.get(key) != value]
        if different or len(state.conditions) != len(first.conditions):
            raise UserError(
                f"{state.path} and {first.path} are of different runs ({', '.join(different) or 'other settings'}): "
                "merge the parts of one run only"
            )
    missing = [str(rank + 1) for rank in range(first.parts) if rank not in ranks]
    if missing:
        raise UserError(
            f"{job}: of {first.parts} parts {', '.join(missing)} missing: run them with --part K/{first.parts}"
        )
    done = frozenset[int]().union(*(state.done for state in states))
    return Gathered(job, first.parts, int(first.conditions["batches"]), len(done))
