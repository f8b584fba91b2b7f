"""Flags of everything that scores images under conditions."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from utils.settings import count, flag, positive

if TYPE_CHECKING:
    from passes.analysis import Subject


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


@dataclass(frozen=True)
class EvaluationOptions(AssessmentOptions):
    """Evaluation."""

    detectors: tuple[str, ...] = flag(
        (),
        "detectors to evaluate side by side; absent: the one of --arch, --weights and --blur_jpg",
        metavar="NAME=ARCH:FILE[,fake_class=0]",
    )
    rules: Literal["none", "wang"] = flag(
        "none",
        "wang: no scaling, central 224x224, class folders as in Wang et al. (CVPR 2020), their results added",
    )
    jpeg: tuple[int, ...] = flag((), "JPEG qualities to test", metavar="Q")
    jpeg_method: Literal["cv2", "pil"] = flag("pil", "JPEG encoder")
    blur: tuple[float, ...] = flag((), "blurs to test, in pixels", metavar="SIGMA")
    rescale: tuple[float, ...] = flag((), "scaling factors to test", metavar="F")
    images: tuple[Path, ...] = flag((), "judge these images instead", metavar="FILE_OR_FOLDER")
    sheet_images: int = flag(48, "images on the sheets; 0: all of them", parse=count)

    def tagged(self, subject: Subject) -> Subject:
        """The subject with the network in its tag, unless `--detectors` named it."""
        return subject if self.detectors else replace(subject, tag=f"{subject.detector.arch}_{subject.tag}")
