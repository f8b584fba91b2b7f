"""Sensitivity of a detector to the loss of feature maps or colour."""
