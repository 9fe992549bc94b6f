"""The bundle as ChimeraX takes it: what it declares is there, and its commands do what they are asked to."""

import re
import shlex
import sys
import threading
import time
import tomllib
from types import SimpleNamespace

import pytest
from bundle import HOME, whole

PROJECT = tomllib.loads((HOME.parent / "pyproject.toml").read_text())["project"]
BUNDLE = tomllib.loads((HOME / "pyproject.toml").read_text())
NAMES = sorted(BUNDLE["tool"]["chimerax"]["command"])
FINISHED = """
import os, pathlib, sys
print("--frames=5" in sys.argv, flush=True)
folder = pathlib.Path(next(a for a in sys.argv if a.startswith("--out_dir=")).partition("=")[2])
(folder / "view.cxc").write_text("# a comment\\nopen generated.mrc\\nvolume #1 level 1\\n")
"""


def test_what_the_bundle_declares_is_there():
    project, own = BUNDLE["project"], BUNDLE["tool"]["chimerax"]
    assert project["version"] == PROJECT["version"] and project["authors"] == PROJECT["authors"]
    assert project["license"]["text"] == PROJECT["license"]
    assert project["name"].startswith("ChimeraX-") and set(project["dynamic"]) == {"classifiers", "requires-python"}
    assert (HOME / project["readme"]).is_file() and (HOME / "src" / "__init__.py").is_file()
    assert BUNDLE["build-system"]["build-backend"] == "chimerax.bundle_builder.cx_pep517"
    assert "ChimeraX-BundleBuilder" in BUNDLE["build-system"]["requires"]
    assert own["categories"] and all({"category", "description"} == set(each) for each in own["command"].values())


def test_the_page_of_the_bundle_has_every_command_and_keyword(chimerax):
    text = (HOME / "README.md").read_text()
    for name, (_, description) in chimerax.commands.items():
        assert name in text
        assert all(re.search(rf"\b{word}\b", text) for word in description.keyword)
    assert "devel install" in text and "not been tried" in text


class ChimeraX:
    """A session of ChimeraX without ChimeraX: it records its log and the commands that are run in it."""

    def __init__(self, monkeypatch):
        self.ran, self.log, self.commands, self.handlers, self.numbers = [], [], {}, [], {1, 2}
        package = whole(monkeypatch, self.run, lambda name, desc, do, logger: self.commands.update({name: (do, desc)}))
        self.module, self.session = (
            package,
            SimpleNamespace(
                ui=SimpleNamespace(thread_safe=lambda do, *arguments: do(*arguments)),
                logger=SimpleNamespace(**{kind: self.logging(kind) for kind in ("status", "info", "warning", "error")}),
                triggers=SimpleNamespace(add_handler=self.add_handler, remove_handler=self.handlers.remove),
                models=SimpleNamespace(list=lambda: [SimpleNamespace(id=(number,)) for number in self.numbers]),
            ),
        )
        for name in NAMES:
            package.bundle_api.register_command(None, SimpleNamespace(name=name), self.session.logger)

    def logging(self, kind):
        return lambda text: self.log.append((kind, text))

    def add_handler(self, name, do):
        assert name == "app quit"
        self.handlers.append(do)
        return do

    def run(self, session, command):
        assert session is self.session
        self.ran.append(command)
        if command.startswith("save "):
            with open(shlex.split(command)[1], "w") as file:
                file.write(command.split()[-1])
        if command.startswith("open "):
            self.numbers.add(max(self.numbers) + 1)

    def do(self, name, **arguments):
        return self.commands[name][0](self.session, **arguments)

    def wait(self):
        """Wait for the run in progress to end."""
        end = time.monotonic() + 30
        while getattr(self.session, "cryotrans_job", None) or any(t.name == "cryotrans" for t in threading.enumerate()):
            assert time.monotonic() < end
            time.sleep(0.02)


@pytest.fixture
def chimerax(monkeypatch):
    return ChimeraX(monkeypatch)


@pytest.fixture
def opened(tmp_path):
    """Two maps and a model that are open in ChimeraX: the first as in its file, the second changed."""
    (tmp_path / "a map.mrc").touch()
    place = {"origin": (0, 0, 0), "original_origin": (0, 0, 0), "original_step": (1, 1, 1), "grid_id": ""}

    def model(number, name, **data):
        kept = SimpleNamespace(path=str(tmp_path / name), writable=False, **place, **data)
        return SimpleNamespace(atomspec=f"#{number}", name=name, data=kept, display=True, deleted=False)

    return model(1, "a map.mrc", step=(1, 1, 1)), model(2, "b.mrc", step=(1, 1, 2)), model(3, "c.cif")


