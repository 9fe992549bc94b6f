"""One program for all commands: it lists them, hands its arguments on, and tells its version."""

import sys
import tomllib
from pathlib import Path

import pytest

import cryotrans_jax
from experiments import __main__ as program

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def started(monkeypatch, capsys, *arguments):
    """The status, output and errors of the program."""
    monkeypatch.setattr(sys, "argv", ["bin/cryotrans", *arguments])
    status = 0
    try:
        program.command()
    except SystemExit as stopped:
        status = stopped.code
    return status, *capsys.readouterr()


@pytest.mark.parametrize("arguments", [[], ["--help"], ["help"]])
def test_without_a_command_all_are_listed(monkeypatch, capsys, arguments):
    status, out, error = started(monkeypatch, capsys, *arguments)
    assert status == 0 and not error and "cryotrans run A.mrc B.mrc " in out
    listed = [line.split() for line in out.split("Commands:\n")[1].splitlines()]
    assert [words[0] for words in listed] == list(program.COMMANDS) and all(len(words) > 3 for words in listed)


def test_a_command_gets_the_arguments_that_follow_it(monkeypatch, capsys, tmp_path):
    status, out, error = started(monkeypatch, capsys, "report", f"--run_dir={tmp_path}")
    assert status == 2 and not out
    assert error.endswith("give the --out_dir of a finished cryotrans run\n")


def test_an_unknown_command_is_refused(monkeypatch, capsys):
    status, out, error = started(monkeypatch, capsys, "morph")
    assert status == 2 and not out
    assert error == f"error: no command 'morph': choose one of {', '.join(program.COMMANDS)}\n"


def test_the_version_is_that_of_the_package(monkeypatch, capsys, job):
    assert cryotrans_jax.__version__ == PROJECT["version"]
    said = f"cryotrans-jax {PROJECT['version']}\n"
    assert started(monkeypatch, capsys, "--version") == (0, said, "")
    assert job("simulate", "--version") == (0, said, "")


def test_the_installed_commands_are_those_that_are_listed():
    inside = "cryotrans_jax.experiments"
    commands = {f"cryotrans-{name}": f"{inside}.{name}:command" for name in program.COMMANDS}
    assert PROJECT["scripts"] == commands | {"cryotrans": f"{inside}.__main__:command"}
