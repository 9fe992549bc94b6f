"""A run that is stopped, or killed, loses nothing: the same command goes on, and ends with the same files."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest

from cryotrans_jax.fit.terms import Matched
from cryotrans_jax.io import files
from cryotrans_jax.io.files import InputError
from cryotrans_jax.io.maps import read_map, write_map
from experiments import main, resume, run_folder, signals

ROOT = Path(__file__).parents[2]
# Two chunks of steps in each of the first two stages, and one in the third, from which on bodies have their own fields
HOW = dict(steps=0.208, frames=2, align="none", report="false", recipe="default")
SAME = ("loss.csv", "generated.mrc", "frame_00.mrc", "unexplained.mrc", "displacement.mrc", "fsc.csv", "parts.mrc")


def slow(*values):
    """A case of a test that is left to those who have the time."""
    return pytest.param(*values, marks=pytest.mark.slow)


class Killed(BaseException):
    """As kill -9 is: nothing that waits for errors or signals sees it."""


pytestmark = pytest.mark.usefixtures("first_stages")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, maps):
    """The maps as files, and one without numbers."""
    folder = tmp_path_factory.mktemp("resume")
    for name, map_ in zip(("initial", "target", "other"), maps, strict=True):
        write_map(folder / f"{name}.mrc", map_)
    whole = (folder / "target.mrc").read_bytes()
    (folder / "nan.mrc").write_bytes(whole[:-4] + np.float32(np.nan).tobytes())
    return folder


def arguments(folder, out_dir, **others):
    """The arguments of a run."""
    flags = dict(initial=folder / "initial.mrc", target=folder / "target.mrc", out_dir=out_dir) | HOW | others
    return [f"--{name}={value}" for name, value in flags.items() if value is not None]


@pytest.fixture(scope="module")
def whole(folder, job):
    """The folder of a run that nothing stops."""
    status, _, error = job("run", *arguments(folder, folder / "whole"))
    assert status == 0, error
    return folder / "whole"


@contextlib.contextmanager
def at_chunk(number, what, seed=0):
    """Within it `what()` happens when a seed's fit has told of so many chunks of steps."""
    real, told = resume.Keeper.keep, []

    def keep(self, another, snapshot):
        real(self, another, snapshot)
        told.append(another)
        if told.count(seed) == number and another == seed:
            what()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resume.Keeper, "keep", keep)
        yield


def kill():
    raise Killed


def signalled(number):
    return lambda: os.kill(os.getpid(), number)


def check_same(whole, out):
    """The results are the same bytes, and nothing else is left."""
    for name in SAME:
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name
    assert {path.name for path in out.iterdir()} == {path.name for path in whole.iterdir()}


@contextlib.contextmanager
def handled(number, how):
    """Within it the signal is handled so, however this program was started."""
    before = signal.signal(number, how)
    try:
        yield
    finally:
        signal.signal(number, before)


@pytest.mark.parametrize("name, chunk", [("SIGTERM", 4), slow("SIGINT", 1), slow("SIGUSR1", 7)])
def test_a_signal_ends_a_run_cleanly_and_the_same_command_goes_on(folder, whole, job, tmp_path, name, chunk):
    """In the first stage, where one field moves all, and where bodies have their own."""
    out, number = tmp_path / "out", getattr(signal, name)
    with handled(number, signal.SIG_DFL), at_chunk(chunk, signalled(number)):
        status, _, error = job("run", *arguments(folder, out))
    assert status == 128 + number
    last = error.splitlines()[-1]
    assert last.startswith(f"error: stopped by {name}; the fit is saved at step ") and "same command" in last
    assert [path.name for path in out.iterdir()] == [run_folder.UNFINISHED]
    status, printed, error = job("run", *arguments(folder, out))
    assert status == 0, error
    assert "Run resumed from step " in printed and f"(seed 0, {out})" in printed
    check_same(whole, out)


def test_a_signal_that_was_ignored_from_the_start_is_ignored():
    """As nohup asks for, and a shell for the SIGINT of what it runs in the background."""
    with handled(signal.SIGHUP, signal.SIG_IGN), signals.stopping(print):
        os.kill(os.getpid(), signal.SIGHUP)
    with handled(signal.SIGHUP, signal.SIG_DFL), pytest.raises(signals.Stopped), signals.stopping(print):
        os.kill(os.getpid(), signal.SIGHUP)


