"""Images made ready for source attribution: squares to the byte, spectra, augmentation, splits and arrays."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from ranking_runs import Scripts

from source_attribution.data_preparation import numbered
from source_attribution.preparation import augmented, celeba_face, square
from source_attribution.source_sets import ArrayReader, find_sources, source_of
from source_attribution.spectra import Statistics, log_spectrum, spectrum_statistics
from utils.errors import UserError


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_golden_squares(shared_dir: Path) -> None:
    folder = shared_dir / "reference" / "generator_attribution"
    large, small = (
        np.rint((np.load(folder / f"golden_primary_{name}.npz")["x"] + 1) * 127.5).astype(np.uint8)
        for name in ("faceshqp", "ganfp")
    )
    np.testing.assert_array_equal(np.stack([square(image, 128) for image in large]), small)


@pytest.mark.parametrize(("height", "width", "side"), [(61, 40, 32), (40, 61, 32), (20, 20, 32), (33, 32, 32)])
def test_squares_are_those_of_scikit_image(height: int, width: int, side: int) -> None:
    transform = pytest.importorskip("skimage.transform")
    image = noise(height, width)
    less = abs(height - width) // 2
    part = image[less : height - less] if height > width else image[:, less : width - less]
    expected = np.clip(transform.resize(part.astype(float), (side, side)) + 1e-9, 0, 255).astype(np.uint8)
    np.testing.assert_array_equal(square(image, side), expected)


@given(st.integers(8, 60), st.integers(8, 60), st.integers(0, 255))
def test_squares_of_one_colour_stay_so(height: int, width: int, level: int) -> None:
    image = np.full((height, width, 3), level, np.uint8)
    assert (square(image, 16) == level).all()


def test_celeba_faces() -> None:
    image = noise(218, 178)
    np.testing.assert_array_equal(celeba_face(image, "x"), image[57:185, 25:153])
    with pytest.raises(UserError, match="178x218"):
        celeba_face(noise(128, 128), "x")


def test_statistics_of_spectra(tmp_path: Path) -> None:
    grey = noise(9, 16, 1)[..., 0], noise(9, 16, 2)[..., 0], noise(9, 16, 3)[..., 0]
    found = spectrum_statistics(grey)
    stacked = np.stack([log_spectrum(image) for image in grey])
    np.testing.assert_allclose(found.mean, stacked.mean(0))
    np.testing.assert_allclose(found.std, stacked.std(0))
    found.write(tmp_path)
    np.testing.assert_array_equal(Statistics.read(tmp_path).mean, found.mean)
    np.testing.assert_allclose(np.load(tmp_path / "variance.npy"), stacked.var(0))
    with pytest.raises(UserError, match="differ in every coefficient"):
        spectrum_statistics([grey[0], grey[0]])
    with pytest.raises(UserError, match=r"no .*mean\.npy"):
        Statistics.read(tmp_path / "absent")


def test_spectrum_of_a_constant_is_its_first_coefficient() -> None:
    values = log_spectrum(np.full((8, 8), 10, np.uint8))
    assert values[0, 0] == pytest.approx(np.log(80.0))
    assert (values.ravel()[1:] < np.log(1e-9)).all()


@pytest.mark.parametrize("published", [False, True])
@pytest.mark.parametrize("mode", ["blur", "crop", "jpeg", "noise", "multi"])
def test_augmentation(mode: str, published: bool) -> None:
    image = square(noise(40, 40), 32)
    results = [augmented(image, mode, np.random.default_rng(seed), published=published) for seed in range(200)]
    assert all(result.shape == image.shape and result.dtype == np.uint8 for result, _ in results)
    again = augmented(image, mode, np.random.default_rng(7), published=published)
    np.testing.assert_array_equal(again[0], results[7][0])
    changed = np.mean([bool((result != image).any()) for result, _ in results])
    assert changed == 1.0 if mode != "multi" else 0.88 < changed < 0.98
    parameters = {int(done.removeprefix(f"_{mode}")) for _, done in results} if mode != "multi" else set()
    ranges = {"blur": {3, 5, 7, 9}, "crop": range(5, 21), "jpeg": range(10, 76 - published), "noise": range(5, 20)}
    assert parameters <= set(ranges.get(mode, ()))


def test_published_jpeg_does_not_heed_its_quality() -> None:
    image = square(noise(40, 40), 32)
    published, described = (
        {augmented(image, "jpeg", np.random.default_rng(seed), published=flag)[0].tobytes() for seed in range(20)}
        for flag in (True, False)
    )
    assert len(published) == 1
    assert len(described) > 10


def write_sources(root: Path, sources: dict[str, int], number: int, size: tuple[int, int] = (20, 16)) -> Path:
    """`<root>/<source>/img_<n>.png`; the order of numbers is not that of names."""
    for name, seed in sources.items():
        (root / name).mkdir(parents=True)
        for place in range(number):
            Image.fromarray(noise(*size, seed=100 * seed + place)).save(root / name / f"img_{place}.png")
    return root


def test_splits_and_arrays(tmp_path: Path, scripts: Scripts) -> None:
    fake = write_sources(tmp_path / "fake", {"a_b_c": 1, "d": 2}, 12)
    real = write_sources(tmp_path / "real", {"photos_x": 3}, 12)
    sizes = ["--train_size", 6, "--val_size", 3, "--test_size", 2]
    run = scripts("prepare_sources", "arrays", fake, real, tmp_path / "clean" / "pixel", "-r", "-c", "-n", *sizes)
    assert run.code == 0, run.err
    folder = tmp_path / "clean" / "pixel" / "clean_raw_colour_normalized_train"
    labels, names = (np.load(folder / f"{name}.npy") for name in ("labels", "source_labels"))
    roots = {0: real, 1: fake}
    wanted = [(roots[label] / name / f"img_{n}.png", label, s) for name, label, s in _SOURCES for n in range(6)]

    np.random.RandomState(0).shuffle(wanted)  # type: ignore[arg-type]
    assert labels.tolist() == [label for _, label, _ in wanted]
    assert names.tolist() == [source for _, _, source in wanted]
    for number in (0, 17):
        pixels = np.asarray(Image.open(wanted[number][0]))
        array = np.load(folder / f"{number}.npy")
        np.testing.assert_array_equal(array, (pixels / 127.5 - 1).astype(np.float32))
        np.testing.assert_array_equal(ArrayReader()(folder / f"{number}.npy"), pixels)
    images = find_sources(folder, size=2)
    assert {item.generator for item in images.items} == {"", "a_b", "d"}
    assert len(images) == 6
    few = scripts("prepare_sources", "arrays", fake, real, tmp_path / "o", "--train_size", 12)
    assert few.code == 2
    assert "lower the sizes" in few.err


_SOURCES = [("a_b_c", 1, "a_b"), ("d", 1, "d"), ("photos_x", 0, "photos_x")]


def test_arrays_of_spectra(tmp_path: Path, scripts: Scripts) -> None:
    fake = write_sources(tmp_path / "fake", {"a": 1}, 6, (16, 16))
    real = write_sources(tmp_path / "real", {"b": 2}, 6, (16, 16))
    made = scripts("prepare_sources", "statistics", fake, real, tmp_path / "norm", "--input_size_neg", 2)
    assert made.code == 0, made.err
    paths = [*numbered(fake / "a"), *numbered(real / "b")[:2]]
    grey = [np.asarray(Image.open(path).convert("L")) for path in paths]
    np.testing.assert_allclose(Statistics.read(tmp_path / "norm").mean, spectrum_statistics(grey).mean)
    sizes = ["--train_size", 3, "--val_size", 1, "--test_size", 1, "-t", fake]
    out = tmp_path / "p" / "dct"
    run = scripts("prepare_sources", "arrays", fake, real, out, "-l", "-n", "-p", tmp_path / "norm", *sizes)
    assert run.code == 0, run.err
    parts = ["train", "val", "test", "test_only"]
    assert sorted(path.name for path in out.iterdir()) == sorted(f"p_dct_log_scaled_normalized_{p}" for p in parts)
    array = np.load(out / "p_dct_log_scaled_normalized_test_only" / "0.npy")
    statistics = Statistics.read(tmp_path / "norm")
    np.testing.assert_array_equal(array, (log_spectrum(grey[0]) - statistics.mean) / statistics.std)
    assert ArrayReader(dct=True)(out / "p_dct_log_scaled_normalized_train" / "0.npy").shape == (16, 16, 1)
    with pytest.raises(UserError, match="need --dct"):
        ArrayReader()(out / "p_dct_log_scaled_normalized_train" / "0.npy")
    run = scripts("prepare_sources", "arrays", fake, real, tmp_path / "q" / "dct", "--abs", *sizes)
    assert run.code == 0, run.err
    with_abs = np.load(tmp_path / "q" / "dct" / "q_dct_train" / "0.npy")
    assert np.isfinite(with_abs).all()


def test_crops_and_altered_images(tmp_path: Path, scripts: Scripts) -> None:
    source = write_sources(tmp_path / "in" / "fake", {"a": 1}, 11)
    run = scripts("prepare_sources", "crop", source / "a", tmp_path / "crops", "--resolution", 16, "-a", 10)
    assert run.code == 0, run.err
    made = sorted(path.name for path in (tmp_path / "crops").iterdir())
    assert made == sorted(f"img_{number}.png" for number in range(10))
    pixels = np.asarray(Image.open(source / "a" / "img_2.png"))
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "crops" / "img_2.png")), square(pixels, 16))
    run = scripts("prepare_sources", "augment", tmp_path / "in", tmp_path / "out", "--mode", "all", "--size", 2)
    assert run.code == 0, run.err
    names = [path.name for path in (tmp_path / "out" / "fake" / "a").iterdir()]
    assert len([name for name in names if name.startswith("img_0_blur")]) >= 1
    assert len(names) >= 8
    refused = scripts("prepare_sources", "crop", source / "a")
    assert refused.code == 2
    (source / "a" / "nonumber.png").write_bytes((source / "a" / "img_2.png").read_bytes())
    refused = scripts("prepare_sources", "crop", source / "a", tmp_path / "crops")
    assert refused.code == 2
    assert "nonumber.png" in refused.err


@pytest.mark.parametrize(("folder", "source"), [("progan_celeba", "progan_celeba"), ("a_b_c", "a_b"), ("x", "x")])
def test_names_of_sources(folder: str, source: str) -> None:
    assert source_of(folder) == source
