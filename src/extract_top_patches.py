"""Find the patches that a patch classifier is surest of, cut them out and draw them."""

from patch_forensics.options import RESULTS, TopPatchOptions
from utils.cli import run_script
from utils.settings import read_settings

DESCRIPTION = (
    "The most predictive patches of real and of fake images (Chai et al., ECCV 2020), into "
    "<results_dir>/<run>/<partition>/epoch_<which_epoch>/<dataset_name>/patches_top<n>/."
)
EXAMPLE = (
    "python src/extract_top_patches.py --which_epoch bestval --partition test --dataset_name celebahq-pgan "
    "--real_im_path dataset/real/test --fake_im_path dataset/pgan/test --train_config checkpoints/RUN/opt.yml "
    "--topn 10000 --unique"
)


def main() -> None:
    settings = read_settings(DESCRIPTION, EXAMPLE, TopPatchOptions, RESULTS)
    from patch_forensics.top_patches import TopPatches
    from patch_forensics.trained import run_tested

    run_tested(TopPatches, *settings)


if __name__ == "__main__":
    run_script(main)
