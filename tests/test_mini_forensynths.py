"""Mini-ForenSynths: photographs, simulated generators and their training, pairs, measures, the whole data set."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from ranking_runs import Scripts, contents
from torch import nn

from images.decoding import decode_image
from images.distortions import blur, grayscale, jpeg
from mini_forensynths import build as building
from mini_forensynths import sets
from mini_forensynths.build import build
from mini_forensynths.files import save_weights
from mini_forensynths.generator_training import GeneratorTraining, generator_loss, train_generator
from mini_forensynths.generators import (
    SPECS,
    UPSAMPLING,
    GeneratorSpec,
    SimulatedGenerator,
    load_generator,
    reconstruct,
)
from mini_forensynths.measures import MEASURES, TO_YCBCR, high_frequency_energy, measure_set
from mini_forensynths.options import PARTS, DataSet, Photographs, Sizes
from mini_forensynths.photos import Photo, cut_tiles, find_photos, load_photo, split_photos, usable_photos
from mini_forensynths.real_generators import ENLARGEMENTS, NETWORKS, OPTIONAL, enlarge
from mini_forensynths.sets import (
    CHROMA,
    CONTROLS,
    LUMA,
    REAL,
    SIMULATED,
    TRAINING,
    Way,
    make_pair,
    make_part,
    part_name,
    set_names,
    with_luma_of,
)
from utils.errors import UserError
from utils.figures import save_picture

TILE = 32
SIZES = Sizes(tile=TILE, train_tile=TILE + 2, most_tiles=2)
SHARES = (0.25, 0.25, 0.5)
FIRST = SPECS[0].name
GENERATORS = [*SIMULATED, *(name for name in REAL if name != OPTIONAL)]
each_spec = pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Slopes of colour with noise: uint8 (H, W, 3)."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    slopes = np.stack([rows * 160 / height, columns * 160 / width, np.full((height, width), 90.0)], axis=2)
    noise = rng.normal(0, 12, (height, width, 1)) + rng.normal(0, 6, (height, width, 3))
    return np.clip(40 + slopes[:, :, rng.permutation(3)] + noise, 0, 255).astype(np.uint8)


def save_photo(path: Path, height: int = 72, width: int = 100, seed: int = 0, mode: str = "RGB") -> Photo:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture(height, width, seed)).convert(mode).save(path)
    return Photo(path.stem, path)


def new_generator(spec: GeneratorSpec) -> SimulatedGenerator:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return SimulatedGenerator(spec).eval()


class TinyNetwork(nn.Module):
    """A network that enlarges four times, in the place of the large ones."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 48, 3, padding=1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return nn.functional.pixel_shuffle(self.conv(images), 4)


