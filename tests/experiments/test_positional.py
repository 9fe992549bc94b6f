"""Names without a flag: the maps of run and compare, and the entries of fetch."""

import importlib

import numpy as np
import pytest
from absl import flags

from cryotrans_jax.io.maps import Map, write_map
from experiments import record

MAPS = ("initial", "target")


@pytest.fixture
def taken(job, monkeypatch):
    """Function that gives a command's settings after parsing, and the names of the flags that are taken as given."""

    def parse(name, *arguments):
        found = []

        def look():
            found.append(record.settings_of(flags.FLAGS))
            found.append({flag for flag in found[0] if flags.FLAGS[flag].present})

        monkeypatch.setattr(importlib.import_module(f"experiments.{name}"), "main", look)
        status, _, error = job(name, *arguments)
        assert (status, error) == (0, ""), error
        return found

    return parse


def refused(job, *arguments, name="run"):
    """The one line with which the command refuses these arguments."""
    status, out, error = job(name, *arguments)
    assert status == 2 and out == "" and error.count("\n") == 1 and error.endswith("; see --help\n"), error
    return error


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home folder, which is the working folder too, with a file that has a comma in its name."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "b,c.mrc").write_text("")
    (tmp_path / "x.mrc").write_text("")
    return tmp_path


@pytest.mark.parametrize("name", ["run", "compare"])
@pytest.mark.parametrize(
    "named, flagged",
    [
        (["A.mrc", "B.mrc"], ["--initial=A.mrc", "--target=B.mrc"]),
        (["A.mrc", "B.mrc", "C.mrc"], ["--initial=A.mrc", "--target=B.mrc,C.mrc"]),
        (["A.mrc", "B.mrc,C.mrc", "D.mrc"], ["--initial=A.mrc", "--target=B.mrc,C.mrc,D.mrc"]),
        (["b,c.mrc", "b,c.mrc", "B.mrc"], ["--initial=b,c.mrc", "--target=b,c.mrc,B.mrc"]),
        (["A.mrc", '"y,z.mrc"'], ["--initial=A.mrc", '--target="y,z.mrc"']),
        (["~/x.mrc", "~/b,c.mrc"], ["--initial=~/x.mrc", "--target=~/b,c.mrc"]),
        (["EMD-22001", "6RAI_5A.mrc"], ["--initial=EMD-22001", "--target=6RAI_5A.mrc"]),
    ],
)
def test_the_first_name_is_the_initial_map_and_the_others_are_targets(taken, home, name, named, flagged):
    """In all that a command sees of its flags, also which are given, and so in all that it writes down and repeats."""
    assert taken(name, *named, "--frames=5") == taken(name, *flagged, "--frames=5")


@pytest.mark.parametrize(
    "arguments",
    [
        ["A.mrc", "B.mrc", "--frames=5", "--report"],
        ["--frames=5", "A.mrc", "--report", "B.mrc"],
        ["--frames", "5", "A.mrc", "B.mrc", "--report"],
        ["--frames=5", "--report", "--", "A.mrc", "B.mrc"],
    ],
)
def test_names_and_flags_may_come_in_any_order(taken, arguments):
    settings, given = taken("run", *arguments)
    assert (settings["initial"], settings["target"], settings["frames"]) == ("A.mrc", ["B.mrc"], 5)
    assert given == {"initial", "target", "frames", "report"}


def test_a_name_that_begins_with_a_dash_follows_two_dashes(taken, job):
    assert taken("run", "--", "-A.mrc", "B.mrc")[0]["initial"] == "-A.mrc"
    assert "Unknown command line flag 'A.mrc'" in refused(job, "-A.mrc", "B.mrc")


def test_without_names_nothing_is_given(taken):
    settings, given = taken("run")
    assert [settings[name] for name in MAPS] == [None, None] and not given


@pytest.mark.parametrize(
    "arguments, found",
    [
        (["A.mrc", "B.mrc", "--target=C.mrc"], "A.mrc and B.mrc are named without a flag, and --target is given"),
        (["--initial=A.mrc", "A.mrc", "B.mrc"], "A.mrc and B.mrc are named without a flag, and --initial is given"),
        (["A.mrc", "B.mrc", "--initial=A.mrc", "--target=B.mrc"], "and --initial and --target are given as well"),
        (["A.mrc", "--target=B.mrc"], "A.mrc is named without a flag, and --target is given as well"),
        (["--initial=A.mrc", "B.mrc"], "B.mrc is named without a flag, and --initial is given as well"),
    ],
)
@pytest.mark.parametrize("name", ["run", "compare"])
def test_maps_by_name_and_by_flag_are_refused(job, name, arguments, found):
    error = refused(job, *arguments, name=name)
    assert found in error and "name the maps either all by their order (A.mrc B.mrc) or all by flags" in error


def test_one_name_alone_is_refused(job):
    assert refused(job, "first.mrc", "--frames=5") == (
        "error: only one map is named, 'first.mrc': name two, the initial map first and then the target "
        "(A.mrc B.mrc); see --help\n"
    )


@pytest.mark.parametrize("names, which", [(["", "B.mrc"], 1), (["A.mrc", ""], 2), (["A.mrc", "B.mrc", " "], 3)])
def test_an_empty_name_is_refused(job, names, which):
    """As of a variable of the shell that is not set, which must not start the built-in pair."""
    assert f"name {which} of {len(names)} is empty: name two maps" in refused(job, *names)


def test_a_name_with_half_a_quote_is_refused(job):
    assert "Unable to parse" in refused(job, "A.mrc", '"B.mrc,C.mrc')


@pytest.mark.parametrize("name, more", [("predict", ["--run_dir=a"]), ("report", ["--run_dir=a"]), ("reproduce", [])])
def test_commands_without_names_refuse_them(job, name, more):
    error = refused(job, "A.mrc", "B.mrc", *more, name=name)
    assert error.startswith("error: unexpected argument 'A.mrc': every option has the form --name=value")


def test_entries_and_flags_of_fetch_may_come_in_any_order(taken):
    settings, given = taken("fetch", "6RAH", "--overwrite", "EMD-22001", "--entries=6RAI")
    assert settings["entries"] == ["6RAI", "6RAH", "EMD-22001"] and "overwrite" in given


def test_named_maps_are_read(home, job):
    """The run comes as far as the maps' values: one is constant."""
    density = np.random.default_rng(0).random((6, 6, 6), np.float32)
    for name, values in (("a.mrc", density), ("flat.mrc", 0 * density + 1)):
        write_map(home / name, Map(values, np.ones(3), np.zeros(3)))
    status, _, error = job("run", "a.mrc", "~/flat.mrc", "--out_dir=out")
    assert status == 2 and error.count("\n") == 1 and "flat.mrc" in error
    status, _, error = job("run", "a.mrc", "none.mrc", "--out_dir=out")
    assert status == 2 and "no map none.mrc here or in data" in error
