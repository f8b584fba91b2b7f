import argparse
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from utils import cli
from utils.errors import UserError


@pytest.mark.parametrize("text", ["True", "true", "TRUE", "1", "yes", "Yes"])
def test_true(text: str) -> None:
    assert cli.parse_bool(text) is True


@pytest.mark.parametrize("text", ["False", "false", "0", "no", "NO"])
def test_false(text: str) -> None:
    assert cli.parse_bool(text) is False


@pytest.mark.parametrize("text", ["", "2", "ja", "None", "truefalse"])
def test_neither_true_nor_false(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="neither True"):
        cli.parse_bool(text)


def full_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser("Do something.", "python src/x.py --gan_name cyclegan")
    cli.add_detector_arguments(parser)
    cli.add_data_arguments(parser)
    cli.add_loading_arguments(parser)
    cli.add_ranking_arguments(parser)
    cli.add_save_pt_files(parser)
    cli.add_run_arguments(parser)
    return parser


REQUIRED = ["--dataset_dir", "data", "--gan_name", "cyclegan"]


def test_every_flag_of_the_contract_has_a_default() -> None:
    arguments = vars(full_parser().parse_args(REQUIRED))
    assert arguments == {
        "arch": "resnet50",
        "blur_jpg": "0.5",
        "weights": None,
        "precision": "fp32",
        "dataset_dir": Path("data"),
        "gan_name": ["cyclegan"],
        "have_classes": "auto",
        "num_real": None,
        "num_fake": None,
        "num_instances": None,
        "bsize": 16,
        "crop": "none",
        "num_workers": None,
        "skip_bad_images": False,
        "topk": None,
        "relevances": None,
        "save_pt_files": False,
        "output_dir": Path("output"),
        "device": "auto",
        "seed": 0,
        "compat": "none",
        "resume": False,
        "wandb": False,
    }


def test_scripts_leave_out_run_flags_they_have_no_use_for() -> None:
    parser = cli.make_parser("Do something.", "python src/x.py")
    cli.add_run_arguments(parser, compat=False, resume=False, wandb=False)
    assert sorted(vars(parser.parse_args([]))) == ["device", "output_dir", "seed"]


def test_values_are_taken() -> None:
    line = "--gan_name a b --have_classes False --num_real 20 --num_instances 0 --save_pt_files False"
    line += " --resume --skip_bad_images yes --crop random --blur_jpg 0.1 --compat published --precision bf16"
    line += " --arch EFB0"
    arguments = full_parser().parse_args(["--dataset_dir", "d", *line.split()])
    assert arguments.gan_name == ["a", "b"]
    assert arguments.have_classes is False
    assert (arguments.num_real, arguments.num_fake, arguments.num_instances) == (20, None, 0)
    assert arguments.save_pt_files is False
    assert arguments.resume is True
    assert arguments.skip_bad_images is True
    assert (arguments.crop, arguments.compat, arguments.precision) == ("random", "published", "bf16")
    assert (arguments.blur_jpg, arguments.arch) == ("0.1", "efb0")


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (["--resume", "perhaps"], "neither True"),
        (["--have_classes", "some"], "neither True"),
        (["--num_real", "-1"], "num_real"),
        (["--num_fake", "many"], "whole number"),
        (["--bsize", "0"], "at least 1"),
        (["--topk", "0"], "at least 1"),
        (["--gan_name", "../x"], "plain name"),
        (["--blur_jpg", "../x"], "plain name"),
        (["--crop", "middle"], "invalid choice"),
        (["--arch", "vgg"], "vgg"),
        (["--num_rea", "3"], "unrecognized"),
    ],
)
def test_wrong_values_give_one_line_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], extra: list[str], words: str
) -> None:
    with pytest.raises(SystemExit) as exit_:
        full_parser().parse_args([*REQUIRED, *extra])
    message = capsys.readouterr().err
    assert exit_.value.code == 2
    assert message.startswith("error: ")
    assert message.count("\n") == 1
    assert words in message


def test_help_shows_defaults_and_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        full_parser().parse_args(["--help"])
    text = capsys.readouterr().out
    assert exit_.value.code == 0
    assert "example:\n  python src/x.py --gan_name cyclegan" in text
    assert "(default: 16)" in text
    assert "default: None" not in text
    assert "99 to 100 % of" in " ".join(text.split())