@pytest.mark.parametrize("chunk", [slow(2), 5, slow(9)])
def test_a_run_that_is_killed_goes_on_from_what_was_kept_last(folder, whole, job, tmp_path, chunk):
    out = tmp_path / "out"
    with at_chunk(chunk, kill), pytest.raises(Killed):
        job("run", *arguments(folder, out, checkpoint_minutes=0))
    assert job("run", *arguments(folder, out))[0] == 0  # how often it is kept may differ
    check_same(whole, out)


def test_a_run_that_is_killed_before_anything_was_kept_begins_again(folder, whole, job, tmp_path):
    with at_chunk(1, kill), pytest.raises(Killed):
        job("run", *arguments(folder, tmp_path))
    assert not any(tmp_path.iterdir())
    assert job("run", *arguments(folder, tmp_path))[0] == 0
    check_same(whole, tmp_path)


def break_at(patch, name, error):
    """Makes the file of that name one that cannot be written."""
    real = files.whole_file

    @contextlib.contextmanager
    def broken(path):
        with real(path) as temporary:
            yield temporary
            if Path(path).name == name:
                raise error

    for module in ("cryotrans_jax.io.files", "cryotrans_jax.io.maps", "experiments.frames", "experiments.results"):
        patch.setattr(f"{module}.whole_file", broken)


@pytest.fixture(scope="module")
def another(folder, job):
    """The folder of another run."""
    status, _, error = job("run", *arguments(folder, folder / "another", steps=0.1, frames=3))
    assert status == 0, error
    return folder / "another"


