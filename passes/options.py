"""How a run behaves, whatever it computes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from utils.settings import count, flag


@dataclass(frozen=True)
class RunOptions:
    """Run."""

    output_dir: Path = flag(Path("output"), "folder of all results", metavar="DIR")
    seed: int = flag(0, "of all random choices", parse=count, metavar="N")
    compat: Literal["none", "published"] = flag(
        "none", "published: compute as the published code does, faults included"
    )
    resume: bool = flag(False, "go on from the state an interrupted run has saved", recorded=False)
    overwrite: bool = flag(
        False, "compute again what is done, and replace results of another checkpoint or origin", recorded=False
    )
    wandb: bool = flag(False, "log to Weights & Biases, if it is installed", recorded=False)
    tensorboard: bool = flag(False, "log to TensorBoard, if it is installed", recorded=False)

    @property
    def published(self) -> bool:
        """Whether to compute as the published code does."""
        return self.compat == "published"
