"""Bring the states that separate jobs have left together, so that one run merges them and writes the results."""

from dataclasses import dataclass
from pathlib import Path

from passes.options import RunOptions
from utils.cli import run_script, say
from utils.settings import flag, read_settings

EXAMPLE = "python src/merge_states.py job1/ job2/ --output_dir output"


@dataclass(frozen=True)
class MergeOptions:
    """States."""

    folders: tuple[Path, ...] = flag(
        (), "output folder of a job that ran with --part K/N", metavar="DIR", positional=True, recorded=False
    )


def main() -> None:
    options, run = read_settings(__doc__ or "", EXAMPLE, MergeOptions, RunOptions)

    from passes.separate_jobs import gather_states

    for entry in gather_states(options.folders, run.output_dir):
        say(f"{entry.job}: {entry.parts} parts, {entry.done} of {entry.batches} batches")
    say(f"now the command of the jobs without --part, with --resume --output_dir {run.output_dir}")


if __name__ == "__main__":
    run_script(main)
