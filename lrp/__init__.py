"""Layer-wise relevance propagation: rules, canonisation, tracing and the explainer. Needs PyTorch only."""

from lrp.canonise import build_program
from lrp.composites import RULE_NAMES, RuleTable, rule_table
from lrp.errors import UnknownLayerError, UnsupportedLayerError
from lrp.explainer import Explainer, Record
from lrp.explanation import Absorption, ChannelStatistics, Explanation, MapExplanation
from lrp.layers import register_function, register_module
from lrp.operations import (
    Activation,
    Affine,
    AveragePool,
    Convolution,
    Dense,
    Identity,
    MaxPool,
    Operation,
    Resample,
    Reshape,
)
from lrp.rules import ZBox

__all__ = [
    "RULE_NAMES",
    "Absorption",
    "Activation",
    "Affine",
    "AveragePool",
    "ChannelStatistics",
    "Convolution",
    "Dense",
    "Explainer",
    "Explanation",
    "Identity",
    "MapExplanation",
    "MaxPool",
    "Operation",
    "Record",
    "Resample",
    "Reshape",
    "RuleTable",
    "UnknownLayerError",
    "UnsupportedLayerError",
    "ZBox",
    "build_program",
    "register_function",
    "register_module",
    "rule_table",
]
