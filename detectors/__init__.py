"""Networks, heads, input transforms and checkpoints: the detector and all that belongs to its weights."""
