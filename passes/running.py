"""Running analyses: what is not done yet, in one pass over each image set; then pictures and tables."""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from detectors.choice import DetectorChoice
from images.choice import ImageChoice, Reading
from images.decoding import Crop
from images.sets import ImageSet
from passes.analysis import Analysis, Subject, draw_once
from passes.interrupts import only_writer
from passes.one_pass import (
    Collector,
    Cropped,
    PassReport,
    PassState,
    discard_state,
    run_pass,
    state_files,
    state_part,
)
from passes.options import RunOptions
from passes.processes import Ranks, SeparateJob, process_group
from passes.shared_forward import SharedForward
from utils.cli import announce, say, say_files
from utils.errors import Finished, UserError
from utils.provenance import refuse_other_weights
from utils.settings import plain
from utils.tracking import Tracker, trackers

AnyAnalysis = Analysis[Any]
Kind = TypeVar("Kind", bound=AnyAnalysis)
_SHOWN = 3
"""So many pictures of a step are named."""


def run_experiment(
    analysis: type[Kind],
    detector: DetectorChoice | Sequence[DetectorChoice],
    images: ImageChoice,
    reading: Reading,
    options: Any,
    run: RunOptions,
    *,
    overview: Callable[[list[Kind]], list[Path]] | None = None,
) -> list[Kind]:
    """An experiment on every set named, with the names that its script has; what was run, by detector and set.

    With `overview` tables and pictures over detectors and sets are made when all is done.

    Raises:
        UserError: Anything a user can mend.
        Interrupted: After Ctrl-C or SIGTERM, with the state saved.
        Finished: With `--part`: the states of this part are saved.
    """
    with subjects(analysis, detector, images, reading, options, run) as (chosen, ranks):
        # Everything is looked for before anything is computed.
        wanted = [analysis(subject, options) for subject in chosen]
        with tracked(run, analysis.name, chosen[0].settings, ranks) as tracker:
            run_analyses(wanted, ranks=ranks, tracker=tracker)
            if overview is not None and ranks.is_first:
                _show(overview(wanted), tracker, analysis.name, most=None)
    return wanted


@contextmanager
def subjects(
    analysis: type[AnyAnalysis],
    detector: DetectorChoice | Sequence[DetectorChoice],
    images: ImageChoice,
    reading: Reading,
    options: Any,
    run: RunOptions,
) -> Iterator[tuple[list[Subject], Ranks]]:
    """Every detector on every set named, as the analysis loads them, and this process among those of `torchrun`.

    Raises:
        UserError: A checkpoint cannot be used, or images are missing.
    """
    choices = [detector] if isinstance(detector, DetectorChoice) else list(detector)
    with process_group() as ranks:
        ranks = separate(run, ranks)
        loaded = [analysis.load_detector(choice, options) for choice in choices]
        sets = warned(analysis.choose_images(images, options), ranks)
        yield (
            [
                Subject(network, choice.blur_jpg, name, image_set, reading, run, settings)
                for choice, network in zip(choices, loaded, strict=True)
                for settings in [plain(choice, images, reading, options, run)]
                for name, image_set in sets.items()
            ],
            ranks,
        )


def separate(run: RunOptions, ranks: Ranks) -> Ranks:
    """This process as one of the separate jobs that `--part` speaks of, if it does.

    Raises:
        UserError: It is one of a group already.
    """
    if run.part is None:
        return ranks
    if ranks.meet:
        raise UserError("--part divides the images among separate jobs: start them without torchrun, or leave it out")
    number, _, parts = run.part.partition("/")
    return SeparateJob(int(number) - 1, int(parts)) if int(parts) > 1 else ranks


def warned(sets: dict[str, ImageSet], ranks: Ranks) -> dict[str, ImageSet]:
    """The image sets, after what there is to say of them has been said once."""
    for name, image_set in sets.items() if ranks.is_first else ():
        for warning in image_set.warnings:
            sys.stderr.write(f"warning: {name}: {warning}\n")
    return sets


