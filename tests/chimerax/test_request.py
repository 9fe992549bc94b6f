"""What a morph is asked to do becomes arguments that our own parser of flags reads as they were meant."""

import pytest
from absl import flags
from bundle import plain

from cryotrans_jax.io.maps import read_map, write_map
from experiments import run

inputs, request = (plain(name) for name in ("inputs", "request"))


@pytest.fixture
def parsed(job, monkeypatch):
    """Function that parses arguments as the command run does, and gives the values of flags."""

    def parse(arguments):
        seen = {}
        monkeypatch.setattr(run, "main", lambda: seen.update(flags.FLAGS.flag_values_dict()))
        status, _, error = job("run", *arguments)
        assert status == 0, error
        return seen

    return parse


def test_our_program_takes_the_arguments(parsed, tmp_path):
    folder = tmp_path / "a folder" / "morph, 1"
    asked = request.Request(
        tmp_path / "sharp map.mrc",
        tmp_path / 'rare, "blurred".mrc',
        folder,
        tmp_path / "a model.cif",
        (3.0, 6.5),
        "--frames=5 --still='A:1-200' --overwrite",
    )
    found = parsed(asked.arguments())
    assert found["initial"] == str(tmp_path / "sharp map.mrc") and found["target"] == [str(asked.target)]
    assert found["out_dir"] == str(folder) and found["model"] == str(tmp_path / "a model.cif")
    assert (found["initial_resolution"], found["target_resolution"]) == (3.0, 6.5)
    assert (found["frames"], found["still"], found["overwrite"]) == (5, "A:1-200", True)


def test_what_is_not_given_is_left_to_the_program(parsed, tmp_path):
    given = parsed(request.Request(tmp_path / "a.mrc", tmp_path / "b.mrc", tmp_path / "out").arguments())
    own = parsed([])
    assert {name for name in own if own[name] != given[name]} == {"initial", "target", "out_dir"}


@pytest.mark.parametrize(
    "options, said",
    [
        ("--out_dir=x", 'give "directory" instead'),
        ("-target y", 'give the map after "to" instead'),
        ("--frames=5 --initial_resolution 3", 'give "resolutions" instead'),
        ("--still='A", "No closing quotation"),
    ],
)
def test_options_that_contradict_what_is_given_are_refused(tmp_path, options, said):
    with pytest.raises(request.Refused, match=said):
        request.Request(tmp_path, tmp_path, tmp_path, options=options).arguments()
    with pytest.raises(request.Refused, match=said):
        request.check_folder(tmp_path, options)


def test_every_flag_that_is_given_is_one_of_the_program(parsed):
    assert set(request.GIVEN) <= set(parsed([]))


def test_a_folder_that_is_not_given_is_named_as_the_program_names_it(tmp_path):
    ours = request.default_folder("6RAH_3A.mrc", "emd_22001.map.gz", tmp_path)
    given = type("Given", (), {"built_in": False, "target": ["x/emd_22001.map.gz"], "initial_name": "x/6RAH_3A.mrc"})
    assert ours == tmp_path / run.default_folder(given)
    assert request.default_folder("map #1; x", "...", tmp_path) == tmp_path / "runs/map_1_x_to_map"


def test_a_folder_with_a_finished_run_is_not_written_to(tmp_path):
    request.check_folder(tmp_path / "new", "")
    (tmp_path / "SHA256SUMS").touch()
    with pytest.raises(request.Refused, match="holds another run"):
        request.check_folder(tmp_path, "--frames=5")
    request.check_folder(tmp_path, "--frames=5 --overwrite")
    (tmp_path / "unfinished").mkdir()
    request.check_folder(tmp_path, "")


# The files of maps


def grid(place, **more):
    """Data of a map as ChimeraX has it."""
    same = {"origin": (0.0, 1.0, 2.0), "step": (1.0, 1.0, 1.0)}
    kept = {f"original_{name}": value for name, value in same.items()}
    return type("GridData", (), {"path": str(place), "grid_id": "", "writable": False} | same | kept | more)


def test_a_map_that_is_as_it_was_opened_is_used_from_its_file(tmp_path, monkeypatch):
    for name in ("a b.mrc", "a.MAP", "a.ccp4"):
        (tmp_path / name).touch()
        assert inputs.file_of(grid(tmp_path / name)) == tmp_path / name
    monkeypatch.chdir(tmp_path)
    assert inputs.file_of(grid("a.ccp4")) == tmp_path / "a.ccp4"


def test_a_map_that_was_changed_or_has_no_such_file_is_to_be_written(tmp_path):
    for name in ("a.mrc", "a.hdf"):
        (tmp_path / name).touch()
    changes = {"writable": True}, {"grid_id": "2"}, {"origin": (0, 0, 0)}, {"step": (1, 1, 2)}, {"path": ["a", "b"]}
    for change in changes:
        assert inputs.file_of(grid(tmp_path / "a.mrc", **change)) is None
    for path in (tmp_path / "gone.mrc", tmp_path / "a.hdf", ""):
        assert inputs.file_of(grid(path)) is None


def test_a_written_map_replaces_the_earlier_one_only_where_it_differs(tmp_path, maps):
    """Labels of a header, with the time of writing, do not count: a run resumes only with the same files."""
    new, old = tmp_path / "new.mrc", tmp_path / "old.mrc"
    write_map(new, maps[0])
    inputs.replace(new, old)
    first = old.read_bytes()
    later = bytearray(first)
    later[224:234] = b"another is"
    new.write_bytes(later)
    inputs.replace(new, old)
    assert old.read_bytes() == first and not new.exists()
    write_map(new, maps[1])
    inputs.replace(new, old)
    assert not new.exists() and (read_map(old).density == maps[1].density).all()


def test_a_written_model_is_compared_as_a_whole(tmp_path):
    new, old = tmp_path / "new.cif", tmp_path / "old.cif"
    for text in ("data_1\n", "data_2\n"):
        new.write_text(text)
        inputs.replace(new, old)
        assert old.read_text() == text
