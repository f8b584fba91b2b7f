"""Images from settings: folders and lists, clusters, warnings, equalisation, what two sets share."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from images.choice import ImageChoice, Reading
from images.composition import composition_warning, equalization_of
from images.decoding import Crop, Equalization
from images.finding import find_images
from images.sets import FAKE, REAL, ImageSet, duplicates, find_image_set, find_loose_images, shared_images
from utils.errors import UserError
from utils.settings import read_settings

RNG = np.random.default_rng(0)


def write_image(path: Path, *, side: int = 16, **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RNG.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(path, **options)


def fill(folder: Path, count: int = 4, suffix: str = ".png", side: int = 16, **options: object) -> None:
    for place in range(count):
        write_image(folder / f"{place}{suffix}", side=side, **options)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Generators `flat` and `nested` (classes cat and dog), three images of each label, all PNG of one size."""
    for folder in ("flat", "nested/cat", "nested/dog"):
        for label in ("0_real", "1_fake"):
            fill(tmp_path / folder / label, 3)
    return tmp_path


def warning_of(tmp_path: Path) -> str | None:
    return composition_warning(find_image_set(tmp_path, "gan"))


def test_flags_make_the_choice(tmp_path: Path) -> None:
    line = f"--dataset_dir {tmp_path} --gan_name a b --have_classes False --num_real 0 --equalize --crop center"
    choice, reading = read_settings("d", "e", ImageChoice, Reading, argv=[*line.split(), "--resize", "256"])
    assert choice == ImageChoice(tmp_path, ("a", "b"), have_classes=False, num_real=0, equalize=True)
    assert reading.cropping() == Crop("center", resize=256)
    assert read_settings("d", "e", ImageChoice, argv=[])[0].have_classes == "auto"
    assert read_settings("d", "e", ImageChoice, argv=["--have_classes", "AUTO"])[0].have_classes == "auto"


def test_every_generator_is_found(data: Path) -> None:
    sets = find_images(ImageChoice(data, ("nested", "flat"), num_instances=2, num_real=0))
    assert {name: image_set.counts() for name, image_set in sets.items()} == {
        "nested": {"cat": {"real": 3, "fake": 2}, "dog": {"real": 3, "fake": 2}},
        "flat": {"flat": {"real": 3, "fake": 2}},
    }
    assert all(image_set.warnings == () for image_set in sets.values())


def test_nothing_named(data: Path) -> None:
    with pytest.raises(UserError, match=r"--dataset_dir and --gan_name, or --images_from"):
        find_images(ImageChoice())
    with pytest.raises(UserError, match="--gan_name"):
        find_images(ImageChoice(data))
    with pytest.raises(UserError, match="leave out one"):
        ImageChoice(data, images_from=data / "list.csv")


def listed(data: Path, *lines: str) -> Path:
    file = data / "list.csv"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8-sig")
    return file


def test_list_of_images(data: Path) -> None:
    file = listed(
        data,
        "path,label,class,generator,cluster",
        "flat/0_real/1.png,0,,mine,p1",
        f"{data}/nested/cat/../dog/1_fake/0.png,Fake,dog,mine,p2",
        "flat/0_real/0.png,real,,mine,p1",
        "flat/1_fake/0.png,ai,,other,",
        "flat/0_real/0.png,nature,,other,",
    )
    sets = find_images(ImageChoice(images_from=file))
    assert [(item.name, item.label, item.class_name, item.cluster) for item in sets["mine"].items] == [
        ("flat/0_real/1.png", REAL, "", "p1"),
        ("nested/dog/1_fake/0.png", FAKE, "dog", "p2"),
        ("flat/0_real/0.png", REAL, "", "p1"),
    ]
    assert all(item.path == data / item.name for item in sets["mine"].items)
    assert list(sets) == ["mine", "other"]
    assert list(find_images(ImageChoice(images_from=file, gan_name=("other",)))) == ["other"]
    assert len(find_images(ImageChoice(images_from=file, num_real=1))["mine"]) == 2
    assert len(find_images(ImageChoice(images_from=file), labels=(FAKE,))["mine"]) == 1
    with pytest.raises(UserError, match="no images of third"):
        find_images(ImageChoice(images_from=file, gan_name=("third",)))


