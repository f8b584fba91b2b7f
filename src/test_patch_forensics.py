"""Test a patch classifier: averages over its patches, metrics, heat maps of the hardest and easiest images."""

from patch_forensics.options import RESULTS, PatchTest
from utils.cli import run_function

DESCRIPTION = (
    "Test a classifier of patches or of whole images (Chai et al., ECCV 2020) into "
    "<results_dir>/<run>/<partition>/epoch_<which_epoch>/<dataset_name>/: AP, accuracy and precision-recall of the "
    "vote over patches, of the mean before and after the softmax, and of every patch; with --visualize heat maps."
)
EXAMPLE = (
    "python src/test_patch_forensics.py --which_epoch bestval --partition test --dataset_name celebahq-pgan "
    "--real_im_path dataset/real/test --fake_im_path dataset/pgan/test --train_config checkpoints/RUN/opt.yml "
    "--average_mode after_softmax --visualize --topn 100"
)

if __name__ == "__main__":
    run_function("patch_forensics.analysis.evaluate_patches", DESCRIPTION, EXAMPLE, PatchTest, RESULTS)
