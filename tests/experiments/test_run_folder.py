"""Folders of results are replaced whole, read back only as they were written, and never written to through links."""

import json
import os
import shutil

import numpy as np
import pytest
from conftest import record

from cryotrans_jax.core.flow import Field
from cryotrans_jax.core.grid import Frame
from cryotrans_jax.core.velocity import Velocity
from cryotrans_jax.fit import recipes
from cryotrans_jax.fit.result import Fit
from cryotrans_jax.fit.state import initial_state
from cryotrans_jax.io.files import InputError, checksum
from cryotrans_jax.io.maps import write_map
from experiments import finished, run_folder

OUT_OF_ROOM = OSError(28, "No space left on device", "somewhere")


def contents(folder):
    """Every file below a folder with its bytes, and every link with where it leads."""
    every = [path for path in folder.rglob("*") if path.is_symlink() or path.is_file()]
    return {str(p.relative_to(folder)): os.readlink(p) if p.is_symlink() else p.read_bytes() for p in every}


@pytest.fixture(scope="module")
def made(tmp_path_factory, problem, maps):
    """The folder of a run of one target as predict and report read it, of a flow that nothing was fitted to."""
    folder = tmp_path_factory.mktemp("made")
    config, frame = recipes.default(problem.select([0])), Frame(np.array([-20.1, 12.0, 41.0]), 60.0)
    field = Field(Velocity(width=8, centre=0.5))
    Fit(config, field, initial_state(field, 0, 1).params, frame, 0.004, initial=maps[0]).save(folder / "checkpoint")
    for name in ("initial", "generated", "frame_00", "frame_01"):
        write_map(folder / f"{name}.mrc", maps[0])
    (folder / "metrics.json").write_text(json.dumps({"correlation_with_target_after": 0.5}))
    (folder / "loss.csv").write_text("stage,loss,step,map\n0,matched,0,1.5\n")
    record(folder, "initial.mrc", {"mask": None, "mask_radius": None, "frames": 2})
    return folder


@pytest.fixture
def run(made, tmp_path):
    """A copy of it."""
    return shutil.copytree(made, tmp_path / "run")


def refused(job, *command):
    """The one sentence with which a command refuses."""
    status, _, error = job(*command)
    assert status == 2 and error.startswith("error: ") and error.count("\n") == 1, error
    return error


# Replaced whole


class Killed(BaseException):
    """As kill -9 is: nothing is done any more."""


@pytest.fixture
def killed(monkeypatch):
    """A function that makes the n-th call that changes the disk, and all after it, end the program."""
    real = {name: getattr(os, name) for name in ("rename", "replace", "link", "unlink", "mkdir", "rmdir")}

    def at(number):
        calls = []

        def dead(function):
            def call(*arguments, **others):
                calls.append(1)
                if len(calls) >= number:
                    raise Killed
                return function(*arguments, **others)

            return call

        for name, function in real.items():
            monkeypatch.setattr(os, name, dead(function))

    yield at
    for name, function in real.items():
        monkeypatch.setattr(os, name, function)


def change(folder):
    """Replaces, removes and adds a result each."""
    (folder / "frame_00.mrc").unlink()
    (folder / "frame_01.mrc").unlink()
    (folder / "frame_01.mrc").write_text("new")
    (folder / "frame_02.mrc").write_text("new")


def results_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def earlier(folder):
    folder.mkdir()
    for name in ("frame_00.mrc", "frame_01.mrc", "config.json", "mine.txt"):
        (folder / name).write_text(f"old {name}")
    return results_of(folder)


@pytest.mark.parametrize("error", [OUT_OF_ROOM, KeyboardInterrupt()])
def test_a_block_that_fails_leaves_the_earlier_results(tmp_path, error):
    before = earlier(tmp_path / "out")
    with pytest.raises(type(error)), run_folder.replacing(tmp_path / "out", "frames"):
        change(tmp_path / "out")
        raise error
    assert contents(tmp_path / "out") == before


