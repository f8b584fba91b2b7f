"""What all scripts share: lines, progress, a function as a script, exit codes."""

import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TypeVar

from utils.allocation import keep_freed_memory
from utils.errors import Finished, UserError
from utils.files import as_user_error
from utils.settings import read_settings

EXIT_DONE = 0
EXIT_FAULT = 1
EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130

T = TypeVar("T")


def progress(
    iterable: Iterable[T] | None = None,
    *,
    total: int | None = None,
    description: str = "",
    unit: str = "image",
    shown: bool = True,
) -> Any:
    """A bar on standard error, in notebooks too; where that is not a terminal, a line every half minute."""
    from tqdm.auto import tqdm

    options: dict[str, Any] = {"total": total, "desc": description, "unit": unit, "disable": not shown}
    if not sys.stderr.isatty() and "ipykernel" not in sys.modules:
        # A file gets whole lines, and none at all of work that is soon over.
        options |= {"mininterval": 30.0, "delay": 15.0, "ncols": 100, "miniters": 1}
        return tqdm(iterable, file=_Lines(), **options)
    return tqdm(iterable, file=sys.stderr, **options)


class _Lines:
    """Standard error as a bar sees it: each redrawing becomes a line, unless nothing was done since the last one."""

    def __init__(self) -> None:
        self._done = ""

    def write(self, text: str) -> None:
        line = text.strip("\r\n ")
        # before [elapsed<remaining, rate]
        done = line.rpartition(" [")[0] or line
        if done and done != self._done:
            sys.stderr.write(line + "\n")
            self._done = done

    def flush(self) -> None:
        sys.stderr.flush()


def say(line: str) -> None:
    """A line of results, on standard output."""
    sys.stdout.write(line + "\n")


def say_files(paths: Iterable[Path]) -> None:
    """The files that were written, a line each."""
    for path in paths:
        say(str(path))


def announce(line: str, shown: bool = True) -> None:
    """Say on standard error what is computed next."""
    if shown:
        sys.stderr.write(line + "\n")
        sys.stderr.flush()


def run_function(function: str, description: str, example: str, *groups: Any, lines: bool = False) -> NoReturn:
    """Run a function of settings as a script: its command line is read first, so that `--help` is quick.

    Args:
        function: Module and name of it, `cr_ud.training_run.train_detectors`.
        description, example, groups: As of `read_settings`.
        lines: Say what it returns, a line each, as it comes.
    """

    def main() -> None:
        settings = read_settings(description, example, *groups)
        result = named(function)(*settings)
        for line in result if lines else ():
            say(str(line))

    run_script(main)


def named(target: str) -> Any:
    """What a module has under a name, `package.module.name`; imported now."""
    module, _, name = target.rpartition(".")
    return getattr(import_module(module), name)


def run_script(main: Callable[[], object]) -> NoReturn:
    """Run a script's `main` and leave with its exit code.

    0 done; 2 the user can mend it (one line on standard error); 130 interrupted by Ctrl-C or SIGTERM; 1
    anything else, with a traceback.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _raise_keyboard_interrupt)
    keep_freed_memory()
    try:
        try:
            main()
        except Finished as finished:
            say(str(finished))
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
    # Senders that signal the process and its group would meet the message about the first one.
    signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt
