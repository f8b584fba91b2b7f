"""Draw p(fake) of every patch beside LRP and Grad-CAM of the same images."""

from attribution.options import AttributionOptions, GradCamOptions, LrpOptions
from detectors.choice import DetectorChoice
from passes.command import read_step
from utils.cli import run_script, say_files

DESCRIPTION = (
    "What a patch classifier says of every patch of an image, beside LRP and Grad-CAM of its mean p(fake), into "
    "<output_dir>/patch_maps_<network>_<page>.png."
)
EXAMPLE = (
    "python src/compare_patch_maps.py --arch patchforensics-xception_block2 "
    "--weights checkpoints/RUN/bestval_net_D.pth --images photo.jpg folder/"
)


def main() -> None:
    options = AttributionOptions(target="fake")
    network = DetectorChoice(arch="patchforensics-xception_block2")
    detector, images, reading, options, run = read_step(DESCRIPTION, EXAMPLE, options, network)
    from attribution.gradcam import GuidedGradCamMaps
    from attribution.lrp_heatmaps import LrpHeatMaps
    from passes.running import run_experiment
    from patch_forensics.patch_maps import draw_patch_maps

    (lrp,) = run_experiment(LrpHeatMaps, detector, images, reading, LrpOptions(**vars(options)), run)
    (cam,) = run_experiment(GuidedGradCamMaps, detector, images, reading, GradCamOptions(**vars(options)), run)
    say_files(draw_patch_maps(lrp, cam))


if __name__ == "__main__":
    run_script(main)
