"""Guided Grad-CAM against the published numbers and against its formula; the script from end to end."""

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from PIL import Image
from ranking_runs import run_main
from torch import nn

from attribution.attribution import Explanation
from attribution.gradcam import guided_gradcam
from attribution.targets import Target, parse_target
from detectors.detector import Detector, load_detector
from detectors.heads import Classes, Head, OneLogit
from detectors.networks import Architecture, build_model
from utils.errors import UserError


class Block(nn.Module):
    """Residual block that uses one in-place ReLU twice, as torchvision's do."""

    def __init__(self, outputs: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, padding=1)
        self.conv2 = nn.Conv2d(6, 6, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.fc = nn.Linear(6, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.conv1(x))
        x = self.relu(self.conv2(x) + x)
        return self.fc(x.mean(dim=(2, 3)))


def head_of(outputs: int) -> Head:
    return OneLogit() if outputs == 1 else Classes(tuple(map(str, range(outputs))))


def toy(outputs: int = 1) -> Detector:
    torch.manual_seed(0)
    architecture = Architecture("toy", Block, "fc", "conv2", head=head_of(outputs))
    model = Block(outputs).eval().requires_grad_(False)
    return Detector(architecture, model)


def random_images(count: int = 2, size: int = 12) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)


def explained(detector: Detector, images: torch.Tensor, target: str = "fake", layer: str | None = None) -> Explanation:
    labels = torch.full((len(images),), -1)
    return guided_gradcam(detector, images, Target(target, detector.head), labels, layer)


@pytest.mark.parametrize("arch", ["resnet50", "efb0"])
def test_published_numbers(arch: str, shared_dir: Path, golden_weights: Callable[[str], Path]) -> None:
    detector = load_detector(arch, golden_weights(arch), "cpu")
    with np.load(shared_dir / "reference" / "golden" / f"guided_gradcam_{arch}.npz") as file:
        golden = dict(file)
    pictures = [Image.open(shared_dir / "forensynths_sample" / name).convert("RGB") for name in golden["names"]]
    images = torch.from_numpy(np.stack([np.asarray(picture)[16:240, 16:240] for picture in pictures]))
    result = explained(detector, images.permute(0, 3, 1, 2), "fake")
    np.testing.assert_allclose(result.arrays["cam"].numpy(), golden["cam"], atol=1e-3)
    gradient = result.arrays["guided_backprop"].permute(0, 2, 3, 1).numpy()
    for ours, theirs in (
        (gradient, golden["guided_backprop"]),
        (result.relevance.numpy(), golden["guided_gradcam_rgbsum"]),
    ):
        assert np.abs(ours - theirs).sum() < 1e-3 * np.abs(theirs).sum()


