"""Relevance through vision transformers and ConvNeXts: what is traced, the formulas a second time, conservation."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from vision_transformers import NETWORKS, freeze, pictures, randomized

from lrp import Explainer, RuleTable, ZBox, build_program, rule_table
from lrp.attention import FrozenWeights
from lrp.rules import Epsilon

BOX = ZBox(-2.5, 3.0, 1e-15)
TINY: Any = Epsilon(1e-15)


def table(first: ZBox | None = None) -> RuleTable:
    """Epsilon rules everywhere, their stabiliser far below the precision of the checks."""
    kinds = ("convolution", "dense", "affine", "average_pool", "sum", "shift", "layer_norm")
    return rule_table("epsilon", first).with_rules(**dict.fromkeys(kinds, TINY), attention=FrozenWeights(1e-15))


def network_of(case: str) -> nn.Module:
    return randomized(NETWORKS[case]())


def first_convolution(network: nn.Module) -> nn.Conv2d:
    return next(module for module in network.modules() if isinstance(module, nn.Conv2d))


def gradients(network: nn.Module, x: Tensor, layers: list[str]) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Output, input times gradient of the image, and of the outputs of layers, by plain autograd."""
    outputs: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def look(module: nn.Module, inputs: Any, output: Tensor) -> None:
            output.retain_grad()
            outputs[name] = output

        return look

    handles = [network.get_submodule(name).register_forward_hook(keep(name)) for name in layers]
    x = x.clone().requires_grad_()
    logits = network(x)
    logits.sum().backward()
    for handle in handles:
        handle.remove()
    products = {name: (output * output.grad).detach() for name, output in outputs.items()}
    return logits.detach(), (x * x.grad).detach(), products


@pytest.mark.parametrize("case", NETWORKS)
def test_relevance_is_input_times_gradient_of_the_network_with_frozen_parts(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, x = network_of(case), pictures()
    with torch.no_grad():
        plain = network(x)
    explainer = Explainer(network, table(), dtype=torch.float64)
    layers = [name for name, _ in explainer.layers]
    # started at the logit itself, so that relevance is input times gradient of the logit
    result = explainer.explain(x, lambda output: output, layers=layers, keep="maps")
    boxed = Explainer(network, table(BOX), dtype=torch.float64).explain(x, lambda output: output)
    with monkeypatch.context() as context:
        freeze(context)
        logits, expected, of_layers = gradients(network, x, layers)
    torch.testing.assert_close(logits, plain, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(result.logits, plain, rtol=1e-12, atol=1e-12)
    assert result.input is not None
    assert boxed.input is not None
    scale = float(expected.abs().max())
    assert float((result.input - expected).abs().max()) < 1e-9 * scale
    for name, maps in result.maps.items():
        found = of_layers[name]
        if not isinstance(network.get_submodule(name), nn.Conv2d):
            found = (found if len(found) == len(x) else found.transpose(0, 1)).movedim(-1, 1)
        assert maps.shape[:2] == found.shape[:2]
        assert float((maps.flatten(2) - found.flatten(2)).abs().max()) < 1e-9 * float(found.abs().max())
    # the z-box at the image: relevance of the patch embedding, spread over (x - low) w+ and (x - high) w-
    stem = first_convolution(network)
    name = next(name for name, module in network.named_modules() if module is stem)
    weight = stem.weight.detach()
    images = [x, torch.full_like(x, -2.5), torch.full_like(x, 3.0)]
    weights = [weight, -weight.clamp(min=0), -weight.clamp(max=0)]
    probes = [image.clone().requires_grad_() for image in images]
    parts = [
        torch.nn.functional.conv2d(image, w, None, stem.stride, stem.padding)
        for image, w in zip(probes, weights, strict=True)
    ]
    total = sum(parts)
    assert isinstance(total, Tensor)
    shares = torch.autograd.grad(total, probes, of_layers[name] / total.detach())
    expected = sum(image * share for image, share in zip(images, shares, strict=True))  # type: ignore[assignment]
    assert float((boxed.input - expected).abs().max()) < 1e-9 * float(expected.abs().max())


@pytest.mark.parametrize("case", NETWORKS)
@pytest.mark.parametrize("rule", ["beta0", "gamma0.1"])
def test_conservation_is_reported_per_step(case: str, rule: str) -> None:
    explainer = Explainer(network_of(case), rule_table(rule, BOX), dtype=torch.float64)
    result = explainer.explain(pictures(), conservation=True)
    assert result.input is not None
    absorbed = sum(row.absorbed for row in result.conservation)
    torch.testing.assert_close(result.start - result.input.sum((1, 2, 3)), absorbed, rtol=1e-9, atol=1e-9)
    for row in result.conservation:
        # changes of order, attention with frozen weights, scales, normalisation and activations keep all
        if row.kind in ("move", "reshape", "resample", "scale", "normalisation", "activation", "gate"):
            torch.testing.assert_close(row.passed, row.received, rtol=1e-9, atol=1e-9)
        # and these but for the stabiliser
        if row.kind in ("attention", "average_pool", "sum"):
            torch.testing.assert_close(row.passed, row.received, rtol=1e-3, atol=1e-4)
    kinds = {row.kind for row in result.conservation}
    assert {"layer_norm", "dense", "sum"} <= kinds
    assert ("attention" in kinds) == ("ConvNeXt" not in case)


HIDDEN = {
    "timm": ["patch_embed.proj", "blocks.0.mlp.fc1", "blocks.1.mlp.fc1"],
    "torchvision": [
        "conv_proj",
        "encoder.layers.encoder_layer_0.mlp.0",
        "encoder.layers.encoder_layer_1.mlp.0",
    ],
    "CLIP of OpenAI": ["conv1", "transformer.resblocks.0.mlp.c_fc", "transformer.resblocks.1.mlp.c_fc"],
    "CLIP of Hugging Face": ["patch_embedding", "layers.0.mlp.fc1", "layers.1.mlp.fc1"],
    "ConvNeXt of torchvision": [
        "features.0.0",
        "features.1.0.block.0",
        "features.1.0.block.3",
        "features.2.1",
        "features.3.0.block.0",
        "features.3.0.block.3",
    ],
}


@pytest.mark.parametrize("case", HIDDEN)
def test_feature_maps_are_those_of_convolutions_and_hidden_units(case: str) -> None:
    program = build_program(network_of(case))
    assert [name for name, _ in program.convolutions()] == HIDDEN[case]
    network = network_of(case)
    for name, channels in program.convolutions():
        layer: Any = network.get_submodule(name)
        assert channels == len(layer.weight)
