"""How many maps "the top k" are, if nobody says."""

# Table 1 of the paper: k = 114 of 26,560 maps of ResNet-50 and 27 of 21,008 of EfficientNet-B0.
PAPER_TOPK = {"resnet50": 114, "efb0": 27}
_SHARE = PAPER_TOPK["resnet50"] / 26_560


def default_topk(arch: str, maps: int) -> int:
    """The paper's k for its two detectors, the same share of the maps as for its ResNet-50 for any other."""
    return PAPER_TOPK.get(arch, max(1, round(_SHARE * maps)))
