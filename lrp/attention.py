"""Attention and normalisation with what they compute from all tokens or channels frozen.

Attention weights, the standard deviation of a layer norm and the norm of a vector count as constants: no relevance goes
to them, and what is left is linear (CP-LRP: Ali et al., "XAI for Transformers: Better Explanations through Conservative
Propagation", ICML 2022, Sec. 4).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lrp.operations import Gate, Operation
from lrp.rules import Inputs, Relevances, Rule, stabilize


class LayerNorm(Operation):
    """(x - mean) / deviation * weight + bias over the last dimension; linear in x as the deviation is frozen."""

    kind = "layer_norm"

    def __init__(self, weight: Tensor | None, bias: Tensor | None, eps: float, channels: int) -> None:
        self.weight = torch.ones(channels, dtype=torch.float64) if weight is None else weight.detach()
        self.bias = None if bias is None else bias.detach()
        self.eps = eps

    def to(self, device: torch.device, dtype: torch.dtype) -> None:
        # a deviation in a short type would be that of nothing in particular
        dtype = torch.promote_types(dtype, torch.float32)
        self.weight = self.weight.to(device, dtype, copy=True)
        self.bias = None if self.bias is None else self.bias.to(device, dtype, copy=True)

    def forward(self, *inputs: Tensor) -> Tensor:
        x = inputs[0].to(self.weight.dtype)
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps).to(inputs[0].dtype)

    def gradient(self, upstream: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        variance = inputs[0].to(self.weight.dtype).var(-1, correction=0, keepdim=True)
        scaled = upstream * self.weight * torch.rsqrt(variance + self.eps)
        return (scaled - scaled.mean(-1, keepdim=True),)


class Normalisation(Operation):
    """A vector over its length, which is frozen."""

    kind = "normalisation"

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        self._function = function

    def forward(self, *inputs: Tensor) -> Tensor:
        return self._function(inputs[0])


class Frozen(Operation):
    """What only goes into constants: the similarity of queries and keys, `softmax` of it, the `norm` of a vector."""

    kind = "frozen"

    def __init__(self, name: str, function: Callable[..., Tensor]) -> None:
        self.name, self._function = name, function

    def forward(self, *inputs: Tensor) -> Tensor:
        return self._function(*inputs)


class Quotient(Gate):
    """A signal divided by a frozen norm."""

    def forward(self, *inputs: Tensor) -> Tensor:
        return inputs[0] / inputs[1]


class WeightedSum(Operation):
    """Weights (N, ..., T, S), which are frozen, times values (N, ..., S, C)."""

    kind = "attention"
    signal = slice(-1, None)

    def weights(self, *inputs: Tensor) -> Tensor:
        """The weights, from all inputs but the values."""
        return inputs[0]

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.weights(*inputs[:-1]) @ inputs[-1]


class Attention(WeightedSum):
    """softmax(scale q k^T) v, of queries, keys and values (N, heads, T, C)."""

    def __init__(self, scale: float | None) -> None:
        self.scale = scale

    def weights(self, *inputs: Tensor) -> Tensor:
        queries, keys = inputs
        scale = queries.shape[-1] ** -0.5 if self.scale is None else self.scale
        return (queries * scale @ keys.transpose(-2, -1)).softmax(-1)

    def forward(self, *inputs: Tensor) -> Tensor:
        queries, keys, values = inputs
        return F.scaled_dot_product_attention(queries, keys, values, scale=self.scale)


@dataclass(frozen=True)
class FrozenWeights(Rule):
    """Relevance of the values alone: R_s = v_s sum_t a_ts R_t / (y_t + epsilon sign y_t), y = a v, a constant.

    The epsilon rule of a linear map; the way of CP-LRP (Ali et al. 2022).
    """

    epsilon: float = 1e-6
    needs_inputs: ClassVar[bool] = True

    def propagate(self, operation: Operation, inputs: Inputs, relevance: Tensor, *, nonnegative: bool) -> Relevances:
        if not isinstance(operation, WeightedSum):
            raise TypeError(f"a rule for attention was given a {operation.kind}")
        *others, values = inputs
        weights = operation.weights(*others)
        output = stabilize(weights @ values, self.epsilon)
        ratio = torch.div(relevance, output, out=output)
        return (*[None] * len(others), (weights.transpose(-2, -1) @ ratio).mul_(values))


def multi_head_attention(
    module: nn.MultiheadAttention,
    query: Any,
    key: Any,
    value: Any,
    key_padding_mask: Any = None,
    need_weights: bool = True,
    attn_mask: Any = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Any, None]:
    """What PyTorch's multi-head attention computes, in functions that can be traced; its weights are not returned."""
    if key_padding_mask is not None or attn_mask is not None or is_causal:
        raise NotImplementedError("attention with a mask")
    if module.bias_k is not None or module.add_zero_attn or not module._qkv_same_embed_dim:
        raise NotImplementedError("attention with keys or values of its own")
    if query is not key or key is not value:
        raise NotImplementedError("attention to other tokens than its own")
    x = query if module.batch_first else query.transpose(0, 1)
    parts = F.linear(x, module.in_proj_weight, module.in_proj_bias).chunk(3, -1)
    q, k, v = (part.unflatten(-1, (module.num_heads, module.head_dim)).transpose(1, 2) for part in parts)
    output = module.out_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
    return output if module.batch_first else output.transpose(0, 1), None
