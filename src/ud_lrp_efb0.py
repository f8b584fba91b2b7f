"""LRP heat maps of a universal detector, EfficientNet-B0 unless --arch names another network."""

from attribution.scripts import lrp_heatmaps

if __name__ == "__main__":
    lrp_heatmaps("ud", "efb0")
