"""Networks of source attribution: published weights and outputs, sizes, files, and what a registry refuses."""

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from detectors.attribution_networks import (
    gdaconv,
    own_layers,
    postpool,
    primary_network,
    secondary_network,
    shared_layers,
)
from detectors.networks import get_architecture
from lrp import Explainer
from source_attribution.attributor import Attributor, load_attributor
from source_attribution.conversion import convert
from source_attribution.keras_files import read_keras, write_keras
from source_attribution.options import Asking, Conversion, Spectra
from source_attribution.registry import add_secondary, read_secondaries
from source_attribution.spectra import LogSpectrum, Statistics
from source_attribution.stored import Description, Stored, digest, read_stored, write_stored
from utils.errors import UserError

GOLDENS = ["primary_ganfp", "primary_faceshqp", "attribution_ganfp_progan", "attribution_ganfp_cramergan"]
GOLDENS += ["attribution_faceshqp_stylegan2", "primary_ganfp_dct"]


@pytest.fixture(scope="session")
def published(shared_dir: Path) -> Path:
    return shared_dir / "reference" / "generator_attribution"


def weights_in(network: torch.nn.Module) -> int:
    return sum(value.numel() for name, value in network.state_dict().items() if not name.endswith("tracked"))


def maps_of(network: torch.nn.Sequential, x: torch.Tensor) -> dict[str, np.ndarray]:
    found = {}
    for name, layer in network.named_children():
        x = layer(x)
        found[name] = x
    return {name: value.detach().numpy() for name, value in found.items()}


def made(kind: str, seed: int = 0, side: int = 32, primary: Stored | None = None, **facts: object) -> Stored:
    """A network with random weights and moved statistics; a secondary gets the shared layers of its primary."""
    torch.manual_seed(seed)
    if primary is not None:
        facts["primary"] = digest(primary.network)
    description = Description(kind, side, **facts)  # type: ignore[arg-type]
    network = description.build().train()
    channels = 3 if description.input == "pixel" else 1
    for _ in range(20):
        network(torch.randn(8, channels, side, side))
    network.requires_grad_(False).eval()
    if primary is not None:
        shared_layers(network).load_state_dict(shared_layers(primary.network).state_dict())
    return Stored(description, network)


@pytest.mark.parametrize("name", GOLDENS)
def test_published_outputs(name: str, published: Path) -> None:
    golden = np.load(published / f"golden_{name}.npz")
    x = torch.from_numpy(golden["x"]).permute(0, 3, 1, 2).contiguous()
    parts = read_keras(published / f"{name}.h5", Spectra(name.endswith("dct")))
    answers = Attributor(parts).answers(x)
    for part, answer, kind in zip(parts, answers, ("det", "att"), strict=False):
        np.testing.assert_allclose(answer.probabilities[:, 0], golden[f"pred_{kind}"], atol=1e-5)
        assert answer.evidence is not None
        expected = golden["gradcam_det_raw"] if name.endswith("dct") else golden[f"cam_{kind}"]
        np.testing.assert_allclose(answer.evidence, expected, atol=1e-3)
        maps = maps_of(part.network, x[:3])
        for layer in maps.keys() & {key.removeprefix("feat_") for key in golden.files}:
            wanted = golden[f"feat_{layer}"].transpose(0, 3, 1, 2)
            np.testing.assert_allclose(maps[layer][: len(wanted)], wanted, atol=1e-4, err_msg=layer)


def test_published_spectra(published: Path) -> None:
    golden = np.load(published / "golden_primary_ganfp_dct.npz")
    statistics = Statistics.read(published / "ganfp_dctnorm")
    images = torch.from_numpy(golden["image_u8"]).permute(0, 3, 1, 2)
    np.testing.assert_array_equal(LogSpectrum(statistics)(images).permute(0, 2, 3, 1), golden["x"])
    asking = Asking(dct=True, normstats=published / "ganfp_dctnorm")
    single = load_attributor(published / "primary_ganfp_dct.h5", "det", (), asking, single_precision=True)
    (answer,) = single.answers(single.inputs(images))
    # coefficients that are nearly zero are rounding errors in float32, which differ between libraries
    np.testing.assert_allclose(answer.probabilities[:, 0], golden["pred_det_float32_graph_dct"], atol=2e-3)


