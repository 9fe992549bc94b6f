"""Flags that several jobs share, each defined once, in the groups in which --help shows them."""

import os

from absl import flags

from . import paths, ranges
from .usage import group

FLAGS = flags.FLAGS


class SizeParser(flags.ArgumentParser[list[float]]):
    """Parser of a voxel size: one number in Å, or three for x, y and z."""

    def parse(self, argument: str | list[float]) -> list[float]:
        """The number or the three numbers; raise ValueError where there are others, or one is out of range."""
        if isinstance(argument, list):
            return argument
        size = [ranges.VOXEL_SIZE.number(text) for text in argument.split(",")]
        if len(size) not in (1, 3):
            raise ValueError("expected one number in Å, such as 1.06, or three, such as 1.06,1.06,1.2")
        return size


def define_size(name: str, help: str) -> None:
    """Define a flag that is a voxel size."""
    flags.DEFINE(SizeParser(), name, None, help, serializer=flags.ListSerializer(","))


@group("Maps")
def define_maps() -> None:
    """Define the flags that name the inputs."""
    paths.define_path(
        "initial", None, "MAP: the sharp map of the common conformation. 6RAH_3A.mrc if only --target is given."
    )
    paths.define_paths("target", None, "MAP,...: the map of the rare conformation; several, separated by commas.")
    define_size(
        "voxel_size",
        "Å: voxel size of the initial map, its mask and its parts, where the header has none or a wrong one; one "
        "number, or three.",
    )
    define_size(
        "target_voxel_size", "Å: the same for the target maps, with their half-maps and masks, and the waypoints."
    )
    ranges.number(
        "initial_resolution",
        None,
        "Å: resolution of the initial map; read from a name like 6RAH_3A.mrc, or from what the EMDB says of the entry.",
        ranges.RESOLUTION,
    )
    ranges.number(
        "target_resolution",
        None,
        "Å: resolution of the target maps, read likewise; without the two the blur between the maps is estimated.",
        ranges.RESOLUTION,
    )
    paths.define_paths(
        "target_half1",
        None,
        "MAP,...: a half-map of each target, to fit to; the other one, which the fit does not see, says when to stop.",
    )
    paths.define_paths(
        "target_half2", None, "MAP,...: the other half-map; found by its name if not given (half1, half_A ...)."
    )
    paths.define_path("data_dir", "data", "FOLDER: where names that are not files are looked up.")
    flags.DEFINE_bool(
        "fetch", False, "Fetch what is not in --data_dir from the public archives: see experiments.fetch."
    )


@group("Contour and masks")
def define_contour() -> None:
    """Nothing; the flags that say which density is the molecule's are there."""
    ranges.number(
        "initial_threshold",
        None,
        "LEVEL: density of the initial map below this, in the map's own units, is not moved; chosen by rule if not "
        "given.",
        ranges.LEVEL,
    )
    ranges.number("target_threshold", None, "LEVEL: the same for the target maps.", ranges.LEVEL)
    flags.DEFINE_enum(
        "invert",
        None,
        ["initial", "target", "both", "none"],
        "Negate the initial map, all targets or both, as the molecule is darker than the solvent there; the solvent is "
        "then at 0. If not given, such maps are refused.",
    )
    ranges.number(
        "mass_kda",
        None,
        "kDa: molecular weight of what the maps show; levels not given are those that enclose its volume.",
        ranges.MASS,
    )
    paths.define_path("mask", None, "MAP: values from 0 to 1, on the initial map's grid, that multiply it.")
    paths.define_paths("target_mask", None, "MAP,...: the same for the target; one for all, or one for each target.")
    flags.DEFINE_enum(
        "micelle",
        "auto",
        ["auto", "keep"],
        "Leave out density that has no detail, the detergent or lipid about a membrane protein, where a map without a "
        "mask shows such; or take all along.",
    )
    ranges.number(
        "mask_radius", None, "Å: take only what lies within this distance of a map's centre of mass.", ranges.DISTANCE
    )


@group("Public archives")
def define_archives() -> None:
    """Nothing; the flags that say where the public archives are, or mirrors of them, are there.

    The environment may name mirrors as well, where the flags do not.
    """
    for name, base, held in (
        ("emdb_api", "https://www.ebi.ac.uk/emdb/api/entry", "descriptions of EMDB entries, without /EMD-22001"),
        (
            "emdb_files",
            "https://ftp.ebi.ac.uk/pub/databases/emdb/structures",
            "maps, without /EMD-22001/map/emd_22001.map.gz",
        ),
        ("pdb_files", "https://files.rcsb.org/download", "models, without /6RAH.cif"),
    ):
        variable = f"CRYOTRANS_{name.upper()}"
        default = os.environ.get(variable) or base
        flags.DEFINE_string(name, default, f"ADDRESS: of the archive's {held}; or ${variable}.")
    ranges.number("max_gb", 8.0, "GB: fetch no larger file.", ranges.GIGABYTES)


