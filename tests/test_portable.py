"""Nothing needs what only POSIX systems have: the package and its commands import, and look at memory, without it."""

import importlib
import os
import signal
import sys
from pathlib import Path

import psutil  # noqa: F401  # it asks once on which system it is
import pytest

ROOT = Path(__file__).parents[1]
MODULES = ("resource", "fcntl", "pwd", "grp", "termios", "tty", "pty", "syslog")
OF_OS = ("fork", "getuid", "geteuid", "setsid", "killpg", "getpgid", "posix_fallocate", "mkfifo", "statvfs", "nice")
SIGNALS = ("SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU", "SIGALRM", "SIGKILL", "SIGPIPE", "SIGQUIT")


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):  # a folder made before: pytest asks whose it is
    """Makes this a system without them, on which nothing of ours is imported yet; gives what imports a module anew."""
    for name in [name for name in sys.modules if name.split(".")[0] in ("cryotrans_jax", "experiments")]:
        monkeypatch.delitem(sys.modules, name)
    for name in MODULES:
        monkeypatch.setitem(sys.modules, name, None)
    for owner, names in ((os, OF_OS), (signal, SIGNALS)):
        for name in names:
            monkeypatch.delattr(owner, name, raising=False)
    yield importlib.import_module
    for name in [name for name in sys.modules if name.split(".")[0] in ("cryotrans_jax", "experiments")]:
        del sys.modules[name]  # those of before come back


def test_all_is_imported_and_works_without_what_posix_systems_alone_have(elsewhere, tmp_path):
    """The package, the commands that are installed, and what they import only when they run."""
    for folder in ("cryotrans_jax", "experiments"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            if path.stem not in ("__init__", "__main__"):
                elsewhere(".".join(path.relative_to(ROOT).with_suffix("").parts))
    memory, signals = elsewhere("cryotrans_jax.io.memory"), elsewhere("experiments.signals")
    assert 0 < memory.resident() <= memory.peak() and memory.available() > 0
    assert signal.SIGINT in signals.SIGNALS and signal.SIGTERM in signals.SIGNALS
    with signals.stopping(print):
        pass
    checkpoints, run_folder = elsewhere("cryotrans_jax.io.checkpoints"), elsewhere("experiments.run_folder")
    checkpoints.save(tmp_path / "c", {"a": elsewhere("numpy").arange(3)}, {"n": 1})
    assert checkpoints.restore(tmp_path / "c")[1] == {"n": 1}
    with run_folder.claimed(tmp_path / "out") as out:
        assert (out / "running.lock").is_file()


@pytest.mark.parametrize("name", ["fuzz", "reliability"])
def test_studies_that_limit_memory_say_that_they_need_such_a_system(job, monkeypatch, name, tmp_path):
    monkeypatch.setitem(sys.modules, "resource", None)
    status, _, error = job(name, f"--out_dir={tmp_path / 'out'}")
    assert status == 2 and error.count("\n") == 1 and "on Linux or macOS" in error and not (tmp_path / "out").exists()
