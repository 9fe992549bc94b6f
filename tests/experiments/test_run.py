"""The jobs run and predict: every promised file, the same each time, and bad input explained in one line."""

import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cxc
import gemmi
import mrcfile
import numpy as np
import pytest

from cryotrans_jax.density import similarity, simulation
from cryotrans_jax.density.transform import Transform
from cryotrans_jax.fit.options import Resolutions, Thresholds
from cryotrans_jax.fit.recipes import Paper
from cryotrans_jax.fit.record import from_plain
from cryotrans_jax.io import atoms
from cryotrans_jax.io.files import InputError, checksum
from cryotrans_jax.io.maps import Map, read_map, same_grid, write_map
from cryotrans_jax.scores import metrics, qscore
from experiments import exchange, inputs, load, results, run_folder
from experiments.case import Case, replaced_folders
from experiments.settings import InputSettings

ROOT = Path(__file__).parents[2]
STEPS = 0.1  # of the default recipe; one number for all runs, which then share compiled programs
FRAMES = 3
QUICK = dict(recipe="paper", schedule="l2:10:1e-3", bin=4, steps=1.0)  # ten steps, for what no fit's quality matters to
TOLD = {
    "unexplained.mrc",
    "displacement.mrc",
    "fsc.csv",
    "fsc.xml",
    "view.cxc",
    "README.txt",
}  # for other programs, after every run
TOLD |= {"error.mrc", "displacement.npz"} | {f"displacement_{axis}.mrc" for axis in "xyz"}
WITH_MODEL = {"errors.svg", "errors.png", "refine_start.cif", "isolde.cxc", "phenix.eff"}
PICTURES = {f"{name}.{kind}" for name in ("fsc", "loss", "slices") for kind in ("svg", "png")}
PICTURES |= {"report.html", "morph.gif", "morph.mp4"}
TURN = np.array([[0.0, -1, 0], [0.8, 0, -0.6], [0.6, 0, 0.8]])  # a rotation


pytestmark = pytest.mark.usefixtures("first_stages")  # test_snapshots.py fits by the whole recipe


@pytest.fixture(scope="module")
def folder(tmp_path_factory, maps, models):
    """Good inputs, bad ones, and entries of a data folder."""
    folder = tmp_path_factory.mktemp("run")
    for name, map, model in zip(("initial", "target", "between"), maps, models, strict=True):
        write_map(folder / f"{name}.mrc", map)
        atoms.write_model(folder / f"{name}.cif", model)
    initial = maps[0]
    write_map(folder / "elsewhere.mrc", Map(initial.density, initial.voxel_size, initial.origin + 100))
    write_map(folder / "flat.mrc", Map(0 * initial.density + 1, initial.voxel_size, initial.origin))
    whole = (folder / "initial.mrc").read_bytes()
    (folder / "cut.mrc").write_bytes(whole[:-100])
    (folder / "text.mrc").write_text("ATOM\n" * 500)
    (folder / "nan.mrc").write_bytes(whole[:-4] + np.float32(np.nan).tobytes())
    atoms.write_model(folder / "outside.cif", atoms.with_positions(models[0], atoms.positions(models[0]) + 20))
    data = folder / "data"
    data.mkdir()
    away = [atoms.with_positions(model, atoms.positions(model) @ TURN.T + [30, -20, 10]) for model in models[1:]]
    for name, model in zip(("1ABC.pdb", "2DEF.pdb", "3ghi.cif"), (models[0], *away), strict=True):
        atoms.write_model(data / name, model)
    return folder


def arguments(folder, out_dir, **others):
    """The arguments of a good run."""
    flags = dict(initial=folder / "initial.mrc", target=folder / "target.mrc", out_dir=out_dir)
    flags |= dict(data_dir=folder / "data", steps=STEPS, frames=FRAMES, align="none") | others
    return [f"--{name}={value}" for name, value in flags.items() if value is not None]


@pytest.fixture(scope="module")
def run(folder, job):
    """The folder of a run with model and reference."""
    out_dir = folder / "out"
    files = dict(model=folder / "initial.cif", reference=folder / "target.cif")
    status, out, error = job("run", *arguments(folder, out_dir, **files), "--noidealise")
    assert status == 0, error
    assert out.endswith(f"open {out_dir}/report.html in a browser, or {out_dir}/view.cxc in ChimeraX\n")
    return out_dir


def test_all_maps_of_a_side_have_the_voxel_size_that_is_given_for_it(tmp_path, maps):
    """Also the masks, half-maps, parts, and a reference whose own header has none."""
    size = [float(d) for d in maps[0].voxel_size]
    ones = Map(np.ones_like(maps[0].density), maps[0].voxel_size, maps[0].origin)
    ones.density[0] = 0
    named = dict(initial=maps[0], target=maps[1], mask=ones, labels=ones, half1=maps[1], half2=maps[1], truth=maps[1])
    for name, map_ in named.items():
        write_map(tmp_path / f"{name}.mrc", map_)
        with mrcfile.open(tmp_path / f"{name}.mrc", "r+") as file:
            file.header.cella = (0, 0, 0)
    path = {name: str(tmp_path / f"{name}.mrc") for name in named}
    settings = InputSettings(
        initial=path["initial"], target=[path["target"]], mask=path["mask"], target_mask=[path["mask"]],
        target_half1=[path["half1"]], reference=[path["truth"]], parts=path["labels"], voxel_size=size,
        target_voxel_size=size, align="none", micelle="keep",
    )  # fmt: skip
    case = load.load_case(settings, tmp_path)
    load.add_parts(case, settings)
    for map_ in (case.initial, *case.targets, *case.halves[0], *case.references):
        assert same_grid(map_, maps[0]) is None
    for missing in ("voxel_size", "target_voxel_size"):
        with pytest.raises(InputError, match="no voxel size"):
            load.load_case(replace(settings, **{missing: None}), tmp_path)


