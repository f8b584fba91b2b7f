"""Relevances of the published implementation, and of an independent one (zennit)."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from lrp_networks import images, randomize, towards
from torch import Tensor, nn

from detectors.detector import Detector, load_detector
from detectors.networks import build_model
from images.decoding import Crop, decode_image
from lrp import Explainer, ZBox, rule_table

CASES = [("resnet50", "beta0"), ("resnet50", "beta1"), ("resnet50", "betaada"), ("efb0", "beta0")]
GATE = 2e-4


class Reference:
    """Golden arrays of an architecture, its detector, and the images, loaded once."""

    def __init__(self, folder: Path, arch: str, weights: Path) -> None:
        golden = folder / "reference" / "golden"
        with np.load(golden / f"lrp_input_{arch}.npz") as file:
            self.inputs = dict(file)
        with np.load(golden / f"lrp_layers_{arch}_beta0.npz") as file:
            self.layers = dict(file)
        self.detector: Detector = load_detector(arch, weights, "cpu")
        crop = Crop("center", 224)
        pictures = [
            crop(decode_image(folder / "forensynths_sample" / name), seed=0, name=name) for name in self.inputs["names"]
        ]
        self.x = self.detector.inputs(torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2))
        self.targets = ["fake" if label else "real" for label in self.inputs["label"]]

    def explainer(self, rule: str, *, published: bool = True, dtype: torch.dtype = torch.float32) -> Explainer:
        architecture = self.detector.architecture
        table = architecture.rules(rule, architecture.transform.bounds(), published=published)
        return Explainer(self.detector.model, table, published=published, dtype=dtype)


@pytest.fixture(scope="module")
def reference(shared_dir: Path, golden_weights: Callable[[str], Path]) -> Callable[[str], Reference]:
    return cache(lambda arch: Reference(shared_dir, arch, golden_weights(arch)))


def l1_relative(found: np.ndarray, golden: np.ndarray) -> np.ndarray:
    """Per image."""
    axes = tuple(range(1, golden.ndim))
    return np.abs(found - golden).sum(axes) / np.abs(golden).sum(axes)


@pytest.mark.parametrize("arch", ["resnet50", "efb0"])
def test_logits_of_the_detector(arch: str, reference: Callable[[str], Reference]) -> None:
    case = reference(arch)
    with torch.no_grad():
        plain = case.detector.model(case.x)[:, 0].numpy()
    assert np.abs(plain - case.inputs["logit_detector"]).max() < 1e-4
    folded = case.explainer("beta0", published=False).record(case.x).output[:, 0].numpy()
    assert np.abs(folded - case.inputs["logit_detector"]).max() < 1e-4


@pytest.mark.parametrize("arch", ["resnet50", "efb0"])
def test_logits_with_the_published_batch_norm_factor(arch: str, reference: Callable[[str], Reference]) -> None:
    case = reference(arch)
    for dtype, gate in ((torch.float64, 1e-4), (torch.float32, 2e-4)):  # the golden logits are themselves float32
        found = case.explainer("beta0", dtype=dtype).record(case.x).output[:, 0].numpy()
        assert np.abs(found - case.inputs["logit_wrapped_beta0"]).max() < gate
    assert np.abs(found - case.inputs["logit_detector"]).max() > 2 * gate


@pytest.mark.parametrize(("arch", "rule"), CASES)
def test_relevance_of_the_input(arch: str, rule: str, reference: Callable[[str], Reference]) -> None:
    case = reference(arch)
    result = case.explainer(rule).explain(case.x, towards(*case.targets, published=True))
    assert result.input is not None
    assert result.start.tolist() == [1.0 if target == "fake" else -1.0 for target in case.targets]
    assert l1_relative(result.input.sum(1).numpy(), case.inputs[f"R_input_{rule}"]).max() < GATE
    assert np.abs(result.logits[:, 0].numpy() - case.inputs[f"logit_wrapped_{rule}"]).max() < 2e-4
    sums, golden = result.input.sum((2, 3), dtype=torch.float64).numpy(), case.inputs[f"R_input_rgbsum_{rule}"]
    assert np.abs(sums - golden).max() < GATE * np.abs(case.inputs[f"R_input_{rule}"]).sum((1, 2)).max()


@pytest.mark.parametrize("arch", ["resnet50", "efb0"])
def test_relevance_of_the_layers(arch: str, reference: Callable[[str], Reference]) -> None:
    case = reference(arch)
    explainer = case.explainer("beta0")
    layers = [name for name, _ in explainer.layers]
    assert {key.split("|")[0] for key in case.layers} == set(layers)
    channels = explainer.explain(
        case.x, towards(*case.targets, published=True), layers=layers, input_relevance=False
    ).channels
    for layer in layers:
        found = channels[layer]
        golden = {name: case.layers[f"{layer}|{name}"] for name in ("sum", "possum", "abs")}
        # Over the four images together, and parts by the whole: where a residual sum nearly cancels, hardly any
        # relevance reaches a branch of one image, and float32 noise is all that can be compared there.
        error = {
            "sum": np.abs(found.total.numpy() - golden["sum"]).sum() / np.abs(golden["sum"]).sum(),
            "possum": np.abs(found.positive.numpy() - golden["possum"]).sum() / golden["abs"].sum(),
            "abs": np.abs(found.absolute.numpy() - golden["abs"]).sum() / golden["abs"].sum(),
        }
        assert max(error.values()) < GATE, (layer, error)


@pytest.mark.parametrize(("arch", "factor"), [("resnet50", 0.02), ("efb0", 0.1)])
def test_default_differs_by_the_batch_norm_factor_the_bounds_of_pixels_and_the_sign_of_reals(
    arch: str, factor: float, reference: Callable[[str], Reference]
) -> None:
    case = reference(arch)
    result = case.explainer("beta0", published=False).explain(case.x, towards(*case.targets))
    assert result.input is not None
    signs = np.array([1.0 if target == "fake" else -1.0 for target in case.targets])
    assert np.array_equal(np.sign(result.logits[:, 0].numpy()), signs)
    flipped = result.input.sum(1).numpy() * signs[:, None, None]
    error = l1_relative(flipped, case.inputs["R_input_beta0"])
    assert error.max() < factor
    assert error.min() > 1e-6


# The same rules by zennit, in float64. There the convolutions of the z+ rule have a bias in their denominator unless
# `zero_params` leaves it out, as all rules here do.


@pytest.fixture(scope="module")
def zennit() -> ModuleType:
    return pytest.importorskip("zennit.composites", reason="zennit, the independent implementation, is not installed")


def relevance_by_zennit(zennit: ModuleType, model: nn.Module, x: Tensor, start: Tensor, *, zbox: bool) -> Tensor:
    from zennit.attribution import Gradient
    from zennit.torchvision import ResNetCanonizer

    options = {"zero_params": "bias"}
    first = zennit.ZPlus(stabilizer=1e-12, **options)
    if zbox:
        first = zennit.ZBox(low=-2.1179039, high=2.64, stabilizer=1e-6, **options)
    composite = zennit.SpecialFirstLayerMapComposite(
        layer_map=[
            (zennit.Sum, zennit.Norm(stabilizer=1e-6)),
            (zennit.AvgPool, zennit.Norm(stabilizer=1e-6)),
            (zennit.Activation, zennit.Pass()),
            (zennit.BatchNorm, zennit.Pass()),
            (zennit.Convolution, zennit.ZPlus(stabilizer=1e-12, **options)),
            ((nn.Linear,), zennit.Epsilon(epsilon=1e-6)),
        ],
        first_map=[((nn.Conv2d,), first)],
        canonizers=[ResNetCanonizer()],
    )
    with Gradient(model, composite, attr_output=start) as attributor:
        return attributor(x)[1]


@pytest.mark.parametrize("zbox", [True, False], ids=["z-box", "z+"])
def test_zennit_agrees(zennit: ModuleType, zbox: bool) -> None:
    model = randomize(build_model("resnet18", outputs=3)).requires_grad_(False)
    x = images(2, size=64)
    rules = rule_table("beta0", ZBox(-2.1179039, 2.64) if zbox else None)
    # zennit's neutralised batch norms go on dividing by sqrt(1 + eps)
    explainer = Explainer(model, rules, published=True, dtype=torch.float64)
    ours = explainer.explain(x, towards(0, 2))
    start = torch.zeros(2, 3, dtype=torch.float64)
    start[[0, 1], [0, 2]] = ours.start
    theirs = relevance_by_zennit(zennit, model, x.clone(), start, zbox=zbox)
    assert ours.input is not None
    error = (ours.input - theirs).abs().sum((1, 2, 3)) / theirs.abs().sum((1, 2, 3))
    assert float(error.max()) < 1e-8


def test_zennit_disagrees_with_other_rules(zennit: ModuleType) -> None:
    model = randomize(build_model("resnet18", outputs=3)).requires_grad_(False)
    x = images(1, size=64)
    other = rule_table("beta0", ZBox(-2.0, 2.64))
    ours = Explainer(model, other, published=True, dtype=torch.float64).explain(x, towards(0))
    start = torch.zeros(1, 3, dtype=torch.float64)
    start[0, 0] = ours.start[0]
    theirs = relevance_by_zennit(zennit, model, x.clone(), start, zbox=True)
    assert ours.input is not None
    assert float((ours.input - theirs).abs().sum() / theirs.abs().sum()) > 1e-3
