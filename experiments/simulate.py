"""Simulates the map of an atomic model, one Gaussian an atom (ChimeraX molmap).

python -m experiments.simulate --model=6RAI.cif --resolution=5 --like=6RAH_3A.mrc --output=6RAI_5A.mrc
"""

from absl import flags

from . import ranges
from .main import run

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Nothing; the flags of this job are there. Not done on import, so that jobs can import one another."""
    flags.DEFINE_string("model", None, "MODEL: PDB or mmCIF. Must be given.", required=True)
    ranges.number("resolution", None, "Å: resolution of the map. Must be given.", ranges.RESOLUTION, required=True)
    flags.DEFINE_string(
        "output", None, "MAP: to write, .mrc, .map, .ccp4, or these with .gz. Must be given.", required=True
    )
    flags.DEFINE_string("like", None, "MAP: whose grid to use; else a box about the model.")
    ranges.number("voxel_size", None, "Å: voxel size; resolution / 3 if not given.", ranges.VOXEL_SIZE)
    flags.DEFINE_list("cover", [], "MODEL,...: further models that the box must hold, separated by commas.")
    flags.DEFINE_string("superpose_on", None, "MODEL: onto which the model is moved first, by common CA atoms.")
    flags.DEFINE_bool("overwrite", False, "Replace the output if it is there.")


def main() -> None:
    """Nothing; writes the map that the flags ask for."""
    from cryotrans_jax import atoms, files, maps

    from .inputs import check_detail, check_inside

    if FLAGS.like and (FLAGS.voxel_size or FLAGS.cover):
        raise files.InputError("--like already sets the grid: leave out --voxel_size and --cover")
    maps.check_output(FLAGS.output, FLAGS.overwrite)
    model = atoms.read_model(FLAGS.model)
    if FLAGS.superpose_on:
        model = atoms.superpose(model, atoms.read_model(FLAGS.superpose_on))
    like, cover = FLAGS.like and maps.read_map(FLAGS.like), [atoms.read_model(path) for path in FLAGS.cover]
    if like:
        check_detail(FLAGS.resolution, float(like.voxel_size.min()))
        check_inside(model, like.density.shape, like.voxel_size, like.origin, "the model")
    elif FLAGS.voxel_size:
        check_detail(FLAGS.resolution, FLAGS.voxel_size)
    map = atoms.simulate(model, FLAGS.resolution, like=like, voxel_size=FLAGS.voxel_size, cover=cover)
    maps.write_map(FLAGS.output, map)
    print(f"{FLAGS.output}: {maps.describe(map)}, {FLAGS.resolution:g} Å resolution")


def command() -> None:
    """Nothing; the job is done as the command line says."""
    define_flags()
    run(main)


if __name__ == "__main__":
    command()
