"""Train and test source attribution: `{det|att} {train|test}`, as the published `classifier.py`."""

from pathlib import Path

from passes.options import RunOptions
from source_attribution.options import Attributing, AttributionTraining
from utils.cli import run_function

DESCRIPTION = (
    "Train a primary (det), or a secondary for a source on a primary (att --source, or --multiclass for all), or a "
    "baseline (-c); test networks, with confusion matrices. Data: a folder of source folders, each with 0_real and "
    "1_fake, or a folder of arrays that the published tools have made."
)
EXAMPLE = (
    "python src/attribute_source.py att train data/train data/val --source progan --det_model weights/attribution/"
    "mini.safetensors"
)

if __name__ == "__main__":
    groups = RunOptions(output_dir=Path("output"), seed=2021), Attributing, AttributionTraining
    run_function("source_attribution.source_training.attribute", DESCRIPTION, EXAMPLE, *groups)
