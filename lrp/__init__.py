"""Layer-wise relevance propagation: rules, canonisation, tracing and the explainer. Needs PyTorch only."""

from lrp.canonise import build_program
from lrp.composites import RULE_NAMES, RuleTable, rule_table
from lrp.errors import UnknownLayerError, UnsupportedLayerError
from lrp.explainer import Explainer
from lrp.explanation import Absorption, ChannelStatistics
from lrp.layers import register_function, register_module
from lrp.rules import ZBox

__all__ = [
    "RULE_NAMES",
    "Absorption",
    "ChannelStatistics",
    "Explainer",
    "RuleTable",
    "UnknownLayerError",
    "UnsupportedLayerError",
    "ZBox",
    "build_program",
    "register_function",
    "register_module",
    "rule_table",
]
