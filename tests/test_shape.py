"""Files, functions and classes stay small enough to be read; exceptions are named with their reason."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
FILES = sorted(path for name in ("cryotrans_jax", "experiments", "chimerax") for path in (ROOT / name).rglob("*.py"))
TREES = {str(path.relative_to(ROOT)): ast.parse(path.read_text()) for path in FILES}
MOST_LINES, MOST_IN_FUNCTION, MOST_PARAMETERS, MOST_NONE = 400, 40, 8, 3

LONG_FILES: dict[str, str] = {}
LONG_FUNCTIONS = {
    "experiments/load.py:load_case": "one constructor of many fields",
}
MANY_PARAMETERS: dict[str, str] = {}
MANY_NONE = {
    "cryotrans_jax/density/problem.py:Problem": "what half-maps, parts and a symmetry add",
    "experiments/case.py:Case": "what a run may have besides two maps",
    "experiments/settings.py:HostSettings": "flags that need not be given",
    "experiments/settings.py:InputSettings": "flags that need not be given",
    "experiments/systems.py:State": "what the paper does not say of a system",
    "experiments/systems.py:System": "what the paper does not say of a system",
}


def functions():
    """Every function of the package, of the experiments and of the bundle of ChimeraX, by file and name."""
    for file, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{file}:{node.name}", node


def lines_of_code(node):
    """Lines of a function without its docstring."""
    first = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node.body[0]
    return node.end_lineno - first.lineno + 1


def test_files_are_short():
    long = {file for file in TREES if len((ROOT / file).read_text().splitlines()) > MOST_LINES}
    assert long == set(LONG_FILES)


def test_the_core_is_short():
    core = {
        file: len((ROOT / file).read_text().splitlines()) for file in TREES if file.startswith("cryotrans_jax/core")
    }
    assert core["cryotrans_jax/core/train.py"] <= 150 and sum(core.values()) <= 1150


def test_functions_are_short():
    assert {name for name, node in functions() if lines_of_code(node) > MOST_IN_FUNCTION} == set(LONG_FUNCTIONS)


def test_functions_have_few_parameters():
    def count(node):
        named = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        return len([a for a in named if a.arg not in ("self", "cls")])

    assert {name for name, node in functions() if count(node) > MOST_PARAMETERS} == set(MANY_PARAMETERS)


def test_classes_have_few_fields_that_may_be_none():
    def nones(node):
        values = [item.value for item in node.body if isinstance(item, ast.AnnAssign) and item.value is not None]
        return sum(isinstance(value, ast.Constant) and value.value is None for value in values)

    classes = (
        (f"{file}:{n.name}", n) for file, tree in TREES.items() for n in ast.walk(tree) if isinstance(n, ast.ClassDef)
    )
    assert {name for name, node in classes if nones(node) > MOST_NONE} == set(MANY_NONE)


# Numbers at the heads of files, with the reason why they are no settings of a fit; those of recipes are its own
CONSTANTS = {
    "core/sine.py": "mathematical constants",
    "core/transport.py": "mathematical constants, the paper's least mass, and how the kernel is computed",
    "density/checks.py": "when inputs are doubted or refused",
    "density/contour.py": "which contour is displayed",
    "density/demo.py": "the built-in pair",
    "density/deposition.py": "the FSC by which resolutions are stated, and what noise and atoms in contact are like",
    "density/overlap.py": "how correlations are computed, and what is too small to be aligned",
    "density/refine_pose.py": "iterations, and how points are arranged in memory",
    "density/simulation.py": "the convention of molmap, and memory",
    "density/slabs.py": "memory",
    "density/surface.py": "how pictures look",
    "density/symmetry.py": "when a symmetry is refused, and the search for axes that may be given instead",
    "density/thresholds.py": "volume of a dalton",
    "density/transform.py": "the identity",
    "fit/devices.py": "memory",
    "fit/prepare.py": "a multiple of all binnings",
    "fit/progress.py": "how often progress is printed",
    "fit/supervise.py": "points that are looked at for divergence",
    "fit/strain.py": "accuracy of derivatives, and the definition of a score",
    "fit/trajectory.py": "numerical accuracy, and sizes of programs and chunks",
    "io": "formats and limits of files and memory",
    "motion/displacement.py": "how displacements are sampled for the report",
    "motion/inverse.py": "numerical accuracy, and memory",
    "motion/lattice.py": "numerical scheme beyond the active nodes",
    "motion/partition.py": "how voxels without a part join one, and softness of cuts within a voxel",
    "motion/piecewise.py": "how points are arranged in memory",
    "motion/screw.py": "numerical accuracy of small angles",
    "plots.py": "how figures look",
    "scores": "definitions of the scores",
    "fit/recipes.py": "a recipe's numbers become fields of its stages",
}


def test_numbers_at_the_head_of_a_file_are_no_settings_of_a_fit():
    def numbers(node):
        return any(isinstance(n, ast.Constant) and isinstance(n.value, int | float) for n in ast.walk(node.value))

    found = {
        file.removeprefix("cryotrans_jax/")
        for file, tree in TREES.items()
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]).isupper() and numbers(node)
        if file.startswith("cryotrans_jax/")
    }
    assert {file if file in CONSTANTS else file.split("/")[0] for file in found} == set(CONSTANTS)