def test_a_program_killed_at_any_moment_leaves_the_earlier_results_or_the_new_ones(tmp_path, killed):
    """Also one that is killed while it puts the earlier ones back; what is halfway is settled by the next one."""
    outcomes, number = [], 0
    while outcomes.count("done") < 1:
        number += 1
        folder = tmp_path / str(number)
        before = earlier(folder)
        killed(number)
        try:
            with run_folder.replacing(folder, "frames"):
                change(folder)
            outcomes.append("done")
        except Killed:
            outcomes.append("killed")
        for later in range(1, 20):
            killed(later)
            try:
                run_folder.recover(folder)
                break
            except Killed:
                continue
        killed(10**9)  # the program is started anew
        run_folder.recover(folder)
        new = before | {"frame_01.mrc": b"new", "frame_02.mrc": b"new"}
        del new["frame_00.mrc"]
        assert contents(folder) in ((before, new) if outcomes[-1] == "killed" else (new,))
    assert number > 8


def test_a_run_killed_at_any_moment_while_it_replaces_another_loses_nothing(tmp_path, killed):
    """Its target folders, checkpoints and results in another frame, at every step of replacing and restoring them."""
    done, number = False, 0
    while not done:
        number += 1
        out = tmp_path / str(number)
        (out / "near/target_frame").mkdir(parents=True)
        (out / "near/checkpoint/arrays").mkdir(parents=True)
        for name in ("generated.mrc", "near/config.json", "near/target_frame/frame_00.mrc", "near/checkpoint/arrays/a"):
            (out / name).write_text(f"old {name}")
        (out / "near/target_frame/mine.txt").write_text("mine")
        before = contents(out)
        killed(number)
        try:
            with run_folder.replacing_run([out, out / "near"]):
                assert not (out / "near/target_frame/frame_00.mrc").exists()
                for name in ("near/config.json", "near/frame_07.mrc", "loss.csv", "near/assembly/frame_00.mrc"):
                    (out / name).parent.mkdir(exist_ok=True)
                    (out / name).write_text("new")
                raise OUT_OF_ROOM
        except OSError:
            done = True
        except Killed:
            pass
        killed(10**9)  # the program is started anew
        run_folder.recover(out)
        assert contents(out) == before
    assert number > 10


def test_a_run_replaces_its_own_targets_alone(tmp_path):
    """Of two processes of a run each has its own targets; files of the user's stay."""
    for name in ("near", "far"):
        (tmp_path / name / "assembly").mkdir(parents=True)
        for file in ("config.json", "mine.txt", "assembly/generated.mrc", "assembly/mine.txt"):
            (tmp_path / name / file).write_text(name)
    with run_folder.replacing_run([tmp_path / "near"]):
        (tmp_path / "near/loss.csv").write_text("new")
    far = {f"far/{file}": b"far" for file in ("config.json", "mine.txt", "assembly/generated.mrc", "assembly/mine.txt")}
    near = {"near/loss.csv": b"new", "near/mine.txt": b"near", "near/assembly/mine.txt": b"near"}
    assert contents(tmp_path) == far | near


def test_a_table_that_grows_leaves_the_earlier_one_until_it_is_whole(tmp_path):
    (tmp_path / "validate.json").write_text("old")
    (tmp_path / "validate.md").write_text("old")
    with pytest.raises(OSError), run_folder.growing(tmp_path, "validation") as partial:
        (partial / "validate.json").write_text("first row")
        raise OUT_OF_ROOM
    found = {"validate.json": b"old", "validate.md": b"old", "partial/validate.json": b"first row"}
    assert contents(tmp_path) == found
    with run_folder.growing(tmp_path, "validation") as partial:
        (partial / "validate.json").write_text("all rows")
    assert contents(tmp_path) == {"validate.json": b"all rows"}


def test_frames_that_cannot_be_written_leave_the_earlier_ones(run, job, monkeypatch):
    command = "predict", f"--run_dir={run}", "--frames=2"
    assert job(*command)[0] == 0
    before, written = contents(run), []

    def full(path, map_):
        if written:
            raise OUT_OF_ROOM
        written.append(path)
        write_map(path, map_)

    monkeypatch.setattr("experiments.frames.write_map", full)
    assert "No space left on device" in refused(job, *command, "--overwrite")
    assert written and contents(run) == before
    monkeypatch.setattr("experiments.frames.write_map", write_map)
    assert job("predict", f"--run_dir={run}", f"--out_dir={run}/predict_2", "--frames=1", "--overwrite")[0] == 0
    assert {path.name for path in (run / "predict_2").iterdir()} == {"frame_00.mrc", "generated.mrc"}


