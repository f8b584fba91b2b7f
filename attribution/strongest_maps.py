"""The feature maps that decide about a single image, and the patches that they look at."""

from collections.abc import Mapping
from dataclasses import astuple

import numpy as np
import torch
from torch import Tensor

from lrp import ChannelStatistics, Explainer
from utils.boxes import Box, bounding_box
from utils.tables import percent


def strongest_maps(
    explainer: Explainer, inputs: Tensor, channels: Mapping[str, ChannelStatistics], number: int
) -> dict[str, Tensor]:
    """The maps with the largest positive share of their layer's relevance, which is omega of the single image.

    Args:
        explainer: Of the network.
        inputs: (N, 3, H, W), of the network.
        channels: Their relevance in every layer.
        number: Of maps of each image.

    Returns:
        `maps` (N, number), counted through `explainer.layers`; `map_shares` (N, number), 0..1; and `map_boxes`
        (N, number, 4), the box of LRP-max in the image.
    """
    parts = [channels[name] for name, _ in explainer.layers]
    # a layer without any relevance has no share of it
    whole = [torch.where(part.absolute > 0, part.absolute, torch.inf)[:, None] for part in parts]
    shares = torch.cat([part.positive / total for part, total in zip(parts, whole, strict=True)], 1)
    # stable, so that of equal shares the first layers' come first
    shares, maps = (values[:, :number].cpu() for values in torch.sort(shares, stable=True, dim=1, descending=True))
    names = _names(explainer)
    rank = {
        (sample, *names[fmap]): index
        for sample, strongest in enumerate(maps.tolist())
        for index, fmap in enumerate(strongest)
    }
    wanted: dict[str, list[tuple[int, int]]] = {}
    for sample, layer, channel in rank:
        wanted.setdefault(layer, []).append((sample, channel))
    boxes = torch.zeros(*maps.shape, 4)
    for result in explainer.explain_feature_maps(inputs, wanted):
        relevance = result.relevance.float().sum(1).cpu().numpy()
        for sample, channel, pixels in zip(result.samples.tolist(), result.channels.tolist(), relevance, strict=True):
            # an image whose relevance is not finite is refused afterwards, by its name
            box = astuple(bounding_box(np.nan_to_num(pixels)))
            boxes[sample, rank[sample, result.layer, channel]] = torch.tensor(box, dtype=boxes.dtype)
    return {"maps": maps, "map_shares": shares, "map_boxes": boxes}


def patches_of_maps(explainer: Explainer, arrays: Mapping[str, np.ndarray]) -> list[tuple[str, np.ndarray]]:
    """Name and share of each map, and its patch, uint8 (h, w, 3), from the arrays of an image."""
    names = [f"{layer} #{channel}" for layer, channel in _names(explainer)]
    return [
        (f"{names[int(number)]} ({percent(float(share), 0)} %)", Box(*map(int, box)).cut(arrays["image"]))
        for number, share, box in zip(arrays["maps"], arrays["map_shares"], arrays["map_boxes"], strict=True)
    ]


def _names(explainer: Explainer) -> list[tuple[str, int]]:
    """Layer and index of every map, as they are counted."""
    return [(layer, channel) for layer, count in explainer.layers for channel in range(count)]
