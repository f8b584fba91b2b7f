"""Flags of everything that scores images under conditions."""

from __future__ import annotations

from dataclasses import dataclass

from utils.settings import flag, positive


@dataclass(frozen=True)
class AssessmentOptions:
    """Assessment."""

    calibrate_on: str | None = flag(
        None,
        "folder of real and fake images, or the name of a set of --dataset_dir, to choose the calibrated threshold on; "
        "absent: the images reported on, as published (0.5 for progan)",
        metavar="DIR",
    )
    bootstrap: int = flag(1000, "redraws for the intervals", parse=positive)