def test_a_report_that_cannot_be_written_leaves_the_earlier_one(run, job, monkeypatch):
    for name in ("report.html", "view.cxc", "displacement.mrc"):
        (run / name).write_text("old")
    run_folder.sign(run)
    before = contents(run)

    def tell(told):
        for name in ("metrics.json", "report.html", "folded.mrc"):
            (told.folder / name).unlink(missing_ok=True)
            (told.folder / name).write_text("{}")
        raise OUT_OF_ROOM

    monkeypatch.setattr("experiments.pages.reading.read_story", lambda folder, *_: type("Told", (), {"folder": folder}))
    monkeypatch.setattr("experiments.pages.story.write_story", tell)
    assert "No space left on device" in refused(job, "report", f"--run_dir={run}")
    assert contents(run) == before


# Checksums


def test_what_is_written_again_has_its_checksum_and_what_was_damaged_keeps_the_old_one(run):
    (run / "generated.mrc").write_bytes(b"damaged")
    with run_folder.replacing(run, "records"):
        (run / "metrics.json").write_text('{"new": 1}')
        (run / "loss.csv").unlink()
        (run / "view.cxc").write_text("new")
    assert finished.read_scores(run) == {"new": 1}
    sums = run_folder.read_checksums(run)
    assert sums["view.cxc"] == checksum(run / "view.cxc") and "loss.csv" not in sums
    with pytest.raises(InputError, match="generated.mrc is damaged"):
        finished.load_map(run, "generated.mrc")


# Damaged


@pytest.mark.parametrize("name", ["config.json", "metrics.json", "generated.mrc", "frame_00.mrc", "loss.csv"])
def test_a_damaged_file_that_is_read_back_is_named(run, job, name):
    path = run / name
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 4
    for damaged in (flipped, whole[:-1], whole[: len(whole) // 2], b"", b"{", b"[]", b"null"):
        path.write_bytes(damaged)
        commands = ("report", "predict") if name == "config.json" else ("report",)
        for command in commands:
            assert f"{path} is damaged" in refused(job, command, f"--run_dir={run}")
    path.unlink()
    path.mkdir()
    for command in commands:
        assert str(path) in refused(job, command, f"--run_dir={run}")


@pytest.mark.parametrize("name", ["metrics.json", "generated.mrc", "checkpoint", "SHA256SUMS"])
def test_a_missing_file_is_named(run, job, name):
    run_folder.remove(run / name)
    for command in ("report", "predict") if name in ("checkpoint", "SHA256SUMS") else ("report",):
        assert name in refused(job, command, f"--run_dir={run}")


def test_a_damaged_checkpoint_is_named(run, job):
    for path in sorted(path for path in (run / "checkpoint").rglob("*") if path.is_file())[::4]:
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        for command in ("report", "predict"):
            assert f"{run}/checkpoint" in refused(job, command, f"--run_dir={run}")
        path.write_bytes(whole)
    before = contents(run)
    assert not any("predict" in name for name in before) and not (run / "running.lock").exists()


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "null", '{"settings": []}', '{"settings": {}, "versions": {}}', None]
)
def test_a_damaged_unfinished_run_is_named_and_can_be_begun_anew(made, job, tmp_path, content):
    own = tmp_path / "out/unfinished/0_of_1"
    own.mkdir(parents=True)
    if content is None:
        (own / "run.json").mkdir()
    else:
        (own / "run.json").write_text(content)
    command = f"--initial={made}/initial.mrc", f"--target={made}/none.mrc", f"--out_dir={tmp_path / 'out'}"
    error = refused(job, "run", *command)
    assert f"{own}/run.json is damaged: begin the run anew, with --noresume --overwrite" in error
    error = refused(job, "run", *command, "--noresume", "--overwrite")
    assert "none.mrc" in error and not own.exists()


# Links


@pytest.fixture
def outside(tmp_path):
    """A folder of the user's with files that are named as results are."""
    folder = tmp_path / "outside"
    (folder / "arrays").mkdir(parents=True)
    for name in ("frame_00.mrc", "config.json", "report.html", "run.json", "mine.txt", "arrays/a", ".0a1b2c3d.x.mrc"):
        (folder / name).write_text(name)
    os.utime(folder / ".0a1b2c3d.x.mrc", (1e9, 1e9))
    return folder


