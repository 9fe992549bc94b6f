"""Two processes that share targets make what one makes; flags and failures are explained in every process."""

import contextlib
import io
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import drift

from cryotrans_jax.fit.result import Fit
from cryotrans_jax.io.files import InputError
from cryotrans_jax.io.maps import Map, read_map, write_map
from experiments import hosts

ROOT = Path(__file__).parents[2]
NAMES = ("near", "far", "between")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, maps):
    """An initial map and three targets."""
    folder = tmp_path_factory.mktemp("hosts")
    far = np.roll(maps[1].density, -4, axis=2)
    for name, density in zip(NAMES, (maps[1].density, far, maps[2].density), strict=True):
        write_map(folder / f"{name}.mrc", Map(density, maps[0].voxel_size, maps[0].origin))
    write_map(folder / "initial.mrc", maps[0])
    return folder


def arguments(folder, out_dir, targets=NAMES):
    """The arguments of a short run to the targets: twenty steps."""
    names = ",".join(f"{folder}/{name}.mrc" for name in targets)
    return [
        f"--initial={folder}/initial.mrc",
        f"--target={names}",
        f"--out_dir={out_dir}",
        "--recipe=paper",
        "--bin=2",
        "--steps=0.01",
        "--frames=2",
        "--align=none",
    ]


