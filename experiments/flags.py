"""Flags that several commands share, in the groups in which --help shows them."""

import os

from absl import flags

from . import paths, ranges
from .usage import group

FLAGS = flags.FLAGS


class SizeParser(flags.ArgumentParser[list[float]]):
    """Parser of a voxel size: one number in Å, or three for x, y and z."""

    def parse(self, argument: str | list[float]) -> list[float]:
        """Read one number or three; raise ValueError for other values, or one out of range."""
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
        "MAP,...: a half-map of each target; with the other one it shows the target's noise, by which the fit weighs "
        "how stiff the molecule is.",
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
    """Define the flags that say which density belongs to the molecule."""
    ranges.number(
        "initial_threshold",
        None,
        "LEVEL: threshold of the initial map, in the map's own units; density below it is not carried. Chosen by rule "
        "if not given.",
        ranges.LEVEL,
    )
    ranges.number("target_threshold", None, "LEVEL: the same for the target maps.", ranges.LEVEL)
    flags.DEFINE_enum(
        "invert",
        None,
        ["initial", "target", "both", "none"],
        "Negate the initial map, all targets or both, where the molecule is darker than the solvent; the solvent is "
        "then at 0. If not given, such maps are refused.",
    )
    ranges.number(
        "mass_kda",
        None,
        "kDa: molecular weight of what the maps show; thresholds not given enclose the volume of this weight.",
        ranges.MASS,
    )
    paths.define_path("mask", None, "MAP: values from 0 to 1, on the initial map's grid, that multiply it.")
    paths.define_paths("target_mask", None, "MAP,...: the same for the target; one for all, or one for each target.")
    flags.DEFINE_enum(
        "micelle",
        "auto",
        ["auto", "keep"],
        "Remove density without detail, the detergent or lipid around a membrane protein, from maps without a mask; or "
        "keep it.",
    )
    ranges.number(
        "mask_radius", None, "Å: take only what lies within this distance of a map's centre of mass.", ranges.DISTANCE
    )


@group("Public archives")
def define_archives() -> None:
    """Define the flags that name the public archives, or mirrors of them; the environment may change their defaults."""
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
    """Define the flags that decide how targets are superposed on the initial map."""
    flags.DEFINE_enum(
        "align",
        "auto",
        ["auto", "none"],
        "Superpose targets on the initial map where that fits clearly better, or leave them where their origins put "
        "them.",
    )
    flags.DEFINE_bool("check_hand", False, "Warn if a target's mirror image fits the initial map clearly better.")
    flags.DEFINE_enum(
        "frame",
        "initial",
        ["initial", "target"],
        "Frame in which maps and models are written: the initial map's, or the target's as well (folder target_frame).",
    )


@group("Fit")
def define_fit() -> None:
    """Define the flags that decide the fit."""
    flags.DEFINE_enum("recipe", "default", ["default", "paper"], "The schedule: ours, or the published one.")
    ranges.number(
        "steps", 1.0, "FACTOR: multiplies the number of steps of every stage; 0.1 is a quick look.", ranges.STEPS
    )
    ranges.whole_number("seed", 0, "Seed of the network's first weights.", ranges.SEED)
    ranges.whole_number(
        "bin",
        1,
        "Bin the maps by this factor, 1, 2, 4 or 8, in all stages without a bin of their own (recipe paper only).",
        ranges.BIN,
    )
    flags.register_validator("bin", lambda factor: factor in (1, 2, 4, 8), "must be 1, 2, 4 or 8")


@group("Symmetry")
def define_symmetry() -> None:
    """Define the flags that describe the symmetry of the maps."""
    paths.define_path(
        "symmetry",
        None,
        "GROUP|MODEL: point group of all maps (C2, D8, T, O, I ...), or the biological assembly of an mmCIF file; the "
        "morph keeps it.",
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
        "The maps, within their masks, show one asymmetric unit: it is morphed alone, and the folder assembly has "
        "frames and models repeated by the operators of --symmetry.",
    )


@group("Fit")
def define_schedule() -> None:
    """Define the flags that change the published schedule."""
    flags.DEFINE_list(
        "schedule",
        None,
        "LOSS:STEPS:RATE[:BIN],...: the stages of the recipe paper, each with its Adam steps and learning rate, such "
        "as w2:2000:1e-3,l2:15000:1e-4; those published for TmrAB if not given. With bins they go from coarse to fine: "
        "w2:1000:1e-3:4,w2:1000:1e-3:2,w2:500:1e-3:1.",
    )
    ranges.whole_number("width", None, "UNITS: in a hidden layer (recipe paper only); else 100.", ranges.WIDTH)


@group("Several hosts")
def define_hosts() -> None:
    """Define the flags by which several processes share a run's targets."""
    flags.DEFINE_bool(
        "distributed",
        None,
        "This is one of several processes that share the targets; JAX finds their number from SLURM, Open MPI or the "
        "TPU pod. Start the same command in each.",
    )
    flags.DEFINE_string(
        "coordinator",
        None,
        "HOST:PORT: address of process 0, if JAX does not find it by itself.",
    )
    ranges.whole_number("processes", None, "Number of processes; with --coordinator.", ranges.PROCESSES)
    ranges.whole_number("process", None, "Number of this process, from 0; with --coordinator.", ranges.PROCESS)


@group("Machine")
def define_machine() -> None:
    """Define the flags that decide how the machine computes."""
    flags.DEFINE_bool(
        "deterministic", False, "Identical bytes from every run on a GPU too, at some cost; a CPU needs no flag."
    )


@group("Atomic models")
def define_models() -> None:
    """Define the flags of models to be carried along."""
    paths.define_path(
        "model",
        None,
        "MODEL: of the initial state, PDB or mmCIF; carried along through every frame. The search for rigid "
        "bodies follows its chain.",
    )
    flags.DEFINE_bool(
        "idealise",
        True,
        "Restore the initial model's bonds, angles and side chains in carried models, and remove clashes; "
        "--noidealise leaves every atom where the flow carries it.",
    )
    define_all_models()


@group("Atomic models")
def define_all_models() -> None:
    """Define the flag that decides which models of a file are taken."""
    flags.DEFINE_bool(
        "all_models",
        False,
        "Read all models of a file that do not overlap, such as the copies of a biological assembly, as chains of one "
        "model; else the first.",
    )


@group("Output")
def define_output(frames: int = 11) -> None:
    """Define the flags that decide what is written."""
    ranges.whole_number("frames", frames, "Number of frames, from 0 to 1 in time.", ranges.FRAMES)
    flags.DEFINE_enum(
        "render",
        None,
        ["pull_back", "splat"],
        "How frames are made: pull_back keeps detail and the height of peaks, splat keeps the mass. If not given: "
        "splat with the recipe paper, as published, and pull_back with the default one.",
    )
    flags.DEFINE_bool("overwrite", False, "Replace the results that the output folder holds.")


@group("Output")
def define_resume() -> None:
    """Define the flags that decide how an unfinished run is resumed."""
    flags.DEFINE_bool(
        "resume",
        None,
        "Resume the unfinished run in the output folder. If not given: if it has the same settings and inputs; "
        "--noresume: never; --resume: or fail.",
    )
    ranges.number(
        "checkpoint_minutes",
        1.0,
        "Time between saves of the fit's state, from which a run can be resumed; 0: every few steps.",
        ranges.MINUTES,
    )
