"""Relevance through vision transformers and ConvNeXts: what is traced, the formulas a second time, conservation."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lrp_networks import towards
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from vision_transformers import NETWORKS, freeze, pictures, randomized

from lrp import ChannelStatistics, Explainer, RuleTable, UnsupportedLayerError, ZBox, build_program, rule_table
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


@pytest.mark.parametrize("case", ["timm", "CLIP of OpenAI", "CLIP of Hugging Face", "ConvNeXt of torchvision"])
def test_batch_gives_what_single_images_give(case: str) -> None:
    explainer = Explainer(network_of(case), rule_table("gamma0.1", BOX), dtype=torch.float64)
    x, layers = pictures(3), [name for name, _ in explainer.layers]
    batch = explainer.explain(x, towards("fake", "real", "real"), layers=layers)
    assert batch.input is not None
    for row, target in enumerate(("fake", "real", "real")):
        single = explainer.explain(x[row : row + 1], towards(target), layers=layers)
        torch.testing.assert_close(batch.input[row : row + 1], single.input, rtol=1e-7, atol=1e-10)
        for layer, statistics in single.channels.items():
            torch.testing.assert_close(batch.channels[layer].total[row], statistics.total[0], rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("case", ["timm, registers, layer scale, mean", "CLIP of OpenAI", "ConvNeXt of torchvision"])
def test_feature_maps_are_explained_from_their_largest_pixel(case: str) -> None:
    explainer = Explainer(network_of(case), rule_table("gamma0.1", BOX), dtype=torch.float64)
    x = pictures(3)
    wanted = {layer: [(n % 3, n) for n in range(6)] for layer, _ in explainer.layers}
    for found in explainer.explain_feature_maps(x, wanted, batch_size=4):
        record = explainer.record(x, until=found.layer).select(found.samples)
        maps = record.output[torch.arange(len(found.samples)), found.channels].flatten(1)
        torch.testing.assert_close(found.value, maps.amax(1), rtol=1e-10, atol=1e-12)
        start = torch.zeros_like(record.output)
        start.flatten(2)[torch.arange(len(maps)), found.channels, maps.argmax(1)] = 1.0
        expected = explainer.propagate(record, start)
        torch.testing.assert_close(found.relevance, expected, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("case", ["timm, registers, layer scale, mean", "CLIP of OpenAI", "CLIP of Hugging Face"])
def test_nothing_mixes_devices_or_waits_for_a_gpu(case: str) -> None:
    """On tensors that only pretend to be on a GPU: those of two devices do not mix, and have no values to wait for."""
    explainer = Explainer(network_of(case), rule_table("gamma0.1", BOX))
    x, layers = pictures().float(), [name for name, _ in explainer.layers]
    measured: dict[str, ChannelStatistics] = {}
    with FakeTensorMode(allow_non_fake_inputs=True):
        explainer.program.to("cuda", torch.float32)
        record = explainer.record(x.to("cuda"))
        rows: list[Any] = []
        start = torch.ones_like(record.output)
        relevance = explainer.propagate(record, start, layers=layers, measure=measured.__setitem__, conservation=rows)
        assert relevance is not None
        tensors = [relevance, *(row.absorbed for row in rows), *(s.absolute for s in measured.values())]
        for found in explainer.explain_feature_maps(x.to("cuda"), {layer: [(0, 1), (1, 0)] for layer in layers}):
            tensors += [found.relevance, found.value, found.row, found.column]
        assert {tensor.device.type for tensor in tensors} == {"cuda"}


@pytest.mark.parametrize("case", ["timm", "CLIP of Hugging Face", "ConvNeXt of torchvision"])
def test_short_types_agree_roughly(case: str) -> None:
    network, x = network_of(case), pictures()
    exact = Explainer(network, dtype=torch.float64).explain(x)
    for dtype, gate in ((torch.float32, 1e-4), (torch.bfloat16, 0.2)):
        found = Explainer(network, dtype=dtype).explain(x)
        assert float((found.logits - exact.logits).abs().max()) < gate
        assert found.input is not None
        assert torch.isfinite(found.input).all()


class Tokens(nn.Module):
    """Patches as tokens, what `middle(net, tokens)` makes of them, and a dense layer on the mean of the tokens."""

    def __init__(self, middle: Callable[["Tokens", Tensor], Tensor], width: int = 6) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 6, 8, 8)
        self.constant = nn.Parameter(torch.randn(1, 16, 6))
        self.fc = nn.Linear(width, 1)
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
        self.attention = nn.MultiheadAttention(6, 2)
        self.middle = middle

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        return self.fc(self.middle(self, x).mean(dim=1))


# By what they do to tokens (N, 16, 6); all are linear.
LAYOUTS: dict[str, tuple[Callable[[Tokens, Tensor], Tensor], int]] = {
    "tokens first, and back": (lambda net, x: net.first(x.permute(1, 0, 2)).permute(1, 0, 2), 6),
    "tokens first, shift and scale": (
        lambda net, x: (net.constant.transpose(0, 1) + x.transpose(0, 1) * net.constant[0, :1]).transpose(0, 1),
        6,
    ),
    "tokens first, sum": (lambda net, x: (x.transpose(0, 1) + net.first(x.transpose(0, 1))).transpose(1, 0), 6),
    "tokens first, joined": (lambda net, x: torch.cat([x.transpose(0, 1)] * 2).transpose(0, 1), 6),
    "tokens first, a part": (lambda net, x: x.transpose(0, 1)[3].unsqueeze(1), 6),
    "channels last, flattened": (
        lambda net, x: x.permute(1, 2, 0).unflatten(1, (2, 3)).flatten(1, 2).permute(2, 0, 1),
        6,
    ),
    "chunks": (lambda net, x: torch.cat([part * 2 for part in x.chunk(2, -1)], dim=-1), 6),
    "parts": (lambda net, x: torch.cat(x.split([1, 2, 3], 2)[1:], 2), 5),
    "unbound": (lambda net, x: sum(x.reshape(x.shape[0], 16, 3, 2).permute(2, 0, 1, 3).unbind(0)), 2),  # type: ignore
    "sizes": (
        lambda net, x: x.view(x.size(0), x.size(1), 2, -1).transpose(1, 2).reshape(x.shape[0], x.shape[1], -1),
        6,
    ),
    "class token": (lambda net, x: torch.cat([net.constant[:, :1].expand(x.shape[0], -1, -1), x], 1)[:, :3], 6),
    "token and rest": (lambda net, x: x[:, 1:] + net.first(x[:, :-1]) + net.constant[:, 2:3] * x[:, 1:], 6),
    "one more dimension": (lambda net, x: x.unsqueeze(1).squeeze(1), 6),
    "matrix of the model": (lambda net, x: x @ net.first.weight.t() + F.linear(x, net.second.weight), 6),
    "mixed over tokens": (lambda net, x: (x.transpose(1, 2) @ net.constant[0] * 0.1).transpose(1, 2), 6),
    "negative": (lambda net, x: net.constant - x, 6),
}


@pytest.mark.parametrize("case", LAYOUTS)
def test_layouts(case: str) -> None:
    """The same output, and relevance that is input times gradient, whatever is done to the order of dimensions."""
    torch.manual_seed(0)
    network = randomized(Tokens(*LAYOUTS[case]))
    x = pictures(3).requires_grad_()
    expected = network(x)
    (gradient,) = torch.autograd.grad(expected.sum(), x)
    result = Explainer(network, table(), dtype=torch.float64).explain(x.detach(), lambda output: output)
    torch.testing.assert_close(result.logits, expected.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(result.input, (x * gradient).detach(), rtol=1e-8, atol=1e-10)


REFUSED: dict[str, tuple[Callable[[Tokens, Tensor], Tensor], str]] = {
    "mask": (
        lambda net, x: F.scaled_dot_product_attention(x, x, x, is_causal=True),
        "attention with a mask, dropout or shared heads",
    ),
    "mask of a module": (
        lambda net, x: net.attention(x, x, x, attn_mask=torch.zeros(2, 2).double())[0],
        r"Tokens cannot be traced \(attention with a mask\)",
    ),
    "other tokens": (
        lambda net, x: net.attention(x, net.first(x), x)[0],
        r"Tokens cannot be traced \(attention to other tokens than its own\)",
    ),
    "softmax that is passed on": (lambda net, x: x.softmax(-1), "'softmax' of type softmax has no rule: it is neither"),
    "product of signals": (
        lambda net, x: x @ x.transpose(1, 2) @ x,
        "'matmul' of type matmul has no rule: it is neither",
    ),
    "division by a signal": (lambda net, x: x / net.first(x), "a division by a tensor of the network"),
    "mean over images": (lambda net, x: x.transpose(0, 1).softmax(1).transpose(0, 1), "a softmax over images"),
    "images mixed": (lambda net, x: x.flatten(0, 1).unflatten(0, (2, 16)), "work on the dimension of the images"),
    "some images": (lambda net, x: x.transpose(0, 1)[:, :1].transpose(0, 1), "picking images"),
    "constant for each image": (
        lambda net, x: torch.cat([torch.randn(2, 1, 6).double(), x], 1),
        "a constant that differs from image to image",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_rule_is_refused(case: str) -> None:
    middle, message = REFUSED[case]
    with pytest.raises(UnsupportedLayerError, match=message) as caught:
        build_program(Tokens(middle).eval())
    assert "\n" not in str(caught.value)


SIZED: dict[str, Callable[[Tokens, Tensor], Tensor]] = {
    "halves of the tokens": lambda net, x: net.first(x.chunk(2, 1)[1]),
    "tokens in the middle": lambda net, x: x[:, x.shape[1] // 4 : x.shape[1] // 2],
    "a choice": lambda net, x: net.first(x) if x.shape[1] > 16 else net.second(x),
    "a number of tokens": lambda net, x: x / x.shape[1],
}


@pytest.mark.parametrize("case", SIZED)
def test_what_depends_on_the_size_of_images_is_refused(case: str) -> None:
    """It was traced for one size; images of another get something else in the model, which takes them."""
    with pytest.raises(UnsupportedLayerError, match=r"computes something else|does not|arithmetic with"):
        build_program(randomized(Tokens(SIZED[case])))


@pytest.mark.parametrize("casts", [torch.float32, torch.float64])
def test_a_model_may_round_in_places(casts: torch.dtype) -> None:
    """As OpenAI's layer norms do, which so cannot run in double precision, and others that can."""

    class Rounding(nn.LayerNorm):
        def forward(self, x: Tensor) -> Tensor:
            weights = (self.weight, self.bias) if casts == torch.float32 else (self.weight.float(), self.bias.float())
            return F.layer_norm(x.type(torch.float32), (6,), *weights).type(x.dtype)

    network = Tokens(lambda net, x: net.norm(x))  # type: ignore[operator]
    network.norm = Rounding(6)
    randomized(network).float()
    x = pictures().float()
    with torch.no_grad():
        expected = network(x)
    torch.testing.assert_close(Explainer(network).record(x).output, expected, rtol=1e-4, atol=1e-4)


def test_large_networks_are_compared_in_single_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    network, x = network_of("torchvision").float(), pictures().float()
    exact = Explainer(network, dtype=torch.float64).explain(x)
    monkeypatch.setattr("lrp.canonise._LARGE", 0)
    found = Explainer(network, dtype=torch.float64).explain(x)
    # weights are those of the model either way
    torch.testing.assert_close(found.input, exact.input, rtol=1e-9, atol=1e-12)
    double = Explainer(network_of("torchvision"), dtype=torch.float64).explain(pictures())
    assert not torch.equal(double.logits, exact.logits)
