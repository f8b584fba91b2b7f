"""The registry, checkpoints in all forms, and every way a checkpoint can be wrong."""

import hashlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torchvision.transforms import Compose, Normalize, ToTensor

from detectors.architectures import IMAGENET_MEAN, IMAGENET_STD, unregister_architecture
from detectors.detector import (
    architectures,
    build_model,
    canonical_architecture,
    default_weights_path,
    get_architecture,
    load_detector,
    load_imagenet_classifier,
    register_architecture,
    replace_squeeze_excite,
)
from utils.errors import UserError

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
    register_architecture("tiny", TinyNet, family="tiny", head="head", gradcam_layer="conv", aliases=["tiny-net"])
    register_architecture(
        "tiny-wide", lambda outputs: TinyNet(outputs, 8), family="tiny", head="head", gradcam_layer="conv"
    )
    yield "tiny"
    unregister_architecture("tiny")
    unregister_architecture("tiny-wide")


def save(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def refusal(arch: str, path: Path, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        load_detector(arch, path, "cpu", **options)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def test_registry_holds_the_architectures_in_order() -> None:
    assert architectures() == BUILT_IN


@pytest.mark.parametrize("arch", BUILT_IN)
def test_every_architecture_builds_and_names_real_layers(arch: str) -> None:
    model = build_model(arch, 1)
    architecture = get_architecture(arch)
    modules = dict(model.named_modules())
    assert architecture.gradcam_layer in modules
    assert modules[architecture.head].out_features == 1
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


@pytest.mark.parametrize("spelling", ["efb0", "EFB0", "efficientnet-b0", "EfficientNet-B0"])
def test_spellings_of_efficientnet(spelling: str) -> None:
    assert canonical_architecture(spelling) == "efb0"


def test_unknown_architecture_lists_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"'res50'.*resnet50.*efb7"):
        canonical_architecture("res50")


@pytest.mark.parametrize("name", ["resnet50", "Tiny", "../tiny2", "", ".."])
def test_register_refuses_taken_and_unfit_names(tiny: str, name: str) -> None:
    with pytest.raises(ValueError, match="architecture name"):
        register_architecture(name, TinyNet, family="tiny", head="head", gradcam_layer="conv")


def test_failed_registration_leaves_nothing(tiny: str) -> None:
    before = architectures()
    with pytest.raises(ValueError, match="efb0"):
        register_architecture("new", TinyNet, family="t", head="head", gradcam_layer="conv", aliases=["efb0"])
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
        logit = detector.model(detector.preprocess(torch.from_numpy(picture.copy()).permute(2, 0, 1)[None]))
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
    x = detector.preprocess(images)
    assert torch.equal(x[0], expected)
    assert x.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(images, torch.from_numpy(picture).permute(2, 0, 1)[None])


@pytest.mark.parametrize("images", [torch.zeros(1, 3, 4, 4), torch.zeros(3, 4, 4, dtype=torch.uint8)])
def test_preprocess_refuses_other_input(tiny: str, tmp_path: Path, images: torch.Tensor) -> None:
    detector = load_detector(tiny, save(tmp_path / "w.pth", TinyNet(1).state_dict()), "cpu")
    with pytest.raises(ValueError, match="uint8"):
        detector.preprocess(images)


@pytest.mark.parametrize("form", ["model", "bare", "module.", "legacy", "half", "no counters", "safetensors", "fp16"])
def test_accepted_forms(tiny: str, tmp_path: Path, form: str) -> None:
    net = TinyNet(1)
    state = {key: value.half().to(value.dtype) for key, value in net.state_dict().items()}
    path = tmp_path / "w.pth"
    if form == "model":
        torch.save({"model": state, "optimizer": {"lr": 1e-4, "steps": [1]}, "total_steps": 7}, path)
    elif form == "legacy":
        torch.save({"model": state}, path, _use_new_zipfile_serialization=False)
    elif form == "module.":
        torch.save({"model": {f"module.{key}": value for key, value in state.items()}}, path)
    elif form in {"safetensors", "fp16"}:
        path = path.with_suffix(".safetensors")
        kept = {k: v.half() if form == "fp16" and v.is_floating_point() else v for k, v in state.items()}
        save_file(kept, path)
    elif form == "half":
        torch.save({key: value.half() for key, value in state.items()}, path)
        state["bn.num_batches_tracked"] = torch.tensor(0)
    elif form == "no counters":
        torch.save({key: value for key, value in state.items() if "num_batches" not in key}, path)
    else:
        torch.save(state, path)
    loaded = load_detector("Tiny-Net", path, "cpu").model.state_dict()
    assert {key: value.dtype for key, value in loaded.items()} == {k: v.dtype for k, v in net.state_dict().items()}
    for key, value in state.items():
        assert torch.equal(loaded[key], value), key


def test_loading_leaves_random_numbers_alone(tiny: str, tmp_path: Path) -> None:
    path = save(tmp_path / "w.pth", TinyNet(1).state_dict())
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    load_detector(tiny, path, "cpu")
    assert torch.equal(torch.rand(4), expected)


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


def test_truncated_checkpoint(tiny: str, tmp_path: Path) -> None:
    path = save(tmp_path / "w.pth", TinyNet(1).state_dict())
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert "not a readable checkpoint" in refusal(tiny, path)


@pytest.mark.parametrize("content", [torch.zeros(3), [1, 2], {}, {"model": {}}, {"epoch": 3}, {"model": {"a": "b"}}])
def test_contents_that_are_no_state(tiny: str, tmp_path: Path, content: Any) -> None:
    assert "not a checkpoint" in refusal(tiny, save(tmp_path / "w.pth", content))


def test_missing_files(tiny: str, tmp_path: Path) -> None:
    assert "docs/data_and_weights.md" in refusal(tiny, tmp_path / "absent.pth")
    assert "not a file" in refusal(tiny, tmp_path)


def test_default_path_is_named_when_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("detectors.detector.PROJECT_ROOT", tmp_path)
    path = default_weights_path("EfficientNet-B0", "0.5")
    assert path == default_weights_path("efb0", "0.5")
    assert path.parts[-3:] == ("weights", "efb0", "blur_jpg_prob0.5.pth")
    with pytest.raises(UserError, match="--weights"):
        load_detector("resnet18", None, "cpu")
    with pytest.raises(UserError, match="not fit"):
        default_weights_path("efb0", "../x")


def test_other_architecture_is_recognised(tiny: str, tmp_path: Path) -> None:
    path = save(tmp_path / "w.pth", {"model": TinyNet(1, 8).state_dict()})
    assert "looks like tiny-wide" in refusal(tiny, path)
    path = save(tmp_path / "r.pth", {"model": build_model("resnet18", 1).state_dict()})
    assert "looks like resnet18" in refusal("efb0", path)
    assert "no registered architecture" in refusal("resnet34", save(tmp_path / "x.pth", {"x": torch.zeros(2)}))


@pytest.mark.parametrize(
    ("held", "wanted", "pattern"),
    [
        (1000, 1, "1000 outputs where 1 .*ImageNet"),
        (1, 1000, "1 outputs where 1000 .*detector"),
        (7, 1, "7 outputs"),
    ],
)
def test_other_number_of_outputs(tiny: str, tmp_path: Path, held: int, wanted: int, pattern: str) -> None:
    path = save(tmp_path / "w.pth", TinyNet(held).state_dict())
    assert re.search(pattern, refusal(tiny, path, outputs=wanted))


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
    assert detector.outputs == 1000
    assert detector.model(torch.zeros(1, 3, 8, 8)).shape == (1, 1000)


def test_squeeze_excite_replacement_changes_nothing_else(tmp_path: Path) -> None:
    model, donor = build_model("efb0", 1), build_model("efb0", 1000)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    count = replace_squeeze_excite(model, save(tmp_path / "imagenet.pth", donor.state_dict()))
    assert count == 64
    for key, value in model.state_dict().items():
        source = donor.state_dict() if "._se_" in key else before
        assert torch.equal(value, source[key]), key


def test_squeeze_excite_refusals(tmp_path: Path) -> None:
    path = save(tmp_path / "b1.pth", build_model("efb1", 1000).state_dict())
    with pytest.raises(UserError, match="EfficientNet only"):
        replace_squeeze_excite(build_model("resnet18"), path)
    model = build_model("efb0")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(UserError, match="missing or of another shape"):
        replace_squeeze_excite(model, path)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
