"""The registry, checkpoints in all forms, and every way a checkpoint can be wrong."""

import argparse
import hashlib
import json
import os
import re
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torchvision.transforms import Compose, Normalize, ToTensor

from detectors.checkpoints import with_squeeze_excite_of
from detectors.choice import DetectorChoice
from detectors.detector import Detector, load_detector, load_imagenet_classifier
from detectors.devices import resolve_device, use_device
from detectors.heads import OneLogit
from detectors.networks import (
    Architecture,
    architectures,
    boxed_rules,
    build_model,
    canonical_architecture,
    get_architecture,
    load_installed_plugins,
    load_plugin,
    plain_rules,
    register_architecture,
    unregister_architecture,
)
from detectors.transforms import IMAGENET_MEAN, IMAGENET_STD, Bounds, Normalise
from lrp import RuleTable, register_module
from lrp.layers import MODULES
from lrp.operations import Operation
from lrp.rules import PassThrough, ZBox
from utils.errors import UserError
from utils.settings import read_settings

# Parameters of the ImageNet classifiers, in thousands: torchvision's documentation of the models
PARAMETERS = {
    **{"resnet18": 11_690, "resnet34": 21_798, "resnet50": 25_557, "resnet101": 44_549, "resnet152": 60_193},
    **{"efb0": 5_289, "efb1": 7_794, "efb2": 9_110, "efb3": 12_233, "efb4": 19_342, "efb5": 30_390},
    **{"efb6": 43_041, "efb7": 66_348},
}
PUBLISHED = [
    "resnet50-nodown",
    "npr",
    "safe",
    "ladeda9",
    "lgrad",
    "dire",
    "lnp",
    "fredect",
    "community-forensics",
    "univfd",
]
BUILT_IN = [*(f"resnet{depth}" for depth in (18, 34, 50, 101, 152)), *(f"efb{scale}" for scale in range(8))]


class TinyNet(nn.Module):
    def __init__(self, outputs: int, width: int = 4) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3)
        self.bn = nn.BatchNorm2d(width)
        self.head = nn.Linear(width, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.bn(self.conv(x)).relu().mean(dim=(2, 3)))


@pytest.fixture
def tiny() -> Iterator[str]:
    register_architecture(Architecture("tiny", TinyNet, "head", "conv", aliases=("tiny-net",)))
    register_architecture(Architecture("tiny-wide", lambda outputs: TinyNet(outputs, 8), "head", "conv"))
    yield "tiny"
    unregister_architecture("tiny")
    unregister_architecture("tiny-wide")


