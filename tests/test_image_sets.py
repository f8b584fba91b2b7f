import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from images.sets import FAKE, REAL, ImageSet, find_image_pair, find_image_set, find_loose_images
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
    with pytest.raises(UserError, match="no label folders"):
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


@pytest.mark.parametrize("gan_name", ["..", "../x", "a/b", "", "/", "-rf", "a\n", "\x1b[2J"])
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


def test_digest_follows_names_and_content_not_place_or_time(
    flat: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    digest = find_image_set(flat, "gan").digest()
    moved = tmp_path_factory.mktemp("moved")
    (flat / "gan").rename(moved / "gan")
    image = moved / "gan" / "0_real" / "b.png"
    os.utime(image, (0, 0))
    assert find_image_set(moved, "gan").digest() == digest
    assert find_image_set(moved, "gan", num_real=2).digest() != digest
    image.write_bytes(b"B.png")
    assert find_image_set(moved, "gan").digest() != digest
    image.write_bytes(b"b.png")
    assert find_image_set(moved, "gan").digest() == digest
    image_set = find_image_set(moved, "gan")
    image.unlink()
    with pytest.raises(UserError, match=r"b\.png"):
        image_set.digest()


def test_digest_tells_bitmaps_of_one_size_apart(flat: Path) -> None:
    image = flat / "gan" / "0_real" / "c.bmp"
    digests = set()
    for place in (0, 3):
        values = np.zeros((300, 300, 3), np.uint8)
        values[place] = 255
        Image.fromarray(values).save(image)
        digests.add(find_image_set(flat, "gan").digest())
    assert len(digests) == 2


def test_digest_reads_both_ends_of_large_files(flat: Path) -> None:
    image = flat / "gan" / "0_real" / "b.png"
    digests = set()
    for place in (0, 70_000, 199_999):
        content = bytearray(200_000)
        content[place] = 1
        image.write_bytes(content)
        digests.add(find_image_set(flat, "gan").digest())
    # what lies in the middle is not looked at, and so stands for a file of zeros
    image.write_bytes(bytes(200_000))
    digests.add(find_image_set(flat, "gan").digest())
    assert len(digests) == 3


def test_subset_keeps_the_order_given(flat: Path) -> None:
    image_set = find_image_set(flat, "gan")
    assert names(image_set.subset([4, 0])) == ["gan/1_fake/y.TIFF", "gan/0_real/10.webp"]


@pytest.mark.parametrize(("real", "fake"), [("nature", "ai"), ("Real", "FAKE"), ("0_Real", "1_fake")])
def test_other_label_folders_are_recognised_and_said(tmp_path: Path, real: str, fake: str) -> None:
    touch(tmp_path / "gan" / real, "a.png")
    touch(tmp_path / "gan" / fake, "b.png")
    image_set = find_image_set(tmp_path, "gan")
    assert [(item.name, item.label) for item in image_set.items] == [
        (f"gan/{real}/a.png", REAL),
        (f"gan/{fake}/b.png", FAKE),
    ]
    (warning,) = image_set.warnings
    assert f"{real} is read as real images" in warning


def test_two_folders_for_one_label(flat: Path) -> None:
    touch(flat / "gan" / "real", "a.png")
    with pytest.raises(UserError, match="0_real and real, both for real"):
        find_image_set(flat, "gan")


def test_splits_are_no_classes(tmp_path: Path) -> None:
    for split in ("train", "val"):
        touch(tmp_path / "gan" / split / "nature", "a.png")
        touch(tmp_path / "gan" / split / "ai", "a.png")
    with pytest.raises(UserError, match=r"train and val.*--gan_name val.*--have_classes True"):
        find_image_set(tmp_path, "gan")
    assert len(find_image_set(tmp_path, "gan", have_classes=True)) == 4
    assert len(find_image_set(tmp_path / "gan", "val")) == 2


def test_train_may_be_a_class(nested: Path) -> None:
    for label in ("0_real", "1_fake"):
        touch(nested / "gan" / "train" / label, "a.png")
    assert set(find_image_set(nested, "gan").counts()) == {"cat", "dog", "train"}


def test_half_unpacked_class_is_said(nested: Path) -> None:
    (warning,) = find_image_set(nested, "gan").warnings
    assert "leftovers" in warning


def test_files_left_out_are_counted(flat: Path) -> None:
    touch(flat / "gan" / "1_fake" / "more", "1.png", "2.png")
    suffixes, deeper = find_image_set(flat, "gan").warnings
    assert "2 files left out by suffix (1 .db, 1 .txt)" in suffixes
    assert "2 images left out" in deeper
    assert "1_fake/more" in deeper
    assert find_loose_images([flat / "gan" / "0_real"]).warnings == (suffixes,)


def test_one_label_alone_where_the_caller_says_so(tmp_path: Path) -> None:
    touch(tmp_path / "gan" / "0_real", "a.png")
    assert find_image_set(tmp_path, "gan", alone=True).counts() == {"gan": {"real": 1}}
    with pytest.raises(UserError, match=r"no folder .*1_fake beside 0_real.*--images"):
        find_image_set(tmp_path, "gan")


def test_what_is_there_is_listed(tmp_path: Path) -> None:
    for folder in ("photos", "made"):
        touch(tmp_path / "gan" / folder, "a.png")
    with pytest.raises(UserError, match=r"there: made, photos.*--images_from.*--real and --fake"):
        find_image_set(tmp_path, "gan")


def test_linked_folders_are_followed_once(tmp_path: Path) -> None:
    touch(tmp_path / "elsewhere", "a.png")
    touch(tmp_path / "real" / "cat", "b.png")
    touch(tmp_path / "fake", "c.png")
    (tmp_path / "real" / "dog").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "real" / "cat" / "loop").symlink_to(tmp_path / "real")
    pair = find_image_pair(tmp_path / "real", tmp_path / "fake", "mine")
    assert names(pair) == ["real/cat/b.png", "real/dog/a.png", "fake/c.png"]
    assert names(find_loose_images([tmp_path / "real"])) == ["cat/b.png", "dog/a.png"]


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
