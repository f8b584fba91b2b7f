import itertools
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, RandomResizedCrop, Resize
from torchvision.transforms import functional as tv

from images.decoding import (
    Crop,
    Equalization,
    Header,
    decode_image,
    image_size,
    random_box,
    read_header,
    read_image,
)
from images.distortions import jpeg
from utils.errors import UserError

SIDE = 8


def colours(height: int = SIDE, width: int = SIDE) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def saved(image: Image.Image, path: Path, **options: object) -> Path:
    image.save(path, **options)
    return path


def test_rgb_is_read_as_it_is(tmp_path: Path) -> None:
    image = colours(5, 7)
    decoded = decode_image(saved(Image.fromarray(image), tmp_path / "a.png"))
    assert decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, image)
    assert decoded.flags.writeable


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "webp", "ppm"])
def test_lossless_formats(tmp_path: Path, suffix: str) -> None:
    options = {"lossless": True} if suffix == "webp" else {}
    path = saved(Image.fromarray(colours()), tmp_path / f"a.{suffix}", **options)
    np.testing.assert_array_equal(decode_image(path), colours())


def test_jpeg(tmp_path: Path) -> None:
    path = saved(Image.new("RGB", (16, 16), (200, 100, 50)), tmp_path / "a.jpg", quality=95)
    assert np.abs(decode_image(path).astype(int) - (200, 100, 50)).max() <= 3


def test_grey_is_repeated(tmp_path: Path) -> None:
    grey = colours()[..., 0]
    decoded = decode_image(saved(Image.fromarray(grey), tmp_path / "a.png"))
    np.testing.assert_array_equal(decoded, np.repeat(grey[..., None], 3, axis=2))


def test_one_bit(tmp_path: Path) -> None:
    bits = colours()[..., 0] > 127
    decoded = decode_image(saved(Image.fromarray(bits), tmp_path / "a.png"))
    np.testing.assert_array_equal(decoded[..., 1], np.where(bits, 255, 0))


