"""Step 7: the share of a generator's top feature maps that depend on colour."""

from fmap_ranking.options import RankingChoice
from passes.command import read_step
from utils.cli import run_script, say
from utils.errors import UserError
from utils.layout import Layout

DESCRIPTION = (
    "Count the feature maps with a p-value of at most 0.05 in what median_test_activation_histograms.py has "
    "written: one table and one figure for all generators named. Nothing is computed from images."
)
EXAMPLE = "python src/find_color_conditional_percentage.py --arch resnet50 --blur_jpg 0.5 --gan_name stylegan2 biggan"


def main() -> None:
    detector, images, _, ranking, run = read_step(DESCRIPTION, EXAMPLE, RankingChoice)
    if not images.gan_name:
        raise UserError("--gan_name is missing: name the generators to count for")
    from activation_histograms.analysis import write_shares

    layout = Layout(run.output_dir, detector.arch, detector.blur_jpg)
    _, paths = write_shares(layout, images.gan_name, ranking.topk)
    say(paths[1].read_text(encoding="utf-8"))
    say("\n".join(map(str, paths)))


if __name__ == "__main__":
    run_script(main)
