"""Training and evaluation of universal and of colour-robust detectors."""
