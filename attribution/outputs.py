"""What the attribution scripts share: which images to explain, and how the results are written."""

from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from images.bundled_photos import bundled_photos
from images.sets import LABEL_NAMES, ImageItem, ImageSet, find_image_set, find_loose_images
from utils.errors import UserError
from utils.figures import save_picture
from utils.files import safe_join, write_csv, write_npz, write_provenance
from utils.heatmaps import overlay, render_heatmap
from utils.pictures import ContactSheets

COLUMNS = ("path", "label", "probability", "probability_of", "explained", "empty", "overlay", "arrays")


def add_image_arguments(parser: ArgumentParser) -> None:
    """Add `--images` to a parser that has the shared data-set arguments."""
    parser.add_argument(
        "--images",
        nargs="+",
        type=Path,
        metavar="FILE_OR_FOLDER",
        help="image files or folders to explain; absent: the images of --dataset_dir and --gan_name, else "
        "the photos bundled with scikit-image and scikit-learn",
    )


def select_images(args: Namespace) -> tuple[ImageSet, str]:
    """The images to explain and one phrase saying which they are.

    `args` has `images`, `dataset_dir`, `gan_name` (names, or one), `have_classes`, `num_real`, `num_fake` and
    `num_instances`. `--images` goes first, then the data set, then the bundled photos.

    Raises:
        UserError: if something named is not there, or a data set is named without its folders.
    """
    if args.images:
        return find_loose_images(args.images), "images given with --images"
    if args.dataset_dir is None:
        photos = find_loose_images([path for _, path in bundled_photos()])
        return (
            photos,
            "photos bundled with scikit-image and scikit-learn (no --images or --dataset_dir given)",
        )
    names = [args.gan_name] if isinstance(args.gan_name, str) else list(args.gan_name or ())
    if not names:
        raise UserError(f"which images of {args.dataset_dir}? name its folders with --gan_name")
    parts = [
        find_image_set(
            args.dataset_dir,
            name,
            have_classes=args.have_classes,
            num_real=args.num_real,
            num_fake=args.num_fake,
            num_instances=args.num_instances,
        )
        for name in names
    ]
    items = tuple(item for part in parts for item in part.items)
    return ImageSet(parts[0].root, items), f"{', '.join(names)} of {args.dataset_dir}"


class AttributionWriter:
    """Writes results image by image: overlay, raw arrays, contact sheets, and at the end a table.

    Below `folder`: `overlays/<name>.png`, `arrays/<name>.npz`, `contact_sheet_<page>.png`, `attributions.csv`
    and its provenance, its rows in the order of the set. A sheet shows of every image the image itself, the heat
    map, and the overlay of the two. Maps are not kept after `add`.

    Args:
        folder: where everything goes.
        image_set: the images that will be added, in any order; fixes the file names.
        title: head line of the contact sheets.
    """

    def __init__(self, folder: Path, image_set: ImageSet, *, title: str) -> None:
        self.folder = folder
        self.title = title
        self._names = _output_names(image_set)
        self._sheets = ContactSheets(
            folder / "contact_sheet", panels=3, caption_lines=3, columns=2, rows=5, title=title
        )
        self._order = {item.name: position for position, item in enumerate(image_set.items)}
        self._rows: list[tuple[object, ...]] = []

    def add(
        self,
        item: ImageItem,
        image: np.ndarray,
        relevance: np.ndarray,
        *,
        probability: float,
        probability_of: str,
        explained: str,
        arrays: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        """Write one result.

        Args:
            item: the image's entry in the image set.
            image: (H, W, 3) uint8, as the network saw it.
            relevance: (H, W) signed relevance, any scale; positive is evidence for `explained`.
            probability: 0..1.
            probability_of: what it is the probability of, `fake` or a class name.
            explained: what the relevance is evidence for.
            arrays: further raw arrays to store beside `relevance` and `image`.
        """
        heat = render_heatmap(relevance)
        blended = overlay(image, heat)
        name = self._names[item.name]
        overlay_path = safe_join(self.folder, "overlays", f"{name}.png")
        arrays_path = safe_join(self.folder, "arrays", f"{name}.npz")
        save_picture(overlay_path, blended)
        write_npz(arrays_path, relevance=relevance.astype(np.float32), image=image, **(arrays or {}))
        label = "no label" if item.label is None else LABEL_NAMES[item.label]
        caption = [
            item.name,
            f"{label} \u00b7 p({probability_of}) {_shown(probability)}",
            f"no evidence for {explained} (empty map)" if heat.empty else f"evidence for {explained}",
        ]
        self._sheets.add([image, heat.rgb, blended], caption)
        self._rows.append(
            (
                item.name,
                "" if item.label is None else item.label,
                probability,
                probability_of,
                explained,
                int(heat.empty),
                overlay_path.relative_to(self.folder).as_posix(),
                arrays_path.relative_to(self.folder).as_posix(),
            )
        )

    def finish(self, *, seed: int | None, device: object, inputs: Mapping[str, str], **facts: object) -> list[Path]:
        """Write the table with its provenance and the last contact sheet; returns the sheets and the table.

        Args as in `utils.files.write_provenance`.
        """
        sheets = self._sheets.finish()
        table = self.folder / "attributions.csv"
        # images come in batches of equal size
        write_csv(table, COLUMNS, sorted(self._rows, key=lambda row: self._order[str(row[0])]))
        empty = sum(row[COLUMNS.index("empty")] == 1 for row in self._rows)
        write_provenance(
            table,
            seed=seed,
            device=device,
            inputs=inputs,
            title=self.title,
            images=len(self._rows),
            empty_maps=empty,
            **facts,
        )
        return [*sheets, table]


def _output_names(image_set: ImageSet) -> dict[str, str]:
    """Names of the images without suffix, or with it where two images differ in nothing else."""
    stems: dict[str, int] = {}
    for item in image_set.items:
        key = _stem(item.name).lower()
        stems[key] = stems.get(key, 0) + 1
    return {
        item.name: _stem(item.name) if stems[_stem(item.name).lower()] == 1 else item.name for item in image_set.items
    }


def _stem(name: str) -> str:
    return name.removesuffix(Path(name).suffix)


def _shown(probability: float) -> str:
    if probability < 0.001:
        return "< 0.001"
    if probability > 0.999:
        return "> 0.999"
    return f"= {probability:.3f}"
