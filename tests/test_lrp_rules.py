"""Every rule a second time, as matrix algebra on the explicit Jacobian of the layer; the stabiliser; the tables."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from efficientnet_pytorch.utils import Conv2dDynamicSamePadding, Conv2dStaticSamePadding
from lrp_networks import images
from torch import Tensor, nn

import detectors.efficientnet_layers  # noqa: F401 (registers the layers with same padding)
from lrp import RULE_NAMES, RuleTable, UnknownLayerError, UnsupportedLayerError, ZBox, build_program, rule_table
from lrp.operations import (
    Activation,
    Affine,
    AveragePool,
    Concatenation,
    Gate,
    LinearOperation,
    MaxPool,
    Operation,
    Reshape,
    Sum,
)
from lrp.rules import (
    AdaptiveBeta,
    AlphaBeta,
    Epsilon,
    Gamma,
    Gradient,
    PassThrough,
    Restore,
    Rule,
    SignalTakesAll,
    divide,
    stabilize,
)
from lrp.tracing import trace

LINEAR_LAYERS: dict[str, tuple[Callable[[bool], nn.Module], tuple[int, ...]]] = {
    "dense": (lambda bias: nn.Linear(7, 4, bias=bias), (7,)),
    "conv": (lambda bias: nn.Conv2d(2, 3, 3, bias=bias), (2, 5, 4)),
    "conv 1x1 stride 2": (lambda bias: nn.Conv2d(3, 2, 1, stride=2, bias=bias), (3, 5, 4)),
    "conv stride and padding": (lambda bias: nn.Conv2d(2, 3, 3, stride=2, padding=(1, 2), bias=bias), (2, 6, 5)),
    "conv dilation": (lambda bias: nn.Conv2d(2, 2, 3, padding=2, dilation=(2, 1), bias=bias), (2, 5, 5)),
    "conv groups": (lambda bias: nn.Conv2d(4, 6, (3, 1), padding=1, groups=2, bias=bias), (4, 4, 3)),
    "conv depthwise": (lambda bias: nn.Conv2d(3, 3, 3, padding=1, groups=3, bias=bias), (3, 4, 5)),
    "conv padding same": (lambda bias: nn.Conv2d(2, 3, (4, 3), padding="same", bias=bias), (2, 5, 4)),
    "conv padding valid": (lambda bias: nn.Conv2d(2, 3, 2, padding="valid", bias=bias), (2, 3, 4)),
    "static, asymmetric": (
        lambda bias: Conv2dStaticSamePadding(2, 3, 3, stride=2, image_size=6, bias=bias),
        (2, 6, 6),
    ),
    "same, odd size": (lambda bias: Conv2dDynamicSamePadding(2, 3, 3, stride=2, bias=bias), (2, 5, 5)),
    "same, even size": (lambda bias: Conv2dDynamicSamePadding(2, 3, 3, stride=2, bias=bias), (2, 6, 4)),
    "same, even and odd size": (lambda bias: Conv2dDynamicSamePadding(2, 2, 5, stride=2, bias=bias), (2, 6, 5)),
    "same, stride 1": (lambda bias: Conv2dDynamicSamePadding(2, 3, 3, bias=bias), (2, 4, 5)),
    "same, kernel below stride": (lambda bias: Conv2dDynamicSamePadding(2, 2, 1, stride=2, bias=bias), (2, 5, 4)),
    "same, depthwise": (lambda bias: Conv2dDynamicSamePadding(3, 3, 3, stride=2, groups=3, bias=bias), (3, 4, 4)),
}


def sign(b: Tensor) -> Tensor:
    return torch.where(b < 0, -1.0, 1.0).double()


def ratio(part: Tensor, whole: Tensor) -> Tensor:
    """part / whole, 0 where the whole is 0."""
    return torch.where(whole == 0, 0.0, part / torch.where(whole == 0, 1.0, whole))


# The rules again: A is (outputs, inputs), x and b vectors, R the relevance of the outputs.


def epsilon_matrix(A: Tensor, x: Tensor, b: Tensor, R: Tensor, epsilon: float = 1e-6) -> Tensor:
    y = A @ x + b
    return (A * x / (y + epsilon * sign(y))[:, None]).T @ R


def alpha_beta_matrix(A: Tensor, x: Tensor, b: Tensor, R: Tensor, beta: Tensor | float) -> Tensor:
    positive, negative = (A * x).clamp(min=0), (A * x).clamp(max=0)
    up, down = ratio(positive, positive.sum(1, keepdim=True)), ratio(negative, negative.sum(1, keepdim=True))
    return up.T @ ((1 + beta) * R) - down.T @ (beta * R)


def adaptive_matrix(A: Tensor, x: Tensor, b: Tensor, R: Tensor, limit: float = 4.5) -> Tensor:
    y = A @ x + b
    negative = (A * x).clamp(max=0).sum(1)
    beta = [min(float(-n / o), limit) if o > 0 else 0.0 for n, o in zip(negative, y, strict=True)]
    return alpha_beta_matrix(A, x, b, R, torch.tensor(beta, dtype=torch.float64))


def zbox_matrix(A: Tensor, x: Tensor, b: Tensor, R: Tensor, low: Any = -2.1, high: Any = 2.6) -> Tensor:
    epsilon = 1e-6
    z = A * x - low * A.clamp(min=0) - high * A.clamp(max=0)
    total = z.sum(1)
    return (z / (total + epsilon * sign(total))[:, None]).T @ R


def gamma_matrix(A: Tensor, x: Tensor, b: Tensor, R: Tensor, gamma: float) -> Tensor:
    y = (A @ x + b)[:, None]
    z, bias = A * x, b[:, None]
    upper = y >= 0
    z = z + gamma * torch.where(upper, z.clamp(min=0), z.clamp(max=0))
    bias = bias + gamma * torch.where(upper, bias.clamp(min=0), bias.clamp(max=0))
    return (z / (z.sum(1, keepdim=True) + bias + 1e-6 * sign(y))).T @ R


MatrixRule = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
LINEAR_RULES: dict[str, tuple[Rule, MatrixRule]] = {
    "epsilon": (Epsilon(), epsilon_matrix),
    "epsilon 0.1": (Epsilon(0.1), lambda A, x, b, R: epsilon_matrix(A, x, b, R, 0.1)),
    "beta 0": (AlphaBeta(0.0), lambda A, x, b, R: alpha_beta_matrix(A, x, b, R, 0.0)),
    "beta 0.5": (AlphaBeta(0.5), lambda A, x, b, R: alpha_beta_matrix(A, x, b, R, 0.5)),
    "beta 1": (AlphaBeta(1.0), lambda A, x, b, R: alpha_beta_matrix(A, x, b, R, 1.0)),
    "adaptive beta": (AdaptiveBeta(), adaptive_matrix),
    "adaptive beta, limit 0.2": (AdaptiveBeta(0.2), lambda A, x, b, R: adaptive_matrix(A, x, b, R, 0.2)),
    "gamma 0": (Gamma(0.0), epsilon_matrix),
    "gamma 0.3": (Gamma(0.3), lambda A, x, b, R: gamma_matrix(A, x, b, R, 0.3)),
    "z-box": (ZBox(-2.1, 2.6), zbox_matrix),
}


def seeded(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def linear_layer(kind: str, bias: bool) -> tuple[nn.Module, Operation, tuple[int, ...]]:
    build, shape = LINEAR_LAYERS[kind]
    module = build(bias).double().eval()
    with torch.no_grad():
        for number, parameter in enumerate(module.parameters()):
            parameter.copy_(seeded(tuple(parameter.shape), number))
    operation = trace(nn.Sequential(module).eval(), images()).program.steps[0].operation
    operation.to(torch.device("cpu"), torch.float64)
    return module, operation, shape


def jacobian(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """(outputs, inputs) for one sample."""
    matrix = torch.autograd.functional.jacobian(lambda v: function(v[None])[0], x)
    assert isinstance(matrix, Tensor)
    return matrix.reshape(-1, x.numel())


@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("layer", LINEAR_LAYERS)
@pytest.mark.parametrize("rule", LINEAR_RULES)
def test_linear_layers(rule: str, layer: str, bias: bool) -> None:
    module, operation, shape = linear_layer(layer, bias)
    propagation, matrix_rule = LINEAR_RULES[rule]
    signed = seeded((2, *shape), 7)
    for inputs, flags in ((signed, (False,)), (F.relu(signed), (False, True))):
        relevance = seeded(tuple(module(inputs).shape), 8)
        expected = []
        for x, R in zip(inputs, relevance, strict=True):
            A = jacobian(module, x)
            b = (module(x[None]).flatten() - A @ x.flatten()).detach()
            expected.append(matrix_rule(A, x.flatten(), b, R.flatten()).reshape(x.shape))
        before = relevance.clone(), inputs.clone()
        for nonnegative in flags:
            (found,) = propagation.propagate(operation, (inputs,), relevance, nonnegative=nonnegative)
            torch.testing.assert_close(found, torch.stack(expected), rtol=1e-9, atol=1e-9)
        # neither the relevance nor the saved input may be written to
        assert torch.equal(relevance, before[0])
        assert torch.equal(inputs, before[1])


AVERAGES: dict[str, Callable[[Tensor], Tensor]] = {
    "window": lambda x: F.avg_pool2d(x, 2),
    "window with padding": lambda x: F.avg_pool2d(x, 3, stride=2, padding=1),
    "global": lambda x: F.adaptive_avg_pool2d(x, 1),
    "mean over pixels": lambda x: x.mean((-2, -1)),
}


@pytest.mark.parametrize("average", AVERAGES)
def test_average_pooling(average: str) -> None:
    function = AVERAGES[average]
    inputs = seeded((2, 3, 5, 6), 1)
    relevance = seeded(tuple(function(inputs).shape), 2)
    (found,) = Epsilon().propagate(AveragePool(function), (inputs,), relevance, nonnegative=False)
    for x, R, result in zip(inputs, relevance, found, strict=True):
        expected = epsilon_matrix(jacobian(function, x), x.flatten(), torch.zeros(R.numel()), R.flatten())
        torch.testing.assert_close(result, expected.reshape(x.shape), rtol=1e-9, atol=1e-12)


def test_max_pooling_gives_all_to_the_winner() -> None:
    kernel, stride = 3, 2
    inputs = seeded((1, 2, 7, 7), 3)
    pool = MaxPool((kernel, kernel), (stride, stride))
    relevance = seeded(tuple(pool.forward(inputs).shape), 4)
    (found,) = Gradient().propagate(pool, (inputs,), relevance, nonnegative=False)
    expected = torch.zeros_like(inputs)
    for channel, row, column in itertools.product(range(2), range(3), range(3)):
        top, left = row * stride, column * stride
        window = inputs[0, channel, top : top + kernel, left : left + kernel]
        down, right = divmod(int(window.argmax()), kernel)
        expected[0, channel, top + down, left + right] += relevance[0, channel, row, column]
    torch.testing.assert_close(found, expected)


def test_sums_share_by_contribution() -> None:
    first, second, relevance = (seeded((2, 3, 4, 4), seed) for seed in range(3))
    found = Epsilon().propagate(Sum("add"), (first, second), relevance, nonnegative=False)
    total = first + second
    denominator = total + 1e-6 * sign(total)
    for share, value in zip(found, (first, second), strict=True):
        torch.testing.assert_close(share, value / denominator * relevance, rtol=1e-10, atol=0.0)
    difference = Epsilon().propagate(Sum("sub", (1, -1)), (first, -second), relevance, nonnegative=False)
    assert all(torch.equal(one, other) for one, other in zip(difference, found, strict=True))


def test_relevance_passes_through_activations_gates_and_reshaping() -> None:
    relevance = seeded((2, 3, 4, 4), 0)
    assert PassThrough().propagate(Activation("relu"), (), relevance, nonnegative=False) == (relevance,)
    assert SignalTakesAll().propagate(Gate(), (), relevance, nonnegative=False) == (relevance, None)
    flatten = Reshape(lambda x: x.flatten(1))
    (reshaped,) = Restore().propagate(flatten, (relevance,), relevance.flatten(1), nonnegative=False)
    assert torch.equal(reshaped, relevance)
    parts = (seeded((2, 1, 4, 4), 1), seeded((2, 2, 4, 4), 2))
    shares = Gradient().propagate(Concatenation(1), parts, relevance, nonnegative=False)
    assert [tuple(share.shape) for share in shares if share is not None] == [(2, 1, 4, 4), (2, 2, 4, 4)]
    assert torch.equal(torch.cat([share for share in shares if share is not None], 1), relevance)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rule", LINEAR_RULES)
def test_zero_denominators_stay_finite(rule: str, dtype: torch.dtype) -> None:
    propagation, _ = LINEAR_RULES[rule]
    for layer in ("dense", "conv", "same, even size"):
        _, operation, shape = linear_layer(layer, False)
        operation.to(torch.device("cpu"), dtype)
        assert isinstance(operation, LinearOperation)
        kept = operation.weight.clamp(min=0)
        for weight in (kept, -kept, torch.zeros_like(kept)):  # no negative, no positive, no contribution at all
            operation.weight = weight
            operation.to(torch.device("cpu"), dtype)  # forgets the parts of the weight before
            for inputs in (torch.zeros((1, *shape), dtype=dtype), torch.ones((1, *shape), dtype=dtype)):
                relevance = torch.ones_like(operation.forward(inputs))
                for nonnegative in (True, False):
                    (found,) = propagation.propagate(operation, (inputs,), relevance, nonnegative=nonnegative)
                    assert torch.isfinite(found).all()
                    if not rule.startswith("z-box") and not (inputs.any() and weight.any()):
                        assert not found.any()


def test_one_sided_contributions() -> None:
    # Only negative contributions: z+ has nobody to give to, alpha-beta gives its negative part alone.
    linear = nn.Linear(2, 1, bias=False).double()
    linear.weight.data = torch.tensor([[-1.0, -3.0]], dtype=torch.float64)
    operation = trace(nn.Sequential(linear).eval(), images()).program.steps[0].operation
    operation.to(torch.device("cpu"), torch.float64)
    x, R = torch.ones((1, 2), dtype=torch.float64), torch.ones((1, 1), dtype=torch.float64)
    assert AlphaBeta(0.0).propagate(operation, (x,), R, nonnegative=True)[0].tolist() == [[0.0, 0.0]]
    assert AlphaBeta(1.0).propagate(operation, (x,), R, nonnegative=True)[0].tolist() == [[-0.25, -0.75]]


@pytest.mark.parametrize("value", [0.0, -0.0, 1e-15, -1e-15, 1e-6, -1e-6, 2.0, -2.0])
@pytest.mark.parametrize("epsilon", [1e-6, 0.25])
def test_stabilize(value: float, epsilon: float) -> None:
    found = float(stabilize(torch.tensor([value], dtype=torch.float64), epsilon))
    if value == 0.0:
        # minus zero may go either way: only products with zero inputs come to it
        assert abs(found) == epsilon
        assert found > 0 or str(value) == "-0.0"
    else:
        assert found == pytest.approx(value + epsilon if value > 0 else value - epsilon, rel=1e-15)


def test_the_guard_is_a_share_of_the_largest_sum_of_each_sample() -> None:
    """1e-6, whatever the scale of a sample and of its neighbours in the batch; the published code takes zero alone."""
    shares = torch.tensor([0.0, -0.0, -1e-7, 0.9e-6, 1.1e-6, 1.0], dtype=torch.float64)
    totals = torch.stack([shares * 2.0**-40, shares, shares * 2.0**40])
    relevance = torch.ones_like(totals)
    expected = torch.where(shares > 1e-6, 1 / totals, 0.0)
    assert torch.equal(divide(relevance, totals.clone(), AlphaBeta().guard), expected)
    assert torch.equal(divide(relevance, totals.clone(), AdaptiveBeta().guard), expected)
    assert torch.equal(divide(relevance, totals.clone(), 0.0), torch.where(shares > 0, 1 / totals, 0.0))


def test_noise_of_a_convolution_by_transforms_takes_no_relevance() -> None:
    """Units without any contribution, whose sums come out as rounding noise, absorb what they receive."""

    class Noisy(Affine):
        def apply(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
            return super().apply(x, weight, bias) + noise

    noise = torch.tensor([[0.0, 3e-7, -2e-7]])
    x, weight = torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([1.0, 2.0, 3.0])
    for rule in (AlphaBeta(0.0), AlphaBeta(1.0), AdaptiveBeta()):
        (found,) = rule.propagate(Noisy(weight, None), (x,), torch.ones(1, 3), nonnegative=True)
        assert found[0, 0] == 1.0 + getattr(rule, "beta", 0.0)
        assert not found[0, 1:].any()


@pytest.mark.parametrize("number", [False, True])
def test_bounds_of_channels(number: bool) -> None:
    module, operation, shape = linear_layer("conv stride and padding", True)
    low, high = (-1.0, -2.0), (1.5, 2.5)
    if number:
        low, high = low[:1] * 2, high[:1] * 2
    x, R = seeded((1, *shape), 7), seeded(tuple(module(seeded((1, *shape), 7)).shape), 8)
    (found,) = ZBox(low, high).propagate(operation, (x,), R, nonnegative=False)
    pixels = shape[1] * shape[2]
    bounds = [torch.tensor(b, dtype=torch.float64).repeat_interleave(pixels) for b in (low, high)]
    expected = zbox_matrix(jacobian(module, x[0]), x.flatten(), torch.zeros(1), R.flatten(), *bounds)
    torch.testing.assert_close(found.flatten(), expected, rtol=1e-9, atol=1e-9)
    if number:
        (same,) = ZBox(low[0], high[0]).propagate(operation, (x,), R, nonnegative=False)
        torch.testing.assert_close(found, same, rtol=1e-12, atol=1e-12)


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match=r"beta must not be negative, got -0\.1"):
        AlphaBeta(-0.1)
    with pytest.raises(ValueError, match=r"gamma must not be negative, got -1"):
        Gamma(-1)
    with pytest.raises(ValueError, match=r"guard must not be negative, got -1"):
        AlphaBeta(guard=-1)
    with pytest.raises(ValueError, match=r"low must be below high, got 1\.0 and 1\.0"):
        ZBox(1.0, 1.0)
    with pytest.raises(ValueError, match=r"low must be below high, got \(0\.0, 3\.0\) and \(1\.0, 2\.0\)"):
        ZBox((0.0, 3.0), (1.0, 2.0))
    with pytest.raises(ValueError, match="low must be below high"):
        ZBox((0.0, 1.0), 2.0)
    with pytest.raises(TypeError, match="rule for linear layers was given a sum"):
        AlphaBeta().propagate(Sum("add"), (torch.ones(1),), torch.ones(1), nonnegative=True)


@pytest.mark.parametrize("first", [None, ZBox(0.0, 1.0)])
@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("beta0", AlphaBeta(0.0)),
        ("beta1", AlphaBeta(1.0)),
        ("beta0.5", AlphaBeta(0.5)),
        ("betaada", AdaptiveBeta(4.5)),
        ("epsilon", Epsilon(1e-6)),
        ("gamma0.25", Gamma(0.25)),
    ],
)
def test_rule_names(name: str, rule: Rule, first: Rule | None) -> None:
    table = rule_table(name, first)
    assert table.by_kind["convolution"] == table.by_kind["affine"] == rule
    assert table.by_kind["dense"] == (rule if name.startswith("gamma") else Epsilon())
    assert table.first_convolution == first


@pytest.mark.parametrize("name", ["beta", "beta-1", "gamma", "beta1e3", "Beta0", ""])
def test_unknown_rules(name: str) -> None:
    with pytest.raises(ValueError, match=f"unknown rule '{name}'; known are {', '.join(RULE_NAMES)}"):
        rule_table(name)


def test_tables_assign_by_name_then_place_then_kind() -> None:
    net = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.Conv2d(2, 2, 3), nn.ReLU(), nn.Conv2d(2, 2, 1), nn.Flatten())
    program = build_program(net.eval())
    first = ZBox(0.0, 1.0)
    table = rule_table("beta0", first)
    expected = [first, PassThrough(), AlphaBeta(), PassThrough(), AlphaBeta(), Restore()]
    assert table.assign(program) == expected
    named = RuleTable(table.by_kind, table.first_convolution, {"0": Epsilon(), "2": AlphaBeta(1.0)})
    assert named.assign(program) == [Epsilon(), PassThrough(), AlphaBeta(1.0), *expected[3:]]
    changed = table.with_rules(convolution=Epsilon(1e-3))
    assert changed.assign(program) == [first, PassThrough(), Epsilon(1e-3), PassThrough(), Epsilon(1e-3), Restore()]
    assert table.assign(program) == expected
    with pytest.raises(ValueError, match=r"unknown kind 'convolutions'; the table has rules for .*convolution, dense"):
        table.with_rules(convolutions=Epsilon())


def test_tables_refuse_what_they_do_not_cover() -> None:
    program = build_program(nn.Sequential(nn.Conv2d(3, 2, 3), nn.Tanh()).eval())
    with pytest.raises(UnsupportedLayerError, match=r"layer '1' of type Tanh \(activation\) has no rule in the table"):
        RuleTable({"convolution": AlphaBeta()}).assign(program)
    with pytest.raises(UnknownLayerError, match="no layer 'conv9'"):
        RuleTable({"convolution": AlphaBeta()}, by_name={"conv9": Epsilon()}).assign(program)
