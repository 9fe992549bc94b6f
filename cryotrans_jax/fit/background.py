"""Work that is begun before its turn, in a thread beside the stages."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event
from typing import Any, TypeVar

Result = TypeVar("Result")


class Background:
    """Does work in a thread, one piece after the other; when it is closed, work that asks for it is stopped."""

    def __init__(self) -> None:
        """Begin with no work."""
        self.thread, self.closed = ThreadPoolExecutor(1), Event()

    def __enter__(self) -> "Background":
        """Return this object."""
        return self

    def __exit__(self, *_: Any) -> None:
        """Cancel what has not begun, and stop what has."""
        self.closed.set()
        self.thread.shutdown(wait=False, cancel_futures=True)

    def submit(self, work: Callable[..., Result], *arguments: Any) -> "Future[Result]":
        """Call `work` with these arguments in the thread."""
        return self.thread.submit(work, *arguments)
