"""Which images training uses, in which order, for any number of processes and workers."""

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from training_helpers import write_images

from cr_ud.augmentation import Augmenter
from cr_ud.options import Augmentation, TrainingImages
from cr_ud.training_data import EpochOrder, Loaded, Loader
from cr_ud.training_sets import find_pairs, find_sets, find_training_set, sample_evenly, split_off
from images.distortions import jpeg
from images.sets import ImageSet
from passes.processes import Ranks
from utils.errors import UserError

AUGMENTER = Augmenter(Augmentation(load_size=24, crop_size=16))
LOADER = Loader(AUGMENTER)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("data") / "train", ("airplane", "cat", "dog"), number=5)


def names(image_set: ImageSet) -> list[str]:
    return [item.name for item in image_set.items]


def test_all_classes_or_some(root: Path) -> None:
    everything = find_training_set(root)
    assert len(everything) == 30
    assert names(everything)[0] == "train/airplane/0_real/0.png"
    some = find_training_set(root, ("dog", "cat"))
    assert names(some) == [name for name in names(everything) if "airplane" not in name]
    assert {item.class_name for item in some.items} == {"cat", "dog"}
    assert len(find_training_set(root, ("cat",), num_real=2, num_fake=3)) == 5


def test_label_folders_directly_below_the_root(root: Path) -> None:
    assert len(find_training_set(root / "cat")) == 10


def test_unselected_classes_may_be_incomplete(tmp_path: Path) -> None:
    write_images(tmp_path, ("cat",), number=1)
    (tmp_path / "dog" / "0_real").mkdir(parents=True)
    assert len(find_training_set(tmp_path, ("cat",))) == 2


@pytest.mark.parametrize(
    ("prepare", "classes", "message"),
    [
        (lambda root: None, (), "no folder .*: give the folder"),
        (lambda root: write_images(root, number=1), ("cow",), r"no class 'cow' .*there: cat, dog"),
        (lambda root: (root / "cat" / "0_real").mkdir(parents=True), ("cat",), "no (images in|folder) .*cat"),
        (lambda root: (root / "cat").mkdir(parents=True), ("cat",), "no 0_real and 1_fake directly in .*cat"),
    ],
)
def test_missing_images_are_named(tmp_path: Path, prepare, classes: tuple[str, ...], message: str) -> None:
    prepare(tmp_path / "train")
    with pytest.raises(UserError, match=message):
        find_training_set(tmp_path / "train", classes)


def test_one_label_empty(tmp_path: Path) -> None:
    write_images(tmp_path, ("cat",), number=1)
    (tmp_path / "cat" / "1_fake" / "0.png").unlink()
    with pytest.raises(UserError, match=r"no images in .*cat/1_fake"):
        find_training_set(tmp_path)


def test_held_out_images_are_a_seeded_share_of_each_class_and_label(root: Path) -> None:
    everything = find_training_set(root)
    kept, held_out, sources = split_off(everything, 0.4, seed=0)
    assert sources == len(held_out)
    assert sorted(names(kept) + names(held_out)) == sorted(names(everything))
    assert held_out.counts() == {name: {"real": 2, "fake": 2} for name in ("airplane", "cat", "dog")}
    assert names(split_off(everything, 0.4, seed=0)[1]) == names(held_out)
    assert names(split_off(everything, 0.4, seed=1)[1]) != names(held_out)


def test_pairs_are_held_out_together(root: Path) -> None:
    kept, held_out, sources = split_off(find_training_set(root), 0.4, seed=0, pairs=True)
    assert sources == len(held_out) // 2
    assert held_out.counts() == {name: {"real": 2, "fake": 2} for name in ("airplane", "cat", "dog")}
    assert len(find_pairs(held_out)) == 6
    assert len(find_pairs(kept)) == 9
    other = split_off(find_training_set(root), 0.4, seed=1, pairs=True)[1]
    assert names(other) != names(held_out)
    with pytest.raises(UserError, match=r"cat/4 in \S+ is not one real and one fake"):
        split_off(find_training_set(root, ("cat",), num_real=4), 0.4, seed=0, pairs=True)


def renamed(root: Path, names: list[str]) -> Path:
    """One class whose images of either label have these names."""
    image = write_images(root.parent / "one", ("cat",), number=1) / "cat" / "0_real" / "0.png"
    for folder in ("0_real", "1_fake"):
        (root / "cat" / folder).mkdir(parents=True)
        for name in names:
            shutil.copy(image, root / "cat" / folder / f"{name}.png")
    return root


