"""The program beside ChimeraX: found by its name, listened to line by line, and ended so that it can be resumed."""

import os
import queue
import shlex
import signal
import stat
import sys

import numpy as np
import pytest
from bundle import plain

from cryotrans_jax.fit import progress
from experiments import log

messages, process, request = (plain(name) for name in ("messages", "process", "request"))
PATIENCE = 30.0  # s for an interpreter to start on a busy machine


@pytest.fixture
def program(tmp_path):
    """Function that writes a small program in a folder with blanks in its name, and gives its path."""

    def write(code, name="cryo trans"):
        path = tmp_path / "an environment" / "bin" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -c {shlex.quote(code)} "$@"\n')
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return str(path)

    return write


class Listener:
    """A run of a program, what it has printed, and its status once it has ended."""

    def __init__(self, command):
        self.lines, self.status, self.run = queue.Queue(), queue.Queue(), process.Run(command)
        self.run.start(self.lines.put, self.status.put)

    def next(self):
        return self.lines.get(timeout=PATIENCE)

    def end(self):
        return self.status.get(timeout=PATIENCE), list(self.lines.queue)


def heard(command):
    """The outcome of a program, and its lines."""
    status, lines = Listener(command).end()
    read = [messages.read(line) for line in lines]
    return messages.outcome(status, read), read


def test_lines_come_as_they_are_printed_and_arguments_arrive_as_they_are(program):
    code = "import sys, time; print(sys.argv[1:], flush=True); time.sleep(0.1); print('Å', file=sys.stderr)"
    listener = Listener([*process.command_of(program(code)), "--initial=a b/c.mrc", 'x"y'])
    assert listener.next() == str(["run", "--initial=a b/c.mrc", 'x"y'])
    assert listener.end() == (0, ["Å"])


def test_a_run_that_is_refused_ends_with_the_sentence_of_the_program(program):
    code = "import sys; print('warning: odd map', file=sys.stderr); print('error: no file a.mrc', file=sys.stderr); "
    found, lines = heard([program(code + "sys.exit(2)")])
    assert found == (messages.FAILED, "no file a.mrc")
    assert lines == [(messages.WARNING, "odd map"), (messages.ERROR, "no file a.mrc")]


def test_a_fault_of_the_program_ends_with_its_last_line(program):
    found, lines = heard([program("1 / 0")])
    assert found.kind == messages.FAILED and "status 1 (ZeroDivisionError: division by zero)" in found.text
    assert len(lines) > 1
    found, _ = heard([program("raise SystemExit(7)")])
    assert "status 7 (it printed nothing)" in found.text


def test_a_program_that_is_killed_is_told_from_one_that_fails(program):
    found, _ = heard([program("import os; os.kill(os.getpid(), 9)")])
    assert found.kind == messages.FAILED and "by SIGKILL" in found.text and "resumes" in found.text
    assert messages.outcome(128 + signal.SIGXCPU, []).text.startswith("the program was ended by SIGXCPU")
    assert "status 255" in messages.outcome(255, []).text


HANGING = """
import signal, sys, time
def stop(number, _):
    print("error: stopped by SIGTERM; resume it", file=sys.stderr, flush=True)
    sys.exit(143)
signal.signal(signal.SIGTERM, stop)
print("begun", flush=True)
time.sleep(600)
"""


def test_a_run_that_is_stopped_may_end_in_its_own_way(program):
    listener = Listener([program(HANGING)])
    assert listener.next() == "begun" and not listener.run.stopped
    assert listener.run.stop() and listener.run.stop()  # only the first one is sent: a second signal would kill it
    status, lines = listener.end()
    assert status == 143
    read = [messages.read(line) for line in lines]
    assert messages.outcome(status, read, listener.run.stopped) == (messages.STOPPED, "stopped by SIGTERM; resume it")
    assert not listener.run.stop()


def test_a_run_that_does_not_end_is_killed(program, monkeypatch):
    monkeypatch.setattr(process, "GRACE", 0.5)
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(600)"
    listener = Listener([program(code)])
    listener.next()
    listener.run.stop()
    status, _ = listener.end()
    assert status == -signal.SIGKILL
    assert messages.outcome(status, [], True) == (messages.STOPPED, "stopped by SIGKILL")


