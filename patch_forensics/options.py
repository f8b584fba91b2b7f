"""Flags of the scripts, spelt as in the published commands. Imports nothing slow, so that `--help` is quick."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from passes.options import RunOptions
from utils.errors import UserError
from utils.settings import count, flag, plain_name, positive

Model = Literal["patch_discriminator", "basic_discriminator"]
AverageMode = Literal["vote", "before_softmax", "after_softmax"]

RESULTS = RunOptions(output_dir=Path("results"))
"""Where the published scripts write, too."""


@dataclass(frozen=True)
class TestedRun:
    """Classifier and images.

    What is absent here is taken from the `opt.yml` of the training, as the published scripts do it.
    """

    __test__ = False  # for pytest

    train_config: Path = flag(None, "opt.yml of a training, published or ours; the weights lie beside it")
    which_epoch: str = flag(
        "latest", "weights <which_epoch>_net_D.pth: bestval, latest or a number", parse=plain_name, metavar="TAG"
    )
    partition: str = flag("val", "part of the data: a name of an output folder", parse=plain_name, metavar="NAME")
    dataset_name: str = flag(None, "of the images, in output folders", parse=plain_name, metavar="NAME")
    real_im_path: Path = flag(None, "folder of real images", metavar="DIR")
    fake_im_path: Path = flag(None, "folder of fake images", metavar="DIR")
    max_dataset_size: int | None = flag(None, "first N images of each folder; 0 or absent: all", parse=count)
    results_dir: Path | None = flag(None, "published name of --output_dir", metavar="DIR")
    model: Model | None = flag(None, "whether patches or whole images are classified; absent: as trained")
    which_model_netD: str | None = flag(None, "network; absent: as trained", metavar="NAME")
    fake_class_id: int | None = flag(None, "which class is fake; absent: as trained", metavar="0|1")
    loadSize: int | None = flag(
        None,
        "pixels that the shorter side is scaled to; patch classifiers see the central square of this side; 0: images "
        "of any size as they are; absent: as trained",
        parse=count,
    )
    fineSize: int | None = flag(None, "side of the crop of whole-image classifiers; absent: as trained", parse=positive)
    batch_size: int | None = flag(None, "images in a batch; absent: as trained", parse=positive)
    nThreads: int | None = flag(
        None, "decoding processes; absent: as many as are useful", parse=count, recorded=False, metavar="N"
    )
    name: str | None = flag(None, "of the run, in output folders; absent: as trained", parse=plain_name)
    gpu_ids: str | None = flag(None, "-1: CPU; else the number of a GPU; absent: --device", metavar="N")
    device: str = flag("auto", "auto: a GPU if there is one", metavar="auto|cpu|cuda|cuda:N")
    force_redo: bool = flag(False, "published name of --overwrite", recorded=False)
    skip_bad_images: bool = flag(False, "leave out images that cannot be decoded, and report them")
    test_flip: bool = flag(False, "mirror all images")
    test_compression: int = flag(0, "JPEG quality that all images are compressed at; 0: none", parse=count)
    test_blur: int = flag(0, "side of the box that all images are blurred by, pixels; 0: none", parse=count)
    test_gamma: int = flag(0, "exponent of all images' brightness, percent; 0: none", parse=count)

    def __post_init__(self) -> None:
        for name in ("train_config", "dataset_name", "real_im_path", "fake_im_path"):
            if getattr(self, name) is None:
                raise UserError(f"--{name} is missing: give it")
        if self.fake_class_id not in (None, 0, 1):
            raise UserError(f"--fake_class_id {self.fake_class_id}: use 0 or 1")
        if self.test_compression > 100:
            raise UserError(f"--test_compression {self.test_compression}: use a JPEG quality from 1 to 100")


@dataclass(frozen=True)
class PatchTest(TestedRun):
    """Classifier and images."""

    average_mode: AverageMode | None = flag(None, "which average over the patches orders the heat maps")
    visualize: bool = flag(False, "heat maps of the hardest and easiest images of both kinds")
    topn: int = flag(100, "so many of each", parse=positive)
    bootstrap: int = flag(1000, "redraws of images for intervals", parse=positive)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.visualize and self.average_mode is None:
            raise UserError("--visualize needs --average_mode vote, before_softmax or after_softmax: give one")


@dataclass(frozen=True)
class TopPatchOptions(TestedRun):
    """Classifier and images."""

    topn: int = flag(100, "so many patches of each class", parse=positive)
    unique: bool = flag(False, "at most one patch of each image")