@pytest.mark.parametrize(
    ("names", "source"),
    [
        ([f"photo{photo}_{row}_{column}" for photo in range(6) for row in (0, 1) for column in (0, 1)], "_"),
        ([f"video{video:02}-frame{frame:04}" for video in range(6) for frame in range(3)], "-"),
        ([f"{synset}_{photo}_{tile}" for synset in ("n01", "n02") for photo in range(5) for tile in (0, 1)], None),
    ],
)
def test_tiles_and_frames_of_one_source_are_held_out_together(
    tmp_path: Path, names: list[str], source: str | None
) -> None:
    kept, held_out, sources = split_off(find_training_set(renamed(tmp_path / "train", names)), 0.3, seed=0)

    def sources_of(image_set: ImageSet) -> set[tuple[int | None, str]]:
        cut = (lambda stem: stem.split(source)[0]) if source else (lambda stem: stem.rsplit("_", 1)[0])
        return {(item.label, cut(item.path.stem)) for item in image_set.items}

    assert not sources_of(kept) & sources_of(held_out)
    assert len(sources_of(held_out)) == sources
    assert len(held_out) == pytest.approx(0.3 * 2 * len(names), abs=6)


def test_names_that_all_begin_alike_show_no_sources(tmp_path: Path) -> None:
    root = renamed(tmp_path / "train", [f"img_{number:04}" for number in range(10)])
    _, held_out, sources = split_off(find_training_set(root), 0.3, seed=0)
    assert sources == len(held_out) == 6


def test_zero_means_all_whatever_stands_for_both(root: Path) -> None:
    sets = find_sets(TrainingImages(root, no_validation=True, num_real=0, num_instances=2))
    assert sets.training.counts() == {name: {"real": 5, "fake": 2} for name in ("airplane", "cat", "dog")}


def test_validation_images_among_the_training_images_are_told_by_content(root: Path, tmp_path: Path) -> None:
    copy = tmp_path / "val" / "horse"
    for folder in ("0_real", "1_fake"):
        (copy / folder).mkdir(parents=True)
        shutil.copy(root / "cat" / folder / "0.png", copy / folder / "other.png")
    for val_dir, shared in ((root, 30), (root / "cat", 10), (tmp_path / "val", 2)):
        assert f"{shared} of the {shared} validation images" in " ".join(
            find_sets(TrainingImages(root, val_dir)).warnings
        )
    assert not find_sets(TrainingImages(root, write_images(tmp_path / "new", number=1, size=25))).warnings


def test_splits_are_taken_for_classes_only_if_named(tmp_path: Path) -> None:
    root = write_images(tmp_path / "gan", ("train", "val"), number=1)
    with pytest.raises(UserError, match=rf"look like splits.*--train_dir {root}/train.*--classes train,val"):
        find_training_set(root)
    assert len(find_training_set(root, ("train", "val"))) == 4


def test_what_tells_real_from_fake_beside_the_picture_is_said_and_can_be_taken_away(tmp_path: Path) -> None:
    root = write_images(tmp_path / "train", ("cat",), number=3, size=40)
    for path in sorted((root / "cat" / "1_fake").iterdir()):
        Image.open(path).convert("RGB").save(path, "JPEG", quality=80)
    assert "file format" in " ".join(find_sets(TrainingImages(root, no_validation=True)).warnings)
    sets = find_sets(TrainingImages(root, no_validation=True, equalize=True))
    (loaded,) = Loader(Augmenter(Augmentation(blur_jpg=0, load_size=0, crop_size=40, flip=False))).training(
        EpochOrder(sets.training, 6), 0
    )
    for image, position in zip(loaded.images, loaded.positions, strict=True):
        pixels = np.array(Image.open(sets.training.items[position].path))
        np.testing.assert_array_equal(image, jpeg(pixels, 80, "pil"))
    assert sets.training.digest() != find_training_set(root).digest()


@pytest.mark.parametrize("share", [0.0, 1.0, 0.01, 0.99])
def test_useless_shares_are_refused(root: Path, share: float) -> None:
    with pytest.raises(UserError, match="--val_share"):
        split_off(find_training_set(root), share, seed=0)


def test_even_sample(root: Path) -> None:
    sample = sample_evenly(find_training_set(root), 8, seed=0)
    assert [sum(item.label == label for item in sample.items) for label in (0, 1)] == [4, 4]
    assert len(sample_evenly(sample, 0, seed=0)) == len(sample_evenly(sample, 100, seed=0)) == 8


