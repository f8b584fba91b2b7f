"""Train and test source attribution: `{det|att} {train|test}`, as the published `classifier.py`."""

from pathlib import Path

from passes.options import RunOptions
from source_attribution.options import Attributing, AttributionTraining
from utils.cli import run_script
from utils.settings import read_settings

DESCRIPTION = (
    "Train a primary (det), or a secondary for a source on a primary (att --source, or --multiclass for all), or a "
    "baseline (-c); test networks, with confusion matrices. Data: a folder of source folders, each with 0_real and "
    "1_fake, or a folder of arrays that the published tools have made."
)
EXAMPLE = (
    "python src/attribute_source.py att train data/train data/val --source progan --det_model weights/attribution/"
    "mini.safetensors"
)


def main() -> None:
    run, options, training = read_settings(
        DESCRIPTION, EXAMPLE, RunOptions(output_dir=Path("output"), seed=2021), Attributing, AttributionTraining
    )
    # after the arguments, so that --help is quick
    if options.action == "train":
        from source_attribution.source_training import train_attribution

        train_attribution(options, training, run)
    else:
        from source_attribution.source_evaluation import evaluate_attribution

        evaluate_attribution(options, run)


if __name__ == "__main__":
    run_script(main)
