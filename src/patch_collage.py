"""Step 4: collages of the patches that excite feature maps most (Fig. 1), drawn from files."""

from passes.command import read_step
from patch_extraction.options import ALL, CollageOptions
from utils.cli import run_script, say
from utils.errors import UserError

DESCRIPTION = (
    "Draw the patches of extract_max_activation_patches.py: a collage for each feature map, and pages with a row of "
    "patches for each, as PDF and PNG. Nothing is computed again: of the flags that all steps have, those about "
    "weights, images and computing mean nothing here."
)
EXAMPLE = "python src/patch_collage.py --arch resnet50 --blur_jpg 0.5 --gan_name stylegan2 --topk 114"


def main() -> None:
    detector, images, _, shown, run = read_step(DESCRIPTION, EXAMPLE, CollageOptions)
    from patch_extraction.collages import update_collages
    from utils.layout import Layout

    if not images.gan_name:
        raise UserError("which generator? name it with --gan_name")
    layout = Layout(run.output_dir, detector.arch, detector.blur_jpg)
    for name in images.gan_name:
        drawn = update_collages(layout, name, None if shown.topk == ALL else shown.topk, shown.num_instances)
        say(f"{drawn[0]}: pages over all maps; a collage of each beside it, {len(drawn)} files in all")


if __name__ == "__main__":
    run_script(main)
