"""Fixtures: a small pair of states on an uneven grid, and commands run in process; shapes are checked in all tests.

Modules that load JAX are not imported at the top, because the process that distributes tests to workers does not need
them.
"""

import atexit
import contextlib
import dataclasses
import gc
import importlib
import io
import json
import os
import sys
import tempfile
from dataclasses import replace
from importlib.util import find_spec

import gemmi
import jaxtyping
import numpy as np
import pytest
from absl import flags

jaxtyping.install_import_hook("cryotrans_jax", "beartype.beartype")

if "PYTEST_XDIST_WORKER" not in os.environ:  # workers, and programs started by tests, inherit it
    # One folder a session, removed at its end, so that programs compiled for one processor never run on another.
    compiled = tempfile.TemporaryDirectory(prefix="cryotrans-jax-tests-")
    atexit.register(compiled.cleanup)
    os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "true"
    os.environ["JAX_COMPILATION_CACHE_DIR"] = compiled.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = (
        "0.2"  # looking up smaller programs takes as long as compiling
    )


def pytest_configure(config):
    """Compile with few optimisations, except for slow tests: the others spend more time compiling than computing."""
    if "not slow" in config.getoption("markexpr"):
        os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "true")
        flags = os.environ.get("XLA_FLAGS", "")
        if "xla_cpu_use_fusion_emitters" not in flags:
            os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_use_fusion_emitters=false"


# Files whose fits share their programs, which are traced and compiled once where one process has them all
TOGETHER = ("test_resume.py", "test_run.py", "test_snapshots.py", "test_train.py")


