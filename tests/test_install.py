"""Ways to install: what they name is there and agrees, and images and environments are built where the tools are."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[1]
CONTAINERS = ROOT / "containers"
SETUP = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = SETUP["project"]
EXTRAS = PROJECT["optional-dependencies"]
DEVICES = {"cuda", "tpu"}  # besides the CPU, which needs no extra
SMALL_RUN = ["run", "--steps=0.02", "--frames=2", "--parts=none", "--noreport", "--out_dir=/tmp/demo"]
OFFLINE = re.compile(
    "name resolution|no such host|network is unreachable|connection (timed out|refused)|dial tcp", re.I
)


# ------------------------------------------------------------------------------------- what the files say


def test_the_extra_of_a_gpu_is_what_its_requirements_are():
    lines = (ROOT / "requirements-cuda.txt").read_text().splitlines()
    assert [line for line in lines if not line.startswith("#")] == EXTRAS["cuda"]


def test_devices_need_the_jax_that_the_package_needs():
    (needed,) = (each for each in map(Requirement, PROJECT["dependencies"]) if each.name == "jax")
    for device in DEVICES:
        (more,) = map(Requirement, EXTRAS[device])
        assert (more.name, more.specifier) == ("jax", needed.specifier) and {
            each.rstrip("0123456789") for each in more.extras
        } == {device}


def test_the_environment_of_conda_has_the_python_and_the_extras_of_the_package():
    text = (CONTAINERS / "environment.yml").read_text()
    read = yaml.safe_load(text)
    python, pip, by_pip = read["dependencies"]
    assert python == "python" + PROJECT["requires-python"] and pip == "pip" and read["channels"] == ["conda-forge"]
    (checkout,) = by_pip["pip"]  # pip starts in the folder of the file
    assert (CONTAINERS / checkout).resolve() == ROOT
    named = set(re.findall(r"\.\.\[(\w+)\]", text))
    assert named == DEVICES and named < set(EXTRAS)
    for extra in named:
        changed = yaml.safe_load(text.replace("- ..\n", f"- ..[{extra}]\n"))
        assert changed["dependencies"][2]["pip"] == [f"..[{extra}]"]


def instructions():
    """The instructions of the Dockerfile, each with its arguments."""
    text = re.sub(r"\\\n\s*", "", (CONTAINERS / "Dockerfile").read_text())
    lines = [line.split(maxsplit=1) for line in text.splitlines() if line and not line.startswith("#")]
    return [(name, rest) for name, rest in lines]


def definition():
    """The sections of the definition file of Apptainer, each a list of lines; that before the first is the header."""
    found = {"": []}
    for line in (CONTAINERS / "apptainer.def").read_text().splitlines():
        if line.startswith("%"):
            found[line[1:]] = lines = []
        elif line.strip() and not line.strip().startswith("#"):
            (lines if len(found) > 1 else found[""]).append(line.strip())
    return found


def arguments():
    """The defaults of the arguments of both images, by the name of the file."""
    docker = [rest for name, rest in instructions() if name == "ARG"]
    both = {"Dockerfile": docker, "apptainer.def": definition()["arguments"]}
    return {name: dict(line.split("=") for line in lines) for name, lines in both.items()}


def copied():
    """What is copied into both images, source and place, by the name of the file."""
    docker = {}
    for name, rest in instructions():
        if name == "COPY":
            *sources, place = rest.split()
            folder = place.endswith("/")
            docker |= {each: os.path.normpath(f"/source/{place}{each if folder else ''}") for each in sources}
    return {"Dockerfile": docker, "apptainer.def": dict(line.split() for line in definition()["files"])}


def test_images_are_of_a_python_that_the_package_takes_and_for_the_cpu():
    for name, defaults in arguments().items():
        assert set(defaults) == {"PYTHON", "DEVICE"} and defaults["DEVICE"] == "cpu", name
        assert defaults["PYTHON"] in SpecifierSet(PROJECT["requires-python"]), name
        assert f"Programming Language :: Python :: {defaults['PYTHON']}" in PROJECT["classifiers"], name
    assert ("FROM", "python:${PYTHON}-slim") in instructions()
    assert definition()[""] == ["Bootstrap: docker", "From: python:{{ PYTHON }}-slim"]
    assert len({tuple(sorted(each.items())) for each in arguments().values()}) == 1


def test_images_hold_what_the_package_is_built_from():
    """And nothing but what is there, in the same place in both."""
    docker, apptainer = copied().values()
    assert docker == apptainer and all(place == f"/source/{source}" for source, place in docker.items())
    assert all((ROOT / source).exists() for source in docker)
    folders = {name.split(".")[0] for name in SETUP["tool"]["setuptools"]["packages"]}
    folders |= set(SETUP["tool"]["setuptools"]["package-dir"].values())
    assert {"pyproject.toml", PROJECT["readme"], *PROJECT["license-files"], *folders} < set(docker)
    installing = (CONTAINERS / "install.sh").read_text()
    assert all(name in docker for name in re.findall(r"[\w-]+\.txt", installing))
    assert ("RUN", 'sh containers/install.sh "$DEVICE"') in instructions()
    assert definition()["post"] == ["sh /source/containers/install.sh {{ DEVICE }}"]


def test_nothing_that_is_copied_is_ignored():
    everything, *patterns = [
        line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")
    ]
    kept = {pattern[1:] for pattern in patterns if pattern.startswith("!")}
    assert everything == "*" and {source.split("/")[0] for source in copied()["Dockerfile"]} == kept
    assert [pattern for pattern in patterns if not pattern.startswith("!")] == ["**/__pycache__"]


def test_images_are_the_command():
    assert ("ENTRYPOINT", '["cryotrans"]') in instructions() and "cryotrans" in PROJECT["scripts"]
    assert definition()["runscript"] == ['exec cryotrans "$@"']


@pytest.fixture
def installed_by(tmp_path):
    """Function that runs the script by which images install the package, with a Python that says what it is asked."""
    if not shutil.which("sh"):
        pytest.skip("there is no sh here")
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\npwd\nprintf "%s\\n" "$@"\n')
    python.chmod(0o755)

    def run(*device):
        environment = os.environ | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
        command = ["sh", CONTAINERS / "install.sh", *device]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)

    return run


@pytest.mark.parametrize("device", [[], ["cpu"], ["cuda"], ["tpu"]])
def test_images_install_the_checkout_for_a_device(installed_by, device):
    done = installed_by(*device)
    folder, *asked = done.stdout.splitlines()
    extra = f"[{device[0]}]" if device and device != ["cpu"] else ""
    assert done.returncode == 0 and Path(folder) == ROOT
    assert asked == ["-m", "pip", "install", "--no-cache-dir", "-c", "constraints.txt", f".{extra}"]
    assert not extra or extra[1:-1] in EXTRAS


def test_another_device_is_refused(installed_by):
    done = installed_by("gpu")
    assert done.returncode == 2 and not done.stdout
    assert done.stderr == "error: no device 'gpu': give cpu, cuda or tpu\n"


def test_the_source_distribution_holds_what_is_tested_here():
    words = (ROOT / "MANIFEST.in").read_text().split()
    assert {"containers", ".dockerignore", "constraints.txt", "requirements-cuda.txt"} <= set(words)


# ------------------------------------------------------------------------------------- built where the tools are


def checkout(folder):
    """A copy of the checkout in a folder, as builds leave files behind."""
    left = shutil.ignore_patterns(
        "__pycache__", "*.egg-info", ".git", ".venv", "build", "dist", "runs", "data", "shared", "site"
    )
    return shutil.copytree(ROOT, folder / "checkout", ignore=left)


def tool(*names):
    """The path of the first of these programs that is here; the test is skipped where none is."""
    found = next(filter(None, map(shutil.which, names)), None)
    return found or pytest.skip(f"not built: {' or '.join(names)} is not installed here")


def call(*command, cwd=None):
    """What a command prints; the test is skipped where it needs a network that is not there."""
    done = subprocess.run([*map(str, command)], cwd=cwd, capture_output=True, text=True, timeout=3000)
    said = done.stdout + done.stderr
    if done.returncode and OFFLINE.search(said):
        pytest.skip(f"not built: {Path(command[0]).name} needs the network, which cannot be reached here")
    assert done.returncode == 0, said[-3000:]
    return done.stdout


@pytest.mark.slow
def test_the_package_is_built_from_what_images_hold(tmp_path):
    """Its wheel has all files of the package, as one of the whole checkout has."""
    for source, place in copied()["Dockerfile"].items():
        there = tmp_path / place.lstrip("/")
        there.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if (ROOT / source).is_dir() else shutil.copy)(ROOT / source, there)
    command = [sys.executable, "-m", "build", "--wheel", "--outdir", tmp_path, tmp_path / "source"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if "No matching distribution found" in done.stdout + done.stderr:
        pytest.skip("not built: setuptools cannot be fetched here to build the package with")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (wheel,) = map(zipfile.ZipFile, tmp_path.glob("*.whl"))
    code = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert {name for name in code if name.endswith(".py")} == {
        str(path.relative_to(ROOT)).replace("experiments/", "cryotrans_jax/experiments/", 1)
        for folder in ("cryotrans_jax", "experiments")
        for path in (ROOT / folder).rglob("*.py")
    }
    assert "cryotrans_jax/experiments/pages/assets/page.html" in code


@pytest.mark.slow
def test_the_image_of_docker_is_built_and_runs(tmp_path):
    docker = tool("docker", "podman")
    if subprocess.run([docker, "info"], capture_output=True, timeout=60).returncode:
        pytest.skip(f"not built: {Path(docker).name} is installed here, but no daemon answers it")
    name = "cryotrans-jax-test"
    call(docker, "build", "-f", "containers/Dockerfile", "-t", name, ".", cwd=checkout(tmp_path))
    try:
        assert call(docker, "run", "--rm", name, "--version") == f"cryotrans-jax {PROJECT['version']}\n"
        assert "/tmp/demo" in call(docker, "run", "--rm", "--user=12345:12345", name, *SMALL_RUN)
    finally:
        subprocess.run([docker, "rmi", "-f", name], capture_output=True)


@pytest.mark.slow
def test_the_image_of_apptainer_is_built_and_runs(tmp_path):
    apptainer = tool("apptainer")
    call(apptainer, "build", tmp_path / "cryotrans.sif", "containers/apptainer.def", cwd=checkout(tmp_path))
    run = [apptainer, "run", tmp_path / "cryotrans.sif"]
    assert call(*run, "--version") == f"cryotrans-jax {PROJECT['version']}\n"
    assert str(tmp_path) in call(*run, *SMALL_RUN[:-1], f"--out_dir={tmp_path}/demo", cwd=tmp_path)


@pytest.mark.slow
def test_the_environment_of_conda_is_made_and_runs(tmp_path):
    conda, place = tool("conda", "mamba", "micromamba"), tmp_path / "environment"
    make = ["create", "-y"] if Path(conda).stem == "micromamba" else ["env", "create"]
    call(conda, *make, "-f", checkout(tmp_path) / "containers/environment.yml", "-p", place)
    assert call(place / "bin/cryotrans", "--version") == f"cryotrans-jax {PROJECT['version']}\n"
    assert str(tmp_path) in call(place / "bin/cryotrans", *SMALL_RUN[:-1], f"--out_dir={tmp_path}/demo", cwd=tmp_path)
