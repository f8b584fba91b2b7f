"""LRP heat maps of an ImageNet classifier, ResNet-50 unless --arch names another network."""

from attribution.scripts import lrp_heatmaps

if __name__ == "__main__":
    lrp_heatmaps("imagenet", "resnet50")
