"""Once a signal has come a job's process ends, whatever its main thread and its other threads are at."""

import contextlib
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]
BLOCK = "hashlib.pbkdf2_hmac('sha256', b'', b'', 2**31 - 1)"  # minutes in compiled code, which no signal interrupts
PROGRAM = """
import gc, hashlib, signal, sys, threading, time
from concurrent.futures import ThreadPoolExecutor
from experiments import main, signals

signals.GRACE, signals.TOGETHER = {grace}, 0.0
sys.argv = ["job.py"]


def begun():
    print("begun", flush=True)


def soon():
    threading.Timer(0.1, begun).start()  # the main thread is in compiled code by then


def job():
{job}


main.run(job)
"""


def started(job, grace=0.5):
    """A process that runs a job and has said that it has begun."""
    body = "\n".join("    " + line for line in job.strip().splitlines())
    program = PROGRAM.format(job=body, grace=grace)
    how = dict(cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process = subprocess.Popen([sys.executable, "-c", program], **how)
    assert process.stdout.readline() == "begun\n", process.communicate(timeout=10)[1]
    return process


def ended(process, *numbers, patience=10.0):
    """The status and the errors of a process after these signals, and the seconds that it took to end."""
    begin = time.monotonic()
    try:
        for number in numbers:
            process.send_signal(number)
            time.sleep(0.1)
        _, error = process.communicate(timeout=patience)
    finally:
        process.kill()
    return process.returncode, error, time.monotonic() - begin


def test_a_main_thread_in_compiled_code_is_not_waited_for():
    job = f"""
saved = []
with signals.Rescue(lambda: saved.append("all"), lambda: f"{{saved}} is kept"):
    soon()
    {BLOCK}
"""
    status, error, seconds = ended(started(job), signal.SIGTERM)
    assert (status, error) == (143, "error: stopped by SIGTERM; ['all'] is kept\n") and seconds < 5


def test_what_cannot_be_saved_in_time_is_given_up():
    job = f"""
signals.SAVING = 0.2
with signals.Rescue(lambda: time.sleep(100), lambda: "nothing is kept"):
    soon()
    {BLOCK}
"""
    status, error, seconds = ended(started(job), signal.SIGUSR1)
    assert (status, error) == (138, "error: stopped by SIGUSR1; nothing is kept\n") and seconds < 5


def test_a_second_signal_ends_a_blocked_process_at_once():
    status, error, seconds = ended(started(f"soon()\n{BLOCK}", grace=60), signal.SIGINT, signal.SIGINT)
    assert (status, error) == (130, "") and seconds < 5


def test_threads_that_still_work_do_not_hold_the_process():
    """They are not in the job's way, and Python would wait for them at its end."""
    job = f"""
pool = ThreadPoolExecutor(1)
pool.submit(lambda: {BLOCK})
begun()
time.sleep(100)
"""
    status, error, seconds = ended(started(job), signal.SIGTERM)
    assert (status, error) == (143, "error: stopped by SIGTERM\n") and seconds < 5


def test_a_pool_that_waits_for_its_threads_does_not_hold_the_process():
    job = f"""
with ThreadPoolExecutor(1) as pool:
    pool.submit(lambda: {BLOCK})
    begun()
    time.sleep(100)
"""
    status, error, _ = ended(started(job), signal.SIGINT)
    assert (status, error) == (130, "error: stopped by SIGINT\n")


def test_processes_that_a_job_started_end_with_it():
    job = f"""
import subprocess
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"])
soon()
{BLOCK}
"""
    process = started(job)
    (child,) = psutil.Process(process.pid).children()
    assert ended(process, signal.SIGTERM)[0] == 143
    end = time.monotonic() + 5
    with contextlib.suppress(psutil.NoSuchProcess):
        while time.monotonic() < end and child.status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.02)
    assert time.monotonic() < end


@pytest.mark.parametrize("where", ["callback", "destructor"])
def test_a_stop_that_a_garbage_collection_swallows_is_raised_again_and_not_printed(where):
    """Both run Python code whose exceptions have nowhere to go."""
    job = """
def interrupt(*_):
    if not signals.caught:
        signal.raise_signal(signal.SIGTERM)

class Doomed:
    __del__ = interrupt

begun()
{}
while True:
    time.sleep(0.01)
"""
    happens = {"callback": "gc.callbacks.append(interrupt)\ngc.collect()", "destructor": "Doomed()"}
    status, error, _ = ended(started(job.format(happens[where]), grace=60))
    assert (status, error) == (143, "error: stopped by SIGTERM\n")


def test_other_errors_of_a_destructor_are_reported_as_ever():
    job = """
class Faulty:
    def __del__(self):
        raise ValueError("a fault")

begun()
Faulty()
"""
    status, error, _ = ended(started(job))
    assert status == 0 and "ValueError: a fault" in error


def test_an_ignored_hangup_stays_ignored_while_the_main_thread_is_blocked():
    """As nohup asks for."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        process = started(f"soon()\n{BLOCK}", grace=0.1)
    finally:
        signal.signal(signal.SIGHUP, before)
    process.send_signal(signal.SIGHUP)
    time.sleep(0.5)
    assert process.poll() is None
    assert ended(process, signal.SIGTERM)[0] == 143


def test_a_job_that_ends_by_itself_leaves_everything_as_it_was():
    from experiments import signals

    before = signal.getsignal(signal.SIGTERM), sys.unraisablehook, psutil.Process().num_fds()
    with signals.stopping(print):
        assert signal.getsignal(signal.SIGTERM) != before[0]
    end = time.monotonic() + 5
    while psutil.Process().num_fds() > before[2] and time.monotonic() < end:
        time.sleep(0.01)
    assert (signal.getsignal(signal.SIGTERM), sys.unraisablehook, psutil.Process().num_fds()) == before
