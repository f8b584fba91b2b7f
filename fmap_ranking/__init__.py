"""Ranking of feature maps by forensic relevance: FF-RS, ranking files and their comparison."""
