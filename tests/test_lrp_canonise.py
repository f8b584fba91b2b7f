"""Tracing and canonisation: the program computes what the model computes, or stops and says where and why."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from efficientnet_pytorch import EfficientNet
from lrp_networks import GatedNet, TinyResNet, images, largest_pixels, randomize
from torch import Tensor, nn

from detectors.networks import architectures, build_model
from lrp import (
    Explainer,
    RuleTable,
    UnknownLayerError,
    UnsupportedLayerError,
    build_program,
    register_function,
    register_module,
    rule_table,
)
from lrp.canonise import explained_layers
from lrp.layers import FUNCTIONS, MODULES
from lrp.operations import Activation, BatchNorm, Convolution, Dense, Operation
from lrp.rules import Gradient

NETWORKS: dict[str, Callable[[], nn.Module]] = {"residual": TinyResNet, "gated": GatedNet}
SMALL = ("resnet18", "resnet50", "efb0")


def assert_same_output(model: nn.Module, x: Tensor, folded: tuple[bool, ...] = (True, False)) -> None:
    """Folded or not, the program's output is the model's."""
    with torch.no_grad():
        expected = model(x)
    # an output that ignores its input would agree with anything
    assert float((expected[0] - expected[1]).abs().max()) > 1e-3 * float(expected.abs().max())
    for fold in folded:
        program = build_program(model, fold=fold, dtype=torch.float64)
        assert any(isinstance(step.operation, BatchNorm) for step in program.steps) != fold
        found = program.run(x)[program.output]
        torch.testing.assert_close(found, expected, rtol=0.0, atol=1e-10 * float(expected.abs().max()))


@pytest.mark.parametrize("network", NETWORKS)
def test_tiny_networks_compute_the_same(network: str) -> None:
    assert_same_output(randomize(NETWORKS[network]()), images(3))


# Others have tests of their own: transformers in test_transformer_detectors, patch classifiers in test_patch_networks.
# Between two networks of the same blocks that are here; test_detectors counts their parameters.
BETWEEN = {"resnet101", *(f"efb{number}" for number in range(1, 7))}
HERE = [
    name for name in architectures() if name.startswith(("resnet", "efb", "npr", "ladeda9")) and name not in BETWEEN
]


# 40 pixels: even and odd sizes on the way down, so that same padding is asymmetric and symmetric
@pytest.mark.parametrize(
    "arch", [arch if arch in SMALL else pytest.param(arch, marks=pytest.mark.slow) for arch in HERE]
)
def test_registered_architectures_compute_the_same(arch: str) -> None:
    folded = (True, False) if arch in SMALL else (True,)
    gain = 2.0 if arch.startswith("ef") else 1.0  # swish and gates make signals smaller
    assert_same_output(randomize(build_model(arch, outputs=3), gain=gain), images(2, size=40), folded)


def test_bias_of_the_convolution_is_folded_too() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3, bias=True), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())
    assert_same_output(randomize(net), images(2, size=6))
    plain = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4, affine=False), nn.Flatten())
    assert_same_output(plain.double().eval(), images(2, size=6))
    twice = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4), nn.Flatten())
    assert_same_output(randomize(twice), images(2, size=6))


@pytest.mark.parametrize("network", NETWORKS)
def test_published_keeps_the_factor_of_neutralised_batch_norms(network: str) -> None:
    model = randomize(NETWORKS[network]())
    explicit = copy.deepcopy(model)
    with torch.no_grad():
        for module in explicit.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.div_((1.0 + module.eps) ** 0.5)
                module.bias.div_((1.0 + module.eps) ** 0.5)
        expected, plain = explicit(images()), model(images())
    program = build_program(model, norm_residue=True, dtype=torch.float64)
    found = program.run(images())[program.output]
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(found, plain, rtol=1e-7, atol=0.0)


def snapshot(model: nn.Module) -> list[Any]:
    """All of a model that an explanation might disturb."""
    tensors = [
        (name, tensor.numpy().tobytes(), tensor.stride(), tensor.dtype) for name, tensor in model.state_dict().items()
    ]
    flags = [(name, parameter.requires_grad, parameter.grad) for name, parameter in model.named_parameters()]
    modules = [
        (
            name,
            type(module),
            module.training,
            len(module._forward_hooks) + len(module._forward_pre_hooks) + len(module._backward_hooks),
            sorted(vars(module)),
        )
        for name, module in model.named_modules()
    ]
    return [tensors, flags, modules, nn.Module.__call__, nn.Module.__getattr__]


class Broken(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = TinyResNet()
        self.norm = nn.GroupNorm(1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.inner(x)[:, :, None, None])


@pytest.mark.parametrize("network", NETWORKS)
def test_model_is_left_as_found(network: str) -> None:
    model = randomize(NETWORKS[network]())
    next(iter(model.parameters())).requires_grad_(False)
    model.register_forward_hook(lambda module, args, output: None)
    x = images()
    before, pixels = snapshot(model), x.clone()
    explainer = Explainer(model, "beta1", dtype=torch.float64)
    layers = [name for name, _ in explainer.layers]
    explainer.explain(x, layers=layers, conservation=True)
    largest_pixels(explainer, x, layers[-1], [0, 1])
    assert snapshot(model) == before
    build_program(model, norm_residue=True, dtype=torch.bfloat16).run(x)
    assert snapshot(model) == before
    assert torch.equal(x, pixels)


def test_model_is_left_as_found_after_exceptions() -> None:
    broken = randomize(Broken())
    before = snapshot(broken)
    with pytest.raises(UnsupportedLayerError):
        Explainer(broken)
    assert snapshot(broken) == before

    model = randomize(TinyResNet())
    before = snapshot(model)
    explainer = Explainer(model, dtype=torch.float64)

    def fail(layer: str, relevance: Tensor) -> None:
        raise RuntimeError("in the middle")

    record = explainer.record(images())
    with pytest.raises(RuntimeError, match="in the middle"):
        explainer.propagate(record, torch.ones_like(record.output), layers=["layer1.conv1"], visit=fail)
    with pytest.raises(UnknownLayerError):
        explainer.explain(images(), layers=["layer9"])
    assert snapshot(model) == before
    # and the explainer still works
    assert explainer.explain(images()).input is not None


def test_later_changes_of_the_model_do_not_reach_the_program() -> None:
    model = randomize(TinyResNet())
    program = build_program(model, dtype=torch.float64)
    before = program.run(images())[program.output]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(program.run(images())[program.output], before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_memory_format_and_types(dtype: torch.dtype) -> None:
    program = build_program(randomize(GatedNet()), dtype=dtype)
    for step in program.steps:
        if isinstance(step.operation, Convolution):
            assert step.operation.weight.dtype == dtype
            assert step.operation.weight.is_contiguous(memory_format=torch.channels_last)
            assert all(part.is_contiguous(memory_format=torch.channels_last) for part in step.operation.parts("+"))
    values = program.run(images(), keep=range(program.output))
    maps = [value for value in values.values() if value.dim() == 4 and value.shape[-1] > 1]
    assert len(maps) > 5
    assert all(value.is_contiguous(memory_format=torch.channels_last) for value in maps)
    assert {value.dtype for value in maps} == {dtype}
    # the dense layer, and so the logits, are in float32 at least
    assert values[program.output].dtype == torch.promote_types(dtype, torch.float32)


@pytest.mark.parametrize(("arch", "layers", "channels"), [("resnet50", 53, 26560), ("efb0", 49, 21008)])
def test_explained_layers(arch: str, layers: int, channels: int) -> None:
    found = explained_layers(build_program(build_model(arch).eval()))
    assert (len(found), sum(count for _, count in found)) == (layers, channels)
    program = build_program(build_model(arch).eval())
    left_out = {name for name, _ in program.convolutions()} - {name for name, _ in found}
    assert all("._se_" in name for name in left_out)
    assert bool(left_out) == (arch == "efb0")


@pytest.mark.parametrize("arch", ["resnet50", "efb0"])
def test_order_of_layers_is_the_published_one(arch: str, shared_dir: Path) -> None:
    golden = json.loads((shared_dir / "reference" / "golden" / f"hooked_layers_{arch}.json").read_text())
    found = explained_layers(build_program(build_model(arch).eval()))
    assert found == [(name, channels) for name, channels in golden["layers"]]


class Standardised(nn.Conv2d):
    """Overrides what `forward` of a convolution calls."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(input, (weight - weight.mean((1, 2, 3), keepdim=True)) / weight.std(), bias)


