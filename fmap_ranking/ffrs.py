"""FF-RS, the forensic feature relevance statistic, as a streaming statistic.

Source: Chandrasegaran, Tran, Binder, Cheung, "Discovering Transferable Forensic Features for CNN-generated
Images Detection", ECCV 2022, Algorithm 1.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from fmap_ranking.names import FeatureMap, maps_of
from fmap_ranking.ranking import SUM_TOLERANCE, Ranking

Sums = tuple[np.ndarray, np.ndarray]


class FFRS:
    r"""Mean share of a layer's relevance that is positive and lies in one feature map.

    For sample :math:`i` with relevance :math:`R^{(i)}_l(c, h, w)` at the output of layer :math:`l`, the share
    of feature map :math:`c` is averaged over the :math:`n` samples:

    .. math::
        \omega(l_c) = \frac{1}{n} \sum_{i=1}^{n}
            \frac{\sum_{h,w} \max(R^{(i)}_l(c, h, w), 0)}{\sum_{c',h,w} |R^{(i)}_l(c', h, w)|}

    A sample whose relevance vanishes in a layer contributes 0 there and is counted in `zero_relevance`.
    Within a layer omega sums to at most 1. Samples are added one after the other in float64, so for the same
    sums the state does not depend on how they are batched. Memory: two doubles per map, whatever the number of samples.

    Args:
        layers: (name, channels) of each layer, in order of depth.

    >>> statistic = FFRS([("conv1", 2)])
    >>> positive = torch.tensor([[3.0, 0.0], [1.0, 1.0]])
    >>> statistic.update(statistic.stack({"conv1": positive}, {"conv1": torch.tensor([4.0, 2.0])}))
    >>> ranking = statistic.result()
    >>> [(fmap.key, value) for fmap, value in zip(ranking.maps, ranking.values.tolist())]
    [('conv1.#0(T=2)', 0.625), ('conv1.#1(T=2)', 0.25)]
    """

    def __init__(self, layers: Sequence[tuple[str, int]]) -> None:
        self.layers = tuple((str(name), int(channels)) for name, channels in layers)
        if not self.layers or len(dict(self.layers)) != len(self.layers):
            raise ValueError("expected at least one layer and no name twice")
        self.count = 0
        self._channels = np.array([channels for _, channels in self.layers], dtype=np.int64)
        size = int(self._channels.sum())
        self._total = np.zeros(size)
        self._squares = np.zeros(size)
        self._zero = np.zeros(len(self.layers), dtype=np.int64)
        self._first = np.cumsum(self._channels) - self._channels

    @property
    def zero_relevance(self) -> dict[str, int]:
        """Number of samples without any relevance, for each layer that has such samples."""
        return {name: int(zero) for (name, _), zero in zip(self.layers, self._zero, strict=True) if zero}

    def stack(self, positive: Mapping[str, Tensor], absolute: Mapping[str, Tensor]) -> Sums:
        """Sums of a batch as `update` takes them, fetched from the device at once: (N, maps) and (N, layers) float64.

        Args:
            positive: for each layer (N, C), sum over height and width of max(R, 0).
            absolute: for each layer (N,), sum over channels, height and width of abs(R).

        Raises:
            ValueError: layers or shapes are not those of the constructor.
        """
        names = [name for name, _ in self.layers]
        if set(positive) != set(names) or set(absolute) != set(names):
            odd = sorted((set(positive) ^ set(names)) | (set(absolute) ^ set(names)))
            raise ValueError(f"layers differ from those of the statistic: {', '.join(odd)}")
        samples = len(absolute[names[0]])
        for name, channels in self.layers:
            if positive[name].shape != (samples, channels) or absolute[name].shape != (samples,):
                raise ValueError(
                    f"layer {name}: expected shapes ({samples}, {channels}) and ({samples},), "
                    f"got {tuple(positive[name].shape)} and {tuple(absolute[name].shape)}"
                )
        parts = [positive[name] for name in names]
        both = torch.cat([*parts, *(absolute[name][:, None] for name in names)], dim=1)
        sums = both.detach().cpu().to(torch.float64).numpy()
        return sums[:, : len(self._total)], sums[:, len(self._total) :]

    def update(self, sums: Sums) -> None:
        """Add the samples of one batch, or some of them, as `stack` has them.

        Raises:
            ValueError: a sum is negative, or the positive sums of a sample exceed its absolute sum.
            FloatingPointError: a sum is not finite; names the layer.
        """
        parts, wholes = sums
        self._check_numbers(parts, wholes)
        # Where the whole is 0 so is every part, so any divisor gives the share 0.
        shares = parts / np.repeat(np.where(wholes > 0, wholes, 1.0), self._channels, axis=1)
        for row in shares:
            self._total += row
            self._squares += row * row
        self._zero += (wholes == 0).sum(axis=0)
        self.count += len(wholes)

    def merge(self, state: Mapping[str, np.ndarray]) -> None:
        """Add the samples of another statistic, given its `state()`; raises ValueError as `load_state`."""
        self._check_state(state)
        self._total += state["total"]
        self._squares += state["squares"]
        self._zero += state["zero_relevance"]
        self.count += int(state["count"])

    def state(self) -> dict[str, np.ndarray]:
        """Everything needed to go on later, as arrays (copies)."""
        return {
            "layers": np.array([name for name, _ in self.layers]),
            "channels": self._channels.copy(),
            "count": np.array(self.count, dtype=np.int64),
            "total": self._total.copy(),
            "squares": self._squares.copy(),
            "zero_relevance": self._zero.copy(),
        }

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Replace all samples by those of `state()`.

        Raises:
            ValueError: the state is over other layers, or an array has another shape.
        """
        self._check_state(state)
        self._total, self._squares = state["total"].astype(np.float64), state["squares"].astype(np.float64)
        self._zero, self.count = state["zero_relevance"].astype(np.int64), int(state["count"])

    def omega(self) -> np.ndarray:
        """Omega of each map, (maps,) float64, layer after layer; raises ValueError without samples."""
        if self.count == 0:
            raise ValueError("no samples: omega is undefined")
        return self._total / self.count

    def standard_errors(self) -> dict[FeatureMap, float]:
        """Standard error of omega over samples, by map; NaN below two samples."""
        errors = np.full_like(self._total, np.nan)
        if self.count > 1:
            variance = (self._squares / self.count - self.omega() ** 2) * (self.count / (self.count - 1))
            errors = np.sqrt(np.maximum(variance, 0.0) / self.count)
        return dict(zip(maps_of(self.layers), errors.tolist(), strict=True))

    def result(self) -> Ranking:
        """All maps by descending omega, ties in layer and channel order; ValueError without samples."""
        return Ranking.from_values(self.layers, self.omega())

    def _check_state(self, state: Mapping[str, np.ndarray]) -> None:
        if tuple(zip(state["layers"].tolist(), state["channels"].tolist(), strict=True)) != self.layers:
            raise ValueError("the state is of a statistic over different layers")
        for name, array in self.state().items():
            if state[name].shape != array.shape:
                raise ValueError(f"saved state: expected {name} of shape {array.shape}, got {state[name].shape}")

    def _check_numbers(self, parts: np.ndarray, wholes: np.ndarray) -> None:
        together = np.add.reduceat(parts, self._first, axis=1)
        negative = np.minimum.reduceat(parts, self._first, axis=1) < 0
        for faulty, error, fault in (
            (~np.isfinite(together + wholes), FloatingPointError, "relevance is not finite"),
            (
                negative | (together > wholes * (1 + SUM_TOLERANCE)),
                ValueError,
                "positive relevance must lie between 0 and the absolute relevance",
            ),
        ):
            if faulty.any():
                raise error(f"layer {self.layers[int(faulty.any(axis=0).argmax())][0]}: {fault}")
