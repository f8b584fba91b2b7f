"""Which images are explained, how they are scaled, and what results are called and captioned."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from attribution.attribution import Attribution, AttributionRow, output_names
from attribution.options import AttributionOptions
from images.bundled_photos import bundled_photos
from images.choice import ImageChoice
from images.decoding import decode_image
from images.sets import ImageSet, find_loose_images
from utils.errors import UserError


def write_images(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 6), (10, 20, 30)).save(folder / name)
    return folder


def chosen(choice: ImageChoice, *files: Path) -> dict[str, ImageSet]:
    return Attribution.choose_images(choice, AttributionOptions(images=files))


def test_bundled_photos_are_there_and_can_be_read() -> None:
    photos = dict(bundled_photos())
    assert {"astronaut", "coffee", "china", "flower"} <= photos.keys()
    for path in photos.values():
        assert min(decode_image(path).shape[:2]) >= 224


def test_bundled_photos_are_the_last_resort() -> None:
    image_set = chosen(ImageChoice())["photos"]
    assert [item.path for item in image_set.items] == [path for _, path in bundled_photos()]
    assert "bundled" in image_set.warnings[0]


def test_given_images_go_before_the_data_set(tmp_path: Path) -> None:
    write_images(tmp_path, "x/1_fake/a.png", "one.png", "set/gan/0_real/r.png", "set/gan/1_fake/f.png")
    choice = ImageChoice(dataset_dir=tmp_path / "set", gan_name=("gan",))
    image_set = chosen(choice, tmp_path / "x", tmp_path / "one.png")["images"]
    assert [(item.name, item.label) for item in image_set.items] == [("x/1_fake/a.png", 1), ("one.png", None)]


def test_several_generators(tmp_path: Path) -> None:
    for gan in ("b", "a"):
        write_images(tmp_path / gan, "0_real/r.png", "0_real/s.png", "1_fake/f.png")
    choice = ImageChoice(dataset_dir=tmp_path, gan_name=("b", "a"), num_real=1)
    image_set = chosen(choice)["several"]
    names = [item.name for item in image_set.items]
    assert names == ["b/0_real/r.png", "b/1_fake/f.png", "a/0_real/r.png", "a/1_fake/f.png"]


def test_a_list_of_images(tmp_path: Path) -> None:
    write_images(tmp_path, "f.png")
    (tmp_path / "list.csv").write_text("path,label\nf.png,1\n")
    image_set = chosen(ImageChoice(images_from=tmp_path / "list.csv"))["list"]
    assert [(item.path, item.label) for item in image_set.items] == [(tmp_path / "f.png", 1)]


@pytest.mark.parametrize("choice", [{"dataset_dir": Path("somewhere")}, {"gan_name": ("crn",)}])
def test_half_a_data_set_is_refused(choice: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="--gan_name"):
        chosen(ImageChoice(**choice))


def test_images_of_one_stem_do_not_overwrite_each_other(tmp_path: Path) -> None:
    names = ("a.png", "a.jpg", "A.bmp", "b.png", "sub/a.png")
    image_set = find_loose_images([write_images(tmp_path, *names)])
    found = dict(zip((item.name for item in image_set.items), output_names(image_set), strict=True))
    assert found == {"a.png": "a.png", "a.jpg": "a.jpg", "A.bmp": "A.bmp", "b.png": "b", "sub/a.png": "sub/a"}


@pytest.mark.parametrize(
    ("label", "probability", "against", "empty", "caption"),
    [
        (None, 0.5, 0.25, 0, ["no label \u00b7 p(fake) = 0.500", "evidence for fake 75 %, against it 25 %"]),
        (1, 1.0, 1.0, 1, ["fake \u00b7 p(fake) > 0.999", "no evidence for fake: all relevance is negative"]),
        (0, 0.0, float("nan"), 1, ["real \u00b7 p(fake) < 0.001", "no relevance at all (empty map)"]),
    ],
)
def test_captions(label: int | None, probability: float, against: float, empty: int, caption: list[str]) -> None:
    row = AttributionRow("a.png", label, probability, "fake", "fake", empty, against, "o", "a")
    assert row.caption == ["a.png", *caption]
