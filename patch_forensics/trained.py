"""A classifier that was trained, published or ours, by its `opt.yml`; what a script looks at with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import yaml

from detectors.detector import Detector, load_checkpoint
from detectors.networks import Architecture, get_architecture
from detectors.patch_networks import FAKE_CLASS, HALF, PREFIX
from images.finding import described
from images.sets import find_image_pair
from passes.analysis import Analysis, Subject
from passes.options import RunOptions
from passes.processes import process_group
from passes.running import run_analyses, tracked, warned
from patch_forensics.alterations import PatchReading, PublishedCrop
from patch_forensics.options import PATCHES, WHOLE, TestedRun, chosen_device, default_sizes
from utils.errors import UserError
from utils.files import safe_join, safe_name
from utils.settings import plain

Options = TypeVar("Options", bound=TestedRun)
Kind = TypeVar("Kind", bound=Analysis[Any])

_BATCH = 32


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

    def detector(self, device: str = "auto") -> Detector:
        """The classifier with its weights.

        Raises:
            UserError: The weights are missing, or of another network.
        """
        return load_checkpoint(self.architecture, self.weights, device, fake_class=self.fake_class)


def read_trained(options: TestedRun) -> Trained:
    """The training that `--train_config` names, flags before what it says.

    Raises:
        UserError: `opt.yml` is missing, unreadable or incomplete.
    """
    path, typed = options.train_config, plain(options)
    saved = _read(path)

    def value(name: str, default: Any) -> Any:
        for found in (typed.get(name), saved.get(name)):
            if found is not None:
                return found
        if default is None:
            raise UserError(f"{path} does not say {name}: add a line {name}: ..., or give --{name}")
        return default

    network, model = str(value("which_model_netD", None)), str(value("model", WHOLE))
    if model not in (PATCHES, WHOLE):
        raise UserError(f"{path}: model is {model!r}: use {PATCHES} or {WHOLE}")
    known = default_sizes(network)
    try:
        numbers = {
            name: int(value(name, default))
            for name, default in (
                ("fake_class_id", FAKE_CLASS),
                ("loadSize", known[0]),
                ("fineSize", known[1]),
                ("batch_size", _BATCH),
            )
        }
    except ValueError as error:
        raise UserError(f"{path}: {error}: sizes and classes are whole numbers") from error
    is_patch = model == PATCHES
    return Trained(
        options.name or run_name({**saved, "model": model, "which_model_netD": network, **numbers}),
        network,
        is_patch,
        numbers["fake_class_id"],
        numbers["loadSize"],
        numbers["loadSize"] if is_patch else numbers["fineSize"],
        numbers["batch_size"],
        _weights(path.parent, options.which_epoch),
    )


def _weights(folder: Path, tag: str) -> Path:
    """The file of an epoch: by its published name, or as .safetensors."""
    published, plain_file = folder / f"{tag}_net_D.pth", folder / f"{tag}.safetensors"
    return plain_file if plain_file.is_file() and not published.is_file() else published


def run_name(saved: dict[str, Any]) -> str:
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


def _read(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"cannot read --train_config {path} ({error.strerror}): give the opt.yml of a training"
        ) from error
    except (ValueError, yaml.YAMLError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--train_config {path} is not YAML ({reason}): give the opt.yml of a training") from error
    if not isinstance(content, dict):
        raise UserError(f"--train_config {path} holds no options: give the opt.yml of a training")
    return content


def tested_subject(options: TestedRun, run: RunOptions) -> tuple[Trained, Subject]:
    """The classifier and the images that a command line names.

    Raises:
        UserError: Anything of them is missing or does not fit.
    """
    trained = read_trained(options)
    detector = trained.detector(chosen_device(options.device, options.gpu_ids))
    transform = PublishedCrop(
        "center" if trained.load_size else "none",
        trained.crop_size,
        trained.load_size,
        options.test_flip,
        options.test_compression,
        options.test_blur,
        options.test_gamma,
    )
    images = find_image_pair(
        options.real_im_path,
        options.fake_im_path,
        options.dataset_name,
        num_real=options.max_dataset_size,
        num_fake=options.max_dataset_size,
        flags="--real_im_path and --fake_im_path",
    )
    run = replace(run, output_dir=options.results_dir or run.output_dir, overwrite=run.overwrite or options.force_redo)
    reading = PatchReading(trained.batch_size, num_workers=options.nThreads, transform=transform)
    reading = replace(reading, skip_bad_images=options.skip_bad_images)
    tag = f"{trained.name}-{options.partition}-{options.which_epoch}"
    settings = plain(options, run)
    return trained, Subject(detector, tag, options.dataset_name, described(images), reading, run, settings)


def result_folder(trained: Trained, subject: Subject, options: TestedRun) -> Path:
    """Folder of a data set's results, as the published code names it."""
    epoch = f"epoch_{options.which_epoch}"
    return safe_join(subject.run.output_dir, trained.name, options.partition, epoch, subject.gan_name)


def run_tested(analysis: Callable[[Subject, Options, Trained], Kind], options: Options, run: RunOptions) -> Kind:
    """Run an analysis of the classifier and the images that a command line names.

    Raises:
        UserError: Anything a user can mend.
        Interrupted: After Ctrl-C or SIGTERM, with the state saved.
    """
    with process_group() as ranks:
        trained, subject = tested_subject(options, run)
        wanted = analysis(subject, options, trained)
        warned({subject.gan_name: subject.images}, ranks)
        with tracked(subject.run, wanted.name, subject.settings, ranks) as tracker:
            run_analyses([wanted], ranks=ranks, tracker=tracker)
    return wanted
