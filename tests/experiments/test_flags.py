"""Every number that a command takes has a range, and what lies outside of it is refused in one sentence."""

import dataclasses
import importlib
import math
import re
from pathlib import Path

import numpy as np
import pytest
from absl import flags

from cryotrans_jax.density import thresholds
from cryotrans_jax.io import maps as files
from cryotrans_jax.io.files import InputError
from cryotrans_jax.io.maps import Map, write_map
from experiments import inputs, parse, prechecks, ranges, settings
from experiments.studies import validate

ROOT = Path(__file__).parents[2]
JOBS = sorted(path.stem for path in (ROOT / "experiments").glob("*.py") if "def define_flags" in path.read_text())
NUMERIC = (flags.IntegerParser, flags.FloatParser, ranges.Number, ranges.Numbers)
UNBOUNDED = {("validate", "signal_to_noise")}  # inf stands for a map without noise


def numeric(name):
    """The names of the numeric flags of a job, and the parser of each."""
    module = importlib.import_module(f"experiments.{name}")
    before = set(flags.FLAGS)
    try:
        module.define_flags()
        own = [flag for flag in flags.FLAGS if flag not in before]
        return {flag: flags.FLAGS[flag].parser for flag in own if isinstance(flags.FLAGS[flag].parser, NUMERIC)}
    finally:
        for flag in set(flags.FLAGS) - before:
            delattr(flags.FLAGS, flag)


def check_refused(status, error, flag, why):
    assert status == 2 and error.count("\n") == 1, error
    assert error.startswith(f"error: --{flag}=") and " is not " in error and why in error, error


@pytest.mark.parametrize("name", JOBS)
def test_every_number_has_a_range_and_what_lies_outside_is_refused(job, name):
    for flag, parser in numeric(name).items():
        allowed = parser.allowed
        assert allowed.why and allowed.least < allowed.most
        assert math.isfinite(allowed.least)
        outside = [allowed.least - max(1, abs(allowed.least)), "nan", "1e400", "many", ""]
        if (name, flag) not in UNBOUNDED:
            assert math.isfinite(allowed.most), flag
            outside.append(2 * allowed.most + 2)
        else:
            outside.remove("1e400")
        for value in outside:
            status, _, error = job(name, f"--{flag}={value}")
            check_refused(status, error, flag, allowed.why)


def test_one_bad_number_of_a_list_is_named(job):
    status, _, error = job("validate", "--seeds=1,3000000000")
    assert status == 2 and error.startswith("error: --seeds=1,3000000000: '3000000000' is not from 0 to 2147483647: ")


def test_seeds_after_the_last_one_are_refused(job, tmp_path):
    status, _, error = job("run", f"--seed={2**31 - 1}", "--seeds=2", f"--out_dir={tmp_path / 'out'}")
    assert status == 2 and "--seeds=2: the last seed 2147483648 is not from 0 to 2147483647" in error
    assert error.count("\n") == 1 and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "text, factor, said",
    [
        ("w2:10:1e400", 1, "the learning rate 1e400 is not from 1e-08 to 1"),
        ("w2:10:0", 1, "the learning rate 0 is not from"),
        ("w2:10:5", 1, "the learning rate 5 is not from"),
        ("l2:99999999999:1e-3", 1, "the number of steps 99999999999 is not from 1 to 10000000"),
        ("l2:" + "9" * 5000 + ":1e-3", 1, "is not a whole number from 1 to 10000000"),
        ("l2:5000000:1e-3", 3, "the number of steps times --steps, 15000000 is not from 1 to 10000000"),
    ],
)
def test_numbers_in_a_schedule_have_ranges(text, factor, said):
    with pytest.raises(InputError, match=re.escape(said)):
        parse.parse_schedule([text], None, factor)


def test_a_schedule_within_its_ranges_is_taken():
    found = parse.parse_schedule(["w2:2000:1e-3", "l2:10:.5"], 7, 1e-4)
    assert found.stages == (("w2", 2000, 1e-3), ("l2", 10, 0.5)) and found.width == 7


@pytest.mark.parametrize("time", ["0", "1", "1.5", "0.00000000001"])
def test_a_waypoint_lies_between_the_maps(time):
    with pytest.raises(InputError, match=f"--waypoint=a.mrc@{time}: the time {time} is not from 0.001 to 0.999"):
        parse.parse_waypoints([f"a.mrc@{time}"])


@pytest.mark.parametrize("recipe", ["paper/3", "paper/x", "best", "default/2", "paper@x", "paper@0.01", "paper@"])
def test_a_recipe_of_a_validation_is_checked_before_the_first_fit(recipe):
    with pytest.raises(InputError, match="--recipes="):
        validate.parse_recipe(recipe)


