"""A small pair of states on an uneven grid, and jobs run in process; shapes are checked in all tests.

Nothing that loads JAX is imported up here: the process that only hands tests to the workers does without.
"""

import atexit
import contextlib
import gc
import importlib
import io
import json
import os
import sys
import tempfile
from dataclasses import replace

import gemmi
import numpy as np
import pytest
from absl import flags
from jaxtyping import install_import_hook

install_import_hook("cryotrans_jax", "beartype.beartype")

if "PYTEST_XDIST_WORKER" not in os.environ:  # workers, and programs that tests start, inherit it
    # One folder a session, gone at its end: programs compiled for one processor are never run on another.
    compiled = tempfile.TemporaryDirectory(prefix="cryotrans-jax-tests-")
    atexit.register(compiled.cleanup)
    os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "true"
    os.environ["JAX_COMPILATION_CACHE_DIR"] = compiled.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"  # to look for smaller ones takes as long


def pytest_configure(config):
    """Compile quickly rather than well, but for the slow tests: the others compile for longer than they compute."""
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
    """The same for the project's own programs, whose options are their own; and what lives long is looked at less."""
    if "not slow" in pytestconfig.getoption("markexpr"):
        from cryotrans_jax import programs

        programs.QUICK["cpu"]["xla_backend_optimization_level"] = 0
    gc.freeze()
    gc.set_threshold(100_000, 50, 50)


SHAPE = (24, 20, 28)
VOXEL = np.array([2.0, 2.2, 2.1])
ORIGIN = np.array([-21.3, 11.2, 40.7])  # no whole number of voxels
RESOLUTION = 8.0
MOVING = 8  # residues from here on turn by 0.6 about the chain's middle


def bent_chain(turn):
    """A chain of 16 CA atoms in a wide helix, off the middle of the box, the second half turned about y."""
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
    """Makes the model with its second half turned by an angle."""
    return bent_chain


@pytest.fixture(scope="session")
def models():
    """Models of the initial state, of the target state, and of one half way."""
    return bent_chain(0.0), bent_chain(0.6), bent_chain(0.3)


@pytest.fixture(scope="session")
def maps(models):
    """The models' maps, at one resolution on one grid."""
    from cryotrans_jax import atoms

    return tuple(atoms.simulate_map(model, SHAPE, VOXEL, ORIGIN, RESOLUTION) for model in models)


@pytest.fixture(scope="session")
def problem(maps):
    """From the initial state to the two others."""
    from cryotrans_jax import prepare

    return prepare.prepare(maps[0], maps[1:], initial_resolution=8.0, target_resolutions=[8.0, 8.0])


@pytest.fixture(scope="session")
def two(problem):
    """The same, with the carried map blurred by a different width for each target."""
    blurs = np.array([0.8, 1.5])
    return replace(problem, blurs=blurs, rests=blurs)


@pytest.fixture(scope="module")
def first_stages(pytestconfig):
    """Cut the default recipe to its first stages, of one field and of bodies; slow tests fit by all of them."""
    from cryotrans_jax import recipes

    whole = recipes.default
    with pytest.MonkeyPatch.context() as patch:
        if "not slow" in pytestconfig.getoption("markexpr"):
            patch.setattr(recipes, "default", lambda *a: replace(c := whole(*a), stages=c.stages[:3], redrawn=3))
        yield


def rounding(size, depth):
    """Return the error that single precision may leave of numbers up to `size` after `depth` operations in a row.

    Processors add up in different orders, and some multiply and add in one operation: each operation may round by a
    unit in the last place, on any of them.
    """
    return float(depth * np.finfo(np.float32).eps * size)


def drift(config):
    """Return how far apart the parameters of two equal fits may be: a hundredth of the way that Adam can go.

    Adam divides a gradient by its own size, so that rounding moves in full what has next to no gradient. Fits to
    different targets are further apart by far.
    """
    return 0.01 * sum(stage.steps * stage.learning_rate for stage in config.stages)


def record(folder, name, settings, **more):
    """Writes the record of a run with these settings, which had one file in its folder as its input."""
    from cryotrans_jax.files import checksum
    from experiments import run_folder

    entry = {"file": str(folder / name), "sha256": checksum(folder / name)}
    kept = {"settings": settings, "inputs": {name: entry}, "initial": name, "target": "map", "targets": ["map"]}
    (folder / "config.json").write_text(json.dumps(kept | {"chosen": {}, "versions": {}} | more))
    run_folder.sign(folder)


@pytest.fixture(scope="session")
def job():
    """Runs a job in this process as `python -m experiments.<name> <arguments>` would: (status, stdout, stderr)."""
    return run_job


def run_job(name, *arguments):
    """A job's status, stdout and stderr. Its flags are defined for it alone, and gone afterwards."""
    module, main = (importlib.import_module(f"experiments.{part}") for part in (name, "main"))
    arguments_before = sys.argv
    out, error = io.StringIO(), io.StringIO()
    try:
        module.define_flags()
        sys.argv = [f"{name}.py", *map(str, arguments)]
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
            main.run(module.main)
        status = 0
    except SystemExit as stopped:
        status = stopped.code
    finally:
        sys.argv = arguments_before
        for owner, defined in flags.FLAGS.flags_by_module_dict().items():
            for flag in list(defined) if owner.startswith("experiments") else ():
                delattr(flags.FLAGS, flag.name)
    return status, out.getvalue(), error.getvalue()