def positions_by_step(order: EpochOrder, epoch: int, first_step: int = 0) -> list[list[int]]:
    steps: list[list[int]] = [[]]
    for micro_batch in order.micro_batches(epoch, first_step):
        steps[-1] += micro_batch.positions
        if micro_batch.is_last:
            steps.append([])
    return steps[:-1]


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("pairs", [False, True])
def test_steps_do_not_depend_on_processes_and_micro_batches(
    root: Path, world_size: int, accumulate: int, pairs: bool
) -> None:
    images = find_training_set(root)
    alone = positions_by_step(EpochOrder(images, 8, pairs=pairs), 3)
    orders = [
        EpochOrder(images, 8, accumulate, ranks=Ranks(rank, world_size), pairs=pairs) for rank in range(world_size)
    ]
    shares = [positions_by_step(order, 3) for order in orders]
    together = [[place for part in parts for place in part] for parts in zip(*shares, strict=True)]
    assert together == alone
    assert [len(step) for step in alone] == [8, 8, 8, 6]
    assert {micro.step_size for order in orders for micro in order.micro_batches(3)} == {8, 6}


def test_every_epoch_is_another_permutation_and_can_be_entered_anywhere(root: Path) -> None:
    order = EpochOrder(find_training_set(root), 7, seed=5)
    first, second = (positions_by_step(order, epoch) for epoch in (0, 1))
    for steps in (first, second):
        assert sorted(place for step in steps for place in step) == list(range(30))
    assert first != second
    assert positions_by_step(order, 1, first_step=2) == second[2:]


def test_a_last_step_smaller_than_the_number_of_processes(root: Path) -> None:
    images = find_training_set(root).subset(range(5))
    orders = [EpochOrder(images, 4, ranks=Ranks(rank, 4)) for rank in range(4)]
    last = [list(order.micro_batches(0))[-1] for order in orders]
    assert [len(micro.positions) for micro in last] == [1, 0, 0, 0]
    loaded = list(LOADER.training(orders[3], 0))[-1]
    assert loaded.images.shape == (1, 16, 16, 3)
    assert loaded.positions == ()


def test_balanced_order_draws_real_and_fake_equally_often(root: Path) -> None:
    images = find_training_set(root, num_real=5, num_fake=1)
    order = EpochOrder(images, 4, balance=True)
    labels = np.array([item.label for item in images.items])
    drawn = np.concatenate([labels[order.positions(epoch)] for epoch in range(200)])
    assert drawn.mean() == pytest.approx(0.5, abs=0.03)


def test_more_processes_than_images_in_a_step_are_refused(root: Path) -> None:
    with pytest.raises(UserError, match="--bsize 4 is less than 3 processes times 2"):
        EpochOrder(find_training_set(root), 4, 2, ranks=Ranks(0, 3))


def same(one: Loaded, other: Loaded) -> bool:
    return one.positions == other.positions and np.array_equal(one.images, other.images)


def test_images_do_not_depend_on_workers_or_on_where_an_epoch_is_entered(root: Path) -> None:
    order = EpochOrder(find_training_set(root), 8)
    alone = list(LOADER.training(order, 1))
    with_workers = list(Loader(AUGMENTER, num_workers=2).training(order, 1))
    entered = list(LOADER.training(order, 1, first_step=2))
    assert all(same(*pair) for pair in zip(alone, with_workers, strict=True))
    assert all(same(*pair) for pair in zip(alone[2:], entered, strict=True))
    again = list(LOADER.training(order, 2))
    assert not any(same(*pair) for pair in zip(alone, again, strict=True))


def test_labels_go_with_the_images(root: Path) -> None:
    images = find_training_set(root)
    for loaded in LOADER.training(EpochOrder(images, 8), 0):
        assert loaded.targets.tolist() == [images.items[place].label for place in loaded.positions]


def test_validation_is_dealt_out_to_all_processes(root: Path) -> None:
    images = find_training_set(root)

    def places(rank: int, world_size: int) -> list[int]:
        batches = LOADER.validation(images, 4, ranks=Ranks(rank, world_size))
        return [place for loaded in batches for place in loaded.positions]

    assert places(0, 1) == list(range(30))
    assert sorted(places(0, 2) + places(1, 2)) == list(range(30))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_bad_images_stop_or_are_left_out(tmp_path: Path, num_workers: int) -> None:
    root = write_images(tmp_path / "train", ("cat",), number=3)
    bad = root / "cat" / "0_real" / "1.png"
    bad.write_bytes(bad.read_bytes()[:100])
    order = EpochOrder(find_training_set(root), 3)
    with pytest.raises(UserError, match=r"^[^\n]*cat/0_real/1\.png is damaged[^\n]*$"):
        list(Loader(AUGMENTER, num_workers=num_workers).training(order, 0))
    loaded = list(Loader(AUGMENTER, num_workers=num_workers, skip_bad_images=True).training(order, 0))
    assert sorted(place for batch in loaded for place in batch.positions) == [0, 2, 3, 4, 5]
    assert [reason for batch in loaded for reason in batch.failures] == [
        f"{bad} is damaged or not an image: replace or remove it, or use --skip_bad_images"
    ]


