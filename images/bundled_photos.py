"""Photographs that come with scikit-image, scikit-learn and Matplotlib, for runs without a data set."""

from importlib.util import find_spec
from pathlib import Path

from utils.errors import UserError

# files of the installed packages themselves; scikit-image would download its other pictures on first use
_PHOTOS = {
    "skimage/data": (
        "astronaut.png",
        "brick.png",
        "camera.png",
        "chelsea.png",
        "coffee.png",
        "coins.png",
        "grass.png",
        "gravel.png",
        "hubble_deep_field.jpg",
        "ihc.png",
        "motorcycle_left.png",
        "rocket.jpg",
    ),
    "sklearn/datasets/images": ("china.jpg", "flower.jpg"),
    "matplotlib/mpl-data/sample_data": ("grace_hopper.jpg",),
}


def bundled_photos() -> list[tuple[str, Path]]:
    """Name and path of every photograph found in the installed packages, in a fixed order.

    Raises:
        UserError: if neither package has any.
    """
    photos = []
    for folder, names in _PHOTOS.items():
        package, _, rest = folder.partition("/")
        spec = find_spec(package)
        if spec is None or spec.origin is None:
            continue
        root = Path(spec.origin).parent / rest
        photos += [(Path(name).stem, root / name) for name in names if (root / name).is_file()]
    if not photos:
        raise UserError("no bundled photos: install scikit-image and scikit-learn, or give --images FILE_OR_FOLDER")
    return photos