def tracked(
    run: RunOptions, job: str, settings: Mapping[str, Any], ranks: Ranks, *, folder: Path | None = None, **more: Any
) -> AbstractContextManager[Tracker]:
    """The trackers that the options ask for, at rank 0; `more` is for `utils.tracking.trackers`."""
    wandb, tensorboard = (wanted and ranks.is_first for wanted in (run.wandb, run.tensorboard))
    where = folder or run.output_dir
    return trackers(wandb=wandb, tensorboard=tensorboard, job=job, config=settings, folder=where, **more)


def run_analyses(
    analyses: Sequence[AnyAnalysis],
    *,
    ranks: Ranks | None = None,
    tracker: Tracker | None = None,
    job: str | None = None,
    always_resume: bool = False,
    tables: bool = True,
) -> None:
    """Compute what is not done, in one pass over each image set, and write, draw and tabulate.

    Args:
        analyses: Of any number of detectors and image sets.
        ranks: This process among others.
        tracker: Gets numbers and pictures.
        job: Names the saved states; by default the names of the analyses.
        always_resume: Go on from a saved state without being asked, or start anew where it does not fit.
        tables: Also make the tables over all sets.

    Raises:
        UserError: Anything a user can mend.
        Interrupted: After Ctrl-C or SIGTERM, with the state saved.
        Finished: With `--part`: the states of this part are saved.
    """
    ranks, tracker = ranks or Ranks(), tracker or Tracker()
    required = {str(entry.outputs[0]): entry for analysis in analyses for entry in analysis.requires()}
    is_part = isinstance(ranks, SeparateJob)
    for entry in [*required.values(), *(entry for entry in analyses if not entry.divisible)] if is_part else ():
        if not entry.is_done():
            raise UserError(f"{entry.gan_name}: {entry.name} cannot be divided here: run it first, without --part")
    for group in _by_images(list(required.values())):
        _run_group(group, ranks, None, always_resume)
    parts = False
    for group in _by_images(analyses):
        if _run_group(group, ranks, job, always_resume):
            parts = True
        elif ranks.is_first:
            for analysis in group:
                tracker.log({f"{analysis.gan_name}/{name}": value for name, value in analysis.numbers().items()})
    if parts:
        raise Finished("merge all parts with src/merge_states.py")
    if not ranks.is_first:
        return
    for analysis in analyses:
        for line in analysis.messages():
            say(line)
        _show(
            draw_once(
                analysis.layout,
                f"{analysis.name}-{analysis.gan_name}",
                analysis.outputs,
                analysis.drawing_settings(),
                analysis.draw,
            ),
            tracker,
            analysis.gan_name,
        )
    for of_detector in _by_detector(analyses) if tables else ():
        _show(type(of_detector[0]).tabulate(of_detector), tracker, of_detector[0].name)