LINKS = [  # a place in a run's folder, and where in the user's folder it leads
    ("frame_00.mrc", "frame_00.mrc"),
    ("generated.mrc", "none"),
    ("metrics.json", "mine.txt"),
    ("report.html", "report.html"),
    ("SHA256SUMS", "mine.txt"),
    ("checkpoint", "."),
    ("target_frame", "."),
    ("assembly", "none"),
    ("inputs", "."),
    ("inputs/a.mrc", "frame_00.mrc"),
    ("unfinished", "."),
    ("unfinished/0_of_1", "."),
    ("unfinished/0_of_1/run.json", "run.json"),
    (".earlier_run", "."),
    ("unfinished/0_of_1/seed_0", "."),
    (".earlier_frames", "."),
    (".checkpoint.old", "."),
    ("running.lock", "mine.txt"),
]


@pytest.mark.parametrize("place, to", LINKS)
def test_nothing_is_written_moved_or_removed_through_a_link(run, outside, job, place, to):
    """By a run that begins or goes on, by predict in the run's own folder, and by report."""
    link = run / place
    run_folder.remove(link)
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(outside / to)
    before, theirs = contents(run), contents(outside)
    maps = f"--initial={run}/initial.mrc", f"--target={run}/none.mrc"
    for command in (
        ("run", *maps, f"--out_dir={run}", "--overwrite"),
        ("run", *maps, f"--out_dir={run}", "--overwrite", "--noresume"),
        ("run", *maps, f"--out_dir={run}", "--resume"),
        ("predict", f"--run_dir={run}", f"--out_dir={run}", "--frames=1", "--overwrite"),
        ("report", f"--run_dir={run}"),
    ):
        assert f"{link} is a link" in refused(job, *command)
        assert contents(outside) == theirs and contents(run) == before


@pytest.mark.parametrize("place", ["predict_2", "predict_2/frame_00.mrc", "predict_2/generated.mrc"])
def test_predict_follows_no_link(run, outside, job, place):
    (run / place).parent.mkdir(exist_ok=True)
    (run / place).symlink_to(outside if place == "predict_2" else outside / "frame_00.mrc")
    theirs = contents(outside)
    for command in ((), ("--overwrite",)):
        refused(job, "predict", f"--run_dir={run}", "--frames=2", *command)
        assert contents(outside) == theirs
    assert f"{run / place} is a link" in refused(job, "predict", f"--run_dir={run}", "--frames=2", "--overwrite")


def test_no_report_is_written_to_the_folder_of_a_target_that_is_a_link(run, outside, job, tmp_path):
    (tmp_path / "several").mkdir()
    (tmp_path / "several/near").symlink_to(run)
    before = contents(run)
    assert "several/near is a link" in refused(job, "report", f"--run_dir={tmp_path / 'several'}")
    assert contents(run) == before


def test_the_folder_itself_may_be_a_link_and_may_hold_links_of_the_user_s(run, outside, job, tmp_path):
    (tmp_path / "link").symlink_to(run)
    (run / "mine.mrc").symlink_to(outside / "frame_00.mrc")
    status, _, error = job("predict", f"--run_dir={tmp_path / 'link'}", "--frames=1")
    assert status == 0, error
    assert (run / "predict_1/generated.mrc").is_file() and (run / "mine.mrc").is_symlink()


# One program at a time


@pytest.mark.parametrize("command", ["run", "predict", "report"])
def test_a_folder_in_use_is_left_alone(run, job, command):
    """By whatever writes to it."""
    owner = run_folder.lock.this_process() | {"pid": os.getppid(), "started": 0.0}
    (run / "running.lock").write_text(json.dumps(owner))
    before = contents(run)
    given = [f"--run_dir={run}"]
    if command == "run":
        given = [f"--initial={run}/initial.mrc", f"--target={run}/none.mrc", f"--out_dir={run}", "--overwrite"]
    assert f"is in use by process {os.getppid()}" in refused(job, command, *given)
    assert contents(run) == before
