"""What all scripts share: exit codes, one line for an error, progress, help in no time."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from ranking_runs import SOURCES

from passes.interrupts import GracefulInterrupt
from utils import cli
from utils.errors import UserError

SCRIPTS = sorted(
    path.stem for path in SOURCES.glob("*.py") if path.stem != "__main__" and "__main__" in path.read_text()
)

# Asks every script for its help, and says which were not quick.
HELP = """
import io, runpy, sys
from contextlib import redirect_stdout
sys.path.insert(0, sys.argv[1].rpartition("/")[0])
for script in sys.argv[1:]:
    sys.argv = [script, "--help"]
    with redirect_stdout(io.StringIO()) as text:
        try:
            runpy.run_path(script, run_name="__main__")
        except SystemExit as end:
            code = end.code
    heavy = sorted({"torch", "matplotlib", "scipy", "cv2"} & sys.modules.keys())
    shown = text.getvalue()
    if code or heavy or "example:\\n  python src/" not in shown or "(default: None)" in shown:
        print(script, code, heavy)
"""


def test_every_script_helps_quickly() -> None:
    """Without the packages that take seconds to import, and with an example."""
    assert len(SCRIPTS) > 20
    paths = [str(SOURCES / f"{name}.py") for name in SCRIPTS]
    done = subprocess.run([sys.executable, "-c", HELP, *paths], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("", "")


def test_every_script_names_what_is_there() -> None:
    text = "".join((SOURCES / f"{name}.py").read_text() for name in SCRIPTS)
    targets = re.findall(r'run_(?:step|function)\(\s*"(.+?)"', text)
    assert len(targets) > 15
    assert all(callable(cli.named(target)) for target in targets)


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
        # as `timeout` does it
        ("try: os.kill(os.getpid(), 15)\n    finally: os.kill(os.getpid(), 15)", 130, "interrupted\n"),
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


def out_of_memory() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to")


@pytest.mark.parametrize("main", [out_of_memory, lambda: torch.empty(1 << 55)], ids=["gpu", "cpu"])
def test_torch_out_of_memory(
    main: Callable[[], object], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(signal, "signal", lambda *arguments: None)
    with pytest.raises(SystemExit) as end:
        cli.run_script(main)
    said = capsys.readouterr().err
    assert end.value.code == 2
    assert said.startswith("error: out of memory: use a smaller --bsize (")
    assert said.count("\n") == 1


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
def test_first_signal_raises_a_flag_and_a_later_one_stops(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("passes.interrupts._SECONDS_OF_ONE_REQUEST", 0.0)
    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    with GracefulInterrupt() as interrupt:
        assert not interrupt.requested
        signal.raise_signal(number)
        assert interrupt.requested
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
    assert {n: signal.getsignal(n) for n in before} == before


def test_handlers_are_put_back_after_an_exception() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(UserError), GracefulInterrupt():
        raise UserError
    assert signal.getsignal(signal.SIGINT) == before


def test_outside_the_main_thread() -> None:
    seen: list[bool] = []

    def work() -> None:
        with GracefulInterrupt() as interrupt:
            seen.append(interrupt.requested)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_silent_where_work_is_soon_over(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(cli.progress(range(3), description="reading")) == [0, 1, 2]
    with cli.progress(total=5) as bar:
        bar.update(5)
    assert capsys.readouterr().err == ""


def test_progress_is_whole_lines_without_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One for each state of the work, also at its end."""
    import tqdm

    now = [0.0]
    monkeypatch.setattr(tqdm.std, "time", lambda: now[0])
    with cli.progress(total=4, description="gan [1]") as bar:
        for _ in range(4):
            now[0] += 40.0
            bar.update(1)
        now[0] += 1.0
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("|")[-1].split("[")[0].strip() for line in lines] == ["1/4", "2/4", "3/4", "4/4"]
    assert all(line.startswith("gan [1]: ") for line in lines)


def test_progress_is_a_bar_at_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    with cli.progress(total=4) as bar:
        bar.update(4)
    with cli.progress(total=4, shown=False, description="of another process") as bar:
        bar.update(4)
    text = sys.stderr.getvalue()  # type: ignore[attr-defined]
    assert "4/4" in text
    assert "another" not in text
