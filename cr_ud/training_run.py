"""Training runs: one folder each with a lock, a checkpoint, curves and a record; the detectors that settings name."""

import sys
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.optim import Adam

from cr_ud.augmentation import Augmenter
from cr_ud.checkpointing import RunFiles, save_network
from cr_ud.initialisation import initial_model
from cr_ud.options import Augmentation, Monitoring, Optimisation, TrainedNetwork, TrainingImages, words
from cr_ud.schedule import CosineSchedule, PlateauSchedule, Schedule
from cr_ud.task import RealOrFake
from cr_ud.trainer import Trainer, Training
from cr_ud.training_data import EpochOrder, Loader
from cr_ud.training_figures import draw_comparison, draw_curves
from cr_ud.training_log import EPOCH, read_log
from cr_ud.training_sets import TrainingSets, find_sets
from detectors.detector import Detector
from detectors.devices import use_device
from detectors.networks import get_architecture
from images.choice import Reading
from passes.interrupts import only_writer
from passes.options import RunOptions
from passes.processes import Ranks, process_group
from passes.running import tracked
from utils.cli import say
from utils.errors import UserError
from utils.files import write_csv
from utils.layout import Layout
from utils.provenance import Origin, write_record
from utils.settings import plain

_COMPUTATION = 1  # version of what a training computes
_TITLES = {
    "rgb": "universal detector",
    "cr": "colour-robust universal detector",
    "grayscale": "greyscale-only universal detector",
}


def run_training(
    training: Training,
    folder: Path | RunFiles,
    run: RunOptions,
    ranks: Ranks,
    *,
    title: str,
    settings: Mapping[str, Any],
    inputs: Mapping[str, str],
    **notes: object,
) -> RunFiles:
    """Train into `folder`, or go on with what is there; the weights get a record each, the log curves.

    Args:
        training: What and how.
        folder: Of the run, or its files if they have other names; its last two names are those of the run.
        run: Whether to go on or to start anew, and trackers.
        ranks: This process among others.
        title: Of the curves.
        settings: All flags in force, in the form of `--config`.
        inputs: SHA-256 by name of what goes in.
        notes: Anything else worth keeping in the record.

    Raises:
        UserError: As `Trainer`; another run is writing there, or the folder holds an earlier run and it is not said
            what to do with it.
        Interrupted: After Ctrl-C or SIGTERM, with a checkpoint saved.
    """
    files = folder if isinstance(folder, RunFiles) else RunFiles(folder)
    folder = files.folder
    with ExitStack() as stack:
        if ranks.is_first:
            stack.enter_context(only_writer(files.checkpoint))
        is_there = ranks.from_first(files.checkpoint.exists())
        going_on = run.resume and is_there
        if is_there and not (run.resume or run.overwrite):
            raise UserError(f"{folder} holds an earlier run: give --resume to go on, --overwrite, or another --name")
        tracker = stack.enter_context(
            tracked(run, "training", settings, ranks, folder=folder, name=" ".join(folder.parts[-2:]), resume=going_on)
        )
        trainer = Trainer(training, files, ranks, tracker)
        if going_on:
            trainer.resume()
        elif ranks.is_first:
            files.clear()
        progress = trainer.run()
        if ranks.is_first:
            if training.monitoring.export_fp16:
                save_network(files.half, training.network.model, half=True)
            draw_curves(read_log(files.log), type(training.task), files.curves, title)
            tracker.picture("curves", files.curves.with_suffix(".png"))
            write_record(
                files.weights,
                Origin(_COMPUTATION, inputs, {"arguments": training.arguments}),
                settings=settings,
                seed=run.seed,
                device=training.network.device,
                steps=progress.step,
                epochs=progress.epoch,
                **notes,
            )
    return files