def test_list_of_images_elsewhere(data: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The root is then the folder of all images, and names stay below it."""
    file = tmp_path_factory.mktemp("lists") / "mine.csv"
    file.write_text(f"label,path\n0,{data}/flat/0_real/0.png\n1,{data}/flat/1_fake/0.png\n")
    (image_set,) = find_images(ImageChoice(images_from=file)).values()
    assert [item.name for item in image_set.items] == ["0_real/0.png", "1_fake/0.png"]
    assert {item.generator for item in image_set.items} == {"mine"}


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["file,label", "a.png,0"], "columns file, label"),
        (["path,label", "a.png,2"], "line 2: give a path and a label"),
        (["path,label", ",1"], "line 2: give a path"),
        (["path,label", "a.png,0", "b.png"], "line 3"),
        (["path,label", "a.png,0", "./a.png,1"], r"line 3: \./a\.png is listed twice"),
        (["path,label,generator", "a.png,0,../x"], "line 2: '../x' is not a plain name"),
        (["path,label,class", "a.png,0,a/b"], "line 2: 'a/b' is not a plain name"),
        (["path,label", "a.png,0"], "no fake images of list"),
        (["path,label"], "lists no images"),
    ],
)
def test_lists_that_cannot_be_used(data: Path, lines: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        find_images(ImageChoice(images_from=listed(data, *lines)))


def clusters(data: Path, rule: str, gan_name: str = "nested") -> list[str]:
    return [item.cluster for item in find_images(ImageChoice(data, (gan_name,), cluster=rule))[gan_name].items]


def test_clusters_by_folder_leave_out_label_folders(data: Path) -> None:
    assert clusters(data, "folder") == ["nested/cat"] * 6 + ["nested/dog"] * 6
    with pytest.raises(UserError, match="all images of flat are in one"):
        clusters(data, "folder", "flat")


def test_clusters_by_pattern(data: Path) -> None:
    assert clusters(data, r"(\d)\.png", "flat") == ["0", "1", "2"] * 2
    assert clusters(data, r"\d", "flat") == ["0", "1", "2"] * 2
    assert clusters(data, "[01]", "nested") == ["cat/0", "cat/1", ""] * 2 + ["dog/0", "dog/1", ""] * 2
    (warning,) = find_images(ImageChoice(data, ("nested",), cluster="[01]"))["nested"].warnings
    assert "all but 4 of 12" in warning
    with pytest.raises(UserError, match="matches no file name"):
        clusters(data, "photo")
    with pytest.raises(UserError, match="not a regular expression"):
        clusters(data, "(")


def test_formats_are_judged_by_content(tmp_path: Path) -> None:
    """As after renaming all files to .png, which alone would give a perfect score."""
    fill(tmp_path / "gan" / "0_real")
    fill(tmp_path / "gan" / "1_fake", format="JPEG")
    warning = warning_of(tmp_path)
    assert warning is not None
    assert "file format (real: 4 PNG; fake: 4 JPEG)" in warning


def test_equal_formats_under_other_names_are_fine(tmp_path: Path) -> None:
    fill(tmp_path / "gan" / "0_real", suffix=".jpg")
    fill(tmp_path / "gan" / "1_fake", suffix=".jfif", format="JPEG")
    assert warning_of(tmp_path) is None


def test_qualities_and_sizes_are_compared(tmp_path: Path) -> None:
    fill(tmp_path / "gan" / "0_real", suffix=".jpg", quality=75)
    fill(tmp_path / "gan" / "1_fake", suffix=".jpg", quality=95, side=24)
    warning = warning_of(tmp_path)
    assert warning is not None
    assert "JPEG quality (real: median 75; fake: median 95)" in warning
    assert "height (real: median 16; fake: median 24)" in warning
    assert "file format" not in warning


def test_two_samples_of_one_source_are_alike(tmp_path: Path) -> None:
    for label in ("0_real", "1_fake"):
        for place, (quality, side) in enumerate(zip(RNG.integers(60, 96, 40), RNG.integers(16, 40, 40), strict=True)):
            write_image(tmp_path / "gan" / label / f"{place}.jpg", quality=int(quality), side=int(side))
    assert warning_of(tmp_path) is None


def test_unreadable_images_and_one_label_give_no_warning(tmp_path: Path) -> None:
    fill(tmp_path / "gan" / "0_real")
    fill(tmp_path / "gan" / "1_fake")
    (tmp_path / "gan" / "0_real" / "0.png").write_bytes(b"no image")
    assert warning_of(tmp_path) is None
    assert composition_warning(find_image_set(tmp_path, "gan").with_label(REAL)) is None


def test_warnings_are_collected(tmp_path: Path) -> None:
    fill(tmp_path / "gan" / "Real", suffix=".jpg")
    fill(tmp_path / "gan" / "Fake")
    shutil.copy(tmp_path / "gan" / "Real" / "1.jpg", tmp_path / "gan" / "Fake" / "again.jpg")
    (image_set,) = find_images(ImageChoice(tmp_path, ("gan",))).values()
    renamed, twice, formats = image_set.warnings
    assert "Real is read as real images" in renamed
    assert "gan/Real/1.jpg and gan/Fake/again.jpg" in twice
    assert "file format" in formats


def test_equalized_set(tmp_path: Path) -> None:
    fill(tmp_path / "gan" / "0_real", suffix=".jpg", quality=80, side=40)
    fill(tmp_path / "gan" / "1_fake", side=24)
    choice = ImageChoice(tmp_path, ("gan",), equalize=True)
    (image_set,) = find_images(choice).values()
    assert image_set.equalization == Equalization(24, 80)
    assert len(image_set.warnings) == 1
    assert "24x24" in image_set.warnings[0]
    # also where only fakes are shown, the reals count
    (fakes,) = find_images(choice, labels=(FAKE,)).values()
    assert fakes.equalization == Equalization(24, 80)
    assert {item.label for item in fakes.items} == {FAKE}
    assert fakes.subset([0]).equalization == Equalization(24, 80)
    assert replace(fakes, equalization=None).digest() != fakes.digest()


def test_equalization_without_jpeg_and_of_nothing(tmp_path: Path) -> None:
    fill(tmp_path / "a", 1)
    assert equalization_of(find_loose_images([tmp_path])) == Equalization(16, 95)
    (tmp_path / "a" / "0.png").write_bytes(b"")
    with pytest.raises(UserError, match="no image of"):
        equalization_of(find_loose_images([tmp_path]))


def shared(data: Path, first: str, second: str) -> int:
    sets: dict[str, ImageSet] = find_images(ImageChoice(data, (first, second)))
    return shared_images(sets[first], sets[second])


def test_shared_images_go_by_content(data: Path) -> None:
    """Equal names are not enough, and other names no obstacle."""
    assert shared(data, "flat", "nested") == 0
    for place in (0, 1):
        source = data / "flat" / "0_real" / f"{place}.png"
        shutil.copy(source, data / "nested" / "dog" / "1_fake" / f"copy of {place}.png")
    assert shared(data, "flat", "nested") == 2
    assert shared(data, "flat", "flat") == 6


def test_duplicates_are_across_labels_only(data: Path) -> None:
    real = data / "flat" / "0_real"
    shutil.copy(real / "0.png", real / "same.png")
    assert duplicates(find_image_set(data, "flat")) == []
    shutil.copy(real / "0.png", data / "flat" / "1_fake" / "same.png")
    ((earlier, later),) = duplicates(find_image_set(data, "flat"))
    assert (earlier.name, later.name) == ("flat/0_real/0.png", "flat/1_fake/same.png")