@pytest.mark.parametrize("name", ["fake", "real"])
def test_against_the_formula(name: str) -> None:
    detector, images = toy(), random_images()
    sign = 1 if name == "fake" else -1
    model: Any = detector.model
    x = detector.inputs(images)
    a = model.conv1(x)
    first = a.relu()
    maps = model.conv2(first)
    total = maps + first
    active = (total > 0).float() * sign * model.fc.weight[0].view(1, -1, 1, 1) / (12 * 12)
    weights = active.mean(dim=(2, 3), keepdim=True)
    cam = (weights * maps).sum(dim=1).relu()
    cam = cam - cam.amin(dim=(1, 2), keepdim=True)
    cam = cam / cam.amax(dim=(1, 2), keepdim=True)
    guided = active.clamp(min=0)
    below = guided + torch.nn.functional.conv_transpose2d(guided, model.conv2.weight, padding=1)
    below = (below * (a > 0)).clamp(min=0)
    gradient = torch.nn.functional.conv_transpose2d(below, model.conv1.weight, padding=1)
    result = explained(detector, images, name)
    torch.testing.assert_close(result.arrays["cam"], cam, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(result.arrays["guided_backprop"], gradient, atol=1e-7, rtol=1e-4)
    torch.testing.assert_close(result.relevance, (cam[:, None] * gradient).sum(1), atol=1e-7, rtol=1e-4)
    torch.testing.assert_close(result.output, model(x))


def test_batch_is_the_images_one_by_one() -> None:
    detector, images = toy(5), random_images(3)
    together = explained(detector, images, "top")
    for i in range(3):
        alone = explained(detector, images[i : i + 1], "top")
        torch.testing.assert_close(alone.relevance[0], together.relevance[i])


def hooks_and_flags(model: nn.Module) -> list[object]:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return [
        (
            name,
            type(module),
            module.training,
            vars(module).get("inplace"),
            [len(getattr(module, k)) for k in kinds],
        )
        for name, module in model.named_modules()
    ] + [(name, p.requires_grad, p.grad is None) for name, p in model.named_parameters()]


@pytest.mark.parametrize("arch", ["resnet18", "efb0"])
@pytest.mark.parametrize("failing_call", [1, 2])
def test_network_is_left_as_found(arch: str, failing_call: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = build_model(arch).eval()
    layer = {"resnet18": "layer4", "efb0": "_conv_head"}[arch]
    detector = Detector(Architecture(arch, lambda n: model, "fc", layer), model)
    images = random_images(1, 64)
    before, state = hooks_and_flags(model), {key: value.clone() for key, value in model.state_dict().items()}
    logits = explained(detector, images, "fake").output
    assert hooks_and_flags(model) == before
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    torch.testing.assert_close(model(detector.inputs(images)), logits)

    calls = []

    def failing(self: OneLogit, values: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        if len(calls) == failing_call:
            raise RuntimeError("in the middle")
        return values[:, 0]

    monkeypatch.setattr(OneLogit, "score", failing)
    with pytest.raises(RuntimeError, match="in the middle"):
        explained(detector, images, "fake")
    assert hooks_and_flags(model) == before


def test_unknown_layer_lists_the_first_level() -> None:
    with pytest.raises(UserError, match=r"--layer layer9.*conv1, conv2, relu, fc"):
        explained(toy(), random_images(), "fake", "layer9")


def test_map_without_positive_values_is_zero() -> None:
    detector = toy()
    head: Any = detector.model.get_submodule("fc")
    head.weight.zero_()
    result = explained(detector, random_images(), "fake")
    assert not result.arrays["cam"].any()
    assert not result.relevance.any()


@pytest.mark.parametrize(
    ("text", "outputs", "name"),
    [
        (None, 1, "fake"),
        ("Label", 1, "label"),
        ("Real", 1, "real"),
        (None, 1000, "top"),
        ("7", 1000, "7"),
        ("007", 1000, "7"),
    ],
)
def test_targets(text: str | None, outputs: int, name: str) -> None:
    assert parse_target(text, head_of(outputs)) == Target(name, head_of(outputs))


@pytest.mark.parametrize(
    ("text", "outputs"), [("top", 1), ("0", 1), ("fake", 1000), ("1000", 1000), ("-1", 1000), ("label", 1000)]
)
def test_refused_targets(text: str, outputs: int) -> None:
    with pytest.raises(UserError, match="--target"):
        parse_target(text, head_of(outputs))


def test_classes_named_by_a_target() -> None:
    labels = torch.tensor([-1, -1])
    assert Target("real", OneLogit()).classes(torch.tensor([[2.0], [-1.0]]), labels).tolist() == [0, 0]
    logits = torch.tensor([[0.0, 3.0, 1.0], [5.0, 0.0, 1.0]])
    assert Target("top", head_of(3)).classes(logits, labels).tolist() == [1, 0]
    assert Target("2", head_of(3)).classes(logits, labels).tolist() == [2, 2]


def test_default_target_of_a_detector() -> None:
    assert parse_target(None, OneLogit(), default="label").name == "label"
    assert parse_target(None, head_of(1000), default="label").name == "top"


def test_tokens_and_vectors_are_not_weighted() -> None:
    """A transformer, whose architecture names no layer, and a layer of single numbers: LRP is named instead."""
    detector = toy()
    transformer = replace(detector, architecture=replace(detector.architecture, name="vit", gradcam_layer=""))
    for one, layer, message in (
        (transformer, None, r"^vit has no feature maps .*: explain .* src/ud_lrp\.py --arch vit$"),
        (detector, "fc", r"^--layer fc: this layer of toy has no feature maps .* src/ud_lrp\.py --arch toy$"),
    ):
        with pytest.raises(UserError, match=message):
            explained(one, random_images(), layer=layer)
    classifier = replace(toy(3), architecture=replace(toy(3).architecture, gradcam_layer=""))
    with pytest.raises(UserError, match=r"src/imagenet_lrp\.py --arch toy$"):
        explained(classifier, random_images(), "1")


@pytest.mark.parametrize("sign", [1, -1])
def test_target_label_is_each_image_s_label_else_the_decision(sign: Literal[1, -1]) -> None:
    logits = sign * torch.tensor([[2.0], [2.0], [2.0], [-1.0], [0.0]])
    labels = torch.tensor([0, 1, -1, -1, -1])
    assert Target("label", OneLogit(sign)).classes(logits, labels).tolist() == [0, 1, 1, 0, 0]


@pytest.fixture
def run() -> Callable[..., None]:
    """Runs the script in this process; its exit codes are tested with `utils.cli`."""

    def main(*arguments: object) -> None:
        run_main("gradcam", *arguments, "--device", "cpu")

    return main


@pytest.fixture
def small_set(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    for folder, size in (("0_real", (40, 60)), ("1_fake", (64, 48))):
        path = tmp_path / "data" / "gan" / folder
        path.mkdir(parents=True)
        for name in ("a.png", "b.jpg"):
            Image.fromarray(generator.integers(0, 256, (*size, 3), dtype=np.uint8)).save(path / name)
    return tmp_path / "data"


def write_weights(path: Path, outputs: int) -> Path:
    torch.manual_seed(0)
    torch.save({"model": build_model("resnet18", outputs).state_dict()}, path)
    return path


def test_script_on_a_data_set(small_set: Path, tmp_path: Path, run: Callable[..., None]) -> None:
    weights = write_weights(tmp_path / "w.pth", 1)
    common = ("--arch", "resnet18", "--weights", weights, "--output_dir", tmp_path / "out")
    data = ("--dataset_dir", small_set, "--gan_name", "gan", "--target", "real")
    run(*common, *data, "--bsize", 3)
    folder = tmp_path / "out" / "gradcam" / "resnet18" / "ud_0.5-real"
    with (folder / "attributions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["path"], row["label"]) for row in rows] == [
        ("gan/0_real/a.png", "0"),
        ("gan/0_real/b.jpg", "0"),
        ("gan/1_fake/a.png", "1"),
        ("gan/1_fake/b.jpg", "1"),
    ]
    for row in rows:
        assert 0 < float(row["probability"]) < 1
        assert row["explained"] == "real"
        assert Image.open(folder / row["overlay"]).size == (224, 224)
        with np.load(folder / row["arrays"]) as arrays:
            assert arrays["relevance"].shape == (224, 224)
            assert arrays["image"].shape == (224, 224, 3)
            np.testing.assert_allclose(
                (arrays["cam"] * arrays["guided_backprop"]).sum(0), arrays["relevance"], atol=1e-6
            )
    record = json.loads((folder / "attributions.csv.json").read_text())
    assert record["images"] == 4
    assert record["facts"]["layer"] == "layer4"
    assert len(record["inputs"]["weights"]) == 64
    assert (folder / "contact_sheet_001.png").is_file()

    first = {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    run(*common, *data, "--bsize", 3)
    again = {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    assert again == first


def test_script_explains_each_image_for_its_label(small_set: Path, tmp_path: Path, run: Callable[..., None]) -> None:
    weights = write_weights(tmp_path / "w.pth", 1)
    common = ("--arch", "resnet18", "--weights", weights, "--images", small_set)
    for target in ("fake", "real", "label"):
        run(*common, "--target", target, "--output_dir", tmp_path / target)

    def results(target: str) -> list[tuple[str, np.ndarray]]:
        folder = tmp_path / target / "gradcam" / "resnet18" / f"ud_0.5-{target}"
        with (folder / "attributions.csv").open() as file:
            return [(row["explained"], np.load(folder / row["arrays"])["relevance"]) for row in csv.DictReader(file)]

    for number, (explained, relevance) in enumerate(results("label")):
        assert explained == ("real", "real", "fake", "fake")[number]
        np.testing.assert_array_equal(relevance, results(explained)[number][1])


def test_script_with_an_imagenet_classifier(small_set: Path, tmp_path: Path, run: Callable[..., None]) -> None:
    weights = write_weights(tmp_path / "w.pth", 1000)
    run(
        *(
            "--classifier",
            "imagenet",
            "--arch",
            "resnet18",
            "--weights",
            weights,
            "--output_dir",
            tmp_path / "out",
        ),
        *("--images", small_set / "gan" / "1_fake" / "a.png", "--target", 207, "--crop", "none", "--resize", 0),
    )
    folder = tmp_path / "out" / "gradcam" / "resnet18" / "imagenet-207"
    with (folder / "attributions.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert row["explained"] == row["probability_of"] == "207 golden retriever"
    assert Image.open(folder / row["overlay"]).size == (48, 64)


def test_script_errors_are_one_line(small_set: Path, tmp_path: Path, run: Callable[..., None]) -> None:
    weights = write_weights(tmp_path / "w.pth", 1)
    image = small_set / "gan" / "1_fake" / "a.png"
    for arguments, pattern in (
        (("--classifier", "imagenet", "--images", image), "ImageNet weights not found"),
        (("--weights", weights, "--images", tmp_path / "absent.png"), "no such file"),
        (("--weights", weights, "--images", image, "--target", "cat"), "fake or real"),
        (("--weights", weights, "--images", image, "--layer", "layer9"), "no such layer"),
        (("--weights", weights, "--dataset_dir", small_set), "--gan_name"),
    ):
        with pytest.raises(UserError, match=pattern) as caught:
            run("--arch", "resnet18", *arguments, "--output_dir", tmp_path / "out")
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