def announced(sets: TrainingSets, folder: Path, ranks: Ranks) -> tuple[dict[str, str], dict[str, object]]:
    """Digests and notes of the images, after what there is to say of them; one process looks into the files."""
    if not ranks.is_first:
        return ranks.from_first(None), {}
    validation = 0 if sets.validation is None else len(sets.validation)
    say(f"{folder}: {len(sets.training)} training and {validation} validation images")
    for warning in sets.warnings:
        sys.stderr.write(f"warning: {warning}\n")
    return ranks.from_first(sets.digests()), sets.notes()


def train_detectors(
    choice: TrainingImages,
    network: TrainedNetwork,
    augmentation: Augmentation,
    optimisation: Optimisation,
    monitoring: Monitoring,
    run: RunOptions,
) -> list[RunFiles]:
    """A detector for each list of classes, and their comparison if there are several.

    Raises:
        UserError: Anything a user can mend.
        Interrupted: After Ctrl-C or SIGTERM, with a checkpoint saved.
    """
    how, arch = optimisation, network.arch
    device = use_device(network.device, how.precision)
    schedule: Schedule = PlateauSchedule(how.lr, how.patience, how.least_lr, run.compat)
    if how.schedule == "cosine" and how.max_steps is not None:
        schedule = CosineSchedule(highest_lr=how.lr, steps=how.max_steps)
    layout = Layout(run.output_dir, arch, monitoring.name or augmentation.variant)
    with process_group(device.type) as ranks:
        loader = Loader(
            Augmenter(augmentation, run.published),
            num_workers=Reading(num_workers=choice.num_workers).workers_for(device.type),
            skip_bad_images=choice.skip_bad_images,
        )
        # everything is looked for before anything is computed
        lists = list(dict.fromkeys(map(words, choice.classes))) or [()]
        sets_by_run = [find_sets(choice, classes, pairs=how.pairs, seed=run.seed) for classes in lists]
        runs = {}
        for classes, sets in zip(lists, sets_by_run, strict=True):
            name = "+".join(classes)
            folder = layout.training(name if len(lists) > 1 else None)
            digests, notes = announced(sets, folder, ranks)
            model, init = initial_model(arch, network.init, run.seed)
            model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
            inputs = digests | ({"init": init} if init else {})
            fixed = {"arch": arch, "init": network.init, "seed": run.seed, "compat": run.compat, **inputs}
            determining = {**plain(augmentation), **how.determining(), **fixed}
            detector = Detector(get_architecture(arch), model, device)
            training = Training(
                detector,
                RealOrFake(detector.head),
                EpochOrder(sets.training, how.bsize, how.accumulate, run.seed, how.class_bal, ranks, how.pairs),
                sets.validation,
                loader,
                schedule,
                partial(Adam, lr=how.lr, betas=(how.beta1, 0.999), fused=device.type == "cuda"),
                how,
                monitoring,
                {key: str(value) for key, value in determining.items()},
            )
            runs[name] = run_training(
                training,
                folder,
                run,
                ranks,
                title=", ".join((arch, _TITLES[augmentation.variant], *classes)),
                settings=plain(choice, network, augmentation, optimisation, monitoring, run),
                inputs=inputs,
                variant=augmentation.variant,
                classes=list(classes),
                **notes,
            )
        if ranks.is_first:
            for files in runs.values():
                say(str(files.final))
            if len(runs) > 1:
                say(str(compare_runs(runs, layout.training())))
    return list(runs.values())


def compare_runs(runs: Mapping[str, RunFiles], folder: Path) -> Path:
    """Write `subsets.csv` and the figure `subsets.{png,pdf}`: the last validation of each run."""
    logs = {name: read_log(files.log) for name, files in runs.items()}
    table = folder / "subsets.csv"
    header = ("run", "step", "images", "loss", *RealOrFake.metrics)
    last = {name: row.columns() for name, log in logs.items() for row in log if row.kind == EPOCH}
    write_csv(table, header, ([name, *(row[column] for column in header[1:])] for name, row in last.items()))
    draw_comparison(logs, RealOrFake, folder / "subsets", "Subsets of classes, validation")
    write_record([table], Origin(_COMPUTATION, {}, {"runs": sorted(runs)}))
    return table
