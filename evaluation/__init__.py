"""Scores of detectors under conditions, metrics, thresholds, intervals, and their tables."""
