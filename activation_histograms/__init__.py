"""Distributions of the maximum activation of a feature map, and the test for colour-conditional maps."""