@pytest.fixture
def earlier(another, tmp_path):
    """A folder with that run's results, and their bytes."""
    out = shutil.copytree(another, tmp_path / "out")
    return out, {path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def contents(out):
    """Every file of a folder with its bytes, but not what is kept of an unfinished run."""
    every = {path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    return {path: data for path, data in every.items() if path.parts[0] != run_folder.UNFINISHED}


def test_results_that_cannot_be_written_leave_the_earlier_ones_and_the_fit(folder, whole, job, earlier):
    out, before = earlier
    with pytest.MonkeyPatch.context() as patch:
        break_at(patch, "displacement.mrc", OSError(28, "No space left on device", "displacement.mrc"))
        status, _, error = job("run", *arguments(folder, out), "--overwrite")
    assert status == 2 and contents(out) == before
    saved = "displacement.mrc: No space left on device; the fit is saved at the end of the last stage"
    assert saved in error.splitlines()[-1]
    status, printed, error = job("run", *arguments(folder, out), "--overwrite")
    assert status == 0 and "Run resumed from the end of the last stage (seed 0" in printed, error
    check_same(whole, out)


def test_a_run_killed_while_it_replaces_results_is_completed(folder, whole, job, earlier):
    out, before = earlier
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        break_at(patch, "unexplained.mrc", Killed())
        patch.setattr(run_folder, "restore", lambda *_: None)  # by kill -9
        job("run", *arguments(folder, out), "--overwrite")
    kept = {path: data for path, data in before.items() if "checkpoint" not in path.parts}
    aside = out / ".earlier_run"
    assert {path: (aside / path).read_bytes() for path in kept} == kept  # not lost, should it be given up now
    status, printed, _ = job("run", *arguments(folder, out))
    assert status == 0 and f"results restored in {out}" in printed and not aside.exists()
    check_same(whole, out)


def test_an_unfinished_run_is_neither_mixed_up_with_another_nor_replaced_unasked(folder, whole, job, tmp_path):
    out, own = tmp_path / "out", tmp_path / "in"
    shutil.copytree(folder, own, ignore=shutil.ignore_patterns("whole", "another"))
    with at_chunk(3, signalled(signal.SIGTERM)):
        job("run", *arguments(own, out))
    kept = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    for changes, said in (
        (dict(steps=0.1), "--steps was 0.208 and is 0.1"),
        (dict(seed=4), "--seed was 0 and is 4"),
        (dict(resume="false"), "--noresume is given"),
        (dict(steps=0.1, resume="true"), "leave --resume out"),
    ):
        status, _, error = job("run", *arguments(own, out, **changes))
        assert status == 2 and said in error and len(error.splitlines()) == 1
    write_map(own / "target.mrc", read_map(own / "other.mrc"))
    status, _, error = job("run", *arguments(own, out))
    assert status == 2 and f"the input {own}/target.mrc changed" in error
    (own / "target.mrc").unlink()
    status, _, error = job("run", *arguments(own, out))
    assert status == 2 and f"no map {own}/target.mrc" in error
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == kept
    shutil.copy(folder / "target.mrc", own)
    status, printed, _ = job("run", *arguments(own, out, frames=3), "--overwrite")  # as many frames as one likes
    assert status == 0 and "Run resumed from step" in printed
    assert (out / "loss.csv").read_bytes() == (whole / "loss.csv").read_bytes()
    assert (out / "frame_02.mrc").read_bytes() == (whole / "frame_01.mrc").read_bytes()


def test_to_begin_anew_takes_overwrite(folder, whole, job, tmp_path):
    with at_chunk(3, signalled(signal.SIGTERM)):
        job("run", *arguments(folder, tmp_path, steps=0.1))
    status, printed, error = job("run", *arguments(folder, tmp_path), "--overwrite")
    assert status == 0 and "resumed" not in printed, error
    check_same(whole, tmp_path)


def test_only_an_unfinished_run_can_be_resumed(folder, whole, job, tmp_path):
    for out in (tmp_path, whole):
        status, _, error = job("run", *arguments(folder, out), "--resume")
        assert status == 2 and "no unfinished run to resume" in error
    status, _, error = job("run", *arguments(folder, whole))
    assert status == 2 and "holds another run" in error


def test_a_run_that_leaves_out_an_unusable_target_is_resumed(folder, job, tmp_path):
    quick = dict(recipe="paper", schedule="l2:400:1e-3", bin=4, steps=1)
    command = arguments(folder, tmp_path, target=f"{folder}/target.mrc,{folder}/nan.mrc", **quick)
    for resumed in (False, True):
        with at_chunk(1, signalled(signal.SIGTERM)):
            status, printed, error = job("run", *command)
        assert status == 143 and "nan.mrc skipped" in error
        assert ("Run resumed from" in printed) == resumed


def test_what_a_run_killed_at_its_very_end_left_over_is_no_run(folder, whole, tmp_path):
    out = shutil.copytree(whole, tmp_path / "out")
    (out / run_folder.UNFINISHED / "0_of_1/seed_0").mkdir(parents=True)
    resume.remove_leftovers(out)
    check_same(whole, out)
    mine = out / run_folder.UNFINISHED / "mine.txt"  # a folder of the user's own
    mine.parent.mkdir()
    mine.touch()
    resume.remove_leftovers(out)
    assert mine.is_file()


def test_what_a_run_was_writing_when_it_was_killed_is_gone_and_nothing_else(tmp_path):
    names = (
        ".0a1b2c3d.frame_01.mrc",
        "one/.0a1b2c3d.generated.mrc",
        ".config.json",
        "frame_01.mrc",
        "one/0a1b2c3d.mrc",
    )
    (tmp_path / "one").mkdir()
    for name in names:
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (1e9, 1e9))
    resume.remove_leftovers(tmp_path)  # there was no run
    assert all((tmp_path / name).exists() for name in names)
    (tmp_path / "unfinished" / "0_of_1").mkdir(parents=True)
    (tmp_path / ".3d2c1b0a.loss.csv").touch()  # by another process of this run
    resume.remove_leftovers(tmp_path)
    assert [(tmp_path / name).exists() for name in names] == [False, False, True, True, True]
    assert (tmp_path / ".3d2c1b0a.loss.csv").exists()


@pytest.mark.slow
def test_fits_from_several_seeds_go_on_where_they_stood(folder, job, tmp_path):
    """The first seed's is not made again, and the second one's goes on."""
    out, uninterrupted = tmp_path / "out", tmp_path / "whole"
    assert job("run", *arguments(folder, uninterrupted, seeds=2))[0] == 0
    with at_chunk(4, signalled(signal.SIGTERM), seed=1):
        status, _, error = job("run", *arguments(folder, out, seeds=2))
    assert status == 143 and "the fit from seed 1 is saved" in error
    status, printed, _ = job("run", *arguments(folder, out, seeds=2))
    assert status == 0
    assert "from the end of the last stage (seed 0" in printed
    assert re.search(r"resumed from step \d+ of stage \d+ \(seed 1", printed)
    check_same(uninterrupted, out)
    assert (out / "seed_spread.mrc").read_bytes() == (uninterrupted / "seed_spread.mrc").read_bytes()


def test_a_state_that_cannot_be_kept_is_told_once_and_the_fit_goes_on(folder, whole, job, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device", "somewhere")

    monkeypatch.setattr("cryotrans_jax.io.checkpoints.write", full)
    monkeypatch.setattr("cryotrans_jax.fit.result.Fit.save", lambda *_: None)
    status, _, error = job("run", *arguments(folder, tmp_path, checkpoint_minutes=0))
    assert status == 0 and error.count("could not be saved (No space left on device: somewhere)") == 1
    assert (tmp_path / "loss.csv").read_bytes() == (whole / "loss.csv").read_bytes()
    assert not (tmp_path / run_folder.UNFINISHED).exists()


def test_a_damaged_state_says_so(folder, job, tmp_path):
    with at_chunk(3, signalled(signal.SIGTERM)):
        job("run", *arguments(folder, tmp_path))
    for path in (tmp_path / run_folder.UNFINISHED).rglob("*"):
        if path.is_file() and "arrays" in path.parts:
            path.write_bytes(b"")
    status, _, error = job("run", *arguments(folder, tmp_path))
    assert status == 2 and "cannot be read" in error and "--noresume --overwrite" in error


def test_a_folder_that_cannot_be_written_to_says_so_before_the_fit():
    with tempfile.TemporaryDirectory() as place:
        os.chmod(place, 0o555)
        root = os.geteuid() == 0
        try:
            if root:  # who may do all
                os.seteuid(65534)
            for out in (Path(place), Path(place) / "new"):
                with pytest.raises(InputError, match="nothing can be written"):
                    run_folder.make_folder(out)
        finally:
            if root:
                os.seteuid(0)
            os.chmod(place, 0o755)


def test_a_disk_without_room_says_so_before_the_fit(folder, job, tmp_path, monkeypatch):
    small = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr("shutil.disk_usage", lambda _: small)
    status, _, error = job("run", *arguments(folder, tmp_path))
    assert status == 2 and "are free on the disk" in error and "--frames" in error


@pytest.mark.parametrize(
    "room, said", [(1e8, "take a machine with more"), (8.7e8, "voxels with 1 target take at least")]
)
def test_too_little_memory_says_so_before_the_fit(folder, job, tmp_path, monkeypatch, room, said):
    monkeypatch.setattr("cryotrans_jax.io.memory.available", lambda: room)
    monkeypatch.setattr("cryotrans_jax.io.memory.resident", lambda: 0.0)
    monkeypatch.setattr("cryotrans_jax.io.memory.BASE", 8.7e8)
    status, _, error = job("run", *arguments(folder, tmp_path))
    assert status == 2 and said in error and len(error.splitlines()) == 1 and not any(tmp_path.iterdir())


# Several targets


@pytest.mark.slow
def test_a_map_that_cannot_be_used_is_left_out_and_named(folder, whole, job, tmp_path):
    names = ",".join(str(folder / f"{name}.mrc") for name in ("target", "nan", "other"))
    status, _, error = job("run", *arguments(folder, tmp_path, target=names))
    last = error.splitlines()[-1]
    assert status == main.PARTLY and last.startswith("error: 1 of 3 targets failed") and "nan" in last
    assert json.loads((tmp_path / "nan/failed.json").read_text())["failed"].startswith(f"{folder}/nan.mrc holds 1")
    for name in ("target", "other"):
        assert (tmp_path / name / "generated.mrc").is_file()
        config = json.loads((tmp_path / name / "config.json").read_text())
        assert config["targets"] == ["target", "other"] and list(config["failed"]) == ["nan"]
        assert len(config["settings"]["target"]) == 2
    assert {path.name for path in tmp_path.iterdir()} == {"target", "nan", "other"}


@pytest.mark.slow
def test_one_sound_map_of_two_has_its_own_folder_still(folder, job, tmp_path):
    names = f"{folder}/nan.mrc,{folder}/target.mrc"
    assert job("run", *arguments(folder, tmp_path, target=names))[0] == main.PARTLY
    assert (tmp_path / "target/generated.mrc").is_file() and not (tmp_path / "generated.mrc").exists()


@pytest.mark.slow
def test_a_target_that_is_given_up_spoils_no_other(folder, job, tmp_path, monkeypatch):
    """One whose numbers go wrong again and again; the other's results are those of a run in which nothing does."""
    names = ",".join(str(folder / f"{name}.mrc") for name in ("target", "other"))
    assert job("run", *arguments(folder, tmp_path / "clean", target=names))[0] == 0
    real = Matched.make

    def make(self, problem, level, bin_, target):
        term = real(self, problem, level, bin_, target)
        return term.replace(target=np.nan * term.target) if target == 1 else term

    monkeypatch.setattr(Matched, "make", make)
    status, printed, error = job("run", *arguments(folder, tmp_path / "bad", target=names))
    assert status == main.PARTLY and "error: 1 of 2 targets failed" in error.splitlines()[-1]
    assert error.count("warning: other: the loss or the parameters are not finite numbers by step") == 4
    assert not (tmp_path / "bad/other/generated.mrc").exists()
    assert "not finite" in json.loads((tmp_path / "bad/other/failed.json").read_text())["failed"]
    for name in ("generated.mrc", "unexplained.mrc"):
        assert (tmp_path / "bad/target" / name).read_bytes() == (tmp_path / "clean/target" / name).read_bytes()


@pytest.mark.slow
def test_a_map_onto_itself_is_no_divergence(folder, job, tmp_path):
    status, _, error = job("run", *arguments(folder, tmp_path, target=folder / "initial.mrc"))
    assert status == 0 and "best parameters restored" not in error


@pytest.mark.slow
def test_runs_that_are_really_killed_end_with_the_same_files(folder, tmp_path):
    """kill -9 at random times, again and again, until the run comes to its end; several times."""
    random = np.random.default_rng(0)
    command = [sys.executable, "-m", "experiments.run", *arguments(folder, "OUT", checkpoint_minutes=0)]
    whole = tmp_path / "whole"
    subprocess.run([word.replace("OUT", str(whole)) for word in command], cwd=ROOT, check=True)
    for number in range(4):
        out = tmp_path / str(number)
        own = [word.replace("OUT", str(out)) for word in command]
        for kills in range(100):
            with contextlib.suppress(subprocess.TimeoutExpired):  # which kills it
                seconds = random.uniform(3, 12) * (1 + 0.1 * kills)
                ended = subprocess.run(own, cwd=ROOT, capture_output=True, text=True, timeout=seconds)
                break
        assert ended.returncode == 0 or "holds another run" in ended.stderr  # which was done when it was killed
        check_same(whole, out)


def test_the_keeper_writes_where_a_stage_begins_and_from_time_to_time(tmp_path, monkeypatch):
    now, written = [100.0], []
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    class Settings:
        checkpoint_minutes, seed, seeds = 1.0, 0, 1

    class At:
        def __init__(self, stage):
            self.state = type("S", (), {"stage": stage})

    keeper = resume.Keeper(tmp_path, Settings)
    monkeypatch.setattr(keeper, "write", lambda wait: (written.append(now[0]), setattr(keeper, "at", now[0])))
    for second, stage in ((1, 0), (59, 0), (61, 0), (65, 1), (75, 1), (80, 1), (134, 1), (136, 1)):
        now[0] = 100.0 + second
        keeper.keep(0, At(stage))
    assert written == [161.0, 175.0, 236.0]
