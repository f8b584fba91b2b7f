"""Find the patches that a patch classifier is surest of, cut them out and draw them."""

from patch_forensics.options import RESULTS, TopPatchOptions
from utils.cli import run_function

DESCRIPTION = (
    "The most predictive patches of real and of fake images (Chai et al., ECCV 2020), into "
    "<results_dir>/<run>/<partition>/epoch_<which_epoch>/<dataset_name>/patches_top<n>/."
)
EXAMPLE = (
    "python src/extract_top_patches.py --which_epoch bestval --partition test --dataset_name celebahq-pgan "
    "--real_im_path dataset/real/test --fake_im_path dataset/pgan/test --train_config checkpoints/RUN/opt.yml "
    "--topn 10000 --unique"
)

if __name__ == "__main__":
    run_function("patch_forensics.top_patches.find_top_patches", DESCRIPTION, EXAMPLE, TopPatchOptions, RESULTS)