def test_the_bundle_registers_its_commands(chimerax):
    assert sorted(chimerax.commands) == NAMES == ["cryotrans morph", "cryotrans open", "cryotrans stop"]
    for name, (_, description) in chimerax.commands.items():
        assert description.synopsis == BUNDLE["tool"]["chimerax"]["command"][name]["description"]
    _, morph = chimerax.commands["cryotrans morph"]
    assert [*morph.required] == ["initial"] and morph.required_arguments == ["to"]
    assert [*morph.keyword] == ["to", "model", "resolutions", "directory", "program", "options"]


def test_a_morph_writes_what_has_changed_runs_the_program_and_opens_the_result(chimerax, opened, tmp_path):
    first, second, model = opened
    program = f"{sys.executable} -c {shlex.quote(FINISHED)}"
    folder = tmp_path / "a run"
    chimerax.do(
        "cryotrans morph", initial=first, to=second, model=model, directory=str(folder), program=program,
        options="--frames=5",
    )  # fmt: skip
    chimerax.wait()
    saved = [line for line in chimerax.ran if line.startswith("save ")]
    assert [line.partition("/")[2].split("/")[-1] for line in saved] == [
        'target.mrc" models #2 region all step 1 maskZone false',
        'model.cif" models #3 relModel #1',
    ]
    assert sorted(path.name for path in (folder / "inputs").iterdir()) == ["model.cif", "target.mrc"]
    assert chimerax.ran[len(saved) :] == ["open generated.mrc", "volume #3 level 1"]
    assert ("info", "True") in chimerax.log and ("status", "CryoTRANS: True") in chimerax.log
    assert not {"warning", "error"} & {kind for kind, _ in chimerax.log}
    assert not (first.display or second.display or model.display) and not chimerax.handlers


def test_the_program_is_remembered(chimerax, opened, tmp_path):
    first, *_ = opened
    program = f"{sys.executable} -c {shlex.quote(FINISHED)}"
    for number, named in enumerate((program, None)):
        folder = str(tmp_path / f"run_{number}")
        (tmp_path / f"run_{number}").mkdir()
        chimerax.do("cryotrans morph", initial=first, to=first, directory=folder, program=named)
        chimerax.wait()
    assert chimerax.ran.count("open generated.mrc") == 2


def test_the_sentence_of_the_program_is_an_error(chimerax, opened, tmp_path):
    code = "import sys; print('warning: odd', file=sys.stderr); print('error: no map', file=sys.stderr); sys.exit(2)"
    program = f"{sys.executable} -c {shlex.quote(code)}"
    chimerax.do("cryotrans morph", initial=opened[0], to=opened[0], directory=str(tmp_path / "x"), program=program)
    chimerax.wait()
    assert ("warning", "odd") in chimerax.log and ("error", "CryoTRANS: no map") in chimerax.log
    assert opened[0].display and not chimerax.ran


def test_a_morph_is_stopped_by_its_command_and_at_the_end_of_chimerax(chimerax, opened, tmp_path):
    error = sys.modules["chimerax.core.errors"].UserError
    code = "import time; print('begun', flush=True); time.sleep(600)"
    program = f"{sys.executable} -c {shlex.quote(code)}"
    asked = dict(initial=opened[0], to=opened[0], directory=str(tmp_path / "x"), program=program)
    for stop in (lambda: chimerax.do("cryotrans stop"), lambda: chimerax.handlers[0]("app quit", None)):
        chimerax.log.clear()
        chimerax.do("cryotrans morph", **asked)
        with pytest.raises(error, match="a morph is in progress in .*x: wait for it"):
            chimerax.do("cryotrans morph", **asked)
        stop()
        chimerax.wait()
        assert ("info", "CryoTRANS: stopped by SIGTERM. The same command resumes it.") in chimerax.log
        assert "error" not in {kind for kind, _ in chimerax.log}
    with pytest.raises(error, match="no morph is in progress"):
        chimerax.do("cryotrans stop")


def test_what_cannot_be_done_is_an_error_of_the_user(chimerax, opened, tmp_path):
    error = sys.modules["chimerax.core.errors"].UserError
    (tmp_path / "file").touch()
    for asked, said in (
        (dict(program="no-such-program"), "no program no-such-program was found"),
        (dict(program=sys.executable, options="--out_dir=x"), "--out_dir is among the options"),
        (dict(program=sys.executable, directory=str(tmp_path / "file")), "file/inputs: Not a directory"),
    ):
        with pytest.raises(error, match=said):
            chimerax.do("cryotrans morph", initial=opened[0], to=opened[1], **asked)
    with pytest.raises(error, match="holds no view.cxc"):
        chimerax.do("cryotrans open", folder=str(tmp_path))
    assert not chimerax.ran and not chimerax.handlers
