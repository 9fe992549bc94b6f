"""Imports point downward, and flags stay in experiments."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = (  # a file imports only from layers before its own
    {
        "files",
        "velocity",
        "flow",
        "splat",
        "lattice",
        "transport",
        "losses",
        "plots",
        "surface",
        "demo",
        "programs",
        "progress",
        "memory",
        "pdb",
    },
    {"maps", "projection", "structures", "checkpoints"},
    {"atoms", "outliers", "prepare"},
    {"metrics", "correspond", "contour", "mask", "motion", "geometry", "align", "partition", "qscore"},
    {"train", "symmetry", "borders", "micelle", "checks"},
    {"trajectory", "recipes", "snapshots"},
    {"morphing"},
    {"baselines"},
)
NAMES = sorted(path.stem for path in (ROOT / "cryotrans_jax").glob("*.py") if path.stem != "__init__")


def imported(path):
    """Full names of all that a file imports, inside functions as well."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def ours(path):
    """Names of the package's files that a file imports."""
    found = {name.split(".")[1] for name in imported(path) if name.startswith("cryotrans_jax.")}
    return found & set(NAMES)


def test_every_file_is_in_one_layer():
    assert sorted(name for layer in LAYERS for name in layer) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_file_imports_only_from_layers_below_its_own(name):
    number = next(k for k, layer in enumerate(LAYERS) if name in layer)
    below = set().union(*LAYERS[:number])
    found = ours(ROOT / "cryotrans_jax" / f"{name}.py")
    assert found <= below, f"{name} imports {found - below}"
    # and is no higher than it need be
    assert number == 0 or found & LAYERS[number - 1]


@pytest.mark.parametrize("name", NAMES)
def test_the_package_knows_neither_flags_nor_jobs(name):
    roots = {found.split(".")[0] for found in imported(ROOT / "cryotrans_jax" / f"{name}.py")}
    assert not roots & {"absl", "experiments", "logging", "argparse"}
    assert name == "progress" or "tqdm" not in roots


def test_jobs_import_nothing_heavy_before_their_flags_are_read():
    """--help is quick: what a job imports at its top leads to none of the numerical packages."""
    for name in ("run", "predict", "report", "simulate", "fetch", "main", "flags", "compare", "trajectory"):
        tree = ast.parse((ROOT / "experiments" / f"{name}.py").read_text())
        top = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        top = [n for n in top if isinstance(n, ast.Import) or not n.level]  # jobs' own files are looked at here, too
        roots = {(a.name if isinstance(n, ast.Import) else n.module) for n in top for a in n.names}
        assert not {root.split(".")[0] for root in roots} & {"jax", "numpy", "scipy", "gemmi", "cryotrans_jax"}
