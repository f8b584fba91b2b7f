"""Convolutions of a processor: the same bits however often they are computed, and adjoints that are adjoint."""

import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from lrp.onednn import Kernels, is_for
from lrp.operations import Convolution

CHANNELS_LAST = torch.channels_last
SHAPES = [
    # inputs, outputs, groups, kernel, stride, dilation, padding, height, width
    (16, 24, 1, 1, 1, 1, 0, 7, 9),
    (16, 24, 1, 1, 2, 1, 0, 8, 7),
    (8, 12, 1, 3, 1, 1, 1, 9, 6),
    (8, 12, 1, 3, 1, 1, 0, 9, 6),
    (8, 12, 2, 3, 1, 2, 2, 11, 8),
    (12, 12, 12, 5, 1, 1, 2, 8, 8),
    (12, 12, 12, 5, 2, 1, 2, 9, 8),
    (8, 4, 1, 3, 1, 1, 3, 6, 6),
    (1, 6, 1, 3, 1, 1, 1, 6, 6),
    (8, 6, 1, 1, 1, 1, 0, 1, 1),
]


def _convolution(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Convolution, torch.Tensor]:
    inputs, outputs, groups, kernel, stride, dilation, padding, height, width = shape
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(outputs, inputs // groups, kernel, kernel, generator=generator)
    options = {"stride": (stride,) * 2, "padding": (padding,) * 2, "dilation": (dilation,) * 2, "groups": groups}
    operation = Convolution(weight, torch.randn(outputs, generator=generator), **options)
    operation.to(torch.device("cpu"), dtype)
    x = torch.randn(3, inputs, height, width, generator=generator).to(dtype).contiguous(memory_format=CHANNELS_LAST)
    return operation, x


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_repeated_convolutions_and_adjoints_are_the_same_bits(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    operation, x = _convolution(shape, dtype)
    first = operation.forward(x)
    upstream = torch.randn(first.shape).to(dtype).contiguous(memory_format=CHANNELS_LAST)
    adjoint = operation.adjoint(upstream, operation.weight, x)
    for batch in (x, x, x[:2], x[:2], x):
        size = len(batch)
        assert torch.equal(operation.forward(batch), first[:size])
        assert torch.equal(operation.adjoint(upstream[:size], operation.weight, batch), adjoint[:size])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_adjoint_is_the_gradient_with_respect_to_the_input(shape: tuple[int, ...]) -> None:
    operation, x = _convolution(shape, torch.float32)
    probe = x.clone().requires_grad_()
    output = F.conv2d(
        probe, operation.weight, operation.bias, operation.stride, operation.padding[2::-2], operation.dilation,
        operation.groups,
    )  # fmt: skip
    upstream = torch.randn(output.shape)
    (expected,) = torch.autograd.grad(output, probe, upstream)
    for _ in range(3):
        torch.testing.assert_close(operation.adjoint(upstream, operation.weight, x), expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(operation.forward(x), output.detach(), rtol=1e-4, atol=1e-4)


def test_another_weight_is_another_convolution() -> None:
    operation, x = _convolution(SHAPES[2], torch.float32)
    before = [operation.forward(x) for _ in range(3)][-1]
    operation.scale_output(torch.full((12,), 2.0), torch.zeros(12))
    torch.testing.assert_close(operation.forward(x), 2.0 * before, rtol=1e-5, atol=1e-5)
    share = operation.adjoint(before, operation.weight, x)
    operation.scale_output(torch.full((12,), 0.5), torch.zeros(12))
    torch.testing.assert_close(operation.adjoint(before, operation.weight, x), 0.5 * share, rtol=1e-4, atol=1e-4)


def test_weights_are_put_in_order_for_a_shape_that_comes_again(monkeypatch: pytest.MonkeyPatch) -> None:
    _, x = _convolution(SHAPES[2], torch.float32)
    if not is_for(x):
        pytest.skip("PyTorch was built without oneDNN")
    made: list[torch.Size] = []
    reorder = torch.ops.mkldnn._reorder_convolution_weight

    def count(weight: torch.Tensor, *options: object) -> torch.Tensor:
        made.append(torch.Size(options[-1]))
        return reorder(weight, *options)

    monkeypatch.setattr(torch.ops.mkldnn, "_reorder_convolution_weight", count)
    kernels, weight = Kernels(), torch.randn(12, 8, 3, 3)
    for size in (3, 3, 3, 2, 3, 2, 2, 2):
        kernels.convolve(x[:size], weight)
    assert [shape[0] for shape in made] == [3, 2]


def test_bfloat16_works_on_processors_for_which_onednn_has_none() -> None:
    program = """
import torch
from lrp import Explainer
torch.manual_seed(0)
layers = torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Conv2d(4, 4, 1, 2), torch.nn.Flatten()
network = torch.nn.Sequential(*layers)
explainer = Explainer(network.eval(), "epsilon", dtype=torch.bfloat16)
print(float(explainer.explain(torch.ones(2, 3, 6, 6)).input.abs().sum()) > 0)
"""
    old = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
    run = subprocess.run([sys.executable, "-c", program], env=old, capture_output=True, text=True, check=False)
    assert run.stdout == "True\n", run.stderr