@pytest.mark.parametrize(
    ("values", "expected"), [([[0, 200, 255]], [0, 200, 255]), ([[0, 257, 65535]], [0, 1, 255]), ([[256]], [1])]
)
def test_integers_of_unknown_range(tmp_path: Path, values: list[list[int]], expected: list[int]) -> None:
    """Of 32 bits nothing says what white is: 8 bits if they suffice, else 16."""
    path = saved(Image.fromarray(np.array(values, dtype=np.int32)), tmp_path / "a.tif")
    np.testing.assert_array_equal(decode_image(path)[0, :, 0], expected)


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_sixteen_bits_stay_so_however_dark(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    if suffix == "pgm":
        path.write_bytes(b"P5 2 1 65535\n" + np.array([0, 200], dtype=">u2").tobytes())
    else:
        Image.fromarray(np.array([[0, 200]], dtype=np.uint16)).save(path)
    np.testing.assert_array_equal(decode_image(path)[0, :, 0], [0, 1])


def test_transparency_is_told(tmp_path: Path) -> None:
    solid = Image.new("RGBA", (4, 4), (9, 9, 9, 255))
    pierced = solid.copy()
    pierced.putpixel((1, 2), (9, 9, 9, 254))
    grey, palette, key = pierced.convert("LA"), solid.convert("RGB").quantize(4), solid.convert("RGB")
    assert not read_image(saved(solid, tmp_path / "a.png")).transparent
    assert not read_image(saved(key, tmp_path / "b.png", transparency=(1, 2, 3))).transparent
    assert read_image(saved(pierced, tmp_path / "c.png")).transparent
    assert read_image(saved(grey, tmp_path / "d.png")).transparent
    assert read_image(saved(palette, tmp_path / "e.png", transparency=0)).transparent
    assert read_image(saved(key, tmp_path / "f.png", transparency=(9, 9, 9))).transparent


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_dropped(tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(colours()).convert(mode)
    expected = np.asarray(image.convert("RGB"))
    image.putalpha(Image.fromarray(colours()[..., 2]))
    np.testing.assert_array_equal(decode_image(saved(image, tmp_path / "a.png")), expected)


@pytest.mark.parametrize("transparency", [None, 3, bytes(range(16))])
def test_palette(tmp_path: Path, transparency: object) -> None:
    image = Image.fromarray(colours()).quantize(16)
    expected = np.asarray(image.convert("RGB"))
    options = {} if transparency is None else {"transparency": transparency}
    path = saved(image, tmp_path / "a.png", **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(decode_image(path), expected)


def test_cmyk(tmp_path: Path) -> None:
    path = saved(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), tmp_path / "a.jpg", quality=95)
    assert np.abs(decode_image(path).astype(int) - (255, 0, 0)).max() <= 6


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_sixteen_bit_grey_is_scaled(tmp_path: Path, suffix: str) -> None:
    values = np.array([[0, 128, 129, 257], [32767, 32768, 65406, 65535]], dtype=np.uint16)
    decoded = decode_image(saved(Image.fromarray(values), tmp_path / f"a.{suffix}"))
    np.testing.assert_array_equal(decoded[..., 0], [[0, 0, 1, 1], [127, 128, 254, 255]])
    np.testing.assert_array_equal(decoded, np.rint(values / 257)[..., None].repeat(3, axis=2))


def test_big_endian_sixteen_bit_grey(tmp_path: Path) -> None:
    (tmp_path / "a.pgm").write_bytes(b"P5 2 1 65535\n" + np.array([257, 65535], dtype=">u2").tobytes())
    np.testing.assert_array_equal(decode_image(tmp_path / "a.pgm")[0, :, 0], [1, 255])


@pytest.mark.parametrize(
    ("values", "expected"), [([[0.0, 0.5, 1.0]], [0, 128, 255]), ([[0.0, 99.6, 255.0]], [0, 100, 255])]
)
def test_float_grey(tmp_path: Path, values: list[list[float]], expected: list[int]) -> None:
    path = saved(Image.fromarray(np.array(values, dtype=np.float32)), tmp_path / "a.tiff")
    np.testing.assert_array_equal(decode_image(path)[0, :, 2], expected)


@pytest.mark.parametrize(
    "values",
    [
        np.array([[-1.0, 0.5]], dtype=np.float32),
        np.array([[0.0, 300.0]], dtype=np.float32),
        np.array([[0.0, np.nan]], dtype=np.float32),
        np.array([[0, 70000]], dtype=np.int32),
        np.array([[-5, 7]], dtype=np.int32),
    ],
)
def test_values_without_a_reading_are_refused(tmp_path: Path, values: np.ndarray) -> None:
    path = saved(Image.fromarray(values), tmp_path / "a.tiff")
    with pytest.raises(UserError, match=r"a\.tiff has values from"):
        decode_image(path)


def test_animation_gives_its_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    path = saved(frames[0], tmp_path / "a.png", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(decode_image(path), np.broadcast_to([255, 0, 0], (4, 4, 3)))


def test_one_pixel(tmp_path: Path) -> None:
    path = saved(Image.new("L", (1, 1), 7), tmp_path / "a.png")
    np.testing.assert_array_equal(decode_image(path), [[[7, 7, 7]]])


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("suffix", ["avif", "png", "tiff", "webp"])
def test_exif_rotation_is_applied_in_no_format(tmp_path: Path, suffix: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options: dict[str, object] = {"webp": {"lossless": True}, "avif": {"quality": 100, "subsampling": "4:4:4"}}.get(
        suffix, {}
    )
    path = saved(Image.fromarray(colours(8, 16)), tmp_path / f"a.{suffix}", exif=exif, **options)
    # AVIF stores luma and chroma
    np.testing.assert_allclose(decode_image(path), colours(8, 16), atol=3 if suffix == "avif" else 0)


def test_header_tells_format_and_quality_whatever_the_name(tmp_path: Path) -> None:
    picture = Image.fromarray(colours(16, 24))
    for quality in (1, 30, 75, 95, 100):
        picture.save(tmp_path / "a.png", format="JPEG", quality=quality)
        assert read_header(tmp_path / "a.png") == Header(16, 24, "JPEG", quality)
    picture.save(tmp_path / "a.jpg", format="PNG")
    assert read_header(tmp_path / "a.jpg") == Header(16, 24, "PNG", None)


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("suffix", ["jpg", "png", "tiff", "webp"])
def test_header_gives_the_size_of_the_decoded_image(tmp_path: Path, suffix: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(Image.new("RGB", (12, 5)), tmp_path / f"a.{suffix}", exif=exif)
    assert image_size(path) == decode_image(path).shape[:2]


def damaged_files(folder: Path) -> dict[str, bytes]:
    png = saved(Image.fromarray(colours(64, 64)), folder / "whole.png").read_bytes()
    jpeg = saved(Image.fromarray(colours(64, 64)), folder / "whole.jpg").read_bytes()
    broken = bytearray(png)
    broken[len(png) // 2] ^= 0xFF
    return {
        "empty": b"",
        "text": b"this is no image",
        "html": b"<html>404</html>",
        "truncated png": png[: len(png) // 2],
        "truncated jpeg": jpeg[: len(jpeg) // 2],
        "header only": png[:20],
        "signature only": png[:8],
        "corrupt png": bytes(broken),
        "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n",
    }


@pytest.mark.parametrize(
    "kind",
    [
        "empty",
        "text",
        "html",
        "truncated png",
        "truncated jpeg",
        "header only",
        "signature only",
        "corrupt png",
        "postscript",
    ],
)
def test_damaged_files(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "bad.png"
    path.write_bytes(damaged_files(tmp_path)[kind])
    with pytest.raises(UserError, match=r"bad\.png is (empty|damaged).*--skip_bad_images"):
        decode_image(path)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no such image: .*gone\.png"):
        decode_image(tmp_path / "gone.png")
    with pytest.raises(UserError, match="is a folder"):
        decode_image(tmp_path)


@pytest.mark.parametrize("pixels", [64 - 1, 64 // 2 - 1])
@pytest.mark.parametrize("read", [decode_image, image_size])
def test_decompression_bombs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: Callable[[Path], object], pixels: int
) -> None:
    """Above the limit, where Pillow warns, and above twice the limit, where it raises."""
    path = saved(Image.fromarray(colours()), tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", SIDE * SIDE)
    assert read(path) is not None
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", pixels)
    with pytest.raises(UserError, match=rf"bomb\.png has more than {pixels} pixels"):
        read(path)


def test_the_guard_is_on() -> None:
    assert Image.MAX_IMAGE_PIXELS is not None


SIDES = (1, 5, 223, 224, 225, 226, 227, 256, 301)


@pytest.mark.parametrize(("height", "width"), list(itertools.product(SIDES, SIDES)))
def test_center_crop_is_torchvisions(height: int, width: int) -> None:
    image = colours(height, width)
    expected = np.asarray(CenterCrop(224)(Image.fromarray(image)))
    np.testing.assert_array_equal(Crop("center")(image, seed=0, name="a"), expected)


def test_no_crop_returns_the_image() -> None:
    image = colours()
    assert Crop("none")(image, seed=0, name="a") is image


@pytest.mark.parametrize(("height", "width"), [(256, 256), (300, 299), (200, 400), (400, 200), (1, 1), (3, 50)])
def test_random_crop_resizes_its_box_as_torchvision(height: int, width: int) -> None:
    image = colours(height, width)
    crop = Crop("random")(image, seed=3, name="a.png")
    box = random_box(height, width, seed=3, name="a.png")
    expected = tv.resized_crop(Image.fromarray(image), *box, size=[224, 224])
    assert crop.shape == (224, 224, 3)
    np.testing.assert_array_equal(crop, np.asarray(expected))


def test_random_boxes_have_torchvisions_distribution() -> None:
    side = 256
    boxes = [random_box(side, side, seed=0, name=str(i)) for i in range(3000)]
    for top, left, rows, columns in boxes:
        assert 0 <= top <= side - rows
        assert 0 <= left <= side - columns
        assert 0.985 * side * side <= rows * columns <= side * side
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        image = torch.zeros(3, side, side)
        theirs = [RandomResizedCrop.get_params(image, [0.99, 1.0], [0.99, 1.0]) for _ in range(3000)]
    np.testing.assert_allclose(np.mean(boxes, axis=0), np.mean(theirs, axis=0), atol=0.1)
    np.testing.assert_allclose(np.std(boxes, axis=0), np.std(theirs, axis=0), atol=0.1)


@pytest.mark.parametrize(("height", "width"), [(100, 400), (400, 100), (1, 2), (2, 1), (7, 7)])
def test_box_of_odd_shapes_is_torchvisions_fallback(height: int, width: int) -> None:
    top, left, rows, columns = random_box(height, width, seed=0, name="x")
    assert rows >= 1
    assert columns >= 1
    assert top + rows <= height
    assert left + columns <= width
    assert abs(rows - columns) <= max(1, 0.011 * max(rows, columns))


def test_random_crop_depends_on_seed_and_name_only() -> None:
    image = colours(64, 64)
    crop = Crop("random", size=32)
    first = crop(image, seed=1, name="a")
    np.random.default_rng().random()
    torch.rand(3)
    np.testing.assert_array_equal(crop(image, seed=1, name="a"), first)
    others = [random_box(640, 640, seed=seed, name=name) for seed, name in ((1, "a"), (1, "b"), (2, "a"))]
    assert len(set(others)) == 3


@pytest.mark.parametrize("shape", [(256, 256), (300, 411), (513, 260), (100, 31), (1, 1), (7, 500)])
def test_scaling_is_that_of_torchvision(shape: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    expected = Compose([Resize(256), CenterCrop(224)])(Image.fromarray(image))
    np.testing.assert_array_equal(Crop("center", resize=256)(image, seed=0, name="x"), np.asarray(expected))


@pytest.mark.parametrize("kind", ["none", "center", "random"])
@pytest.mark.parametrize("resize", [0, 9])
def test_size_is_known_before(kind: str, resize: int) -> None:
    crop = Crop(kind, size=7, resize=resize)
    for shape in ((12, 5), (5, 12), (9, 9), (1, 30)):
        assert crop.output_size(*shape) == crop(colours(*shape), seed=0, name="a").shape[:2]


def test_equalized_images_differ_by_nothing_but_the_picture() -> None:
    """A picture that comes as JPEG of the common quality ends as the same picture stored without loss does."""
    picture = np.asarray(Image.fromarray(colours(8, 8)).resize((100, 90), Image.Resampling.BICUBIC))
    same = Equalization(48, 80)
    plain, compressed = same(picture), same(jpeg(picture, 80, "pil"))
    assert plain.shape == compressed.shape == (48, 48, 3)
    assert np.abs(plain.astype(int) - compressed).mean() < 1.5
    # 21 and 26 pixels to the middle, and the grid of chroma blocks
    np.testing.assert_array_equal(plain, jpeg(picture[16:64, 16:64], 80, "pil"))


def test_unknown_crop() -> None:
    with pytest.raises(UserError, match="none, center, random"):
        Crop("middle")


def test_multi_picture_jpeg_gives_its_first_picture(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("white", "black")]
    path = saved(frames[0], tmp_path / "a.jpg", format="MPO", save_all=True, append_images=frames[1:])
    assert decode_image(path).min() >= 250
