"""Which images the attribution scripts explain, how they scale them, and what they call their results."""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from attribution.outputs import AttributionWriter, select_images
from PIL import Image

from images.bundled_photos import bundled_photos
from images.decoding import decode_image
from images.sets import find_loose_images
from utils.errors import UserError
from utils.files import read_npz
from utils.pictures import ContactSheets


def arguments(**given: Any) -> Namespace:
    defaults = dict.fromkeys(("images", "dataset_dir", "gan_name", "num_real", "num_fake", "num_instances"))
    return Namespace(**{**defaults, "have_classes": "auto", **given})


def write_images(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 6), (10, 20, 30)).save(folder / name)
    return folder


def test_bundled_photos_are_there_and_can_be_read() -> None:
    photos = dict(bundled_photos())
    assert {"astronaut", "coffee", "china", "flower"} <= photos.keys()
    for path in photos.values():
        assert min(decode_image(path).shape[:2]) >= 224


def test_bundled_photos_are_the_last_resort() -> None:
    image_set, source = select_images(arguments())
    assert [item.path for item in image_set.items] == [path for _, path in bundled_photos()]
    assert "bundled" in source


def test_given_images_go_before_the_data_set(tmp_path: Path) -> None:
    write_images(tmp_path, "x/1_fake/a.png", "one.png", "set/gan/0_real/r.png", "set/gan/1_fake/f.png")
    image_set, source = select_images(
        arguments(images=[tmp_path / "x", tmp_path / "one.png"], dataset_dir=tmp_path / "set", gan_name=["gan"])
    )
    assert [(item.name, item.label) for item in image_set.items] == [("x/1_fake/a.png", 1), ("one.png", None)]
    assert "--images" in source


def test_several_generators(tmp_path: Path) -> None:
    for gan in ("b", "a"):
        write_images(tmp_path / gan, "0_real/r.png", "0_real/s.png", "1_fake/f.png")
    image_set, source = select_images(arguments(dataset_dir=tmp_path, gan_name=["b", "a"], num_real=1))
    names = [item.name for item in image_set.items]
    assert names == ["b/0_real/r.png", "b/1_fake/f.png", "a/0_real/r.png", "a/1_fake/f.png"]
    assert "b, a" in source


def test_data_set_without_a_generator_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--gan_name"):
        select_images(arguments(dataset_dir=tmp_path))


def test_images_of_one_stem_do_not_overwrite_each_other(tmp_path: Path) -> None:
    images = write_images(tmp_path / "in", "a.png", "a.jpg", "A.bmp", "b.png", "sub/a.png")
    image_set = find_loose_images([images])
    writer = AttributionWriter(tmp_path / "out", image_set, title="t")
    for number, item in enumerate(image_set.items):
        relevance = np.full((6, 8), number - 1.0)
        writer.add(
            item,
            decode_image(item.path),
            relevance,
            probability=0.25,
            probability_of="fake",
            explained="fake",
            arrays={"logits": np.array([number])},
        )
    *sheets, table = writer.finish(seed=0, device="cpu", inputs={})
    assert len(sheets) == 1
    pictures = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("overlays/**/*.png")}
    assert pictures == {f"overlays/{name}.png" for name in ("a.png", "a.jpg", "A.bmp", "b", "sub/a")}
    lines = table.read_text().splitlines()
    assert len(lines) == 6
    for number, line in enumerate(lines[1:]):
        cells = line.split(",")
        assert cells[5] == ("1" if number <= 1 else "0")
        arrays = read_npz(tmp_path / "out" / cells[-1])
        assert arrays["logits"].tolist() == [number]
        assert (arrays["relevance"] == number - 1).all()
    assert '"empty_maps": 2' in (tmp_path / "out" / "attributions.csv.json").read_text()


def test_captions_and_order_of_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    captions: list[Sequence[str]] = []
    add = ContactSheets.add

    def listening(self: ContactSheets, pictures: Sequence[np.ndarray], caption: Sequence[str]) -> None:
        captions.append(caption)
        add(self, pictures, caption)

    monkeypatch.setattr(ContactSheets, "add", listening)
    image_set = find_loose_images([write_images(tmp_path / "in", "0_real/a.png", "1_fake/b.png", "c.png")])
    writer = AttributionWriter(tmp_path / "out", image_set, title="t")
    for item, relevance, probability in zip(reversed(image_set.items), (1.0, -1.0, 0.0), (0.5, 1.0, 0.0), strict=True):
        writer.add(
            item,
            decode_image(item.path),
            np.full((6, 8), relevance),
            probability=probability,
            probability_of="fake",
            explained="real" if item.label == 0 else "fake",
        )
    *_, table = writer.finish(seed=0, device="cpu", inputs={})
    assert captions == [
        ["c.png", "no label \u00b7 p(fake) = 0.500", "evidence for fake"],
        ["1_fake/b.png", "fake \u00b7 p(fake) > 0.999", "no evidence for fake (empty map)"],
        ["0_real/a.png", "real \u00b7 p(fake) < 0.001", "no evidence for real (empty map)"],
    ]
    assert [line.split(",")[0] for line in table.read_text().splitlines()[1:]] == [
        "0_real/a.png",
        "1_fake/b.png",
        "c.png",
    ]
