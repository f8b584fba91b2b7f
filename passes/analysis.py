"""What an experiment is: its name, its flags, what goes in, which files come out, a collector, `write` and `draw`.

An experiment is one subclass of `Analysis`; an object of it is that experiment on one detector and one image set. The
scripts and the reproduction run such objects through `passes.running`, which gives all of them resuming, `torchrun`,
tracking, progress, images left out, and "nothing to do".
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from detectors.choice import DetectorChoice
from detectors.detector import Detector, load_detector
from images.choice import ImageChoice, Reading
from images.decoding import Crop
from images.finding import find_images
from images.sets import ImageSet
from passes.one_pass import Collector, PassReport
from passes.options import RunOptions
from passes.shared_forward import SharedForward
from utils.figures import chosen_formats
from utils.files import CODE_ROOT, plain, read_json, sha256_file, sha256_text, write_json
from utils.layout import Layout
from utils.provenance import Origin, is_current, read_record, write_record

Options = TypeVar("Options")


@dataclass(frozen=True)
class Subject:
    """A detector and an image set: what an analysis is about.

    Attributes:
        detector: The network with its weights.
        tag: Stands for the detector's training in file names.
        gan_name: Stands for the images.
        images: Real and fake ones, as far as they are there.
        reading: How they are read.
        run: Where results go, seed, compatibility.
        settings: All flags in force, for records.
    """

    detector: Detector
    tag: str
    gan_name: str
    images: ImageSet
    reading: Reading
    run: RunOptions
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def layout(self) -> Layout:
        """Where the files of this detector lie."""
        return Layout(self.run.output_dir, self.detector.arch, self.tag)

    @property
    def crop(self) -> Crop:
        """What is done to each image: as the authors of the detector do, or as the reading says."""
        return self.reading.cropping(self.detector.architecture.crop)


class Analysis(ABC, Generic[Options]):
    """An experiment on one subject. What is missing for it is complained about on construction.

    Raises:
        UserError: Something that it needs is not there or does not fit.
    """

    name: ClassVar[str]
    """Of the experiment, in file names of states and in messages."""
    computation: ClassVar[int] = 1
    """Version of the computation; to be raised whenever its numbers change."""
    labels: ClassVar[Collection[int]] = (0, 1)
    """Labels of the images that it looks at."""
    divisible: ClassVar[bool] = True
    """Whether jobs that never meet can share its images: nothing but the state comes out of a pass."""

    def __init__(self, subject: Subject, options: Options) -> None:
        self.subject, self.options = subject, options
        self.layout = subject.layout
        self.gan_name = subject.gan_name

    @classmethod
    def labels_for(cls, options: Options) -> Collection[int]:
        """Labels of the images that it looks at with these options."""
        return cls.labels

    @classmethod
    def choose_images(cls, choice: ImageChoice, options: Options) -> dict[str, ImageSet]:
        """The image sets that a command line names."""
        return find_images(choice, labels=tuple(cls.labels_for(options)))

    @classmethod
    def load_detector(cls, choice: DetectorChoice, options: Options) -> Detector:
        """The network that a command line names."""
        return load_detector(choice)

    @cached_property
    def images(self) -> ImageSet:
        """The images that the analysis looks at."""
        labels = self.labels_for(self.options)
        wanted = tuple(index for index, item in enumerate(self.subject.images.items) if item.label in labels)
        return self.subject.images if len(wanted) == len(self.subject.images) else self.subject.images.subset(wanted)

    def requires(self) -> Sequence[Analysis[Any]]:
        """Analyses whose files this one reads and which are run before it."""
        return []

    @abstractmethod
    def inputs(self) -> dict[str, str]:
        """SHA-256 by name of what goes in besides weights and images."""

    @abstractmethod
    def facts(self) -> dict[str, object]:
        """Settings that the numbers depend on besides those of every analysis."""

    @property
    @abstractmethod
    def outputs(self) -> Sequence[Path]:
        """The tables that come out, each of which gets a record."""

    @abstractmethod
    def collector(self, forward: SharedForward, images: ImageSet) -> Collector:
        """What looks at the images of a pass, which may be more than those of this analysis."""

    @abstractmethod
    def write(self, collector: Any, report: PassReport) -> dict[str, object]:
        """Write the numbers to `outputs`; returns notes for the record (counts and the like)."""

    def draw(self) -> list[Path]:
        """Draw the pictures of this subject from the files; returns those written."""
        return []

    def drawing_settings(self) -> Mapping[str, object]:
        """What the pictures depend on besides the files and the code that draws."""
        return {}

    def messages(self) -> list[str]:
        """Lines to print when the results are there."""
        return []

    def numbers(self) -> dict[str, float]:
        """Numbers for trackers, read from the files."""
        return {}

    @classmethod
    def tabulate(cls, analyses: Sequence[Any]) -> list[Path]:
        """Tables and figures over the sets of one detector, from the files; returns those written."""
        return []

    def origin(self) -> Origin:
        """All that the results depend on."""
        subject = self.subject
        common: dict[str, object] = {
            "gan_name": subject.gan_name,
            "tag": subject.tag,
            "bsize": subject.reading.bsize,
            "crop": str(subject.crop),
            "compat": subject.run.compat,
            "seed": subject.run.seed,
            **subject.detector.facts(),
        }
        inputs = {"weights": subject.detector.sha256, "images": self.images.digest(), **self.inputs()}
        return Origin(self.computation, inputs, {**common, **self.facts()})

    def is_done(self) -> bool:
        """Whether all tables are there, unchanged, from the same inputs, settings and version of the computation."""
        return is_current(self.outputs, self.origin())

    def record(self, notes: Mapping[str, object], report: PassReport) -> None:
        """Write the record beside each table."""
        subject, names = self.subject, {item.name for item in self.images.items}
        skipped = [entry for entry in report.skipped_names() if entry[0] in names]
        write_record(
            self.outputs,
            self.origin(),
            settings=subject.settings,
            seed=subject.run.seed,
            device=subject.detector.device,
            images=len(names) - len(skipped),
            skipped=skipped,
            **notes,
        )

    def check_overwriting(self) -> None:
        """Refuse to replace files that are dear; called when there is something to compute and no `--overwrite`.

        Raises:
            UserError: There are such files.
        """

    def notes(self) -> dict[str, Any]:
        """The record beside the first table."""
        return read_record(self.outputs[0])


def draw_once(
    layout: Layout,
    step: str,
    sources: Sequence[Path],
    settings: Mapping[str, object],
    drawing: Callable[[], list[Path]],
) -> list[Path]:
    """Call `drawing` unless its pictures are there, from the same files, settings and drawing code.

    Args:
        layout: Where the pictures lie.
        step: Name of the step.
        sources: Files that the pictures are drawn from.
        settings: What they depend on besides.
        drawing: Returns the paths written. The code of its room counts, and that of the house style.
    """
    origin = sha256_text(
        [
            json.dumps(plain({**settings, "formats": chosen_formats()}), sort_keys=True),
            _code_digest(drawing.__module__.partition(".")[0]),
            *(f"{path.name} {sha256_file(path)}" for path in sources),
        ]
    )
    path = layout.drawn(step)
    record = read_json(path)
    pictures = [layout.root / name for name in record.get("pictures", ())]
    if record.get("origin") == origin and all(picture.is_file() for picture in pictures):
        return pictures
    drawn = drawing()
    for stale in set(pictures) - set(drawn):
        stale.unlink(missing_ok=True)
    names = [picture.resolve().relative_to(layout.root.resolve()).as_posix() for picture in drawn]
    write_json(path, {"origin": origin, "pictures": names})
    return drawn


@cache
def _code_digest(room: str) -> str:
    """Digest of all modules of a room, and of those that every picture is made with."""
    modules = [*sorted((CODE_ROOT / room).glob("*.py")), *sorted((CODE_ROOT / "utils").glob("*.py"))]
    return sha256_text(f"{path.name} {sha256_file(path)}" for path in modules)
