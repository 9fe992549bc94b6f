"""Signals that end a job: an exception in the main thread, and the end of the process where that does not come of it.

Python handles signals between two of its own instructions, in the main thread. While that thread waits in compiled
code, as for XLA's compiler or a long computation, no handler runs, and an exception raised in a callback of the garbage
collector is lost. A thread therefore hears of each signal at once (`signal.set_wakeup_fd`). It raises the exception
again where it was lost, and ends the process where the main thread has not come to its end in time.
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

SIGNALS = [  # that end a job: Ctrl-C, a terminal that closes, a cluster's end of time, and its warnings of that
    getattr(signal, name)
    for name in ("SIGINT", "SIGHUP", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGXCPU")
    if hasattr(signal, name)
]
GRACE = 5.0  # s that the main thread has to end the job, and then the process
SAVING = 3.0  # s that the thread waits for `save`, if it has to end the process
SAYING = 0.5  # s that it waits for a terminal or a pipe to take a message
LEAVING = 1.0  # s from a job's end to that of its program, where the job is all that this does
TOGETHER = 0.3  # s within which signals count as one: a terminal and a launcher may send the same stop both
TICK = 0.05  # s between two looks at what the main thread does

caught: list[int] = []
rescues: list["Rescue"] = []


class Stopped(KeyboardInterrupt):
    """A signal came that ends the program."""


class Rescue:
    """What is done for unfinished work before the process is ended: save it, and say what is saved."""

    def __init__(self, save: Callable[[], Any], describe: Callable[[], str]):
        """Call `save` in another thread than the main one, and `describe` after it, even where it took too long."""
        self.save, self.describe = save, describe

    def __enter__(self) -> "Rescue":
        """Hold from here on."""
        rescues.append(self)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Hold no longer."""
        rescues.remove(self)


@contextlib.contextmanager
def stopping(say: Callable[[str], None]) -> Iterator[None]:
    """Raise Stopped in this block at the first of SIGNALS; the second one ends the process at once.

    Where the main thread does not leave the block within GRACE seconds, or the process does not end then because other
    threads still work, the process is ended; `say` prints what was saved.
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
    """Let each of SIGNALS raise Stopped from now on, whatever a library would have made of it.

    Those stay ignored that were to be when the program was started, as by nohup.
    """

    def stop(number: int, _: Any) -> None:
        caught.append(number)
        for other in heeded:
            signal.signal(other, signal.SIG_DFL)
        raise Stopped

    heeded = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    for number in heeded:
        signal.signal(number, stop)


def check_stopped() -> None:
    """Raise Stopped where a signal came while no exception could leave the code that was running."""
    if caught:
        raise Stopped


class Watch:
    """Watch that the process ends once one of SIGNALS has come, whatever the main thread is at."""

    def __init__(self, say: Callable[[str], None]):
        """Let `say` print what was saved, if the process has to be ended."""
        self.say, self.left, self.lost = say, threading.Event(), threading.Event()

    def __enter__(self) -> "Watch":
        """Begin."""
        self.reader, self.writer = os.pipe()
        os.set_blocking(self.writer, False)
        self.wakeup = signal.set_wakeup_fd(self.writer, warn_on_full_buffer=False)
        self.hook, sys.unraisablehook = sys.unraisablehook, self.unraisable
        threading.Thread(target=self.run, name="signals", daemon=True).start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """End, but for the watch over the process's end where a signal has come."""
        self.left.set()
        sys.unraisablehook = self.hook
        signal.set_wakeup_fd(self.wakeup)
        os.close(self.writer)

    def unraisable(self, found: Any) -> None:
        """Note a Stopped that a destructor or a garbage collector's callback has swallowed; report all else."""
        if isinstance(found.exc_value, Stopped):
            self.lost.set()
        else:
            self.hook(found)

    def run(self) -> None:
        """Wait for a signal; then see to it that the process ends."""
        number = self.next_signal(None)
        if number is not None:
            self.await_job(number, time.monotonic() + GRACE)
        os.close(self.reader)

    def next_signal(self, seconds: float | None) -> int | None:
        """The number of the next of SIGNALS; None where none comes within so many seconds, or the watch has ended."""
        while select.select([self.reader], [], [], seconds)[0] and (byte := os.read(self.reader, 1)):
            if byte[0] in SIGNALS:
                return byte[0]
        return None

    def await_job(self, number: int, end: float) -> None:
        """Let the main thread leave the job until `end`, and end the process where it has not."""
        first = time.monotonic()
        while not self.left.is_set() and time.monotonic() < end:
            if self.lost.is_set():
                self.lost.clear()
                raise_in_main_thread()
            second = self.next_signal(TICK)
            if second is not None and time.monotonic() > first + TOGETHER:
                leave(second)
        if self.left.is_set():
            self.await_process(number, end)
        else:
            self.force(number)

    def await_process(self, number: int, end: float) -> None:
        """End the process at `end` if it is about to end; let it be if something else than the job goes on in it."""
        known = time.monotonic() + LEAVING
        while not ending() and time.monotonic() < known:
            time.sleep(TICK)
        if ending():
            time.sleep(max(0.0, end - time.monotonic()))
            leave(number)

    def force(self, number: int) -> None:
        """Save what can be saved, say so, and end the process."""
        notes = [f"stopped by {signal.Signals(number).name}"]
        for rescue in list(rescues):
            within(SAVING, rescue.save)
            notes.append(rescue.describe())
        within(SAYING, lambda: self.say("; ".join(notes)))
        leave(number)


def ending() -> bool:
    """Whether the interpreter is about to end: the main thread is in nothing that the program's first file called.

    It then waits for other threads, or calls what was to be called at the end.
    """
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    while frame is not None and frame.f_back is not None:
        frame = frame.f_back
    return frame is None or frame.f_globals.get("__name__") not in ("__main__", "runpy")


def raise_in_main_thread() -> None:
    """Raise Stopped in the main thread, at its next instruction."""
    ident = ctypes.c_ulong(threading.main_thread().ident or 0)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ident, ctypes.py_object(Stopped))


def within(seconds: float, work: Callable[[], Any]) -> None:
    """Do some work in a thread of its own, and wait so long for it at most; its errors do not matter any more."""

    def attempt() -> None:
        with contextlib.suppress(Exception):
            work()

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(seconds)


def leave(number: int) -> None:
    """End the process, and those that it has started, with the status of a program that this signal ended."""
    within(SAYING, sys.stdout.flush)
    with contextlib.suppress(psutil.Error):
        for child in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                child.kill()
    os._exit(128 + number)
