"""Which maps of the layers that secondary modules share carry which source, and what the sources have in common."""

from passes.options import RunOptions
from source_attribution.options import Overlap
from utils.cli import run_function

EXAMPLE = "python src/compare_sources.py progan=progan-fake.csv cramergan=cramergan-fake.csv --topk 10"

if __name__ == "__main__":
    run_function("source_attribution.overlap.compare_sources", __doc__ or "", EXAMPLE, Overlap, RunOptions)
