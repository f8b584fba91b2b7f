"""Patch classifiers: published tensors, receptive fields and outputs; any size of image; explained like the others."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from patch_goldens import PatchGoldens

from detectors.checkpoints import load_state, read_state
from detectors.detector import load_detector
from detectors.heads import LogitMap
from detectors.networks import architectures, get_architecture
from detectors.patch_networks import FAKE_CLASS, PREFIX, build_patch_network, build_xception, published_start
from lrp import Explainer, build_program
from lrp.receptive import receptive_field, visible_pixels
from utils.errors import UserError

SMALL = ["xception_block1", "xception_block2", "resnet18_layer1", "widenet_kw7_d1"]


@pytest.fixture(scope="module")
def goldens(shared_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> PatchGoldens:
    return PatchGoldens(shared_dir, tmp_path_factory.mktemp("patch_networks"))


def entries(name: str) -> list[list[object]]:
    with torch.device("meta"):
        model = build_xception() if name == "xception" else build_patch_network(name)
    return [[key, list(value.shape)] for key, value in model.state_dict().items()]


def test_tensors_are_those_of_published_checkpoints_in_their_order(goldens: PatchGoldens) -> None:
    known = {**goldens.networks, **goldens.json("patch_networks_other")}
    for name, entry in known.items():
        if name.startswith("resnet") and "_" not in name:
            continue  # torchvision's own
        found = entries(name)
        assert found == entry.get("entries", found), name
        digest = hashlib.sha256(json.dumps(found, separators=(",", ":")).encode()).hexdigest()
        assert entry.get("sha256_of_entries", digest) == digest, name
        assert get_architecture(PREFIX + name).fake_class == FAKE_CLASS


def test_random_weights_are_those_that_published_training_starts_from(goldens: PatchGoldens) -> None:
    for name, norms in goldens.json("init_seed0_norms").items():
        state = published_start(name, 0).state_dict()
        assert {key: float(value.double().norm()) for key, value in state.items()} == pytest.approx(norms, rel=1e-12)


@pytest.mark.parametrize("kind", ["normal", "kaiming", "orthogonal"])
def test_other_random_weights(kind: str) -> None:
    before = torch.get_rng_state()
    first, again = (published_start("xception_relu2", 1, kind).state_dict() for _ in range(2))  # type: ignore[arg-type]
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert torch.equal(torch.get_rng_state(), before)
    assert float(first["convout.bias"].abs().max()) == 0
    assert 0 < float(first["bn1.weight"].std()) < 0.1


@pytest.mark.parametrize("name", [*SMALL, "resnet50_layer2", "xception_block5", "longxception"])
def test_logits(name: str, goldens: PatchGoldens) -> None:
    """Of both classes; the detector's folded logit is their difference."""
    golden, images = goldens.arrays(f"golden_{name}"), goldens.inputs(name)[[0, 5]]
    architecture, path = get_architecture(PREFIX + name), goldens.run(name).with_name("bestval_net_D.pth")
    model = load_state(path, read_state(path), architecture, outputs=2).eval()
    with torch.no_grad():
        logits = model(architecture.transform(images)).numpy()
    np.testing.assert_allclose(logits, golden["logits8"][[0, 5]], atol=1e-4)
    detector = load_detector(PREFIX + name, path, "cpu")
    folded = detector.logits(detector.inputs(images))
    np.testing.assert_allclose(folded[:, 0].sigmoid(), 1 - golden["prob8_class1"][[0, 5]], atol=2e-5)


def test_receptive_fields(goldens: PatchGoldens) -> None:
    known = goldens.json("receptive_fields")
    for name in [*SMALL, "xception_relu1", "xception_block5", "longxception", "resnet18_layer4", "resnet50_layer2"]:
        golden, program = known[name], build_program(build_patch_network(name).eval())
        rows, columns = receptive_field(program, torch.Size((1, 3, 64, 64)))
        assert rows == columns
        assert (rows.step, rows.first) == (golden["stride"], golden["offset"])
        assert golden["rf"] in (rows.length, None)
        for side, spans in golden.get("spans", {}).items():
            if (int(side) < 300 and name in SMALL) or int(side) == 128:
                seen = visible_pixels(program, torch.Size((1, 3, int(side), 128)))
                assert seen[0].tolist() == spans
                assert seen[1].tolist() == golden["spans"]["128"]


@pytest.mark.parametrize("name", ["xception_block1", "resnet18_maxpool", "widenet_kw3_d2"])
def test_visible_pixels_are_those_that_change_a_place(name: str) -> None:
    """With a dilated convolution, too; rows and columns of an image that is not square."""
    torch.manual_seed(0)
    model = build_patch_network(name).eval().double()
    image = torch.rand(1, 3, 41, 30, dtype=torch.float64, requires_grad=True)
    # averages in place of maxima, so that every pixel counts
    for parent in list(model.modules()):
        for key, child in parent.named_children():
            if isinstance(child, torch.nn.MaxPool2d):
                setattr(parent, key, torch.nn.AvgPool2d(child.kernel_size, child.stride, child.padding))
            elif isinstance(child, torch.nn.ReLU):
                setattr(parent, key, torch.nn.Identity())
    rows, columns = visible_pixels(build_program(build_patch_network(name).eval()), image.shape)
    output = model(image)
    assert output.shape[2:] == (len(rows), len(columns))
    for row, column in [(0, 0), (1, 2), (len(rows) - 1, len(columns) - 1)]:
        (gradient,) = torch.autograd.grad(output[0, 0, row, column], image, retain_graph=True)
        seen = gradient[0].abs().sum(0).nonzero()
        assert seen.amin(0).tolist() == [rows[row, 0], columns[column, 0]]
        assert (seen.amax(0) + 1).tolist() == [rows[row, 1], columns[column, 1]]


@pytest.mark.parametrize("name", ["xception_block2", "resnet18_layer1", "longxception"])
def test_relevance_of_a_patch_classifier(name: str) -> None:
    """The program computes what the network computes, for images of any size; relevance starts at the places."""
    torch.manual_seed(0)
    architecture = get_architecture(PREFIX + name)
    model = architecture.build(1).double()
    model(torch.randn(4, 3, 64, 64, dtype=torch.float64))  # statistics that are not those of a fresh norm
    model.eval()
    images = torch.rand(2, 3, 57, 70, dtype=torch.float64) * 2 - 1
    rules = architecture.rules("beta0", architecture.transform.bounds())
    explainer = Explainer(model, rules, dtype=torch.float64)
    output = explainer.record(images).output
    torch.testing.assert_close(output, model(images), rtol=1e-9, atol=1e-9)
    start = architecture.head.start_relevance(output, torch.tensor([1, 0]))
    assert start.shape == output.shape
    torch.testing.assert_close(start.sum((1, 2, 3)).abs(), torch.ones(2, dtype=torch.float64))
    assert architecture.head == LogitMap(mean_of="probabilities")


def test_unknown_names_are_refused() -> None:
    for name in ("xception", "resnet18", "xception_conv1", "resnet20_layer1", "xception_block13", "widenet"):
        with pytest.raises(UserError, match="no patch classifier is called"):
            build_patch_network(name)
    assert f"{PREFIX}xception_block2" in architectures()
