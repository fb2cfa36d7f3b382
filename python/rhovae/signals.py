"""Signals that end a command in good order, and its child processes with it."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# a terminal and a launcher may both pass on the same wish
_ONE_WISH = 0.5
_GRACE = 10.0

_running: set[subprocess.Popen[bytes]] = set()


class Stopped(BaseException):
    """A signal asked this process to end; ``status`` is what a shell expects of it then."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.status = 128 + number


@contextmanager
def stoppable() -> Iterator[None]:
    """Within it SIGINT, SIGTERM and SIGHUP raise :class:`Stopped`; a second one ends the process at once.

    What the process was started to ignore (``nohup``, a shell's ``&``) stays ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    first: float | None = None

    def handle(number: int, _: object) -> None:
        nonlocal first
        now = time.monotonic()
        if first is None:
            first = now
            raise Stopped(number)
        if now - first > _ONE_WISH:
            for child in list(_running):
                _kill(child)
            os._exit(128 + number)

    before = {number: signal.getsignal(number) for number in _SIGNALS}
    caught = {number: handler for number, handler in before.items() if handler is not signal.SIG_IGN}
    for number in caught:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in caught.items():
            signal.signal(number, handler)


class Children:
    """Processes of a command, each waited for by a thread, that end no later than it.

    They have sessions of their own: Ctrl-C reaches them through this process, and only once.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ended = False

    def run(self, command: Sequence[str], **options: Any) -> int:
        """Start it and wait for its end; nothing is started after :meth:`end`."""
        with self._lock:
            if self._ended:
                return -signal.SIGTERM
            process = subprocess.Popen(command, start_new_session=True, **options)
            _running.add(process)
        try:
            return process.wait()
        finally:
            _running.discard(process)

    def end(self, grace: float = _GRACE) -> None:
        """End all that run: in good order, and those that take longer than ``grace`` seconds at once."""
        with self._lock:
            self._ended = True
        running = list(_running)
        for process in running:
            process.terminate()
        deadline = time.monotonic() + grace
        for process in running:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                _kill(process)
                process.wait()


def _kill(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
