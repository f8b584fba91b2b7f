"""Shared command-line arguments, booleans, progress, interruption and exit codes.

Nothing here imports torch before it is needed, so that `--help` is quick.
"""

import argparse
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TypeVar

from utils.errors import UserError
from utils.files import as_user_error, is_plain_name

EXIT_DONE = 0
EXIT_FAULT = 1
EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130
_TRUE = frozenset({"true", "1", "yes"})
_FALSE = frozenset({"false", "0", "no"})

T = TypeVar("T")


def parse_bool(text: str) -> bool:
    """True for true, 1, yes and False for false, 0, no, in any case; for argparse's `type`."""
    word = text.strip().lower()
    if word in _TRUE | _FALSE:
        return word in _TRUE
    raise argparse.ArgumentTypeError(f"{text!r} is neither True (1, yes) nor False (0, no)")


def parse_have_classes(text: str) -> bool | str:
    """A boolean or "auto"."""
    return "auto" if text.strip().lower() == "auto" else parse_bool(text)


def parse_count(text: str) -> int:
    """A whole number of at least 0."""
    if not re.fullmatch(r"\d+", text.strip()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 0")
    return int(text)


def parse_positive(text: str) -> int:
    """A whole number of at least 1."""
    number = parse_count(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return number


def parse_name(text: str) -> str:
    """A word that can be part of a file name."""
    if not is_plain_name(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a plain name: leave out '/'")
    return text


def parse_architecture(text: str) -> str:
    """The registry's name of an architecture, from any of its spellings."""
    from detectors.networks import canonical_architecture

    try:
        return canonical_architecture(text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, as for every other error a user can mend."""
        self.exit(EXIT_USER_ERROR, f"error: {_one_line(message)} (see {self.prog} --help)\n")


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    def _get_help_string(self, action: argparse.Action) -> str | None:
        # "(default: None)" says nothing; what happens then is in the help text itself.
        return action.help if action.default is None else super()._get_help_string(action)


def make_parser(description: str, example: str) -> argparse.ArgumentParser:
    """A parser whose help shows defaults and ends with one example to copy."""
    return _Parser(
        description=description,
        epilog=f"example:\n  {example}",
        formatter_class=_HelpFormatter,
        allow_abbrev=False,
    )


def add_bool(parser: argparse._ActionsContainer, flag: str, *, default: bool, help: str) -> None:
    """Add a flag that works alone (`--flag`) and with a value (`--flag False`)."""
    parser.add_argument(flag, type=parse_bool, nargs="?", const=True, default=default, metavar="True|False", help=help)


def add_detector_arguments(parser: argparse.ArgumentParser, *, arch: str | None = "resnet50") -> None:
    """Add --arch (not if `arch` is None), --blur_jpg, --weights and --precision."""
    group = parser.add_argument_group("detector")
    if arch is not None:
        group.add_argument(
            "--arch",
            type=parse_architecture,
            default=arch,
            help="architecture: resnet50, efb0, or another ResNet or EfficientNet, in any case",
        )
    group.add_argument(
        "--blur_jpg",
        type=parse_name,
        default="0.5",
        metavar="TAG",
        help="training augmentation of the published detectors, 0.1 or 0.5: part of file names",
    )
    group.add_argument(
        "--weights", type=Path, metavar="FILE", help="checkpoint; else weights/<arch>/blur_jpg_prob<TAG>.pth"
    )
    group.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="of the convolutions")


def add_data_arguments(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Add what selects images: --dataset_dir, --gan_name, --have_classes and the numbers of images."""
    group = parser.add_argument_group("images")
    group.add_argument(
        "--dataset_dir", type=Path, required=required, metavar="DIR", help="folder of the generators' folders"
    )
    group.add_argument(
        "--gan_name",
        type=parse_name,
        nargs="+",
        required=required,
        metavar="NAME",
        help="one or more folders there, each with [<class>/]0_real and [<class>/]1_fake",
    )
    group.add_argument(
        "--have_classes",
        type=parse_have_classes,
        default="auto",
        metavar="True|False|auto",
        help="whether there are class folders; auto looks",
    )
    for flag, what in (
        ("--num_real", "real images of each class"),
        ("--num_fake", "fake images of each class"),
        ("--num_instances", "images of each class and label, where the two above are not given"),
    ):
        group.add_argument(flag, type=parse_count, metavar="N", help=f"first N {what}; 0 or absent: all")


def add_loading_arguments(parser: argparse.ArgumentParser, *, bsize: int = 16, crop: str = "none") -> None:
    """Add how images are read: --bsize, --crop, --num_workers and --skip_bad_images."""
    group = parser.add_argument_group("reading")
    group.add_argument("--bsize", type=parse_positive, default=bsize, metavar="N", help="images in a batch")
    group.add_argument(
        "--crop",
        choices=("random", "center", "none"),
        default=crop,
        help="random: 99 to 100 %% of the area resized to 224x224; center: the central 224x224; none: all",
    )
    group.add_argument(
        "--num_workers",
        type=parse_count,
        metavar="N",
        help="processes that decode images, 0 for none; absent: as many as are useful on the device",
    )
    add_bool(
        group,
        "--skip_bad_images",
        default=False,
        help="leave out images that cannot be decoded, and report them, instead of stopping",
    )


def add_save_pt_files(parser: argparse.ArgumentParser) -> None:
    """Add --save_pt_files."""
    add_bool(
        parser,
        "--save_pt_files",
        default=False,
        help="save for each image its relevance, summed over RGB, and the picture of it",
    )


def add_ranking_arguments(parser: argparse.ArgumentParser, *, relevances: bool = True) -> None:
    """Add --topk and, for steps that read a ranking, --relevances."""
    group = parser.add_argument_group("feature maps")
    group.add_argument(
        "--topk",
        type=parse_positive,
        metavar="K",
        help="number of top-ranked feature maps; absent: the paper's 114 for resnet50 and 27 for efb0",
    )
    if not relevances:
        return
    group.add_argument(
        "--relevances",
        type=Path,
        metavar="FILE",
        help="ranking (.csv); absent: that of progan_val, else of the generator itself, below fmap_relevances/",
    )


def add_run_arguments(
    parser: argparse.ArgumentParser,
    *,
    output_dir: Path | None = Path("output"),
    output_help: str = "results",
    device: bool = True,
    seed: bool = True,
    compat: bool = True,
    resume: bool = True,
    wandb: bool = True,
) -> None:
    """Add --output_dir, and --device, --seed, --compat, --resume and --wandb unless the script has no use for them."""
    group = parser.add_argument_group("run")
    group.add_argument("--output_dir", type=Path, default=output_dir, metavar="DIR", help=output_help)
    if device:
        group.add_argument(
            "--device", default="auto", metavar="auto|cpu|cuda|cuda:N", help="auto: a GPU if there is one"
        )
    if seed:
        group.add_argument("--seed", type=parse_count, default=0, metavar="N", help="of all random choices")
    if compat:
        group.add_argument(
            "--compat",
            choices=("none", "published"),
            default="none",
            help="published: compute as the published code does, faults included",
        )
    if resume:
        add_bool(group, "--resume", default=False, help="go on from the state an interrupted run has saved")
    if wandb:
        add_bool(group, "--wandb", default=False, help="log to Weights & Biases, if it is installed")


def progress(
    iterable: Iterable[T] | None = None,
    *,
    total: int | None = None,
    description: str = "",
    unit: str = "image",
) -> Any:
    """A bar on standard error, in notebooks too; where that is not a terminal, a line every half minute."""
    from tqdm.auto import tqdm

    given: Any = iterable

    steady = sys.stderr.isatty() or "ipykernel" in sys.modules
    # A file gets whole lines, and none at all of work that is soon over.
    quiet: dict[str, Any] = (
        {} if steady else {"mininterval": 30.0, "delay": 15.0, "ncols": 100, "file": _Lines(), "miniters": 1}
    )
    return tqdm(given, total=total, desc=description, unit=unit, **{"file": sys.stderr, **quiet})


class _Lines:
    """Standard error as a bar sees it: each redrawing becomes a line."""

    def write(self, text: str) -> None:
        line = text.strip("\r\n ")
        if line:
            sys.stderr.write(line + "\n")

    def flush(self) -> None:
        sys.stderr.flush()


def say(line: str) -> None:
    """A line of results, on standard output."""
    sys.stdout.write(line + "\n")


def announce(line: str, shown: bool = True) -> None:
    """Say on standard error what is computed next."""
    if shown:
        sys.stderr.write(line + "\n")
        sys.stderr.flush()


def run_script(main: Callable[[], object]) -> NoReturn:
    """Run a script's `main` and leave with its exit code.

    0 done; 2 the user can mend it (one line on standard error); 130 interrupted by Ctrl-C or SIGTERM; 1
    anything else, with a traceback.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _raise_keyboard_interrupt)
    try:
        main()
        sys.stdout.flush()
    except KeyboardInterrupt as error:
        _complain(f"interrupted: {error}" if str(error) else "interrupted")
        code = EXIT_INTERRUPTED
    except BrokenPipeError:
        _discard_output()
        code = EXIT_FAULT
    except Exception as error:
        message = _mendable(error)
        if message is None:
            traceback.print_exc()
        else:
            _complain(f"error: {message}")
        if isinstance(error, OSError):
            _discard_output()
        code = EXIT_FAULT if message is None else EXIT_USER_ERROR
    else:
        code = EXIT_DONE
    sys.exit(code)


def _mendable(error: Exception) -> str | None:
    """The message for an error that a user can mend, None for any other."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError):
        mendable = as_user_error(error)
        return None if mendable is None else str(mendable)
    if _is_out_of_memory(error):
        return f"out of memory: use a smaller --bsize ({str(error).split('. ')[0]})"
    return None


def _is_out_of_memory(error: Exception) -> bool:
    # torch.OutOfMemoryError goes by its name, so that torch is not imported to look for it; on a CPU torch
    # raises a plain RuntimeError.
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))
    )


def _discard_output() -> None:
    """Let go of printed lines that cannot be delivered, about which Python would complain again at exit."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _complain(message: str) -> None:
    sys.stderr.write(_one_line(message) + "\n")


def _one_line(message: str) -> str:
    """Line breaks and control characters, in a file name for instance, are shown escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in message)


def _raise_keyboard_interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
