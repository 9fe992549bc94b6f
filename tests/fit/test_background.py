"""Work beside the stages is done in order, and ends with them."""

from concurrent.futures import CancelledError
from threading import Event

import pytest

from cryotrans_jax.fit.background import Background


def test_work_is_done_in_order():
    seen = []
    with Background() as background:
        last = [background.submit(seen.append, number) for number in range(3)][-1]
        last.result(10)
    assert seen == [0, 1, 2]


def test_when_it_is_closed_running_work_is_told_and_waiting_work_cancelled():
    begun, seen = Event(), []

    def work(closed):
        begun.set()
        seen.append(closed.wait(10))

    with Background() as background:
        running = background.submit(work, background.closed)
        waiting = background.submit(seen.append, "never")
        assert begun.wait(10)
    running.result(10)
    assert seen == [True]
    with pytest.raises(CancelledError):
        waiting.result(10)