def contents(folder):
    """Every file below a folder, with its bytes."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def losses(folder):
    """The rows of loss.csv, as lists of texts."""
    with (folder / "loss.csv").open(newline="") as file:
        return list(csv.reader(file))


def test_what_is_unexplained_is_what_the_target_has_more(run, folder):
    """Its map and the generated one, blurred and scaled, make the target; the correlation is that of the two."""
    scores, chosen = (json.loads((run / name).read_text()) for name in ("metrics.json", "config.json"))
    target = read_map(folder / "target.mrc")
    left, generated = (read_map(run / f"{name}.mrc") for name in ("unexplained", "generated"))
    end, goal = metrics.matched(generated, target, chosen["chosen"]["blur_variance"][0])
    np.testing.assert_allclose(left.density, goal - end, atol=1e-5 * goal.max())
    assert scores["correlation_matched_after"] == pytest.approx(similarity.correlation(end, goal), abs=1e-5)
    assert scores["correlation_matched_before"] < scores["correlation_matched_after"]
    assert 0 <= scores["target_lacks"] < 1


def test_a_run_writes_all_that_it_promises(run, folder):
    frames, carried = ([f"{kind}_{k:02d}" for k in range(FRAMES)] for kind in ("frame", "model"))
    expected = {f"{name}.mrc" for name in (*frames, "generated")} | {f"{name}.cif" for name in (*carried, "generated")}
    expected |= {"config.json", "loss.csv", "metrics.json", "geometry.csv", "trajectory.pdb", "SHA256SUMS"}
    expected |= TOLD | PICTURES
    expected |= {"transform.json", "parts.mrc", "movie.cxc"}
    expected |= {"displacement.cif", "fsc_reference.xml"}  # with a model, with a reference
    expected |= WITH_MODEL
    assert {path.name for path in run.iterdir()} == expected | {"checkpoint"}
    initial = read_map(folder / "initial.mrc")
    for name in (*frames, "generated"):
        assert mrcfile.validate(run / f"{name}.mrc", print_file=io.StringIO())
        assert same_grid(read_map(run / f"{name}.mrc"), initial) is None
        with mrcfile.open(run / f"{name}.mrc") as file:  # as another program sees it
            np.testing.assert_allclose(file.voxel_size.item(), initial.voxel_size, rtol=1e-6)
            np.testing.assert_allclose(file.header.origin.item(), initial.origin, rtol=1e-6)
    assert (run / "generated.mrc").read_bytes() == (run / "frame_02.mrc").read_bytes()
    assert (run / "generated.cif").read_bytes() == (run / "model_02.cif").read_bytes()


def test_frames_and_models_start_at_the_input_and_approach_the_target(run, folder):
    initial, target, first, last = (
        read_map(path).density
        for path in (folder / "initial.mrc", folder / "target.mrc", run / "frame_00.mrc", run / "generated.mrc")
    )
    inside = initial >= json.loads((run / "config.json").read_text())["chosen"]["initial"]["threshold"]
    np.testing.assert_allclose(first[inside], initial[inside], atol=1e-5 * initial.max())  # float32

    def correlation(a):
        return np.corrcoef(a.ravel(), target.ravel())[0, 1]

    assert correlation(last) > 0.5 + 0.5 * correlation(initial)
    start, end = (atoms.positions(atoms.read_model(folder / f"{name}.cif")) for name in ("initial", "target"))
    moved = [atoms.positions(atoms.read_model(run / f"model_{k:02d}.cif")) for k in range(FRAMES)]
    np.testing.assert_allclose(moved[0], start, atol=1e-3)  # mmCIF keeps thousandths of an angstrom

    def rmsd(a):
        return np.sqrt(((a - end) ** 2).sum(1).mean())

    assert rmsd(moved[2]) < rmsd(moved[1]) < rmsd(moved[0]) and rmsd(moved[2]) < 0.6 * rmsd(moved[0])
    scores = json.loads((run / "metrics.json").read_text())
    assert scores["rmsd_after"] == pytest.approx(rmsd(moved[2]), abs=2e-3)
    assert scores["rmsd_before"] == pytest.approx(rmsd(start), abs=2e-3)
    assert scores["correlation_with_target_after"] == pytest.approx(correlation(last), abs=1e-5)
    assert scores["correlation_with_target_before"] == pytest.approx(correlation(first), abs=1e-4)
    numbers = [value for part in scores["parts"] for value in part.values() if not isinstance(value, list)]
    numbers += [value for value in scores.values() if not isinstance(value, str | list)]
    assert len(scores["parts"]) >= 2 and np.isfinite(numbers).all()
    assert scores["consistency"] < 1e-2  # Å: the inverse flow finds the way back


def test_the_settings_written_down_are_the_flags_of_the_run(run):
    assert set(json.loads((run / "config.json").read_text())["settings"]) == {
        "initial", "target", "data_dir", "initial_threshold", "target_threshold", "initial_resolution",
        "voxel_size", "target_voxel_size", "all_models",
        "target_resolution", "recipe", "bin", "seed", "steps", "frames", "model", "render", "overwrite", "out_dir",
        "reference", "deterministic", "distributed", "coordinator", "processes", "process", "seeds", "report",
        "mass_kda", "mask", "target_mask", "mask_radius", "fetch", "emdb_api", "emdb_files", "pdb_files", "max_gb",
        "waypoint", "parts", "part_rigidity", "error", "withhold", "check",
        "idealise", "align", "still", "check_hand", "frame", "target_half1",
        "target_half2", "symmetry", "symmetry_axis", "symmetry_centre", "one_unit", "schedule", "width",
        "resume", "checkpoint_minutes", "micelle", "invert", "config",
    }  # fmt: skip


def test_a_run_is_repeated_from_its_record_to_the_same_bytes(folder, run, job, tmp_path, monkeypatch):
    """In another folder; and with what is edited there."""
    monkeypatch.chdir(tmp_path)
    status, _, error = job("run", f"--config={run}/config.json", "--out_dir=again", "--noreport")
    assert status == 0, error
    for name, data in contents(run).items():
        if Path(name).suffix in (".mrc", ".cif", ".csv", ".pdb"):
            assert (tmp_path / "again" / name).read_bytes() == data, name
    record = json.loads((run / "config.json").read_text())
    record["settings"]["frames"], record["recipe"]["schedule"][0]["steps"] = 2, 7
    record["preparation"]["thresholds"]["fraction"] = 0.9
    (tmp_path / "edited.json").write_text(json.dumps(record))
    status, _, error = job("run", "--config=edited.json", "--out_dir=edited", "--noreport")
    assert status == 0, error
    with (tmp_path / "edited/loss.csv").open() as file:
        assert sum(row["stage"] == "0" for row in csv.DictReader(file)) == 7
    assert (tmp_path / "edited/frame_01.mrc").exists() and not (tmp_path / "edited/frame_02.mrc").exists()
    shares = [
        json.loads(path.read_text())["chosen"]["initial"]["share_of_mass"]
        for path in (tmp_path / "edited/config.json", run / "config.json")
    ]
    assert shares[0] == pytest.approx(0.9, abs=0.01) and shares[1] > 0.95


def test_a_record_that_cannot_be_repeated_is_refused(run, job, tmp_path):
    (tmp_path / "none.json").write_text("{}")
    (tmp_path / "text.json").write_text("stage")
    record = json.loads((run / "config.json").read_text())
    record["settings"]["frames"] = -3
    (tmp_path / "frames.json").write_text(json.dumps(record))
    for flags, sentence in (
        ([f"--config={tmp_path}/none.json"], "has no 'settings': give the config.json of a run"),
        ([f"--config={tmp_path}/text.json"], "is not JSON"),
        ([f"--config={tmp_path}/gone.json"], "No such file"),
        ([f"--config={tmp_path}/frames.json"], "the setting 'frames'"),
        (
            [f"--config={run}/config.json", "--steps=0.5"],
            "--steps is given with --config, which has the whole schedule",
        ),
    ):
        status, out, error = job("run", *flags, f"--out_dir={tmp_path}/out")
        assert status == 2 and sentence in error and error.count("\n") == 1, error
        assert not (tmp_path / "out").exists()


def test_what_decided_a_run_is_written_down(run):
    saved = json.loads((run / "config.json").read_text())
    assert saved["settings"]["steps"] == STEPS and saved["settings"]["seed"] == 0
    for name, entry in saved["inputs"].items():
        assert entry["sha256"] == checksum(name) and Path(entry["file"]) == Path(name).resolve()
    assert saved["versions"]["jax"].count(".") == 2


def test_the_losses_of_every_step_are_written_down_and_fall(run):
    head, *rows = losses(run)
    assert head == ["stage", "loss", "step", "target"]
    stages = from_plain(json.loads((run / "config.json").read_text())["recipe"]).stages
    places = [[str(k), s.label, str(step)] for k, s in enumerate(stages) for step in range(s.steps)]
    assert [row[:3] for row in rows] == places
    for stage in range(len(stages)):
        values = [float(value) for number, *_, value in rows if number == str(stage)]
        assert values[-1] < values[0]


def test_the_same_seed_gives_the_same_bytes(run, folder, job, tmp_path):
    files = dict(model=folder / "initial.cif", reference=folder / "target.cif")
    assert job("run", *arguments(folder, tmp_path, **files), "--noidealise")[0] == 0
    ours, theirs = contents(run), contents(tmp_path)
    of_the_day = ("config.json", "metrics.json", "report.html", "SHA256SUMS")
    of_the_day += ("view.cxc", "isolde.cxc", "phenix.eff")  # name the target by its path from the folder
    for name in ours:
        if name not in of_the_day and not name.startswith("checkpoint"):
            assert ours[name] == theirs[name], name
    a, b = (json.loads(found["metrics.json"]) | {"peak_mib": 0} for found in (ours, theirs))
    assert a == b


def test_several_seeds_say_where_they_differ(folder, job, tmp_path):
    """The results are those of the first seed, with a map of the spread beside them."""
    first, out = tmp_path / "first", tmp_path / "seeds"
    assert job("run", *arguments(folder, first, **QUICK, report="false"))[0] == 0
    status, printed, error = job("run", *arguments(folder, out, **QUICK, report="false", seeds=2))
    assert status == 0, error
    scores = json.loads((out / "metrics.json").read_text())
    assert 0 < scores["seed_spread_median"] <= scores["seed_spread_95"] < 20
    assert "spread between seeds: median " in printed
    spread, generated = read_map(out / "seed_spread.mrc"), read_map(out / "generated.mrc")
    assert not same_grid(spread, generated)
    assert (out / "generated.mrc").read_bytes() == (first / "generated.mrc").read_bytes()


def test_a_waypoint_is_approached_and_scored_at_its_time(folder, job, tmp_path):
    """Half way between the states by the models, which the flow is to pass at a quarter of the way."""
    given = dict(
        recipe="paper", schedule="l2:75:5e-3", bin=2, steps=1.0, frames=5, waypoint=f"{folder}/between.mrc@0.25"
    )
    given["report"] = "false"
    status, printed, error = job("run", *arguments(folder, tmp_path, **given))
    assert status == 0, error
    (passed,) = json.loads((tmp_path / "metrics.json").read_text())["waypoints"]
    assert (passed["waypoint"], passed["time"]) == (f"{folder}/between.mrc", 0.25)
    assert passed["correlation_after"] > 0.5 + 0.5 * passed["correlation_before"]
    quarter, between = (read_map(path).density for path in (tmp_path / "frame_01.mrc", folder / "between.mrc"))
    assert passed["correlation_after"] == pytest.approx(np.corrcoef(quarter.ravel(), between.ravel())[0, 1], abs=1e-4)
    assert re.search(rf"correlation with the waypoint at 0.25 +{passed['correlation_before']:.3f}", printed)
    assert "waypoint map (time 0.25):\n  threshold: " in printed
    saved = json.loads((tmp_path / "config.json").read_text())
    assert [each["time"] for each in saved["waypoints"]] == [0.25] and f"{folder}/between.mrc" in saved["inputs"]
    assert job("predict", f"--run_dir={tmp_path}", "--frames=5")[0] == 0
    assert (tmp_path / "predict_5/frame_01.mrc").read_bytes() == (tmp_path / "frame_01.mrc").read_bytes()


@pytest.mark.slow  # files of parts are read in test_partition.py, and predicted by as the bodies of `run` are
def test_parts_are_written_and_make_the_same_morph_when_they_are_read(folder, job, tmp_path, monkeypatch):
    """The chain's halves, by residues of the model and then by the map of them; and the model goes with the map."""
    given = QUICK | dict(frames=2, model=folder / "initial.cif", report="false")
    out, again = tmp_path / "out", tmp_path / "again"
    status, printed, error = job("run", *arguments(folder, out, parts="A:1-8;A:9-16", **given))
    assert status == 0, error
    parts, initial = read_map(out / "parts.mrc"), read_map(folder / "initial.mrc")
    assert same_grid(parts, initial) is None and set(np.unique(parts.density)) == {0, 1, 2}
    level = json.loads((out / "config.json").read_text())["chosen"]["initial"]["threshold"]
    assert (parts.density[initial.density >= level] > 0).all()
    moves = json.loads((out / "metrics.json").read_text())["parts"]
    assert sum(part["share_of_mass"] for part in moves) == pytest.approx(1)
    assert re.search(rf"   2 +{100 * moves[1]['share_of_mass']:.0f} +{moves[1]['turn']:.1f} ", printed)
    status, _, error = job("run", *arguments(folder, again, parts=out / "parts.mrc", **given))
    assert status == 0, error
    for name in ("generated.mrc", "generated.cif", "parts.mrc", "loss.csv"):
        assert (again / name).read_bytes() == (out / name).read_bytes()
    assert str(out / "parts.mrc") in json.loads((again / "config.json").read_text())["inputs"]
    monkeypatch.chdir(folder)  # where the label map's name, given from elsewhere, means nothing
    record = json.loads((again / "config.json").read_text())
    name = record["settings"]["parts"] = "labels.mrc"
    record["inputs"][name] = record["inputs"].pop(str(out / "parts.mrc"))
    (tmp_path / "record.json").write_text(json.dumps(record))
    status, _, error = job("run", f"--config={tmp_path}/record.json", f"--out_dir={tmp_path}/repeated")
    assert status == 0, error
    assert (tmp_path / "repeated/generated.mrc").read_bytes() == (out / "generated.mrc").read_bytes()
    assert job("predict", f"--run_dir={again}", "--frames=2", f"--model={folder}/initial.cif")[0] == 0
    assert (again / "predict_2/generated.mrc").read_bytes() == (out / "generated.mrc").read_bytes()