def _run_group(group: Sequence[AnyAnalysis], ranks: Ranks, job: str | None, always_resume: bool) -> bool:
    """The analyses of one image set: one pass, then their files. Of a part only the state; then True."""
    first = group[0].subject
    run = first.run
    todo = [analysis for analysis in group if run.overwrite or not analysis.is_done()]
    if not todo:
        if ranks.is_first:
            say(f"{first.gan_name}: {', '.join(a.name for a in group)}: done before, nothing to compute")
        return False
    path = first.layout.state(job or "+".join(dict.fromkeys(analysis.name for analysis in group)), first.gan_name)
    resume = run.resume or always_resume
    for analysis in todo if not run.overwrite else ():
        refuse_other_weights(analysis.outputs, analysis.subject.detector.sha256)
        # Where a pass is gone on with, the files there are those that its run has begun to write.
        if not (resume and state_files(path)):
            analysis.check_overwriting()
    images = max((analysis.images for analysis in todo), key=len)
    crops = [analysis.subject.crop for analysis in todo]
    # Where they differ, whole images are decoded once, and cut for each.
    crop = crops[0] if len(set(crops)) == 1 else Crop()
    forwards: dict[int, SharedForward] = {}
    collectors: dict[str, Collector] = {}
    for analysis in todo:
        detector = analysis.subject.detector
        forward = forwards.setdefault(id(detector), SharedForward(detector))
        collectors[f"{detector.arch}_{analysis.subject.tag}.{analysis.name}"] = analysis.collector(forward, images)
    seen = {
        name: collector if wanted_crop == crop else Cropped(collector, wanted_crop, run.seed)
        for (name, collector), wanted_crop in zip(collectors.items(), crops, strict=True)
    }
    conditions = {
        f"{name}.{key}": str(value)
        for name, analysis in zip(collectors, todo, strict=True)
        for key, value in _flat(analysis.origin().plain())
    }
    state = PassState(path, conditions, resume, lenient=always_resume)
    with ExitStack() as stack:
        if ranks.is_first:
            stack.enter_context(only_writer(state_part(path, ranks) if isinstance(ranks, SeparateJob) else path))
        announce(f"{first.gan_name}: {', '.join(a.name for a in todo)}, {len(images)} images", ranks.is_first)
        report = _pass(first, images, seen, crop, state, ranks)
        if isinstance(ranks, SeparateJob):
            say(f"{first.gan_name}: part {run.part} is done")
            return True
        if ranks.is_first:
            for analysis, collector in zip(todo, collectors.values(), strict=True):
                try:
                    analysis.record(analysis.write(collector, report), report)
                except UserError as error:
                    raise UserError(f"{analysis.gan_name}: {error}") from error
        ranks.wait()
        if ranks.is_first:
            discard_state(path)
    return False


def _pass(
    subject: Subject,
    images: ImageSet,
    collectors: Mapping[str, Collector],
    crop: Crop,
    state: PassState,
    ranks: Ranks,
) -> PassReport:
    reading = subject.reading
    report = run_pass(
        images,
        collectors,
        device=subject.detector.device,
        batch_size=reading.bsize,
        crop=crop,
        seed=subject.run.seed,
        num_workers=reading.workers_for(subject.detector.device.type),
        skip_bad_images=reading.skip_bad_images,
        state=state,
        ranks=ranks,
        description=subject.gan_name,
    )
    for entry in report.skipped if ranks.is_first else ():
        sys.stderr.write(f"skipped: {entry.reason}\n")
    if report.transparent and ranks.is_first:
        sys.stderr.write(
            f"warning: {subject.gan_name}: {report.transparent} images have transparency: alpha is ignored, and the "
            "colours below count\n"
        )
    return report


def _flat(mapping: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, object]]:
    for key, value in mapping.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _by_images(analyses: Sequence[AnyAnalysis]) -> list[list[AnyAnalysis]]:
    """Groups that one pass can feed: the same images, read alike."""
    groups: dict[tuple[object, ...], list[AnyAnalysis]] = {}
    for analysis in analyses:
        subject = analysis.subject
        # each cuts the decoded images in its own way
        decoding = replace(subject.reading, crop="none", resize=0, preprocessing="as_is")
        key = subject.gan_name, id(subject.images), decoding, subject.detector.device
        groups.setdefault(key, []).append(analysis)
    return list(groups.values())


def _by_detector(analyses: Sequence[AnyAnalysis]) -> list[list[AnyAnalysis]]:
    groups: dict[tuple[object, ...], list[AnyAnalysis]] = {}
    for analysis in analyses:
        groups.setdefault((type(analysis), analysis.subject.detector.sha256, analysis.subject.tag), []).append(analysis)
    return list(groups.values())


def _show(paths: Sequence[Path], tracker: Tracker, name: str, most: int | None = _SHOWN) -> None:
    say_files(paths[:most])
    if left := len(paths) - len(paths[:most]):
        say(f"and {left} more")
    for path in paths:
        if path.suffix == ".png":
            tracker.picture(f"{name}/{path.stem}", path)