def pair_name(images: ImageSet, place: int) -> tuple[str, str]:
    return images.items[place].class_name, images.items[place].path.stem


def test_every_step_holds_whole_pairs(root: Path) -> None:
    images = find_training_set(root)
    order = EpochOrder(images, 8, pairs=True)
    first, second = (positions_by_step(order, epoch) for epoch in (0, 1))
    assert [len(step) for step in first] == [8, 8, 8, 6]
    for step in first + second:
        assert set(Counter(pair_name(images, place) for place in step).values()) == {2}
        assert [images.items[place].label for place in step] == [0, 1] * (len(step) // 2)
    assert sorted(place for step in first for place in step) == list(range(30))
    assert first != second
    assert positions_by_step(order, 1, first_step=2) == second[2:]


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    """Every fake is a copy of the real image of the same name."""
    root = write_images(tmp_path_factory.mktemp("twins") / "train", number=5, size=40)
    for folder in root.iterdir():
        shutil.copytree(folder / "0_real", folder / "1_fake", dirs_exist_ok=True)
    return find_training_set(root)


def augmented(order: EpochOrder, epoch: int) -> dict[int, np.ndarray]:
    loader = Loader(Augmenter(Augmentation(load_size=0, crop_size=16)))
    return {
        place: image
        for loaded in loader.training(order, epoch)
        for place, image in zip(loaded.positions, loaded.images, strict=False)
    }


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_pairs_are_augmented_alike(twins: ImageSet, world_size: int) -> None:
    def images(epoch: int) -> dict[int, np.ndarray]:
        orders = [EpochOrder(twins, 8, 2, ranks=Ranks(rank, world_size), pairs=True) for rank in range(world_size)]
        return {place: image for order in orders for place, image in augmented(order, epoch).items()}

    first, second = images(0), images(1)
    assert len(first) == 20
    for real, fake in find_pairs(twins):
        np.testing.assert_array_equal(first[real], first[fake])
        assert not np.array_equal(first[real], second[real])
    alone = augmented(EpochOrder(twins, 8, pairs=True), 0)
    assert all(np.array_equal(alone[place], first[place]) for place in alone)


def test_without_pairs_every_image_is_augmented_on_its_own(twins: ImageSet) -> None:
    images = augmented(EpochOrder(twins, 8), 0)
    assert not any(np.array_equal(images[real], images[fake]) for real, fake in find_pairs(twins))


def test_the_partner_of_a_bad_image_stays(tmp_path: Path) -> None:
    root = write_images(tmp_path / "train", ("cat",), number=3)
    (root / "cat" / "1_fake" / "1.png").write_bytes(b"no image")
    order = EpochOrder(find_training_set(root), 4, pairs=True)
    loaded = list(Loader(AUGMENTER, skip_bad_images=True).training(order, 0))
    assert sorted(place for batch in loaded for place in batch.positions) == [0, 1, 2, 3, 5]


@pytest.mark.parametrize(
    ("removed", "copied", "name"),
    [
        ("cat/1_fake/2.png", None, "cat/2"),
        ("dog/0_real/0.png", None, "dog/0"),
        (None, "cat/1_fake/1.jpg", "cat/1"),
        ("cat/1_fake/1.png", "cat/0_real/1.jpg", "cat/1"),
    ],
)
def test_images_without_one_partner_are_named(
    tmp_path: Path, removed: str | None, copied: str | None, name: str
) -> None:
    root = write_images(tmp_path / "train", number=3)
    if removed:
        (root / removed).unlink()
    if copied:
        shutil.copy(root / "dog" / "0_real" / "1.png", root / copied)
    with pytest.raises(UserError, match=rf"^--pairs: {name} in [^\n]* is not one real and one fake [^\n]*$"):
        EpochOrder(find_training_set(root), 4, pairs=True)


@pytest.mark.parametrize(("batch_size", "balance"), [(5, False), (4, True)])
def test_pairs_need_even_steps_and_no_balance(root: Path, batch_size: int, balance: bool) -> None:
    with pytest.raises(UserError, match="even --bsize, and excludes --class_bal"):
        EpochOrder(find_training_set(root), batch_size, balance=balance, pairs=True)
