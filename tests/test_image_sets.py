import os
from pathlib import Path

import pytest

from images.sets import ImageSet, composition, find_image_set, find_loose_images
from utils.errors import UserError


def touch(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(name.encode())


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    """Generator `gan` without classes: three real, two fake images, and things to pass over."""
    touch(tmp_path / "gan" / "0_real", "b.png", "a.JPG", "10.webp", ".hidden.png", "notes.txt", "Thumbs.db")
    touch(tmp_path / "gan" / "1_fake", "y.TIFF", "x.jpeg")
    (tmp_path / "gan" / "0_real" / "folder.png").mkdir()
    return tmp_path


@pytest.fixture
def nested(tmp_path: Path) -> Path:
    """Generator `gan` with classes dog and cat, two images of each label."""
    for class_name in ("dog", "cat"):
        touch(tmp_path / "gan" / class_name / "0_real", "1.png", "0.png")
        touch(tmp_path / "gan" / class_name / "1_fake", "3.png", "2.png")
    touch(tmp_path / "gan" / "leftovers", "z.png")
    return tmp_path


def names(image_set: ImageSet) -> list[str]:
    return [item.name for item in image_set.items]


@pytest.mark.parametrize("have_classes", ["auto", False])
def test_flat_layout(flat: Path, have_classes: bool) -> None:
    image_set = find_image_set(flat, "gan", have_classes=have_classes)
    assert names(image_set) == [
        "gan/0_real/10.webp",
        "gan/0_real/a.JPG",
        "gan/0_real/b.png",
        "gan/1_fake/x.jpeg",
        "gan/1_fake/y.TIFF",
    ]
    assert [item.label for item in image_set.items] == [0, 0, 0, 1, 1]
    assert {(item.class_name, item.generator) for item in image_set.items} == {("", "gan")}
    assert all(item.path == flat / item.name for item in image_set.items)
    assert image_set.counts() == {"gan": {"real": 3, "fake": 2}}


@pytest.mark.parametrize("have_classes", ["auto", True])
def test_class_layout(nested: Path, have_classes: bool) -> None:
    image_set = find_image_set(nested, "gan", have_classes=have_classes)
    assert names(image_set) == [
        f"gan/{class_name}/{file}"
        for class_name in ("cat", "dog")
        for file in ("0_real/0.png", "0_real/1.png", "1_fake/2.png", "1_fake/3.png")
    ]
    assert image_set.counts() == {"cat": {"real": 2, "fake": 2}, "dog": {"real": 2, "fake": 2}}


@pytest.mark.parametrize(
    ("limits", "real", "fake"),
    [
        ({}, 2, 2),
        ({"num_real": 1}, 1, 2),
        ({"num_fake": 1, "num_real": 0}, 2, 1),
        ({"num_instances": 1}, 1, 1),
        ({"num_instances": 1, "num_fake": 2}, 1, 2),
        ({"num_instances": 1, "num_real": 0}, 2, 1),
        ({"num_instances": 99}, 2, 2),
    ],
)
def test_limits_count_per_class_and_label(nested: Path, limits: dict[str, int], real: int, fake: int) -> None:
    image_set = find_image_set(nested, "gan", **limits)
    assert image_set.counts() == {name: {"real": real, "fake": fake} for name in ("cat", "dog")}
    assert names(image_set.with_label(0))[0] == "gan/cat/0_real/0.png"


def test_one_label_needs_one_folder(tmp_path: Path) -> None:
    touch(tmp_path / "gan" / "1_fake", "a.png")
    assert names(find_image_set(tmp_path, "gan", labels=(1,))) == ["gan/1_fake/a.png"]
    with pytest.raises(UserError, match="0_real"):
        find_image_set(tmp_path, "gan")


def test_missing_things_are_named(flat: Path) -> None:
    touch(flat / "other" / "misc", "a.png")
    with pytest.raises(UserError, match="no data set folder"):
        find_image_set(flat / "nowhere", "gan")
    with pytest.raises(UserError, match=r"there: gan, other"):
        find_image_set(flat, "progan")
    with pytest.raises(UserError, match="no 0_real and 1_fake"):
        find_image_set(flat, "other")
    with pytest.raises(UserError, match="--have_classes False"):
        find_image_set(flat, "gan", have_classes=True)


def test_classes_denied_although_there(nested: Path) -> None:
    with pytest.raises(UserError, match="--have_classes True"):
        find_image_set(nested, "gan", have_classes=False)


def test_mixed_layout_needs_a_decision(nested: Path) -> None:
    for label in ("0_real", "1_fake"):
        touch(nested / "gan" / label, "direct.png")
    with pytest.raises(UserError, match=r"directly and in class folders \(cat, dog\).*--have_classes"):
        find_image_set(nested, "gan")
    assert len(find_image_set(nested, "gan", have_classes=True)) == 8
    assert len(find_image_set(nested, "gan", have_classes=False)) == 2


def test_empty_class(nested: Path) -> None:
    for image in (nested / "gan" / "dog" / "1_fake").iterdir():
        image.unlink()
    with pytest.raises(UserError, match=r"no images in .*dog/1_fake"):
        find_image_set(nested, "gan")


@pytest.mark.parametrize("limit", ["num_real", "num_fake", "num_instances"])
def test_negative_numbers(flat: Path, limit: str) -> None:
    with pytest.raises(UserError, match="-1"):
        find_image_set(flat, "gan", **{limit: -1})


@pytest.mark.parametrize("gan_name", ["..", "../x", "a/b", "", "/"])
def test_gan_name_stays_inside(flat: Path, gan_name: str) -> None:
    (flat / "x").mkdir()
    with pytest.raises(UserError, match="not a folder name"):
        find_image_set(flat / "x", gan_name)


def test_order_does_not_depend_on_the_file_system(flat: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = names(find_image_set(flat, "gan"))
    real_scandir = os.scandir

    class Reversed:
        def __init__(self, folder: Path) -> None:
            with real_scandir(folder) as entries:
                self.entries = sorted(entries, key=lambda entry: entry.name, reverse=True)

        def __enter__(self) -> list[os.DirEntry[str]]:
            return self.entries

        def __exit__(self, *error: object) -> None:
            pass

    monkeypatch.setattr(os, "scandir", Reversed)
    assert names(find_image_set(flat, "gan")) == expected


def test_digest_follows_names_and_sizes_not_place_or_time(flat: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    digest = find_image_set(flat, "gan").digest()
    moved = tmp_path_factory.mktemp("moved")
    (flat / "gan").rename(moved / "gan")
    image = moved / "gan" / "0_real" / "b.png"
    os.utime(image, (0, 0))
    assert find_image_set(moved, "gan").digest() == digest
    assert find_image_set(moved, "gan", num_real=2).digest() != digest
    image.write_bytes(b"longer than before")
    assert find_image_set(moved, "gan").digest() != digest
    image_set = find_image_set(moved, "gan")
    image.unlink()
    with pytest.raises(UserError, match=r"b\.png"):
        image_set.digest()


def test_subset_keeps_the_order_given(flat: Path) -> None:
    image_set = find_image_set(flat, "gan")
    assert names(image_set.subset([4, 0])) == ["gan/1_fake/y.TIFF", "gan/0_real/10.webp"]


def test_composition_warns_of_different_formats(tmp_path: Path) -> None:
    touch(tmp_path / "gan" / "0_real", "a.jpg", "b.JPEG")
    touch(tmp_path / "gan" / "1_fake", "a.png")
    counts, warning = composition(find_image_set(tmp_path, "gan"))
    assert counts == {("real", ".jpg"): 2, ("fake", ".png"): 1}
    assert warning is not None
    assert "real: 2 .jpg; fake: 1 .png" in warning


def test_composition_is_silent_where_formats_agree(nested: Path) -> None:
    counts, warning = composition(find_image_set(nested, "gan"))
    assert counts == {("real", ".png"): 4, ("fake", ".png"): 4}
    assert warning is None
    assert composition(find_image_set(nested, "gan", labels=(1,)))[1] is None


def test_loose_images(nested: Path) -> None:
    touch(nested / "loose" / "b" / ".secret", "s.png")
    touch(nested / "loose", "a.png", "c.PNG", "readme.txt")
    touch(nested / "loose" / "b", "z.jpg")
    folder = nested / "loose"
    image_set = find_loose_images([folder / "c.PNG", folder, nested / "gan" / "dog", folder / "a.png"])
    assert image_set.root == nested
    assert names(image_set) == [
        "loose/c.PNG",
        "loose/a.png",
        "loose/b/z.jpg",
        "gan/dog/0_real/0.png",
        "gan/dog/0_real/1.png",
        "gan/dog/1_fake/2.png",
        "gan/dog/1_fake/3.png",
    ]
    assert [item.label for item in image_set.items] == [None, None, None, 0, 0, 1, 1]
    assert image_set.counts() == {"images": {"unknown": 3, "real": 2, "fake": 2}}


def test_loose_images_relative_to_the_working_folder(nested: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(nested / "gan" / "dog" / "1_fake")
    image_set = find_loose_images(["../0_real/0.png", "2.png"])
    assert names(image_set) == ["0_real/0.png", "1_fake/2.png"]
    assert [item.label for item in image_set.items] == [0, 1]


def test_loose_images_missing(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no such file or folder"):
        find_loose_images([tmp_path / "gone.png"])
    with pytest.raises(UserError, match="no images below"):
        find_loose_images([tmp_path / "empty"])
    with pytest.raises(UserError, match="no images given"):
        find_loose_images([])
