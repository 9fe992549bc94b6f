"""The bundle of ChimeraX as a package: its modules without ChimeraX, or all of it beside small fakes of ChimeraX's."""

import importlib.util
import sys
import types
from pathlib import Path

HOME = Path(__file__).parents[2] / "chimerax"


def plain(name):
    """A module of the bundle that needs no ChimeraX."""
    if "bundle_of_chimerax" not in sys.modules:
        package = types.ModuleType("bundle_of_chimerax")
        package.__path__ = [str(HOME / "src")]
        sys.modules[package.__name__] = package
    return importlib.import_module(f"bundle_of_chimerax.{name}")


class Description:
    """A `CmdDesc` of ChimeraX: what a command takes."""

    def __init__(self, required=(), keyword=(), required_arguments=(), synopsis=None):
        self.required, self.keyword = dict(required), dict(keyword)
        self.required_arguments, self.synopsis = required_arguments, synopsis


class Settings:
    """`Settings` of ChimeraX: what is set in one object is in those that are made later."""

    AUTO_SAVE, kept = {}, {}

    def __init__(self, session, name):
        object.__setattr__(self, "name", name)

    def __getattr__(self, key):
        return self.kept.get((self.name, key), self.AUTO_SAVE[key])

    def __setattr__(self, key, value):
        self.kept[self.name, key] = value


def whole(monkeypatch, run, register):
    """The bundle as ChimeraX imports it.

    Args:
        run: what runs a command of ChimeraX, given the session and the command.
        register: what registers one.
    """
    arguments = "AtomicStructureArg FileNameArg Float2Arg OpenFolderNameArg SaveFolderNameArg StringArg MapArg".split()
    kinds = {name: type(name, (), {"unparse": staticmethod(lambda text: f'"{text}"')}) for name in arguments}
    fakes = {
        "chimerax": {"__path__": []},
        "chimerax.atomic": {"AtomicStructureArg": kinds["AtomicStructureArg"]},
        "chimerax.core": {"__path__": []},
        "chimerax.core.commands": kinds | {"CmdDesc": Description, "run": run, "register": register},
        "chimerax.core.errors": {"UserError": type("UserError", (Exception,), {})},
        "chimerax.core.settings": {"Settings": type("Settings", (Settings,), {"kept": {}})},
        "chimerax.core.toolshed": {"BundleAPI": type("BundleAPI", (), {})},
        "chimerax.map": {"MapArg": kinds["MapArg"]},
    }
    for name, content in fakes.items():
        module = types.ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    for name in [name for name in sys.modules if name.startswith("chimerax.cryotrans")]:
        monkeypatch.delitem(sys.modules, name)
    place = HOME / "src" / "__init__.py"
    spec = importlib.util.spec_from_file_location(
        "chimerax.cryotrans", place, submodule_search_locations=[str(place.parent)]
    )
    package = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, package)
    spec.loader.exec_module(package)
    return package