def together(count, *arguments):
    """Status, stdout and stderr of each of so many processes that run the job at the same time."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, "-m", "experiments.run", *arguments, f"--coordinator={address}", f"--processes={count}"]
    settings = os.environ | {"JAX_PLATFORMS": "cpu"}
    how = dict(env=settings, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    started = [subprocess.Popen([*command, f"--process={number}"], **how) for number in range(count)]
    try:
        said = [process.communicate(timeout=500) for process in started]
    finally:
        for process in started:
            process.kill()
    return [(process.returncode, *texts) for process, texts in zip(started, said, strict=True)]


@pytest.mark.slow
def test_two_processes_make_what_one_makes(folder, job, tmp_path):
    """Three targets, the first and the third by process 0; every folder is a run by itself."""
    one, two = tmp_path / "one", tmp_path / "two"
    ended = together(2, *arguments(folder, two))
    assert [status for status, _, _ in ended] == [0, 0], ended
    status, _, error = job("run", *arguments(folder, one))
    assert status == 0, error
    assert {path.name for path in two.iterdir()} == set(NAMES)
    initial = read_map(folder / "initial.mrc").density
    for number, name in enumerate(NAMES):
        here, there = one / name, two / name
        assert {path.name for path in there.iterdir()} == {path.name for path in here.iterdir()}
        fits = [Fit.load(path / "checkpoint") for path in (here, there)]
        assert fits[0].config == fits[1].config and fits[0].frame.edge == fits[1].frame.edge
        for a, b in zip(*(jax.tree.leaves(fit.params) for fit in fits), strict=True):
            np.testing.assert_allclose(a, b, atol=drift(fits[0].config))
        for file in ("frame_00.mrc", "frame_01.mrc", "generated.mrc"):
            a, b = (read_map(path / file).density for path in (here, there))
            np.testing.assert_allclose(a, b, atol=1e-3 * initial.max())
        assert np.abs(a - initial).max() > 0.02 * initial.max()  # something was fitted
        a, b = (np.loadtxt(path / "loss.csv", delimiter=",", skiprows=1, usecols=3) for path in (here, there))
        np.testing.assert_allclose(a, b, rtol=1e-3)
        saved = json.loads((there / "config.json").read_text())
        assert saved["target"] == name and saved["settings"]["process"] == number % 2 and saved["processes"] == 2
        assert any(line.startswith(f"[{number % 2}/2] {name}") for line in ended[number % 2][1].splitlines())
    assert "threshold:" in ended[0][1] and "threshold:" not in ended[1][1]
    status, _, error = job("predict", f"--run_dir={two / 'far'}", "--frames=2")
    assert status == 0, error
    assert (two / "far/predict_2/frame_01.mrc").read_bytes() == (two / "far/generated.mrc").read_bytes()


def test_a_process_without_targets_ends_well(folder, job, tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 3)
    status, out, error = job("run", *arguments(folder, tmp_path / "out"))
    assert (status, error) == (0, "") and not (tmp_path / "out").exists()
    assert out == "targets of this process: 0, as there are more processes than targets\n"


@pytest.mark.parametrize("targets, processes", [(7, 3), (2, 4), (1, 1)])
def test_every_target_has_one_process_and_none_has_two_more_than_another(monkeypatch, targets, processes):
    monkeypatch.setattr(jax, "process_count", lambda: processes)
    shares = []
    for number in range(processes):
        monkeypatch.setattr(jax, "process_index", lambda number=number: number)
        shares.append(hosts.share(targets))
    assert sorted(number for share in shares for number in share) == list(range(targets))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.slow
def test_when_process_0_cannot_begin_all_end_at_once_and_say_why(folder, tmp_path):
    (tmp_path / "out/near").mkdir(parents=True)
    (tmp_path / "out/near/metrics.json").write_text("{}")
    (first, _, why), (second, _, other) = together(2, *arguments(folder, tmp_path / "out", ["near", "far"]))
    assert (first, second) == (2, 2)
    assert f"[0/2] error: {tmp_path}/out/near holds another run" in why
    assert "[1/2] error: process 0 could not start: see its error message" in other
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["near"] and "Traceback" not in why + other


@pytest.mark.parametrize(
    "given, sentence",
    [
        (["--coordinator=here:1234", "--process=0"], "go together: give --processes as well"),
        (["--process=0"], "give --coordinator and --processes as well"),
        (["--distributed", "--processes=2"], "give --coordinator and --process as well"),
        (["--coordinator=here:1234", "--processes=2", "--process=2"], "--process=2 is not one of --processes=2"),
        (["--coordinator=here", "--processes=2", "--process=1"], "--coordinator=here is no address"),
        (["--coordinator=a:70000", "--processes=2", "--process=1"], "--coordinator=a:70000 is no address"),
        (["--coordinator=here:1", "--processes=2", "--process=1", "--nodistributed"], "contradicts --coordinator"),
        (["--coordinator=here:1", "--processes=0", "--process=0"], "--processes=0"),
    ],
)
def test_flags_that_cannot_be_are_explained(folder, job, tmp_path, given, sentence):
    status, out, error = job("run", *arguments(folder, tmp_path / "out"), *given)
    assert status == 2 and out == "" and not (tmp_path / "out").exists()
    assert error.startswith("error: ") and error.count("\n") == 1 and sentence in error


def test_an_address_that_is_taken_or_silent_is_explained(folder, job, tmp_path, monkeypatch):
    monkeypatch.setattr(hosts, "JOINING", 0.1)
    with socket.create_server(("", 0)) as taken:
        address = f"--coordinator=127.0.0.1:{taken.getsockname()[1]}"
        status, _, error = job("run", *arguments(folder, tmp_path), address, "--processes=2", "--process=0")
        assert status == 2 and "cannot be taken" in error and error.count("\n") == 1
    status, _, error = job("run", *arguments(folder, tmp_path), address, "--processes=2", "--process=1")
    assert status == 2 and "process 0 cannot be reached at 127.0.0.1:" in error and error.count("\n") == 1


def test_processes_that_cannot_be_joined_are_explained(monkeypatch):
    def initialize(*_, **__):
        raise ValueError("coordinator_address should be defined.\nmore")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    with pytest.raises(InputError, match=r"joined \(coordinator_address should be defined.\).* give --coordinator"):
        hosts.connect()


@pytest.mark.slow
def test_where_there_is_no_cluster_that_is_said(folder, tmp_path):
    command = [sys.executable, "-m", "experiments.run", *arguments(folder, tmp_path / "out"), "--distributed"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert "does not recognise the cluster, give --coordinator" in done.stderr


@pytest.mark.parametrize("error", [None, InputError("the folder is taken")])
def test_the_others_begin_once_process_0_has_and_not_where_it_cannot(monkeypatch, error):
    """What it broadcasts is kept here for the other process."""
    word, done = [], []

    def broadcast(value):
        return word.append(value) if jax.process_index() == 0 else word[-1]

    def work():
        if error and jax.process_index() == 0:
            raise error
        done.append(jax.process_index())

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(hosts.multihost_utils, "broadcast_one_to_all", broadcast)
    for number, sentence in ((0, "the folder is taken"), (1, "process 0 could not start: see its error message")):
        monkeypatch.setattr(jax, "process_index", lambda number=number: number)
        with pytest.raises(InputError, match=sentence) if error else contextlib.nullcontext():
            hosts.after_first(work)
    assert done == ([] if error else [0, 1])


def test_lines_are_labelled_whole():
    stream = io.StringIO()
    labelled = hosts.Labelled(stream, "[1/2] ")
    for text in ("a", "b\nc", "\n\n", "d"):
        labelled.write(text)
    assert stream.getvalue() == "[1/2] ab\n[1/2] c\n[1/2] \n"