def hooked(after: Callable[..., Any] | None = None, pre: Callable[..., Any] | None = None, on: str = "a") -> nn.Module:
    net = Net(lambda net, x: torch.relu(x))
    if after is not None:
        net.get_submodule(on).register_forward_hook(after)
    if pre is not None:
        net.get_submodule(on).register_forward_pre_hook(pre)
    return net


def replaced() -> nn.Module:
    net = Net(lambda net, x: torch.relu(x))
    net.a.forward = lambda x: F.conv2d(x, torch.ones(4, 3, 3, 3).to(x), padding=1)  # type: ignore[method-assign]
    return net


def holding_a_graph() -> nn.Module:
    net = Net(lambda net, x: torch.relu(x))
    net.last = net.a.weight * 2  # type: ignore[assignment]
    return net


class PositiveHalf(nn.Conv2d):
    """Inherits from a convolution and is none."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight.clamp(min=0), self.bias)


class Net(nn.Module):
    """Two convolutions, and in between what `middle(net, x)` does."""

    def __init__(self, middle: Callable[["Net", Tensor], Tensor], **modules: nn.Module) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 4, 3, padding=1)
        self.b = nn.Conv2d(4, 4, 3, padding=1)
        for name, module in modules.items():
            self.add_module(name, module)
        self.middle = middle

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.middle(self, self.a(x))).mean((2, 3))


class TwoInputs(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y


class TwoOutputs(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.relu(x), x


UNSUPPORTED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "norm without statistics": (
        lambda: Net(lambda net, x: net.norm(x), norm=nn.BatchNorm2d(4, track_running_stats=False)),
        r"layer 'norm' of type BatchNorm2d: a batch norm without running statistics",
    ),
    "unknown layer": (
        lambda: Net(lambda net, x: net.odd(x), odd=nn.ChannelShuffle(2)),
        r"layer 'odd' of type ChannelShuffle has no rule; supported are .*Conv2d.*register_module",
    ),
    "unknown layer deep inside": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(nn.ReLU(), nn.PixelUnshuffle(2))),
        r"layer '1\.1' of type PixelUnshuffle has no rule",
    ),
    "unknown function": (
        lambda: Net(lambda net, x: torch.erf(x)),
        r"'erf' of type erf has no rule; supported are .*relu",
    ),
    "unknown method": (lambda: Net(lambda net, x: x.cumsum(1)), r"'cumsum' of type cumsum has no rule"),
    "subclass with its own forward": (
        lambda: Net(lambda net, x: net.clamped(x), clamped=PositiveHalf(4, 4, 1)),
        r"'clamped\.\w+' of type",
    ),
    "layer norm of maps": (
        lambda: Net(lambda net, x: net.norm(x), norm=nn.LayerNorm([4, 12, 12])),
        r"layer 'norm' of type LayerNorm: its mean and variance are those of each image",
    ),
    "group norm": (
        lambda: Net(lambda net, x: net.norm(x), norm=nn.GroupNorm(2, 4)),
        r"layer 'norm' of type GroupNorm: its mean and variance are those of each image",
    ),
    "scaled addition": (
        lambda: Net(lambda net, x: torch.add(x, torch.relu(x), alpha=2)),
        r"'add' of type add: .*unexpected keyword argument 'alpha'",
    ),
    "addition of a size": (lambda: Net(lambda net, x: x + x.size(2)), r"'add' of type add: arithmetic with"),
    "division by a map": (lambda: Net(lambda net, x: 1 / net.c(x), c=nn.Conv2d(4, 4, 1)), "a division by a tensor"),
    "view over images": (
        lambda: Net(lambda net, x: x.view(-1).view(x.shape)),
        r"'view' of type view: a change of shape that is not \(batch, ...\)",
    ),
    "one row of pixels": (
        lambda: Net(lambda net, x: x[:, :, 0, None]),
        "picking images or single channels, rows or columns",
    ),
    "some images": (lambda: Net(lambda net, x: x[::2]), "picking images or single channels, rows or columns"),
    "padding with ones": (lambda: Net(lambda net, x: F.pad(x, (1, 1), value=1.0)), "padding with anything but zeros"),
    "padding by reflection": (lambda: Net(lambda net, x: F.pad(x, (1, 1, 1, 1), "reflect")), "anything but zeros"),
    "bicubic interpolation": (
        lambda: Net(lambda net, x: F.interpolate(x, scale_factor=2, mode="bicubic")),
        "interpolation mode 'bicubic'; its weights are not all positive",
    ),
    "interpolation to the size of a map": (
        lambda: Net(lambda net, x: F.interpolate(net.c(x), size=x.shape[2:]), c=nn.Conv2d(4, 4, 1, 2)),
        "interpolation to the size of another map",
    ),
    "dropout that is active": (
        lambda: Net(lambda net, x: F.dropout(x, 0.5)),
        r"'dropout' of type dropout: dropout that is active in evaluation mode",
    ),
    "another convolution in a subclass": (
        lambda: Net(lambda net, x: net.c(x), c=Standardised(4, 4, 3)),
        r"'c\.\w+' of type \w+",
    ),
    "hook that changes the output": (
        lambda: hooked(lambda module, inputs, output: output * 2),
        r"layer 'a' of type Conv2d computes something else in the model than its type says",
    ),
    "hook that changes the input": (
        lambda: hooked(pre=lambda module, inputs: (inputs[0] + 1,)),
        r"layer 'a' of type Conv2d computes something else in the model than its type says",
    ),
    "hook on the whole network": (
        lambda: hooked(lambda module, inputs, output: output * 2, on=""),
        r"layer 'mean' of type mean computes something else",
    ),
    "method replaced on the instance": (lambda: replaced(), r"layer 'a' of type Conv2d computes something else"),
    "weight norm in a hook": (
        lambda: Net(lambda net, x: net.c(x), c=nn.utils.weight_norm(nn.Conv2d(4, 4, 1))),
        r"layer 'c' of type Conv2d computes its weight in a hook: take the norm off with torch.nn.utils.remove_wei",
    ),
    "spectral norm in a hook": (
        lambda: Net(lambda net, x: net.c(x), c=nn.utils.spectral_norm(nn.Conv2d(4, 4, 1))),
        r"layer 'c' of type Conv2d computes its weight in a hook",
    ),
    "tensors of a computation": (lambda: holding_a_graph(), r"Net cannot be copied \(Only Tensors created explicitly"),
    "images of no size that is tried": (
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(7, 1)),
        "Sequential takes no square images of three colours with sides of 4, 12, ",
    ),
    "broadcasting addition": (
        lambda: Net(lambda net, x: x + F.adaptive_avg_pool2d(x, 1)),
        r"addition 'add' broadcasts shapes \(2, 4, 40, 40\) and",
    ),
    "product without a sigmoid": (
        lambda: Net(lambda net, x: x * torch.relu(x)),
        r"product 'mul' of type mul is not signal \* sigmoid",
    ),
    "square": (lambda: Net(lambda net, x: x * x), r"product 'mul' of type mul is not signal \* sigmoid"),
    "product of two sigmoids": (
        lambda: Net(lambda net, x: torch.sigmoid(net.c(x)) * torch.sigmoid(x), c=nn.Conv2d(4, 4, 1)),
        r"product 'mul' of type mul is not signal \* sigmoid",
    ),
    "parameter in forward": (
        lambda: Net(lambda net, x: torch.maximum(x, net.fc.weight), fc=nn.Linear(1, 1)),
        r"'fc_weight' of type fc\.weight: a bare parameter in forward has no rule",
    ),
    "layer used twice": (
        lambda: Net(lambda net, x: net.c(torch.relu(net.c(x))), c=nn.Conv2d(4, 4, 1)),
        r"layer 'c' \(Conv2d\) is used twice",
    ),
    "two inputs": (TwoInputs, "TwoInputs takes more than one input"),
    "two outputs": (TwoOutputs, "TwoOutputs must return one tensor"),
    "control flow": (
        lambda: Net(lambda net, x: x if x.sum() > 0 else torch.relu(x)),
        r"Net cannot be traced \(.*control flow.*\)",
    ),
    "reflecting padding": (
        lambda: Net(lambda net, x: net.c(x), c=nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")),
        r"layer 'c' of type Conv2d: padding mode 'reflect'",
    ),
    "mean over channels": (
        lambda: Net(lambda net, x: x + x.mean(1, keepdim=True)),
        r"'mean' of type mean: a mean over other dimensions",
    ),
    "overwritten by a module": (
        lambda: Net(lambda net, x: net.act(x) + x, act=nn.ReLU(inplace=True)),
        r"layer '\w+' of type \w+ computes something else .* an input overwritten before",
    ),
    "overwritten by a function": (
        lambda: Net(lambda net, x: F.relu(x, inplace=True) + x),
        r"layer '\w+' of type \w+ computes something else .* an input overwritten before",
    ),
    "overwritten by a sum": (
        lambda: Net(lambda net, x: x.add_(net.c(x)) + x, c=nn.Conv2d(4, 4, 1)),
        r"layer '\w+' of type \w+ computes something else .* an input overwritten before",
    ),
}


@pytest.mark.parametrize("case", UNSUPPORTED)
def test_unsupported_networks_are_refused_by_name(case: str) -> None:
    build, message = UNSUPPORTED[case]
    with pytest.raises(UnsupportedLayerError, match=message) as caught:
        build_program(build().eval())
    assert "\n" not in str(caught.value)


def test_training_mode_is_refused() -> None:
    with pytest.raises(UnsupportedLayerError, match=r"the model \(TinyResNet\) is in training mode; call model.eval()"):
        build_program(TinyResNet())
    part = TinyResNet().eval()
    part.layer1.bn2.train()
    with pytest.raises(UnsupportedLayerError, match=r"layer 'layer1\.bn2' is in training mode"):
        build_program(part)


def one_by_one(channels: int = 4) -> nn.Conv2d:
    return nn.Conv2d(channels, 4, 1)


def several_activations() -> nn.Module:
    return nn.Sequential(nn.LeakyReLU(0.2), nn.ELU(), nn.GELU(), nn.Tanh(), nn.Hardswish())


VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "size(0)": lambda x: x.view(x.size(0), -1),
    "size()[0]": lambda x: x.view(x.size()[0], -1),
    "shape[0]": lambda x: x.reshape(x.shape[0], -1),
    "one tuple": lambda x: x.reshape((x.shape[0], -1)),
    "torch.reshape": lambda x: torch.reshape(x, (x.size(0), -1)),
    "width known": lambda x: x.view(-1, 4),
    "both known": lambda x: x.view(x.size(0), 4),
    "contiguous": lambda x: x.contiguous().view(x.size(0), -1),
    "squeeze": lambda x: x.squeeze(-1).squeeze(-1),
    "squeeze all": lambda x: torch.squeeze(x),
    "flatten": lambda x: x.flatten(1),
    "flatten twice": lambda x: torch.flatten(x, 1, 2).flatten(start_dim=1),
    "slices": lambda x: x[:, :, ::2].flatten(1),
    "channels split": lambda x: x.view(x.size(0), 2, 2, x.size(2), x.size(3)).flatten(1),
}

# What looks like the cases above and is fine.
SUPPORTED: dict[str, Callable[[], nn.Module]] = {
    "concatenation with itself": lambda: Net(
        lambda net, x: net.c(torch.cat([x, torch.relu(x), x], 1)), c=one_by_one(12)
    ),
    "in-place activation, read before": lambda: Net(lambda net, x: net.c(x) + F.relu(x, inplace=True), c=one_by_one()),
    "in-place dropout, read afterwards": lambda: Net(
        lambda net, x: net.drop(x) + net.c(x), drop=nn.Dropout(inplace=True), c=one_by_one()
    ),
    "activation used twice": lambda: Net(
        lambda net, x: net.act(net.c(net.act(x))), act=nn.ReLU(inplace=True), c=one_by_one()
    ),
    "swish by hand": lambda: Net(lambda net, x: x * torch.sigmoid(x)),
    "gate on the left": lambda: Net(lambda net, x: F.sigmoid(net.c(x)) * x, c=one_by_one()),
    "functions": lambda: Net(lambda net, x: F.avg_pool2d(F.max_pool2d(F.relu6(F.silu(x)), 2), 2, stride=1)),
    "activations": lambda: Net(lambda net, x: net.acts(x), acts=several_activations()),
    "image added": lambda: nn.Sequential(ImageSkip(), nn.Flatten(), nn.Linear(3 * 12 * 12, 1)),
    "activation of a flattened map that is read again": lambda: FlattenedTwice(),
    "activation of a part of a map that is read again": lambda: Net(
        lambda net, x: F.interpolate(torch.relu(x[..., ::2, ::2]), scale_factor=2) + net.c(x), c=one_by_one()
    ),
    "tensor added to itself": lambda: Net(lambda net, x: x + net.drop(x), drop=nn.Dropout()),
    "norm after activation": lambda: Net(lambda net, x: net.norm(torch.relu(x)), norm=nn.BatchNorm2d(4)),
    "norm and another reader": lambda: Net(lambda net, x: net.norm(x) + x, norm=nn.BatchNorm2d(4)),
    "norm at the input": lambda: nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 2, 1), nn.Flatten()),
    "norm of vectors": lambda: nn.Sequential(nn.Conv2d(3, 2, 12), nn.Flatten(), nn.Linear(2, 4), nn.BatchNorm1d(4)),
    "synchronised norm": lambda: Net(lambda net, x: net.norm(x), norm=nn.SyncBatchNorm(4)),
    "constants": lambda: Net(lambda net, x: 3.0 - (2 * x + 1) / 4 - 0.5),
    "constants per channel": lambda: WithBuffers(),
    "difference": lambda: Net(lambda net, x: x - net.c(x), c=one_by_one()),
    "method of the tensor": lambda: Net(lambda net, x: x.sub(net.c(x)).relu().mul(2.0), c=one_by_one()),
    "quick GELU": lambda: Net(lambda net, x: x * torch.sigmoid(1.702 * x)),
    "same padding": lambda: Net(lambda net, x: net.c(x), c=nn.Conv2d(4, 4, (5, 3), padding="same", dilation=(1, 2))),
    "valid padding": lambda: Net(lambda net, x: net.c(x), c=nn.Conv2d(4, 4, 3, padding="valid")),
    "zeros around": lambda: Net(lambda net, x: net.pad(F.pad(x, (1, 2))), pad=nn.ZeroPad2d((1, 0, 2, 1))),
    "every other pixel": lambda: Net(lambda net, x: x[:, :, ::2][..., 1::2]),
    "interpolation": lambda: Net(
        lambda net, x: net.up(F.interpolate(x, scale_factor=2)) + F.interpolate(x, size=(48, 48), mode="nearest"),
        up=nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True),
    ),
    "dropout that is switched off": lambda: Net(lambda net, x: F.dropout(x, 0.5, net.training)),
    "keyword arguments": lambda: Net(lambda net, x: F.relu(input=x, inplace=True)),
    "norm in a parametrisation": lambda: Net(
        lambda net, x: net.d(torch.relu(net.c(x))),
        c=nn.utils.parametrizations.weight_norm(one_by_one()),
        d=nn.utils.parametrizations.spectral_norm(one_by_one()),
    ),
    "stochastic depth": lambda: Net(lambda net, x: net.drop(x), drop=torchvision.ops.StochasticDepth(0.5, "row")),
    **{f"view {name}": lambda view=view: Flattening(view) for name, view in VIEWS.items()},
}


class Flattening(nn.Module):
    """A published classifier's end, with its own way of flattening."""

    def __init__(self, view: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.c = nn.Conv2d(3, 4, 3)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(4, 2)
        self.view = view

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.view(self.pool(self.c(x).relu())))