def test_published_attributions_share_a_primary(published: Path, tmp_path: Path) -> None:
    for source in ("progan", "cramergan"):
        convert(
            Conversion(
                weights=published / f"attribution_ganfp_{source}.h5", output=tmp_path, source=source, name="ganfp"
            )
        )
    attributor = load_attributor(tmp_path / "ganfp.safetensors", "att")
    assert attributor.columns == ["fake", "cramergan", "progan"]
    back = tmp_path / "back.h5"
    convert(Conversion(weights=tmp_path / "ganfp" / "progan.safetensors", output=back))
    with h5py.File(published / "attribution_ganfp_progan.h5") as first, h5py.File(back) as second:
        arrays = [_arrays(file["model_weights"]) for file in (first, second)]
    assert arrays[0].keys() == arrays[1].keys()
    assert all(np.array_equal(value, arrays[1][name]) for name, value in arrays[0].items())
    with pytest.raises(UserError, match="another network"):
        convert(Conversion(weights=published / "primary_ganfp.h5", output=tmp_path, name="ganfp"))


def _arrays(group: h5py.Group) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    group.visititems(lambda name, x: found.update({name: x[()]}) if isinstance(x, h5py.Dataset) else None)
    return found


def test_numbers_of_weights() -> None:
    """Specification, sections 1.5, 1.6 and 2."""
    sizes = [(3, None, 27_261), (3, 128, 35_421), (1, None, 27_207), (3, 256, 59_997), (1, 256, 59_943)]
    assert [weights_in(primary_network(channels=c, side=s)) for c, s, _ in sizes] == [n for *_, n in sizes]
    assert weights_in(own_layers(secondary_network())) == 21_345
    assert weights_in(primary_network()) + 4 * weights_in(own_layers(secondary_network())) == 112_641
    assert [weights_in(gdaconv()), weights_in(gdaconv(side=256)), weights_in(gdaconv(5))] == [38_885, 137_189, 169_961]
    assert weights_in(gdaconv(channels=1)) == 38_831
    assert [weights_in(postpool(side=side)) for side in (128, 256)] == [308_513, 308_513]
    assert [weights_in(postpool(channels=1)), weights_in(postpool(5))] == [308_441, 309_029]


@pytest.mark.parametrize("side", [32, 33, 37])
def test_padding_of_any_size(side: int) -> None:
    """TensorFlow's: of an odd side one before and two after, of an even one at both ends."""
    network, x = made("primary").network, torch.randn(1, 3, side, side)
    layers = dict(network.named_children())
    x = layers["dRelu_01"](layers["dConv_01"](x))
    convolution = layers["dConv_02"]
    assert isinstance(convolution, torch.nn.Conv2d)
    ends = (1, 1 + side % 2) * 2
    expected = F.conv2d(F.pad(x, ends), convolution.weight, convolution.bias, stride=2)
    torch.testing.assert_close(convolution(x), expected)
    assert network(torch.randn(2, 3, side, side)).shape == (2, 1)


@pytest.mark.parametrize("kind", ["primary", "secondary"])
def test_explained_as_any_detector(kind: str) -> None:
    name = "attribution" if kind == "primary" else "attribution-secondary"
    architecture = get_architecture(name)
    network = made(kind).network.double()
    explainer = Explainer(network, architecture.rules("beta0", architecture.transform.bounds()), dtype=torch.float64)
    images = torch.rand(2, 3, 40, 41, dtype=torch.float64) * 2 - 1
    torch.testing.assert_close(explainer.record(images).output, network(images))
    result = explainer.explain(images)
    assert result.input is not None
    assert result.input.abs().sum() > 0


