"""What an explanation holds: relevance of the input, of layers, and where relevance was absorbed."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

_CACHED = 2**21
"""So many numbers of a relevance map are summed at once."""


@dataclass(frozen=True)
class ChannelStatistics:
    """Relevance of one layer's feature maps, summed over their pixels.

    Attributes:
        total: sum over H, W of R, (N, C).
        positive: sum over H, W of max(R, 0), (N, C).
        absolute: sum over C, H, W of abs(R), (N,).
    """

    total: Tensor
    positive: Tensor
    absolute: Tensor

    @classmethod
    def of(cls, relevance: Tensor, *, scale: float = 1.0) -> ChannelStatistics:
        """Statistics of a relevance map (N, C, H, W) divided by `scale`, in float64."""
        dtype = torch.promote_types(relevance.dtype, torch.float32)
        # On processors by few samples at a time, so that what was just read or written is still in the cache.
        few = max(1, _CACHED // max(relevance[:1].numel(), 1)) if relevance.device.type == "cpu" else len(relevance)
        sums: list[tuple[Tensor, Tensor]] = []
        for part in relevance.split(few):
            values = part.to(dtype)
            sums.append((values.sum((2, 3)), values.clamp(min=0).sum((2, 3))))
        total, positive = (torch.cat(parts).double() for parts in zip(*sums, strict=True))
        # sum abs = 2 sum max(., 0) - sum: no third pass over the map, and no cancellation, as both parts count
        absolute = (2.0 * positive - total).sum(1)
        return cls(total / scale, positive / scale, absolute / scale)


@dataclass(frozen=True)
class Absorption:
    """Relevance that went into a step and did not come out.

    Attributes:
        layer: Name of the step.
        kind: Kind of operation, e.g. `convolution`.
        rule: Name of the rule.
        received: Relevance of its output, by sample, (N,) float64.
        passed: Relevance that it handed to its inputs, (N,) float64.
    """

    layer: str
    kind: str
    rule: str
    received: Tensor
    passed: Tensor

    @property
    def absorbed(self) -> Tensor:
        """What biases, stabilisers and one-sided contributions kept: received - passed, (N,)."""
        return self.received - self.passed


@dataclass
class Explanation:
    """Result of `Explainer.explain`.

    Attributes:
        logits: Output of the network, (N, K).
        start: Its relevance, summed over all but the samples, (N,).
        input: Relevance of the input, (N, 3, H, W), or None if it was not asked for.
        maps: By layer, relevance of the convolution's output, (N, C, H, W).
        channels: By layer, per-channel statistics.
        conservation: One row per step, from the output to the input, if asked for.
    """

    logits: Tensor
    start: Tensor
    input: Tensor | None = None
    maps: dict[str, Tensor] = field(default_factory=dict)
    channels: dict[str, ChannelStatistics] = field(default_factory=dict)
    conservation: list[Absorption] = field(default_factory=list)


@dataclass(frozen=True)
class MapExplanation:
    """LRP-max of M feature maps of one layer.

    Attributes:
        layer: Name of the convolution.
        samples: Image that each map belongs to, (M,).
        channels: Index of each map, (M,).
        relevance: Relevance of the input, (M, 3, H, W).
        value: Largest value of each map, batch norm folded in, (M,).
        row, column: Where in the map it is, and the relevance starts, (M,); of tokens those of the patch, and -1 and
            its number for one that is no patch.
    """

    layer: str
    samples: Tensor
    channels: Tensor
    relevance: Tensor
    value: Tensor
    row: Tensor
    column: Tensor
