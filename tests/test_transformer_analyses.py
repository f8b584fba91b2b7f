"""The experiments on a vision transformer: its feature maps are the patch embedding's and the hidden units of MLPs."""

import csv
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from ranking_runs import LOGITS, USED, Scripts, inputs, tuned_model
from torch import Tensor, nn

from detectors.detector import Detector, load_detector
from detectors.networks import load_plugin, unregister_architecture
from fmap_ranking.ranking import read_ranking

PLUGIN = """
from torchvision.models import VisionTransformer

from detectors.networks import Architecture, register_architecture


def build(outputs):
    # of images of 48x48 pixels, in 6x6 patches
    return VisionTransformer(48, 8, 2, 3, 24, 48, num_classes=outputs)


register_architecture(Architecture("small-vit", build, last_layer="heads.head", gradcam_layer="conv_proj"))
"""
FIRST, SECOND = (f"encoder.layers.encoder_layer_{number}.mlp.0" for number in range(2))


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("plugin") / "small_vit.py"
    path.write_text(PLUGIN)
    load_plugin(str(path))
    yield path
    unregister_architecture("small-vit")


@pytest.fixture(scope="module")
def weights(plugin: Path, small_images: Path) -> Path:
    path = plugin.with_name("small-vit.pth")
    torch.save({"model": tuned_model(small_images, "small-vit").state_dict()}, path)
    return path


@pytest.fixture
def detector(weights: Path) -> Detector:
    return load_detector("small-vit", weights, "cpu")


def hidden_units(detector: Detector, layer: str, x: Tensor, drop: int | None = None) -> tuple[Tensor, Tensor]:
    """Hidden units before their activation (N, tokens, C) and the logits, by a hook; one unit set to 0."""
    kept: list[Tensor] = []

    def look(module: nn.Module, given: object, output: Tensor) -> Tensor:
        kept.append(output.clone())
        if drop is not None:
            output[..., drop] = 0.0
        return output

    handle = detector.model.get_submodule(layer).register_forward_hook(look)
    with torch.no_grad():
        logits = detector.model(x)
    handle.remove()
    return kept[0], logits