def test_a_recipe_of_a_validation_is_read():
    assert validate.parse_recipe("paper/2@7:adk") == ("paper/2", 7.0, "adk")
    assert validate.parse_recipe("default") == ("default", None, None)


def test_ranges_that_the_library_has_as_well_are_the_same():
    assert (ranges.VOXEL_SIZE.least, ranges.VOXEL_SIZE.most) == files.VOXELS
    assert ranges.LEVEL.most == files.LARGEST and ranges.COORDINATE.most == files.FARTHEST


# Where flags and maps meet


def grid(size=1.05, side=40):
    """A map on cubic voxels of this size."""
    return Map(np.zeros((side, side, side), np.float32), np.full(3, size), np.zeros(3))


def test_a_resolution_that_no_map_on_the_grid_has_is_refused():
    """Along the diagonal of a cube the Nyquist limit is that of an edge over √3; nothing is wider than the box."""
    limit, edge = 2 * 1.05 / math.sqrt(3), 40 * 1.05
    for resolution, said in (
        (0.35, "finer than 2.1 Å"),
        (0.99 * limit, "finer"),
        (1.01 * edge, "coarser than its box"),
    ):
        with pytest.raises(InputError, match=f"^--initial_resolution=.* of a.mrc is {said}.*: give it in Å"):
            prechecks.check_resolution(grid(), resolution, "folder/a.mrc", "--initial_resolution")


def test_a_resolution_beyond_nyquist_of_a_deposited_map_is_a_warning_at_most(capsys):
    for resolution in (2.0, 2.1, 3.5, 40.0, None):
        prechecks.check_resolution(grid(), resolution, "a.mrc", "--initial_resolution")
    assert capsys.readouterr().err == ""
    prechecks.check_resolution(grid(), 1.5, "a.mrc", "--target_resolution")
    prechecks.check_resolution(
        grid(), 0.6, "a.mrc", ""
    )  # by the archive: the user can do nothing about it but overrule it
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("warning: resolution of a.mrc, 1.5 Å, is finer than 2.1 Å, the Nyquist limit")
    assert second.endswith("give it as --initial_resolution or --target_resolution")


def test_a_run_checks_resolutions_radius_and_mass_against_its_maps(job, tmp_path, maps):
    for name, map_ in zip(("a", "b"), maps, strict=False):
        write_map(tmp_path / f"{name}.mrc", map_)
    voxels, volume = maps[0].density.size, float(np.prod(maps[0].voxel_size))
    too_heavy = 1.1 * voxels * volume / thresholds.DALTON / 1e3
    for more, said in (
        (["--initial_resolution=0.8", "--target_resolution=8"], "--initial_resolution=0.8 of a.mrc is finer"),
        (["--initial_resolution=8", "--target_resolution=80"], "--target_resolution=80 of b.mrc is coarser"),
        (["--mask_radius=0.5"], "--mask_radius=0.5 is less than a voxel of 2 Å"),
        ([f"--mass_kda={too_heavy}"], f"would fill {1.1 * voxels:.3g} of the initial map's {voxels} voxels"),
        (["--mass_kda=0.02"], "give the molecular weight in kDa"),
    ):
        pair = [f"--initial={tmp_path}/a.mrc", f"--target={tmp_path}/b.mrc", "--align=none"]
        status, _, error = job("run", *pair, *more, f"--out_dir={tmp_path}/out")
        assert status == 2 and error.count("\n") == 1 and said in error, error


def test_a_map_is_not_simulated_on_voxels_that_cannot_hold_it(job, tmp_path):
    with pytest.raises(InputError, match="--resolution=0.5 is finer than the 1.15 Å that voxels of 1 Å can hold"):
        inputs.check_detail(0.5, 1.0)
    status, _, error = job("study", "--resolutions=3", "--voxel_size=4", f"--out_dir={tmp_path / 'out'}")
    assert status == 2 and "--resolutions=3 is finer than the 4.62 Å that voxels of 4 Å can hold" in error


def test_settings_are_named_as_the_flags_of_a_run(job):
    _, out, _ = job("run", "--help")
    shown = set(re.findall(r"^  --(?:\[no\])?(\w+)", out, re.MULTILINE))
    kinds = [kind for kind in vars(settings).values() if dataclasses.is_dataclass(kind)]
    kinds = [kind for kind in kinds if kind.__module__ == settings.__name__]
    assert len(kinds) > 3
    for kind in kinds:
        names = {each.name for each in dataclasses.fields(kind)}
        assert names - {"resolutions_given", "archives", "preparation"} <= shown


def test_settings_without_values_keep_their_defaults():
    own = flags.FlagValues()
    flags.DEFINE_float("steps", None, "", flag_values=own)
    flags.DEFINE_integer("seed", 3, "", flag_values=own)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(settings, "FLAGS", own)
        own(["program"])
        assert settings.from_flags(settings.FitSettings) == settings.FitSettings(seed=3)
