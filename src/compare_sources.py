"""Which maps of the layers that secondary modules share carry which source, and what the sources have in common."""

from passes.options import RunOptions
from source_attribution.options import Overlap
from utils.cli import run_script
from utils.settings import read_settings

EXAMPLE = "python src/compare_sources.py progan=progan-fake.csv cramergan=cramergan-fake.csv --topk 10"


def main() -> None:
    options, run = read_settings(__doc__ or "", EXAMPLE, Overlap, RunOptions)
    # after the arguments, so that --help is quick
    from source_attribution.overlap import compare_sources

    compare_sources(options, run.output_dir)


if __name__ == "__main__":
    run_script(main)
