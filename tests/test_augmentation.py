"""Augmentation against Pillow, OpenCV, SciPy and torchvision themselves, and the distribution of what is drawn."""

import io
from collections import Counter
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter
from torchvision import transforms

from cr_ud import augmentation as module
from cr_ud.augmentation import Augmenter
from cr_ud.options import Augmentation, Range
from images import distortions
from utils.errors import UserError


def augmenter(published: bool = False, **options: Any) -> Augmenter:
    return Augmenter(Augmentation(**options), published)


def noise(height: int = 80, width: int = 100, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def smooth(height: int = 80, width: int = 100) -> np.ndarray:
    return cv2.resize(noise(8, 8), (width, height), interpolation=cv2.INTER_CUBIC)


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("sigma", [0.0, 0.1, 0.5, 1.3, 3.0])
def test_blur_is_scipys_rounded_once(sigma: float) -> None:
    image = noise()
    expected = np.stack([gaussian_filter(image[..., c].astype(np.float64), sigma) for c in range(3)], axis=-1)
    assert np.abs(distortions.blur(image, sigma).astype(float) - expected).max() <= 0.5 + 1e-3


@pytest.mark.parametrize("sigma", [0.5, 2.0])
def test_published_blur_is_scipys_in_place_and_darker(sigma: float) -> None:
    image = noise(200, 200)
    expected = image.copy()
    for channel in range(3):
        gaussian_filter(expected[..., channel], output=expected[..., channel], sigma=sigma)
    result = distortions.blur(image, sigma, truncated=True)
    np.testing.assert_array_equal(result, expected)
    difference = result.mean() - distortions.blur(image, sigma).mean()
    assert difference == pytest.approx(-1.0, abs=0.05)


def test_small_sigma_changes_nothing() -> None:
    for truncated in (False, True):
        np.testing.assert_array_equal(distortions.blur(noise(), 0.124, truncated=truncated), noise())


@pytest.mark.parametrize("quality", [30, 65, 100])
def test_jpeg_encoders_are_those_of_opencv_and_pillow(quality: int) -> None:
    image = smooth()
    encoded = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [int(cv2.IMWRITE_JPEG_QUALITY), quality])[1]
    decoded = cv2.imdecode(encoded, cv2.IMREAD_COLOR)
    assert decoded is not None
    by_opencv = cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB)
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality, subsampling="4:2:0")
    by_pillow = np.array(Image.open(buffer))
    np.testing.assert_array_equal(distortions.jpeg(image, quality, "cv2"), by_opencv)
    np.testing.assert_array_equal(distortions.jpeg(image, quality, "pil"), by_pillow)


@pytest.mark.parametrize("shape", [(80, 100), (100, 80), (64, 64), (33, 200)])
@pytest.mark.parametrize("interpolation", list(distortions.INTERPOLATIONS))
def test_scaling_is_torchvisions(shape: tuple[int, int], interpolation: str) -> None:
    image = noise(*shape)
    mode = transforms.InterpolationMode[interpolation.upper()]
    expected = np.array(transforms.Resize(48, interpolation=mode)(Image.fromarray(image)))
    np.testing.assert_array_equal(distortions.resize_shorter_side(image, 48, interpolation), expected)


def test_grayscale_is_torchvisions() -> None:
    expected = np.array(transforms.Grayscale(3)(Image.fromarray(noise())))
    np.testing.assert_array_equal(distortions.grayscale(noise()), expected)


def test_validation_is_scale_and_centre_crop() -> None:
    image = noise(90, 131)
    expected = transforms.Compose([transforms.Resize(64), transforms.CenterCrop(48)])(Image.fromarray(image))
    augmentation = augmenter(load_size=64, crop_size=48)
    np.testing.assert_array_equal(augmentation.validation(image, generator(), "x"), np.array(expected))


def test_without_random_choices_training_takes_a_crop_of_the_image() -> None:
    image = noise(64, 70)
    augmentation = augmenter(load_size=0, crop_size=40, blur_prob=0, jpg_prob=0, flip=False)
    crops = [augmentation.training(image, generator(seed), "x") for seed in range(20)]
    windows = {(top, left): image[top : top + 40, left : left + 40] for top in range(25) for left in range(31)}
    places = {place for crop in crops for place, window in windows.items() if np.array_equal(crop, window)}
    assert len(places) > 15


def test_all_places_of_the_crop_are_equally_likely() -> None:
    image = np.arange(6 * 6, dtype=np.uint8).reshape(6, 6, 1).repeat(3, axis=2)
    augmentation = augmenter(load_size=0, crop_size=4, blur_prob=0, jpg_prob=0, flip=False)
    corners = Counter(int(augmentation.training(image, generator(seed), "x")[0, 0, 0]) for seed in range(1800))
    assert sorted(corners) == [row * 6 + column for row in range(3) for column in range(3)]
    assert all(abs(count - 200) < 60 for count in corners.values())


