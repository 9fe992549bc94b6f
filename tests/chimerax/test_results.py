"""A result is opened beside what is open already, whatever numbers its models get."""

import re

import pytest
from bundle import plain

from cryotrans_jax.io.maps import write_map
from experiments import exchange

request, results = (plain(name) for name in ("request", "results"))


class Scene:
    """Open models as ChimeraX numbers them: each gets the lowest number that is free, and so does the colour key."""

    def __init__(self, *numbers):
        self.files, self.commands = dict.fromkeys(numbers, "the user's"), []

    def add(self, what):
        self.files[next(n for n in range(1, 99) if n not in self.files)] = what

    def run(self, command):
        self.commands.append(command)
        if command.startswith("open "):
            self.add(command.split()[1].strip('"').split("/")[-1])
        if command.endswith("key true") and "the key" not in self.files.values():
            self.add("the key")

    def numbers(self):
        return set(self.files)


@pytest.fixture
def folder(tmp_path, maps):
    """The folder of a result with some of its files, and the script that a run would write."""
    place = tmp_path / "a morph"
    place.mkdir()
    names = ("frame_00", "frame_01", "generated", "displacement", "unexplained", "error")
    for name in names:
        write_map(place / f"{name}.mrc", maps[0])
    for name in ("displacement.cif", "trajectory.pdb", "generated.cif"):
        (place / name).touch()
    write_map(tmp_path / "rare state.mrc", maps[1])
    target = exchange.Target(tmp_path / "rare state.mrc")
    levels = {"initial": 0.1, "target": 0.2}
    (place / "view.cxc").write_text(exchange.chimerax_script(place, levels, 5.0, target), encoding="utf-8")
    return place


@pytest.mark.parametrize("taken", [(), (1, 2), (1, 3, 7)])
def test_each_command_names_the_model_that_it_is_about(folder, taken):
    """In an empty scene the commands are those of the script; else the files that they name are the same."""
    scene = Scene(*taken)
    numbers = results.show(folder, scene.run, scene.numbers)
    script = results.commands(folder / "view.cxc")
    assert len(scene.commands) == len(script) and len(numbers) == 9
    assert {scene.files[number] for number in numbers.values()} | {"the user's", "the key"} >= set(scene.files.values())
    opened = [line.split()[1].strip('"').split("/")[-1] for line in script if line.startswith("open ")]
    by_number = dict(enumerate(opened, 1))
    for own, meant in zip(scene.commands, script, strict=True):
        mine, theirs = ([int(n) for n in re.findall(r"#!?(\d{1,2})(?![\da-f])", line)] for line in (own, meant))
        assert [scene.files[n] for n in mine] == [by_number[n] for n in theirs], own
        assert re.sub(r"#!?\d{1,2}(?![\da-f])", "#", own) == re.sub(r"#!?\d{1,2}(?![\da-f])", "#", meant)


def test_a_colour_key_in_between_does_not_matter(tmp_path):
    """It takes a number; scripts of earlier versions opened models after it."""
    text = "open a.mrc\ncolor sample #1 map #1 palette 0,#ffffff:1,#000000 key true\nopen b.mrc\nhide #!2 models\n"
    (tmp_path / "view.cxc").write_text(text)
    scene = Scene(1)
    assert results.show(tmp_path, scene.run, scene.numbers) == {1: 2, 2: 4}
    assert scene.files[3] == "the key" and scene.commands[-1] == "hide #!4 models"


def test_colours_are_no_models():
    command = "volume #2 level 0.1 color #2166ac color #5b7fa680 color #123456"
    assert results.renumbered(command, {2: 12, 5: 15}) == command.replace("#2 ", "#12 ")
    assert results.renumbered("hide #!4 models", {4: 10}) == "hide #!10 models"
    assert results.renumbered("view matrix models #9,1,0,0", {9: 11}) == "view matrix models #11,1,0,0"


def test_commands_run_in_the_folder_of_the_result(folder, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    scene, places = Scene(), []

    def run(command):
        places.append(results.Path.cwd())
        scene.run(command)

    results.show(results.Path("a morph"), run, scene.numbers)
    assert set(places) == {folder} and results.Path.cwd() == tmp_path


def test_a_folder_without_a_result_is_refused(tmp_path):
    with pytest.raises(request.Refused, match="holds no view.cxc: give the folder of a finished run"):
        results.script_of(tmp_path)
    for name in ("b", "a"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "view.cxc").touch()
    with pytest.raises(request.Refused, match="several targets: give the folder of one, a or b"):
        results.script_of(tmp_path)
    assert results.script_of(tmp_path / "a") == tmp_path / "a" / "view.cxc"


def test_a_file_that_does_not_open_is_said(folder):
    with pytest.raises(request.Refused, match="opened nothing for the command 'open frame_00.mrc"):
        results.show(folder, lambda command: None, set)
