"""Simulate the map of an atomic model as a sum of Gaussians, one for each atom (ChimeraX molmap).

python -m experiments.simulate --model=6RAI.cif --resolution=5 --like=6RAH_3A.mrc --output=6RAI_5A.mrc
"""

from absl import flags

from . import flags as shared
from . import log, paths, ranges
from .main import command_of

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Define the flags of this command; not on import, so that commands can import one another."""
    paths.define_path("model", None, "MODEL: PDB or mmCIF. Must be given.", required=True)
    ranges.number("resolution", None, "Å: resolution of the map. Must be given.", ranges.RESOLUTION, required=True)
    paths.define_path(
        "output", None, "MAP: to write, .mrc, .map, .ccp4, or these with .gz. Must be given.", required=True
    )
    paths.define_path("like", None, "MAP: whose grid to use; else a box about the model.")
    shared.define_size(
        "voxel_size",
        "Å: voxel size, one number or three; resolution / 3 if not given. With --like, that of the map that it names, "
        "where its header has none or a wrong one.",
    )
    paths.define_paths("cover", [], "MODEL,...: further models that the box must hold, separated by commas.")
    paths.define_path("superpose_on", None, "MODEL: onto which the model is moved first, by common CA atoms.")
    shared.define_all_models()
    flags.DEFINE_bool("overwrite", False, "Replace the output if it is there.")


def main() -> None:
    """Simulate the map and write it."""
    import numpy as np

    from cryotrans_jax.density import simulation
    from cryotrans_jax.io import atoms, files, maps

    from .inputs import check_detail, check_inside

    if FLAGS.like and FLAGS.cover:
        raise files.InputError("--like already sets the grid: leave out --cover")
    maps.check_output(FLAGS.output, FLAGS.overwrite)
    model = atoms.read_model(FLAGS.model, FLAGS.all_models)
    if FLAGS.superpose_on:
        model = atoms.superpose(model, atoms.read_model(FLAGS.superpose_on, FLAGS.all_models))
    like, cover, size = None, [atoms.read_model(path, FLAGS.all_models) for path in FLAGS.cover], FLAGS.voxel_size
    if FLAGS.like:
        like, size = maps.read_map(FLAGS.like, size), None
        check_detail(FLAGS.resolution, float(like.voxel_size.min()))
        check_inside(model, like.density.shape, like.voxel_size, like.origin, "the model")
    elif size:
        check_detail(FLAGS.resolution, min(size))
    map = simulation.simulate(model, FLAGS.resolution, like=like, voxel_size=size and np.array(size), cover=cover)
    maps.write_map(FLAGS.output, map)
    log.map_written(FLAGS.output, maps.describe(map), FLAGS.resolution)


command = command_of(main, define_flags)

if __name__ == "__main__":
    command()