class Drawn:
    """What the augmentation asked for, over many images."""

    def __init__(self, augmentation: Augmenter, monkeypatch: pytest.MonkeyPatch, images: int = 4000) -> None:
        self.sigmas: list[float] = []
        self.qualities: list[tuple[str, int]] = []
        self.gray = 0
        self.order: set[str] = set()
        calls: list[str] = []

        def blur(image: np.ndarray, sigma: float, *, truncated: bool) -> np.ndarray:
            self.sigmas.append(sigma)
            calls.append("blur")
            return image

        def jpeg(image: np.ndarray, quality: int, encoder: str) -> np.ndarray:
            self.qualities.append((encoder, quality))
            calls.append("jpeg")
            return image

        def gray(image: np.ndarray) -> np.ndarray:
            assert image.shape == (16, 16, 3)
            self.gray += 1
            calls.append("gray")
            return image

        monkeypatch.setattr(module, "blur", blur)
        monkeypatch.setattr(module, "jpeg", jpeg)
        monkeypatch.setattr(module, "grayscale", gray)
        self.flipped = 0
        # a ramp, whose direction shows the flip
        image = np.tile(np.arange(20, dtype=np.uint8)[None, :, None], (20, 1, 3))
        for seed in range(images):
            calls.clear()
            result = augmentation.training(image, generator(seed), "x")
            self.flipped += int(result[0, 0, 0] > result[0, -1, 0])
            self.order.add(" ".join(calls))


def test_distributions_of_the_published_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = Drawn(augmenter(load_size=20, crop_size=16, cr=True), monkeypatch)
    assert len(drawn.sigmas) == pytest.approx(2000, abs=130)
    assert len(drawn.qualities) == pytest.approx(2000, abs=130)
    assert drawn.gray == pytest.approx(2000, abs=130)
    assert drawn.flipped == pytest.approx(2000, abs=130)
    # uniform on [0, 3]
    assert min(drawn.sigmas) >= 0
    assert max(drawn.sigmas) <= 3
    assert np.mean(drawn.sigmas) == pytest.approx(1.5, abs=0.08)
    assert np.std(drawn.sigmas) == pytest.approx(3 / np.sqrt(12), abs=0.05)
    # every integer from 30 to 100, both ends included, both encoders
    qualities = Counter(quality for _, quality in drawn.qualities)
    assert sorted(qualities) == list(range(30, 101))
    encoders = Counter(encoder for encoder, _ in drawn.qualities)
    assert encoders["cv2"] == pytest.approx(encoders["pil"], abs=200)
    # blur before JPEG before greyscale, each independently of the others
    assert drawn.order == {"", "blur", "jpeg", "gray", "blur jpeg", "blur gray", "jpeg gray", "blur jpeg gray"}


@pytest.mark.parametrize(("only", "expected"), [(False, 0), (True, 100)])
def test_grayscale_only_and_never(only: bool, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = Drawn(augmenter(load_size=20, crop_size=16, grayscale_only=only), monkeypatch, images=100)
    assert drawn.gray == expected


def test_equal_seeds_give_equal_images() -> None:
    augmentation = augmenter(load_size=64, crop_size=48, cr=True)
    first = [augmentation.training(noise(), generator(seed), "x") for seed in range(8)]
    second = [augmentation.training(noise(), generator(seed), "x") for seed in range(8)]
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)
    assert len({image.tobytes() for image in first}) == 8


@pytest.mark.parametrize(("flags", "is_gray"), [({}, False), ({"cr": True}, False), ({"grayscale_only": True}, True)])
def test_validation_is_grey_only_for_greyscale_detectors(flags: dict[str, bool], is_gray: bool) -> None:
    augmentation = augmenter(load_size=64, crop_size=48, **flags)
    for seed in range(10):
        image = augmentation.validation(noise(), generator(seed), "x")
        assert (image == image[..., :1]).all() == is_gray


def test_published_validation_blurs_and_compresses_at_the_middle(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[object] = []

    def blur(image: np.ndarray, sigma: float, *, truncated: bool) -> np.ndarray:
        seen.append((sigma, truncated))
        return image

    def jpeg(image: np.ndarray, quality: int, encoder: str) -> np.ndarray:
        seen.append((quality, encoder))
        return image

    monkeypatch.setattr(module, "blur", blur)
    monkeypatch.setattr(module, "jpeg", jpeg)
    augmenter(load_size=64, crop_size=48, blur_prob=1, jpg_prob=1, published=True).validation(noise(), generator(), "x")
    assert seen == [(1.5, True), (65, "pil")]


@pytest.mark.parametrize("shape", [(30, 30), (30, 100), (100, 30), (47, 48)])
def test_images_smaller_than_the_crop(shape: tuple[int, int]) -> None:
    image = np.full((*shape, 3), 255, np.uint8)
    refusing = augmenter(load_size=0, crop_size=48)
    padding = augmenter(load_size=0, crop_size=48, blur_prob=0, jpg_prob=0, small_images="pad")
    for name in ("training", "validation"):
        with pytest.raises(UserError, match=rf"photo\.png has {shape[1]}x{shape[0]} pixels.*--small_images pad"):
            getattr(refusing, name)(image, generator(), "photo.png")
        padded = getattr(padding, name)(image, generator(), "photo.png")
        assert padded.shape == (48, 48, 3)
        assert (padded == 255).sum() == 3 * min(shape[0], 48) * min(shape[1], 48)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cr": True, "grayscale_only": True}, "--cr and --grayscale_only exclude each other"),
        ({"blur_sig": Range(3.0, 0.0)}, "--blur_sig 3,0"),
        ({"jpg_qual": Range(0, 50)}, "--jpg_qual 0,50"),
        ({"jpg_qual": Range(30.5, 50)}, "two integers"),
        ({"jpg_method": "cv2,gif"}, "--jpg_method cv2,gif: use cv2, pil"),
        ({"rz_interp": ","}, "--rz_interp ,: use bilinear"),
        ({"load_size": 200}, "smaller than the crop of 224"),
    ],
)
def test_bad_settings_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        augmenter(**changes)