@pytest.fixture(scope="module", autouse=True)
def tiny_networks() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in NETWORKS:
            patch.setitem(NETWORKS, name, TinyNetwork)
        yield


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four photographs, to be divided 1 : 1 : 2; not to be written to."""
    folder = tmp_path_factory.mktemp("photos")
    for seed, name in enumerate(("a.png", "b.jpg", "sub/c.png", "sub/d.jpg")):
        save_photo(folder / name, seed=seed)
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of every generator; not to be written to."""
    folder = tmp_path_factory.mktemp("weights")
    for spec in SPECS:
        save_weights(new_generator(spec), spec.name, folder / f"{spec.name}.safetensors")
    return folder


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of the networks that come with the project; not to be written to."""
    folder = tmp_path_factory.mktemp("networks")
    for name in NETWORKS:
        if name != OPTIONAL:
            save_weights(TinyNetwork(), name, folder / f"{name}.safetensors")
    return folder


@pytest.fixture(scope="module")
def generators(weights: Path, networks: Path) -> dict[str, Way]:
    return building._generators(building._weights(DataSet(weights, networks)))


# photographs


def test_names_are_sorted_and_unique(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = ["z.png", "a.png", "a.jpg", "a/b.png", "a-b.png", "a-b.png.png", "sub/deep/a.png", "sub/A b.JPG"]
    for file in files:
        save_photo(tmp_path / "photos" / file, 8, 8)
    found = find_photos(tmp_path / "photos")
    names = [photo.name for photo in found]
    assert names == sorted(set(names))
    assert sorted(photo.path.relative_to(tmp_path / "photos").as_posix() for photo in found) == sorted(files)
    assert {"z", "a", "a.png", "a-b", "sub-deep-a", "sub-A b"} <= set(names)
    monkeypatch.chdir(tmp_path / "photos" / "sub")
    assert [photo.name for photo in find_photos(Path("../../photos"))] == names


def test_bundled_photographs_can_be_used() -> None:
    found = find_photos(None)
    assert [photo.name for photo in found] == sorted({photo.name for photo in found})
    skipped: list[str] = []
    usable = list(usable_photos(found, Sizes().tile, "test", skipped, skip_bad_images=False))
    assert ([photo for photo, _ in usable], skipped) == (found, [])


@pytest.mark.parametrize(("folder", "words"), [("absent", "no such folder"), ("empty", "no images below")])
def test_no_photographs(folder: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=words) as caught:
        find_photos(tmp_path / folder)
    assert folder in str(caught.value)


def some_photos(count: int) -> list[Photo]:
    return [Photo(f"{number:03}", Path(f"{number}.png")) for number in range(count)]


@given(st.integers(21, 60), st.integers(0, 9), st.integers(0, 9), st.integers(0, 99))
def test_split_is_a_partition_and_repeats(count: int, train: int, val: int, seed: int) -> None:
    shares = (train / 20, val / 20, (20 - train - val) / 20)
    parts = split_photos(some_photos(count), shares, seed)
    assert tuple(parts) == PARTS
    assert sorted((photo for part in parts.values() for photo in part), key=lambda p: p.name) == some_photos(count)
    for part, share in zip(parts.values(), shares, strict=True):
        assert abs(len(part) - share * count) <= 1
        assert [photo.name for photo in part] == sorted(photo.name for photo in part)
    assert split_photos(some_photos(count), shares, seed) == parts


def test_split_depends_on_the_seed() -> None:
    splits = [split_photos(some_photos(20), (0.2, 0.3, 0.5), seed) for seed in range(3)]
    assert splits[0] != splits[1] != splits[2]


@pytest.mark.parametrize(
    "shares",
    [(0.5, 0.5, 0.5), (0.2, 0.2, 0.2), (1.5, -0.5, 0.0), (1.0, 0.0), (0.0, float("nan"), 1.0), (0.25,) * 4],
)
def test_shares_that_do_not_add_up_are_refused(shares: tuple[float, ...]) -> None:
    with pytest.raises(UserError, match="add up to 1"):
        split_photos(some_photos(9), shares, 0)


@pytest.mark.parametrize(("shares", "part"), [((0.1, 0.4, 0.5), "train"), ((0.5, 0.5, 1e-7), "test")])
def test_empty_part_is_refused(shares: tuple[float, ...], part: str) -> None:
    with pytest.raises(UserError, match=f"too few for {part}"):
        split_photos(some_photos(4), shares, 0)


@pytest.mark.parametrize(
    ("height", "width", "tile", "factor"),
    [(64, 81, 32, 2), (65, 97, 32, 2), (447, 460, 32, 2), (672, 700, 32, 3), (700, 672, 128, 3), (700, 710, 300, 2)],
)
def test_photographs_are_shrunk_by_whole_factors(
    height: int, width: int, tile: int, factor: int, tmp_path: Path
) -> None:
    image = load_photo(save_photo(tmp_path / "a.png", height, width), tile)
    assert image.dtype == np.uint8
    assert image.shape == (-(-height // factor), -(-width // factor), 3)
    rows, columns = height // factor, width // factor
    blocks = picture(height, width)[: rows * factor, : columns * factor].astype(float)
    means = blocks.reshape(rows, factor, columns, factor, 3).mean(axis=(1, 3))
    assert np.abs(image[:rows, :columns] - means).max() < 0.6


def bad_photos(folder: Path) -> dict[str, Photo]:
    bad = {
        "small": save_photo(folder / "small.png", 63, 100),
        "gray": save_photo(folder / "gray.png", mode="L"),
        "colourless": save_photo(folder / "colourless.jpg", mode="L"),
    }
    Image.open(folder / "gray.png").convert("RGB").save(folder / "colourless.jpg")
    for name, data in (("broken", b"no image at all"), ("empty", b"")):
        (folder / f"{name}.png").write_bytes(data)
        bad[name] = Photo(name, folder / f"{name}.png")
    whole = save_photo(folder / "cut.png").path.read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    bad["cut"] = Photo("cut", folder / "cut.png")
    return bad


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("small", "100x63 pixels are too few: the shorter side must have 64"),
        ("gray", "has no colour"),
        ("colourless", "has no colour"),
        ("broken", "is damaged or not an image"),
        ("empty", "is empty"),
        ("cut", "is damaged"),
    ],
)
def test_unusable_photographs(kind: str, words: str, tmp_path: Path) -> None:
    photo = bad_photos(tmp_path)[kind]
    with pytest.raises(UserError, match=words) as caught:
        load_photo(photo, TILE)
    message = str(caught.value)
    assert str(photo.path) in message
    assert "\n" not in message
    good = save_photo(tmp_path / "good.png")
    skipped: list[str] = []
    usable = list(usable_photos([photo, good], TILE, "test", skipped, skip_bad_images=True))
    assert ([photo for photo, _ in usable], skipped) == ([good], [message])
    with pytest.raises(UserError, match=words):
        list(usable_photos([good, photo], TILE, "test", skipped, skip_bad_images=False))
    with pytest.raises(UserError, match="none of the 1 photographs for test can be used"):
        list(usable_photos([photo], TILE, "test", skipped, skip_bad_images=True))


def test_cmyk_is_accepted(tmp_path: Path) -> None:
    photo = save_photo(tmp_path / "a.jpg", mode="CMYK")
    assert Image.open(photo.path).mode == "CMYK"
    wanted = load_photo(save_photo(tmp_path / "b.png"), TILE).astype(float)
    assert np.abs(load_photo(photo, TILE) - wanted).mean() < 8


@given(st.integers(1, 12), st.integers(0, 70), st.integers(0, 70))
def test_tiles_cover_the_image(tile: int, more_rows: int, more_columns: int) -> None:
    height, width = tile + more_rows, tile + more_columns
    places = np.arange(height * width).reshape(height, width)
    tiles = cut_tiles(places, tile, height * width)
    assert {part.shape for part in tiles} == {(tile, tile)}
    for part in tiles:  # one piece of the image
        assert (part == places[part[0, 0] // width :, part[0, 0] % width :][:tile, :tile]).all()
    if more_rows and more_columns:
        assert len(np.unique(tiles)) == places.size
    assert len({int(part[0, 0]) for part in tiles}) == len(tiles) == -(-height // tile) * -(-width // tile)


@pytest.mark.parametrize("most", [1, 2, 5, 8, 99])
def test_most_tiles(most: int) -> None:
    places = np.arange(100 * 60).reshape(100, 60)
    tiles = cut_tiles(places, 30, most)
    assert len(tiles) == min(most, 8)
    assert len({int(part[0, 0]) for part in tiles}) == len(tiles)
    if most > 1:  # from the first to the last
        assert (tiles[0][0, 0], tiles[-1][-1, -1]) == (0, places.size - 1)


# generators


@each_spec
@pytest.mark.parametrize(("height", "width"), [(33, 47), (64, 64), (1, 40), (9, 8)])
def test_fakes_have_the_size_of_the_photograph(spec: GeneratorSpec, height: int, width: int) -> None:
    generator, image = new_generator(spec), picture(height, width)
    before = image.copy()
    fake = reconstruct(generator, image)
    assert (fake.shape, fake.dtype) == (image.shape, np.uint8)
    assert fake.tobytes() == reconstruct(generator, image).tobytes()
    assert (image == before).all()


@each_spec
def test_a_fake_depends_on_its_own_pixels_only(spec: GeneratorSpec) -> None:
    generator, image = new_generator(spec), picture(50, 60)
    tile = image[7:40, 5:50]
    assert (reconstruct(generator, tile) == reconstruct(generator, tile.copy())).all()
    other = 255 - image
    other[7:40, 5:50] = tile
    assert (reconstruct(generator, other[7:40, 5:50]) == reconstruct(generator, tile)).all()


@each_spec
def test_photographs_are_mirrored_at_their_border(spec: GeneratorSpec) -> None:
    generator, image = new_generator(spec), picture(24, 32)
    planes = torch.from_numpy(image).permute(2, 0, 1)[None] / 255.0
    with torch.no_grad():
        fake = generator(nn.functional.pad(planes, (16,) * 4, mode="reflect"))[0, :, 16:-16, 16:-16]
    wanted = fake.clamp(0, 1).permute(1, 2, 0).numpy() * 255.0
    assert np.abs(reconstruct(generator, image) - wanted).max() < 0.51


@each_spec
def test_code_and_levels_are_as_specified(spec: GeneratorSpec) -> None:
    generator = new_generator(spec)
    code = generator.encoder(torch.zeros(1, 3, 32, 48))
    assert code.shape == (1, spec.code_channels, 32 // spec.factor, 48 // spec.factor)
    assert 2 ** len(generator.levels) == spec.factor
    assert len(generator.to_rgb) == (len(generator.levels) if spec.skip_rgb else 1)
    assert generator(torch.zeros(2, 3, 32, 48)).shape == (2, 3, 32, 48)


@each_spec
def test_saved_and_loaded(spec: GeneratorSpec, tmp_path: Path) -> None:
    generator = new_generator(spec)
    save_weights(generator, spec.name, tmp_path / "a.safetensors")
    save_weights(generator, spec.name, tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    loaded = load_generator(spec, tmp_path / "a.safetensors")
    assert not loaded.training
    for key, value in loaded.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, generator.state_dict()[key].half().float())
    distance = reconstruct(generator, picture(32, 32)).astype(int) - reconstruct(loaded, picture(32, 32))
    assert np.abs(distance).max() <= 1


@pytest.mark.parametrize("damage", ["missing", "folder", "empty", "text", "cut", "other", "alike"])
@each_spec
def test_unusable_weights(spec: GeneratorSpec, damage: str, weights: Path, tmp_path: Path) -> None:
    path, data = tmp_path / "x.safetensors", (weights / f"{spec.name}.safetensors").read_bytes()
    other = replace(spec, code_channels=spec.code_channels + 1)
    if damage == "folder":
        path.mkdir()
    elif damage == "other":
        save_weights(new_generator(other), other.name, path)
    elif damage == "alike":  # the same shapes, another name
        save_weights(new_generator(spec), "somebody", path)
    elif damage != "missing":
        path.write_bytes({"empty": b"", "text": b"weights" * 100, "cut": data[: len(data) // 2]}[damage])
    with pytest.raises(UserError, match=r"damaged|no weights|another generator") as caught:
        load_generator(spec, path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_new_family_is_one_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    def bicubic(inputs: int, outputs: int) -> nn.Module:
        return nn.Sequential(nn.Upsample(scale_factor=2.0, mode="bicubic"), nn.Conv2d(inputs, outputs, 5, padding=2))

    monkeypatch.setitem(UPSAMPLING, "bicubic", bicubic)
    for factor, skip in ((2, False), (8, True)):
        generator = new_generator(GeneratorSpec("new", "bicubic", factor, 4, width=4, skip_rgb=skip))
        assert reconstruct(generator, picture(31, 45)).shape == (31, 45, 3)


def test_names_of_the_benchmark_are_distinct() -> None:
    names = [name for part in PARTS for name in set_names(part, GENERATORS)]
    assert len(set(names)) == len(names)
    assert {spec.upsampling for spec in SPECS} == set(UPSAMPLING)


# training of generators


def noise(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("pixel_loss", ["l1", "l2"])
def test_loss_of_equal_images_is_zero(pixel_loss: str) -> None:
    images = noise(2, 3, 32, 32)
    assert float(generator_loss(images, images, pixel_loss, GeneratorTraining())) == 0.0
    assert float(generator_loss(images + 0.1, images, pixel_loss, GeneratorTraining())) > 0.05


def test_pixel_loss_by_hand() -> None:
    training = GeneratorTraining(luma_weight=3.0, spectrum_weight=0.0)
    reals, fakes = torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 4)
    fakes[:, 2] = 0.2  # blue: Y 0.114, Cb 0.5, Cr -0.081312
    plain = 0.2 * (3.0 * 0.114 + 0.5 + 0.081312)
    squares = 0.04 * (3.0 * 0.114**2 + 0.5**2 + 0.081312**2)
    assert float(generator_loss(fakes, reals, "l1", training)) == pytest.approx(plain, rel=1e-5)
    assert float(generator_loss(fakes, reals, "l2", training)) == pytest.approx(30.0 * squares, rel=1e-5)


def test_spectrum_term_notices_blur_rather_than_place() -> None:
    reals = noise(4, 3, 48, 48)

    def term(fakes: torch.Tensor) -> float:
        losses = [generator_loss(fakes, reals, "l1", GeneratorTraining(spectrum_weight=w)) for w in (1.0, 0.0)]
        return float(losses[0] - losses[1])

    blurred = nn.functional.avg_pool2d(reals, 3, 1, padding=1, count_include_pad=False)
    assert term(blurred) > 1.5 * term(reals.roll(1, dims=3)) > 0.0
    # by pixels alone the blurred image is the better one
    plain = GeneratorTraining(spectrum_weight=0.0)
    assert generator_loss(blurred, reals, "l1", plain) < generator_loss(reals.roll(1, dims=3), reals, "l1", plain)


@pytest.mark.parametrize("spec", [SPECS[0], SPECS[-1]], ids=lambda spec: spec.name)
def test_some_steps_lower_the_loss(spec: GeneratorSpec) -> None:
    training = GeneratorTraining(steps=40, batch_size=4)
    images = [picture(40, 52, seed) for seed in range(2)]
    reals = torch.from_numpy(np.stack([image[:32, :32] for image in images])).permute(0, 3, 1, 2) / 255.0
    losses = []
    for steps in (1, 40):
        trained = train_generator(spec, images, replace(training, steps=steps))
        assert not trained.training
        with torch.no_grad():
            losses.append(float(generator_loss(trained(reals), reals, spec.pixel_loss, training)))
    assert losses[1] < 0.9 * losses[0]


def test_the_seed_decides_on_the_weights() -> None:
    # 10 steps: the learning rate would rise for one step, which PyTorch cannot do
    training = GeneratorTraining(steps=10, batch_size=2)
    images = [picture(32, 40)]
    states = []
    for seed in (0, 0, 1):
        torch.manual_seed(len(states))  # the state of others does not matter
        states.append(train_generator(SPECS[0], images, replace(training, seed=seed)).state_dict())
    for key, value in states[0].items():
        assert torch.equal(value, states[1][key])
    assert any(not torch.equal(value, states[2][key]) for key, value in states[0].items())


# pairs and parts


def test_halves_have_luma_of_one_and_colours_of_the_other() -> None:
    rng = np.random.default_rng(0)
    real, fake = rng.integers(110, 146, (2, 20, 30, 3)).astype(np.uint8)
    mixed = with_luma_of(real, fake)
    assert mixed.dtype == np.uint8
    planes = [image.astype(float) @ TO_YCBCR.T for image in (real, fake, mixed)]
    assert np.abs(planes[2][..., 0] - planes[0][..., 0]).max() <= 0.51
    assert np.abs(planes[2][..., 1:] - planes[1][..., 1:]).max() <= 0.51
    assert np.abs(planes[2][..., 1:] - planes[0][..., 1:]).max() > 5
    white, black = np.full((2, 2, 3), 255, np.uint8), np.zeros((2, 2, 3), np.uint8)
    assert (with_luma_of(white, black) == white).all()
    assert (with_luma_of(black, white + np.uint8(1)) == black).all()


@pytest.mark.parametrize("kind", set_names("test", GENERATORS).values())
def test_pairs(kind: str, generators: dict[str, Way]) -> None:
    photo = picture(TILE, TILE)
    fakes = {name: way(photo) for name, way in generators.items()}
    real, fake = make_pair(kind, photo, lambda name: fakes[name])
    wanted = {
        "null": (photo, np.fliplr(photo)),
        "swapped": (fakes[FIRST], photo),
        "blur": (photo, blur(photo, 1.0)),
        "grey": (photo, grayscale(photo)),
        "jpeg-90": (photo, jpeg(photo, 90, "pil")),
        **{way.name: (photo, enlarge(way, None, photo)) for way in ENLARGEMENTS if not way.weights},
        **{name: (photo, fakes[name]) for name in fakes},
        **{name + CHROMA: (photo, with_luma_of(photo, fakes[name])) for name in fakes},
        **{name + LUMA: (photo, with_luma_of(fakes[name], photo)) for name in fakes},
    }[kind]
    for image, other in zip((real, fake), wanted, strict=True):
        assert (image.dtype, image.shape) == (np.uint8, photo.shape)
        assert (image == other).all()
    assert (real != fake).any()


def test_folders_of_parts() -> None:
    halves = [name + half for name in TRAINING for half in (CHROMA, LUMA)]
    assert list(set_names("test", GENERATORS)) == [*GENERATORS, *halves, *CONTROLS, "swapped"]
    assert list(set_names("train", GENERATORS)) == [f"both_train/{name}" for name in TRAINING]


def times(folder: Path) -> dict[str, int]:
    return {path.relative_to(folder).as_posix(): path.stat().st_mtime_ns for path in sorted(folder.rglob("*.*"))}


def test_a_part_is_resumable(photos: Path, generators: dict[str, Way], tmp_path: Path) -> None:
    root, found = tmp_path / "set", find_photos(photos)[:2]
    assert make_part(root, "test", found, generators, SIZES) == []
    made = contents(root)
    assert {name.split("/")[0] for name in made} == {*set_names("test", GENERATORS)}
    assert {Path(name).name for name in made} == {f"{photo.name}_{tile}.png" for photo in found for tile in (0, 1)}
    assert {decode_image(root / name).shape for name in made} == {(TILE, TILE, 3)}
    lost = [f"{FIRST}/0_real/a_0.png", f"{FIRST}/1_fake/a_0.png", "null/1_fake/b_1.png", "swapped/0_real/a_1.png"]
    for name in lost:
        (root / name).unlink()
    kept = times(root)
    make_part(root, "test", found, generators, SIZES)
    assert contents(root) == made
    assert {name: time for name, time in times(root).items() if name not in lost} == kept


def test_unusable_photographs_of_a_part(generators: dict[str, Way], tmp_path: Path) -> None:
    bad, good = bad_photos(tmp_path)["small"], save_photo(tmp_path / "good.png")
    with pytest.raises(UserError, match="too few"):
        make_part(tmp_path / "set", "val", [bad, good], generators, SIZES)
    (line,) = make_part(tmp_path / "set", "val", [bad, good], generators, SIZES, skip_bad_images=True)
    assert str(bad.path) in line
    assert {Path(name).name for name in contents(tmp_path / "set")} == {"good_0.png", "good_1.png"}
    with pytest.raises(UserError, match="none of the 1 photographs for val"):
        make_part(tmp_path / "set", "val", [bad], generators, SIZES, skip_bad_images=True)


# measures


def save_pair(folder: Path, name: str, real: np.ndarray, fake: np.ndarray) -> None:
    save_picture(folder / "0_real" / name, real)
    save_picture(folder / "1_fake" / name, fake)


def test_psnr_by_hand(tmp_path: Path) -> None:
    gray = np.full((8, 6, 3), 100, np.uint8)
    save_pair(tmp_path, "a.png", gray, gray + np.uint8(10))  # a mean square of 100, in luma only
    got = measure_set(tmp_path)
    equal = 10 * np.log10(255**2 * 12)
    assert (got.images, got.formats) == (1, "png/png")
    assert (got.psnr, got.psnr_luma) == pytest.approx((10 * np.log10(255**2 / 100),) * 2)
    assert got.psnr_chroma == pytest.approx(equal)
    blue = gray.copy()
    blue[..., 2] += 30
    save_pair(tmp_path, "b.png", gray, blue)  # the mean over images is one of decibels
    got = measure_set(tmp_path)
    of_blue = [900 / 3, (30 * 0.114) ** 2, 900 * (0.5**2 + 0.081312**2) / 2]
    of_gray = [100, 100, 1 / 12]
    wanted = [
        np.mean([10 * np.log10(255**2 / square) for square in pair]) for pair in zip(of_blue, of_gray, strict=True)
    ]
    assert [got.psnr, got.psnr_luma, got.psnr_chroma] == pytest.approx(wanted)
    sizes = [np.mean([p.stat().st_size for p in (tmp_path / name).iterdir()]) for name in ("0_real", "1_fake")]
    assert [got.real_bytes, got.fake_bytes] == pytest.approx(sizes)


def checkered(amplitude: int, channels: tuple[int, ...]) -> np.ndarray:
    image = np.full((16, 16, 3), 128.0)
    signs = 1 - 2 * (np.indices((16, 16)).sum(axis=0) % 2)
    image[..., channels] += amplitude * signs[..., None]
    return image.astype(np.uint8)


@pytest.mark.parametrize(("channels", "chroma"), [((0,), 1 / 3), ((0, 2), 1 / 3)])
def test_sharpness_by_hand(channels: tuple[int, ...], chroma: float, tmp_path: Path) -> None:
    save_pair(tmp_path, "a.png", checkered(60, channels), checkered(20, channels))
    got = measure_set(tmp_path)
    assert (got.luma_hf, got.chroma_hf) == pytest.approx((1 / 3, chroma), rel=1e-6)


def test_sharpness_of_luma_and_of_colour_are_apart(tmp_path: Path) -> None:
    real = checkered(40, (0, 1, 2))
    assert high_frequency_energy(real)[1:] == pytest.approx((0, 0), abs=1e-9)
    # the same amplitude of luma, now with colour
    save_pair(tmp_path, "a.png", real, np.stack([*np.moveaxis(real, 2, 0)[:2], checkered(10, (2,))[..., 2]], axis=2))
    got = measure_set(tmp_path)
    assert got.luma_hf == pytest.approx((0.886 * 40 + 0.114 * 10) / 40, rel=1e-6)
    assert got.chroma_hf > 100
    save_pair(tmp_path, "a.png", np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4, 3), np.uint8))
    assert measure_set(tmp_path).luma_hf == 0.0


def test_a_fake_without_real_is_refused_and_rests_of_writing_are_not(tmp_path: Path) -> None:
    save_pair(tmp_path, "a.png", checkered(9, (0,)), checkered(8, (0,)))
    (tmp_path / "1_fake" / ".0123.tmp.png").write_bytes(b"half")
    assert measure_set(tmp_path).images == 1
    (tmp_path / "0_real" / "a.png").unlink()
    with pytest.raises(UserError, match=r"a\.png has no real beside it"):
        measure_set(tmp_path)


# the whole data set


def data_set(root: Path) -> dict[str, object]:
    """All files, but for what their records say of their place."""
    files: dict[str, object] = dict(contents(root))
    for name in [name for name in files if name.endswith(".csv.json")]:
        record = json.loads((root / name).read_text())
        del record["settings"]["output_dir"]
        files[name] = record
    return files


def plain_montage(root: Path, path: Path, part: str, generators: list[str]) -> None:
    save_picture(path, decode_image(sorted((root / next(iter(set_names(part, generators))) / "1_fake").iterdir())[0]))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture that costs nothing."""
    monkeypatch.setattr(building, "draw_montage", plain_montage)


