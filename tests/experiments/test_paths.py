"""Flags that name files: a leading ~ is the user's home, and a path may hold commas."""

import importlib
import re
from pathlib import Path

import numpy as np
import pytest
from absl import flags

from cryotrans_jax.io.files import InputError
from cryotrans_jax.io.maps import Map, write_map
from experiments import contest, parse, paths, usage

JOBS = sorted(path.stem for path in Path(usage.__file__).parent.glob("*.py") if "def define_flags" in path.read_text())
NAMES_FILES = re.compile(r"(?:GROUP\|)?(?:MAP|MODEL|FOLDER|FILE)\b(?!@)|Folder |A page |A Markdown file ")


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home folder with files, some with commas in their names, which is the working folder too."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for name in ("a.mrc", "b,c.mrc", "d, e.mrc", "b"):
        (tmp_path / name).write_text("")
    return tmp_path


@pytest.fixture
def defined():
    """Defines the flags of a job, which are gone afterwards."""

    def define(name):
        importlib.import_module(f"experiments.{name}").define_flags()
        owned = flags.FLAGS.flags_by_module_dict().items()
        return [flag for owner, own in owned if owner.startswith("experiments") for flag in own]

    yield define
    for owner, own in flags.FLAGS.flags_by_module_dict().items():
        for flag in list(own) if owner.startswith("experiments") else ():
            delattr(flags.FLAGS, flag.name)


@pytest.mark.parametrize("name", JOBS)
def test_every_flag_that_names_files_takes_a_tilde(defined, home, name):
    for flag in defined(name):
        if NAMES_FILES.match(flag.help):
            flag.parse("~/a.mrc")
            assert flag.value in (f"{home}/a.mrc", [f"{home}/a.mrc"]), flag.name


@pytest.mark.parametrize(
    "text, expected",
    [
        ("", []),
        ("a.mrc", ["a.mrc"]),
        ("a.mrc,none.mrc", ["a.mrc", "none.mrc"]),
        ("b,c.mrc", ["b,c.mrc"]),  # as a whole, though b is there too
        ("a.mrc,b,c.mrc,~/a.mrc", ["a.mrc", "b,c.mrc", "{}/a.mrc"]),
        ("~/b,c.mrc,a.mrc", ["{}/b,c.mrc", "a.mrc"]),
        ("a.mrc, a.mrc", ["a.mrc", "a.mrc"]),
        ("d, e.mrc", ["d, e.mrc"]),
        ('"x,y.mrc",a.mrc', ["x,y.mrc", "a.mrc"]),  # for what --data_dir holds
    ],
)
def test_a_path_with_commas_is_one_where_it_is_there_or_quoted(home, text, expected):
    assert paths.split(text) == [path.format(home) for path in expected]


def test_a_list_is_written_as_it_is_read():
    for names in (["a.mrc", "x,y.mrc"], ['q"u.mrc', "b.mrc"]):
        assert paths.split(flags.CsvListSerializer(",").serialize(names)) == names


def test_waypoints_and_frames_may_have_commas_and_tildes(home):
    assert parse.parse_waypoints(["~/b,c.mrc@0.25,a.mrc@.5", "a,1.mrc@0.75"]) == [
        (f"{home}/b,c.mrc", 0.25),
        ("a.mrc", 0.5),
        ("a,1.mrc", 0.75),
    ]
    for wrong in ("a.mrc", "a.mrc@", "a.mrc@0.5,b.mrc", "@0.5"):
        with pytest.raises(InputError, match="FILE@TIME"):
            parse.parse_waypoints([wrong])
    assert contest.find_frames(["x:~/b,c.mrc,a.*"]) == {"x": [home / "b,c.mrc", Path("a.mrc")]}


def test_a_target_with_a_comma_in_its_name_is_read(home, job):
    """The run comes as far as the maps' values: the two have nothing in common with a mask."""
    density = np.random.default_rng(0).random((6, 6, 6), np.float32)
    for name in ("a.mrc", "b,c.mrc"):
        write_map(home / name, Map(density, np.ones(3), np.zeros(3)))
    write_map(home / "mask,1.mrc", Map(density[:5], np.ones(3), np.zeros(3)))
    arguments = ["--initial=~/a.mrc", "--target=~/b,c.mrc", "--target_mask=mask,1.mrc", "--out_dir=~/out"]
    status, _, error = job("run", *arguments)
    assert status == 2 and "mask,1.mrc lies on another grid than its map" in error
