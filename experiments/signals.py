"""Signals that end a command: raise an exception in the main thread, and kill the process if that does not end it.

Python handles signals between two of its own instructions, in the main thread. While that thread is in compiled code,
such as XLA's compiler or a long computation, no handler runs, and an exception raised in a callback of the garbage
collector is lost. A second thread is therefore notified of each signal at once (`signal.set_wakeup_fd`). It raises the
exception again where it was lost, and kills the process where the main thread has not ended in time.
"""

import contextlib
import ctypes
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

import psutil

SIGNALS = [  # that end a command: Ctrl-C, a closed terminal, the time limit of a cluster, and its warnings of that
    getattr(signal, name)
    for name in ("SIGINT", "SIGHUP", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGXCPU")
    if hasattr(signal, name)
]
GRACE = 5.0  # s for the main thread to end the command, and then the process
SAVING = 3.0  # s for `save`, if the process has to be killed
SAYING = 0.5  # s for a terminal or a pipe to take a message
LEAVING = 1.0  # s from the end of a command to that of its program, where the program does nothing else
TOGETHER = 0.3  # s within which signals count as one: a terminal and a launcher may both send the same stop
TICK = 0.05  # s between checks of the main thread

caught: list[int] = []
rescues: list["Rescue"] = []


class Stopped(KeyboardInterrupt):
    """A signal came that ends the program."""


class Rescue:
    """Unfinished work to be saved before the process is killed."""

    def __init__(self, save: Callable[[], Any], describe: Callable[[], str]):
        """Call `save` outside the main thread, and then `describe` for the message, even if `save` takes too long."""
        self.save, self.describe = save, describe

    def __enter__(self) -> "Rescue":
        """Register the rescue."""
        rescues.append(self)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Unregister the rescue."""
        rescues.remove(self)


@contextlib.contextmanager
def stopping(say: Callable[[str], None]) -> Iterator[None]:
    """Raise Stopped in this block at the first of SIGNALS; the second one kills the process at once.

    The process is also killed where the main thread does not leave the block within GRACE seconds, or where other
    threads keep it from ending then.
    """
    caught.clear()
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    with Watch(say):
        catch_signals()
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)


def catch_signals() -> None:
    """Let each of SIGNALS raise Stopped from now on, instead of what a library installed.

    Signals that were ignored when the program started, as by nohup, stay ignored.
    """

    def stop(number: int, _: Any) -> None:
        caught.append(number)
        for other in handled:
            signal.signal(other, signal.SIG_DFL)
        raise Stopped

    handled = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    for number in handled:
        signal.signal(number, stop)


def check_stopped() -> None:
    """Raise Stopped where a signal came while the running code could not pass on exceptions."""
    if caught:
        raise Stopped


class Watch:
    """Make sure that the process ends after one of SIGNALS, whatever the main thread is doing."""

    def __init__(self, say: Callable[[str], None]):
        """Let `say` print what was saved, if the process has to be killed."""
        self.say, self.left, self.lost = say, threading.Event(), threading.Event()

    def __enter__(self) -> "Watch":
        """Start the thread."""
        self.reader, self.writer = os.pipe()
        os.set_blocking(self.writer, False)
        self.wakeup = signal.set_wakeup_fd(self.writer, warn_on_full_buffer=False)
        self.hook, sys.unraisablehook = sys.unraisablehook, self.unraisable
        threading.Thread(target=self.run, name="signals", daemon=True).start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """End the watch, except over the end of the process where a signal has come."""
        self.left.set()
        sys.unraisablehook = self.hook
        signal.set_wakeup_fd(self.wakeup)
        os.close(self.writer)

    def unraisable(self, found: Any) -> None:
        """Note a Stopped that a destructor or a callback of the garbage collector swallowed; report all else."""
        if isinstance(found.exc_value, Stopped):
            self.lost.set()
        else:
            self.hook(found)

    def run(self) -> None:
        """Wait for a signal, then make sure that the process ends."""
        number = self.next_signal(None)
        if number is not None:
            self.await_job(number, time.monotonic() + GRACE)
        os.close(self.reader)

    def next_signal(self, seconds: float | None) -> int | None:
        """Wait for the next of SIGNALS; None if none comes within these seconds, or if the watch has ended."""
        while select.select([self.reader], [], [], seconds)[0] and (byte := os.read(self.reader, 1)):
            if byte[0] in SIGNALS:
                return byte[0]
        return None

    def await_job(self, number: int, end: float) -> None:
        """Wait until `end` for the main thread to leave the command, and kill the process if it does not."""
        first = time.monotonic()
        while not self.left.is_set() and time.monotonic() < end:
            if self.lost.is_set():
                self.lost.clear()
                raise_in_main_thread()
            second = self.next_signal(TICK)
            if second is not None and time.monotonic() > first + TOGETHER:
                kill(second)
        if self.left.is_set():
            self.await_process(number, end)
        else:
            self.force(number)

    def await_process(self, number: int, end: float) -> None:
        """Kill the process at `end` if it is ending; leave it alone if it does something else after the command."""
        known = time.monotonic() + LEAVING
        while not is_ending() and time.monotonic() < known:
            time.sleep(TICK)
        if is_ending():
            time.sleep(max(0.0, end - time.monotonic()))
            kill(number)

    def force(self, number: int) -> None:
        """Save what can be saved, print it, and kill the process."""
        notes = [f"stopped by {signal.Signals(number).name}"]
        for rescue in list(rescues):
            call_with_timeout(SAVING, rescue.save)
            notes.append(rescue.describe())
        call_with_timeout(SAYING, lambda: self.say("; ".join(notes)))
        kill(number)


def is_ending() -> bool:
    """Whether the interpreter is about to end: the main thread runs nothing that the program's main module called.

    It then waits for other threads, or runs exit handlers.
    """
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    while frame is not None and frame.f_back is not None:
        frame = frame.f_back
    return frame is None or frame.f_globals.get("__name__") not in ("__main__", "runpy")


def raise_in_main_thread() -> None:
    """Raise Stopped in the main thread at its next Python instruction."""
    ident = ctypes.c_ulong(threading.main_thread().ident or 0)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ident, ctypes.py_object(Stopped))


def call_with_timeout(seconds: float, work: Callable[[], Any]) -> None:
    """Call a function in a new thread, wait for it at most these seconds, and ignore its errors."""

    def attempt() -> None:
        with contextlib.suppress(Exception):
            work()

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(seconds)


def kill(number: int) -> None:
    """Kill the process and its children, with the status of a program that this signal ended."""
    call_with_timeout(SAYING, sys.stdout.flush)
    with contextlib.suppress(psutil.Error):
        for child in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                child.kill()
    os._exit(128 + number)
