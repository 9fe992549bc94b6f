"""Flags that several jobs share, each defined once."""

import os

from absl import flags

FLAGS = flags.FLAGS


def define_maps() -> None:
    """Nothing; the flags that name the inputs are there."""
    flags.DEFINE_string(
        "initial", None, "The sharp map of the common conformation. 6RAH_3A.mrc if only --target is given."
    )
    flags.DEFINE_list("target", None, "The map of the rare conformation; several, separated by commas.")
    flags.DEFINE_list(
        "target_half1",
        None,
        "A half-map of each target, to fit to; the other one, which the fit does not see, says when to stop.",
    )
    flags.DEFINE_list("target_half2", None, "The other half-map; found by its name if not given (half1, half_A ...).")
    flags.DEFINE_string("data_dir", "data", "Folder in which names that are not files are looked up.")
    flags.DEFINE_bool(
        "fetch", False, "Fetch what is not in --data_dir from the public archives: see experiments.fetch."
    )
    define_archives()
    flags.DEFINE_float("initial_threshold", None, "Contour level of the initial map; chosen by rule if not given.")
    flags.DEFINE_float("target_threshold", None, "Contour level of the target maps; chosen by rule if not given.")
    flags.DEFINE_float(
        "mass_kda",
        None,
        "Molecular weight of what the maps show, kDa: contour levels not given are those that enclose its volume.",
        lower_bound=0.01,
    )
    flags.DEFINE_string("mask", None, "A map of values from 0 to 1, on the initial map's grid, that multiply it.")
    flags.DEFINE_list("target_mask", None, "The same for the target; one for all, or one for each target.")
    flags.DEFINE_float(
        "mask_radius", None, "Take only what lies within so many Å of a map's centre of mass.", lower_bound=0.1
    )
    flags.DEFINE_float(
        "initial_resolution",
        None,
        "Resolution of the initial map, Å; read from a name like 6RAH_3A.mrc.",
        lower_bound=0.1,
    )
    flags.DEFINE_float(
        "target_resolution",
        None,
        "Resolution of the target maps, Å; read from their names, or the blur between the maps is estimated.",
        lower_bound=0.1,
    )


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
        flags.DEFINE_string(name, default, f"Address of the archive's {held}; or ${variable}.")
    flags.DEFINE_float("max_gb", 8.0, "Fetch no file with more gigabytes.", lower_bound=0.0)


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


def define_fit() -> None:
    """Nothing; the flags that decide the fit are there."""
    flags.DEFINE_enum("recipe", "default", ["default", "paper"], "The schedule: ours, or the published one.")
    flags.DEFINE_integer("bin", 1, "Bin the maps by this factor, 1, 2, 4 or 8 (recipe paper only).")
    flags.register_validator("bin", lambda factor: factor in (1, 2, 4, 8), "must be 1, 2, 4 or 8")
    flags.DEFINE_integer("seed", 0, "Seed of the network's first weights.", lower_bound=0)
    flags.DEFINE_float("steps", 1.0, "Multiplies the number of steps of every stage.", lower_bound=1e-4)


def define_hosts() -> None:
    """Nothing; the flags by which several processes share a run's targets are there."""
    flags.DEFINE_bool(
        "distributed",
        None,
        "This is one of several processes that share the targets; how many there are JAX finds out from SLURM, Open "
        "MPI or the TPU pod. Start the same command in each.",
    )
    flags.DEFINE_string(
        "coordinator", None, "HOST:PORT at which process 0 can be reached, where JAX does not find out by itself."
    )
    flags.DEFINE_integer("processes", None, "The number of processes; with --coordinator.", lower_bound=1)
    flags.DEFINE_integer("process", None, "The number of this process, from 0; with --coordinator.", lower_bound=0)


def define_machine() -> None:
    """Nothing; the flags that decide how the machine computes are there."""
    flags.DEFINE_bool(
        "deterministic", False, "The same bytes from every run on a GPU too, where it is slower; a CPU needs no flag."
    )


def define_output(frames: int = 11) -> None:
    """Nothing; the flags that decide what is written are there."""
    flags.DEFINE_integer("frames", frames, "Number of frames, from 0 to 1 in time.", lower_bound=1, upper_bound=1000)
    flags.DEFINE_string("model", None, "Atomic model of the initial state (PDB or mmCIF), carried along.")
    flags.DEFINE_bool(
        "idealise", False, "Give carried models the initial one's bonds, angles and side chains again, and no clashes."
    )
    flags.DEFINE_enum(
        "render", "pull_back", ["pull_back", "splat"], "How frames are made: keeping detail, or keeping mass."
    )
    flags.DEFINE_bool("overwrite", False, "Replace the results that the output folder holds.")