class WithBuffers(nn.Module):
    """Normalises its input itself, and scales its maps."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.4, 0.5, 0.6]).reshape(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.4, 0.5, 0.6]).reshape(3, 1, 1))
        self.gamma = nn.Parameter(torch.tensor(0.7))
        self.c = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return (self.c((x - self.mean) / self.std) * self.gamma).mean((2, 3))


class ImageSkip(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.c(x) + x)


class FlattenedTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c = nn.Conv2d(3, 1, 1)  # one channel: flattening makes no copy
        self.d = nn.Conv2d(1, 2, 1)
        self.fc = nn.Linear(12 * 12, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.c(x)
        return self.fc(torch.relu(torch.flatten(x, 1))) + self.d(x).mean((2, 3))


# the second table reads the inputs of activations, which then must not be overwritten
@pytest.mark.parametrize("table", [rule_table("epsilon"), rule_table("epsilon").with_rules(activation=Gradient())])
@pytest.mark.parametrize("case", SUPPORTED)
def test_supported_networks_compute_the_same(case: str, table: RuleTable) -> None:
    model = randomize(SUPPORTED[case]())
    with torch.no_grad():
        expected = model(images())
    # as the explainer runs it: saved values kept, activations in place
    explainer = Explainer(model, table, dtype=torch.float64)
    record = explainer.record(images())
    torch.testing.assert_close(record.output, expected, rtol=1e-12, atol=1e-12)
    saved = {number: value.clone() for number, value in record.values.items()}
    fresh = build_program(model, dtype=torch.float64).run(images(), keep=list(saved))
    for number, value in saved.items():
        torch.testing.assert_close(value, fresh[number], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("network", NETWORKS)
def test_inputs_marked_as_nonnegative_are(network: str) -> None:
    program = build_program(randomize(NETWORKS[network]()), dtype=torch.float64)
    values = program.run(images(8), keep=range(program.output))
    lowest = {
        step.name: min(float(values[value].min()) for value in step.inputs)
        for step in program.steps
        if isinstance(step.operation, Convolution | Dense)
    }
    marked = {step.name for step in program.steps if step.name in lowest and step.nonnegative_inputs}
    assert all(lowest[name] >= 0 for name in marked)
    # behind ReLU and pooling all are, behind swish none
    assert marked == ({name for name in lowest if name != "conv1"} if network == "residual" else set())


@pytest.mark.parametrize("subclass", [nn.Conv2d, nn.ReLU])
def test_subclasses_that_only_inherit_are_known(subclass: type[nn.Module]) -> None:
    child = type("Child", (subclass,), {})
    model = nn.Sequential(child(3, 2, 1) if subclass is nn.Conv2d else child(), nn.Flatten()).eval()
    assert build_program(model).steps[0].origin == "Child"


class Mish(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.tanh(F.softplus(x))


def test_register_module(monkeypatch: pytest.MonkeyPatch) -> None:
    # a copy, so that what is registered here stays here
    monkeypatch.setattr("lrp.layers.MODULES", dict(MODULES))
    model = randomize(Net(lambda net, x: net.mish(x), mish=Mish()))
    with pytest.raises(UnsupportedLayerError, match=r"'mish\.softplus' of type softplus has no rule"):
        build_program(model)

    def mish(module: Any) -> Operation:
        return Activation("swish", module.forward)

    register_module(Mish, mish)
    explainer = Explainer(model, dtype=torch.float64)
    assert [step.origin for step in explainer.program.steps] == ["Conv2d", "Mish", "Conv2d", "mean"]
    with torch.no_grad():
        # the explainer runs activations in place: not with the function of the swish that was named
        torch.testing.assert_close(explainer.record(images()).output, model(images()))


def test_register_function(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lrp.layers.FUNCTIONS", dict(FUNCTIONS))
    model = randomize(Net(lambda net, x: F.mish(x)))
    with pytest.raises(UnsupportedLayerError, match=r"'mish' of type mish has no rule; .*register_function adds one"):
        build_program(model)
    register_function(F.mish, lambda x, inplace=False: Activation("swish", F.mish))
    assert_program_is(model)


def test_what_is_registered_has_to_be_true(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lrp.layers.MODULES", dict(MODULES))
    register_module(Mish, lambda module: Activation("swish"))
    with pytest.raises(UnsupportedLayerError, match="layer 'mish' of type Mish computes something else"):
        build_program(randomize(Net(lambda net, x: net.mish(x), mish=Mish())))


def assert_program_is(model: nn.Module, size: int = 12) -> None:
    x = images(size=size)
    program = build_program(model, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(program.run(x)[program.output], model(x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["densenet121", "efficientnet_b0", "mobilenet_v3_small"])
def test_networks_of_torchvision(name: str) -> None:
    model = randomize(torchvision.models.get_model(name, weights=None), gain=1.5)
    explainer = Explainer(model, dtype=torch.float64)
    x = images(1, size=64)
    with torch.no_grad():
        expected = model(x)
    torch.testing.assert_close(explainer.record(x).output, expected, rtol=1e-7, atol=1e-7 * float(expected.abs().max()))
    # norms that stand alone are no feature maps
    convolutions = {name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    assert {layer for layer, _ in explainer.layers} <= convolutions
    assert torch.isfinite(explainer.explain(x).input).all()  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [64, 65])
def test_static_padding_is_explained(size: int) -> None:
    """Asymmetric or not, on the size it was made for and on others."""
    static = randomize(EfficientNet.from_name("efficientnet-b0", image_size=size), gain=2.0)
    assert_program_is(static, size)
    assert_program_is(static, 50)


def test_a_network_of_one_size_is_compared_at_that_size() -> None:
    fixed = nn.Sequential(nn.Conv2d(3, 2, 3, 7), nn.Flatten(), nn.Linear(2 * 32 * 32, 1))
    assert_program_is(randomize(fixed), 224)
    grey = randomize(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(2 * 5 * 3, 1)))
    with pytest.raises(UnsupportedLayerError, match="Sequential takes no square images of three colours"):
        build_program(grey)


def test_hooks_that_only_look_are_left_alone() -> None:
    seen: list[tuple[int, ...]] = []
    model = randomize(hooked(lambda module, inputs, output: seen.append(tuple(output.shape))))
    explainer = Explainer(model, dtype=torch.float64)
    assert seen == [(2, 4, 40, 40)]  # the comparison
    explainer.explain(images())
    assert len(seen) == 1