def test_largest_values_and_dropout_of_hidden_units(detector: Detector, small_images: Path) -> None:
    x, network = inputs(small_images), detector.feature_maps()
    assert network.layers == {"conv_proj": 24, FIRST: 48, SECOND: 48}
    found = network.observing({SECOND: [3, 40], "conv_proj": [0]})(x)
    units, logits = hidden_units(detector, SECOND, x)
    torch.testing.assert_close(found.maxima[SECOND], units.amax(1)[:, [3, 40]], rtol=1e-5, atol=1e-5)
    assert found.logits is not None
    torch.testing.assert_close(found.logits, logits, rtol=1e-4, atol=1e-4)
    dropped = network.dropping({"one": {FIRST: [5]}, "none": {}, "two": {FIRST: [5], SECOND: [1]}})(x)
    torch.testing.assert_close(dropped["one"], hidden_units(detector, FIRST, x, drop=5)[1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(dropped["none"], logits, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(dropped["two"], dropped["one"], atol=1e-3)


def test_largest_pixels_are_patches(detector: Detector, small_images: Path) -> None:
    x, explainer = inputs(small_images)[:3], detector.explainer()
    units, _ = hidden_units(detector, SECOND, x)
    pairs = [(sample, channel) for sample in range(3) for channel in range(48)]
    classes = 0
    for found in explainer.explain_feature_maps(x, {SECOND: pairs}):
        for row, (sample, channel) in enumerate(zip(found.samples.tolist(), found.channels.tolist(), strict=True)):
            values = units[sample, :, channel]
            place = int(values.argmax())
            assert float(found.value[row]) == pytest.approx(float(values[place]), rel=1e-4, abs=1e-5)
            # the class token comes first and is no patch
            expected = divmod(place - 1, 6) if place else (-1, 0)
            assert (int(found.row[row]), int(found.column[row])) == expected
            classes += place == 0
        record = explainer.record(x, until=SECOND).select(found.samples)
        start, number = torch.zeros_like(record.output), torch.arange(len(found.samples))
        token = torch.where(found.row < 0, 0, found.row * 6 + found.column + 1)
        start[number, found.channels, 0, token] = 1.0
        whole = explainer.propagate(record, start)
        assert whole is not None
        torch.testing.assert_close(found.relevance, whole, rtol=1e-3, atol=1e-4)
    assert 0 < classes < len(pairs)


def test_every_step(plugin: Path, weights: Path, small_images: Path, scripts: Scripts) -> None:
    network = ("--plugin", plugin, "--arch", "small-vit", "--weights", weights, "--device", "cpu")
    images = ("--dataset_dir", small_images, "--gan_name", "gan", "--crop", "none")
    few, output = ("--topk", 3), ("--output_dir", "out")
    for name, *words in (
        ("rank_fmaps", *images),
        ("transfer_sensitivity_analysis", *images, *few, "--draws", 1, "--bootstrap", 10),
        ("get_max_activation_rankings", *images, *few),
        ("extract_max_activation_patches", "--gan_name", "gan", *few, "--num_instances", 2),
        ("median_test_activation_histograms", *images, *few),
        ("grayscale_sensitivity_analysis", *images, "--bootstrap", 10),
        ("ud_lrp", *images, "--conservation"),
    ):
        result = scripts(name, *network, *output, *words)
        assert result.code == 0, (name, result.err)
    folder = Path("out")
    (path,) = folder.rglob("gan-fake.csv")
    ranking = read_ranking(path)
    assert {(fmap.layer, fmap.channels) for fmap in ranking.maps} == {("conv_proj", 24), (FIRST, 48), (SECOND, 48)}
    assert f"{FIRST}.#47(T=48)" in {fmap.key for fmap in ranking.maps}
    # the ranking is that of input times gradient of the network with frozen parts, shared out by layer
    with path.open() as file:
        omega = {row["key"]: float(row["mean_relevance"]) for row in csv.DictReader(file)}
    detector = load_detector("small-vit", weights, "cpu")
    rows = [list(LOGITS).index(name) for name in USED["fake"]]
    result = detector.explainer().explain(inputs(small_images)[rows], layers=[SECOND])
    shares = result.channels[SECOND].positive / result.channels[SECOND].absolute[:, None]
    for channel, share in enumerate(shares.mean(0).tolist()):
        assert omega[f"{SECOND}.#{channel}(T=48)"] == pytest.approx(share, rel=1e-4, abs=1e-7)
    tables = sorted(path for path in folder.rglob("*.csv") if "start_row" in path.read_text())
    assert len(tables) == 3
    for table in tables:
        with table.open() as file:
            for row in csv.DictReader(file):
                assert -1 <= int(row["start_row"]) < 6
                assert 0 <= int(row["start_col"]) < 6
    with next(folder.rglob("conservation.csv")).open() as file:
        kinds = {row["kind"] for row in csv.DictReader(file)}
    assert {"attention", "layer_norm", "shift", "dense", "convolution"} <= kinds


def test_images_of_another_size_are_named(plugin: Path, weights: Path, tmp_path: Path, scripts: Scripts) -> None:
    for label in ("0_real", "1_fake"):
        place = tmp_path / "data" / "gan" / label / "a.png"
        place.parent.mkdir(parents=True)
        Image.new("RGB", (64, 64)).save(place)
    network = ("--plugin", plugin, "--arch", "small-vit", "--weights", weights, "--device", "cpu")
    result = scripts("rank_fmaps", *network, "--dataset_dir", tmp_path / "data", "--gan_name", "gan", "--crop", "none")
    assert result.code == 2
    assert "a.png: an embedding of shape (37, 24) does not fit (65, 24)" in result.err.splitlines()[-1]
