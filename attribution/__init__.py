"""Explanations of single images as pictures: LRP heat maps and Guided Grad-CAM."""