@pytest.mark.parametrize("facts", [{}, {"input": "grey"}, {"input": "dct"}])
def test_files_hold_what_was_written(facts: dict[str, str], tmp_path: Path) -> None:
    primary = made("primary", **facts)
    if facts.get("input") == "dct":
        primary = Stored(primary.description, primary.network, Statistics(np.zeros((32, 32)), np.ones((32, 32))))
    secondary = made("secondary", 1, primary=primary, sources=("g",), **facts)
    for stored in (primary, secondary):
        write_stored(tmp_path / "a.safetensors", stored.with_description(threshold=0.8))
        found = read_stored(tmp_path / "a.safetensors")
        assert found.description == stored.with_description(threshold=0.8).description
        assert digest(found.network) == digest(stored.network)
        assert (found.statistics is None) == (stored.statistics is None)
    write_keras(tmp_path / "a.h5", primary, secondary)
    again = read_keras(tmp_path / "a.h5", Spectra(facts.get("input") == "dct"), "g")
    assert [digest(part.network) for part in again] == [digest(primary.network), digest(secondary.network)]
    assert again[1].description.primary == digest(primary.network)


def test_evidence_adds_up_to_the_decision() -> None:
    primary = made("primary")
    x = torch.randn(3, 3, 32, 32)
    (answer,) = Attributor([primary]).answers(x)
    assert answer.evidence is not None
    decision = dict(primary.network.named_children())["dDecision"]
    logits = answer.evidence.mean((1, 2)) + decision.get_parameter("bias")
    torch.testing.assert_close(torch.sigmoid(logits).double(), answer.probabilities[:, 0], atol=1e-5, rtol=1e-4)


def test_gradient_map_is_that_of_autograd() -> None:
    stored = made("primary", input="dct")
    x = torch.randn(2, 1, 32, 32)
    (answer,) = Attributor([stored]).answers(x)
    layers = dict(stored.network.named_children())
    maps = answer.maps.clone().requires_grad_(True)
    probability = torch.sigmoid(layers["dDecision"](layers["dFlatten"](maps))).sum()
    (gradient,) = torch.autograd.grad(probability, maps)
    assert answer.evidence is not None
    torch.testing.assert_close(answer.evidence, (gradient * maps).sum(1).relu().detach(), atol=1e-6, rtol=1e-4)


def test_registry_refuses_secondaries_of_others(tmp_path: Path) -> None:
    ours, theirs = made("primary"), made("primary", 5)
    path = tmp_path / "p.safetensors"
    write_stored(path, ours)
    with pytest.raises(UserError, match="no secondary modules"):
        read_secondaries(path, ours)
    own = add_secondary(path, ours, made("secondary", 1, primary=ours, sources=("a",)))
    before = own.read_bytes()
    add_secondary(path, ours, made("secondary", 2, primary=ours, sources=("b",)))
    assert own.read_bytes() == before
    assert [s.description.sources for s in read_secondaries(path, ours)] == [("a",), ("b",)]
    foreign = made("secondary", 3, primary=theirs, sources=("c",))
    with pytest.raises(UserError, match="belongs to another primary"):
        add_secondary(path, ours, foreign)
    write_stored(tmp_path / "p" / "c.safetensors", foreign)
    with pytest.raises(UserError, match=r"c\.safetensors belongs to another primary"):
        read_secondaries(path, ours)
    with pytest.raises(UserError, match="is there already"):
        add_secondary(path, ours, made("secondary", 4, primary=ours, sources=("a",)))
    with pytest.raises(UserError, match="no secondary module of z"):
        read_secondaries(path, ours, ["z"])
    with pytest.raises(UserError, match="leads out of"):
        add_secondary(path, ours, made("secondary", 4, primary=ours, sources=("../../a",)))


def test_files_that_are_no_networks(tmp_path: Path) -> None:
    absent, broken, text = tmp_path / "absent.h5", tmp_path / "broken.h5", tmp_path / "x.safetensors"
    broken.write_bytes(b"not HDF5")
    text.write_bytes(b"neither")
    other = tmp_path / "other.h5"
    with h5py.File(other, "w") as file:
        file.create_dataset("dense/dense/kernel:0", data=np.zeros((2, 2)))
    for path, message in ((absent, "no weights"), (broken, "damaged"), (other, "no primary module")):
        with pytest.raises(UserError, match=message):
            read_keras(path)
    with pytest.raises(UserError, match="damaged"):
        read_stored(text)
    write_stored(text, made("secondary", threshold=1.0))
    with pytest.raises(UserError, match="cannot be read"):
        read_stored(text)
    nan = made("primary")
    next(iter(nan.network.parameters())).fill_(float("nan"))
    write_stored(text, nan)
    with pytest.raises(UserError, match="damaged"):
        read_stored(text)