def test_a_run_that_was_not_started_is_not_stopped():
    assert not process.Run(["cryotrans"]).stop()


# The words that start it


def test_a_program_is_a_path_a_name_or_the_words_that_start_it(program, monkeypatch, tmp_path):
    path = program("", "cryotrans")
    single = program("", "cryotrans-run")
    assert process.command_of(path) == [path, "run"]
    assert process.command_of(single) == [single]
    assert process.command_of(f"  {path} ") == [path, "run"]
    monkeypatch.setenv("PATH", os.path.dirname(path))
    for text in ("cryotrans", "", f"'{path}'", "cryotrans run"):
        assert process.command_of(text) == [path, "run"]
    python = sys.executable
    assert process.command_of(f"{python} -m experiments") == [python, "-m", "experiments", "run"]
    assert process.command_of(f"{python} -m experiments.run") == [python, "-m", "experiments.run"]
    monkeypatch.setenv("HOME", str(tmp_path))
    assert process.command_of("~/'an environment'/bin/cryotrans") == [path, "run"]
    assert process.command_of("~/an environment/bin/cryotrans") == [path, "run"]


def test_a_name_is_also_looked_up_among_the_scripts_of_python_and_of_the_user(program, monkeypatch, tmp_path):
    path = program("", "cryotrans")
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(process.sysconfig, "get_path", lambda kind: os.path.dirname(path))
    assert process.command_of("cryotrans") == [path, "run"]
    monkeypatch.setattr(process.sysconfig, "get_path", lambda kind: str(tmp_path / "none"))
    (tmp_path / ".local").symlink_to(tmp_path / "an environment")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert process.command_of("cryotrans") == [str(tmp_path / ".local/bin/cryotrans"), "run"]


@pytest.mark.parametrize("text", ["no-such-program", "/no/such/cryotrans", "no-such-program -m x"])
def test_a_missing_program_is_refused_with_what_to_do(text):
    with pytest.raises(request.Refused, match="^no program .*no.such.* was found: install cryotrans-jax, .* program"):
        process.command_of(text)


def test_words_and_files_that_are_no_program_are_refused(tmp_path):
    with pytest.raises(request.Refused, match="No closing quotation"):
        process.command_of("'cryotrans")
    (tmp_path / "text").write_text("no program")
    (tmp_path / "text").chmod(0o755)
    with pytest.raises(request.Refused, match="text cannot be started"):
        process.Run([str(tmp_path / "text")]).start(print, print)


def test_the_environment_of_the_python_of_chimerax_is_not_handed_on(program, monkeypatch):
    own = {"PATH": "/bin", "PYTHONHOME": "/ChimeraX", "PYTHONPATH": "x", "__PYVENV_LAUNCHER__": "y", "LANG": "C"}
    assert process.environment(own) == {"PATH": "/bin", "LANG": "C", "PYTHONIOENCODING": "utf-8"}
    monkeypatch.setenv("PYTHONPATH", "/ChimeraX")
    _, lines = heard([program("import os; print(os.environ.get('PYTHONPATH'))")])
    assert [line.text for line in lines] == ["None"]


# The lines of our own program


def test_the_progress_of_a_fit_is_recognised(capsys):
    stage = type("Stage", (), {"steps": 20, "label": "bodies, 4 Å"})
    progress.Progress()(type("Config", (), {"stages": [stage, stage]}), 1, 20, np.ones((20, 1)))
    line = messages.read(capsys.readouterr().err)
    assert line.kind == messages.PROGRESS and line.text.startswith("stage 2/2 bodies, 4 Å, step 20/20: loss 1")


def test_warnings_and_errors_are_recognised(capsys):
    log.warning("a map is odd")
    log.error("no file\na.mrc")
    log.info("results: morph")
    out, error = capsys.readouterr()
    assert [messages.read(line) for line in (error + out).splitlines()] == [
        (messages.WARNING, "a map is odd"),
        (messages.ERROR, "no file a.mrc"),
        (messages.INFO, "results: morph"),
    ]


def test_a_run_that_did_a_part_only_says_so():
    lines = [messages.read("error: 1 of 1 targets failed, the others are done: b (diverged)")]
    assert messages.outcome(3, lines) == (messages.FAILED, lines[0].text)
