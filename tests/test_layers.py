"""Folders import only from those below, and flags stay in experiments."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = {  # what the files of a folder may import from; each also from its own
    "core": set(),
    "io": {"core"},
    "density": {"core", "io"},
    "motion": {"core", "io", "density"},
    "scores": {"core", "io", "density"},
    "fit": {"core", "io", "density", "motion", "scores"},
    "": {"core", "io", "density", "motion", "scores", "fit"},  # figures, and ways to compare with
}
PACKAGE = ROOT / "cryotrans_jax"
NAMES = sorted(
    str(path.relative_to(PACKAGE).with_suffix("")) for path in PACKAGE.rglob("*.py") if path.stem != "__init__"
)


def imported(path):
    """Full names of all that a file imports, inside functions as well."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def ours(name):
    """The package's files that a file imports, as "folder/file"."""
    found = {each.replace(".", "/").removeprefix("cryotrans_jax/") for each in imported(PACKAGE / f"{name}.py")}
    return {each for full in found for each in (full, full.rpartition("/")[0]) if each in NAMES}


def folder(name):
    return name.rpartition("/")[0]


def test_the_folders_are_those_of_the_package():
    assert {folder(name) for name in NAMES} == set(FOLDERS)
    assert all((PACKAGE / name / "__init__.py").is_file() for name in FOLDERS)


@pytest.mark.parametrize("name", NAMES)
def test_a_file_imports_only_from_its_folder_and_those_below(name):
    allowed = FOLDERS[folder(name)] | {folder(name)}
    assert {folder(found) for found in ours(name)} <= allowed


def test_no_files_import_one_another_in_a_circle():
    """Files whose imports have all been taken away are taken away in turn, until none is left."""
    left = {name: ours(name) for name in NAMES}
    while free := [name for name, needs in left.items() if not needs & set(left)]:
        left = {name: needs for name, needs in left.items() if name not in free}
    assert not left, f"a circle among {sorted(left)}"


@pytest.mark.parametrize("name", NAMES)
def test_the_package_knows_neither_flags_nor_jobs(name):
    roots = {found.split(".")[0] for found in imported(PACKAGE / f"{name}.py")}
    assert not roots & {"absl", "experiments", "logging", "argparse"}
    assert name == "fit/progress" or "tqdm" not in roots


def test_jobs_import_nothing_heavy_before_their_flags_are_read():
    """--help is quick: what a job imports at its top leads to none of the numerical packages."""
    for name in ("run", "predict", "report", "simulate", "fetch", "main", "flags", "compare", "studies/trajectory"):
        tree = ast.parse((ROOT / "experiments" / f"{name}.py").read_text())
        top = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        top = [n for n in top if isinstance(n, ast.Import) or not n.level]  # jobs' own files are looked at here, too
        roots = {(a.name if isinstance(n, ast.Import) else n.module) for n in top for a in n.names}
        assert not {root.split(".")[0] for root in roots} & {"jax", "numpy", "scipy", "gemmi", "cryotrans_jax"}


EXPERIMENTS = ROOT / "experiments"
COMMANDS = {
    str(path.relative_to(EXPERIMENTS).with_suffix("")): path
    for path in EXPERIMENTS.rglob("*.py")
    if path.stem != "__init__"
}


def relative_imports(name):
    """The files of experiments that one of them imports, inside functions as well, but for itself."""
    found = set()
    for node in ast.walk(ast.parse(COMMANDS[name].read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = COMMANDS[name].parents[node.level - 1].relative_to(EXPERIMENTS)
            whole = base / (node.module or "").replace(".", "/")
            found |= {str(whole), *(str(whole / alias.name) for alias in node.names)}
    return found & set(COMMANDS) - {name}


def test_commands_do_not_need_studies_and_nothing_is_imported_in_a_circle():
    left = {name: relative_imports(name) for name in COMMANDS}
    for name, needs in left.items():
        assert name.startswith("studies/") or not [each for each in needs if each.startswith("studies/")], name
    while free := [name for name, needs in left.items() if not needs & set(left)]:
        left = {name: needs for name, needs in left.items() if name not in free}
    assert not left, f"a circle among {sorted(left)}"


def test_no_file_needs_a_command_but_those_that_run_it():
    commands = {name for name, path in COMMANDS.items() if "\ndef define_flags" in path.read_text()} - {"flags"}
    for name in set(COMMANDS) - commands:
        assert not relative_imports(name) & commands, name


def test_settings_are_typed_and_flags_are_handed_only_to_the_record_of_a_run():
    record = {("record", "describe"), ("record", "settings_of"), ("resume", "__init__"), ("resume", "terms")}
    untyped = set()
    for name, path in COMMANDS.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                given = [each for each in (*node.args.args, *node.args.kwonlyargs) if each.arg == "settings"]
                types = {each.annotation and ast.unparse(each.annotation) for each in given}
                untyped |= {(name, node.name) for kind in types if not str(kind).endswith("Settings")}
    assert untyped - {("results", "fit_case")} <= record
