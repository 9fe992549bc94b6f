"""A thread uses its own cores; cores are divided among processes, which keep to them."""

import os
import subprocess
import sys

import pytest

from cryotrans_jax.io import cores


@pytest.mark.parametrize(
    ("own", "count", "sizes"), [(16, 1, [16]), (16, 3, [6, 5, 5]), (2, 2, [1, 1]), (5, 5, [1] * 5)]
)
def test_every_core_belongs_to_one_process(own, count, sizes, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(100, 100 + own)), raising=False)
    shares = cores.shares(count)
    assert [len(share) for share in shares] == sizes
    assert set().union(*shares) == set(range(100, 100 + own))


def test_a_thread_uses_its_own_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3, 5, 6}, raising=False)
    assert (cores.own(), cores.usable()) == ([3, 5, 6], 3)
    monkeypatch.delattr(os, "sched_getaffinity")
    assert (cores.own(), cores.usable()) == ([], os.cpu_count())


def test_more_processes_than_cores_may_all_use_all(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1}, raising=False)
    assert cores.shares(3) == [set(), set(), set()]


def test_without_a_word_of_the_system_nothing_is_bound(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.delattr(os, "sched_setaffinity", raising=False)
    assert cores.shares(2) == [set(), set()]
    cores.bind(0, set())


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system does not bind processes to cores")
def test_a_process_keeps_to_its_cores_and_one_that_has_ended_is_no_error():
    ask = "import os, sys; sys.stdin.read(); print(sorted(os.sched_getaffinity(0)))"
    given = {max(os.sched_getaffinity(0))}
    process = subprocess.Popen([sys.executable, "-c", ask], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    cores.bind(process.pid, given)
    assert process.communicate("")[0].strip() == str(sorted(given))
    cores.bind(process.pid, given)
