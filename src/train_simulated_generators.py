"""Train the simulated generators of mini-ForenSynths on photographs."""

import argparse
from pathlib import Path

from mini_forensynths.generator_training import GeneratorTraining, train_generator
from mini_forensynths.generators import SPECS, save_generator
from mini_forensynths.photos import find_photos, load_usable, split_photos
from utils.cli import add_bool, add_run_arguments, make_parser, parse_count, parse_positive, run_script
from utils.files import is_made_from, sha256_file, sha256_text, write_provenance, write_text


def parse_arguments() -> argparse.Namespace:
    defaults = GeneratorTraining()
    parser = make_parser(
        "Train the simulated generators of mini-ForenSynths: autoencoders, one for each family of up-sampling layers.",
        "python src/train_simulated_generators.py --photos photos/ --output_dir output/generators",
    )
    parser.add_argument("--photos", type=Path, required=True, metavar="DIR", help="folder of photographs")
    parser.add_argument(
        "--shares",
        type=float,
        nargs=3,
        default=[0.7, 0.1, 0.2],
        metavar="SHARE",
        help="of photographs for training, validation and test; only the first are used",
    )
    parser.add_argument(
        "--generators",
        nargs="+",
        choices=[spec.name for spec in SPECS],
        default=[spec.name for spec in SPECS],
        help="which to train",
    )
    parser.add_argument("--steps", type=parse_positive, default=defaults.steps, metavar="N", help="of the optimiser")
    parser.add_argument(
        "--split_seed", type=parse_count, default=0, metavar="N", help="of the split of the photographs"
    )
    add_bool(parser, "--skip_bad_images", default=False, help="leave out photographs that cannot be used")
    add_run_arguments(
        parser,
        output_dir=Path("output", "simulated_generators"),
        output_help="<generator>.safetensors go there",
        device=False,
        compat=False,
        resume=False,
        wandb=False,
    )
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    training = GeneratorTraining(steps=args.steps, seed=args.seed)
    photos = split_photos(find_photos(args.photos), args.shares, args.split_seed)["train"]
    inputs = {"photographs": sha256_text(sha256_file(photo.path) for photo in photos)}
    images, skipped = load_usable(photos, training.crop, args.skip_bad_images)
    for spec in SPECS:
        if spec.name not in args.generators:
            continue
        path = args.output_dir / f"{spec.name}.safetensors"
        facts = {"generator": vars(spec), "training": vars(training), "photographs": len(images)}
        if is_made_from(path, inputs, facts):
            print(f"{path} is there already")
            continue
        save_generator(train_generator(spec, images, training), path)
        write_provenance(path, seed=args.seed, device="cpu", inputs=inputs, **facts)
        print(path)
    if skipped:
        write_text(args.output_dir / "skipped.txt", "".join(f"{line}\n" for line in skipped))


if __name__ == "__main__":
    run_script(main)