def save(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def refusal(arch: str, path: Path, load: Callable[..., Detector] = load_detector, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        load(arch, path, "cpu", **options)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def test_registry_holds_the_architectures_in_order() -> None:
    names = architectures()
    assert names[: len(BUILT_IN)] == BUILT_IN
    assert set(PUBLISHED) <= set(names)


@pytest.mark.parametrize("arch", BUILT_IN)
def test_every_architecture_builds_and_names_real_layers(arch: str) -> None:
    model = build_model(arch, 1)
    architecture = get_architecture(arch)
    modules = dict(model.named_modules())
    assert architecture.gradcam_layer in modules
    assert modules[architecture.last_layer].out_features == 1
    assert architecture.imagenet_files


@pytest.mark.parametrize("arch", ["resnet18", "efb0"])
@pytest.mark.parametrize("outputs", [1, 1000])
def test_number_of_logits(arch: str, outputs: int) -> None:
    model = build_model(arch, outputs).eval()
    with torch.no_grad():
        assert model(torch.zeros(2, 3, 65, 49)).shape == (2, outputs)


def test_efficientnet_can_be_differentiated_twice() -> None:
    x = torch.rand(1, 3, 32, 32, requires_grad=True)
    (gradient,) = torch.autograd.grad(build_model("efb0").eval()(x).sum(), x, create_graph=True)
    assert gradient.grad_fn is not None


@pytest.mark.parametrize("arch", PARAMETERS)
def test_networks_have_as_many_parameters_as_published(arch: str) -> None:
    with torch.device("meta"):
        model = build_model(arch, outputs=1000)
    assert round(sum(parameter.numel() for parameter in model.parameters()) / 1000) == PARAMETERS[arch]


@pytest.mark.parametrize("spelling", ["efb0", "EFB0", "efficientnet-b0", "EfficientNet-B0"])
def test_spellings_of_efficientnet(spelling: str) -> None:
    assert canonical_architecture(spelling) == "efb0"


def test_unknown_architecture_lists_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"'res50'.*resnet50.*efb7"):
        canonical_architecture("res50")


@pytest.mark.parametrize("name", ["resnet50", "Tiny", "../tiny2", "", ".."])
def test_register_refuses_taken_and_unfit_names(tiny: str, name: str) -> None:
    with pytest.raises(ValueError, match="architecture name"):
        register_architecture(Architecture(name, TinyNet, "head", "conv"))


def test_failed_registration_leaves_nothing(tiny: str) -> None:
    before = architectures()
    with pytest.raises(ValueError, match="efb0"):
        register_architecture(Architecture("new", TinyNet, "head", "conv", aliases=("efb0",)))
    assert architectures() == before
    with pytest.raises(UserError):
        canonical_architecture("new")


@pytest.mark.parametrize("arch", ["resnet50", "efb0"])
def test_reference_checkpoints(arch: str, shared_dir: Path, golden_weights: Any) -> None:
    detector = load_detector(arch, golden_weights(arch), "cpu")
    assert not detector.model.training
    assert re.fullmatch("[0-9a-f]{64}", detector.sha256)
    name, p_expected = next(
        (row["path"], row["p_detector_crop224"][arch])
        for row in json.loads((shared_dir / "reference/golden/images_ab.json").read_text())
        if row["label"] == 1 and row["path"].startswith("cyclegan")
    )
    picture = np.array(Image.open(shared_dir / "forensynths_sample" / name).convert("RGB"))[16:240, 16:240]
    with torch.no_grad():
        logit = detector.model(detector.inputs(torch.from_numpy(picture.copy()).permute(2, 0, 1)[None]))
    assert torch.sigmoid(logit).item() == pytest.approx(p_expected, abs=1e-4)


@pytest.mark.parametrize("arch", ["resnet50", "efb0"])
def test_loaded_tensors_are_those_of_the_reference(arch: str, shared_dir: Path, golden_weights: Any) -> None:
    digest = hashlib.sha256()
    state = load_detector(arch, golden_weights(arch), "cpu").model.state_dict()
    for key in sorted(state):
        array = np.ascontiguousarray(state[key].contiguous().numpy())
        digest.update(f"{key} {array.dtype.str} {array.shape}\n".encode() + array.tobytes())
    expected = json.loads((shared_dir / "reference" / "weights_sha256.json").read_text())
    assert digest.hexdigest() in json.dumps(expected)


def test_preprocess_is_totensor_and_normalize(tiny: str, tmp_path: Path) -> None:
    detector = load_detector(tiny, save(tmp_path / "w.pth", TinyNet(1).state_dict()), "cpu")
    picture = np.random.default_rng(0).integers(0, 256, (31, 17, 3), dtype=np.uint8)
    expected = Compose([ToTensor(), Normalize(IMAGENET_MEAN, IMAGENET_STD)])(picture)
    images = torch.from_numpy(picture).permute(2, 0, 1)[None]
    x = detector.inputs(images)
    assert torch.equal(x[0], expected)
    assert x.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(images, torch.from_numpy(picture).permute(2, 0, 1)[None])


@pytest.mark.parametrize("images", [torch.zeros(1, 3, 4, 4), torch.zeros(3, 4, 4, dtype=torch.uint8)])
def test_preprocess_refuses_other_input(tiny: str, tmp_path: Path, images: torch.Tensor) -> None:
    detector = load_detector(tiny, save(tmp_path / "w.pth", TinyNet(1).state_dict()), "cpu")
    with pytest.raises(ValueError, match="uint8"):
        detector.inputs(images)


def accepted_forms(state: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Contents of .pth files that all are the same network."""

    def prefixed(prefix: str) -> dict[str, torch.Tensor]:
        return {prefix + key: value for key, value in state.items()}

    return {
        "bare": state,
        "training": {"model": state, "optimizer": {"lr": 1e-4, "steps": [1]}, "total_steps": 7},
        "arguments": {"args": argparse.Namespace(lr=0.1, name="x", sizes=[1, 2]), "state_dict": state, "epoch": 3},
        **{key: {key: state} for key in ("model", "state_dict", "model_state_dict", "net", "netC")},
        **{prefix: {"model": prefixed(prefix)} for prefix in ("module.", "_orig_mod.", "model.", "module._orig_mod.")},
        "no counters": {key: value for key, value in state.items() if "num_batches" not in key},
        "float64": {key: value.double() if value.is_floating_point() else value for key, value in state.items()},
    }


@pytest.mark.parametrize("form", accepted_forms({}))
def test_accepted_forms(tiny: str, tmp_path: Path, form: str) -> None:
    state = TinyNet(1).state_dict()
    loaded = load_detector("Tiny-Net", save(tmp_path / "w.pth", accepted_forms(state)[form]), "cpu").model.state_dict()
    for key, value in state.items():
        assert loaded[key].dtype == value.dtype
        assert torch.equal(loaded[key], value), key


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_short_floats_become_float32(tiny: str, tmp_path: Path, dtype: str, suffix: str) -> None:
    short = getattr(torch, dtype)
    state = {k: v.to(short) if v.is_floating_point() else v for k, v in TinyNet(1).state_dict().items()}
    path = tmp_path / f"w{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(state, path)
    loaded = load_detector(tiny, path, "cpu").model.state_dict()
    for key, value in state.items():
        assert torch.equal(loaded[key], value.to(loaded[key].dtype)), key


def test_old_format_and_wrong_suffix(tiny: str, tmp_path: Path) -> None:
    state = TinyNet(1).state_dict()
    torch.save({"model": state}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    save_file(state, tmp_path / "really_safetensors.pth")
    torch.save(state, tmp_path / "really_pth.safetensors")
    for name in ("old.pth", "really_safetensors.pth", "really_pth.safetensors"):
        loaded = load_detector(tiny, tmp_path / name, "cpu").model.state_dict()
        assert all(torch.equal(loaded[key], value) for key, value in state.items())


def test_a_network_whose_own_names_begin_like_a_wrapper(tiny: str, tmp_path: Path) -> None:
    class Wrapped(nn.Module):
        def __init__(self, outputs: int) -> None:
            super().__init__()
            self.model = TinyNet(outputs)

    register_architecture(Architecture("wrapped", Wrapped, "model.head", "model.conv"))
    try:
        net = Wrapped(1)
        path = save(tmp_path / "w.pth", net.state_dict())
        loaded = load_detector("wrapped", path, "cpu").model.state_dict()
        assert load_detector("wrapped", path, "cpu", fake_class=0).head == OneLogit(sign=-1)
    finally:
        unregister_architecture("wrapped")
    assert all(torch.equal(loaded[key], value) for key, value in net.state_dict().items())


def test_loading_leaves_random_numbers_alone(tiny: str, tmp_path: Path) -> None:
    path = save(tmp_path / "w.pth", TinyNet(1).state_dict())
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    load_detector(tiny, path, "cpu")
    assert torch.equal(torch.rand(4), expected)


@pytest.mark.parametrize("arch", ["resnet18", "efb0", "safe", "timm:vit_tiny_patch16_224"])
def test_a_loaded_network_is_one_whose_random_weights_were_replaced(arch: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    state, expected = build_model(arch).state_dict(), build_model(arch)
    expected.load_state_dict(state)
    loaded = load_detector(arch, save(tmp_path / "w.pth", state), "cpu").model
    # buffers that no file holds, too
    found, wanted = ({**dict(net.named_parameters()), **dict(net.named_buffers())} for net in (loaded, expected))
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert torch.equal(found[name], value), name


def test_loaded_weights_do_not_depend_on_the_file_any_more(tiny: str, tmp_path: Path) -> None:
    path = save(tmp_path / "w.pth", TinyNet(1).state_dict())
    detector = load_detector(tiny, path, "cpu")
    before = {key: value.clone() for key, value in detector.model.state_dict().items()}
    path.write_bytes(b"\0" * path.stat().st_size)
    assert all(torch.equal(value, before[key]) for key, value in detector.model.state_dict().items())


class Malicious:
    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {self.witness}",)


@pytest.mark.parametrize("zipped", [True, False])
def test_malicious_pickle_does_not_run(tiny: str, tmp_path: Path, zipped: bool) -> None:
    witness = tmp_path / "ran"
    path = tmp_path / "w.pth"
    torch.save({"model": Malicious(witness)}, path, _use_new_zipfile_serialization=zipped)
    assert "foreign code" in refusal(tiny, path)
    assert not witness.exists()


@pytest.mark.parametrize(
    ("content", "pattern"),
    [
        (b"", "not a readable checkpoint"),
        (b"not a checkpoint at all", "not a readable checkpoint|foreign code"),
        (b"PK\3\4 broken", "not a readable checkpoint"),
        (b"\x89PNG\r\n\x1a\n" + bytes(64), "not a readable checkpoint|foreign code"),
    ],
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_files_that_are_no_checkpoints(tiny: str, tmp_path: Path, content: bytes, pattern: str, suffix: str) -> None:
    path = tmp_path / f"w{suffix}"
    path.write_bytes(content)
    assert re.search(pattern, refusal(tiny, path))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_truncated_checkpoint(tiny: str, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"w{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(TinyNet(1).state_dict(), path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert re.search(r"not a readable checkpoint .*\d+ bytes.* incomplete; download it again", refusal(tiny, path))


@pytest.mark.parametrize(
    ("content", "mend"),
    [
        (b"<!DOCTYPE html><html><title>Google Drive", "web page.*download the file itself"),
        (b"\n<html>", "web page.*download the file itself"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
        (b"\x1f\x8b" + bytes(60), "unpack it"),
        (b"", "empty: download it again"),
    ],
)
def test_common_mishaps_are_told_apart(tiny: str, tmp_path: Path, content: bytes, mend: str) -> None:
    path = tmp_path / "w.pth"
    path.write_bytes(content)
    message = refusal(tiny, path)
    assert re.search(mend, message)
    assert "foreign code" not in message


def test_a_zip_archive_is_to_be_unpacked(tiny: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "w.pth", "w") as archive:
        archive.writestr("weights/detector.pth", "x")
    assert "unpack it first" in refusal(tiny, tmp_path / "w.pth")


def test_a_bomb_is_refused_before_it_is_unfolded(tiny: str, tmp_path: Path) -> None:
    state = TinyNet(1).state_dict()
    state["conv.weight"] = torch.zeros(1).expand(10**13)
    assert "conv.weight has shape (10000000000000,)" in refusal(tiny, save(tmp_path / "w.pth", state))


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.bool])
def test_quantised_weights_are_refused(tiny: str, tmp_path: Path, dtype: torch.dtype) -> None:
    state = {key: value.to(dtype) for key, value in TinyNet(1).state_dict().items()}
    assert "quantised: save the weights as float32" in refusal(tiny, save(tmp_path / "w.pth", state))


def test_negative_variance(tiny: str, tmp_path: Path) -> None:
    state = TinyNet(1).state_dict()
    state["bn.running_var"][1] = -0.5
    assert "'bn.running_var' is a variance but has negative values" in refusal(tiny, save(tmp_path / "w.pth", state))


@pytest.mark.parametrize("fake", [0, 1])
def test_two_outputs_are_folded_exactly(tiny: str, tmp_path: Path, fake: int) -> None:
    torch.manual_seed(0)
    net = TinyNet(2).eval()
    path = save(tmp_path / "w.pth", net.state_dict())
    assert "--fake_class 0 or 1" in refusal(tiny, path)
    detector = load_detector(tiny, path, "cpu", fake_class=fake)
    images = torch.randint(0, 256, (5, 3, 9, 8), dtype=torch.uint8)
    with torch.no_grad():
        expected = net(detector.inputs(images)).double().softmax(1)[:, fake]
    torch.testing.assert_close(detector.probability(images), expected, rtol=1e-6, atol=1e-7)
    assert detector.head.outputs == 1


def test_one_logit_that_is_positive_for_real(tiny: str, tmp_path: Path) -> None:
    path = save(tmp_path / "w.pth", TinyNet(1).state_dict())
    plain, real = (load_detector(tiny, path, "cpu", fake_class=fake) for fake in (None, 0))
    images = torch.randint(0, 256, (5, 3, 9, 8), dtype=torch.uint8)
    torch.testing.assert_close(plain.probability(images) + real.probability(images), torch.ones(5).double())


def test_a_file_that_fits_two_networks_is_named(tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save(tmp_path / "w.pth", TinyNet(1).state_dict())
    load_detector(tiny, path, "cpu")
    assert capsys.readouterr().err == ""
    register_architecture(Architecture("tiny-stride", TinyNet, "head", "conv"))
    try:
        load_detector(tiny, path, "cpu")
    finally:
        unregister_architecture("tiny-stride")
    said = capsys.readouterr().err
    assert "fit tiny and tiny-stride alike" in said
    assert "--arch" in said


@pytest.mark.parametrize("content", [torch.zeros(3), [1, 2], {}, {"model": {}}, {"epoch": 3}, {"model": {"a": "b"}}])
def test_contents_that_are_no_state(tiny: str, tmp_path: Path, content: Any) -> None:
    assert "not a checkpoint" in refusal(tiny, save(tmp_path / "w.pth", content))


def test_missing_files(tiny: str, tmp_path: Path) -> None:
    assert "docs/data_and_weights.md" in refusal(tiny, tmp_path / "absent.pth")
    assert "not a file" in refusal(tiny, tmp_path)


def test_default_path_is_named_when_missing(tiny: str) -> None:
    path = DetectorChoice("EfficientNet-B0").checkpoint
    assert path == DetectorChoice("efb0", "0.5").checkpoint
    assert path.parts[-3:] == ("weights", "efb0", "blur_jpg_prob0.5.pth")
    with pytest.raises(UserError, match="--weights"):
        load_detector(tiny, None, "cpu")
    wrong: dict[str, Any]
    for wrong in ({"blur_jpg": "../x"}, {"precision": "fp16"}, {"fake_class": 2}):
        with pytest.raises(UserError, match=f"--{next(iter(wrong))}"):
            load_detector(tiny, None, "cpu", **wrong)


def test_the_choice_is_the_command_line(tiny: str, tmp_path: Path) -> None:
    path = save(tmp_path / "w.pth", TinyNet(2).state_dict())
    words = [
        "--arch",
        "Tiny-Net",
        "--weights",
        str(path),
        "--device",
        "cpu",
        "--fake_class",
        "1",
        "--precision",
        "tf32",
    ]
    (choice,) = read_settings("d", "e", DetectorChoice, argv=words)
    assert choice == DetectorChoice("tiny", weights=path, device="cpu", fake_class=1, precision="tf32")
    assert load_detector(choice).facts() == {
        "arch": "tiny",
        "weights": hashlib.sha256(path.read_bytes()).hexdigest(),
        "device": "cpu",
        "precision": "tf32",
        "fake_class": "1",
    }
    with pytest.raises(UserError, match="--fake_class 2: use 0 or 1"):
        read_settings("d", "e", DetectorChoice, argv=["--fake_class", "2"])


PLUGIN = """
from torch import nn
from detectors.networks import Architecture, register_architecture
from detectors.transforms import Normalise

register_architecture(
    Architecture(
        "flat", lambda outputs: nn.Sequential(nn.Conv2d(3, outputs, 1)), "0", "0",
        transform=Normalise((0.5,) * 3, (0.5,) * 3),
    )
)
"""


def test_plugin(tmp_path: Path) -> None:
    file = tmp_path / "flat.py"
    file.write_text(PLUGIN)
    words = ["--arch", "flat", "--plugin", str(file)]
    try:
        for _ in range(2):
            (choice,) = read_settings("d", "e", DetectorChoice, argv=words)
        assert get_architecture(choice.arch).transform.bounds() == ((-1.0,) * 3, (1.0,) * 3)
    finally:
        unregister_architecture("flat")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [("absent.py", None, "no such file"), ("broken.py", "1 / 0", "ZeroDivisionError"), ("no.such.module", None, "no")],
)
def test_plugins_that_fail(tmp_path: Path, name: str, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        load_plugin(str(tmp_path / name) if name.endswith(".py") else name)


def test_entry_points_register(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "flat_package.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(str(tmp_path))
    entry = EntryPoint("flat", "flat_package", "tff.detectors")
    monkeypatch.setattr("detectors.networks.entry_points", lambda group: [entry] if group == entry.group else [])
    load_installed_plugins.cache_clear()
    try:
        assert get_architecture("FLAT").name == "flat"
    finally:
        unregister_architecture("flat")
        load_installed_plugins.cache_clear()


def test_other_architecture_is_recognised(tiny: str, tmp_path: Path) -> None:
    path = save(tmp_path / "w.pth", {"model": TinyNet(1, 8).state_dict()})
    assert "looks like tiny-wide" in refusal(tiny, path)
    path = save(tmp_path / "r.pth", {"model": build_model("resnet18", 1).state_dict()})
    assert "looks like resnet18" in refusal("efb0", path)
    assert "no registered architecture" in refusal("resnet34", save(tmp_path / "x.pth", {"x": torch.zeros(2)}))


def test_other_number_of_outputs(tiny: str, tmp_path: Path) -> None:
    paths = {rows: save(tmp_path / f"{rows}.pth", TinyNet(rows).state_dict()) for rows in (1, 7, 1000)}
    assert "7 outputs where 1 " in refusal(tiny, paths[7])
    assert re.search("1000 outputs where 1 .*ImageNet", refusal(tiny, paths[1000]))
    assert re.search("1 outputs where 1000 .*detector", refusal(tiny, paths[1], load_imagenet_classifier))


def test_missing_unexpected_and_misshapen_tensors(tiny: str, tmp_path: Path) -> None:
    state = TinyNet(1).state_dict()
    del state["conv.bias"]
    state["extra"] = torch.zeros(2)
    message = refusal(tiny, save(tmp_path / "w.pth", state))
    assert "1 tensors missing (first: conv.bias)" in message
    assert "1 tensors unexpected (first: extra)" in message
    state = TinyNet(1).state_dict()
    state["bn.weight"] = torch.zeros(5)
    assert "bn.weight has shape (5,) where (4,)" in refusal(tiny, save(tmp_path / "v.pth", state))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite(tiny: str, tmp_path: Path, value: float) -> None:
    state = TinyNet(1).state_dict()
    state["bn.running_var"][2] = value
    assert "'bn.running_var' is not finite" in refusal(tiny, save(tmp_path / "w.pth", state))


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "cuda:x"])
def test_device_that_is_not_there(tiny: str, tmp_path: Path, device: str) -> None:
    path = save(tmp_path / "w.pth", TinyNet(1).state_dict())
    with pytest.raises(UserError, match="device"):
        load_detector(tiny, path, device)


def test_process_without_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert resolve_device("auto") == resolve_device("cuda") == torch.device("cuda", 1)
    assert resolve_device("cuda:0") == torch.device("cuda", 0)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(UserError, match=r"process 2 .*at most 2 processes"):
        resolve_device("auto")


@pytest.mark.parametrize(("precision", "arithmetic"), [("tf32", "tf32"), ("bf16", "ieee"), ("fp32", "ieee")])
def test_float32_is_ieee_unless_asked_otherwise(precision: str, arithmetic: str) -> None:
    use_device("cpu", precision)
    assert torch.backends.cudnn.conv.fp32_precision == arithmetic  # type: ignore[attr-defined]
    assert torch.backends.cuda.matmul.fp32_precision == arithmetic
    assert torch.backends.cudnn.deterministic


@pytest.mark.parametrize(
    ("arch", "file"), [("resnet50", "resnet50-11ad3fa6.pth"), ("efb0", "efficientnet-b0-355c32eb")]
)
def test_missing_imagenet_weights_say_what_to_put_where(tmp_path: Path, arch: str, file: str) -> None:
    with pytest.raises(UserError) as caught:
        load_imagenet_classifier(arch, tmp_path / "absent.pth", "cpu")
    assert file in str(caught.value)
    assert f"weights/imagenet/{arch}.pth" in str(caught.value)


def test_imagenet_classifier(tiny: str, tmp_path: Path) -> None:
    detector = load_imagenet_classifier(tiny, save(tmp_path / "w.pth", TinyNet(1000).state_dict()), "cpu")
    assert detector.head.outputs == 1000
    assert detector.head.class_names[207] == "207 golden retriever"
    assert detector.model(torch.zeros(1, 3, 8, 8)).shape == (1, 1000)


def test_squeeze_excite_weights_of_a_copy(tmp_path: Path) -> None:
    model, donor = build_model("efb0", 1).eval(), build_model("efb0", 1000)
    path = save(tmp_path / "imagenet.pth", donor.state_dict())
    before = {key: value.clone() for key, value in model.state_dict().items()}
    hybrid = with_squeeze_excite_of(model, path).state_dict()
    assert sum("._se_" in key for key in hybrid) == 64
    for key, value in hybrid.items():
        assert torch.equal(value, (donor.state_dict() if "._se_" in key else before)[key]), key
    detector = Detector(get_architecture("efb0"), model)
    x = torch.randn(1, 3, 32, 32)
    plain, other = detector.explainer(), detector.explainer(squeeze_excite=path)
    outputs = [explainer.record(x, until="_blocks.0._project_conv").output for explainer in (plain, other)]
    assert not torch.equal(*outputs)
    assert detector.explainer(squeeze_excite=path) is other
    assert detector.explainer("beta1") is not plain
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_squeeze_excite_refusals(tmp_path: Path) -> None:
    path = save(tmp_path / "b1.pth", build_model("efb1", 1000).state_dict())
    with pytest.raises(UserError, match="EfficientNet only"):
        with_squeeze_excite_of(build_model("resnet18"), path)
    with pytest.raises(UserError, match="missing, of another shape"):
        with_squeeze_excite_of(build_model("efb0"), path)


def test_rules_at_the_input_follow_its_bounds() -> None:
    """Each network's own normalisation; and none of it where the rules say so."""
    model = build_model("resnet18").eval()
    resnet, wide = get_architecture("resnet18"), Normalise((0.0,) * 3, (1 / 255,) * 3)
    (rule,) = {type(Detector(a, model).explainer().rules[0]) for a in (resnet, replace(resnet, transform=wide))}
    assert rule is ZBox
    explainer = Detector(replace(resnet, transform=wide), model).explainer()
    images = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)
    relevance = explainer.explain(wide(images)).input
    assert relevance is not None
    assert torch.isfinite(relevance).all()
    plain = Detector(replace(resnet, rules=plain_rules), model).explainer()
    assert type(plain.rules[0]) is not ZBox
    with pytest.raises(UserError, match="unknown rule"):
        Detector(resnet, model).explainer("gamma")


class Doubled(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([x, x]).sum(0)


class Doubling(Operation):
    kind = "doubling"

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return 2 * inputs[0]


def test_an_operation_of_ones_own_takes_the_rule_of_its_registration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lrp.layers.MODULES", dict(MODULES))
    register_module(Doubled, lambda module: Doubling())
    model = nn.Sequential(nn.Conv2d(3, 4, 3), Doubled(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 1)).eval()
    plain = Architecture("doubled", lambda outputs: model, "4", "0")

    def rules(name: str, bounds: Bounds | None, *, published: bool = False) -> RuleTable:
        table = boxed_rules(name, bounds, published=published)
        return replace(table, by_kind={**table.by_kind, "doubling": PassThrough()})

    with pytest.raises(UserError, match="doubling"):
        Detector(plain, model).explainer()
    detector = Detector(replace(plain, rules=rules), model)
    x = detector.inputs(torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8))
    explanation = detector.explainer().explain(x)
    torch.testing.assert_close(explanation.logits, detector.logits(x))
    assert explanation.input is not None