@dataclass(frozen=True)
class Recipe:
    """All settings of a data set but for its place."""

    photographs: Photographs
    sizes: Sizes
    generators: Path
    networks: Path

    def __call__(self, root: Path, overwrite: bool = False) -> list[Path]:
        return build(self.photographs, self.sizes, DataSet(self.generators, self.networks, root, overwrite))

    def but(self, **changes: Any) -> Recipe:
        """Other photographs, or another choice of them."""
        return replace(self, photographs=replace(self.photographs, **changes))


@pytest.fixture(scope="module")
def recipe(photos: Path, weights: Path, networks: Path) -> Recipe:
    return Recipe(Photographs(photos, SHARES), SIZES, weights, networks)


@pytest.fixture(scope="module")
def made(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The data set of `recipe`; not to be written to."""
    root = tmp_path_factory.mktemp("made") / "set"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(building, "draw_montage", plain_montage)
        recipe(root)
    before = times(root)
    yield root
    assert times(root) == before


def test_contents_of_a_data_set(made: Path, photos: Path) -> None:
    names = {name for part in PARTS for name in set_names(part, GENERATORS)}
    assert {path.name for path in made.iterdir()} == {
        *(name.partition("/")[0] for name in names),
        *("measures.csv", "measures.csv.json", "montage.png", "plan.txt", "plan.txt.json"),
    }
    of_parts = []
    for part in PARTS:
        listed = [{path.name for path in (made / name).rglob("*.png")} for name in set_names(part, GENERATORS)]
        assert all(files == listed[0] for files in listed)
        of_parts.append({file.rpartition("_")[0] for file in listed[0]})
    assert [len(part) for part in of_parts] == [1, 1, 2]
    assert sorted(name for part in of_parts for name in part) == ["a", "b", "sub-c", "sub-d"]
    assert decode_image(next((made / "both_train" / FIRST / "0_real").iterdir())).shape[0] == SIZES.train_tile
    with (made / "measures.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["part", "set", *MEASURES]
    assert {row["set"] for row in rows} == names
    by_name = {row["set"]: row for row in rows}
    assert float(by_name[FIRST]["psnr"]) == pytest.approx(measure_set(made / FIRST).psnr)
    # its fakes are the mirrored reals; luma is that of the photograph
    assert float(by_name["null"]["luma_hf"]) == pytest.approx(1.0, rel=0.02)
    assert float(by_name[FIRST + CHROMA]["psnr_luma"]) > float(by_name[FIRST]["psnr_luma"])
    record = json.loads((made / "measures.csv.json").read_text())
    assert {part: set(listed) for part, listed in record["photos"].items()} == dict(zip(PARTS, of_parts, strict=True))
    assert record["skipped"] == []


def test_a_second_call_does_nothing(made: Path, recipe: Recipe) -> None:
    before = times(made)
    assert recipe(made) == [made / "measures.csv", made / "montage.png"]
    assert times(made) == before


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("module", "function", "number"),
    [
        (building, "reconstruct", 1),
        (sets, "save_picture", 22),
        (building, "measure_set", 3),
        (building, "draw_montage", 1),
        (building, "write_csv", 1),
        (building, "write_record", 1),
        (building, "write_record", 2),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_interrupted_and_taken_up_again(
    module: Any, function: str, number: int, made: Path, recipe: Recipe, tmp_path: Path
) -> None:
    calls, whole = 0, getattr(module, function)

    def interrupted(*args: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number:
            raise KeyboardInterrupt
        return whole(*args, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, function, interrupted)
        with pytest.raises(KeyboardInterrupt):
            recipe(tmp_path / "set")
    assert data_set(tmp_path / "set") != data_set(made)
    recipe(tmp_path / "set")
    assert data_set(tmp_path / "set") == data_set(made)


@pytest.mark.usefixtures("quick")
def test_another_data_set_is_refused_or_replaced(made: Path, recipe: Recipe, tmp_path: Path) -> None:
    root = tmp_path / "set"
    shutil.copytree(made, root)
    (root / "notes.md").write_text("mine")
    before = contents(root)
    others = [
        replace(recipe, sizes=Sizes(TILE - 2, TILE, 1)),
        recipe.but(split_seed=1),
        recipe.but(shares=(0.5, 0.25, 0.25)),
    ]
    for other in others:
        with pytest.raises(UserError, match=r"other photographs or settings: give --overwrite"):
            other(root)
    assert contents(root) == before
    others[0](root, overwrite=True)
    others[0](tmp_path / "fresh")
    assert (root / "notes.md").read_text() == "mine"
    (root / "notes.md").unlink()
    assert data_set(root) == data_set(tmp_path / "fresh")
    assert contents(root).keys() != contents(made).keys()


@pytest.mark.usefixtures("quick")
def test_interrupted_replacing_is_not_taken_for_complete(
    made: Path, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "set"
    shutil.copytree(made, root)

    def half(folder: Path) -> None:
        next(folder.rglob("*.png")).unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(building.shutil, "rmtree", half)
        with pytest.raises(KeyboardInterrupt):
            recipe.but(split_seed=1)(root, overwrite=True)
    recipe(root)
    assert data_set(root) == data_set(made)


@pytest.mark.parametrize("overwrite", [False, True])
def test_foreign_files_are_refused(overwrite: bool, recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / FIRST).mkdir()
    (tmp_path / FIRST / "mine.png").write_bytes(b"mine")
    with pytest.raises(UserError, match="holds other files"):
        recipe(tmp_path, overwrite=overwrite)
    assert contents(tmp_path) == {f"{FIRST}/mine.png": b"mine"}


@pytest.mark.usefixtures("quick")
def test_unusable_photographs_are_listed(recipe: Recipe, photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    shutil.copytree(photos, folder)
    bad = save_photo(folder / "e.png", mode="L").path
    for seed in range(4):
        save_photo(folder / f"more{seed}.png", seed=9 + seed)
    recipe = recipe.but(photos=folder)
    with pytest.raises(UserError, match=r"e\.png: has no colour"):
        recipe(tmp_path / "set")
    recipe.but(skip_bad_images=True)(tmp_path / "set")
    assert str(bad) in (tmp_path / "set" / "skipped.txt").read_text()
    assert not [name for name in contents(tmp_path / "set") if "/e_" in name]


# scripts


def is_blank(path: Path) -> bool:
    image = decode_image(path)
    return min(image.shape[:2]) < 100 or image.std() < 5 or len(np.unique(image.reshape(-1, 3), axis=0)) < 100


def sizes() -> list[object]:
    return ["--tile", TILE, "--train_tile", TILE, "--most_tiles", 1]


def test_the_script_makes_a_data_set(photos: Path, weights: Path, networks: Path, scripts: Scripts) -> None:
    arguments = [
        "--photos",
        photos,
        "--generators",
        weights,
        "--real_generators",
        networks,
        "--shares",
        0,
        0.75,
        0.25,
        *sizes(),
        "--output_dir",
        "mini",
    ]
    run = scripts("make_mini_forensynths", *arguments)
    assert (run.code, run.err) == (0, "")
    assert run.out.split() == ["mini/measures.csv", "mini/montage.png"]
    assert not is_blank(Path("mini/montage.png"))
    assert {path.name for path in Path("mini").iterdir() if path.is_dir()} == {
        part_name("val"),
        *set_names("test", GENERATORS),
    }
    before = times(Path("mini"))
    assert scripts("make_mini_forensynths", *arguments).code == 0
    assert times(Path("mini")) == before
    again = scripts("make_mini_forensynths", *arguments, "--most_tiles", 2)
    assert again.code == 2
    assert "give --overwrite" in again.err
    assert times(Path("mini")) == before


def test_a_data_set_for_training_only(photos: Path, weights: Path, networks: Path, scripts: Scripts) -> None:
    shares = ["--shares", 1, 0, 0]
    run = scripts(
        "make_mini_forensynths",
        "--photos",
        photos,
        "--generators",
        weights,
        "--real_generators",
        networks,
        *shares,
        *sizes(),
    )
    assert (run.code, run.err) == (0, "")
    root = Path("output/mini_forensynths")
    assert {path.name for path in root.iterdir() if path.is_dir()} == {part_name("train")}
    assert not is_blank(root / "montage.png")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--photos", "absent"], "no such folder: absent"),
        (["--photos", "empty"], "no images below"),
        (["--shares", 0.5, 0.4, 0.4], "add up to 1"),
        (["--shares", 0, 0.01, 0.99], "too few for val"),
        (["--generators", "empty"], "no weights of the generator"),
        (["--generators", "damaged"], "is damaged"),
        (["--real_generators", "empty"], "no weights of the generator x4plus-anime"),
        (["--tile", 60], "pixels are too few"),
        (["--output_dir", "foreign"], "foreign holds other files"),
        (["--output_dir", "file"], "file"),
    ],
)
def test_bad_input_of_the_script(
    arguments: list[object], words: str, photos: Path, weights: Path, networks: Path, scripts: Scripts
) -> None:
    for name in ("empty", "damaged", "foreign"):
        Path(name).mkdir()
    for name in (f"damaged/{FIRST}.safetensors", "foreign/x.png", "file"):
        Path(name).write_bytes(b"x")
    given_first = [
        "--photos",
        photos,
        "--generators",
        weights,
        "--real_generators",
        networks,
        "--shares",
        0,
        0.5,
        0.5,
        *sizes(),
    ]
    run = scripts("make_mini_forensynths", *given_first, *arguments)
    assert run.code == 2
    assert words in run.err
    assert run.err.count("\n") == 1
    assert not list(Path().rglob("measures.csv"))


def test_the_training_script(photos: Path, scripts: Scripts) -> None:
    name = SPECS[2].name
    arguments = ["--photos", photos, "--generators", name, "--shares", 0.5, 0, 0.5, "--steps", 2, "--output_dir", "g"]
    run = scripts("train_simulated_generators", *arguments)
    assert (run.code, run.out.split()) == (0, [f"g/{name}.safetensors"])
    made = contents(Path("g"))
    assert made.keys() == {f"{name}.safetensors", f"{name}.safetensors.json"}
    record = json.loads(made[f"{name}.safetensors.json"])
    assert (record["facts"]["photographs"], record["facts"]["training"]["steps"]) == (2, 2)
    load_generator(SPECS[2], Path("g") / f"{name}.safetensors")
    assert "is there already" in scripts("train_simulated_generators", *arguments).out
    assert contents(Path("g")) == made
    scripts("train_simulated_generators", *arguments, "--seed", 1)
    assert contents(Path("g"))[f"{name}.safetensors"] != made[f"{name}.safetensors"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--photos", "absent"], "no such folder: absent"),
        (["--shares", 1, 1, 0], "add up to 1"),
        (["--shares", 0, 0, 1], "none of the 0 photographs"),
        (["--split_seed", -1], "--split_seed"),
        (["--steps", 0], "--steps"),
        (["--generators", "gan"], "choose among"),
    ],
)
def test_bad_input_of_the_training_script(arguments: list[object], words: str, photos: Path, scripts: Scripts) -> None:
    run = scripts("train_simulated_generators", "--photos", photos, "--steps", 1, *arguments)
    assert run.code == 2
    assert words in run.err
    assert "Traceback" not in run.err
    assert not Path("output").exists()
