"""Simulate the map of an atomic model as a sum of Gaussians, one for each atom (ChimeraX molmap).

python -m experiments.simulate --model=6RAI.cif --resolution=5 --like=6RAH_3A.mrc --output=6RAI_5A.mrc
python -m experiments.simulate --model=6RAI.cif --resolution=6 --as_deposited --sharpen --output=target.mrc

With --as_deposited the map has the noise of a reconstruction at that resolution, and the half-maps target_half1.mrc and
target_half2.mrc are written as well: try the motion that you expect on such a pair before you trust a result.
"""

from pathlib import Path

from absl import flags

from . import flags as shared
from . import log, paths, ranges
from .main import command_of
from .usage import group

FLAGS = flags.FLAGS
DEPOSITED = ("seed", "b_factor", "b_growth", "belt", "lacking", "extra", "sharpen", "turn", "shift", "scale", "offset")


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
    paths.define_path(
        "superpose_on", None, "MODEL: onto which the model is moved first, by common CA atoms (C4' of nucleotides)."
    )
    shared.define_all_models()
    flags.DEFINE_bool("overwrite", False, "Replace the output if it is there.")
    define_deposited()


@group("As deposited")
def define_deposited() -> None:
    """Define the flags of a map as reconstructions are deposited."""
    flags.DEFINE_bool(
        "as_deposited",
        False,
        "Simulate a deposition: noise that limits the half-maps' FSC to 0.143 at the resolution, and both half-maps.",
    )
    ranges.whole_number("seed", 0, "Seed of the noise and of the pose.", ranges.SEED)
    ranges.number("b_factor", None, "Å²: of the central atoms; 10 times the resolution squared if not given.", ranges.B)
    ranges.number("b_growth", 0.0, "Å²: what the B-factor has more at the atom farthest from the centre.", ranges.B)
    flags.DEFINE_bool("belt", False, "Add detergent about the middle of the longest axis (membrane proteins).")
    flags.DEFINE_string("lacking", "", "RESIDUES: that the map lacks, of chains or by number, such as A:40-80,B.")
    ranges.number("extra", 0.0, "Mass of a further protein in contact, relative to the model's.", ranges.SHARE)
    flags.DEFINE_bool("sharpen", False, "Undo the fall of the amplitudes between 10 Å and the resolution.")
    ranges.number("turn", 0.0, "Degrees: rotate the model about a random axis first.", ranges.ANGLE)
    ranges.number("shift", 0.0, "Å: move it in a random direction.", ranges.SHIFT)
    ranges.number("scale", 1.0, "Standard deviation of the written map.", ranges.SCALE)
    ranges.number("offset", 0.0, "Added to all values of the map after that.", ranges.LEVEL)


def main() -> None:
    """Simulate the map and write it."""
    import numpy as np

    from cryotrans_jax.density import simulation
    from cryotrans_jax.io import atoms, files, maps

    from .inputs import check_detail, check_inside

    if FLAGS.like and FLAGS.cover:
        raise files.InputError("--like already sets the grid: leave out --cover")
    check_deposited()
    maps.check_output(FLAGS.output, FLAGS.overwrite)
    model = atoms.read_model(FLAGS.model, FLAGS.all_models)
    if FLAGS.superpose_on:
        model = atoms.superpose(model, atoms.read_model(FLAGS.superpose_on, FLAGS.all_models))
    if FLAGS.as_deposited:
        simulate_deposition(model)
        return
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


def check_deposited() -> None:
    """Raise InputError if flags of a deposition are given without --as_deposited, or a grid with it."""
    from cryotrans_jax.io.files import InputError

    if FLAGS.as_deposited:
        if FLAGS.like or FLAGS.cover:
            raise InputError("--as_deposited makes its own box: leave out --like and --cover")
        if FLAGS.voxel_size and len(FLAGS.voxel_size) > 1:
            raise InputError("--as_deposited has cubic voxels: give --voxel_size as one number")
    elif given := [name for name in DEPOSITED if FLAGS[name].present]:
        raise InputError(f"--{given[0]} is for a map as deposited: add --as_deposited, or leave it out")


def simulate_deposition(model) -> None:
    """Write a map of a model as deposited, its half-maps, and the model in its frame."""
    from cryotrans_jax.density.deposition import Conditions, deposit, random_pose
    from cryotrans_jax.io import atoms, files, maps

    from .inputs import check_detail

    name = Path(FLAGS.output)
    stem, _, suffix = name.name.partition(".")
    paths_ = [name, *(name.with_name(f"{stem}_half{number}.{suffix}") for number in (1, 2))]
    placed = name.with_name(f"{stem}_model.cif")
    for path in paths_:
        maps.check_output(path, FLAGS.overwrite)
    if placed.exists() and not FLAGS.overwrite:
        raise files.InputError(f"{placed} is already there: choose another output, or add --overwrite")
    voxel = FLAGS.voxel_size[0] if FLAGS.voxel_size else None
    check_detail(FLAGS.resolution, voxel or FLAGS.resolution / 3)
    moved = random_pose(model, FLAGS.turn, FLAGS.shift, FLAGS.seed).move(model)
    known = {key: FLAGS[key].value for key in DEPOSITED if key not in ("seed", "turn", "shift")}
    found = deposit(moved, Conditions(FLAGS.resolution, **known), voxel, FLAGS.seed)
    for path, map_ in zip(paths_, (found.map, *found.halves), strict=True):
        maps.write_map(path, map_)
        log.map_written(str(path), maps.describe(map_), FLAGS.resolution)
    atoms.write_model(placed, moved)
    log.model_written(placed)


command = command_of(main, define_flags)

if __name__ == "__main__":
    command()
