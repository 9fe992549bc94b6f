"""The project as a package: commands, what wheel and source distribution hold, and that they work by themselves."""

import ast
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

from experiments import log, main

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
JOBS = sorted(path for path in (ROOT / "experiments").rglob("*.py") if "\ndef define_flags" in path.read_text())


def test_every_job_can_be_installed_as_a_command():
    """Those of experiments are; studies are run as modules."""
    for path in JOBS:
        assert callable(importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts)).command)
        installed = f"cryotrans_jax.experiments.{path.stem}:command" in PROJECT["scripts"].values()
        assert installed == (path.parent.name == "experiments")


def test_every_folder_of_code_is_installed():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = [path for top in ("cryotrans_jax", "experiments") for path in (ROOT / top).rglob("__init__.py")]
    names = {".".join(path.parent.relative_to(ROOT).parts) for path in found}
    assert set(listed) == {re.sub("^experiments", "cryotrans_jax.experiments", name) for name in names}


def test_jobs_work_under_any_name():
    """Their files import one another by relative imports."""
    for path in (ROOT / "experiments").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            assert "experiments" not in {name.split(".")[0] for name in names}, path


@pytest.mark.parametrize(
    "typed, package, shown",
    [
        ("run.py", "experiments", "python -m experiments.run; finished experiments.run; x/experiments.run"),
        ("/a/cryotrans-run", "cryotrans_jax.experiments", "cryotrans-run; finished cryotrans-run; x/experiments.run"),
        ("/a/cryotrans run", "cryotrans_jax.experiments", "cryotrans run; finished cryotrans run; x/experiments.run"),
        (
            "run.py",
            "cryotrans_jax.experiments",
            "python -m cryotrans_jax.experiments.run; finished python -m cryotrans_jax.experiments.run; "
            "x/experiments.run",
        ),
    ],
)
def test_texts_name_jobs_as_they_were_started_and_leave_files_alone(monkeypatch, typed, package, shown):
    monkeypatch.setattr(sys, "argv", [typed])
    monkeypatch.setattr(log, "__package__", package)
    assert log.commands_as_typed("python -m experiments.run; finished experiments.run; x/experiments.run") == shown
    assert log.commands_as_typed("experiments.mrc") == "experiments.mrc"
    study = "python -m experiments.studies.validate"  # which has no installed command
    assert log.commands_as_typed(study) == study.replace("experiments", package, 1)


def test_messages_name_the_command_that_was_typed(monkeypatch, capsys, tmp_path):
    from experiments import report

    monkeypatch.setattr(sys, "argv", ["bin/cryotrans-report"])
    monkeypatch.setattr(main, "parse_flags", lambda names: None)
    monkeypatch.setattr(report, "FLAGS", type("Flags", (), {"run_dir": str(tmp_path), "target": None}))
    with pytest.raises(SystemExit):
        main.run(report.main)
    assert capsys.readouterr().err.endswith("give the --out_dir of a finished cryotrans-run\n")


def test_the_licence_is_the_one_that_is_declared():
    text = (ROOT / PROJECT["license-files"][0]).read_text()
    assert PROJECT["license"] == "Apache-2.0" and "Apache License\n" in text and "Version 2.0, January 2004" in text


# ---------------------------------------------------------------------------------------------- what is distributed


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Wheel and source distribution, the former made from the latter."""
    out, copy = tmp_path_factory.mktemp("dist"), tmp_path_factory.mktemp("source") / "copy"  # builds leave files behind
    left = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "runs", "data", "shared")
    shutil.copytree(ROOT, copy, ignore=left)
    command = [sys.executable, "-m", "build", "--outdir", out, copy]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if "No matching distribution found" in done.stdout + done.stderr:
        pytest.skip("setuptools cannot be fetched here to build the package with")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "Package would be ignored" not in done.stdout + done.stderr
    (wheel,), (source,) = out.glob("*.whl"), out.glob("*.tar.gz")
    return wheel, source


@pytest.mark.slow
def test_wheel_and_source_hold_what_the_folders_hold(built):
    wheel, source = zipfile.ZipFile(built[0]), tarfile.open(built[1])
    kept = {
        str(path.relative_to(ROOT))
        for folder in ("cryotrans_jax", "experiments")
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {name for name in wheel.namelist() if ".dist-info/" not in name} == {
        re.sub("^experiments/", "cryotrans_jax/experiments/", name) for name in kept
    }
    inside = {name.partition("/")[2] for name in source.getnames()}
    others = {"LICENSE", "README.md", "pyproject.toml", "tests/conftest.py", "examples/morph.ipynb"}
    others |= {"constraints.txt", "requirements-cuda.txt", "containers/Dockerfile", "containers/install.sh"}
    others |= {"chimerax/pyproject.toml", "chimerax/README.md", "chimerax/src/cmd.py"}
    assert kept | others <= inside
    (metadata,) = (wheel.read(name).decode() for name in wheel.namelist() if name.endswith("/METADATA"))
    for line in ("Name: cryotrans-jax", "License-Expression: Apache-2.0", "License-File: LICENSE", "# cryotrans-jax"):
        assert f"\n{line}\n" in metadata
    assert f"Version: {PROJECT['version']}" in metadata and "Author: " in metadata
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in wheel.namelist())


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    """A function that runs a command of a new virtual environment, which has the wheel, in an empty folder.

    What the package needs is taken from the environment of the tests, so that nothing has to be fetched; the package
    is not, as paths that are installed for it there are not followed from another environment.
    """
    home, work = tmp_path_factory.mktemp("environment"), tmp_path_factory.mktemp("elsewhere")
    venv.create(home, with_pip=True)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(home)}))
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}

    def call(name, *arguments):
        command = [home / "bin" / name, *map(str, arguments)]
        return subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, timeout=600)

    done = call("python", "-m", "pip", "install", "--no-deps", "--no-index", built[0])
    assert done.returncode == 0, done.stderr
    (packages / "needed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return call, work


@pytest.mark.slow
@pytest.mark.parametrize("command", [name for name in PROJECT["scripts"] if name != "cryotrans"])
def test_installed_commands_help_by_their_own_names(installed, command):
    call, _ = installed
    done = call(command, "--help")
    assert done.returncode == 0 and command in done.stdout
    assert not re.search(r"(?<!cryotrans_jax\.)\bexperiments\.", done.stdout)  # which only a checkout has


@pytest.mark.slow
def test_the_installed_package_works_by_itself(installed):
    """A run of the built-in pair with its report, more frames of it, and the library, without the checkout."""
    call, work = installed
    done = call("cryotrans-run", "--steps=0.02", "--frames=2", "--parts=none")
    assert done.returncode == 0, done.stderr
    page = (work / "runs/demo/report.html").read_text()
    assert "cryotrans-predict makes more frames" in page and "experiments.predict" not in page
    config = json.loads((work / "runs/demo/config.json").read_text())
    assert config["settings"]["steps"] == 0.02 and config["versions"]["cryotrans-jax"] == PROJECT["version"]
    done = call("cryotrans-predict", "--run_dir=runs/demo", "--frames=3")
    assert done.returncode == 0 and (work / "runs/demo/predict_3/frame_02.mrc").is_file(), done.stderr
    done = call("cryotrans-predict", "--run_dir=none")
    assert done.returncode == 2 and done.stderr.endswith("of a finished cryotrans-run\n")
    done = call(
        "python", "-c", "import cryotrans_jax as ct; print(ct.__file__, ct.read_map('runs/demo/generated.mrc'))"
    )
    assert "Map(60 x 48 x 100 voxels" in done.stdout and str(ROOT) not in done.stdout
