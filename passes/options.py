"""How a run behaves, whatever it computes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from utils.settings import count, flag


def part_of(text: str) -> str:
    """K/N with 1 <= K <= N.

    >>> part_of("2/8")
    '2/8'
    """
    number, _, parts = text.partition("/")
    if not (number.isdecimal() and parts.isdecimal() and 1 <= int(number) <= int(parts)):
        raise ValueError(f"{text!r} is no part K/N, such as 2/8")
    return text


@dataclass(frozen=True)
class RunOptions:
    """Run."""

    output_dir: Path = flag(Path("output"), "folder of all results", metavar="DIR")
    seed: int = flag(0, "of all random choices", parse=count, metavar="N")
    compat: Literal["none", "published"] = flag(
        "none", "published: compute as the published code does, faults included"
    )
    resume: bool = flag(False, "go on from the state an interrupted run has saved", recorded=False)
    part: str | None = flag(
        None,
        "see only this part of the images, as one of N jobs that never meet, and leave the state for "
        "src/merge_states.py (docs/scaling.md)",
        parse=part_of,
        metavar="K/N",
        recorded=False,
    )
    overwrite: bool = flag(
        False, "compute again what is done, and replace results of another checkpoint or origin", recorded=False
    )
    wandb: bool = flag(False, "log to Weights & Biases, if it is installed", recorded=False)
    tensorboard: bool = flag(False, "log to TensorBoard, if it is installed", recorded=False)

    @property
    def published(self) -> bool:
        """Whether to compute as the published code does."""
        return self.compat == "published"