@group("Alignment")
def define_alignment() -> None:
    """Nothing; the flags that decide how targets are laid over the initial map are there."""
    flags.DEFINE_enum(
        "align",
        "auto",
        ["auto", "none"],
        "Lay targets over the initial map where that fits clearly better, or take them where their origins put them.",
    )
    flags.DEFINE_bool("check_hand", False, "Say so if a target's mirror image fits the initial map clearly better.")
    flags.DEFINE_enum(
        "frame",
        "initial",
        ["initial", "target"],
        "In whose frame maps and models are written: the initial map's, or the target's as well (folder target_frame).",
    )


@group("Fit")
def define_fit() -> None:
    """Nothing; the flags that decide the fit are there."""
    flags.DEFINE_enum("recipe", "default", ["default", "paper"], "The schedule: ours, or the published one.")
    ranges.number(
        "steps", 1.0, "FACTOR: multiplies the number of steps of every stage; 0.1 is a quick look.", ranges.STEPS
    )
    ranges.whole_number("seed", 0, "Seed of the network's first weights.", ranges.SEED)
    ranges.whole_number("bin", 1, "Bin the maps by this factor, 1, 2, 4 or 8 (recipe paper only).", ranges.BIN)
    flags.register_validator("bin", lambda factor: factor in (1, 2, 4, 8), "must be 1, 2, 4 or 8")


@group("Symmetry")
def define_symmetry() -> None:
    """Nothing; the flags that say how the maps are symmetric are there."""
    paths.define_path(
        "symmetry",
        None,
        "GROUP|MODEL: of all maps, C2, D8, T, O, I and so on, or the assembly of an mmCIF file; the morph keeps it.",
    )
    ranges.numbers(
        "symmetry_axis", None, "X,Y,Z: direction of the axis of Cn and Dn; 0,0,1 if not given.", ranges.DIRECTION
    )
    ranges.numbers(
        "symmetry_centre",
        None,
        "X,Y,Z: a point on the axis in the initial map's frame, Å; found if not given.",
        ranges.COORDINATE,
    )
    flags.DEFINE_bool(
        "one_unit",
        False,
        "The maps, or what their masks leave, show one unit: it is morphed alone, and the folder assembly has frames "
        "and models repeated by the operators of --symmetry.",
    )


@group("Fit")
def define_schedule() -> None:
    """Nothing; the flags that change the published schedule are there."""
    flags.DEFINE_list(
        "schedule",
        None,
        "LOSS:STEPS:RATE,...: the stages of the recipe paper, each with its Adam steps and learning rate, such as "
        "w2:2000:1e-3,l2:15000:1e-4; those published for TmrAB if not given.",
    )
    ranges.whole_number("width", None, "UNITS: in a hidden layer (recipe paper only); else 100.", ranges.WIDTH)


@group("Several hosts")
def define_hosts() -> None:
    """Nothing; the flags by which several processes share a run's targets are there."""
    flags.DEFINE_bool(
        "distributed",
        None,
        "This is one of several processes that share the targets; how many there are JAX finds out from SLURM, Open "
        "MPI or the TPU pod. Start the same command in each.",
    )
    flags.DEFINE_string(
        "coordinator",
        None,
        "HOST:PORT: where process 0 can be reached, if JAX does not find out by itself.",
    )
    ranges.whole_number("processes", None, "Number of processes; with --coordinator.", ranges.PROCESSES)
    ranges.whole_number("process", None, "Number of this process, from 0; with --coordinator.", ranges.PROCESS)


@group("Machine")
def define_machine() -> None:
    """Nothing; the flags that decide how the machine computes are there."""
    flags.DEFINE_bool(
        "deterministic", False, "The same bytes from every run on a GPU too, where it is slower; a CPU needs no flag."
    )


@group("Atomic models")
def define_models() -> None:
    """Define the flags of models to be carried along."""
    paths.define_path("model", None, "MODEL: of the initial state, PDB or mmCIF; carried along through every frame.")
    flags.DEFINE_bool(
        "idealise", False, "Give carried models the initial one's bonds, angles and side chains again, and no clashes."
    )
    define_all_models()


@group("Atomic models")
def define_all_models() -> None:
    """Define the flag that decides which models of a file are taken."""
    flags.DEFINE_bool(
        "all_models",
        False,
        "Take all models of a file that stand apart, as the copies of a biological assembly do, as chains of one; else "
        "the first.",
    )


@group("Output")
def define_output(frames: int = 11) -> None:
    """Nothing; the flags that decide what is written are there."""
    ranges.whole_number("frames", frames, "Number of frames, from 0 to 1 in time.", ranges.FRAMES)
    flags.DEFINE_enum(
        "render",
        "pull_back",
        ["pull_back", "splat"],
        "How frames are made: keeping the detail and the height of peaks, or keeping the mass.",
    )
    flags.DEFINE_bool("overwrite", False, "Replace the results that the output folder holds.")


@group("Output")
def define_resume() -> None:
    """Nothing; the flags that decide how a run that was stopped goes on are there."""
    flags.DEFINE_bool(
        "resume",
        None,
        "Go on with the unfinished run that the output folder holds. If not given: where it is the same run, of the "
        "same inputs; --noresume never, --resume or not at all.",
    )
    ranges.number(
        "checkpoint_minutes",
        1.0,
        "Keep the state of a fit so often, so that it can go on from there; 0: after every few steps.",
        ranges.MINUTES,
    )
