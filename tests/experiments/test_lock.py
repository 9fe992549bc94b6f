"""A folder is written to by one program at a time; locks of programs that have ended are taken over, by one of many."""

import json
import os
import socket
import subprocess
import sys
import threading
import time

import psutil
import pytest

from cryotrans_jax.io.files import InputError
from experiments import lock


@pytest.fixture(scope="module")
def other():
    """A process that runs."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield process.pid
    process.kill()
    process.wait()
    process.stdin.close()


@pytest.fixture(scope="module")
def ended():
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def left(folder, pid, silent=0.0, name="running.lock", **other):
    """A lock file of a process of this host, which was renewed so many seconds ago."""
    started = psutil.Process(pid).create_time() if psutil.pid_exists(pid) else 1e9
    owner = lock.this_process() | {"pid": pid, "started": started, "token": "of another"} | other
    path = folder / name
    path.write_text(json.dumps(owner))
    os.utime(path, (time.time() - silent,) * 2)
    return path


def test_a_lock_names_its_owner_and_goes_with_the_block(tmp_path):
    for end in (None, ValueError, KeyboardInterrupt):
        try:
            with lock.held(tmp_path):
                owner = json.loads((tmp_path / "running.lock").read_text())
                assert (owner["host"], owner["pid"]) == (socket.gethostname(), os.getpid())
                with lock.held(tmp_path):  # by a command that calls another one
                    pass
                assert (tmp_path / "running.lock").is_file()
                if end:
                    raise end
        except (ValueError, KeyboardInterrupt):
            pass
        assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("place", [".", "target", ".."])
def test_a_folder_in_use_is_refused(tmp_path, other, place):
    """Also where the other program works in one that it holds, or in the one that it is in."""
    own = tmp_path / "out"
    (own / "target").mkdir(parents=True)
    path = left(own / place, other)
    before = path.read_bytes()
    for _ in range(2):
        with pytest.raises(InputError, match=f"is in use by process {other} on .* remove .*running.lock"):
            lock.held(own).__enter__()
        assert path.read_bytes() == before and [p.name for p in own.rglob("*.lock")] == ["running.lock"] * (
            place != ".."
        )


def test_folders_beside_one_another_do_not_interfere(tmp_path, other):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    left(tmp_path / "a", other)
    with lock.held(tmp_path / "b"):
        pass


def test_a_link_and_the_folder_that_it_leads_to_are_one(tmp_path, other):
    (tmp_path / "out").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "out")
    left(tmp_path / "out", other)
    with pytest.raises(InputError, match="is in use"):
        lock.held(tmp_path / "link").__enter__()


@pytest.mark.parametrize(
    "alive, silent, changes, taken",
    [
        (False, 0, {}, True),
        (True, 1e6, {}, False),  # it may have been suspended
        (True, 0, {"started": 1e9}, False),  # clocks are adjusted
        (True, 2 * lock.SILENT, {"started": 1e9}, True),  # another process has its number
        (False, 0, {"machine": "before it was started anew"}, False),
        (False, 2 * lock.SILENT, {"machine": "before it was started anew"}, True),
        (False, lock.ABANDONED / 2, {"host": "elsewhere"}, False),
        (False, 2 * lock.ABANDONED, {"host": "elsewhere"}, True),
    ],
)
def test_a_lock_is_taken_over_once_its_owner_has_surely_ended(
    tmp_path, other, ended, capsys, alive, silent, changes, taken
):
    path = left(tmp_path, other if alive else ended, silent, **changes)
    if not taken:
        with pytest.raises(InputError, match="is in use by process .* on "):
            lock.held(tmp_path).__enter__()
        assert json.loads(path.read_text())["token"] == "of another"
        return
    with lock.held(tmp_path):
        assert json.loads(path.read_text())["pid"] == os.getpid()
    assert f"lock taken over from a program that has ended: {path}\n" in capsys.readouterr().out
    assert not any(tmp_path.iterdir())


def test_of_many_that_take_a_lock_over_one_has_it(tmp_path, ended, capsys):
    path, barrier, won = tmp_path / "running.lock", threading.Barrier(8), []

    def taker():
        barrier.wait()
        try:
            won.append(lock.acquire(path))
        except InputError:
            pass

    for _ in range(20):
        left(tmp_path, ended)
        won.clear()
        takers = [threading.Thread(target=taker) for _ in range(8)]
        for each in takers:
            each.start()
        for each in takers:
            each.join()
        assert len(won) == 1 and path.read_text() == won[0]


def test_the_processes_of_a_run_have_a_lock_each_and_wait_for_all_of_an_earlier_run(tmp_path, other, ended):
    with lock.held(tmp_path), lock.held(tmp_path, 1):
        assert {path.name for path in tmp_path.iterdir()} == {"running.lock", "running_1.lock"}
    left(tmp_path, ended)
    rest = left(tmp_path, other, name="running_1.lock")
    with pytest.raises(InputError, match="running_1.lock"):
        lock.held(tmp_path).__enter__()
    assert [path.name for path in tmp_path.iterdir()] == ["running_1.lock"]
    rest.unlink()
    left(tmp_path, ended, name="running_1.lock")
    with lock.held(tmp_path), lock.held(tmp_path, 1):
        pass
    assert not any(tmp_path.iterdir())


def test_what_is_no_lock_is_left_as_it_is(tmp_path):
    """A file of the user's, a link, and one that an owner is just writing; the last only as long as it may be alive."""
    path = tmp_path / "running.lock"
    (tmp_path / "mine").write_text("mine")
    for content in ("mine", "[]", json.dumps({"pid": 1}), json.dumps(lock.this_process() | {"pid": "x"})):
        path.write_text(content)
        os.utime(path, (0, 0))
        with pytest.raises(InputError, match="is not a lock that this program has written"):
            lock.held(tmp_path).__enter__()
        assert path.read_text() == content
    path.unlink()
    for place in ("mine", "none"):
        path.symlink_to(tmp_path / place)
        with pytest.raises(InputError, match="is a link or a folder"):
            lock.held(tmp_path).__enter__()
        path.unlink()
    assert [path.name for path in tmp_path.iterdir()] == ["mine"] and (tmp_path / "mine").read_text() == "mine"
    path.touch()
    with pytest.raises(InputError, match="just starting"):
        lock.held(tmp_path).__enter__()
    os.utime(path, (0, 0))
    with lock.held(tmp_path):
        pass


def test_a_lock_is_renewed_as_long_as_it_is_held(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "RENEWED", 0.01)
    with lock.held(tmp_path):
        path = tmp_path / "running.lock"
        os.utime(path, (0, 0))
        end = time.monotonic() + 10
        while path.stat().st_mtime == 0 and time.monotonic() < end:
            time.sleep(0.01)
        assert path.stat().st_mtime > 1e9
        path.write_text("of another that has taken it over")
    assert path.read_text() == "of another that has taken it over"
