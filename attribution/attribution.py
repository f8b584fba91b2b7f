"""Explanations of single images: images in; raw arrays, pictures and a table out.

Below the folder of a method: `arrays/<image>.npz`, written on the way; `attributions.csv` with its record, rows in the
order of the set; and drawn from both `overlays/<image>.png` and `contact_sheet_<page>.png`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
from torch import Tensor

import utils.heatmaps
from attribution.options import AttributionOptions
from attribution.targets import parse_target
from detectors.choice import DetectorChoice
from detectors.detector import Detector, load_detector, load_imagenet_classifier
from images.bundled_photos import bundled_photos
from images.choice import ImageChoice
from images.finding import find_images
from images.sets import LABEL_NAMES, ImageSet, find_loose_images
from passes.analysis import Analysis, Subject
from passes.one_pass import PassBatch, PassReport, PerImage
from passes.shared_forward import SharedForward, finite
from utils.errors import UserError
from utils.figures import save_picture
from utils.files import read_npz, safe_join, sha256_file, write_npz
from utils.heatmaps import LOOKS
from utils.pictures import ContactSheets
from utils.tables import percent, read_rows, write_rows

Chosen = TypeVar("Chosen", bound=AttributionOptions)


@dataclass(frozen=True)
class Explanation:
    """What a method says of a batch.

    Attributes:
        relevance: (N, H, W), signed; positive is evidence for the explained class.
        output: (N, outputs) of the network.
        classes: (N,) int64, the class explained.
        arrays: Further raw arrays, (N, ...) each, stored beside the relevance of each image.
        reversed: (N,) bool, images whose positive relevance is evidence against the explained class; None for none.
    """

    relevance: Tensor
    output: Tensor
    classes: Tensor
    arrays: Mapping[str, Tensor] = field(default_factory=dict)
    reversed: Tensor | None = None


@dataclass(frozen=True)
class AttributionRow:
    """A line of `attributions.csv`.

    Attributes:
        path: Below the root of the images.
        label: 0 real, 1 fake.
        probability: 0..1, of `probability_of`: fake, or the explained class of a classifier.
        explained: What positive relevance is evidence for.
        empty: 1 where no relevance is positive.
        against: Share of the negative relevance in all absolute relevance, 0..1; empty where there is none at all.
        overlay, arrays: Files, below the folder of the table.
    """

    path: str
    label: int | None
    probability: float
    probability_of: str
    explained: str
    empty: int
    against: float
    overlay: str
    arrays: str

    @property
    def said(self) -> str:
        """What the network says of the image."""
        return f"p({self.probability_of}) {_shown(self.probability)}"

    @property
    def evidence(self) -> str:
        """Which way the relevance points."""
        if self.against != self.against:
            return "no relevance at all (empty map)"
        if self.empty:
            return f"no evidence for {self.explained}: all relevance is negative"
        shares = percent(1 - self.against, 0), percent(self.against, 0)
        return f"evidence for {self.explained} {shares[0]} %, against it {shares[1]} %"

    @property
    def caption(self) -> list[str]:
        """Lines below the pictures of the image on a contact sheet."""
        label = "no label" if self.label is None else LABEL_NAMES[self.label]
        return [self.path, f"{label} \u00b7 {self.said}", self.evidence]


class Attribution(Analysis[Chosen], Generic[Chosen]):
    """A method of explaining single images."""

    labels: ClassVar[Any] = (0, 1, None)
    default_target: ClassVar[str]
    """Of a detector."""

    def __init__(self, subject: Subject, options: Chosen) -> None:
        super().__init__(subject, options)
        self.target = parse_target(options.target, subject.detector.head, default=self.default_target)

    @classmethod
    def load_detector(cls, choice: DetectorChoice, options: Chosen) -> Detector:
        """The detector, or the ImageNet classifier."""
        if options.classifier == "ud":
            return load_detector(choice)
        return load_imagenet_classifier(choice.arch, choice.weights, choice.device, choice.precision)

    @classmethod
    def choose_images(cls, choice: ImageChoice, options: Chosen) -> dict[str, ImageSet]:
        """The images named, as one set: files go first, then the data set, then the bundled photos.

        Raises:
            UserError: Something named is not there, or a data set is named without its folders.
        """
        if options.images:
            return {"images": find_loose_images(options.images)}
        if choice.dataset_dir is None and choice.images_from is None and not choice.gan_name:
            photos = find_loose_images([path for _, path in bundled_photos()])
            note = "bundled with scikit-image and scikit-learn (no --images or --dataset_dir given)"
            return {"photos": replace(photos, warnings=(note,))}
        sets = find_images(choice, alone=True)
        if len(sets) == 1:
            return sets
        if choice.equalize:
            raise UserError("--equalize makes the images of one set alike: name one --gan_name")
        items = [item for image_set in sets.values() for item in image_set.items]
        if len({item.name for item in items}) < len(items):
            items = [replace(item, name=f"{item.generator}/{item.name}") for item in items]
        warnings = [f"{name}: {text}" for name, image_set in sets.items() for text in image_set.warnings]
        return {"several": ImageSet(next(iter(sets.values())).root, tuple(items), tuple(warnings))}

    @property
    def shown_beside(self) -> Sequence[str]:
        """Other relevance (H, W) among the arrays of each image, that the contact sheets show, too."""
        return []

    patches_shown = 0
    """Patches of each image on the contact sheets."""

    def patches(self, arrays: Mapping[str, np.ndarray]) -> list[tuple[str, np.ndarray]]:
        """As many patches as are shown of an image, uint8 (h, w, 3), and what they are, from its arrays."""
        return []

    @property
    @abstractmethod
    def title(self) -> str:
        """Head line of the contact sheets."""

    @property
    @abstractmethod
    def details(self) -> Sequence[str]:
        """What tells results of the method apart, in the name of their folder."""

    @abstractmethod
    def explain(self, images: Tensor, labels: Tensor) -> Explanation:
        """Explain images (N, 3, H, W) uint8 with labels (N,): 1 fake, 0 real, -1 unknown."""

    @property
    def folder(self) -> Path:
        """Where everything goes."""
        return self.layout.attributions(self.name, self.options.classifier, *self.details)

    @property
    def outputs(self) -> Sequence[Path]:
        """The table."""
        return [self.folder / "attributions.csv"]

    def inputs(self) -> dict[str, str]:
        """Nothing."""
        return {}

    def facts(self) -> dict[str, object]:
        """What is explained."""
        return {"classifier": self.options.classifier, "target": self.target.name}

    def is_done(self) -> bool:
        """Whether the table is current and the arrays that it names are there."""
        return super().is_done() and all((self.folder / row.arrays).is_file() for row in self.rows())

    def rows(self) -> list[AttributionRow]:
        """The table, as it is on disk."""
        return read_rows(self.outputs[0], AttributionRow, made_by=f"--overwrite of {self.name}")

    def collector(self, forward: SharedForward, images: ImageSet) -> AttributionCollector:
        """One that writes arrays, and keeps a few numbers of each image."""
        return AttributionCollector(self, images)

    def write(self, collector: Any, report: PassReport) -> dict[str, object]:
        """The table; arrays and overlays of an earlier run that are not in it go."""
        rows = collector.rows()
        if not rows:
            raise UserError(f"none of the {len(self.images)} images can be decoded: there is nothing to explain")
        current = {name for row in rows for name in (row.overlay, row.arrays)}
        with suppress(UserError):
            for name in {name for row in self.rows() for name in (row.overlay, row.arrays)} - current:
                safe_join(self.folder, name).unlink(missing_ok=True)
        write_rows(self.outputs[0], rows)
        return {"title": self.title, "empty_maps": sum(row.empty for row in rows)}

    def drawing_settings(self) -> Mapping[str, object]:
        """The look, the code that renders, and the arrays by what they were made from."""
        code = sha256_file(utils.heatmaps.__file__)
        return {"look": self.options.look, "heatmaps": code, "origin": self.origin().digest()}

    def draw(self) -> list[Path]:
        """Overlays, and the contact sheets: of each image itself, heat map and overlay, and what is shown beside."""
        look = LOOKS[self.options.look]
        panels = 3 + len(self.shown_beside) + self.patches_shown
        sheets = ContactSheets(
            self.folder / "contact_sheet",
            panels=panels,
            caption_lines=4 if self.patches_shown else 3,
            columns=2 if panels < 6 else 1,
            rows=5,
            title=self.title,
            legend=look.legend(),
        )
        for row in self.rows():
            arrays = read_npz(safe_join(self.folder, row.arrays))
            heat = look.render(arrays["relevance"])
            blended = look.overlay(arrays["image"], heat)
            save_picture(safe_join(self.folder, row.overlay), blended)
            others = [look.overlay(arrays["image"], look.render(arrays[name])) for name in self.shown_beside]
            words, patches = zip(*self.patches(arrays), strict=True) if self.patches_shown else ((), ())
            caption = [*row.caption, *(["patches of " + ", ".join(words)] if words else [])]
            sheets.add([arrays["image"], heat.rgb, blended, *others, *patches], caption)
        return sheets.finish()

    def messages(self) -> list[str]:
        """The table, and what there is to say of the images."""
        rows = self.rows()
        unlabelled = sum(row.label is None for row in rows)
        decided = f"{unlabelled} without a label: explained for the detector's decision"
        empty = f"{sum(row.empty for row in rows)} of {len(rows)} images without any evidence for what is explained"
        return [
            *([decided] if unlabelled and self.target.name == "label" else []),
            *([empty] if any(row.empty for row in rows) else []),
            *map(str, self.outputs),
        ]

    def numbers(self) -> dict[str, float]:
        """How many images there are, and how many maps without evidence."""
        rows = self.rows()
        return {"images": len(rows), "empty_maps": sum(row.empty for row in rows)}


class AttributionCollector(PerImage):
    """Explains batches; writes the arrays of each image, and keeps the numbers that its row is made of."""

    def __init__(self, analysis: Attribution[Any], images: ImageSet) -> None:
        # Probability, class, whether reversed, sums of positive and of negative relevance.
        super().__init__(len(images), (5,))
        self.analysis = analysis
        self._items = images.items
        self._names = output_names(images)

    def update(self, batch: PassBatch) -> None:
        """Explain a batch.

        Raises:
            UserError: Output or relevance of an image is not finite.
        """
        result = self.explain(batch)
        output = finite(result.output.float(), batch, "the network's output")
        relevance = finite(result.relevance.float(), batch, "the relevance")
        probability = self.analysis.target.head.probability(output, result.classes)
        turned = result.classes.new_zeros(len(output)) if result.reversed is None else result.reversed
        sums = [(relevance * sign).clamp(min=0).sum((1, 2)).cpu().double() for sign in (1, -1)]
        columns = [column.cpu().double() for column in (probability, result.classes, turned)]
        self.put(batch.positions, np.stack([column.numpy() for column in (*columns, *sums)], axis=1))
        arrays = {name: values.float().cpu().numpy() for name, values in result.arrays.items()}
        arrays["relevance"] = relevance.cpu().numpy()
        for row, (position, image) in enumerate(zip(batch.positions, batch.pixels, strict=True)):
            path = safe_join(self.analysis.folder, self._file("arrays", position))
            write_npz(path, image=image, **{name: values[row] for name, values in arrays.items()})

    def explain(self, batch: PassBatch) -> Explanation:
        """What the method says of a batch."""
        return self.analysis.explain(batch.images, batch.labels)

    def rows(self) -> list[AttributionRow]:
        """The table, in the order of the set."""
        target = self.analysis.target
        rows = []
        for position in np.flatnonzero(self.seen).tolist():
            item = self._items[position]
            probability, index, turned, positive, negative = self.values[position].tolist()
            rows.append(
                AttributionRow(
                    path=item.name,
                    label=item.label,
                    probability=probability,
                    probability_of=target.probability_of(int(index)),
                    explained=target.explained(int(index), bool(turned)),
                    empty=int(positive == 0),
                    against=negative / (positive + negative) if positive + negative else float("nan"),
                    overlay=self._file("overlays", position),
                    arrays=self._file("arrays", position),
                )
            )
        return rows

    def _file(self, folder: str, position: int) -> str:
        suffix = "npz" if folder == "arrays" else "png"
        return f"{folder}/{self._names[position]}.{suffix}"


def output_names(images: ImageSet) -> list[str]:
    """Names of the images without suffix, or with it where two images differ in nothing else."""
    stems = [item.name.removesuffix(Path(item.name).suffix) for item in images.items]
    count = Counter(stem.lower() for stem in stems)
    return [stem if count[stem.lower()] == 1 else item.name for stem, item in zip(stems, images.items, strict=True)]


def _shown(probability: float) -> str:
    if probability < 0.001:
        return "< 0.001"
    return "> 0.999" if probability > 0.999 else f"= {probability:.3f}"
