"""What a user can get wrong: one line that names the file, exit code 2, and nothing written; odd images are read."""

from __future__ import annotations

import csv
import errno
import json
import os
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from ranking_runs import Run, Scripts, contents

import utils.files
from detectors.detector import load_detector
from detectors.networks import build_model
from fmap_ranking.ranking import Ranking
from images.decoding import decode_image

pytestmark = pytest.mark.usefixtures("loaded_once")

Damage = Callable[[Path, Path], None]
STATE = Path("out") / ".states" / "ranking-resnet18_0.5-gan.npz"
FOLDER = Path("out") / "fmap_relevances" / "resnet18" / "gan_0.5"


@pytest.fixture
def data(small_images: Path, tmp_path: Path) -> Path:
    """The small images, to be damaged."""
    return Path(shutil.copytree(small_images, tmp_path / "data"))


@pytest.fixture
def weights(small_weights: Path, tmp_path: Path) -> Path:
    """The small detector, to be damaged."""
    return Path(shutil.copy(small_weights, tmp_path / "weights.pth"))


@pytest.fixture
def rank(scripts: Scripts, data: Path, weights: Path) -> Callable[..., Run]:
    def run(*changes: object) -> Run:
        return scripts(
            "rank_fmaps",
            *("--arch", "resnet18", "--weights", weights, "--dataset_dir", data, "--gan_name", "gan"),
            *("--crop", "none", "--bsize", 4, "--device", "cpu", "--figures", "False", "--output_dir", "out"),
            *changes,
        )

    return run


def left() -> dict[str, bytes]:
    """All files below the output folder but the saved state of a pass."""
    return {name: data for name, data in contents(Path("out")).items() if not name.startswith(".states/")}


def assert_one_line(run: Run, *words: str) -> None:
    """The last line says what is wrong; those before it say what is computed, and of what."""
    *before, last = run.err.splitlines()
    assert run.code == 2, run.err
    assert run.err.endswith("\n")
    assert last.startswith("error: ")
    assert all(line.startswith(("gan: ", "warning: ")) for line in before), run.err
    assert [word for word in words if word not in last] == []


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def bomb(side: int) -> Callable[[Path], None]:
    """A tiny PNG that says it has side x side pixels."""

    def write(path: Path) -> None:
        header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
        pixels = chunk(b"IDAT", zlib.compress(bytes(1000)))
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + pixels + chunk(b"IEND", b""))

    return write


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2000])