@pytest.mark.slow
def test_deterministic_runs_make_the_same_bytes_beside_what_the_user_has_told_xla(folder, tmp_path):
    """In programs of their own, since XLA reads its flags once, and ends the program at one that it does not know."""
    program = "import os, experiments.run as r; r.command(); print(os.environ['XLA_FLAGS'])"
    users = "--xla_force_host_platform_device_count=1"
    for name in ("a", "b"):
        given = arguments(folder, tmp_path / name, recipe="paper", bin=4, steps=0.002, frames=2)
        command = [sys.executable, "-c", program, *given, "--deterministic"]
        environment = os.environ | {"XLA_FLAGS": users}
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1].split() == [users, "--xla_gpu_deterministic_ops=true"]
    for file in ("frame_01.mrc", "generated.mrc", "loss.csv"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert json.loads((tmp_path / "a/config.json").read_text())["settings"]["deterministic"] is True


@pytest.mark.parametrize("users", [None, "--xla_force_host_platform_device_count=1"])
@pytest.mark.parametrize("given, flags", [([], None), (["--deterministic"], "--xla_gpu_deterministic_ops=true")])
def test_xla_is_told_only_if_asked_to(folder, job, tmp_path, monkeypatch, given, flags, users):
    """After what the user has told it."""
    monkeypatch.setenv("XLA_FLAGS", users or "")
    if users is None:
        monkeypatch.delenv("XLA_FLAGS")
    assert job("run", *arguments(folder, tmp_path, target="none.mrc"), *given)[0] == 2
    assert os.environ.get("XLA_FLAGS") == (" ".join(filter(None, [users, flags])) or None)


def test_flags_and_names_reach_the_fit(folder, job, tmp_path, monkeypatch, maps):
    taken = {}

    def stop(initial, targets, options, **others):
        taken.update(options=options, maps=[initial, *targets])
        raise InputError("enough")

    monkeypatch.setattr("experiments.results.morph", stop)
    write_map(tmp_path / "1ABC_8A.mrc", maps[0])
    given = dict(recipe="paper", seed=3, steps=0.5, initial_threshold=0.01, target_threshold=0.02, bin=4)
    both = f"{folder}/target.mrc,{folder}/between.mrc"
    status, _, error = job("run", *arguments(folder, tmp_path, initial=tmp_path / "1ABC_8A.mrc", target=both, **given))
    assert (status, error) == (2, "error: enough\n")
    options = taken["options"]
    assert options.recipe == Paper(bin=4) and (options.seed, options.steps, options.align) == (3, 0.5, "none")
    assert options.thresholds == Thresholds(0.01, 0.02) and options.resolutions == Resolutions(8.0, [None, None])
    for a, b in zip(taken["maps"], maps, strict=True):
        np.testing.assert_array_equal(a.density, b.density)


def test_predict_makes_more_frames_of_the_same_fit(run, folder, job):
    before = contents(run)
    model = f"--model={folder}/initial.cif"
    status, out, error = job("predict", f"--run_dir={run}", "--frames=5", model, "--noidealise")
    assert status == 0, error
    made = run / "predict_5"
    assert {path.name for path in made.iterdir()} == (
        {f"frame_{k:02d}.mrc" for k in range(5)} | {f"model_{k:02d}.cif" for k in range(5)}
        | {"generated.mrc", "generated.cif", "geometry.csv", "trajectory.pdb"}
    )  # fmt: skip
    for ours, theirs in (("frame_04", "generated"), ("frame_02", "frame_01"), ("generated", "generated")):
        assert (made / f"{ours}.mrc").read_bytes() == before[f"{theirs}.mrc"]
    assert (made / "model_04.cif").read_bytes() == before["generated.cif"]
    assert {name: data for name, data in contents(run).items() if "predict" not in name} == before
    again = job("predict", f"--run_dir={run}", "--frames=5")
    assert again[0] == 2 and "holds frames already" in again[2]


TURNED = Transform(TURN, np.array([30.0, -20, 10]))  # from the initial map's frame to one of the targets' own


@pytest.fixture(scope="module")
def far(folder, models):
    """The target state turned and shifted, its map on a grid of its own, and a map of it on another one."""
    there = TURNED.move(models[1])
    atoms.write_model(folder / "far.cif", there)
    for name, size in (("far", np.array([1.7, 1.9, 1.8])), ("far_reference", np.full(3, 2.0))):
        write_map(
            folder / f"{name}.mrc", simulation.simulate_map(there, *simulation.common_grid([there], size, 8.0), 8.0)
        )
    return folder / "far.mrc"


@pytest.mark.parametrize(
    "frame, how",
    [pytest.param("initial", {}, marks=pytest.mark.slow), ("target", QUICK)],
    ids=["initial", "target"],
)
def test_a_target_in_a_frame_of_its_own_is_as_good_as_one_on_the_grid(
    folder, run, far, job, monkeypatch, tmp_path, frame, how, few_rotations
):
    """Aligned, fitted and scored with one command; maps and models in the target's frame as well where asked for."""
    files = dict(target=far, model=folder / "initial.cif", reference=folder / "far.cif", align="auto", frame=frame)
    files["report"] = "false"  # it is asked for below
    status, out, error = job("run", *arguments(folder, tmp_path, **files, **how))
    assert status == 0, error
    assert "alignment of far.mrc: aligned, overlap with the initial map at" in out
    told = json.loads((tmp_path / "transform.json").read_text())
    assert told == json.loads((tmp_path / "config.json").read_text())["alignment"]
    assert told["status"].startswith("aligned, then moved") and told["overlap"] > told["overlap_before"]
    matrix = np.array(told["transform"])
    back = Transform(matrix[:3, :3], matrix[:3, 3])
    *_, target = cxc.run(tmp_path / "view.cxc").values()  # the last, and in the pose of transform.json
    assert target.files[0].resolve() == far.resolve()
    np.testing.assert_allclose(target.pose, matrix[:3], atol=1e-6)
    assert told["chimerax"] in (tmp_path / "view.cxc").read_text()
    scores, before = (json.loads((place / "metrics.json").read_text()) for place in (tmp_path, run))
    if how != QUICK:
        assert scores["rmsd_after"] < before["rmsd_after"] + 0.3  # another pose, half the steps would do for that
    start, end = (atoms.positions(atoms.read_model(tmp_path / f"model_0{k}.cif")) for k in (0, 2))
    initial, target = (atoms.positions(atoms.read_model(folder / f"{name}.cif")) for name in ("initial", "far"))
    np.testing.assert_allclose(start, initial, atol=2e-3)
    rmsd = np.sqrt(((end - back(target)) ** 2).sum(1).mean())
    assert rmsd == pytest.approx(scores["rmsd_after"], abs=5e-3)
    own = tmp_path if frame == "initial" else tmp_path / "target_frame"
    assert (tmp_path / "target_frame").is_dir() == (frame == "target")
    if frame == "target":
        *_, target = cxc.run(own / "view.cxc").values()
        assert target.files[0].resolve() == far.resolve() and np.array_equal(target.pose, np.eye(4)[:3])
    generated, model = read_map(own / "generated.mrc"), atoms.read_model(own / "generated.cif")
    assert same_grid(generated, read_map(far if frame == "target" else folder / "initial.mrc")) is None
    there = back.inverse(end) if frame == "target" else end
    np.testing.assert_allclose(atoms.positions(model), there, atol=2e-3)
    movie = gemmi.read_structure(str(own / "trajectory.pdb"))
    np.testing.assert_allclose([site.atom.pos.tolist() for site in movie[2].all()], there, atol=2e-3)
    exact = simulation.simulate_map(model, *grid_of(generated), 8.0).density
    assert np.corrcoef(exact.ravel(), generated.density.ravel())[0, 1] > 0.97
    assert job("predict", f"--run_dir={tmp_path}", "--frames=3")[0] == 0
    assert (tmp_path / "predict_3/frame_01.mrc").read_bytes() == (tmp_path / "frame_01.mrc").read_bytes()
    assert job("report", f"--run_dir={tmp_path}")[0] == 0  # finds the target, and where it was laid
    assert "target map is gone" not in (tmp_path / "report.html").read_text()


@pytest.mark.slow
def test_half_maps_show_the_noise_of_their_target(folder, far, job, tmp_path):
    """They go where their target goes; the other half is found."""
    target, rng = read_map(far), np.random.default_rng(0)
    for k in (1, 2):
        noise = 0.02 * target.density.max() * rng.normal(size=target.density.shape)
        half = Map((target.density + noise).astype(np.float32), target.voxel_size, target.origin)
        write_map(tmp_path / f"run_half{k}_class001_unfil.mrc", half)
    one, other = (tmp_path / f"run_half{k}_class001_unfil.mrc" for k in (1, 2))
    out = tmp_path / "out"
    status, _, error = job(
        "run", *arguments(folder, out, target=far, align="auto", frames=1, target_half1=one, parts="none")
    )
    assert status == 0, error
    config = json.loads((out / "config.json").read_text())
    assert config["chosen"]["noise"] == ["half-maps"] and str(other) in config["inputs"]


@pytest.mark.parametrize("flag, said", [("half2", "without --target_half1"), ("half1", "have a half-map's name")])
def test_one_half_map_is_not_enough(folder, job, tmp_path, flag, said):
    given = {f"target_{flag}": folder / "target.mrc"}
    status, _, error = job("run", *arguments(folder, tmp_path, **given))
    assert status == 2 and said in error


def grid_of(map):
    """A map's shape, voxel size and origin."""
    return map.density.shape, map.voxel_size, map.origin


@pytest.mark.slow
def test_a_reference_lies_in_the_targets_frame_be_it_a_model_or_a_map(
    folder, far, job, monkeypatch, tmp_path, few_rotations
):
    cases = []

    def stop(case, *_):
        cases.append(case)
        raise InputError("enough")

    monkeypatch.setattr("experiments.results.fit_case", stop)
    found = {}
    for name in ("far.cif", "far_reference.mrc", "far.mrc"):
        files = dict(target=far, reference=folder / name, align="auto", check_hand=name == "far.cif")
        status, out, error = job("run", *arguments(folder, tmp_path, **files))
        assert (status, error) == (2, "error: enough\n")
        assert ("hand of far.mrc: consistent" in out) == (name == "far.cif")
        (found[name],) = cases[-1].references
    case = cases[-1]
    at = case.alignments[0].transform(atoms.positions(atoms.read_model(folder / "far.cif")))
    np.testing.assert_allclose(atoms.positions(found["far.cif"]), at, atol=1e-9)
    np.testing.assert_array_equal(found["far.mrc"].density, case.targets[0].density)
    assert np.corrcoef(found["far_reference.mrc"].density.ravel(), case.targets[0].density.ravel())[0, 1] > 0.995


def test_splatted_frames_keep_the_mass(run, folder, job, tmp_path):
    out = tmp_path / "splat"
    assert job("predict", f"--run_dir={run}", f"--out_dir={out}", "--frames=3", "--render=splat")[0] == 0
    initial = read_map(folder / "initial.mrc").density
    level = json.loads((run / "config.json").read_text())["chosen"]["initial"]["threshold"]
    for k in range(3):
        mass = read_map(out / f"frame_{k:02d}.mrc").density.sum(dtype=float)
        assert mass == pytest.approx(initial[initial >= level].sum(dtype=float), rel=1e-5)  # float32


def test_predicting_into_the_run_leaves_it_a_run(folder, run, job, tmp_path):
    copy = shutil.copytree(run, tmp_path / "copy")
    assert job("predict", f"--run_dir={copy}", f"--out_dir={copy}", "--frames=2", "--overwrite")[0] == 0
    assert (copy / "config.json").is_file() and (copy / "metrics.json").is_file()


def test_overwriting_leaves_nothing_of_the_old_run(folder, job, tmp_path):
    assert job("run", *arguments(folder, tmp_path, **QUICK, model=folder / "initial.cif"))[0] == 0
    assert job("run", *arguments(folder, tmp_path, **QUICK, frames=2), "--overwrite", "--report=false")[0] == 0
    assert {path.name for path in tmp_path.iterdir()} == TOLD | {
        "frame_00.mrc", "frame_01.mrc", "generated.mrc", "config.json", "loss.csv", "metrics.json", "checkpoint",
        "transform.json", "SHA256SUMS", "movie.cxc",
    }  # fmt: skip
    *_, target = cxc.run(tmp_path / "view.cxc").items()
    assert target[0] == exchange.target_number(False, True) and target[1].files[0].resolve() == folder / "target.mrc"


def test_several_targets_replace_a_run_of_one_whole_and_a_part_of_them_touches_the_rest_no_more(folder, run, tmp_path):
    out = shutil.copytree(run, tmp_path / "copy")
    made = {path.name for path in run.iterdir()} - {"predict_5"}
    case = Case(None, [None] * 3, {"a": out / "frame_00.mrc"}, ["b", "c", "d"], None, [None] * 3)
    (out / "d").mkdir()
    (out / "d" / "frame_00.mrc").touch()

    def replaced(*numbers):
        return run_folder.results_in(replaced_folders(case, out, numbers))

    assert {path.name for path in replaced(0, 1)} == made
    assert replaced(1) == [] and replaced(2) == [out / "d" / "frame_00.mrc"]
    results.check_replaceable(case, out, False, [1])
    with pytest.raises(InputError, match="holds another run"):
        results.check_replaceable(case, out, False, [1, 2])
    with pytest.raises(InputError, match="is a result in the folder to be overwritten"):
        results.check_replaceable(case, out, True, [0])


def test_a_run_leaves_the_users_own_files(folder, job, tmp_path):
    mine = {"model_of_mine.cif": b"mine", "generated.txt": b"by hand", "frame_a.mrc": b"too"}
    for name, data in mine.items():
        (tmp_path / name).write_bytes(data)
    assert job("run", *arguments(folder, tmp_path, **QUICK, frames=1, report="false"))[0] == 0
    assert {name: (tmp_path / name).read_bytes() for name in mine if (tmp_path / name).exists()} == mine


def test_a_run_may_start_from_the_result_that_it_replaces(folder, run, job, tmp_path):
    copy = shutil.copytree(run, tmp_path / "copy")
    command = arguments(folder, copy, initial=copy / "frame_00.mrc", frames=1)
    status, _, error = job("run", *command, "--overwrite")
    # either it is done or it is refused with the old run as it was
    assert status == 0 or contents(copy) == contents(run), error


def test_entries_are_simulated_superposed_and_each_target_has_its_folder(folder, job, tmp_path, models):
    """2DEF and 3GHI lie elsewhere, turned; their maps are made where they fit 1ABC best."""
    out = tmp_path / "out"
    names = dict(initial="1ABC_8A.mrc", target="2DEF_8A.mrc,3GHI_9.5A.mrc", model="1ABC.pdb", reference="1ABC.pdb")
    names |= dict(recipe="paper", bin=4, steps=1e-4, frames=1)
    status, _, error = job("run", *arguments(folder, out, **names))
    assert status == 0, error
    for name in ("2DEF_8A", "3GHI_9.5A"):
        assert {path.name for path in (out / name).iterdir()} == TOLD | PICTURES | {
            "frame_00.mrc", "generated.mrc", "model_00.cif", "generated.cif", "metrics.json", "config.json",
            "loss.csv", "checkpoint", "displacement.cif", "fsc_reference.xml", "geometry.csv", "trajectory.pdb",
            "transform.json", "SHA256SUMS", *WITH_MODEL,
        }  # fmt: skip
        *_, target = cxc.run(out / name / "view.cxc").values()
        assert target.files[0].name.startswith(name)
        for file in ("metrics.json", "config.json"):
            assert json.loads((out / name / file).read_text())["target"] == name
        assert losses(out / name)[0] == ["stage", "loss", "step", name]
        assert [row[1] for row in losses(out / name)[1:]] == ["w2", "l2", "l2"]  # the second target waits in the last
        status, _, error = job("predict", f"--run_dir={out / name}", "--frames=1")
        assert status == 0, error
        found, made = (read_map(folder / "generated.mrc").density for folder in (out / name / "predict_1", out / name))
        np.testing.assert_allclose(found, made, atol=1e-5 * made.max())  # the run's own map was not rounded to a file
    assert {path.name for path in out.iterdir()} == {"inputs", "2DEF_8A", "3GHI_9.5A"}
    status, _, error = job("predict", f"--run_dir={out}")
    assert status == 2 and f"{out} holds several targets: name the folder of one, such as {out / '2DEF_8A'}" in error
    made = {name: read_map(out / f"inputs/{name}.mrc") for name in ("1ABC_8A", "2DEF_8A", "3GHI_9.5A")}
    initial = made["1ABC_8A"]
    grid = initial.density.shape, initial.voxel_size, initial.origin
    for name, model, resolution in zip(made, models, (8.0, 8.0, 9.5), strict=True):
        exact = simulation.simulate_map(atoms.superpose(model, models[0]), *grid, resolution).density
        # PDB keeps thousandths of an angstrom
        np.testing.assert_allclose(made[name].density, exact, atol=2e-3 * exact.max())
    saved = json.loads((out / "2DEF_8A" / "config.json").read_text())
    assert saved["resolutions"] == {"initial": 8.0, "targets": [8.0, 9.5]}
    # 0.225² (r² - r0²) by the names' resolutions
    np.testing.assert_allclose(saved["chosen"]["blur_variance"], [0, 0.225**2 * (9.5**2 - 8**2)])


def test_a_target_is_made_on_the_grid_of_a_map_that_is_there(folder, tmp_path, maps, models):
    data = tmp_path / "data"
    data.mkdir()
    for source in (folder / "data").iterdir():
        (data / source.name).write_bytes(source.read_bytes())
    write_map(data / "1ABC_8A.mrc", maps[0])
    (initial, target), files = inputs.load_maps(["1ABC_8A.mrc", "2DEF_8A.mrc"], str(data), tmp_path, [None, None])
    np.testing.assert_array_equal(initial.density, maps[0].density)
    assert same_grid(target, maps[0]) is None
    shape, size, origin = maps[0].density.shape, maps[0].voxel_size, maps[0].origin
    exact = simulation.simulate_map(atoms.superpose(models[1], models[0]), shape, size, origin, 8.0).density
    np.testing.assert_allclose(target.density, exact, atol=2e-3 * exact.max())  # PDB's thousandths
    assert files == {"1ABC_8A.mrc": data / "1ABC_8A.mrc", "2DEF_8A.mrc": tmp_path / "inputs/2DEF_8A.mrc"}


@pytest.mark.parametrize(
    "changes, sentences",
    [
        (dict(initial="none.mrc"), ["no map none.mrc here or in {}/data"]),
        (dict(target="none.mrc"), ["no map none.mrc here or in {}/data"]),
        (dict(initial="9XYZ_3A.mrc"), ["no map 9XYZ_3A.mrc here or in {}/data", "no 9XYZ.cif or 9XYZ.pdb"]),
        (dict(target=None), ["no --target"]),
        (dict(initial="{}/text.mrc"), ["text.mrc is not an MRC file"]),
        (dict(initial="{}/initial.cif"), ["initial.cif is an atomic model, not a map"]),
        (dict(target="{}/cut.mrc"), ["cut.mrc is truncated"]),
        (dict(target="{}/nan.mrc"), ["nan.mrc holds 1 values that are NaN"]),
        (dict(initial="{}/flat.mrc"), ["flat.mrc has the value 1 throughout"]),
        (dict(initial_threshold=7.5), ["initial map has no density above the threshold 7.5", "its maximum is 0.0"]),
        (dict(target_threshold=7.5), ["target map 1 has no density above the threshold 7.5"]),
        (dict(target="{}/elsewhere.mrc"), ["only 0 % of the target map's mass lies in the initial map's box: align"]),
        (dict(align="best"), ["--align=best"]),
        (dict(frame="middle"), ["--frame=middle"]),
        (dict(model="{}/outside.cif"), ["of 16 atoms of {}/outside.cif lie outside the map"]),
        (dict(model="none.cif"), ["no file none.cif here or in {}/data"]),
        (dict(model="{}/initial.mrc"), ["initial.mrc is a map, not an atomic model"]),
        (dict(reference="none.cif"), ["no file none.cif here or in {}/data"]),
        (dict(reference="{0}/target.cif,{0}/target.cif"), ["2 references for 1 targets"]),
        (dict(out_dir="{}/initial.mrc"), ["initial.mrc is a file, not a folder"]),
        (dict(waypoint="{}/between.mrc"), ["--waypoint={}/between.mrc is not FILE@TIME"]),
        (dict(waypoint="{}/between.mrc@half"), ["@half is not FILE@TIME"]),
        (dict(waypoint="none.mrc@0.5"), ["no map none.mrc here or in {}/data"]),
        (dict(waypoint="{0}/between.mrc@0.5,{0}/between.mrc@1.5"), ["the time 1.5 is not from 0.001 to 0.999"]),
        (
            dict(waypoint="{0}/between.mrc@0.5", target="{0}/target.mrc,{0}/between.mrc"),
            ["waypoints are for one target"],
        ),
        (dict(still="A:1-8"), ["--still=A:1-8 selects residues: give the model with --model"]),
        (dict(parts="A:1-8;A:9-16"), ["--parts=A:1-8;A:9-16 is not a map: to select residues give the model"]),
        (
            dict(parts="A:1-8;B", model="{}/initial.cif"),
            ["B in --parts selects no residue: the model has the chains A"],
        ),
        (dict(parts="{}/elsewhere.mrc"), ["elsewhere.mrc lies on another grid than the initial map"]),
        (dict(parts="{}/between.mrc"), ["between.mrc contains values that are not labels"]),
        (dict(parts="{0}/between.mrc,none.mrc"), ["no file none.mrc here or in {}/data"]),
        (dict(parts="auto", part_rigidity="1,2"), ["part_rigidity is only for given parts"]),
        (
            dict(parts="A:1-8;A:9-16", model="{}/initial.cif", part_rigidity="1"),
            ["1 weights of the rigidity for 2 parts"],
        ),
        (dict(part_rigidity="1,x"), ["--part_rigidity=1,x: 'x' is not a number from 0 to 1000000000"]),
        (dict(recipe="foo"), ["--recipe=foo"]),
        (dict(steps=0), ["--steps=0"]),
        (dict(frames="many"), ["--frames=many"]),
        (dict(resolution=3), ["resolution"]),
        (dict(recipe="paper", bin=3), ["bin"]),
    ],
    ids=lambda value: "-".join(f"{k}-{v}" for k, v in value.items()) if isinstance(value, dict) else "",
)
def test_bad_input_is_one_line_and_status_two_and_changes_no_file(folder, job, tmp_path, changes, sentences):
    (tmp_path / "notes.txt").write_text("mine")
    changes = {k: v.format(folder) if isinstance(v, str) else v for k, v in changes.items()}
    before = contents(folder), contents(tmp_path)
    status, _, error = job("run", *arguments(folder, **({"out_dir": tmp_path} | changes)))
    assert status == 2
    assert error.startswith("error: ") and error.count("\n") == 1 and error.endswith("\n")
    for sentence in sentences:
        assert sentence.format(folder) in error
    assert (contents(folder), contents(tmp_path)) == before


def test_a_folder_with_another_run_is_left_as_it_is(folder, job, run):
    before = contents(run)
    status, _, error = job("run", *arguments(folder, run))
    assert status == 2 and f"{run} holds another run" in error and "--overwrite" in error
    assert contents(run) == before
    # nor does a run that fails take the old one away
    status, _, error = job("run", *arguments(folder, run, initial_threshold=7.5), "--overwrite")
    assert status == 2 and "threshold 7.5" in error
    assert contents(run) == before


def test_predict_explains_what_is_missing_or_changed(folder, job, run, tmp_path):
    status, _, error = job("predict", f"--run_dir={tmp_path}")
    assert status == 2 and error.startswith("error: ") and "holds no run" in error
    status, _, error = job("predict", f"--run_dir={run}", f"--initial={folder}/target.mrc")
    assert status == 2 and "checksums differ" in error
    status, _, error = job("predict", f"--run_dir={run}", f"--initial={folder}/gone.mrc")
    assert status == 2 and "gone.mrc is gone" in error and error.count("\n") == 1
    assert job("predict")[::2] == (2, "error: --run_dir is missing; see --help\n")


def test_as_a_command_it_fails_in_one_line_too(folder):
    command = [sys.executable, "-m", "experiments.run", *arguments(folder, folder / "new", target="none.mrc")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: no map none.mrc here or in") and done.stderr.count("\n") == 1


def test_the_geometry_of_every_frame_is_written_down_and_mended_where_asked_for(run, folder, job, tmp_path):
    """The model is CA atoms alone, 3.8 Å apart in the chain."""
    with (run / "geometry.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["frame"], float(row["time"])) for row in rows] == [("0", 0.0), ("1", 0.5), ("2", 1.0)]
    for number, row in enumerate(rows):
        xyz = atoms.positions(atoms.read_model(run / f"model_{number:02d}.cif"))
        apart = np.linalg.norm(np.diff(xyz, axis=0), axis=1)
        assert float(row["ca_bonds"]) == pytest.approx(np.mean(np.abs(apart - 3.8) <= 0.3))
        nearer = np.linalg.norm(xyz[:, None] - xyz, axis=-1) < 2.2
        assert int(row["clashes"]) == np.triu(nearer, 2).sum()
    scores = json.loads((run / "metrics.json").read_text())
    own = qscore.q_score(read_map(run / "generated.mrc"), atoms.read_model(run / "generated.cif"))
    assert scores["model_q_score_after"] == pytest.approx(own, abs=0.02) and scores["model_q_score_before"] > 0.3
    assert scores["ca_bonds_before"] == 1 and scores["ca_bonds_after"] == pytest.approx(float(rows[-1]["ca_bonds"]))
    files = f"--model={folder}/initial.cif", f"--out_dir={tmp_path}", "--frames=3"
    assert job("predict", f"--run_dir={run}", *files)[0] == 0
    with (tmp_path / "geometry.csv").open(newline="") as file:
        mended = list(csv.DictReader(file))
    for old, new in zip(rows, mended, strict=True):
        assert new["carried_ca_bonds"] == old["ca_bonds"] and float(new["ca_bonds"]) == 1
    before, after = (atoms.positions(atoms.read_model(f / "generated.cif")) for f in (run, tmp_path))
    assert 0 < np.sqrt(((after - before) ** 2).sum(1).mean()) < 1


def test_models_that_are_written_are_read_by_gemmi_with_all_atoms(run, models):
    model = gemmi.read_structure(str(run / "generated.cif"))
    assert [(c.name, str(r.seqid), r.name) for c in model[0] for r in c] == [
        (c.name, str(r.seqid), r.name) for c in models[0][0] for r in c
    ]