def test_help_needs_no_torch() -> None:
    code = (
        "import sys; from utils import cli; p = cli.make_parser('d', 'e'); cli.add_detector_arguments(p);"
        "cli.add_data_arguments(p); p.format_help(); assert 'torch' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def run(body: str, **options: object) -> subprocess.CompletedProcess[str]:
    """Run a script with this body of `main` in a process of its own."""
    code = (
        # a shell starts background jobs with Ctrl-C ignored, and so may a test run be
        "import errno, os, signal, sys\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from utils.cli import run_script\nfrom utils.errors import *\n"
        f"def main():\n    {body}\nrun_script(main)\n"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, **options)


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        ("pass", 0, ""),
        ("sys.exit(0)", 0, ""),
        ("raise UserError('a.png is bad: remove it')", 2, "error: a.png is bad: remove it\n"),
        ("raise UserError('a\\nb.png')", 2, "error: a\\nb.png\n"),
        ("raise KeyboardInterrupt", 130, "interrupted\n"),
        ("raise Interrupted('state saved: add --resume')", 130, "interrupted: state saved: add --resume\n"),
        ("os.kill(os.getpid(), 15)", 130, "interrupted\n"),
        ("os.kill(os.getpid(), 2)", 130, "interrupted\n"),
        (
            "raise OSError(errno.ENOSPC, 'full', 'x.csv')",
            2,
            "error: x.csv: the disk is full: free some space",
        ),
        ("raise OSError(errno.EROFS, 'ro', 'x.csv')", 2, "error: x.csv: the file system is read-only"),
        ("raise PermissionError(errno.EACCES, 'no', 'x.csv')", 2, "error: x.csv: permission denied"),
        ("raise MemoryError", 2, "error: out of memory: use a smaller --bsize"),
        ("raise BrokenPipeError", 1, ""),
    ],
)
def test_exit_codes(body: str, code: int, message: str) -> None:
    done = run(body)
    assert done.returncode == code
    assert done.stderr.startswith(message)
    assert done.stderr.count("\n") == (1 if message else 0)


def test_anything_else_is_a_fault_with_a_traceback() -> None:
    done = run("raise ValueError('why')")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "ValueError: why" in done.stderr


@pytest.mark.parametrize("kind", ["torch.OutOfMemoryError('CUDA out of memory. Tried to')", "oom"])
def test_torch_out_of_memory(kind: str) -> None:
    body = "import torch; " + (f"raise {kind}" if kind != "oom" else "torch.empty(1 << 55)")
    done = run(body)
    assert done.returncode == 2
    assert done.stderr.startswith("error: out of memory: use a smaller --bsize (")
    assert done.stderr.count("\n") == 1


def test_reader_of_the_output_has_gone() -> None:
    read, write = os.pipe()
    os.close(read)
    code = "from utils.cli import run_script\nrun_script(lambda: print('x' * 100000))"
    done = subprocess.run([sys.executable, "-c", code], stdout=write, stderr=subprocess.PIPE, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (1, b"")


def test_output_to_a_full_disk() -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("this system has no /dev/full")
    code = "from utils.cli import run_script\nrun_script(lambda: print('x'))"
    with full.open("w") as stdout:
        done = subprocess.run([sys.executable, "-c", code], stdout=stdout, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(b"error: the disk is full")
    assert done.stderr.count(b"\n") == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_first_signal_raises_a_flag_and_the_second_stops(number: int) -> None:
    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    with cli.GracefulInterrupt() as interrupt:
        assert not interrupt.requested
        signal.raise_signal(number)
        assert interrupt.requested
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
    assert {n: signal.getsignal(n) for n in before} == before


def test_handlers_are_put_back_after_an_exception() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(UserError), cli.GracefulInterrupt():
        raise UserError
    assert signal.getsignal(signal.SIGINT) == before


def test_outside_the_main_thread() -> None:
    seen: list[bool] = []

    def work() -> None:
        with cli.GracefulInterrupt() as interrupt:
            seen.append(interrupt.requested)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]


def test_progress_is_silent_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(cli.progress(range(3), description="reading")) == [0, 1, 2]
    with cli.progress(total=5) as bar:
        bar.update(5)
    assert capsys.readouterr().err == ""