def replace(content: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(content) and None


BAD_IMAGES: dict[str, Callable[[Path], None]] = {
    "truncated": truncate,
    "no image": replace(b"GIF? no."),
    "empty": replace(b""),
    "bomb": bomb(30_000),
    "large enough to warn": bomb(10_000),
}


@pytest.mark.parametrize("damage", BAD_IMAGES.values(), ids=BAD_IMAGES)
def test_bad_image(rank: Callable[..., Run], data: Path, damage: Callable[[Path], None]) -> None:
    bad = data / "gan" / "1_fake" / "c.png"
    damage(bad)
    assert_one_line(rank(), str(bad), "--skip_bad_images")
    assert left() == {}


def test_bad_images_are_skipped_on_request(rank: Callable[..., Run], data: Path) -> None:
    bad = [data / "gan" / name for name in ("0_real/b.png", "1_fake/a.png", "1_fake/c.png")]
    for path, damage in zip(bad, (truncate, bomb(30_000), replace(b"")), strict=True):
        damage(path)
    run = rank("--skip_bad_images")
    assert run.code == 0, run.err
    lines = [line for line in run.err.splitlines() if line.startswith("skipped: ")]
    assert len(lines) == len(bad)
    for line, path in zip(lines, bad, strict=True):
        assert line.startswith(f"skipped: {path} ")
    with (FOLDER / "gan-samples.csv").open() as file:
        seen = [row["path"] for row in csv.DictReader(file)]
    assert len(seen) == 8
    assert not {f"gan/{path.parent.name}/{path.name}" for path in bad} & set(seen)
    record = json.loads((FOLDER / "gan-fake.csv.json").read_text())
    assert [name for name, _ in record["skipped"]] == [path.relative_to(data).as_posix() for path in bad]
    assert record["counts"]["fake"] == {"images": 4, "correct": 3, "used": 3}


def test_nothing_but_bad_images(rank: Callable[..., Run], data: Path) -> None:
    for path in data.rglob("*.png"):
        path.write_bytes(b"")
    run = rank("--skip_bad_images", "True")
    assert run.code == 2
    lines = run.err.splitlines()
    assert sum(line.startswith("skipped: ") for line in lines) == 11
    assert lines[-1].startswith("error: gan: ")
    assert left() == {}


def remove(name: str) -> Callable[[Path], None]:
    return lambda data: shutil.rmtree(data / name)


def empty(name: str) -> Callable[[Path], None]:
    def damage(data: Path) -> None:
        for path in (data / name).iterdir():
            path.rename(path.with_suffix(".txt"))

    return damage


def into_classes(data: Path) -> None:
    for label in ("0_real", "1_fake"):
        for name in ("cat", "dog"):
            shutil.copytree(data / "gan" / label, data / "gan" / name / label)
        shutil.rmtree(data / "gan" / label)


def empty_class(data: Path) -> None:
    into_classes(data)
    empty("gan/dog/1_fake")(data)


def half_a_class(data: Path) -> None:
    into_classes(data)
    remove("gan/dog/1_fake")(data)


@pytest.mark.parametrize(
    ("damage", "changes", "words"),
    [
        (remove("."), (), ["data", "no data set folder"]),
        (remove("gan"), (), ["data/gan", "--gan_name"]),
        (remove("gan/1_fake"), (), ["data/gan/1_fake"]),
        (empty("gan/1_fake"), (), ["data/gan/1_fake", "no images"]),
        (empty_class, (), ["data/gan/dog/1_fake", "no images"]),
        (half_a_class, (), ["data/gan/dog/1_fake", "no folder"]),
        (into_classes, ("--have_classes", "False"), ["data/gan", "--have_classes True"]),
        (lambda data: None, ("--have_classes", "True"), ["data/gan", "--have_classes False"]),
        (lambda data: None, ("--gan_name", "gan", "other"), ["data/other", "--gan_name"]),
    ],
)
def test_bad_image_set(
    rank: Callable[..., Run], data: Path, damage: Callable[[Path], None], changes: tuple[str, ...], words: list[str]
) -> None:
    damage(data)
    assert_one_line(rank(*changes), *words)
    assert not Path("out").exists()


class Malicious:
    """Leaves a witness when it is unpickled."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        return os.system, (f"touch {self.witness}",)


def malicious(path: Path) -> None:
    state = build_model("resnet18").state_dict()
    torch.save({"model": state | {"extra": Malicious(path.with_name("witness"))}}, path)


def checkpoint(arch: str, outputs: int) -> Callable[[Path], None]:
    return lambda path: torch.save({"model": build_model(arch, outputs).state_dict()}, path)


def without_a_tensor(path: Path) -> None:
    state = build_model("resnet18").state_dict()
    del state["layer1.0.conv1.weight"]
    torch.save(state, path)


def not_finite(path: Path) -> None:
    state = build_model("resnet18").state_dict()
    state["conv1.weight"][0, 0, 0, 0] = float("nan")
    torch.save(state, path)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (Path.unlink, ["not found"]),
        (truncate, ["not a readable checkpoint"]),
        (replace(b""), ["not a readable checkpoint"]),
        (replace(b"\x80\x02."), []),
        (checkpoint("efb0", 1), ["not of resnet18", "efb0"]),
        (checkpoint("resnet34", 1), ["not of resnet18", "resnet34"]),
        (checkpoint("resnet18", 1000), ["1000 outputs where 1 expected"]),
        (malicious, ["hold more than tensors"]),
        (without_a_tensor, ["layer1.0.conv1.weight"]),
        (not_finite, ["conv1.weight", "not finite"]),
    ],
)
def test_bad_checkpoint(
    rank: Callable[..., Run], weights: Path, damage: Callable[[Path], None], words: list[str]
) -> None:
    damage(weights)
    assert_one_line(rank(), str(weights), *words)
    assert not weights.with_name("witness").exists()
    assert not Path("out").exists()


def test_the_malicious_checkpoint_would_have_run(tmp_path: Path) -> None:
    malicious(tmp_path / "weights.pth")
    torch.load(tmp_path / "weights.pth", weights_only=False)
    assert (tmp_path / "witness").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (("--device", "tpu"), ["unknown device 'tpu'"]),
        (("--device", "cuda:99"), ["cuda:99"]),
        (("--rule", "gamma"), ["unknown rule 'gamma'", "beta0"]),
        (("--rule", "beta-1"), ["unknown rule"]),
        (("--fake_confidence", "0.4"), ["0.5 <= --fake_confidence"]),
        (("--fake_confidence", "1.5"), ["--fake_confidence", "from 0 to 1"]),
        (("--fake_confidence", "nan"), ["--fake_confidence", "from 0 to 1"]),
        (("--real_confidence", "0.6"), ["--real_confidence <= 0.5"]),
        (("--real_confidence", "-0.1"), ["--real_confidence", "from 0 to 1"]),
        (("--real_confidence", "high"), ["--real_confidence"]),
        (("--topk", "4801"), ["4801", "4800 feature maps"]),
        (("--topk", "0"), ["--topk"]),
        (("--bsize", "0"), ["--bsize"]),
        (("--num_real", "-1"), ["--num_real"]),
        (("--arch", "vgg16"), ["vgg16", "resnet50"]),
        (("--crop", "corner"), ["--crop"]),
        (("--labels", "unknown"), ["--labels"]),
        (("--save_pt_files", "perhaps"), ["--save_pt_files"]),
        (("--gan_name", "../gan"), ["../gan"]),
        (("--blur_jpg", "../0.5"), ["../0.5"]),
        (("--compat_se", "weights.pth"), ["--compat_se", "EfficientNet"]),
        (("--surprise",), ["--surprise"]),
    ],
)
def test_bad_argument(rank: Callable[..., Run], changes: tuple[str, ...], words: list[str]) -> None:
    assert_one_line(rank(*changes), *words)
    assert not Path("out").exists()


def test_no_weights_at_the_usual_place(scripts: Scripts, data: Path) -> None:
    run = scripts("rank_fmaps", "--arch", "resnet18", "--blur_jpg", "none", "--dataset_dir", data, "--gan_name", "gan")
    assert_one_line(run, "weights/resnet18/blur_jpg_probnone.pth", "--weights")


def test_nothing_to_rank(rank: Callable[..., Run]) -> None:
    assert_one_line(rank("--fake_confidence", "1", "--real_confidence", "0"), "gan", "--fake_confidence")
    assert left() == {}


@pytest.mark.parametrize("place", [Path("out"), FOLDER.parent.parent, FOLDER.parent, FOLDER])
def test_file_where_a_folder_should_be(rank: Callable[..., Run], place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text("in the way")
    assert_one_line(rank(), "not a folder")
    assert place.read_text() == "in the way"


def test_folder_where_a_file_should_be(rank: Callable[..., Run]) -> None:
    (FOLDER / "gan-fake.csv").mkdir(parents=True)
    assert_one_line(rank(), "gan-fake.csv", "this is a folder")


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write everywhere")
def test_folder_without_permission(rank: Callable[..., Run]) -> None:
    Path("out").mkdir(mode=0o555)
    assert_one_line(rank(), "out", "permission denied")
    assert contents(Path("out")) == {}


def fill_disk(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """The disk is full once so many files have been written; what does not fit is cut short."""
    original, left = utils.files._flush_to_disk, [after]

    def flush(path: Path) -> None:
        if not path.is_dir():
            if not left[0]:
                os.truncate(path, 10)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            left[0] -= 1
        original(path)

    monkeypatch.setattr(utils.files, "_flush_to_disk", flush)


def test_full_disk(rank: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    fill_disk(monkeypatch, after=0)
    assert_one_line(rank(), str(STATE), "the disk is full")
    assert contents(Path("out")) == {}


def test_disk_that_fills_up_while_results_are_written(
    rank: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was written is whole, and no image has to be seen again once there is space."""
    assert rank().code == 0
    expected = contents(Path("out"))
    for after in (1, 4, 6):
        shutil.rmtree("out")
        with monkeypatch.context() as patch:
            fill_disk(patch, after)
            assert_one_line(rank(), "out/", "the disk is full")
        assert STATE.stat().st_size > 1000
        assert left().items() <= expected.items()
        assert len(left()) == after - 1
        done = rank("--resume")
        assert done.code == 0, done.err
        assert contents(Path("out")) == expected


def test_disk_that_fills_up_while_pictures_are_written(
    rank: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    fill_disk(monkeypatch, after=2)
    assert_one_line(rank("--save_pt_files"), "out/pt_files", ".png.pt", "the disk is full")
    assert sorted(path.suffix for path in Path("out").rglob("*") if path.is_file()) == [".png", ".pt"]


def test_damaged_state(rank: Callable[..., Run]) -> None:
    STATE.parent.mkdir(parents=True)
    STATE.write_bytes(b"PK no state")
    assert_one_line(rank("--resume"), str(STATE), "damaged")
    assert list(contents(Path("out"))) == [str(STATE.relative_to("out"))]
    assert rank().code == 0


def colours(height: int, width: int) -> Image.Image:
    rng = np.random.default_rng(height * width)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


ODD_IMAGES: dict[str, Callable[[], Image.Image]] = {
    "cmyk.jpg": lambda: colours(48, 48).convert("CMYK"),
    "cmyk.tif": lambda: colours(48, 48).convert("CMYK"),
    "16-bit.png": lambda: Image.fromarray(np.arange(48 * 48, dtype=np.uint16).reshape(48, 48) * 28),
    "16-bit.tif": lambda: Image.fromarray(np.arange(48 * 48, dtype=np.uint16).reshape(48, 48) * 28),
    "palette.png": lambda: colours(48, 48).quantize(16),
    "grey.png": lambda: colours(48, 48).convert("L"),
    "grey.jpg": lambda: colours(48, 48).convert("L"),
    "alpha.png": lambda: colours(48, 48).convert("RGBA"),
    "alpha.webp": lambda: colours(48, 48).convert("RGBA"),
    "grey_alpha.png": lambda: colours(48, 48).convert("LA"),
    "bits.png": lambda: colours(48, 48).convert("1"),
    "one_pixel.png": lambda: colours(1, 1),
    "one_row.png": lambda: colours(1, 300),
    "large.png": lambda: colours(300, 260),
    "odd.bmp": lambda: colours(47, 31),
}


@pytest.mark.parametrize(("crop", "rule"), [("none", "beta0"), ("none", "epsilon"), ("center", "beta0")])
def test_odd_images_of_many_sizes(rank: Callable[..., Run], data: Path, weights: Path, crop: str, rule: str) -> None:
    """Every one of them is scored, and those that count are explained, whatever else is in the set."""
    fakes = data / "gan" / "1_fake"
    for name, make in ODD_IMAGES.items():
        make().save(fakes / name)
    run = rank(
        *("--crop", crop, "--rule", rule, "--fake_confidence", "0.5", "--real_confidence", "0.5"),
        "--save_pt_files",
    )
    assert run.code == 0, run.err
    # Real images are all PNG here, and fakes are not.
    assert run.err.count("warning: gan: real and fake images differ") == 1
    with (FOLDER / "gan-samples.csv").open() as file:
        rows = {Path(row["path"]).name: row for row in csv.DictReader(file) if row["label"] == "1"}
    assert rows.keys() >= ODD_IMAGES.keys()
    assert all(0 <= float(row["probability"]) <= 1 for row in rows.values())
    assert any(rows[name]["used"] == "1" for name in ODD_IMAGES)
    maps = Path("out") / "pt_files" / "resnet18" / "gan_0.5" / "gan" / "1_fake"
    assert {path.stem for path in maps.glob("*.pt")} == {name for name, row in rows.items() if row["used"] == "1"}
    for path in maps.glob("*.pt"):
        relevance = torch.load(path, weights_only=True)["relevance"]
        height, width = decode_image(fakes / path.stem).shape[:2] if crop == "none" else (224, 224)
        assert relevance.shape == (height, width)
        assert torch.isfinite(relevance).all()
    if crop == "none":
        detector = load_detector("resnet18", weights, "cpu")
        for name in ODD_IMAGES:
            pixels = torch.from_numpy(decode_image(fakes / name)).permute(2, 0, 1)[None]
            with torch.no_grad():
                probability = float(torch.sigmoid(detector.model(detector.inputs(pixels))))
            assert abs(float(rows[name]["probability"]) - probability) < 1e-4


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("map,omega\nconv1.#0(T=64),0.5\n", ["line 1", "expected header 'key,mean_relevance'"]),
        ("", ["damaged or not a table"]),
        ("key,mean_relevance\n", ["no feature map"]),
        ("key,mean_relevance\nconv1.#0(T=64),0.5\nconv9.#0(T=64),0.4\n", ["line 3", "no layer conv9"]),
        ("key,mean_relevance\nconv1.#64(T=64),0.5\n", ["line 2", "no channel 64"]),
        ("key,mean_relevance\nconv1.#0(T=32),0.5\n", ["line 2", "64 channels"]),
        ("key,mean_relevance\nconv1.#0(T=64),many\n", ["line 2", "not a number"]),
        ("key,mean_relevance\nconv1.#0(T=64),0.1\nconv1.#1(T=64),0.2\n", ["line 3", "descending"]),
        ("key,mean_relevance\n../../x.#0(T=64),0.1\n", ["line 2"]),
    ],
)
def test_bad_ranking(scripts: Scripts, tmp_path: Path, content: str, words: list[str]) -> None:
    good, bad = tmp_path / "good.csv", tmp_path / "bad.csv"
    Ranking.from_values([("conv1", 64)], np.linspace(0, 0.01, 64)).write(good)
    bad.write_text(content)
    run = scripts("compare_rankings", good, bad, "--arch", "resnet18", "--output_dir", "out")
    assert_one_line(run, str(bad), *words)
    assert not Path("out").exists()