@pytest.hookimpl(optionalhook=True)  # there is none where tests run in one process
def pytest_xdist_make_scheduler(config, log):
    """Give a file's tests to one process, as `--dist loadfile` does, and those of the files above to one as well."""
    if config.getoption("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid):
            file = super()._split_scope(nodeid)
            return "together" if file.endswith(TOGETHER) else file

    return Scheduling(config, log)


@pytest.fixture(scope="session", autouse=True)
def compiled_quickly(pytestconfig):
    """Compile the project's own programs, which have their own options, quickly; collect garbage less often."""
    if "not slow" in pytestconfig.getoption("markexpr"):
        from cryotrans_jax.io import programs

        programs.COMPILER_OPTIONS["cpu"]["xla_backend_optimization_level"] = 0
    gc.freeze()
    gc.set_threshold(100_000, 50, 50)


@pytest.fixture(autouse=True)
def programs_are_traced():
    """Keep no traced programs, as a command does that ran in this process: tests put functions in others' places."""
    from cryotrans_jax.io import exported

    exported._keep = False


@pytest.fixture
def unchecked():
    """Turn the checks of argument types off, as they are for users; for tests of what the package says itself."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


SHAPE = (24, 20, 28)
VOXEL = np.array([2.0, 2.2, 2.1])
ORIGIN = np.array([-21.3, 11.2, 40.7])  # not a whole number of voxels
RESOLUTION = 8.0
MOVING = 8  # residues from this one on turn by 0.6 about the middle of the chain


def bent_chain(turn):
    """Make a chain of 16 CA atoms in a wide helix, off the centre of the box, its second half turned about y."""
    k = np.arange(16)
    xyz = np.stack([2.3 * np.cos(1.7 * k), 2.3 * np.sin(1.7 * k), 1.6 * (k - 7.5)], axis=-1)
    c, s = np.cos(turn), np.sin(turn)
    xyz[MOVING:] = xyz[MOVING:] @ np.array([[c, 0, -s], [0, 1, 0], [s, 0, c]])
    model = gemmi.Structure()
    model.add_model(gemmi.Model(1))
    chain = model[0].add_chain("A")
    for number, position in enumerate(xyz + ORIGIN + VOXEL * (11, 10, 13)):
        residue = gemmi.Residue()
        residue.name, residue.seqid = "ALA", gemmi.SeqId(number + 1, " ")
        residue.entity_type = gemmi.EntityType.Polymer
        atom = gemmi.Atom()
        atom.name, atom.element, atom.pos = "CA", gemmi.Element("C"), gemmi.Position(*position)
        residue.add_atom(atom)
        chain.add_residue(residue)
    model.setup_entities()
    return model


@pytest.fixture(scope="session")
def bent():
    """Function that makes the model with its second half turned by an angle."""
    return bent_chain


@pytest.fixture(scope="session")
def models():
    """Models of the initial state, of the target state, and of a state half way."""
    return bent_chain(0.0), bent_chain(0.6), bent_chain(0.3)


@pytest.fixture(scope="session")
def maps(models):
    """Maps of the models, at one resolution on one grid."""
    from cryotrans_jax.density import simulation

    return tuple(simulation.simulate_map(model, SHAPE, VOXEL, ORIGIN, RESOLUTION) for model in models)


@pytest.fixture(scope="session")
def problem(maps):
    """Problem from the initial state to the two others."""
    from cryotrans_jax.fit import prepare
    from cryotrans_jax.fit.options import Resolutions

    return prepare.prepare(maps[0], maps[1:], Resolutions(8.0, [8.0, 8.0]))


@pytest.fixture(scope="session")
def two(problem):
    """The same, with the carried map blurred by a different width for each target."""
    blurs = np.array([0.8, 1.5])
    return replace(problem, blurs=blurs, residual_blurs=blurs)


@pytest.fixture(scope="module")
def first_stages(pytestconfig):
    """Cut the default recipe to its first three stages, two of one field and one of bodies; slow tests use all."""
    from cryotrans_jax.fit import recipes

    whole = recipes.default
    with pytest.MonkeyPatch.context() as patch:
        if "not slow" in pytestconfig.getoption("markexpr"):
            patch.setattr(recipes, "default", lambda *a: replace(c := whole(*a), schedule=c.schedule[:6]))
        yield


def fit_problem(problem, config, state=None, **how):
    """State and losses of a fit by the whole schedule, from a state or from the beginning."""
    from cryotrans_jax.fit.schedule import Fitting, run

    begun = Fitting.begin(problem, config, **how)
    fitted = run(begun if state is None else replace(begun, state=state))
    return fitted.state, [*fitted.history]


def identical(a, b):
    """Whether two values are the same in all that they hold: structure, values, and every bit of their arrays."""
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
    if isinstance(a, dict | list | tuple) or dataclasses.is_dataclass(a):
        if type(a) is not type(b):
            return False
    if dataclasses.is_dataclass(a):
        return all(identical(getattr(a, field.name), getattr(b, field.name)) for field in dataclasses.fields(a))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(identical(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(identical, a, b))
    return a == b or (a != a and b != b)


def rounding(size, depth):
    """Bound the rounding error of numbers up to `size` after `depth` operations in a row in single precision.

    Processors add in different orders, and some multiply and add in one operation, so each operation may round by a
    unit in the last place.
    """
    return float(depth * np.finfo(np.float32).eps * size)


def drift(config):
    """Bound the difference of the parameters of two equal fits: a hundredth of the distance that Adam can move them.

    Adam divides a gradient by its own size, so rounding moves parameters with almost no gradient by a full step. Fits
    to different targets differ by far more.
    """
    return 0.01 * sum(stage.steps * stage.learning_rate for stage in config.stages)


def record(folder, name, settings, **more):
    """Write the record of a run with these settings, whose input was one file in its folder."""
    from cryotrans_jax.io.files import checksum
    from experiments import run_folder

    entry = {"file": str(folder / name), "sha256": checksum(folder / name)}
    kept = {"settings": settings, "inputs": {name: entry}, "initial": name, "target": "map", "targets": ["map"]}
    (folder / "config.json").write_text(json.dumps(kept | {"chosen": {}, "versions": {}} | more))
    run_folder.sign(folder)


@pytest.fixture(scope="session")
def job():
    """Function that runs a command in this process, like `python -m experiments.<name> <arguments>`."""
    return run_job


def run_job(name, *arguments):
    """Run a command, and return its status, stdout and stderr; its flags are defined only for this call."""
    (home,) = (home for home in ("experiments", "experiments.studies", "tests.tools") if find_spec(f"{home}.{name}"))
    module, main = importlib.import_module(f"{home}.{name}"), importlib.import_module("experiments.main")
    arguments_before = sys.argv
    out, error = io.StringIO(), io.StringIO()
    try:
        module.define_flags()
        sys.argv = [f"{name}.py", *map(str, arguments)]
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
            main.run(module.main, getattr(module, "NAMES", ()))
        status = 0
    except SystemExit as stopped:
        status = stopped.code
    finally:
        sys.argv = arguments_before
        for owner, defined in flags.FLAGS.flags_by_module_dict().items():
            for flag in list(defined) if owner.startswith(("experiments", "tests.tools")) else ():
                delattr(flags.FLAGS, flag.name)
    return status, out.getvalue(), error.getvalue()


@pytest.fixture
def few_rotations(monkeypatch):
    """Fewer rotations tried by alignments, which are faster so; enough for maps of one state."""
    from cryotrans_jax.density import align

    spread = align.even_rotations
    monkeypatch.setattr(align, "even_rotations", lambda count: spread(min(count, 300)))
