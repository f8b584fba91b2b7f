"""Layer-wise relevance propagation: rules, canonisation, tracing and the explainer. Imports nothing of ours."""

from lrp.canonise import build_program
from lrp.composites import FAMILIES, RULE_NAMES, RuleTable, rule_table
from lrp.errors import UnknownLayerError, UnsupportedLayerError
from lrp.explainer import Explainer, Record
from lrp.explanation import Absorption, ChannelStatistics, Explanation, MapExplanation
from lrp.tracing import register_module

__all__ = [
    "FAMILIES",
    "RULE_NAMES",
    "Absorption",
    "ChannelStatistics",
    "Explainer",
    "Explanation",
    "MapExplanation",
    "Record",
    "RuleTable",
    "UnknownLayerError",
    "UnsupportedLayerError",
    "build_program",
    "register_module",
    "rule_table",
]
