"""A classifier that was trained, published or ours, by its `opt.yml`; what a script looks at with it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from detectors.choice import DetectorChoice
from detectors.detector import Detector, load_checkpoint
from detectors.networks import Architecture, get_architecture
from detectors.patch_networks import FAKE_CLASS, HALF, PREFIX
from images.choice import ImageChoice
from images.finding import described
from images.sets import ImageSet, find_image_pair
from passes.analysis import Analysis, Subject
from passes.options import RunOptions
from passes.running import run_experiment
from patch_forensics.alterations import PatchReading, PublishedCrop
from patch_forensics.options import PATCHES, WHOLE, PatchTraining, TestedRun, default_sizes
from utils.errors import UserError
from utils.files import safe_join, safe_name
from utils.settings import plain, read_mapping

Options = TypeVar("Options", bound=TestedRun)

_BATCH = 32
_LARGEST = 65_535  # side of an image, pixels
_NUMBERS = ("fake_class_id", "loadSize", "fineSize", "batch_size")


@dataclass(frozen=True)
class Trained:
    """What matters of a training.

    Attributes:
        name: Of the run, fit for a folder.
        network: Published name.
        is_patch: Whether it classifies patches.
        fake_class: Which of two outputs is fake.
        load_size: Pixels of the shorter side; 0: not scaled.
        crop_size: Side of the square that is cut out.
        batch_size: Images in a batch.
        weights: The checkpoint.
    """

    name: str
    network: str
    is_patch: bool
    fake_class: int
    load_size: int
    crop_size: int
    batch_size: int
    weights: Path

    @property
    def architecture(self) -> Architecture:
        """How input and output of the network are to be read.

        Raises:
            UserError: There is no such network.
        """
        if self.is_patch or self.network == "xception":
            return get_architecture(PREFIX + self.network)
        # published whole-image ResNets are torchvision's, with another input and two outputs
        return replace(get_architecture(self.network), transform=HALF, fake_class=FAKE_CLASS)


def read_trained(options: TestedRun) -> Trained:
    """The training that `--train_config` names, flags before what it says.

    Raises:
        UserError: `opt.yml` is missing, unreadable or incomplete.
    """
    path = options.train_config
    saved = read_mapping(path, "--train_config", "give the opt.yml of a training")
    named = {}
    if options.name:
        # as it is given: braces do not name options
        named = {"prefix": None, "suffix": None, "name": options.name.replace("{", "{{").replace("}", "}}")}
    published = path.parent / f"{options.which_epoch}_net_D.pth"
    plain_file = path.parent / f"{options.which_epoch}.safetensors"
    weights = plain_file if plain_file.is_file() and not published.is_file() else published
    return trained_as({**saved, **plain(options), **named}, path, weights)


def trained_as(given: Mapping[str, Any], path: Path, weights: Path) -> Trained:
    """What the options of a training say, which stand in `path`.

    Raises:
        UserError: They do not fit or are not complete.
    """
    network = given.get("which_model_netD")
    if network is None:
        raise UserError(f"{path} does not say which_model_netD: add a line which_model_netD: ..., or give the flag")
    load, crop = default_sizes(str(network))
    known: dict[str, Any] = {"model": WHOLE, "fake_class_id": FAKE_CLASS, "batch_size": _BATCH}
    known |= {"loadSize": load, "fineSize": crop}
    known |= {name: value for name, value in given.items() if value is not None}
    if known["model"] not in (PATCHES, WHOLE):
        raise UserError(f"{path}: model is {known['model']!r}: use {PATCHES} or {WHOLE}")
    try:
        fake_class, load, crop, batch_size = (int(known[name]) for name in _NUMBERS)
        fits = fake_class in (0, 1) and 0 <= load <= _LARGEST and 0 < crop <= _LARGEST and batch_size > 0
    except (TypeError, ValueError, OverflowError):
        fits = False
    if not fits:
        numbers = ", ".join(f"{name} {known[name]}" for name in _NUMBERS)
        raise UserError(f"{path}: {numbers}: classes are 0 or 1, sizes whole numbers up to {_LARGEST}")
    is_patch = known["model"] == PATCHES
    crop = load if is_patch else crop
    return Trained(run_name(known), str(network), is_patch, fake_class, load, crop, batch_size, weights)


def run_name(saved: Mapping[str, Any]) -> str:
    """The name of a run: `[prefix-]name[_suffix]`, each of which may name other options in braces."""
    parts = {key: str(saved.get(key) or "") for key in ("prefix", "name", "suffix")}
    parts["name"] = parts["name"] or "{model}_{which_model_netD}_size{fineSize}"
    try:
        prefix, name, suffix = (text.format(**saved) for text in parts.values())
    except (KeyError, IndexError, ValueError, AttributeError) as error:
        raise UserError(f"the name {parts['name']!r} of the run cannot be made out ({error}): give --name") from error
    # a saved name may hold the other two already
    name = name if name.startswith(f"{prefix}-") or not prefix else f"{prefix}-{name}"
    return safe_name(name if name.endswith(f"_{suffix}") or not suffix else f"{name}_{suffix}")


def images_of(options: TestedRun | PatchTraining, name: str, part: str = "") -> ImageSet:
    """The images that a command line names; of a training a part of them.

    Raises:
        UserError: There are none.
    """
    return find_image_pair(
        options.real_im_path / part,
        options.fake_im_path / part,
        name,
        num_real=options.max_dataset_size,
        num_fake=options.max_dataset_size,
        flags="--real_im_path and --fake_im_path" + (", with train/ and val/ in each," if part else ""),
    )


class OfTrained(Analysis[Options]):
    """An analysis of the images that a command line names, with the classifier that it names."""

    def __init__(self, subject: Subject, options: Options) -> None:
        super().__init__(subject, options)
        self.trained = read_trained(options)

    @classmethod
    def choose_images(cls, choice: ImageChoice, options: Options) -> dict[str, ImageSet]:
        return {options.dataset_name: described(images_of(options, options.dataset_name))}

    @classmethod
    def load_detector(cls, choice: DetectorChoice, options: Options) -> Detector:
        trained = read_trained(options)
        return load_checkpoint(trained.architecture, trained.weights, choice.device, fake_class=trained.fake_class)

    @property
    def folder(self) -> Path:
        """Where the published code writes the results of a data set."""
        options = self.options
        parts = (self.trained.name, options.partition, f"epoch_{options.which_epoch}", self.gan_name)
        return safe_join(self.subject.run.output_dir, *parts)

    def inputs(self) -> dict[str, str]:
        return {}

    def facts(self) -> dict[str, object]:
        return {"fake_class": self.trained.fake_class}


def run_tested(analysis: type[OfTrained[Any]], options: TestedRun, run: RunOptions) -> None:
    """Run an analysis of the classifier and the images that a command line names.

    Raises:
        UserError: Anything a user can mend.
        Interrupted: After Ctrl-C or SIGTERM, with the state saved.
    """
    trained = read_trained(options)
    transform = PublishedCrop(
        "center" if trained.load_size else "none",
        trained.crop_size,
        trained.load_size,
        options.test_flip,
        options.test_compression,
        options.test_blur,
        options.test_gamma,
    )
    reading = PatchReading(
        trained.batch_size,
        num_workers=options.nThreads,
        skip_bad_images=options.skip_bad_images,
        transform=transform,
    )
    tag = f"{trained.name}-{options.partition}-{options.which_epoch}"
    detector = DetectorChoice(trained.architecture.name, tag, trained.weights, device=options.chosen_device)
    run = replace(run, output_dir=options.results_dir or run.output_dir, overwrite=run.overwrite or options.force_redo)
    run_experiment(analysis, detector, ImageChoice(), reading, options, run)
