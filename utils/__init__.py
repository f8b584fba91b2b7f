"""What all experiments share: images, detectors, the pass over images, files, figures, command line."""
