"""Training a classifier of patches or of whole images, on the trainer of `cr_ud`, into the published files."""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import yaml
from torch import nn
from torch.optim import Adam

from cr_ud.checkpointing import RunFiles
from cr_ud.initialisation import make_high_pass
from cr_ud.options import Monitoring, Optimisation
from cr_ud.schedule import CosineSchedule, Schedule
from cr_ud.trainer import Training
from cr_ud.training_data import EpochOrder, Loader
from cr_ud.training_run import announced, run_training
from cr_ud.training_sets import TrainingSets
from detectors.detector import Detector
from detectors.devices import use_device
from detectors.patch_networks import initialise, published_start
from images.choice import Reading
from passes.options import RunOptions
from passes.processes import process_group
from patch_forensics.alterations import PatchTransform
from patch_forensics.options import PatchTraining
from patch_forensics.patch_task import PatchTask, PatienceSchedule
from patch_forensics.trained import Trained, images_of, run_name, trained_as
from utils.cli import say
from utils.files import safe_join, write_text
from utils.settings import plain

_ORDER = 1  # stream of random numbers, as in `EpochOrder`


@dataclass(frozen=True)
class PublishedOrder(EpochOrder):
    """As many pairs of a real and a fake image as there are of the more numerous kind; the other starts over.

    Attributes:
        any_fake: Pair a real image with any fake; else with that of the same place in the order of names.
    """

    any_fake: bool = False

    @property
    def steps(self) -> int:
        return -(-2 * self._pairs // self.batch_size)

    @property
    def _pairs(self) -> int:
        return max(len(places) for places in self._places())

    def _places(self) -> list[np.ndarray]:
        labels = np.array([item.label for item in self.image_set.items])
        return [np.flatnonzero(labels == label) for label in (0, 1)]

    def positions(self, epoch: int) -> np.ndarray:
        generator = np.random.default_rng([self.seed, _ORDER, epoch])
        order = generator.permutation(self._pairs)
        reals, fakes = self._places()
        fake = generator.choice(fakes, len(order)) if self.any_fake else fakes[order % len(fakes)]
        return np.stack([reals[order % len(reals)], fake], axis=1).ravel()


class PatchRunFiles(RunFiles):
    """The files of a run by their published names: `bestval_net_D.pth`, `latest_net_D.pth`, `opt.yml`."""

    key = "state_dict"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.best, self.final = folder / "bestval_net_D.pth", folder / "latest_net_D.pth"
        self.options = folder / "opt.yml"


def train_patch_classifier(options: PatchTraining, run: RunOptions) -> PatchRunFiles:
    """Train a classifier into `<checkpoints_dir>/<name>/`, or go on.

    Raises:
        UserError: Anything a user can mend.
        Interrupted: After Ctrl-C or SIGTERM, with a checkpoint saved.
    """
    load, size = options.sizes
    saved = {**plain(options, run), "loadSize": load, "fineSize": size, "gpu_ids": "-1"}
    saved |= {"name": run_name(saved), "prefix": "", "suffix": ""}
    folder = safe_join(options.checkpoints_dir or run.output_dir, saved["name"])
    files = PatchRunFiles(folder)
    trained = trained_as(saved, files.options, files.best)
    device = use_device(options.chosen_device, "fp32")
    resume = run.resume or options.load_model
    with process_group(device.type) as ranks:
        sets = TrainingSets(images_of(options, "train", "train"), images_of(options, "val", "val"))
        inputs, notes = announced(sets, folder, ranks)
        task = PatchTask(options.fake_class_id)
        model = _initial(trained, run.seed, options).train()
        model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        order = PublishedOrder(
            sets.training,
            options.batch_size,
            seed=run.seed,
            ranks=ranks,
            pairs=options.pairs,
            any_fake=options.no_serial_batches,
        )
        schedule: Schedule = PatienceSchedule(options.lr, options.patience, options.lr_policy, options.max_epochs)
        if options.lr_policy == "cosine" and options.epochs is not None:
            schedule = CosineSchedule(highest_lr=options.lr, steps=options.epochs * order.steps)
        idle = {"max_epochs", "output_dir", "checkpoints_dir", "print_freq", "save_latest_freq", "device"}
        idle |= {"patience" if options.lr_policy == "cosine" else "epochs"}
        determining = {key: value for key, value in {**plain(options, run), **inputs}.items() if key not in idle}
        training = Training(
            Detector(trained.architecture, model, device),
            task,
            order,
            sets.validation,
            Loader(
                PatchTransform(options),
                task.target,
                Reading(num_workers=options.nThreads).workers_for(device.type),
                options.skip_bad_images,
            ),
            schedule,
            partial(Adam, lr=options.lr, betas=(options.beta1, 0.999)),
            Optimisation(options.batch_size, epochs=options.epochs),
            Monitoring(
                log_every=options.print_freq,
                checkpoint_every=options.save_latest_freq,
                export_fp16=options.export_fp16,
            ),
            {key: str(value) for key, value in determining.items()},
        )
        run = replace(run, resume=resume)
        if ranks.is_first and (not files.checkpoint.exists() or (run.overwrite and not resume)):
            write_text(files.options, yaml.safe_dump(saved, sort_keys=True))
        run_training(
            training,
            files,
            run,
            ranks,
            title=saved["name"],
            settings=plain(options, run),
            inputs=inputs,
            **notes,
        )
        if ranks.is_first:
            say(str(files.best))
    return files


def _initial(trained: Trained, seed: int, options: PatchTraining) -> nn.Module:
    """A network of two classes with random weights."""
    kind = "kaiming" if options.init_type == "high_pass" else options.init_type
    if trained.is_patch:
        model = published_start(trained.network, seed, kind)
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = trained.architecture.build(2)
            initialise(model, kind)
    if options.init_type == "high_pass":
        make_high_pass(model)
    return model
