"""Step 3 of the paper: the images that excite each feature map most, and the patches that do."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from fmap_ranking.names import FeatureMap, maps_of
from fmap_ranking.ranking import FoundRanking, find_ranking
from images.choice import ImageChoice
from images.decoding import Crop, Equalization
from images.sets import FAKE, ImageItem, ImageSet
from lrp.canonise import build_program, explained_layers
from passes.analysis import Analysis, Subject
from passes.one_pass import Collector, PassReport
from passes.shared_forward import SharedForward
from patch_extraction.activations import MAKE, MaxActivations, RankedImage, RankedImages, TopActivations
from patch_extraction.collages import collage_settings, draw_collages
from patch_extraction.files import PatchFiles
from patch_extraction.options import ALL, MapChoice, PatchOptions
from patch_extraction.patches import PatchCollector, wanted_patches
from utils.errors import UserError
from utils.files import safe_join, sha256_file, sha256_text
from utils.provenance import describes, read_record
from utils.tables import write_rows

_KEPT_OF_ALL = 40
Choice = TypeVar("Choice", bound=MapChoice)


@dataclass(frozen=True)
class ChosenMaps:
    """Feature maps in the order of their rank, or of depth where no ranking was asked.

    Attributes:
        maps: The maps.
        omega: Their relevance, 0..1; None for each if the choice did not come from a ranking.
        ranked: The ranking.
    """

    maps: tuple[FeatureMap, ...]
    omega: tuple[float | None, ...]
    ranked: FoundRanking | None = None

    def inputs(self) -> dict[str, str]:
        """Digests of the choice, and of the ranking if there is one."""
        keys = {"maps": sha256_text(fmap.key for fmap in self.maps)}
        return keys if self.ranked is None else {"ranking": self.ranked.sha256, **keys}

    def notes(self) -> dict[str, object]:
        """What records say of the choice."""
        origin = {} if self.ranked is None else {"ranking": self.ranked.path, "warning": self.ranked.warning}
        return {"maps": len(self.maps), **origin}


def choose_maps(subject: Subject, choice: MapChoice) -> ChosenMaps:
    """The maps that `--topk` and `--relevances` ask for.

    Raises:
        UserError: No ranking, one of another network, or k too large.
    """
    if choice.topk == ALL:
        maps = tuple(maps_of(explained_layers(build_program(subject.detector.model, fold=False))))
        return ChosenMaps(maps, (None,) * len(maps))
    ranked = find_ranking(subject, choice)
    return ChosenMaps(ranked.ranking.top_k(ranked.k), tuple(ranked.ranking.values[: ranked.k].tolist()), ranked)


class _OfMaps(Analysis[Choice]):
    """An analysis of some feature maps on fakes."""

    labels = (FAKE,)

    def __init__(self, subject: Subject, options: Choice) -> None:
        super().__init__(subject, options)
        self.chosen = choose_maps(subject, options)

    def inputs(self) -> dict[str, str]:
        """Digests of the choice of maps and of their ranking."""
        return self.chosen.inputs()

    def messages(self) -> list[str]:
        """What to know of the ranking, and what there is now."""
        notes = self.notes()
        warning = [f"warning: {self.gan_name}: {notes['warning']}"] if notes.get("warning") else []
        return [*warning, f"{self.outputs[0]}: {notes['maps']:,} maps, {notes['images']} images"]

    def numbers(self) -> dict[str, float]:
        """How many images and maps."""
        notes = self.notes()
        return {"images": notes["images"], "maps": notes["maps"]}


class ActivationRankings(_OfMaps[MapChoice]):
    """The fakes of a generator in the order of the largest activation of each feature map.

    Of all maps of a network the first 40 images of each are kept, and there are no CSVs, which would be ten thousands.
    """

    name = "activation_rankings"

    def facts(self) -> dict[str, object]:
        """How many images are kept of each map; None: all."""
        return {"keep": _KEPT_OF_ALL if self.options.topk == ALL else None}

    @property
    def outputs(self) -> Sequence[Path]:
        """All rankings in one file, whose record lists the digests of the CSVs."""
        return [self.layout.activation_rankings(self.gan_name) / "max_activations.npz"]

    def is_done(self) -> bool:
        """Whether the compact file and every CSV are there as they were written."""
        if not super().is_done():
            return False
        tables, folder = self.notes()["tables"], self.outputs[0].parent
        return all((path := folder / name).is_file() and sha256_file(path) == tables[name] for name in tables)

    def collector(self, forward: SharedForward, images: ImageSet) -> MaxActivations | TopActivations:
        """Values of all images, or of those kept."""
        if self.options.topk == ALL:
            return TopActivations(forward, self.chosen.maps, images, _KEPT_OF_ALL)
        return MaxActivations(forward, self.chosen.maps, images)

    def write(self, collector: MaxActivations | TopActivations, report: PassReport) -> dict[str, object]:
        """Write the compact file and the CSVs (`name,max_act`, descending), and remove CSVs of earlier runs."""
        rankings, folder = collector.result(), self.outputs[0].parent
        tables = {f"{fmap.key}.csv": fmap for fmap in rankings.maps if self.options.topk != ALL}
        for path in sorted(folder.glob("*.csv")):
            if path.name not in tables and ".#" in path.name:
                path.unlink()
        for name, fmap in tables.items():
            write_rows(folder / name, rankings.of(fmap), RankedImage, durable=False)
        rankings.write(self.outputs[0])
        return {
            **self.chosen.notes(),
            "dataset_dir": str(self.images.root.resolve()),
            "equalization": None if self.images.equalization is None else asdict(self.images.equalization),
            "tables": {name: sha256_file(folder / name) for name in tables},
        }


class Patches(_OfMaps[PatchOptions]):
    """LRP-max patches of the fakes that activation rankings name.

    Raises:
        UserError: No rankings, not of these maps, of another checkpoint or of cropped images, or images have gone.
    """

    name = "patches"
    divisible = False  # pictures are written on the way

    def __init__(self, subject: Subject, options: PatchOptions) -> None:
        super().__init__(subject, options)
        self.files = PatchFiles.of(self.layout, self.gan_name)
        self._rankings = self.layout.activation_rankings(self.gan_name) / "max_activations.npz"
        if subject.crop not in (Crop(), subject.detector.architecture.crop):
            raise UserError("patches are cut from whole images: leave out --crop")
        rankings, record = self._read_rankings()
        self._wanted = wanted_patches(rankings, self.chosen.maps, options.num_instances)
        # Instead of the empty set that was chosen.
        self.images, self._lost = self._find_images(record)

    @classmethod
    def choose_images(cls, choice: ImageChoice, options: PatchOptions) -> dict[str, ImageSet]:
        """An empty set for each name: the images are those that the rankings name."""
        if not choice.gan_name:
            raise UserError("which generator? name it with --gan_name")
        return {name: ImageSet(choice.dataset_dir or Path(), ()) for name in choice.gan_name}

    def _read_rankings(self) -> tuple[RankedImages, dict[str, Any]]:
        """The rankings, and their record."""
        path, detector = self._rankings, self.subject.detector
        rankings, record = RankedImages.read(path), read_record(path)
        if not describes(record, path):
            raise UserError(f"{path} is not what its record describes: make it anew with {MAKE}")
        there = set(rankings.maps)
        missing = [fmap for fmap in self.chosen.maps if fmap not in there]
        if missing:
            raise UserError(
                f"{path} has no ranking of {missing[0].key} ({len(missing)} missing): "
                f"run {MAKE} with the same --topk and --relevances"
            )
        if record.get("inputs", {}).get("weights") != detector.sha256:
            raise UserError(
                f"{path} was made with another checkpoint than {detector.weights}: "
                f"give the same --weights, or run {MAKE} again"
            )
        crop = record.get("facts", {}).get("crop")
        if crop != str(self.subject.crop):
            raise UserError(
                f"{path} is of {crop}, but patches are cut from whole images, or from what the detector's authors cut "
                f"out: run {MAKE} with --crop none and the same --preprocessing"
            )
        return rankings, record

    def _find_images(self, record: Mapping[str, Any]) -> tuple[ImageSet, list[str]]:
        """The images that a patch is wanted of, each once and as they were ranked, and the names of those now gone."""
        root, same = self.options.dataset_dir or Path(str(record.get("dataset_dir"))), record.get("equalization")
        names = sorted({patch.name for patch in self._wanted})
        items = [ImageItem(safe_join(root, name), name, FAKE, "", self.gan_name) for name in names]
        lost = [item for item in items if not item.path.is_file()]
        if lost and not self.subject.reading.skip_bad_images:
            raise UserError(
                f"no such image: {lost[0].path} ({len(lost)} missing): give the --dataset_dir that the images were "
                f"ranked in, run {MAKE} again, or use --skip_bad_images"
            )
        there = tuple(item for item in items if item not in lost)
        equalization = None if same is None else Equalization(**same)
        return ImageSet(root, there, equalization=equalization), [item.name for item in lost]

    def inputs(self) -> dict[str, str]:
        """Digests of the rankings, of the choice of maps, and of what the explainer takes."""
        rankings = {"activation_rankings": sha256_file(self._rankings)}
        return {**rankings, **super().inputs(), **self.options.inputs()}

    def facts(self) -> dict[str, object]:
        """Patches of a map, and the rule."""
        return {"num_instances": self.options.num_instances, "rule": self.options.rule}

    @property
    def outputs(self) -> Sequence[Path]:
        """The list of maps, whose record has a digest of all tables and pictures."""
        return [self.files.index]

    def is_done(self) -> bool:
        """Whether all tables and pictures are there as they were written."""
        return super().is_done() and self.notes().get("contents") == self.files.digest()

    def collector(self, forward: SharedForward, images: ImageSet) -> Collector:
        """Makes the patches and writes their pictures; the tables of an earlier run go before."""
        maps = self.chosen.maps
        self.files.remove_tables()
        return PatchCollector(
            self.options.of(self.subject.detector, published=self.subject.run.published),
            forward,
            maps,
            self._wanted,
            keep_patch=lambda patch, picture: self.files.write_patch(maps[patch.row], patch.rank, picture),
            keep_image=self.files.write_image,
            batch_size=self.subject.reading.bsize,
        )

    def write(self, collector: PatchCollector, report: PassReport) -> dict[str, object]:
        """Write the tables, and remove what earlier runs have left."""
        patches = collector.result()
        contents = self.files.write_tables(self.chosen.maps, self.chosen.omega, patches)
        return {**self.chosen.notes(), "contents": contents, "lost": self._lost, "patches": len(patches)}

    def draw(self) -> list[Path]:
        """Draw the pages over all maps and the collage of each."""
        return draw_collages(self.layout, self.gan_name, self._maps_drawn)

    def drawing_settings(self) -> dict[str, Any]:
        """Of a drawing of everything."""
        return collage_settings(self.files, self._maps_drawn)

    @property
    def _maps_drawn(self) -> int | None:
        return min(self.options.maps_drawn, len(self.chosen.maps)) or None
