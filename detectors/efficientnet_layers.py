"""Layers of EfficientNets that PyTorch does not have, made known to relevance propagation by importing this module."""

from efficientnet_pytorch.utils import Conv2dDynamicSamePadding, Conv2dStaticSamePadding, MemoryEfficientSwish, Swish
from torchvision.ops import StochasticDepth

from lrp import register_module
from lrp.operations import Activation, Convolution, Identity


def _convolution(module: Conv2dDynamicSamePadding | Conv2dStaticSamePadding) -> Convolution:
    static = isinstance(module, Conv2dStaticSamePadding)
    return Convolution(
        module.weight,
        module.bias,
        stride=tuple(module.stride),
        # of the size the network was built for; none where that needs none
        padding=getattr(module.static_padding, "padding", (0, 0)) if static else (0, 0),
        dilation=tuple(module.dilation),
        groups=module.groups,
        same_padding=not static,
    )


register_module(Conv2dDynamicSamePadding, _convolution)
register_module(Conv2dStaticSamePadding, _convolution)
register_module(Swish, lambda module: Activation("swish"))
register_module(MemoryEfficientSwish, lambda module: Activation("swish"))
register_module(StochasticDepth, lambda module: Identity())
