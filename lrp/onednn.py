"""Convolutions by oneDNN on processors, which read weights in blocks: put in order once here, not in every call."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass
class _Blocks:
    shape: torch.Size
    ordered: Tensor | None = None


class Kernels:
    """Convolutions with a few weights that come again and again.

    Putting a weight in order takes as long as the product itself where maps are small. The best order depends on the
    shape of the input, and another one costs twenty times the product. So a weight is put in order when a shape of
    inputs comes for the second time in a row, and serves that shape alone; the results are the same bits.
    """

    def __init__(self) -> None:
        self._of: dict[Tensor, _Blocks] = {}  # by identity, as tensors are keys

    def convolve(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: tuple[int, int] = (1, 1),
        padding: tuple[int, int] = (0, 0),
        dilation: tuple[int, int] = (1, 1),
        groups: int = 1,
    ) -> Tensor:
        """As `torch.nn.functional.conv2d`, on processors always by oneDNN.

        PyTorch itself takes other ways with one thread, and products of matrices for kernels of 1x1: half as fast where
        the processor is not Intel's.
        """
        if not is_for(x):
            return F.conv2d(x, weight, bias, stride, padding, dilation, groups)
        options = (padding, stride, dilation, groups)
        blocks = self._of.get(weight)
        # images of one pixel or channel are in two memory formats at once, of which the two calls choose differently
        if blocks is None or blocks.shape != x.shape or x.is_contiguous():
            self._of[weight] = _Blocks(x.shape)
            return torch.ops.aten.mkldnn_convolution(x, weight, bias, *options)
        # What `torch.compile` makes of a convolution.
        if blocks.ordered is None:
            blocks.ordered = torch.ops.mkldnn._reorder_convolution_weight(weight, *options, x.shape)
        return torch.ops.mkldnn._convolution_pointwise(x, blocks.ordered, bias, *options, "none", [], "")

    def clear(self) -> None:
        """Forget all weights."""
        self._of.clear()


def is_for(x: Tensor) -> bool:
    """Whether oneDNN computes with this tensor; one that only pretends, to find sizes with, is none of its."""
    if type(x) is not Tensor or x.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    return x.dtype == torch.float32 or (x.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())
