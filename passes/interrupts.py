"""Stopping in good order: Ctrl-C and SIGTERM between batches, and one writer at a time."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from utils.errors import UserError

# `timeout`, `torchrun` and batch systems signal a process and then its group: that is one request.
_SECONDS_OF_ONE_REQUEST = 1.0


class GracefulInterrupt:
    """Turns the first Ctrl-C or SIGTERM into a flag to look at between batches; one that comes later stops at once.

    The handlers are put back at the end. Outside the main thread, where Python delivers no signals, the flag
    just stays down.
    """

    def __init__(self) -> None:
        self.requested = False
        self._since = 0.0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> GracefulInterrupt:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._previous:
            signal.signal(*self._previous.popitem())

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            if time.monotonic() - self._since > _SECONDS_OF_ONE_REQUEST:
                raise KeyboardInterrupt
            return
        self.requested, self._since = True, time.monotonic()
        # A print here could meet another print half-way, which Python forbids.
        os.write(2, b"\nstopping after this batch; once more to stop at once\n")


@contextmanager
def only_writer(path: Path) -> Iterator[None]:
    """Hold a lock beside `path` inside the `with`; it goes with the process, however that ends.

    Raises:
        UserError: Another process holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(path.name + ".lock")
    with lock.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            # Some network file systems know no locks.
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise UserError(
                    f"another run is writing these results ({lock}): wait for it, or choose another --output_dir"
                ) from error
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)
